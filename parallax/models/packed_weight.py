"""The packed weight: stored compressed, and read as if it were not."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from parallax.compression import Format, Packed, compress, decompress
from parallax.parallel.products import StoredWeight, product
from parallax.parallel.remat import product_result
from parallax.parallel.split import Split


class Stored(nnx.Variable):
    """A stored array, which is never cast to the model's dtype and never trained."""


class PackedWeight(nnx.Module):
    """A compressed weight in place of an nnx.Param; products take `weight[...]`.

    Args:
      dense: the weight.
      names: its logical axes; the stored arrays have the same dims and carry the same axes.
      form: the format that stores it.
      inputs: dims that its product sums over; see `compress`.
      dtype: dtype of the weight that `[...]` returns.

    Raises:
      ValueError: inputs that the format does not divide.
    """

    def __init__(self, dense: jax.Array, names, form: Format, inputs: tuple[int, ...], dtype: str):
        self.form, self.inputs, self.dtype = form, inputs, dtype
        packed = compress(dense, form, inputs)
        self.values = Stored(packed.values, out_sharding=names)
        if packed.positions is not None:
            self.positions = Stored(packed.positions, out_sharding=names)
        if packed.scales is not None:
            alike = tuple(
                None if size == 1 and i in inputs else name
                for i, (size, name) in enumerate(zip(packed.scales.shape, names, strict=True))
            )
            self.scales = Stored(packed.scales, out_sharding=alike)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the arrays that this format stores."""
        return tuple(name for name in Packed._fields if hasattr(self, name))

    @property
    def packed(self) -> Packed:
        """The stored arrays."""
        return _packed({name: getattr(self, name)[...] for name in self.names})

    def decompressed(self, arrays: Mapping[str, jax.Array], dtype: str) -> jax.Array:
        """Return the weight that arrays of this format hold."""
        return decompress(_packed(arrays), self.form, self.inputs[-1], dtype)

    def __getitem__(self, index) -> Any:
        """Return the weight for `...`: an array, or integers if activations are rounded too."""
        assert index is Ellipsis, "a packed weight is read whole"
        return self.stored.unpacked()

    @property
    def stored(self) -> StoredWeight:
        """The weight as it is stored, with its format."""
        return StoredWeight(self.packed, self.form, self.inputs, self.dtype)


def factor(weight: Any, split: Split) -> Any:
    """Return a weight as a product takes it; in a decoding step a packed one is still packed."""
    packed = split.decodes and isinstance(weight, PackedWeight) and weight.form.packs
    return weight.stored if packed else weight[...]


def multiplied(x: jax.Array, weight: Any, spec: str, split: Split) -> jax.Array:
    """Return a product with a weight, before any bias; see `Split.apart`."""
    return split.apart(product_result(product(x, factor(weight, split), spec)))


def _packed(arrays: Mapping[str, jax.Array]) -> Packed:
    return Packed(*(arrays.get(name) for name in Packed._fields))
