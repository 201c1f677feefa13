"""The checks that a parsed module is complete: nothing truncated or misspelt goes uncounted."""

import re

from parallax.hlo.limits import MAX_DEPTH, MAX_STEPS
from parallax.hlo.module import CALLING, Computation, Instruction, Module
from parallax.hlo.shapes import HloError

# An unknown opcode is accepted only without these: then it can hold nothing that counts.
_TELLING = frozenset({
    *CALLING, "replica_groups", "source_target_pairs", "channel_id", "custom_call_target",
    "lhs_contracting_dims", "rhs_contracting_dims", "dim_labels", "window",
})  # fmt: skip
_NEEDS: dict[str, tuple[str, ...]] = {
    "all-gather": ("replica_groups", "channel_id", "use_global_device_ids"),
    "all-reduce": ("replica_groups", "channel_id", "use_global_device_ids", "to_apply"),
    "all-to-all": ("replica_groups", "channel_id"),
    "async": ("calls",),
    "call": ("to_apply",),
    "collective-broadcast": (),
    "collective-permute": ("source_target_pairs", "channel_id"),
    "conditional": (),
    "convolution": ("dim_labels",),
    "custom-call": ("custom_call_target",),
    "dot": ("lhs_contracting_dims", "rhs_contracting_dims"),
    "fusion": ("calls",),
    "map": ("to_apply",),
    "ragged-all-to-all": ("replica_groups", "channel_id"),
    "ragged-dot": (),
    "recv": (),
    "reduce": ("to_apply",),
    "reduce-scatter": ("replica_groups", "channel_id", "use_global_device_ids", "to_apply"),
    "reduce-window": ("to_apply",),
    "scaled-dot": (),
    "scan": ("to_apply",),
    "scatter": ("to_apply",),
    "select-and-scatter": ("select", "scatter"),
    "send": (),
    "sort": ("to_apply",),
    "topk": ("to_apply",),
    "while": ("body", "condition"),
}
# Written only where there is more than one partition.
_OF_PARTITIONS = ("channel_id", "use_global_device_ids")
_QUOTED = re.compile(r'"[^"]+"')
_STAGE = re.compile(r"-(start|update|done)$")


def check_module(module: Module) -> None:
    """Raise HloError unless every name is defined and every needed attribute is present."""
    for computation in module.computations.values():
        _check_names(computation)
        for instruction in computation.instructions:
            _check_attributes(module, instruction)
    _check_acyclic(module)


def _check_names(computation: Computation) -> None:
    seen: set[str] = set()
    roots = 0
    for instruction in computation.instructions:
        for name in instruction.operands:
            if name not in seen:
                raise HloError(
                    f"line {instruction.line}: %{instruction.name} takes %{name}, which "
                    f"%{computation.name} does not define before it."
                )
        if instruction.name in seen:
            raise HloError(f"line {instruction.line}: %{instruction.name} is defined twice.")
        seen.add(instruction.name)
        roots += instruction.is_root
    if roots != 1:
        raise HloError(f"%{computation.name}: expected one ROOT instruction, got {roots}.")


def _check_attributes(module: Module, instruction: Instruction) -> None:
    attributes = instruction.attributes
    base = _STAGE.sub("", instruction.opcode)
    context = f"line {instruction.line}: {instruction.opcode} %{instruction.name}"
    if base not in _NEEDS:
        if telling := _TELLING & attributes.keys():
            raise HloError(f"{context}: an opcode that is not understood, with {sorted(telling)}.")
    elif not instruction.opcode.endswith(("-done", "-update")):
        for key in _NEEDS[base]:
            if key not in attributes and not (key in _OF_PARTITIONS and module.num_partitions == 1):
                raise HloError(f"{context}: expected {key}=, got {sorted(attributes)}.")
        if base == "custom-call" and not _QUOTED.fullmatch(attributes["custom_call_target"]):
            raise HloError(f'{context}: expected custom_call_target="...".')
        if attributes.get("use_global_device_ids", "true") != "true":
            raise HloError(f"{context}: use_global_device_ids is not true: other groups are meant.")
        if base == "conditional" and not (
            "branch_computations" in attributes
            or {"true_computation", "false_computation"} <= attributes.keys()
        ):
            raise HloError(f"{context}: expected its branches, got {sorted(attributes)}.")
    for key, names in instruction.calls().items():
        if not names:
            raise HloError(f"{context}: {key}={attributes[key]!r} names no computation.")
        for name in names:
            if name not in module.computations:
                raise HloError(f"{context}: {key} names %{name}, which is not defined.")


def _check_acyclic(module: Module) -> None:
    """Refuse calls that form a cycle, are too deep to follow, or too many to walk."""
    calls = {c.name: [n for i in c.instructions for names in i.calls().values() for n in names]
             for c in module.computations.values()}  # fmt: skip
    waiting = {name: len(set(called)) for name, called in calls.items()}
    callers: dict[str, list[str]] = {name: [] for name in calls}
    for name, called in calls.items():
        for inner in set(called):
            callers[inner].append(name)
    ready = [name for name, n in waiting.items() if not n]
    depth, steps = dict.fromkeys(calls, 1), {}
    while ready:
        name = ready.pop()
        steps[name] = len(module.computations[name].instructions)
        steps[name] += sum(steps[inner] for inner in calls[name])
        for caller in callers[name]:
            depth[caller] = max(depth[caller], depth[name] + 1)
            waiting[caller] -= 1
            if not waiting[caller]:
                ready.append(caller)
    if circle := calls.keys() - steps.keys():
        raise HloError(f"module {module.name}: computations call each other in a circle: "
                       f"{sorted(circle)[:4]}.")  # fmt: skip
    deepest = max(depth, key=lambda name: depth[name])
    if depth[deepest] > MAX_DEPTH:
        raise HloError(f"module {module.name}: %{deepest} calls others {depth[deepest]} levels "
                       f"deep, expected {MAX_DEPTH} at most.")  # fmt: skip
    longest = max(steps, key=lambda name: steps[name])
    if steps[longest] > MAX_STEPS:
        raise HloError(f"module {module.name}: calls from %{longest} lead through over {MAX_STEPS} "
                       "instructions.")  # fmt: skip
