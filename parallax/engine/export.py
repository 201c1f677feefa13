"""The weights of a training run as a folder in Hugging Face's layout."""

from collections.abc import Callable
from pathlib import Path

from parallax.distributed.devices import ordered_devices
from parallax.engine.weights import load_params
from parallax.models import huggingface
from parallax.models.huggingface.configs import to_fields
from parallax.models.new_folder import check_new
from parallax.programs.sharded_model import ShardedTransformer
from parallax.requests.naming import resolve_model, weights_folder
from parallax.strategies import data_parallel
from parallax.workload import Workload


def export(
    model: str | Path,
    out: str | Path,
    *,
    family: str | None = None,
    on_progress: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write the newest checkpoint of a training run as config.json and *.safetensors.

    Args:
      model: the folder of a run; or one in Hugging Face's layout, which is written again.
      out: the folder to make.
      family: the model_type to write; None is the first that computes the same.
      on_progress: called with a line whenever something starts.

    Returns:
      The folder, with the tokenizer of the weights that the run started from, if there were any.

    Raises:
      ValueError: no weights, compressed ones, a model that no family has, or the folder exists or
        cannot be written.

    Cost: the first device holds all weights, in the model's own dtype.
    """
    check_new(out)
    config, folder = resolve_model(model)
    if folder is None or config.compression is not None:
        raise ValueError(
            f"export: no dense weights, got model {str(model)!r}. Give the folder of a training "
            "run."
        )
    to_fields(config, family)  # refused before the weights are read
    strategy = data_parallel(1)
    sharded = ShardedTransformer(config, strategy, Workload(1, 1))
    on_progress(f"loading {folder}")
    params = load_params(folder, sharded, strategy.mesh.build(ordered_devices()[:1]))
    on_progress(f"writing {out}")
    source = weights_folder(folder)
    huggingface.save(out, sharded, params, tokenizer_from=source, family=family)
    return Path(out)
