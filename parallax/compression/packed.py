"""The compression of a weight to packed values, sparsity positions and scales, and back.

Rounding to integers is qwix's: symmetric, scaled by the largest magnitude. Packing and N:M sparsity
are our own.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from parallax.compression import bits, sparsity
from parallax.compression.formats import Format


class Packed(NamedTuple):
    """The stored arrays of one weight, each with the weight's dims; the packed dim is shorter.

    Attributes:
      values: int8, uint8 (two int4 per byte), or a float dtype in formats without integers.
      positions: uint8, packed; None if dense.
      scales: float32, size 1 where inputs share a scale; None in formats without integers.
    """

    values: Any
    positions: Any
    scales: Any

    @property
    def n_bytes(self) -> int:
        """The bytes of all arrays."""
        return sum(x.size * x.dtype.itemsize for x in self if x is not None)


def compress(w: jax.Array, form: Format, inputs: tuple[int, ...]) -> Packed:
    """Compress a weight in a format.

    Args:
      w: a weight of any dims, floating point.
      form: the format.
      inputs: dims that a product sums over. Runs and groups lie along the last of them; a scale
        per output channel covers all of them. Other dims (experts) have scales of their own, as
        outputs do.

    Raises:
      ValueError: inputs that runs, groups or bytes do not divide.
    """
    axis = inputs[-1]
    form.check(w.shape[axis], f"a weight of shape {tuple(w.shape)}, dim {axis}")
    positions = None
    if form.sparse:
        positions = sparsity.kept_positions(w, form.kept, form.of, axis)
        w = jnp.where(sparsity.mask(w, form.kept, form.of, axis), w, jnp.zeros((), w.dtype))
    values, scales = w, None
    if form.group is not None:
        values, scales = _integers(w, form, inputs)
    if positions is not None:
        values = sparsity.gather(values, positions, form.kept, form.of, axis)
        positions = bits.pack(positions, form.position_bits, axis)
    if form.bits == 4:
        values = bits.pack(values.astype(jnp.uint8) & jnp.uint8(15), 4, axis)
    elif form.group is None:
        values = values.astype(form.name.split("+")[0])
    return Packed(values, positions, scales)


def decompress(packed: Packed, form: Format, axis: int, dtype) -> jax.Array:
    """Return the weight for a product: zeros where nothing was kept, scaled, rounded once.

    Args:
      packed: a whole weight, or a shard that begins and ends at whole bytes and groups.
      form: the format that it was packed in.
      axis: the packed dim.
      dtype: dtype of the result; scaled in float32, or in float64 for a float64 result.

    Raises:
      ValueError: arrays that do not match: of another format, or of a shard that splits a byte or
        a group.
    """
    values, positions, scales = packed
    check_shapes(packed, form, axis)
    wide = jnp.float64 if jnp.dtype(dtype) == jnp.float64 else jnp.float32
    if form.bits == 4:
        values = bits.unpack(values, 4, axis).astype(jnp.int8)
        values = jnp.where(values > 7, values - jnp.int8(16), values)
    if positions is not None:
        positions = bits.unpack(positions, form.position_bits, axis)
        values = sparsity.scatter(values, positions, form.kept, form.of, axis)
    if scales is None:
        return values.astype(dtype)
    groups = values.shape[axis] // scales.shape[axis]
    if scales.shape[axis] > 1:
        scales = jnp.repeat(scales, groups, axis=axis)
    return (values.astype(wide) * scales.astype(wide)).astype(dtype)


def check_packed(packed: Packed, form: Format, axis: int, context: str) -> None:
    """Raise ValueError unless external arrays are as `compress` writes them.

    The positions of a run ascend, and scales are finite and not negative.
    """
    check_shapes(packed, form, axis, context)
    if packed.scales is not None:
        check_scales(packed.scales, context)
    if packed.positions is not None:
        check_positions(packed.positions, form, axis, context)


def check_scales(scales, context: str) -> None:
    """Raise ValueError unless scales are finite and not negative."""
    scales = np.asarray(scales)
    if not (np.isfinite(scales) & (scales >= 0)).all():
        raise ValueError(f"{context}: scales must be finite and not negative. The file is damaged.")


def check_positions(positions, form: Format, axis: int, context: str) -> None:
    """Raise ValueError unless the packed positions of a weight or shard ascend in each run."""
    places = np.moveaxis(np.asarray(bits.unpack(positions, form.position_bits, axis)), axis, -1)
    runs = places.reshape(*places.shape[:-1], -1, form.kept).astype(int)
    if bool((np.diff(runs, axis=-1) <= 0).any()) or bool((runs >= form.of).any()):
        raise ValueError(
            f"{context}: positions of kept weights must ascend inside each run of {form.of} and "
            f"stay below {form.of}. The file is damaged, or of another format than {form.name}."
        )


def _integers(w: jax.Array, form: Format, inputs: tuple[int, ...]):
    """Return (int8 values in the format's range, float32 scales)."""
    import qwix  # takes a second to import, and only compression needs it

    shared = inputs[-1:] if form.group else inputs
    quantized = qwix.quantize(
        w.astype(jnp.float32),
        jnp.int4 if form.bits == 4 else jnp.int8,
        channelwise_axes=tuple(d for d in range(w.ndim) if d not in shared),
        tiled_axes={inputs[-1]: form.group} if form.group else {},
    )
    return quantized.qvalue.astype(jnp.int8), quantized.scale.astype(jnp.float32)


def check_shapes(packed: Packed, form: Format, axis: int, context: str = "packed weight") -> None:
    """Raise ValueError unless the shapes of arrays can be those of one weight or shard."""
    values, positions, scales = packed
    stored = values.shape[axis] * (2 if form.bits == 4 else 1)
    wrong = (positions is not None) != form.sparse or (scales is not None) != (
        form.group is not None
    )
    runs, left = divmod(stored, form.kept)
    wrong = wrong or bool(left)
    if positions is not None and not wrong:
        wrong = positions.shape[axis] * 8 != stored * form.position_bits
    if form.group and scales is not None and not wrong:
        wrong = scales.shape[axis] * form.group != runs * form.of
    if wrong:
        shapes = [None if x is None else tuple(x.shape) for x in packed]
        raise ValueError(
            f"{context}: values, positions and scales of shapes {shapes} are not a weight of "
            f"format {form.name} packed along dim {axis}; a shard has to begin and end at whole "
            f"groups of {form.multiple} inputs. Use fewer shards, or another format."
        )
