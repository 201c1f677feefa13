"""Lowering for absent GPUs: programs that call back to the host lower too, and never run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax.stages import Lowered, Traced


# What jaxlib says of a library that it asks, and XLA of a call without an implementation.
_LIBRARY_VERSION = "versions_helpers"
_NO_HANDLER = "No FFI handler registered for "


def lower(traced: Traced) -> Lowered:
    """Lower a traced program for CUDA, whatever devices it was traced for.

    Callbacks (`jax.debug.print`, `pure_callback`, `io_callback`) become calls without a function
    behind them: JAX would bind the functions to a running backend, and the program never runs.
    """
    with _no_backend(), missing_libraries():
        lowered = traced.lower(lowering_platforms=("cuda",))
    arguments = getattr(getattr(lowered, "_lowering", None), "compile_args", {})
    if arguments.get("host_callbacks"):
        arguments["host_callbacks"] = []
    return lowered


@contextlib.contextmanager
def missing_libraries() -> Iterator[None]:
    """Say in one line that a program asks for a library that is not here; a ValueError."""
    try:
        yield
    except RuntimeError as error:
        if _LIBRARY_VERSION in str(error):
            raise ValueError(
                "the lowering of the program asks a CUDA library for its version, which needs a "
                f"GPU, as that of jnp.linalg.eig does ({error}). Compile the program without it."
            ) from None
        if _NO_HANDLER in str(error):
            target = str(error).partition(_NO_HANDLER)[2].split(" ")[0]
            raise ValueError(
                f"the program calls {target!r} (jax.ffi), of which nothing is registered for CUDA "
                "in this process. Register it (jax.ffi.register_ffi_target(..., "
                "platform='CUDA')), or compile the program without it."
            ) from None
        if "cuDNN" not in str(error):
            raise
        raise ValueError(
            f"the program calls cuDNN, which is not installed here ({error}) Install it (pip "
            "install nvidia-cudnn-cu12), or ask for another implementation."
        ) from None


@contextlib.contextmanager
def _no_backend() -> Iterator[None]:
    """Give rules that ask for the running backend of an absent platform none, not an error."""
    from jax._src.interpreters import mlir

    original = mlir.ModuleContext.get_backend

    def get_backend(self, *args, **kwargs):
        try:
            return original(self, *args, **kwargs)
        except RuntimeError:
            return None

    mlir.ModuleContext.get_backend = get_backend
    try:
        yield
    finally:
        mlir.ModuleContext.get_backend = original
