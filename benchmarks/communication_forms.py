"""The closed forms of training in symbols, for the page that `communication.py` writes.

`tests/test_communication_page.py` holds each against `train_transfers`.
"""

from collections.abc import Callable
from typing import NamedTuple

from parallax.bounds import Role
from parallax.report.words import markdown_row
from parallax.strategies import data_parallel, expert_parallel, fsdp, hsdp, tensor_pipeline
from parallax.strategies.training_options import AUTO, TrainingOptions
from parallax.strategy import Strategy


class Sizes(NamedTuple):
    """What the symbols stand for.

    Attributes:
      n: parameters. n_layers, n_head: those of the layers, and of the unembedding.
      d, r: devices that weights are sharded over, and replicas of these.
      t: devices that a looked-up row and a handoff are split over.
      m: microbatches. ticks: ticks in which any stage hands on.
      tokens, width: tokens of one microbatch on a device; model width.
      experts, layers: experts of a layer; layers.
      p, g: bytes per element of activations and gathered weights; of parameters and gradients.
    """

    n: int
    n_layers: int
    n_head: int
    d: int
    r: int
    t: int
    m: int
    ticks: int
    tokens: int
    width: int
    experts: int
    layers: int
    p: int = 2
    g: int = 4


class Form(NamedTuple):
    """The bytes that one purpose sends per device and training step.

    Attributes:
      title: the strategy in words. what: the purpose.
      strategy: an example of it.
      kind, roles: the collective and the roles of its transfers.
      text: the closed form. of: the same as a function.
    """

    title: str
    what: str
    strategy: Strategy
    kind: str
    roles: tuple[Role, ...]
    text: str
    of: Callable[[Sizes], float]


_DP, _FSDP, _HSDP = data_parallel(4), fsdp(4), hsdp(2, 4)
_ZERO = TrainingOptions(shard_optimizer=(AUTO,)).apply(_DP)
_STEP = fsdp(4, gather="step")
_PIPELINE = TrainingOptions(schedule="1f1b").apply(tensor_pipeline(2, 4))
_EXPERTS = expert_parallel(4)
FORMS = (
    Form("replicated weights", "sum of gradients", _DP, "all-reduce", ("gradient_sum",),
         "2 (d-1)/d N g", lambda x: 2 * (x.d - 1) / x.d * x.n * x.g),
    Form("ZeRO-1", "sum of gradients", _ZERO, "reduce-scatter", ("gradient_sum",),
         "(d-1)/d N g", lambda x: (x.d - 1) / x.d * x.n * x.g),
    Form("ZeRO-1", "updated parameters", _ZERO, "all-gather", ("parameter_gather",),
         "(d-1)/d N g", lambda x: (x.d - 1) / x.d * x.n * x.g),
    Form("FSDP by layer", "weights, twice for recomputed layers", _FSDP, "all-gather",
         ("weight_gather", "end_weight_gather"), "M (d-1)/d ((2 N_layers + N_head) p + 4 D)",
         lambda x: x.m * (x.d - 1) / x.d * ((2 * x.n_layers + x.n_head) * x.p + 4 * x.width)),
    Form("FSDP by layer", "gradients of weights", _FSDP, "reduce-scatter",
         ("weight_gradient", "end_weight_gradient"), "M (d-1)/d ((N_layers + N_head) p + 4 D)",
         lambda x: x.m * (x.d - 1) / x.d * ((x.n_layers + x.n_head) * x.p + 4 * x.width)),
    Form("FSDP by layer", "ids of rows of tables", _FSDP, "all-gather", ("table_rows",),
         "4 M (d-1) T", lambda x: 4 * x.m * (x.d - 1) * x.tokens),
    Form("FSDP by layer", "rows of tables and their gradients", _FSDP, "all-to-all",
         ("table_rows",), "2 M (d-1)/d T D p",
         lambda x: 2 * x.m * (x.d - 1) / x.d * x.tokens * x.width * x.p),
    Form("FSDP by step", "weights", _STEP, "all-gather", ("step_gather",),
         "(d-1)/d N p", lambda x: (x.d - 1) / x.d * x.n * x.p),
    Form("FSDP by step", "sum of gradients", _STEP, "reduce-scatter", ("gradient_sum",),
         "(d-1)/d N g", lambda x: (x.d - 1) / x.d * x.n * x.g),
    Form("HSDP by layer", "sum of gradients over r replicas, beside FSDP over d", _HSDP,
         "all-reduce", ("gradient_sum",), "2 (r-1)/r N g / d",
         lambda x: 2 * (x.r - 1) / x.r * x.n * x.g / x.d),
    Form("pipeline", "handoffs of activations", _PIPELINE, "collective-permute",
         ("stage_handoff",), "(ticks with a handoff) T D p / t",
         lambda x: x.ticks * x.tokens * x.width * x.p / x.t),
    Form("experts", "how often experts are chosen", _EXPERTS, "all-reduce",
         ("balance_loss",), "2 (d-1)/d 4 E layers",
         lambda x: 2 * (x.d - 1) / x.d * 4 * x.experts * x.layers),
)  # fmt: skip


def forms_table() -> str:
    """Render the closed forms as a section of the page."""
    lines = [
        "## Training in symbols",
        "",
        "Bytes per device and step. N parameters, d devices that share them, M microbatches of T",
        "tokens per device, width D; p bytes of an element in the model's dtype, g of a parameter",
        "or gradient (4). N_layers and N_head are the parameters of the layers and the",
        "unembedding; the last norm's D are float32. t devices split a row's width. With",
        "`--remat=none` weights are gathered once per microbatch, not twice. With experts and",
        "M > 1 a further forward pass counts how often experts are chosen.",
        "",
        "| strategy | purpose | collective | bytes |",
        "|---|---|---|---|",
        *(markdown_row(f.title, f.what, f.kind, f.text) for f in FORMS),
        "",
    ]
    return "\n".join(lines)
