"""What XLA warns of while it compiles, which it writes to stderr alone."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# A log line: its level, date, time, thread and place, then the message.
_WARNING = re.compile(r"^[WE]\d{4} .*?(?:spmd_partitioner|sort_rewriter)[^\]]*\] (.*)$")
# Lines about the GPU that is not there, and about memory: a compilation says if it fits.
_KNOWN = re.compile(
    r"^[IWE]\d{4} .*(cuda_executor|cuda_platform|cudart_stub|cuda_dnn|cuda_blas|hlo_remat)"
    r"|^To avoid this, compile with a GPU present"
)


@contextlib.contextmanager
def compiler_warnings() -> Iterator[list[str]]:
    """Collect warnings of the partitioner, and of sorts; other lines reach stderr when it ends.

    XLA writes to file descriptor 2 of the process, so what other threads write there meanwhile is
    held back as well. Nothing is collected where `TF_CPP_MIN_LOG_LEVEL` is above 1.
    """
    found: list[str] = []
    sys.stderr.flush()
    try:
        own = os.dup(2)
    except OSError:  # a process without stderr
        yield found
        return
    with tempfile.TemporaryFile() as log:
        os.dup2(log.fileno(), 2)
        try:
            yield found
        finally:
            os.dup2(own, 2)
            log.seek(0)
            for line in log.read().decode(errors="replace").splitlines(keepends=True):
                if match := _WARNING.match(line.rstrip("\r\n")):
                    found.append(match[1])
                elif not _KNOWN.match(line):
                    os.write(2, line.encode())
            os.close(own)


def logs_warnings() -> bool:
    """Return whether XLA logs warnings in this process."""
    return os.environ.get("TF_CPP_MIN_LOG_LEVEL", "0") in ("0", "1")
