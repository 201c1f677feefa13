"""The fields that several requests share, with the same help text everywhere."""

from typing import Any, get_args

from parallax.models.config import DType
from parallax.parallel.layer_parts import ScheduleName
from parallax.parallel.remat import REPLACED_REMAT, Remat
from parallax.parallel.sharded_weights import Gather
from parallax.requests.option import option

_FOLDER = (
    "a folder in Hugging Face's layout (config.json, *.safetensors, tokenizer.json), or its "
    "config.json"
)
_FORMATS = (
    "Storage formats of the matrices: one, or attention's and the MLP's, such as int8 or "
    "int8,int8+2:4; or none. A format is `DTYPE[/GROUP][+N:M]`, with DTYPE int8, w8a8, int4 or "
    "float16. Results are those of the compressed model, not the dense one's, and say so."
)


def paper() -> Any:
    """Make the field for a paper's name."""
    return option(None, "A paper's experiment (`parallax list papers`).")


def model(missing: str = "") -> Any:
    """Make the field for a model by name or folder."""
    words = f"A paper's name, for its model at full size, or {_FOLDER}."
    return option(None, words, missing=missing)


def strategies() -> Any:
    """Make the field for several strategies."""
    words = "Comma-separated names (`parallax list strategies`) or strategy files (.json)."
    return option(None, words, "list")


def strategy(words: str = "Unset: one device.") -> Any:
    """Make the field for one strategy."""
    return option(None, f"One strategy: a name or a strategy file (.json). {words}")


def mesh(fills: str) -> Any:
    """Make the field for the mesh of named strategies; `fills` names what they fill without one."""
    words = (
        "Mesh axes of named strategies as axis=size,... such as stage=2,tensor=8. "
        f"Unset: each strategy fills the {fills}."
    )
    return option(None, words)


def batch(default: int | None, unset: str = "") -> Any:
    """Make the field for the batch size."""
    words = f"Sequences over all devices.{unset}"
    return option(default, words, "whole", unit="sequences", at_least=1)


def seq_len(default: int | None, unset: str = "") -> Any:
    """Make the field for the sequence length."""
    return option(default, f"Tokens per sequence.{unset}", "whole", unit="tokens", at_least=1)


def microbatches(unset: str) -> Any:
    """Make the field for the number of microbatches."""
    words = (
        "Microbatches that each device splits its batch into; in training, gradient accumulation: "
        "forward and backward of one after another, which keeps one's activations. "
        f"Unset: {unset}."
    )
    return option(None, words, "whole", at_least=1)


def dtype() -> Any:
    """Make the field for the dtype of parameters and activations."""
    words = "Dtype of parameters and activations. Unset: the model's own."
    return option(None, words, "choice", choices=get_args(DType))


def remat(more: str = "") -> Any:
    """Make the field for rematerialisation."""
    words = (
        "Rematerialisation: what the backward pass of each layer computes again instead of keeping "
        "it in memory: nothing (none; sharded weights are gathered once and kept), all but matrix "
        "products (attention), or all but attention's result, from the layer's input (layer: least "
        f"memory, one more forward pass).{more}"
    )
    return option("layer", words, "choice", choices=get_args(Remat), replaced=REPLACED_REMAT)


def shard_weights() -> Any:
    """Make the field for the mesh axes over which weights are sharded."""
    words = (
        "Mesh axes over which every strategy's weights are sharded (FSDP), among those that split "
        "its tokens, such as data or data,seq; auto: all of these. Layers gather the weights they "
        "use. Unset: as the strategy says."
    )
    return option(None, words, "list")


def gather() -> Any:
    """Make the field for when sharded weights are gathered."""
    words = (
        "When sharded weights are gathered: by each layer where it uses them, forward and backward "
        "(layer: least memory), or all of them once a step (step: least traffic). Unset: layer."
    )
    return option(None, words, "choice", choices=get_args(Gather))


def shard_optimizer(more: str = "") -> Any:
    """Make the field for the mesh axes over which the optimizer's state is sharded."""
    words = (
        "Mesh axes over which the optimizer's state is sharded too, among those that split the "
        f"tokens (ZeRO-1); auto: all of these. Unset: as the strategy says.{more}"
    )
    return option(None, words, "list")


def schedule(more: str = "") -> Any:
    """Make the field for the schedule of a pipeline."""
    words = (
        "Order of forward and backward passes in a pipeline: all forward first (gpipe), one of "
        "each in turn (1f1b: fewer microbatches in memory), several groups of layers a stage "
        "(interleaved: a shorter bubble, more handoffs), weights' gradients in the bubble (zb-h1), "
        "or all stages forward and all backward in turn (1f1b-lockstep: no stage waits for a "
        f"longer tick of another, more in memory). Unset: the strategy's own, or gpipe.{more}"
    )
    return option(None, words, "choice", choices=get_args(ScheduleName))


def virtual_stages(more: str = "") -> Any:
    """Make the field for the groups of layers of each stage in an interleaved pipeline."""
    words = (
        "Groups of layers per stage with --schedule=interleaved; stages times these divide the "
        f"layers, and stages the microbatches. Unset: 2.{more}"
    )
    return option(None, words, "whole", at_least=2)


def compression(more: str = "") -> Any:
    """Make the field for the formats of all matrices."""
    return option(None, f"{_FORMATS}{more}")


def compressions() -> Any:
    """Make the field for several pairs of formats, each of which is tried."""
    words = f"{_FORMATS} Repeat the flag to rank several."
    return option((), words, "repeated", flag="compression")


def kernels() -> Any:
    """Make the field for the kernels that programs are compiled and predicted with."""
    words = (
        "Kernels to compile and predict with wherever they apply: our Hopper kernels, validated or "
        "not (mosaic; assumed to run at 60 % of the rate of matrix products), or cuDNN's attention "
        "of whole sequences (cudnn). Unset: validated kernels, else XLA's. On CPUs XLA computes "
        "the same."
    )
    return option(None, words, "choice", choices=("mosaic", "cudnn"))


def cluster(unset: str, of: str = "Cluster to compile for") -> Any:
    """Make the field for a cluster by name."""
    return option(None, f"{of}: `parallax list clusters`, or <gpu>_<nodes>x8. Unset: {unset}.")


def network() -> Any:
    """Make the field for a network between nodes by name."""
    words = (
        "Network between the cluster's nodes: `parallax list networks`, with :BANDWIDTH behind it "
        "if its cards are others, per GPU in one direction (efa:25GB); the same as "
        "--cluster=NAME@NETWORK. Unset: none is named, and time between nodes is not validated."
    )
    return option(None, words)


def rates() -> Any:
    """Make the field for the constants of the cost model."""
    words = (
        "Cost model constants that `parallax calibrate` wrote (rates.json). Unset: those shipped."
    )
    return option(None, words)


def packed() -> Any:
    """Make the field for packed sequences."""
    return option(False, "Pack several documents into each sequence (segment ids).", "switch")


def small() -> Any:
    """Make the field for the small model instead of the full-size one."""
    return option(
        False, "Use the paper's model at a width that a laptop runs, as verify does.", "switch"
    )


def seed() -> Any:
    """Make the field for the random seed."""
    return option(0, "Random seed: equal seeds, equal results.", "whole")


def text(of: str) -> Any:
    """Make the field for a file whose bytes are tokens."""
    return option(
        None, f"UTF-8 file whose bytes are the tokens of {of}. Unset: Python's standard library."
    )


def layer_formats() -> Any:
    """Make the field for the formats of some layers."""
    words = (
        "Formats of some layers as LAYERS=FORMAT or LAYERS=ATTENTION,MLP, such as "
        "0-3=int8,int8+2:4; repeat the flag for more layers, later ones win."
    )
    return option((), words, "repeated")


def virtual(words: str = "as many as the mesh needs (16 without a mesh)") -> Any:
    """Make the field for virtual CPU devices."""
    return option(False, f"Run on virtual CPU devices, {words}.", "switch")


def out(words: str, default: str = "out") -> Any:
    """Make the field for the folder of results."""
    return option(default, words)


def json_file() -> Any:
    """Make the field for a file of results."""
    return option(None, "File to write the results to, as JSON.")
