"""The errors of products whose weights are stored in a format."""

import functools

import jax
import jax.numpy as jnp

from parallax.compression.activations import int8_rounded, int8_step
from parallax.compression.formats import Format
from parallax.compression.packed import compress, decompress


def relative_error(
    w: jax.Array, form: Format, x: jax.Array, inputs: tuple[int, ...] = (0,)
) -> float:
    """Return the relative L2 error of x @ w with w stored in a format.

    Args:
      w: a weight of any dims, floating point.
      form: its format; w8a8 rounds x too.
      x: [..., inputs of w], the weight's input activations.
      inputs: leading dims of w that the product sums over.

    Returns:
      ||x @ stored(w) - x @ w|| / ||x @ w||, both products in float32 (float64 for float64 x).

    Raises:
      ValueError: inputs that the format cannot store, or that do not match x.
    """
    sizes = tuple(w.shape[i] for i in inputs)
    if inputs != tuple(range(len(inputs))) or x.shape[x.ndim - len(inputs) :] != sizes:
        raise ValueError(
            f"relative_error: x ends with {tuple(x.shape[x.ndim - len(inputs) :])}, the weight's "
            f"inputs (dims {inputs}) are {sizes}. Give this weight's input activations."
        )
    return float(_error(w, x, form, inputs))


@functools.partial(jax.jit, static_argnames=("form", "inputs"))
def _error(w: jax.Array, x: jax.Array, form: Format, inputs: tuple[int, ...]) -> jax.Array:
    wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    stored = decompress(compress(w, form, inputs), form, inputs[-1], wide)
    x = x.astype(wide)
    seen = x
    if form.activation_bits == 8:
        step = int8_step(x, tuple(range(x.ndim - len(inputs), x.ndim)))
        seen = int8_rounded(x, step) * step
    exact = jnp.tensordot(x, w.astype(wide), axes=len(inputs))
    rounded = jnp.tensordot(seen, stored, axes=len(inputs))
    return jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact)


@functools.partial(jax.jit, static_argnames=("form", "inputs"))
def weight_error(w: jax.Array, form: Format, inputs: tuple[int, ...]) -> jax.Array:
    """Return the relative L2 error of a weight stored in a format; 0 for a weight of zeros.

    It is also the expected error of a product with activations that are independent, of zero mean
    and of equal variance. Activations are not rounded, not even in w8a8.

    Raises:
      ValueError: inputs that the format cannot store.
    """
    wide = jnp.float64 if w.dtype == jnp.float64 else jnp.float32
    error = decompress(compress(w, form, inputs), form, inputs[-1], wide) - w.astype(wide)
    return jnp.linalg.norm(error) / jnp.maximum(jnp.linalg.norm(w.astype(wide)), 1e-30)
