"""How far a product is off because of the format its weight is stored in."""

import functools

import jax
import jax.numpy as jnp

from parallax.compression.activations import int8_rounded, int8_step
from parallax.compression.formats import Format
from parallax.compression.packed import compress, decompress


def relative_error(
    w: jax.Array, form: Format, x: jax.Array, inputs: tuple[int, ...] = (0,)
) -> float:
    """Relative L2 error of x @ w with w stored in a format.

    Args:
      w: of any dims, floating point.
      form: how it is stored; where it rounds activations (w8a8), x is rounded too.
      x: [..., inputs of w], activations that the weight meets.
      inputs: leading dims of w that the product sums over.

    Returns:
      ||x @ stored(w) - x @ w|| / ||x @ w||, both products in float32 (float64 for float64 x).

    Raises:
      ValueError: inputs that the format cannot store or that x does not have.
    """
    sizes = tuple(w.shape[i] for i in inputs)
    if inputs != tuple(range(len(inputs))) or x.shape[x.ndim - len(inputs) :] != sizes:
        raise ValueError(
            f"relative_error: x ends with {tuple(x.shape[x.ndim - len(inputs) :])}, the weight's "
            f"inputs (dims {inputs}) are {sizes}. Give the activations that this weight meets."
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
    found = jnp.tensordot(seen, stored, axes=len(inputs))
    return jnp.linalg.norm(found - exact) / jnp.linalg.norm(exact)


@functools.partial(jax.jit, static_argnames=("form", "inputs"))
def weight_error(w: jax.Array, form: Format, inputs: tuple[int, ...]) -> jax.Array:
    """Relative L2 error of a weight stored in a format, a scalar; 0 for a weight of zeros.

    Of a product with activations that are independent, of zero mean and of one size it is also the
    expected error. Activations stay as they are, also in w8a8.

    Raises:
      ValueError: inputs that the format cannot store.
    """
    wide = jnp.float64 if w.dtype == jnp.float64 else jnp.float32
    off = decompress(compress(w, form, inputs), form, inputs[-1], wide) - w.astype(wide)
    return jnp.linalg.norm(off) / jnp.maximum(jnp.linalg.norm(w.astype(wide)), 1e-30)
