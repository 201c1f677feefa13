"""A sketch of a prefill or a decoding step: ticks of layers of kernels, and what travels."""

import functools
import math
from dataclasses import dataclass, field
from typing import Any

from parallax.bounds import Transfer
from parallax.communication import Walk, decode_transfers, expected_routing, forward_transfers
from parallax.cost import Cost, Rates, price, rates_of
from parallax.decoding import Decoder
from parallax.estimate.kernels import block_pair, gemm, passes
from parallax.estimate.sends import one_send
from parallax.hlo.work import Kernel, Loop, Send, Start, Step, Wait, Work
from parallax.meshes.cluster import Cluster
from parallax.models.block import attention_shape
from parallax.models.config import ModelConfig
from parallax.parallel.experts import TILES_SCOPE
from parallax.parallel.experts.chunks import chunk_tokens
from parallax.parallel.layer_parts import CacheTiled
from parallax.strategy import Strategy
from parallax.workload import Workload

_HLO = {"float16": "f16", "bfloat16": "bf16", "float32": "tf32", "float64": "f64"}
_WIDE = 4
# XLA merges products of one operand up to this size each (xla_gpu_dot_merger_threshold_mb).
_MERGED_BYTES = 64 << 20


@dataclass(frozen=True)
class Estimate:
    """A closed form's answer (tag: modelled).

    Attributes:
      cost: of one call on one device.
      tokens: that the call handles, over all devices.
      work: the sketch.
    """

    cost: Cost
    tokens: int
    work: Work = field(repr=False)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.cost.seconds


def estimate(
    config: ModelConfig,
    strategy: Strategy,
    workload: Workload,
    cluster: Cluster,
    *,
    decoder: Decoder | None = None,
    rates: Rates | None = None,
    skew: float = 1.0,
) -> Estimate:
    """Time of one prefill of the whole batch, or of one decoding step with `decoder`.

    Args:
      config, strategy, workload: as `ShardedTransformer` takes them.
      cluster: its devices are the mesh's.
      decoder: whose step is meant.
      rates: None takes what is shipped for the GPU.
      skew: rows of the busiest expert over the mean, from 1 on: its device is waited for.

    Raises:
      ValueError: layers in slabs, of which there is no sketch.

    Cost: milliseconds; nothing is traced.
    """
    if isinstance(strategy.layers, CacheTiled):
        raise ValueError(
            f"estimate: strategy '{strategy.name}' runs layers in slabs, of which there is no "
            "closed form of time. Compile the program and predict that, or give the strategy with "
            "its inner layers."
        )
    sketch = _Sketch(config, strategy, workload, decoder, skew)
    work = Work("entry", sketch.steps(), strategy.mesh.size)
    tokens = workload.batch if decoder else workload.tokens
    return Estimate(price(work, cluster, rates or rates_of(cluster.gpu.name)), tokens, work)


class _Sketch:
    def __init__(
        self,
        config: ModelConfig,
        strategy: Strategy,
        workload: Workload,
        decoder: Decoder | None,
        skew: float,
    ):
        self.config, self.strategy, self.workload = config, strategy, workload
        self.decoder, self.skew = decoder, skew
        self.walk = Walk(config, strategy, workload, "gpu", decoder)
        self.split, self.item = self.walk.split, config.item_bytes
        self.tokens, self.dtype = self.walk.tokens, _HLO[config.dtype]
        count = self.split.count
        self.heads = config.num_heads // count("heads")
        self.kv_heads = max(1, config.num_kv_heads // count("kv_heads"))
        self.head_dim = config.head_dim // count("head_dim")
        self.residual = float(self.tokens * config.d_model * self.item)
        found = (
            decode_transfers(decoder) if decoder else forward_transfers(config, strategy, workload)
        )
        self.transfers = [t for t in found if t.count and t.wire_bytes]

    def steps(self) -> dict[str, tuple[Step, ...]]:
        walk = self.walk
        layer, inner = self.layer()
        layers = Loop("layers", walk.layers, "layer", "test")
        handoff = [x for x in self.rare if x[0].what == "stage handoff"]
        beside = [Start(s.name, s) for s in self.sends(handoff)] if self._overlaps() else []
        rest = [x for x in self.rare if not beside or x not in handoff]
        tick: list[Step] = [
            *beside,
            *self.start_of_tick(),
            layers,
            *(Wait(s.name) for s in beside),
            *self.head(),
            *self.sends(rest),
        ]
        return {
            "entry": (Loop("ticks", walk.ticks, "tick", "test"),),
            "tick": tuple(tick), "layer": tuple(layer), "test": (passes("test", 4.0, 1.0),),
            **inner,
        }  # fmt: skip

    @functools.cached_property
    def rare(self) -> list[tuple[Transfer, float]]:
        """Transfers of a tick, and how often in it."""
        return [(t, t.count / self.walk.ticks) for t in self.transfers if not self._of_layer(t)]

    def _of_layer(self, t: Transfer) -> bool:
        each = self.walk.ticks * self.walk.layers
        return t.count >= each and not t.count % each and (
            self.walk.layers > 1 or not t.what.startswith(("widen", "stage", "last"))
        )  # fmt: skip

    def of_layer(self, *starts: str) -> list[tuple[Transfer, float]]:
        each = self.walk.ticks * self.walk.layers
        return [(t, t.count / each) for t in self.transfers
                if self._of_layer(t) and t.what.startswith(starts)]  # fmt: skip

    def sends(self, found: list[tuple[Transfer, float]]) -> list[Send]:
        steps: list[Send] = []
        for t, times in found:
            send = one_send(t, self.strategy.mesh, t.what)
            whole = int(times)
            steps += [send] * whole
            if times > whole and not whole:
                steps.append(send)
        return steps

    def start_of_tick(self) -> list[Step]:
        share = self.residual / self.split.count("lookup")
        pipeline = 6 if self.split.count("layers") > 1 else 0
        return [passes("embed", share, share),
                *(passes(f"tick.{i}", share, share) for i in range(pipeline)),
                passes("widened", self.residual, self.residual)]  # fmt: skip

    def head(self) -> list[Step]:
        b, columns = self.walk.b, self.config.vocab_size // self.split.count("vocab")
        return [passes("last", 3.0 * b * self.config.d_model * self.item, 0.0),
                gemm("logits", b, columns, self.config.d_model, self.dtype, self.item),
                passes("put", b * columns * self.item, b * columns * self.item)]  # fmt: skip

    def layer(self) -> tuple[list[Step], dict[str, tuple[Step, ...]]]:
        d, t, item, r = self.config.d_model, self.tokens, self.item, self.residual
        q = float(t * self.heads * self.head_dim * item)
        kv = float(t * self.kv_heads * self.head_dim * item)
        turned = self.walk.b > 1 and not self.decoder and self._sums()
        # Where nothing is summed over devices, a norm is one kernel and the residual is added in
        # the product before it.
        alone = not self._sums()
        rows = [] if alone else [passes("square", r, r / 512), passes("rows", r / 512, r / 8192)]
        steps: list[Step] = [*self.sends(self.of_layer("gather into attention")), *rows,
                             passes("normed", r, r)]  # fmt: skip
        steps += self.projections()
        steps += [passes("even", q / 2, q), passes("odd", q / 2, q), passes("turned q", 2 * q, q),
                  passes("k", kv, kv, "k"), passes("v", kv, kv, "v")]  # fmt: skip
        attention, inner = self.attended() if self.decoder else self.attention()
        steps += attention
        steps.append(self.product("out", d, self.heads * self.head_dim))
        steps += [passes("turn", r, r)] if turned else []
        steps += self.sends(self.of_layer("sum of attention", "sums of squares"))
        steps += [passes("residual", r, 0.0)] if alone else [passes("add", 2 * r, r), *rows[1:]]
        steps += [passes("normed", r, r), *self.sends(self.of_layer("gather into MLP"))]
        if self.config.num_experts:
            mlp, more = self.experts()
            inner |= more
            steps += mlp
        else:
            steps += self.mlp()
        steps += [passes("turn", r, r)] if turned else []
        steps += self.sends(self.of_layer("sum of MLP"))
        last = passes("residual", r, 0.0) if alone else passes("residual", 2 * r, r)
        return [*steps, last, passes("count", 0.0, 0.0)], inner

    def projections(self) -> list[Step]:
        """Queries, keys and values; XLA makes one product of those that are small, and for that
        puts their weights side by side, every time."""
        d, item = self.config.d_model, self.item
        heads = {"q": self.heads, "k": self.kv_heads, "v": self.kv_heads}
        widths = {n: h * self.head_dim for n, h in heads.items()}
        merged = [n for n, w in widths.items()
                  if item * (d * w + self.tokens * (d + w)) <= _MERGED_BYTES]  # fmt: skip
        if len(merged) < 2:
            return [self.product(n, w, d) for n, w in widths.items()]
        width = sum(widths[n] for n in merged)
        weights = float(d * width * item)
        steps: list[Step] = [passes("side by side", weights, weights)]
        steps += [self.product("qkv", width, d)]
        return [*steps, *(self.product(n, w, d) for n, w in widths.items() if n not in merged)]

    def product(self, name: str, n: float, k: float) -> Kernel:
        return gemm(name, self.tokens, n, k, self.dtype, self.item)

    def _overlaps(self) -> bool:
        """Whether a handoff travels beside the layers; XLA makes it wait for sums in them."""
        lag = getattr(self.strategy.layers, "lag", lambda microbatches, stages: 1)
        stages = self.split.count("layers")
        return lag(self.walk.useful, stages) > 1 and not self._sums()

    def _asks(self) -> bool:
        """Whether a decoding step's queries travel to the cache."""
        return bool(self.of_layer("queries", "keys", "values", "new"))

    def _sums(self) -> bool:
        return bool(self.of_layer("sum of"))

    def mlp(self) -> list[Step]:
        f = self.config.d_ff // self.split.count("mlp")
        wide = float(self.tokens * f * self.item)
        gates = 2 if self.config.mlp == "gated" else 1
        steps: list[Step] = []
        if self.decoder and gates == 1 and self.walk.layers > 1 and self._asks():
            # XLA copies the first matrix out of its stack, beside the layer; after an exchange of
            # queries it starts too late to be hidden.
            matrix = float(self.config.d_model * f * self.item)
            steps.append(passes("up.w", matrix, matrix))
        steps += [self.product("up", f, self.config.d_model) for _ in range(gates)]
        return [*steps, passes("act", gates * wide, wide, "up"),
                self.product("down", self.config.d_model, f)]  # fmt: skip

    def attention(self) -> tuple[list[Step], dict[str, tuple[Step, ...]]]:
        config, part = self.config, self.split.attention
        shape = attention_shape(
            config, self.split, self.walk.b, self.workload.seq_len, packed=False
        )
        work = part.work(shape, self.split.mesh_axes)
        values = shape.values
        pairs = work.scores / max(1, work.rows * work.block**2)
        around = [(t, n) for t, n in self.of_layer("keys and values around")]
        exchanged = self.of_layer("queries ", "keys of", "keys between", "values ", "scores")
        home = self.of_layer("outputs ")
        width = work.width - values
        whole = float(work.rows * values) * self.workload.seq_len
        whole /= math.prod(self.split.mesh_axes[a] for a in getattr(part, "seq_axes", ()))
        steps: list[Step] = [*self.sends(exchanged), passes("zero o", 0.0, whole * _WIDE)]
        pair = block_pair(work.rows, work.block, width, values, self.item, self.dtype)
        hops = 1 + sum(n for _, n in around)
        # XLA's scheduler starts a send where it thinks it will just be done: half-way through the
        # hop's work.
        half, loop = (Loop("pairs", pairs / hops / n, "pair", "test") for n in (2, 1))
        chosen = float(work.rows * work.block) * self.item * (2 * width + values)
        for t, n in around:
            for i in range(int(n)):
                name = f"{t.what}.{i}"
                steps += [half, Start(name, one_send(t, self.strategy.mesh, t.what)), half,
                          passes("choose", 3 * chosen, 1.5 * chosen), Wait(name)]  # fmt: skip
        steps += [loop, passes("finish", whole * _WIDE, whole * self.item), *self.sends(home)]
        return steps, {"pair": pair}

    def attended(self) -> tuple[list[Step], dict[str, tuple[Step, ...]]]:
        assert self.decoder is not None
        cache = self.decoder.kv_bytes() / self.walk.layers / self.decoder.step_microbatches
        # A product of several queries with the same keys needs them in one piece: those of a
        # microbatch are copied out. One query's keys are read where they lie.
        grouped = self.heads > self.kv_heads and self.decoder.step_microbatches > 1
        picked = [passes(f"picked {x}", cache / 2, cache / 2) for x in "kv"] if grouped else []
        shape = self.decoder.attention_shape
        scores = float(shape.batch * shape.heads * sum(self.decoder.slots) * _WIDE)
        asked = self.of_layer("queries", "keys", "values", "new")
        rest = [x for x in self.of_layer("") if x not in asked
                and not x[0].what.startswith(("sum", "gather", "rows", "tokens"))]  # fmt: skip
        tokens = float(self.tokens * self.heads * self.head_dim * _WIDE)
        steps: list[Step] = [
            *self.sends(asked), passes("new", tokens, tokens), *picked,
            passes("scores", cache / 2, scores), passes("max", scores, 0.0, "scores"),
            passes("p", scores, scores / 2, "scores"), passes("values", cache / 2, tokens),
            passes("finish", tokens, tokens), *self.sends(rest), passes("put", tokens, tokens),
            passes("put", tokens, tokens),
        ]  # fmt: skip
        return steps, {}

    def skew_of(self, experts_here: int) -> float:
        """Rows of the busiest device over the mean: one busy expert among those it has."""
        return 1 + (self.skew - 1) / experts_here

    def experts(self) -> tuple[list[Step], dict[str, tuple[Step, ...]]]:
        """Router, dispatch, tiles of rows in chunks beside their exchange, combine."""
        routing = expected_routing(self.config, self.strategy, self.workload, self.decoder)
        assert routing is not None
        part: Any = self.split.experts
        shape = self.walk.expert_shape
        r, item, d = self.residual, self.item, self.config.d_model
        chunks, _ = chunk_tokens(shape.tokens, getattr(part, "chunks", 1))
        rows = r * shape.top_k
        f = self.config.d_ff // self.split.count("mlp")
        gates = 2 if self.config.mlp == "gated" else 1
        tile = part.tile
        wide = float(tile * f * item)
        tiles = (
            *(gemm("up", tile, f, d, self.dtype, item) for _ in range(gates)),
            passes("act", gates * wide, wide, "up"),
            gemm("down", tile, d, f, self.dtype, item),
            passes("put", tile * d * item, tile * d * item),
            passes("cut", tile * d * item, tile * d * item),
        )
        known = ("sum", "gather", "queries", "keys", "values", "outputs", "scores", "widen")
        moved = [x for x in self.of_layer("") if not x[0].what.startswith(known)]
        sends = self.sends(moved)
        here = self.config.num_experts // self.split.count("expert")
        matrices = float((gates + 1) * d * f * item)
        loop = Loop("experts", here, "expert", "test")
        expert: list[Step] = [
            Loop(
                "tiles",
                self.skew_of(here) * routing.trips[TILES_SCOPE],
                "tile",
                "test",
                known=False,
            )
        ]
        if here > 1:  # one expert's matrices are copied out of its layer's
            expert = [Start("cut", passes("cut", matrices, matrices)), Wait("cut"), *expert]
        stacked = passes("layer", here * matrices, here * matrices)
        steps: list[Step] = [] if self.walk.layers == 1 else [Start("layer", stacked)]
        steps += [
            self.product("router", self.config.num_experts, d),
            *(passes(f"route {i}", r / 64, r / 64) for i in range(8)),
        ]
        steps += [] if self.walk.layers == 1 else [Wait("layer")]
        each = math.ceil(len(sends) / chunks) if sends else 0
        steps += sends[:each]
        for i in range(chunks):
            starts = [Start(f"chunk {i}.{j}", s)
                      for j, s in enumerate(sends[(i + 1) * each : (i + 2) * each])]  # fmt: skip
            steps += [*starts, passes("pack", 2 * rows / chunks, 2 * rows / chunks), loop,
                      *(Wait(s.name) for s in starts)]  # fmt: skip
        steps += [passes("combine", 2 * rows, 2 * r)]
        return steps, {"tile": tiles, "expert": tuple(expert)}
