"""Which slots of a device's cache hold a token: spans of slots, from lengths and steps alone.

A device has the prompts' tokens in its first slots, in the order in which a pass held them, and new
ones behind. An order is a few runs of positions in a row (one; two in zigzag), and a prompt that
ends early ends in each of them.
Shapes: B sequences, P slots of the prompt, S runs.
"""

import jax
import jax.numpy as jnp
import numpy as np


def runs_of(positions: np.ndarray) -> np.ndarray:
    """Runs of consecutive positions in each device's slots.

    Args:
      positions: [devices, P], of the tokens in their slots.

    Returns:
      [devices, S, 3] int32: first slot, its position, slots; filled up with empty runs.
    """
    found = []
    for of_device in positions:
        starts = np.flatnonzero(np.diff(of_device, prepend=of_device[0] - 2) != 1)
        counts = np.diff(starts, append=len(of_device))
        found.append(np.stack([starts, of_device[starts], counts], axis=1))
    filled = np.zeros((len(found), max(map(len, found)), 3), np.int32)
    for device, runs in enumerate(found):
        filled[device, : len(runs)] = runs
    return filled


def slot_spans(runs, lengths: jax.Array, first_new: int, new: jax.Array) -> jax.Array:
    """[B, S + 1, 2]: (start, end) of slots that hold a token, of each run and of new tokens.

    Args:
      runs: [S, 3], of this device.
      lengths: [B], tokens of each prompt.
      first_new: slot of the first new token.
      new: scalar, tokens that this device keeps by now.
    """
    slots, positions, counts = (jnp.asarray(runs[:, i], jnp.int32)[None] for i in range(3))
    held = jnp.clip(lengths[:, None] - positions, 0, counts)
    start = jnp.broadcast_to(slots, held.shape)
    of_prompt = jnp.stack([start, start + held], axis=-1)
    of_new = jnp.stack([jnp.full_like(new, first_new), first_new + new])
    of_new = jnp.broadcast_to(of_new[None, None], (lengths.shape[0], 1, 2))
    return jnp.concatenate([of_prompt, of_new], axis=1)
