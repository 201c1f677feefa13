"""The modelled time of a recovery or a switch on a GPU: bytes and FLOPs over rates."""

from collections.abc import Sequence
from dataclasses import dataclass

from parallax.cost import rates_of
from parallax.models.config import ModelConfig
from parallax.models.flops import attention_flops, model_flops

# Host to device: PCIe Gen5 x16 is 64 GB/s, and copies from pinned memory reach about this much.
PCIE_BYTES_PER_S = 55e9
ASSUMED = (
    "host to device: PCIe Gen5 x16 at 55 GB/s, host copies pinned (assumed)",
    "one device receives at a time; layers are copied one after the other (assumed)",
    "products and attention in float16 at the fitted rates of a deep product (modelled)",
    "each trial's loss at full size: as many of the sequences prefilled as in the trial, each of "
    "all its tokens (assumed)",
    "detection, placement and the network are not modelled; programs are compiled ahead",
)


@dataclass(frozen=True)
class ModelledRecovery:
    """The time of a recovery on a GPU (tag: modelled).

    Attributes:
      gpu: the GPU whose rates are used.
      move_s: time of bytes from the host over PCIe and from devices over NVLink.
      recompute_s: time to recompute lost keys and values.
      assumed: the assumptions behind it.
    """

    gpu: str
    move_s: float
    recompute_s: float
    assumed: tuple[str, ...] = ASSUMED

    @property
    def resume_s(self) -> float:
        """The seconds of both parts."""
        return self.move_s + self.recompute_s


def modelled_recovery(
    config: ModelConfig, host_to_device: int, device_to_device: int, groups: Sequence[int],
    batch: int, tokens: int, *, microbatches: int = 1, gpu: str = "h100",
) -> ModelledRecovery:  # fmt: skip
    """Return the modelled time to resume after a loss.

    Args:
      config: the model.
      host_to_device, device_to_device: bytes that move.
      groups: layers of each stage that runs again to recompute lost keys and values.
      batch, tokens: sequences, and known tokens of each.
      microbatches: pieces of the batch that follow each other through these stages.
      gpu: a GPU that `parallax.cost` has rates for.
    """
    rates = rates_of(gpu)
    move_s = host_to_device / PCIE_BYTES_PER_S
    if device_to_device:
        link = rates.links["p2p"]
        move_s += link.start_s + device_to_device / link.bytes_per_s
    layers = sum(groups)
    if not layers or not tokens or not batch:
        return ModelledRecovery(gpu, move_s, 0.0)
    one, more = (config.replace(num_layers=n) for n in (1, 1 + layers))
    whole = model_flops(more, batch, tokens) - model_flops(one, batch, tokens)
    attention = attention_flops(more, batch, tokens) - attention_flops(one, batch, tokens)
    rate = rates.attention.flops_per_s(config.head_dim)
    recompute_s = (whole - attention) / rates.gemm_rates("f16").flops_per_s + attention / rate
    # Stages work on different microbatches at once: one goes through all layers, and the others
    # follow it at the pace of the slowest stage.
    share = (layers + (microbatches - 1) * max(groups)) / (microbatches * layers)
    return ModelledRecovery(gpu, move_s, recompute_s * share)


@dataclass(frozen=True)
class ModelledSwitch:
    """The seconds until a layer runs in its other formats (tag: modelled).

    Attributes:
      gpu: the GPU whose rates are used.
      from_device_s: if prepared on the device: another pointer, one launch.
      from_host_s: if prepared on the host: its bytes over PCIe.
    """

    gpu: str
    from_device_s: float
    from_host_s: float


def modelled_switch(n_bytes: int, gpu: str = "h100") -> ModelledSwitch:
    """Return the modelled switch of a layer with `n_bytes` bytes in its new formats."""
    launch_s = rates_of(gpu).launch_s
    return ModelledSwitch(gpu, launch_s, launch_s + n_bytes / PCIE_BYTES_PER_S)
