"""A function's forward and backward pass as two functions, with the least kept between them.

JAX keeps some arrays of the forward pass for the backward pass. Those that do not depend on the
activations (parameters, their casts and gathers, masks) need no room per microbatch: the backward
pass computes them again from the same inputs.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import jaxpr_as_fun  # pyright: ignore[reportPrivateImportUsage]
from jax.interpreters import partial_eval


class TwoPasses(NamedTuple):
    """The two passes of a function (params, x, *others) -> outputs, results without gradients.

    Attributes:
      forward: (params, x, *others) -> (outputs, other results), list of arrays to keep.
      backward: (params, x, others, kept, gradients of outputs, which) -> the gradients of `params`
        and `x`; `which` is a pair that says which of them are computed, the other is None.
      kept: shapes, dtypes and varying axes of the arrays to keep.
    """

    forward: Callable[..., tuple[Any, list[jax.Array]]]
    backward: Callable[..., tuple[Any, Any]]
    kept: tuple[Any, ...]


def two_passes(
    function: Callable[..., Any], axis: str, params: Any, x: jax.Array, *others: Any
) -> TwoPasses:
    """Return two passes of which the first keeps what depends on `x` and the second needs.

    Args:
      function: as described in `TwoPasses`.
      axis: a mesh axis over which `x` differs; what is the same over it does not depend on `x`.
      params, x, others: arguments of the shapes, dtypes and varying axes that it is called with.
    """
    trees: dict[str, Any] = {}

    def whole(params, x, *others):
        outputs, vjp, beside = jax.vjp(
            lambda p, y: function(p, y, *others), params, x, has_aux=True
        )
        flat, trees["outputs"] = jax.tree.flatten((outputs, beside))
        leaves, trees["vjp"] = jax.tree.flatten(vjp)
        trees["count"] = len(flat)
        return [*flat, *leaves]

    arguments = (params, x, *others)
    closed = jax.make_jaxpr(whole)(*arguments)
    jaxpr: Any = closed.jaxpr
    count = trees["count"]
    place_of_x = len(jax.tree.leaves(params))
    variables = jaxpr.outvars
    is_kept = [
        n >= count
        and axis in v.aval.manual_axis_type.varying
        and v is not jaxpr.invars[place_of_x]
        and _uses(jaxpr, n, place_of_x)
        for n, v in enumerate(variables)
    ]
    first = {v: n for n, v in reversed(list(enumerate(variables))) if is_kept[n]}
    order = sorted(first.values())
    place = {variables[n]: k for k, n in enumerate(order)}
    run_forward = _only(closed, [n < count or n in order for n in range(len(variables))])
    again = [n for n in range(count, len(variables)) if not is_kept[n]]
    run_again = _only(closed, [n in again for n in range(len(variables))])

    def forward(*arguments):
        made = run_forward(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(trees["outputs"], made[:count]), made[count:]

    def backward(params, x, others, kept, gradients, which):
        known = dict(zip(again, run_again(*jax.tree.leaves((params, x, *others))), strict=True))
        leaves = [
            kept[place[v]] if is_kept[n] else known[n]
            for n, v in enumerate(variables)
            if n >= count
        ]

        def transposed(leaves, gradients):
            return jax.tree.unflatten(trees["vjp"], leaves)(gradients)

        return pruned(transposed, which, leaves, gradients)

    return TwoPasses(forward, backward, tuple(closed.out_avals[n] for n in order))


def pruned(function: Callable[..., Any], which: tuple[bool, ...], *arguments: Any) -> Any:
    """Return the results of a function that are asked for, and None for the others.

    What only the others need, and what nothing needs, is left out of the program.
    """
    traced, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
    used = [w for w, s in zip(which, shape, strict=True) for _ in jax.tree.leaves(s)]
    found = iter(_only(traced, used)(*jax.tree.leaves(arguments)))
    return tuple(
        jax.tree.map(lambda _: next(found), s) if w else None
        for w, s in zip(which, shape, strict=True)
    )


def _uses(jaxpr: Any, output: int, argument: int) -> bool:
    """Return whether an output of a jaxpr depends on an argument, also inside its loops."""
    used = [n == output for n in range(len(jaxpr.outvars))]
    return partial_eval.dce_jaxpr(jaxpr, used, instantiate=False)[1][argument]


def _only(closed: Any, used: Sequence[bool]) -> Callable[..., list[jax.Array]]:
    """Return the function of flat arguments that computes only some outputs of a jaxpr."""
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, list(used), instantiate=True)
    return jaxpr_as_fun(closed.replace(jaxpr=jaxpr))


def permutes(function: Callable[..., Any], *arguments: Any) -> bool:
    """Return whether a function passes data around its devices by permutations."""
    return _permutes(jax.make_jaxpr(function)(*arguments).jaxpr)


def _permutes(jaxpr: Any) -> bool:
    return any(
        equation.primitive.name == "ppermute" or any(map(_permutes, _inner(equation.params)))
        for equation in jaxpr.eqns
    )


def _inner(params: Any) -> Iterator[Any]:
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(item, "jaxpr") or hasattr(item, "eqns"):
                yield getattr(item, "jaxpr", item)
