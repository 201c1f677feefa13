"""A weight as it is stored: packed values, positions of what sparsity kept, scales; and back.

Rounding to integers is qwix's, symmetric, by the largest magnitude; packing and N:M are ours.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from parallax.compression import bits, sparsity
from parallax.compression.formats import Format


class Packed(NamedTuple):
    """One weight. Every array has the weight's dims; the packed dim is shorter.

    Attributes:
      values: int8, uint8 (two int4 a byte), or a float dtype without integers.
      positions: uint8, packed; None where dense.
      scales: float32, 1 where inputs share a scale; None without integers.
    """

    values: Any
    positions: Any
    scales: Any

    @property
    def n_bytes(self) -> int:
        """Of all arrays."""
        return sum(x.size * x.dtype.itemsize for x in self if x is not None)


def compress(w: jax.Array, form: Format, inputs: tuple[int, ...]) -> Packed:
    """A weight in a format.

    Args:
      w: of any dims, floating point.
      form: how.
      inputs: dims that a product sums over; runs and groups lie along the last of them, and one
        scale an output channel is one over all of them. Dims that are neither (experts) have
        scales of their own, as outputs do.

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
    """The weight that a product meets: zeros where nothing was kept, scaled, rounded once.

    Args:
      packed: whole, or a shard that begins and ends at whole bytes and groups.
      form: that it was packed in.
      axis: of the packed dim.
      dtype: of the result; scaled in float32, or in float64 if that is asked for.

    Raises:
      ValueError: arrays that do not belong together: another format's, or a shard cut through
        a byte or a group.
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


def check_packed(packed: Packed, form: Format, axis: int, where: str) -> None:
    """ValueError unless arrays from outside are what `compress` writes: runs name each place once
    and in order, scales are finite and not negative."""
    check_shapes(packed, form, axis, where)
    if packed.scales is not None:
        check_scales(packed.scales, where)
    if packed.positions is not None:
        check_positions(packed.positions, form, axis, where)


def check_scales(scales, where: str) -> None:
    """ValueError unless they are finite and not negative."""
    scales = np.asarray(scales)
    if not (np.isfinite(scales) & (scales >= 0)).all():
        raise ValueError(f"{where}: scales must be finite and not negative. The file is damaged.")


def check_positions(positions, form: Format, axis: int, where: str) -> None:
    """ValueError unless packed positions, of a whole weight or a shard, name each place of a run
    once and in order."""
    places = np.moveaxis(np.asarray(bits.unpack(positions, form.position_bits, axis)), axis, -1)
    runs = places.reshape(*places.shape[:-1], -1, form.kept).astype(int)
    if bool((np.diff(runs, axis=-1) <= 0).any()) or bool((runs >= form.of).any()):
        raise ValueError(
            f"{where}: positions of kept weights must ascend inside each run of {form.of} and stay "
            f"below {form.of}. The file is damaged, or of another format than {form.name}."
        )


def _integers(w: jax.Array, form: Format, inputs: tuple[int, ...]):
    """(int8 values in the format's range, float32 scales)."""
    import qwix  # a second to import, needed by what compresses alone

    shared = inputs[-1:] if form.group else inputs
    found = qwix.quantize(
        w.astype(jnp.float32),
        jnp.int4 if form.bits == 4 else jnp.int8,
        channelwise_axes=tuple(d for d in range(w.ndim) if d not in shared),
        tiled_axes={inputs[-1]: form.group} if form.group else {},
    )
    return found.qvalue.astype(jnp.int8), found.scale.astype(jnp.float32)


def check_shapes(packed: Packed, form: Format, axis: int, where: str = "packed weight") -> None:
    """ValueError unless arrays, or their shapes, can be one weight or a shard of one."""
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
            f"{where}: values, positions and scales of shapes {shapes} are no weight of format "
            f"{form.name} packed along dim {axis}; a shard has to begin and end at whole groups of "
            f"{form.multiple} inputs. Use fewer shards, or another format."
        )
