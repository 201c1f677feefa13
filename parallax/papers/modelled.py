"""The cost model's word on a paper's throughput: the closed form of its own strategies."""

import math
from collections.abc import Callable
from dataclasses import replace

from parallax.cost import Rates, error_bar, rates_of
from parallax.decoding import Decoder
from parallax.estimate import estimate
from parallax.meshes.cluster import Cluster
from parallax.papers.limits import TpsReading
from parallax.papers.paper import Paper
from parallax.results import Figure
from parallax.spmd import ShardedTransformer
from parallax.strategies import build


def closed_form_on(
    where: Cluster, rates: Rates | None = None
) -> Callable[[Paper, str, TpsReading], Figure | None]:
    """Tokens a second of a paper's strategy on a cluster, for `audit`.

    A prefill takes the paper's microbatches, lowered to what divides a device's sequences. None
    where a strategy cannot run the paper's model. `rates`: of the GPU; None are those shipped.
    """

    def model(paper: Paper, strategy: str, reading: TpsReading) -> Figure | None:
        try:
            made = build(strategy, devices=where.devices, node_size=where.gpus_per_node,
                         cluster=where.name)  # fmt: skip
            local = paper.workload.batch // made.split().count("act_batch")
            workload = replace(
                paper.workload, microbatches=math.gcd(paper.workload.microbatches, max(1, local))
            )
            sharded = ShardedTransformer(paper.config, made, workload)
            decoder = Decoder(sharded, new_tokens=1) if reading == "decode" else None
            found = estimate(paper.config, made, workload, where, decoder=decoder, rates=rates)
        except (ValueError, NotImplementedError):
            return None
        low, high = error_bar(found.cost, rates or rates_of(where.gpu.name))
        return Figure(
            found.tokens_per_s, "tokens/s", "modelled", found.tokens / high, found.tokens / low
        )

    return model
