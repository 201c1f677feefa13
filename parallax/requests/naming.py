"""The names of models, strategies and rates: folders, files and names, from flags or Python."""

from pathlib import Path
from typing import Any

from parallax.codec import read_json
from parallax.compression import parse_format
from parallax.cost import Rates
from parallax.meshes.cluster import Cluster
from parallax.meshes.mesh import MeshSpec
from parallax.models.compressed_files import read_compressed_config
from parallax.models.compressed_folder import FILE as COMPRESSED_FILE
from parallax.models.compressed_folder import StoredModel, read_stored
from parallax.models.config import DType, ModelConfig
from parallax.models.huggingface.configs import quantization, read_config
from parallax.papers import PAPERS
from parallax.strategies import build
from parallax.strategy import Strategy

RUN_FILE = "run.json"  # in the folder of a training run


Compression = str | tuple[str, str] | None


def resolve_model(
    model: str | Path | ModelConfig,
    *,
    dtype: DType | None = None,
    small: bool = False,
    compression: Compression = None,
) -> tuple[ModelConfig, Path | None]:
    """Resolve a model to its config and the folder of its weights, None where there are none.

    Args:
      model: a paper's name, a folder with config.json and *.safetensors (or its config.json), the
        folder of a training run, a folder that `parallax compress` wrote, or a ModelConfig.
      dtype: dtype of parameters and activations; None is the model's own.
      small: shrink a paper's model to a width that a laptop runs.
      compression: formats of the matrices, see `parse_compression`; None is the model's own.

    Raises:
      ValueError: neither a name nor a folder, or a folder whose model is not supported.
    """
    if isinstance(model, ModelConfig):
        config, folder = model, None
    elif str(model) in PAPERS:
        config, folder = PAPERS[str(model)].config, None
    elif str(model) and Path(model).exists():
        path = Path(model)
        folder = path if path.is_dir() else path.parent
        if (folder / RUN_FILE).is_file():
            config = _trained(folder / RUN_FILE)
        elif (folder / COMPRESSED_FILE).is_file():
            config = read_compressed_config(folder)
            _check_stored(config, dtype, parse_compression(compression))
        else:
            config = read_config(path, dtype)
        if small:
            raise ValueError(
                f"{model}: small shrinks a paper's model, and these are a model's own weights. "
                "Leave it out."
            )
    else:
        raise ValueError(
            f"model {str(model)!r} is neither a paper ({', '.join(PAPERS)}) nor an existing "
            "folder. Give one of these names, or a folder with config.json and *.safetensors."
        )
    if compression is not None:
        config = config.replace(compression=parse_compression(compression))
    if small:
        config = config.small()
    return (config if dtype is None else config.replace(dtype=dtype)), folder


def model_notes(
    model: str | Path | ModelConfig | None, config: ModelConfig, tokens: int
) -> tuple[str, ...]:
    """Return what figures of a folder's model do not say by themselves.

    Args:
      model: what `resolve_model` took.
      config: what it returned.
      tokens: tokens per sequence.
    """
    if model is None or isinstance(model, ModelConfig) or str(model) in PAPERS:
        return ()
    notes = []
    if method := quantization(Path(model)):
        counted = config.dtype if config.compression is None else ",".join(config.compression)
        notes.append(
            f"the weights are stored in {method} and unpacked here: all bytes and times are of "
            f"{counted}"
        )
    if tokens > config.max_seq_len and not (Path(model) / RUN_FILE).is_file():
        notes.append(
            f"sequences of {tokens:,} tokens are longer than the {config.max_seq_len:,} positions "
            "that it is made for (max_position_embeddings in its config.json); a window at least "
            "as long as these counts as none"
        )
    return tuple(notes)


def stored_model(model: str | Path | ModelConfig) -> StoredModel | None:
    """Read the formats and config of a folder that `parallax compress` wrote; None for others.

    Raises:
      ValueError: such a folder cannot be read.
    """
    if isinstance(model, ModelConfig) or str(model) in PAPERS or not str(model):
        return None
    folder = Path(model)
    if (folder / RUN_FILE).is_file() or not (folder / COMPRESSED_FILE).is_file():
        return None
    return read_stored(folder)


def parse_compression(text: Compression) -> tuple[str, str] | None:
    """Parse the formats of attention's and of the MLP's matrices; None for none.

    Args:
      text: one format for both, or two joined by a comma, such as "int8,int8+2:4"; "none".

    Raises:
      ValueError: an unknown format, or more than two.
    """
    if text is None or text == "none":
        return None
    names = text.split(",") if isinstance(text, str) else list(text)
    if len(names) not in (1, 2):
        raise ValueError(
            f"compression {text!r}: expected one format, or attention's and the MLP's joined by a "
            "comma, such as int8,int8+2:4."
        )
    for name in names:
        parse_format(name)
    return names[0], names[-1]


def resolve_rates(rates: Rates | str | Path | None, cluster: Cluster) -> Rates | None:
    """Resolve the cost model constants for a cluster's GPU; None stands for those shipped.

    Args:
      rates: constants, or a file that `parallax calibrate` wrote.
      cluster: the cluster whose GPU they must describe.

    Raises:
      ValueError: the file is not a calibration, or is for another kind of GPU.
    """
    resolved = Rates.load(rates) if isinstance(rates, str | Path) else rates
    if resolved is not None and resolved.gpu != cluster.gpu.name:
        raise ValueError(
            f"rates {resolved.name!r} are for GPU {resolved.gpu!r}, cluster {cluster.name} has "
            f"{cluster.gpu.name!r}. Calibrate on such a GPU, or give a cluster of {resolved.gpu!r}."
        )
    return resolved


def _check_stored(config: ModelConfig, dtype: DType | None, formats: Compression) -> None:
    stored = ",".join(config.compression or ())
    if dtype not in (None, config.dtype):
        raise ValueError(
            f"dtype {dtype}: the weights are stored compressed for {config.dtype}. Leave it out, "
            "or compress them again from the dense model."
        )
    if formats not in (None, config.compression):
        raise ValueError(
            f"compression {','.join(formats or ())}: the weights are stored as {stored}. Leave it "
            "out, or compress them again from the dense model."
        )


def weights_of_run(folder: Path) -> Path | None:
    """Return the folder of weights that a training run started from; None for random ones."""
    weights = _read_run(folder / RUN_FILE).get("weights")
    return None if weights is None else Path(weights)


def is_published(folder: Path) -> bool:
    """Whether a folder's weights are published ones, or come from such, by way of training runs."""
    source = weights_folder(folder)
    return source is not None and (source / "config.json").is_file()


def weights_folder(folder: Path) -> Path | None:
    """Return the folder that a run, or the runs before it, started from; None for random weights.

    A folder that is no run's is its own.
    """
    source: Path | None = folder
    while source is not None and (source / RUN_FILE).is_file():
        source = weights_of_run(source)
    return source


def _read_run(path: Path) -> dict[str, Any]:
    run = read_json(path, f"training run {path}", "Give the folder of a training run.")
    if not isinstance(run, dict):
        raise ValueError(f"{path}: not the file of a training run: no object.")
    return run


def _trained(path: Path) -> ModelConfig:
    run = _read_run(path)
    return ModelConfig.from_dict(run.get("model_config"), f"{path}: model_config")


def has_own_mesh(strategy: str | Strategy) -> bool:
    """Whether a strategy is a value or a file (.json), not a name that takes a mesh."""
    return isinstance(strategy, Strategy) or strategy.endswith(".json")


def resolve_strategy(
    strategy: str | Strategy | None, mesh: str | MeshSpec | None, devices: int
) -> Strategy:
    """Resolve a strategy for the given number of devices.

    Args:
      strategy: a name, several joined by "+", a strategy file (.json), or a Strategy; None is one
        device, unsplit.
      mesh: mesh axes of a named strategy; None fills the devices.
      devices: number of available devices.

    Raises:
      ValueError: an unknown name, a mesh that the strategy cannot have or that needs more devices
        than there are, or a mesh without a strategy name.
    """
    if mesh is not None and (strategy is None or has_own_mesh(strategy)):
        without = "no strategy is given" if strategy is None else "the strategy has its own"
        raise ValueError(
            f"mesh {mesh} is for a strategy given by name, and {without}. Name a strategy "
            "(`parallax list strategies`), or leave out the mesh."
        )
    if isinstance(strategy, Strategy):
        resolved = strategy
    elif strategy is not None and strategy.endswith(".json"):
        resolved = Strategy.load(strategy)
    else:
        spec = MeshSpec.parse(mesh) if isinstance(mesh, str) else mesh
        if strategy is None:
            strategy, spec = "data_parallel", MeshSpec({"data": 1})
        resolved = build(strategy, spec, devices=devices, node_size=min(8, devices))
    if resolved.mesh.size > devices:
        raise ValueError(
            f"Strategy '{resolved.name}': mesh {resolved.mesh} needs {resolved.mesh.size} devices, "
            f"there are {devices}. Use a smaller mesh, or virtual CPU devices: --virtual, or in "
            f"Python px.virtual_devices({resolved.mesh.size}) before JAX starts."
        )
    return resolved
