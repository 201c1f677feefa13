"""A reader of compiled programs: which collectives run, how often, over what, beside which FLOPs.

It knows no strategy and works for any JAX program. Forms that it does not understand are refused.
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
