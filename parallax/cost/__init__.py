"""The cost model: seconds, joules and error bars of compiled work on a GPU, whatever the strategy.

`price` takes the execution trace of any program (`parallax.hlo.read_trace`) and a GPU's rates.
"""

from parallax.cost.pricing import Cost, price
from parallax.cost.rates import Rates, rates_of
from parallax.cost.totals import error_bar, joules

__all__ = ["Cost", "Rates", "error_bar", "joules", "price", "rates_of"]
