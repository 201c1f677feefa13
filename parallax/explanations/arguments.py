"""Changes of arguments: donated, sharded, or sharded another way."""

from collections.abc import Iterator
from typing import Any

from jax.sharding import PartitionSpec

from parallax.explanations.candidate import (
    LEAST_MEMORY,
    LEAST_TIME,
    Candidate,
    root,
    roots,
    share_of,
)
from parallax.explanations.specs import swapped, text
from parallax.explanations.subject import Subject
from parallax.hlo.collectives import Collective


def donations(s: Subject) -> Iterator[Candidate]:
    """State that is returned and whose old copy is kept."""
    kept = sorted(i for i in s.state if not s.flat.donated[i])
    size = sum(s.local_bytes(i) for i in kept)
    if not kept or size < LEAST_MEMORY * s.program.memory_bytes:
        return
    names = roots(s, kept)
    yield Candidate(
        "not donated",
        f"{names}: returned updated, and the old values are kept beside the new ones",
        f"donate {names}: donate_argnums= of jax.jit, or donate= here",
        argument=names, share=size / s.program.memory_bytes, donated=tuple(kept), group="donate",
    )  # fmt: skip


def replicated_arguments(s: Subject) -> Iterator[Candidate]:
    """Arguments whole on devices that split others of their kind."""
    groups: dict[tuple[str, str], dict[int, PartitionSpec]] = {}
    for i, x in enumerate(s.flat.args):
        if s.local_bytes(i) < 0.002 * s.program.memory_bytes or len(x.shape) < 2:
            continue
        peers = _peers(s, i)
        for variant, spec in _specs_like(s, i, peers):
            groups.setdefault((root(s, i), variant), {})[i] = spec
    for (whole, _), specs in groups.items():
        size = sum(s.local_bytes(i) for i in specs)
        share = size / s.program.memory_bytes
        if share < LEAST_MEMORY:
            continue
        largest = max(specs, key=s.local_bytes)
        name = s.flat.names[largest]
        results = {
            r: specs[i] for r, (i, _) in s.updates.items()
            if i in specs and s.flat.out_shardings[r] is not None
        }  # fmt: skip
        more = f" and {len(specs) - 1} more" if len(specs) > 1 else ""
        yield Candidate(
            "replicated argument",
            f"{name}{more}: whole on every device of mesh axes that split its like",
            f"shard {name} by {text(specs[largest])}{' and the others alike' if more else ''}",
            argument=name, share=share, specs=specs, results=results,
            group=f"replicated {whole}",
        )  # fmt: skip


def _peers(s: Subject, i: int) -> list[int]:
    """Return the arguments that an argument could be split like: the weights of its kind.

    An optimizer's state is split like the weights. Weights that are whole beside split optimizer
    state are ZeRO's, and meant.
    """
    weights = s.weights - {i}
    if i in s.state:
        return [j for j in weights if j in s.state]
    whole = root(s, i)
    if whole == s.flat.names[i]:  # an array alone: other arrays that are no data
        return [j for j in weights if i in s.weights and j not in s.state]
    return [j for j in weights if root(s, j) == whole]


def _specs_like(s: Subject, i: int, peers: list[int]) -> Iterator[tuple[str, PartitionSpec]]:
    """Yield splits of an argument over the axes that split its peers and not itself."""
    shape, own = s.flat.args[i].shape, s.flat.spec(i) or (None,) * len(s.flat.args[i].shape)
    for j in peers:  # an optimizer's moment is split as its parameter is
        if s.flat.args[j].shape == shape and len(s.used_axes(j)) > len(s.used_axes(i)):
            yield "like", PartitionSpec(*(s.flat.spec(j) or ()))
            return
    idle = [
        a for a in s.axes if a not in s.used_axes(i) and any(a in s.used_axes(j) for j in peers)
    ]
    for axis in idle:
        for dim in range(len(shape) - 1, -1, -1):
            if own[dim] is None and shape[dim] % s.axes[axis] == 0:
                entries: list[Any] = list(own)
                entries[dim] = axis
                yield f"{axis} {dim - len(shape)}", PartitionSpec(*entries)


def argument_orders(s: Subject) -> Iterator[Candidate]:
    """Arguments split over the right axes in the wrong order or dim; those alike together."""
    groups: dict[tuple, list[int]] = {}
    for i, x in enumerate(s.flat.args):
        spec = s.flat.spec(i)
        if spec is not None and any(spec) and len(x.shape) > 1 and i not in s.state:
            groups.setdefault((root(s, i), x.shape, spec), []).append(i)
    for (_, shape, spec), members in groups.items():
        share = share_of(s, _sent_for(s, members))
        if share < LEAST_TIME:
            continue
        name, more = s.flat.names[members[0]], f" and {len(members) - 1} alike"
        name += more if len(members) > 1 else ""
        for other in swapped(PartitionSpec(*spec), shape, s.axes):
            yield Candidate(
                "argument split another way",
                f"{name}: split by {text(spec)}, and the products want it otherwise",
                f"split {name} by {text(other)}",
                argument=s.flat.names[members[0]], share=share / 2,
                specs=dict.fromkeys(members, other), group=f"order {name}",
            )  # fmt: skip


def _sent_for(s: Subject, arguments: list[int]) -> list[Collective]:
    """Return the partitioner's collectives at lines that take any of some arguments."""
    lines = {
        e.line._replace(function="") for e in s.equations
        if e.line is not None and any(h & set(arguments) for h in e.holds)
    }  # fmt: skip
    return [
        c for c in s.program.ledger
        if not s.program.is_written(c)
        and (line := s.program.line_of(c)) is not None
        and line._replace(function="") in lines
    ]  # fmt: skip
