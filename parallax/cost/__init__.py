"""What compiled work costs on a named GPU: seconds, joules, error bars. Knows no strategy.

`price` takes the work of any compiled program (`parallax.hlo.read_trace`) and the rates of a GPU.
"""

from parallax.cost.pricing import Cost, price
from parallax.cost.rates import Rates, rates_of
from parallax.cost.totals import error_bar, joules

__all__ = ["Cost", "Rates", "error_bar", "joules", "price", "rates_of"]
