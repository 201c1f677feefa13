"""The floating dtypes below float64 that a traced program computes in, and the program without.

A user module's parameters are float64 when it is verified, so whatever it still computes in a
narrower dtype it casts down itself.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import source_info_util
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal  # pyright: ignore[reportPrivateImportUsage]

# Primitives whose results are exact: they move values, or choose among them.
_EXACT = {
    "abs", "bitcast_convert_type", "broadcast_in_dim", "clamp", "concatenate", "copy", "copy_p",
    "device_put", "dynamic_slice", "dynamic_update_slice", "expand_dims", "gather", "iota", "max",
    "min", "neg", "optimization_barrier", "pad", "reduce_max", "reduce_min", "reshape", "rev",
    "select_n", "sharding_constraint", "sign", "slice", "sort", "split", "squeeze",
    "stop_gradient", "transpose",
}  # fmt: skip
# Primitives that run their one body once, on their own arguments.
_CALLS = {
    "call", "checkpoint", "closed_call", "core_call", "custom_jvp_call", "custom_vjp_call",
    "custom_vjp_call_jaxpr", "jit", "pjit", "remat", "remat2",
}  # fmt: skip
# Primitives that depend on the bits of a float, or whose body names memory.
_KEPT_AS_WRITTEN = {"bitcast_convert_type", "pallas_call"}


@dataclass(frozen=True)
class NarrowDtype:
    """A floating dtype below float64 that a program computes in.

    Attributes:
      dtype: its name.
      parameters: the parameters that are cast to it.
      lines: the source lines that compute in it or cast something else to it.
    """

    dtype: str
    parameters: tuple[str, ...]
    lines: tuple[str, ...]


def narrow_dtypes(closed: ClosedJaxpr, parameters: Sequence[str]) -> list[NarrowDtype]:
    """Return the dtypes below float64 that a program computes in, the narrowest first.

    Args:
      closed: the traced program.
      parameters: the names of its first arguments.
    """
    found: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    names = dict(zip(closed.jaxpr.invars, parameters, strict=False))
    for dtype, parameter, line in _roundings(closed.jaxpr, names):
        casts, lines = found.setdefault(dtype, ({}, {}))
        (casts if parameter else lines)[parameter or line] = None
    ordered = sorted(found, key=_eps, reverse=True)
    return [NarrowDtype(dtype, *map(tuple, found[dtype])) for dtype in ordered]


def _roundings(jaxpr: Any, names: Mapping[Any, str]) -> Iterator[tuple[str, str, str]]:
    """Yield (dtype, parameter or "", source line) of every equation that rounds."""
    known = dict(names)
    for eqn in jaxpr.eqns:
        inputs = [None if isinstance(x, Literal) else known.get(x) for x in eqn.invars]
        parameter = next(filter(None, inputs), "")
        inner = [body.jaxpr for body in _bodies(eqn)]
        for body in inner:
            # A body's arguments are the last of the equation's: a branch has no index.
            given = inputs[len(inputs) - len(body.invars) :]
            yield from _roundings(
                body, {x: n for x, n in zip(body.invars, given, strict=False) if n}
            )
        if inner:
            continue
        line = _line(eqn)
        if eqn.primitive.name == "convert_element_type":
            before, after = eqn.invars[0].aval.dtype, eqn.params["new_dtype"]
            known |= {eqn.outvars[0]: parameter} if parameter else {}
            if _is_narrow(after) and _is_floating(before) and _eps(before) < _eps(after):
                yield jnp.dtype(after).name, parameter, line
        elif eqn.primitive.name == "reduce_precision":
            if dtype := _of_mantissa(eqn.params["mantissa_bits"]):
                yield dtype, parameter, line
        elif eqn.primitive.name in _EXACT:
            known |= dict.fromkeys(eqn.outvars, parameter) if parameter else {}
        else:
            for out in eqn.outvars:
                if _is_narrow(getattr(out.aval, "dtype", None)):
                    yield out.aval.dtype.name, "", line


def widened(closed: ClosedJaxpr) -> Callable[..., list[Any]]:
    """Return the function of a traced program with float64 in place of every narrower float.

    It takes and returns flat lists. A kernel inside stays as written.
    """
    return lambda *args: _run(closed.jaxpr, closed.consts, args)


def _run(jaxpr: Any, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(x):
        aval: Any = x.aval
        return _wide(np.asarray(x.val, aval.dtype) if isinstance(x, Literal) else values[x])

    for eqn in jaxpr.eqns:
        inputs = [read(x) for x in eqn.invars]
        with eqn.ctx.manager:
            outputs = _equation(eqn, inputs)
        values |= zip(eqn.outvars, map(_wide, outputs), strict=True)
    return [read(x) for x in jaxpr.outvars]


def _equation(eqn: Any, inputs: list[Any]) -> Sequence[Any]:
    name = eqn.primitive.name
    if name == "reduce_precision":
        return inputs
    if name in _CALLS:
        (body,) = _bodies(eqn)
        return _run(body.jaxpr, body.consts, inputs)
    if name == "shard_map":
        return _shard_map(eqn, inputs)
    if name in _KEPT_AS_WRITTEN:
        return _as_written(eqn, inputs)
    try:
        return _bind(eqn, inputs, {k: _wide_parameter(x) for k, x in eqn.params.items()})
    except (TypeError, NotImplementedError):
        # A primitive that has no float64 version.
        return _as_written(eqn, inputs)


def _shard_map(eqn: Any, inputs: list[Any]) -> Sequence[Any]:
    (body,) = _bodies(eqn)
    params = eqn.params
    manual = params["newly_manual_axes" if "newly_manual_axes" in params else "manual_axes"]
    return jax.shard_map(
        lambda *args: tuple(_run(body.jaxpr, body.consts, args)),
        mesh=params["mesh"],
        in_specs=tuple(params["in_specs"]),
        out_specs=tuple(params["out_specs"]),
        axis_names=set(manual),
        check_vma=params["check_vma"],
    )(*inputs)


def _as_written(eqn: Any, inputs: list[Any]) -> Sequence[Any]:
    narrow = [
        jnp.asarray(x, v.aval.dtype) if _is_narrow(getattr(v.aval, "dtype", None)) else x
        for x, v in zip(inputs, eqn.invars, strict=True)
    ]
    return _bind(eqn, narrow, eqn.params)


def _bind(eqn: Any, inputs: Sequence[Any], params: Mapping[str, Any]) -> Sequence[Any]:
    bound = eqn.primitive.get_bind_params(dict(params))
    # JAX before 0.12 also returns functions, which are arguments of `bind`.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    outputs = eqn.primitive.bind(*functions, *inputs, **params)
    return outputs if eqn.primitive.multiple_results else [outputs]


def _wide_parameter(x: Any) -> Any:
    if isinstance(x, ClosedJaxpr):
        avals: Any = x.in_avals
        return jax.make_jaxpr(widened(x))(*map(_wide_shape, avals))
    if isinstance(x, Jaxpr):
        return _wide_parameter(ClosedJaxpr(x, ())).jaxpr
    if type(x) is tuple:
        return tuple(map(_wide_parameter, x))
    is_dtype = isinstance(x, np.dtype) or (isinstance(x, type) and issubclass(x, np.generic))
    return _wide_dtype(x) if is_dtype else x


def _bodies(eqn: Any) -> list[ClosedJaxpr]:
    """Return the programs inside an equation."""
    found = []
    for x in eqn.params.values():
        for body in x if isinstance(x, tuple) else (x,):
            if isinstance(body, ClosedJaxpr):
                found.append(body)
            elif isinstance(body, Jaxpr):
                found.append(ClosedJaxpr(body, ()))
    return found


def _wide(x: Any) -> Any:
    return jnp.asarray(x, jnp.float64) if _is_narrow(getattr(x, "dtype", None)) else x


def _wide_shape(aval: Any) -> jax.ShapeDtypeStruct:
    # In a shard_map a type has the mesh axes over which values differ: `vma` before JAX 0.12.
    manual = {"manual_axis_type": aval.mat} if hasattr(aval, "mat") else {"vma": aval.vma}
    return jax.ShapeDtypeStruct(aval.shape, _wide_dtype(aval.dtype), **manual)


def _wide_dtype(dtype: Any) -> Any:
    return np.dtype(np.float64) if _is_narrow(dtype) else dtype


def _is_floating(dtype: Any) -> bool:
    return dtype is not None and jnp.issubdtype(dtype, jnp.floating)


def _is_narrow(dtype: Any) -> bool:
    return _is_floating(dtype) and jnp.dtype(dtype) != jnp.float64


def _eps(dtype: Any) -> float:
    return float(jnp.finfo(dtype).eps)


def _line(eqn: Any) -> str:
    """Return the file, line and function of an equation: "attention.py:12 (softmax)"."""
    place, _, function = source_info_util.summarize(eqn.source_info).partition(" ")
    file = os.path.basename(place).rpartition(":")[0]
    return f"{file} {function}" if file else eqn.primitive.name


def _of_mantissa(bits: int) -> str:
    """Return the narrowest usual dtype with a mantissa of so many bits; "" for float64's."""
    kinds = ("bfloat16", "float16", "float32")
    return next((k for k in kinds if jnp.finfo(k).nmant >= bits), "")
