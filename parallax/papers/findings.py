"""The findings beside a run in a report: claims audited, layers placed, depths scaled."""

from collections.abc import Iterable

from parallax.meshes.cluster import cluster as find_cluster
from parallax.models.config import ModelConfig
from parallax.papers.audit import Model, audit
from parallax.papers.paper import Paper
from parallax.papers.placing import placement_facts
from parallax.papers.results import Findings, TpsReading
from parallax.papers.scaling import scale_rows
from parallax.results.lens_results import Figure, StrategyResult
from parallax.workload import Workload


def findings(
    paper: Paper | None,
    config: ModelConfig,
    workload: Workload,
    cluster: str,
    results: Iterable[StrategyResult] = (),
    budget: str | None = None,
) -> Findings:
    """Audit a paper's claims, and place the layers of a layer-wise paper or under a budget.

    Args:
      paper: the paper whose experiment was run; None for a free comparison.
      config, workload, cluster: what was run, and the name of the cluster.
      results: results of the strategies that were run.
      budget: as for `placement_facts`; None places the layers of layer-wise papers only.

    Cost: closed forms; a second or two for a layer-wise paper.
    """
    layerwise = paper if paper is not None and paper.proposed == "layerwise" else None
    placement = None
    if layerwise is not None or budget is not None:
        # A paper's figures are shown beside its own model and workload only.
        own = layerwise and (config, workload) == (layerwise.config, layerwise.workload)
        of = layerwise if own and layerwise else config
        placement = placement_facts(of, budget, cluster, workload=workload)
    if paper is None:
        return Findings(placement=placement)
    comparable = paper.is_of_size(config, workload) and cluster == paper.cluster
    return Findings(
        audited=audit(paper, _model_of(results, comparable)),
        placement=placement,
        scale=scale_rows(paper, where=find_cluster(cluster)) if layerwise else (),
    )


def _model_of(results: Iterable[StrategyResult], comparable: bool) -> Model | None:
    """Make a model of a paper's throughputs from this run's predictions; None without any.

    Args:
      results: results of strategies by the paper's names.
      comparable: whether the run has the paper's model, batch, length and cluster.
    """
    predicted: dict[tuple[str, str], Figure] = {
        (r.name, r.prediction.phase): r.prediction.tokens_per_s
        for r in results
        if comparable and r.prediction is not None
    }

    def model(paper: Paper, strategy: str, reading: TpsReading) -> Figure | None:
        return predicted.get((strategy, reading))

    return model if predicted else None
