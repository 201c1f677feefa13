"""Reading a compiled program: which collectives run, how often, over what, beside which FLOPs.

Knows no strategy and works for any JAX program. A form it does not understand is refused.
"""

from parallax.hlo.collectives import Collective, Ledger
from parallax.hlo.compare import compare
from parallax.hlo.jaxpr import jaxpr_ledger
from parallax.hlo.ledger import read_ledger
from parallax.hlo.parse import parse_module
from parallax.hlo.rows import DtypeRow, dtype_rows
from parallax.hlo.shapes import HloError

__all__ = [
    "Collective",
    "DtypeRow",
    "HloError",
    "Ledger",
    "compare",
    "dtype_rows",
    "jaxpr_ledger",
    "parse_module",
    "read_ledger",
]
