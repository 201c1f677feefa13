"""Reading a compiled program: which collectives run, how often, over what, beside which FLOPs.

Knows no strategy and works for any JAX program. A form it does not understand is refused.
"""

from parallax.hlo.ledger import Collective, Ledger, read_ledger
from parallax.hlo.parse import HloError, parse_module

__all__ = ["Collective", "HloError", "Ledger", "parse_module", "read_ledger"]
