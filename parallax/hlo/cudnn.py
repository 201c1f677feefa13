"""The shapes and FLOPs of cuDNN's fused attention in a program's text."""

import json
import math
import re
from typing import NamedTuple

from parallax.hlo.limits import UNREADABLE
from parallax.hlo.module import Computation, Instruction
from parallax.hlo.shapes import HloError

_TARGET = re.compile(r'"?__cudnn\$fmha(.*)')


class FusedAttention(NamedTuple):
    """One call of fused attention.

    Attributes:
      batch, heads, q_len, kv_len, head_dim: sizes.
      visible: share of the (query, key) pairs that the mask lets through.
      dtype: HLO dtype of the queries.
      products: matrix products over all pairs: 2 forward, 5 backward.
    """

    batch: int
    heads: int
    q_len: int
    kv_len: int
    head_dim: int
    visible: float
    dtype: str
    products: int

    @property
    def flops(self) -> float:
        pairs = self.batch * self.heads * self.q_len * self.kv_len * self.visible
        return 2.0 * self.products * pairs * self.head_dim


def fused_attention(computation: Computation, i: Instruction) -> FusedAttention | None:
    """Read the attention that a custom call computes; None for any other call.

    Raises:
      HloError: the configuration of an attention call is not understood.
    """
    target = _TARGET.match(i.attributes.get("custom_call_target", ""))
    if target is None:
        return None
    try:
        config = json.loads(i.attributes["backend_config"])["cudnn_fmha_backend_config"]
        scores = [int(d) for d in config["intermediate_tensor_shape"]["dimensions"]]
        batch, heads, q_len, kv_len = scores
        mask = str(config.get("mask_type", "NO_MASK"))
        query = computation.operand_shapes(i)[0]
    except UNREADABLE:
        raise HloError(f"line {i.line}: %{i.name}: its cuDNN config is not understood.") from None
    head_dim, rest = divmod(math.prod(query.dims), max(1, batch * heads * q_len))
    if min(scores) < 1 or rest or not head_dim:
        raise HloError(
            f"line {i.line}: %{i.name}: attention over scores {scores} does not fit queries "
            f"{query.dims}."
        )
    visible = 0.5 if "CAUSAL" in mask else 1.0
    products = 5 if "Backward" in target.group(1) else 2
    return FusedAttention(batch, heads, q_len, kv_len, head_dim, visible, query.dtype, products)
