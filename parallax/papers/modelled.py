"""The analytical model's throughput of a paper's own strategies."""

import math
from collections.abc import Callable
from dataclasses import replace

from parallax.analytic import estimate
from parallax.cost import Rates, error_bar, rates_for
from parallax.meshes.cluster import Cluster
from parallax.papers.paper import Paper
from parallax.papers.results import TpsReading
from parallax.programs.steps import make_step
from parallax.results.lens_results import Figure
from parallax.strategies import build


def closed_form_on(
    cluster: Cluster, rates: Rates | None = None
) -> Callable[[Paper, str, TpsReading], Figure | None]:
    """Make a model of the tokens/s of a paper's strategies on a cluster, for `audit`.

    A prefill takes the paper's microbatches, lowered to a divisor of the sequences per device. The
    model returns None where a strategy cannot run the paper's model. `rates` are the cost model
    constants of the GPU; None uses those shipped.
    """

    def model(paper: Paper, strategy: str, reading: TpsReading) -> Figure | None:
        try:
            made = build(strategy, devices=cluster.devices, node_size=cluster.gpus_per_node,
                         cluster=cluster.name)  # fmt: skip
            local = paper.workload.batch // made.split().count("act_batch")
            workload = replace(
                paper.workload, microbatches=math.gcd(paper.workload.microbatches, max(1, local))
            )
            step = make_step(paper.config, made, workload, reading)
            modelled = estimate(step, cluster, rates=rates)
        except (ValueError, NotImplementedError):
            return None
        low, high = error_bar(modelled.cost, rates_for(cluster, rates))
        tokens = modelled.tokens
        return Figure(modelled.tokens_per_s, "tokens/s", "modelled", tokens / high, tokens / low)

    return model
