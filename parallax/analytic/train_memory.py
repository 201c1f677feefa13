"""The memory per device of a training step by closed form.

Exact: parameters, optimizer state and sums of gradients. Estimated: what layers keep for their
backward pass, by the list of tensors below, and the working set of one layer.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from flax import nnx

from parallax.analytic.packed_weights import device_matrices
from parallax.analytic.ticks import ticks_of
from parallax.bounds import wire_bytes
from parallax.models.block import attention_shape
from parallax.models.parameters import layer_matrices
from parallax.parallel.attention_part import size_over
from parallax.parallel.remat import Remat
from parallax.programs.first_layers import first_layers
from parallax.programs.gradient_sums import shards_of
from parallax.programs.pass_shape import PassShape
from parallax.programs.sharded_model import ShardedTransformer

_WIDE = 4
_NORMS = 2  # of a layer
_NORM_KEEPS = 3  # a norm's input, the normalised rows and their scale's operand, in float32
# Logits of a piece of tokens at a time, and how many arrays of that size the loss holds.
PIECE_BYTES, _PIECES = 256 << 20, 3


class TrainMemory(NamedTuple):
    """The bytes per device of a training step, by purpose (tag: derived).

    Attributes:
      parameters: parameters as they are stored between steps.
      optimizer: the optimizer's moments.
      gradients: gradients of one backward pass and, if several are added up, their sum.
      gathered: weights gathered for use: two layers', or all of them once a step.
      activations: what the layers of all microbatches in flight keep for their backward pass.
      working: the largest working set beside them: one layer's backward pass, or the loss.
    """

    parameters: float
    optimizer: float
    gradients: float
    gathered: float
    activations: float
    working: float

    @property
    def total(self) -> float:
        return sum(self)


class Elements(NamedTuple):
    """Numbers of parameters per device.

    Attributes:
      layers, ends: parameters of the layers and the others, as they are stored.
      whole_layers, whole_ends: the same with weights gathered.
      state: those whose optimizer state a device has.
      depth: layers per device.
    """

    layers: float
    ends: float
    whole_layers: float
    whole_ends: float
    state: float
    depth: int


def elements_of(sharded: ShardedTransformer) -> Elements:
    """Count the parameters of a model per device. A tied unembedding is counted with its copy."""
    mesh, rules = sharded.strategy.mesh_axes, sharded.strategy.rules
    counts = {(of, whole): 0.0 for of in ("layers", "ends") for whole in (False, True)}
    state = 0.0
    gathered = set(rules.table()["embed"])
    for path, w in nnx.to_flat_state(sharded.shapes):
        of = "layers" if path[0] == "layers" else "ends"
        axes = [a for dim in rules.spec(w.out_sharding, "train") for a in dim]
        size = float(w.size)
        for axis in axes:
            size /= mesh[axis]
        counts[of, False] += size
        for axis in axes:
            size *= mesh[axis] if axis in gathered else 1
        counts[of, True] += size
        state += w.size / shards_of(w.out_sharding, sharded.strategy)
    return Elements(
        counts["layers", False], counts["ends", False], counts["layers", True],
        counts["ends", True], state, max(sharded.groups),
    )  # fmt: skip


def train_memory(
    sharded: ShardedTransformer,
    remat: Remat = "layer",
    *,
    param_bytes: int = 4,
    state_bytes: int = 8,
    elements: Elements | None = None,
) -> TrainMemory:
    """Estimate the bytes per device of a training step.

    Args:
      sharded: the model under a strategy, with the workload.
      remat: what the backward pass of each layer recomputes.
      param_bytes: bytes per parameter, and per gradient.
      state_bytes: bytes of optimizer state per parameter: two moments of AdamW in float32.
      elements: `elements_of` the same model and strategy, where it is known.
    """
    return next(
        train_memories(
            sharded, [remat], param_bytes=param_bytes, state_bytes=state_bytes, elements=elements
        )
    )


def train_memories(
    sharded: ShardedTransformer,
    remats: Iterable[Remat],
    *,
    param_bytes: int = 4,
    state_bytes: int = 8,
    elements: Elements | None = None,
) -> Iterator[TrainMemory]:
    """Yield the `train_memory` of several choices of what is recomputed."""
    n = elements or elements_of(sharded.untied)
    sizes = _Sizes(sharded, n)
    first = first_layers(PassShape(sharded.config, sharded.strategy, sharded.workload, "gpu"))
    dense = None if first is None else _Sizes(first.sharded, elements_of(first.sharded))
    item, strategy = sizes.item, sharded.strategy
    several = sharded.workload.microbatches > 1 or sizes.ticks is not None
    once = strategy.shards_weights and strategy.gather == "step"
    held = n.layers + n.ends
    # Of weights that were gathered once, gradients have the model's dtype until they are summed.
    new = (n.whole_layers + n.whole_ends) * item if once else held * param_bytes
    summed = (n.whole_layers + n.whole_ends if once else held) * param_bytes
    gathered = 0.0
    if strategy.shards_weights:
        layers = n.whole_layers if once else 2 * n.whole_layers / n.depth
        gathered = item * (layers + n.whole_ends * once)
    for remat in remats:
        yield TrainMemory(
            parameters=held * param_bytes,
            optimizer=n.state * state_bytes,
            gradients=new + (summed if several else 0.0),
            gathered=gathered,
            activations=sizes.in_flight(remat)
            + (dense.kept(remat) * sharded.config.dense_layers if dense else 0.0),
            working=sizes.working(remat),
        )


def kept_by_layer(sharded: ShardedTransformer, elements: Elements, remat: Remat) -> float:
    """Return the bytes that a layer keeps of one microbatch for its backward pass."""
    return _Sizes(sharded, elements).kept(remat)


class _Sizes:
    """The bytes of one microbatch's activations on one device."""

    def __init__(self, sharded: ShardedTransformer, elements: Elements):
        config, strategy, workload = sharded.config, sharded.strategy, sharded.workload
        walk = PassShape(config, strategy, workload, "gpu")
        split, self.item, self.config = walk.split, config.item_bytes, config
        self.elements, self.depth = elements, elements.depth
        stages = split.count("layers")
        self.ticks = ticks_of(strategy.layers, stages, workload.microbatches)
        tokens, width = walk.tokens, config.d_model
        shape = attention_shape(config, split, walk.b, workload.seq_len, packed=workload.packed)
        slices = 1 if shape.whole_heads else split.count("head_dim")
        share = tokens * shape.head_dim / slices  # elements per head
        pair = tokens * (shape.head_dim + shape.own_values) / slices
        self.stream = tokens * width / split.count("act_norm_seq")  # elements
        self.rows = float(tokens * width)
        self.q, self.kv = share * shape.heads, pair * shape.kv_heads / 2
        self.lse = float(_WIDE * tokens * shape.heads)
        work = split.attention.work(shape, split.mesh_axes)
        self.block = work.rows * work.block**2 if strategy.kernels is None else 0
        routed = bool(config.num_experts)
        local = device_matrices(config, split, "mlp")
        # With experts, the hidden activations are those of the experts that every token passes.
        first = [
            local[m.name][1] for m in layer_matrices(config, "mlp")
            if m.reads_stream and m.is_shared == routed
        ]  # fmt: skip
        self.hidden = float(tokens * first[0]) if first else 0.0
        self.gated = config.mlp == "gated"
        self.experts = _expert_rows(walk) if config.num_experts else 0.0
        self.chosen = float(tokens * width * config.experts_per_token)
        self.logits = float(tokens * (sharded.columns // split.count("vocab")))
        self.handed = tokens * width / (split.count("lookup") * split.count("act_norm_seq"))

    def kept(self, remat: Remat) -> float:
        """Return the bytes that one layer keeps for its backward pass."""
        item, heads = self.item, self.item * 2 * (self.q + self.kv) + self.lse
        if remat == "layer":
            return item * (self.stream + self.q) + self.lse
        if remat == "attention":
            return item * (2 * self.stream + (1 + self.gated) * self.hidden) + heads
        kept = _NORMS * (_NORM_KEEPS * _WIDE * self.stream + item * self.rows) + heads
        if self.config.qk_norm:
            kept += _NORM_KEEPS * _WIDE * (self.q + self.kv)
        if self.config.num_experts:
            kept += _WIDE * self.rows + item * (self.experts + self.chosen)
        # The first matrices' results, and those of each elementwise operation between them.
        return kept + item * (5 + self.gated) * self.hidden

    def in_flight(self, remat: Remat) -> float:
        """Return the bytes kept for all microbatches in flight."""
        layers = self.depth * self.kept(remat)
        cast = self.elements.whole_layers * self.item if remat == "none" else 0.0
        if self.ticks is None:
            return layers + cast
        in_flight, chunks = self.ticks.in_flight, self.ticks.chunks
        waiting = in_flight * self.handed * self.item * 2
        return waiting + (in_flight + 1) * layers / chunks + cast / chunks

    def working(self, remat: Remat) -> float:
        """Return the bytes of the largest working set."""
        item = self.item
        arrays = {"layer": 2, "attention": 1, "none": 0}[remat] + 1 + self.gated
        mlp = item * (arrays + self.gated * (remat == "layer")) * self.hidden
        mlp += 3 * item * (self.experts + self.chosen)
        attention = (self.q + 2 * self.kv) * (_WIDE + 2 * item) + self.block * (3 * _WIDE + item)
        matrices = 2 * item * self.elements.whole_layers / self.depth
        layer = max(mlp, attention) + 3 * _WIDE * self.stream + matrices
        logits = min(_WIDE * self.logits, PIECE_BYTES) * _PIECES
        return max(layer, logits)


def _expert_rows(walk: PassShape) -> float:
    """Return the elements of the rows that a device's experts receive from one microbatch."""
    part, sizes = walk.split.experts, walk.split.mesh_axes
    own = walk.residual * walk.config.experts_per_token
    rows = [t for t in part.transfers(walk.expert_shape, sizes, 1) if t.role == "expert_rows"]
    payload = sum(t.wire_bytes / wire_bytes(t.kind, size_over(sizes, t.axes), 1.0) for t in rows)
    return max(float(own), payload / 2 / walk.item)  # there and back
