"""The spans of cache slots that hold a token, which follow from lengths and steps alone.

A device's first slots hold the prompts' tokens, in the order of the prefill; new tokens come after
them. An order consists of a few runs of consecutive positions (one; two in zigzag), and a shorter
prompt ends early in each of them. Shapes: B sequences, P slots of the prompt, S runs.
"""

import jax
import jax.numpy as jnp
import numpy as np


def runs_of(positions: np.ndarray) -> np.ndarray:
    """Return the runs of consecutive positions in each device's slots.

    Args:
      positions: [devices, P], the positions of the tokens in the slots.

    Returns:
      [devices, S, 3] int32: first slot, its position, number of slots; padded with empty runs.
    """
    device_runs = []
    for of_device in positions:
        starts = np.flatnonzero(np.diff(of_device, prepend=of_device[0] - 2) != 1)
        counts = np.diff(starts, append=len(of_device))
        device_runs.append(np.stack([starts, of_device[starts], counts], axis=1))
    padded = np.zeros((len(device_runs), max(map(len, device_runs)), 3), np.int32)
    for device, runs in enumerate(device_runs):
        padded[device, : len(runs)] = runs
    return padded


def window_spans(
    spans: jax.Array, runs, oldest: jax.Array, lengths: jax.Array, first_new: int,
    device: jax.Array | int, devices: int,
) -> jax.Array:  # fmt: skip
    """Return `slot_spans` without the slots of tokens before the oldest that a window sees.

    Args:
      spans: [B, S + 1, 2], of `slot_spans`.
      runs: [S, 3], this device's runs.
      oldest: [B], the first position in the window; it may be negative.
      lengths, first_new: as in `slot_spans`.
      device, devices: this device's index among those that take new tokens in turn.
    """
    slots, positions = (jnp.asarray(runs[:, i], jnp.int32)[None] for i in range(2))
    of_prompt = slots + jnp.maximum(oldest[:, None] - positions, 0)
    # New token n is at position lengths + n, on device n % devices.
    skipped = jnp.maximum(oldest - lengths - device + (devices - 1), 0) // devices
    start = jnp.concatenate([of_prompt, (first_new + skipped)[:, None]], axis=1)
    end = spans[..., 1]
    return jnp.stack([jnp.minimum(jnp.maximum(spans[..., 0], start), end), end], axis=-1)


def slot_spans(runs, lengths: jax.Array, first_new: int, new: jax.Array) -> jax.Array:
    """Return the (start, end) of the slots with tokens, per run and for new ones, [B, S + 1, 2].

    Args:
      runs: [S, 3], this device's runs.
      lengths: [B], tokens per prompt.
      first_new: slot of the first new token.
      new: scalar, new tokens that this device has kept so far.
    """
    slots, positions, counts = (jnp.asarray(runs[:, i], jnp.int32)[None] for i in range(3))
    held = jnp.clip(lengths[:, None] - positions, 0, counts)
    start = jnp.broadcast_to(slots, held.shape)
    of_prompt = jnp.stack([start, start + held], axis=-1)
    of_new = jnp.stack([jnp.full_like(new, first_new), first_new + new])
    of_new = jnp.broadcast_to(of_new[None, None], (lengths.shape[0], 1, 2))
    return jnp.concatenate([of_prompt, of_new], axis=1)
