"""The cases of the MLP that tests check, that are compiled, and that a benchmark times.

An `Operation` of `kernels.operations`, which documents each part.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from parallax.kernels.cache_tiled_mlp.api import Activation, cache_tiled_mlp
from parallax.kernels.cache_tiled_mlp.cut import cut_name
from parallax.kernels.cache_tiled_mlp.reference import Matrix
from parallax.kernels.validation import Kind

ABOUT = """\
The MLP of a decoding step, all microbatches at once: x [tokens, d_model] by up (and gate), the
activation, by down. Two launches; each streams its matrices once, partitioned over all
multiprocessors, and a weight tile of 256 columns is multiplied by all tokens (128 at a time) before
the next. Weights stay in their stack of layers; int8 is unpacked on the chip, and scales multiply
the sums, or the weights if inputs share scales in groups. Before it ends, each block prefetches the
next weight tile into the L2 cache. It has no gradient."""


class Case(NamedTuple):
    """The parameters of one call on random inputs.

    Attributes:
      tokens: tokens of all microbatches.
      d_model, d_ff: widths.
      dtype: dtype of x, and of weights that are not int8.
      is_gated: whether there is a gate beside up.
      group: inputs that share a scale of int8 weights; 0: all. None: weights have `dtype`.
      has_bias: whether every matrix has a bias.
      activation: see `cache_tiled_mlp`.
      layers: layers in the stack; the last one runs.
    """

    tokens: int
    d_model: int
    d_ff: int
    dtype: str = "bfloat16"
    is_gated: bool = False
    group: int | None = None
    has_bias: bool = False
    activation: Activation = "gelu"
    layers: int = 2

    @property
    def name(self) -> str:
        stored = {None: "", 0: "-int8"}.get(self.group, f"-int8by{self.group}")
        gated, bias = "-gated" * self.is_gated, "-bias" * self.has_bias
        return (
            f"{self.dtype}{stored}-{self.d_model}x{self.d_ff}-{self.tokens}tokens"
            f"{gated}-{self.activation}{bias}"
        )

    @property
    def weights(self) -> int:
        """Number of weights of one layer."""
        return sum(inputs * outputs for inputs, outputs in self.shapes)

    @property
    def kind(self) -> Kind:
        return Kind(None, self.dtype, cut=cut_name(self.group, self.is_gated))

    @property
    def flops(self) -> float:
        return 2.0 * self.tokens * self.weights

    @property
    def bytes_accessed(self) -> float:
        """Bytes of one layer's weights, scales and rows, read once, and the float32 result."""
        n_bytes = self.tokens * self.d_model * (2 + 4)
        for inputs, outputs in self.shapes:
            scales = 0 if self.group is None else inputs // (self.group or inputs) * outputs
            n_bytes += inputs * outputs * (1 if scales else 2) + 4 * scales
        return float(n_bytes)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Shapes of up, down, and the gate if there is one."""
        up, down = (self.d_model, self.d_ff), (self.d_ff, self.d_model)
        return (up, down, up) if self.is_gated else (up, down)


# For the interpreter: both dtypes, all ways to store weights, one and two token groups, tokens that
# 8 does not divide, columns that a block does not divide, one split of the inputs and several.
SMALL = (
    Case(5, 256, 512),
    Case(100, 192, 320, "float16", is_gated=True, has_bias=True, activation="silu"),
    Case(150, 64, 320, activation="relu", has_bias=True),
    Case(70, 256, 512, group=0),
    Case(70, 128, 384, "float16", is_gated=True, group=0, activation="silu"),
    Case(9, 256, 512, group=128),
    Case(70, 128, 384, "float16", is_gated=True, group=64, has_bias=True, activation="silu"),
)

# Every kernel that full sizes use, with fewer steps: the kernel's code does not depend on their
# number. The first launch applies the activation or leaves partial sums, depending on the splits
# for its width. Also two whose tokens and columns do not fill whole blocks.
SHIPPED = (
    *SMALL[1:3],
    *(
        Case(tokens, d_model, d_ff, dtype, gated, group, activation="silu" if gated else "gelu")
        for tokens, dtype in ((64, "bfloat16"), (128, "float16"))
        for gated in (False, True)
        for group in (None, 0, 128)
        for d_model, d_ff in ((256, 128 * 256), (1024, 512))
        if d_ff > 512 or group is None
    ),
)

# One layer of the cache-tiled paper, in 1 to 64 microbatches of 4 tokens, and a gated one; each in
# a stack of one, so that XLA has no layer to copy out.
TIMED = tuple(
    Case(
        tokens,
        *widths,
        is_gated=gated,
        group=group,
        activation="silu" if gated else "gelu",
        layers=1,
    )
    for widths, gated, many in (
        ((8192, 32_768), False, (4, 16, 64, 128, 256)),
        ((4096, 14_336), True, (1, 64)),
    )
    for group in (None, 0)
    for tokens in many
)


def inputs(case: Case, seed: int) -> tuple[np.ndarray, ...]:
    """Draw x [T, D], then values and any scales and bias of up, down and any gate.

    Weights have the magnitude of trained ones, so that activations are about one.
    """
    random = np.random.default_rng(seed)
    dtype = np.dtype(case.dtype)  # bfloat16 is known to NumPy once JAX is imported

    def draw(*shape: int) -> np.ndarray:
        return random.standard_normal(shape, np.float32)

    arrays = [draw(case.tokens, case.d_model).astype(dtype)]
    for fan_in, outputs in case.shapes:
        shape = (case.layers, fan_in, outputs)
        if case.group is None:
            arrays.append((draw(*shape) * fan_in**-0.5).astype(dtype))
        else:
            arrays.append(random.integers(-127, 128, shape, dtype=np.int8))
            scales = random.uniform(
                0.5, 1.5, (case.layers, fan_in // (case.group or fan_in), outputs)
            )
            arrays.append((scales * fan_in**-0.5 / 73).astype(np.float32))
        if case.has_bias:
            arrays.append(draw(case.layers, outputs).astype(dtype))
    return tuple(arrays)


def program(case: Case, implementation: str | None) -> Callable[..., tuple[jax.Array]]:
    """Return a function of the arrays of `inputs` to a float32 array [T, D]."""

    def run(x, *arrays):
        up, down, *gate = matrices(case, arrays)
        mlp = functools.partial(cache_tiled_mlp, activation=case.activation)
        layer = jnp.int32(case.layers - 1)
        return (mlp(x, up, down, *gate, layer=layer, implementation=implementation),)

    return run


def matrices(case: Case, arrays) -> list[Matrix]:
    """Group the arrays that follow x in `inputs` into the matrices that the operation takes."""
    left = iter(arrays)
    parts = (True, case.group is not None, case.has_bias)
    return [Matrix._make(next(left) if given else None for given in parts) for _ in case.shapes]


def exact(case: Case, x, *arrays) -> tuple[np.ndarray]:
    """Compute the result in float64, with integers multiplied by their scales as stored."""

    def product(x, matrix: Matrix):
        values, scales, bias = (
            part if part is None else np.asarray(part[-1], np.float64) for part in matrix
        )
        assert values is not None
        if scales is not None:
            values = values * np.repeat(scales, len(values) // len(scales), axis=0)
        return x @ values + (0 if bias is None else bias)

    activate = {
        "gelu": lambda a: a / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (a + 0.044715 * a**3))),
        "relu": lambda a: a * (a > 0),
        "silu": lambda a: a / (1 + np.exp(-a)),
    }[case.activation]
    up, down, *gate = matrices(case, arrays)
    x = np.asarray(x, np.float64)
    hidden = product(x, up)
    hidden = activate(product(x, gate[0])) * hidden if gate else activate(hidden)
    return (product(hidden, down),)
