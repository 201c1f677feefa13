"""The cost model: seconds, joules and error bars of compiled work on a GPU, whatever the strategy.

`estimate_cost` takes the execution trace of any program (`parallax.hlo.read_trace`) and the
rates of a GPU.
"""

from parallax.cost.estimating import Cost, estimate_cost, part_costs
from parallax.cost.networks import rates_for
from parallax.cost.rates import Rates, rates_of
from parallax.cost.totals import error_bar, joules, known_error_bar

__all__ = ["Cost", "Rates", "error_bar", "estimate_cost", "joules", "known_error_bar", "part_costs",
           "rates_for", "rates_of"]  # fmt: skip
