"""Fields that several requests have, with the same words everywhere."""

from typing import Any, get_args

from parallax.models.config import DType
from parallax.parallel.split import Remat
from parallax.requests.option import option

_FOLDER = (
    "a folder in Hugging Face's layout (config.json, *.safetensors, tokenizer.json), or its "
    "config.json"
)
_FORMATS = (
    "Formats that matrices are stored in: one, or attention's and the MLP's, such as int8 or "
    "int8,int8+2:4; none. DTYPE[/GROUP][+N:M] with DTYPE int8, w8a8, int4, float16. Another "
    "function than the dense model's, and named so."
)


def paper() -> Any:
    """The name of a paper."""
    return option(None, "A paper's experiment (`parallax list papers`).")


def model(missing: str = "") -> Any:
    """A model by name or folder."""
    words = f"A paper's name: its model at full size. Or {_FOLDER}."
    return option(None, words, missing=missing)


def strategies() -> Any:
    """Several strategies."""
    words = "Comma-separated names (`parallax list strategies`) or strategy files (.json)."
    return option(None, words, "list")


def strategy(words: str = "Unset: one device.") -> Any:
    """One strategy."""
    return option(None, f"One strategy: a name or a strategy file (.json). {words}")


def mesh(fills: str) -> Any:
    """Mesh axes of named strategies, and what a strategy fills without them."""
    words = (
        "Mesh axes for named strategies: axis=size,... such as stage=2,tensor=8. "
        f"Unset: each strategy fills the {fills}."
    )
    return option(None, words)


def batch(default: int | None, unset: str = "") -> Any:
    """Sequences of a run."""
    words = f"Sequences over all devices.{unset}"
    return option(default, words, "whole", unit="sequences", at_least=1)


def seq_len(default: int | None, unset: str = "") -> Any:
    """Tokens of a sequence."""
    return option(default, f"Tokens of a sequence.{unset}", "whole", unit="tokens", at_least=1)


def microbatches(unset: str) -> Any:
    """Pieces of a device's batch."""
    words = (
        "Pieces each device cuts its batch into; in training that is gradient accumulation. "
        f"Unset: {unset}."
    )
    return option(None, words, "whole", at_least=1)


def dtype() -> Any:
    """Of parameters and activations."""
    words = "Of parameters and activations. Unset: the model's own."
    return option(None, words, "choice", choices=get_args(DType))


def remat(more: str = "") -> Any:
    """What a training step recomputes."""
    words = f"What a training step recomputes instead of keeping: more of it, less memory.{more}"
    return option("microbatch", words, "choice", choices=get_args(Remat))


def compression(more: str = "") -> Any:
    """Formats of all matrices."""
    return option(None, f"{_FORMATS}{more}")


def compressions() -> Any:
    """Several pairs of formats, each of which is tried."""
    words = f"{_FORMATS} Several times: all are ranked."
    return option((), words, "repeated", flag="compression")


def kernels() -> Any:
    """What programs are compiled and predicted with."""
    words = (
        "Compile and predict with these wherever they can: our kernels for Hopper GPUs, validated "
        "or not (mosaic; priced at 60 % of the rate of products: assumed), or cuDNN's attention of "
        "whole sequences (cudnn). Unset: what is validated, else XLA's. On CPUs XLA computes the "
        "same."
    )
    return option(None, words, "choice", choices=("mosaic", "cudnn"))


def cluster(unset: str, of: str = "What to compile for") -> Any:
    """A cluster by name."""
    return option(None, f"{of}: `parallax list clusters`, or <gpu>_<nodes>x8. Unset: {unset}.")


def rates() -> Any:
    """Constants of the cost model."""
    words = (
        "Constants of the GPU that `parallax calibrate` wrote (rates.json). Unset: those shipped."
    )
    return option(None, words)


def packed() -> Any:
    """Several documents in a sequence."""
    return option(False, "Pack several documents a sequence (segment ids).", "switch")


def small() -> Any:
    """The small model instead of the full-size one."""
    return option(False, "A paper's model at the width of a laptop: what verify runs.", "switch")


def seed() -> Any:
    """Of everything drawn."""
    return option(0, "Of everything drawn: equal seeds, equal results.", "whole")


def text(of: str) -> Any:
    """A file whose bytes are tokens."""
    return option(
        None, f"UTF-8 file whose bytes are the tokens of {of}. Unset: Python's standard library."
    )


def layer_formats() -> Any:
    """Formats of some layers."""
    words = (
        "LAYERS=FORMAT or LAYERS=ATTENTION,MLP, such as 0-3=int8,int8+2:4; several times, later "
        "ones win."
    )
    return option((), words, "repeated")


def virtual(words: str = "as many as the mesh needs (16 without a mesh)") -> Any:
    """Virtual CPU devices."""
    return option(False, f"Run on virtual CPU devices, {words}.", "switch")


def out(words: str, default: str = "out") -> Any:
    """The folder of results."""
    return option(default, words)


def json_file() -> Any:
    """The file of results."""
    return option(None, "File for the results as JSON.")
