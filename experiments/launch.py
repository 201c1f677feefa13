"""Starting an experiment: flags, help, and errors as one line with exit status 2."""

import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from absl import flags
from rich.console import Console

_HELP = ("-h", "--help", "-help", "--helpfull", "--helpshort")
# Raised for what a user passed; the message says it all.
USER_ERRORS = (ValueError, NotImplementedError, ModuleNotFoundError)
BAD_INPUT = 2
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def launch(module: ModuleType, main: Callable[[], int], argv: list[str]) -> int:
    """Parses flags and runs `main`.

    Args:
      module: the experiment; its docstring is the help's first part.
      argv: program name and arguments.

    Returns:
      An exit status: main's own, or 2 for bad input.
    """
    name = module.__name__.rpartition(".")[2]
    if not _NVIDIA_DRIVER.exists():
        # The compiler for GPUs that are not there (extra `aot`) would print what it lacks to run.
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    if any(a in _HELP for a in argv[1:]):
        print(help_text(module, name))
        return 0
    try:
        rest = flags.FLAGS(argv)
        argument = getattr(module, "ARGUMENT", None)
        if argument is not None and len(rest) == 2 and argument.value is None:
            flags.FLAGS[argument.name].value = rest.pop()
        if len(rest) > 1:
            raise ValueError(
                f"unexpected argument {rest[1]!r}. Flags are written --name=value; see "
                f"parallax {name} --help."
            )
        return main()
    except flags.Error as error:
        return _fail(name, f"{str(error).rstrip('.')}. See parallax {name} --help.")
    except USER_ERRORS as error:
        return _fail(name, str(error))
    except KeyboardInterrupt:
        print(f"parallax {name}: interrupted.", file=sys.stderr)
        return 130


def _fail(name: str, message: str) -> int:
    print(f"parallax {name}: {' '.join(message.split())}", file=sys.stderr)
    return BAD_INPUT


def help_text(module: ModuleType, name: str) -> str:
    """The module's docstring, then each of its flags with its default."""
    lines = [(module.__doc__ or "").strip(), "", "Flags:"]
    for holder in module.FLAGS:
        flag = flags.FLAGS[holder.name]
        switch = f"--{flag.name}" if flag.boolean else f"--{flag.name}=..."
        unset = flag.default is None or flag.default is False
        default = "" if unset else f" (default {flag.default_as_str})"
        text = f"{' '.join((flag.help or '').split())}{default}"
        lines += textwrap.wrap(
            text, 98, initial_indent=f"  {switch:<22}", subsequent_indent=" " * 24
        )
    return "\n".join(lines)


def check_file(path: str) -> None:
    """To be called before the work starts. ValueError if a file cannot be written there."""
    target = Path(path)
    if target.is_dir():
        why = "Is a directory"
    elif not target.parent.is_dir():
        why = "its folder is not there"
    elif not os.access(target if target.exists() else target.parent, os.W_OK):
        why = "Permission denied"
    else:
        return
    raise ValueError(f"--json={path}: {why}. Give a file that can be written.")


class ProgressLines:
    """What is going on, on standard error: a spinner on a terminal, lines elsewhere."""

    def __init__(self):
        self._console = Console(stderr=True)
        self._status = self._console.status("starting") if self._console.is_terminal else None

    def __enter__(self):
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self) -> None:
        """Leaves the terminal to what is printed from now on."""
        if self._status:
            self._status.stop()
            self._status = None

    def __call__(self, line: str) -> None:
        if self._status:
            self._status.update(line)
            self._console.log(line, _stack_offset=2)
        else:
            print(line, file=sys.stderr, flush=True)
