"""One program that `px.explain` is judged on, and what is known of it."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

import parallax as px
from parallax.results.lens_results import Compilation

Quantity = Literal["time", "memory", "sent bytes"]


@dataclass(frozen=True)
class Mended:
    """A faulty program without its fault: what `px.compile_for` takes after the cluster."""

    fn: Callable[..., Any]
    args: tuple[Any, ...]
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """A program for a cluster, and its planted fault if it has one.

    `fn`, `args` and `options` are what `px.compile_for(cluster, fn, *args, **options)` takes.

    Attributes:
      kind: kind of the fault, or the style of a program without one.
      file, line: where the fault is; "" and None where no line of the function is at fault but the
        spec or donation of an argument.
      argument: then its path, by the parameter's name, such as "params['w']"; "" otherwise.
      fixed: the program without its fault; None if there is none.
      saves: what the fixed program has less of, by at least 5 %.
    """

    name: str
    kind: str
    cluster: str
    fn: Callable[..., Any]
    args: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    file: str = ""
    line: int | None = None
    argument: str = ""
    fixed: Mended | None = None
    saves: Quantity | Literal[""] = ""

    @property
    def mended(self) -> "Case":
        """The same case with its fault removed."""
        assert self.fixed is not None, self.name
        return Case(
            f"{self.name}, fixed", self.kind, self.cluster, self.fixed.fn, self.fixed.args,
            self.fixed.options,
        )  # fmt: skip


def compile_case(case: Case) -> Compilation:
    """Compile a case's program under JAX's defaults, which users have and tests have not."""
    with defaults():
        return px.compile_for(case.cluster, case.fn, *case.args, **case.options)


@contextlib.contextmanager
def defaults() -> Iterator[None]:
    """Run under JAX's defaults for numbers: 32 bits, and promotion of dtypes and ranks."""
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


def marked(file: str, name: str) -> dict[str, Any]:
    """Return file and number of the line that ends in `# fault: NAME`.

    Raises:
      ValueError: no line does, or several do.
    """
    lines = Path(file).read_text().splitlines()
    found = [i for i, line in enumerate(lines, 1) if line.endswith(f"# fault: {name}")]
    if len(found) != 1:
        raise ValueError(f"{file}: expected one line with the fault {name!r}, got {found}.")
    return {"file": file, "line": found[0]}


def array(*shape: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    """Return an abstract array."""
    return jax.ShapeDtypeStruct(shape, dtype)
