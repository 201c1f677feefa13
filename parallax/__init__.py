"""Compare the ways of splitting a model over a GPU cluster before renting the GPUs.

    import parallax as px
    report = px.compare(paper="ring_sp", small=True)
    program = px.Program(px.PAPERS["ring_sp"].config, px.strategies.ring_sequence(16))

Importing this package starts no device and sets no environment variable. Each public name is
imported on first use.
"""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from parallax._links import refuse_text_links

refuse_text_links(Path(__file__).parent)

__version__ = "0.1.0"

if TYPE_CHECKING:
    from parallax import parallel, strategies
    from parallax.commands.compare import compare, compare_papers
    from parallax.commands.compile_for import compile_for, predict
    from parallax.commands.describe import describe
    from parallax.commands.explain import explain, explain_text
    from parallax.commands.inspect import inspect_text
    from parallax.commands.plan import plan
    from parallax.cost import Rates
    from parallax.distributed.startup import initialize
    from parallax.engine.compress import compress
    from parallax.engine.deployment import Deployment
    from parallax.engine.optimizer import Adamw, Lion, Muon
    from parallax.engine.texts import generate
    from parallax.engine.train import train
    from parallax.lenses.environment import virtual_devices
    from parallax.meshes.cluster import CLUSTERS, Cluster, cluster
    from parallax.meshes.mesh import MeshSpec
    from parallax.models import huggingface
    from parallax.models.config import ModelConfig
    from parallax.models.transformer import Transformer
    from parallax.papers import PAPERS, paper
    from parallax.program import Program
    from parallax.programs.training import TrainStep
    from parallax.report import Report
    from parallax.rules import Rules
    from parallax.strategies import STRATEGIES
    from parallax.strategy import Strategy

# Public name -> the module that defines it; "" marks a name that is itself a module.
_SURFACE = {
    "Adamw": "parallax.engine.optimizer",
    "CLUSTERS": "parallax.meshes.cluster",
    "Cluster": "parallax.meshes.cluster",
    "Deployment": "parallax.engine.deployment",
    "Lion": "parallax.engine.optimizer",
    "MeshSpec": "parallax.meshes.mesh",
    "ModelConfig": "parallax.models.config",
    "Muon": "parallax.engine.optimizer",
    "PAPERS": "parallax.papers",
    "Program": "parallax.program",
    "Rates": "parallax.cost",
    "Report": "parallax.report",
    "Rules": "parallax.rules",
    "STRATEGIES": "parallax.strategies",
    "Strategy": "parallax.strategy",
    "TrainStep": "parallax.programs.training",
    "Transformer": "parallax.models.transformer",
    "cluster": "parallax.meshes.cluster",
    "compare": "parallax.commands.compare",
    "compare_papers": "parallax.commands.compare",
    "compile_for": "parallax.commands.compile_for",
    "compress": "parallax.engine.compress",
    "describe": "parallax.commands.describe",
    "explain": "parallax.commands.explain",
    "explain_text": "parallax.commands.explain",
    "generate": "parallax.engine.texts",
    "huggingface": "parallax.models",
    "initialize": "parallax.distributed.startup",
    "inspect_text": "parallax.commands.inspect",
    "paper": "parallax.papers",
    "parallel": "",
    "plan": "parallax.commands.plan",
    "predict": "parallax.commands.compile_for",
    "strategies": "",
    "train": "parallax.engine.train",
    "virtual_devices": "parallax.lenses.environment",
}

__all__ = [
    "CLUSTERS",
    "PAPERS",
    "STRATEGIES",
    "Adamw",
    "Cluster",
    "Deployment",
    "Lion",
    "MeshSpec",
    "ModelConfig",
    "Muon",
    "Program",
    "Rates",
    "Report",
    "Rules",
    "Strategy",
    "TrainStep",
    "Transformer",
    "cluster",
    "compare",
    "compare_papers",
    "compile_for",
    "compress",
    "describe",
    "explain",
    "explain_text",
    "generate",
    "huggingface",
    "initialize",
    "inspect_text",
    "paper",
    "parallel",
    "plan",
    "predict",
    "strategies",
    "train",
    "virtual_devices",
]


def __getattr__(name: str) -> Any:
    if name not in _SURFACE:
        raise AttributeError(f"module 'parallax' has no attribute {name!r}")
    home = _SURFACE[name]
    module = importlib.import_module(home or f"parallax.{name}")
    if home and not hasattr(module, name):
        module, home = importlib.import_module(f"{home}.{name}"), ""
    value = getattr(module, name) if home else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
