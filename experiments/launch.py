"""The start of an experiment: flags, help, and errors as one line with exit status 2."""

import contextlib
import importlib
import re
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags as absl_flags
from rich.console import Console

from parallax.distributed.agreement import USER_ERRORS
from parallax.distributed.cuda_plugin import quiet_without_driver
from parallax.experiments import flags, starting
from parallax.lenses.child import end_children
from parallax.requests.option import described

_HELP = ("-h", "--help", "-help", "--helpfull", "--helpshort")
BAD_INPUT, INTERRUPTED = 2, 130
_COUNTED = re.compile(r"(?P<before>.*?)\b(?P<at>\d+) of (?P<of>\d+)\b")


def launch(name: str, arguments: list[str], commands: Sequence[str]) -> int:
    """Parse flags and run a command.

    Args:
      name: the command, a module with `Flags`, `main(flags)` and a docstring, the help's first
        part; it may have `kept(flags)`, which says in words what Ctrl-C left behind.
      arguments: the arguments after the command's name.
      commands: the names of all commands.

    Returns:
      An exit status: main's own, 2 for bad input, or 130 for Ctrl-C.
    """
    started, given = time.time(), None
    quiet_without_driver()
    module = None
    try:
        module = command_module(name)
        if any(a in _HELP for a in arguments):
            print(help_text(module))
            return 0
        given = flags.read_flags(module.Flags, [f"parallax {name}", *arguments])
        if hasattr(given, "processes"):
            starting.join(name, given)
        status = module.main(given)
        starting.leave()
        return status
    except flags.UnknownFlagError as error:
        return _fail(name, f"{_elsewhere(error, name, commands)} See parallax {name} --help.")
    except absl_flags.Error as error:
        return _fail(name, f"{str(error).rstrip('.')}. See parallax {name} --help.")
    except BrokenPipeError:
        raise  # what read the output went away
    except USER_ERRORS as error:
        return _fail(name, str(error))
    except KeyboardInterrupt:
        end_children()
        line = f"interrupted; {_kept(module, given, started)}."
        print(f"\nparallax {name}: {line}", file=sys.stderr)
        starting.leave_all(line, INTERRUPTED)
        return INTERRUPTED
    except Exception as error:
        starting.leave_after(error)
        raise


def command_module(name: str) -> ModuleType:
    """Import the module of a command."""
    return importlib.import_module(f"parallax.experiments.{name}")


def _fail(name: str, message: str) -> int:
    line = " ".join(message.split())
    if starting.speaks():
        print(f"parallax {name}: {line}", file=sys.stderr)
    starting.leave_all(line, BAD_INPUT)
    return BAD_INPUT


def _elsewhere(error: flags.UnknownFlagError, name: str, commands: Sequence[str]) -> str:
    """Return the error; it names the commands that have the flag, if there are any."""
    spelled = {error.flag, error.flag.removeprefix("no")}
    owners = [
        command
        for command in commands
        if spelled & {one.flag for one in described(command_module(command).Flags)}
    ]
    if not owners:
        return str(error)
    return f"--{error.flag} is a flag of {', '.join(owners)}, not of {name}."


def _kept(module: ModuleType | None, given: Any, started: float) -> str:
    """Return what an interrupted command leaves behind, in words."""
    if module is None or given is None:
        return "nothing was started"
    if hasattr(module, "kept"):
        return module.kept(given)
    written = [str(path) for path in _results(given) if path.stat().st_mtime >= started]
    return f"written so far: {', '.join(written)}" if written else "nothing was written"


def _results(given: Any) -> Iterator[Path]:
    """Yield the files in the folder of results, and the file of --json."""
    if folder := getattr(given, "out", None):
        yield from (path for path in sorted(Path(folder).glob("**/*")) if path.is_file())
    if (file := getattr(given, "json", None)) and Path(file).is_file():
        yield Path(file)


def help_text(module: ModuleType) -> str:
    """Return the module's docstring, then each of its flags with its default."""
    lines = [(module.__doc__ or "").strip(), "", "Flags:"]
    for one in described(module.Flags):
        switch = f"--{one.flag}" if one.option.kind == "switch" else f"--{one.flag}=..."
        shown = flags.shown_default(one.default)
        default = f" (default {shown})" if shown else ""
        lines += textwrap.wrap(
            f"{flags.meaning(one.option)}{default}", 98,
            initial_indent=f"  {switch:<22}", subsequent_indent=" " * 24,
        )  # fmt: skip
    return "\n".join(lines)


def check_file(path: str | None) -> None:
    """Raise ValueError, before the work starts, if a file cannot be written there."""
    if path is None:
        return
    target = Path(path)
    if not target.parent.is_dir():
        raise _no_file(path, "its folder is not there")
    try:
        if target.exists():
            target.open("a").close()
        else:
            tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise _no_file(path, error.strerror) from None


def save_file(path: str | None, text: str) -> None:
    """Write the file of --json, if it is asked for; an older one stays until the new is complete.

    Raises:
      ValueError: it cannot be written, as on a full disk.
    """
    if path is None:
        return
    target = Path(path)
    waiting = target.with_name(f".{target.name}.partial")
    try:
        if target.exists() and not target.is_file():  # a pipe or device
            target.write_text(text, encoding="utf-8")
            return
        waiting.write_text(text, encoding="utf-8")
        waiting.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            waiting.unlink(missing_ok=True)
        raise _no_file(path, error.strerror) from None


def _no_file(path: str, why: str | None) -> ValueError:
    return ValueError(f"--json={path}: {why}. Give a file that can be written.")


class ProgressLines:
    """Progress on standard error: a spinner on a terminal, lines elsewhere.

    A line that counts ("2 of 6: ...") also has the time left, if the rest goes as the cases before.
    """

    def __init__(self):
        self._began: dict[str, tuple[int, float]] = {}  # of each count: its first number, and when
        self._console = Console(stderr=True)
        self._status = self._console.status("starting") if self._console.is_terminal else None

    def __enter__(self):
        if self._status:
            self._status.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def stop(self) -> None:
        """Clear the spinner, so that the terminal is free for what is printed next."""
        if self._status:
            self._status.stop()
            self._status = None

    def __call__(self, line: str) -> None:
        line += self._left(line)
        if self._status:
            self._status.update(line)
            self._console.log(line, _stack_offset=2)
        else:
            print(line, file=sys.stderr, flush=True)

    def _left(self, line: str) -> str:
        """Return the time left after a line that counts; "" for others and where none is known."""
        counted = _COUNTED.match(line)
        if counted is None:
            return ""
        at, of = int(counted["at"]), int(counted["of"])
        now = time.monotonic()
        first, began = self._began.setdefault(f"{counted['before']} of {of}", (at, now))
        if at <= first:
            return ""
        return f" (about {said_s((now - began) / (at - first) * (of - at + 1))} left)"


def said_s(seconds: float) -> str:
    """Return a time left in words, such as "40 s" or "12 min"."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
