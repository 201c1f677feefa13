"""The layers in cache-tiled order: each weight tile runs all microbatches before the next tile.

A layer's attention is cut by heads and its MLP by width, as in tensor parallelism, but over time
instead of devices. Shapes: R microbatches in a group, b sequences per microbatch, L tokens, D model
width, N layers, T weight tiles.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from parallax.compression import parse_format
from parallax.kernels.ring_attention.reference import accumulator_dtype
from parallax.models.block import Block, Mlp, normed
from parallax.models.config import ModelConfig
from parallax.models.layer_kinds import LayerKind
from parallax.models.layer_scan import scan_layers
from parallax.models.packed_weight import PackedWeight
from parallax.models.rope import Rotation
from parallax.models.streamed_mlp import streamed_mlp
from parallax.models.weights import in_use
from parallax.parallel.cached_attention import CachedLayer
from parallax.parallel.remat import rematerialised
from parallax.parallel.split import Split
from parallax.parallel.tiles import Tiles
from parallax.parallel.varying import vary_over, varying_axes
from parallax.rules import names_of

# (microbatch of the group, kind of layer) -> the inputs of its attention: angles, segment ids
Own = Callable[[Any, LayerKind], tuple[Rotation | None, Any]]
# (layer, weight tile, microbatch, window) -> the cache that this tile's heads attend to
Cached = Callable[[Any, Any, Any, int | None], CachedLayer]


def tiled_layers(
    layers: Block,
    config: ModelConfig,
    x_RBLD: jax.Array,
    own: Own,
    split: Split,
    tiles: Tiles,
    cached: Cached | None = None,
) -> tuple[jax.Array, Any]:
    """Run a microbatch group through a stack of layers, weight tile by weight tile.

    Args:
      layers: the stacked layers.
      config: the model.
      x_RBLD: [R, b, L, D].
      own: the inputs that each microbatch has of its own.
      split: how the model is split over devices.
      tiles: weight tiles per layer, which `check_tiles` has checked.
      cached: the cache, if new tokens attend to cached ones.

    Returns:
      [R, b, L, D], and the layers' other results, each leaf with leading [R, N].

    The terms of weight tiles are added up in float32 or wider, and summed over devices once. The
    MLP may be one kernel (`streamed_mlp`), which cuts tiles of its own.

    Cost: each tile is read from device memory, and copied, once per group; every microbatch reads
      its rows, and reads and writes their sum, once per tile. Tiles of latent attention each make
      the latents again, of all tokens.
    """
    stacked: Any = nnx.split(layers)[1]
    microbatches, wide = x_RBLD.shape[0], accumulator_dtype(jnp.dtype(config.dtype))
    depth = len(jax.tree.leaves(stacked)[0])

    def cut(n, name: str, tile, count: int, dim: str) -> Any:
        """Return the module of one weight tile of one layer."""
        state = nnx.map_state(lambda path, w: _tile_of(w, n, tile, count, dim), stacked[name])
        state = in_use(state, config.dtype, split, stacked=True)
        return nnx.merge(nnx.split(getattr(layers, name))[0], state)

    def whole(n, name: str) -> Any:
        return cut(n, name, 0, 1, "")

    def run_tiles(h_RBLD, count: int, of_tile: Callable):
        """Sum the terms of all weight tiles for all microbatches, [R, b, L, D].

        `of_tile(tile, rows, sums)` returns the sums and other results, here leaves [T, ...].
        """
        zeros = vary_over(jnp.zeros(h_RBLD.shape, wide), varying_axes(h_RBLD))
        # A gradient would otherwise keep every tile of every group: a copy of all weights each.
        run_tile = rematerialised(of_tile, "layer")
        return lax.scan(lambda sums, tile: run_tile(tile, h_RBLD, sums), zeros, _numbers(count))

    def each(function: Callable, *of_all: Any) -> Any:
        """Map `function(r, ...)` over the microbatches in turn, and stack the results."""
        return lax.map(lambda rows: function(*rows), (_numbers(microbatches), *of_all))

    def added(sums, function: Callable, *of_all: Any):
        """Add every microbatch's term to the sums, in place."""

        def one(sums, rows):
            r, *own = rows
            return lax.dynamic_update_index_in_dim(sums, _at(sums, r) + function(*own), r, 0), None

        return lax.scan(one, sums, (_numbers(microbatches), *of_all))[0]

    def half(x_RBLD, n, name: str, axes: tuple[str, ...], through: Callable):
        norm, post_norm = (
            None if getattr(layers, f"{name}_{place}") is None else whole(n, f"{name}_{place}")
            for place in ("norm", "post_norm")
        )
        end = whole(n, name)
        rows = x_RBLD.reshape(-1, *x_RBLD.shape[2:])
        h = split.enter(normed(norm, rows), *axes)
        y, beside = through(h.reshape(microbatches, -1, *h.shape[1:]))
        y = y.astype(config.dtype).reshape(-1, *h.shape[1:])
        y = end.with_bias(split.sum(y, *axes), split)
        rows = rows + normed(post_norm, y)
        return rows.reshape(x_RBLD.shape), beside

    def layer(x_RBLD, n, kind: LayerKind):
        def heads(tile, h_RBLD, sums):
            if config.latent is not None:
                # Otherwise JAX would move a part of the latents' travel out of the loop over tiles.
                h_RBLD, tile = lax.optimization_barrier((h_RBLD, tile))
            module = _decompressed(cut(n, "attention", tile, tiles.attention, "heads"))

            def attend(r, *qkv):
                cache = None if cached is None else cached(n, tile, r, kind.window)
                return module.attend(*qkv, own(r, kind)[1], split, kind, cache)

            # Each loop keeps its matrices in the cache: keys and values read in between would evict
            # them.
            qkv = each(lambda r, h: module.project(h, own(r, kind)[0], split), h_RBLD)
            out_RBLHK, kv = each(attend, *qkv)
            out_HKD = module.output[...]
            sums = added(sums, lambda out: _wide("blhk,hkd->bld", out, out_HKD, wide), out_RBLHK)
            return sums, () if split.kv is None else kv

        def width(tile, h_RBLD, sums):
            module = _decompressed(cut(n, "mlp", tile, tiles.mlp, "mlp"))

            def term(h_BLD):
                h_BLF = module.hidden(h_BLD, split)
                return _wide("blf,fd->bld", h_BLF, module.down_FD[...], wide)

            return added(sums, term, h_RBLD), ()

        def attention(h_RBLD):
            return run_tiles(h_RBLD, tiles.attention, heads)

        def mlp(h_RBLD):
            assert isinstance(layers.mlp, Mlp)
            sums = streamed_mlp(h_RBLD, layers.mlp, stacked["mlp"], n)
            return run_tiles(h_RBLD, tiles.mlp, width) if sums is None else (sums, ())

        with jax.named_scope("attention"):
            names = "heads", "head_dim"
            x_RBLD, kv = half(x_RBLD, n, "attention", names, attention)
        with jax.named_scope("mlp"):
            x_RBLD, _ = half(x_RBLD, n, "mlp", ("mlp",), mlp)
        if split.kv is None:
            return x_RBLD, ()
        # Every tile makes the same latents for all heads.
        joined = _join_heads if config.latent is None else functools.partial(_at, index=0)
        return x_RBLD, ((), jax.tree.map(joined, kv))

    def run(x_RBLD, n, kind: LayerKind):
        of_kind = functools.partial(layer, kind=kind)
        return (of_kind if split.remat is None else rematerialised(of_kind, split.remat))(x_RBLD, n)

    x_RBLD, beside = scan_layers(run, x_RBLD, _numbers(depth), config.kinds)
    return x_RBLD, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), beside)


def own_of(angles: Mapping[LayerKind, Rotation | None], segment_ids_BL, count: int) -> Own:
    """Return the function that selects one microbatch's inputs from those of all.

    Args:
      angles: of each kind of layers, [R b, L, ...], or [1, L, ...] for all.
      segment_ids_BL: [R b, L] or None.
      count: R.
    """

    def of(x, r):
        return x if x is None or x.shape[0] == 1 else _at(x.reshape(count, -1, *x.shape[1:]), r)

    def own(r, kind: LayerKind):
        turned = angles[kind]
        if turned is not None:
            turned = Rotation((of(turned[0], r), of(turned[1], r)))
        return turned, of(segment_ids_BL, r)

    return own


def check_tiles(config: ModelConfig, split: Split, tiles: Tiles) -> None:
    """Raise ValueError unless a dense layer can be cut into these weight tiles.

    Every tile has to hold whole heads, each with its key/value head, and an equal share of the
    MLP's width.
    """
    context = f"CacheTiled: model '{config.name}'"
    if config.num_experts:
        raise ValueError(
            f"{context}: experts cannot be cut into weight tiles, because data decide which of "
            "them a microbatch needs. Use layers=Scan() or Pipeline()."
        )
    if hasattr(split.attention, "inner"):
        raise ValueError(
            f"{context}: attention={split.attention} distributes heads itself. Use Local() or "
            "Ring(), or layers=Scan() or Pipeline()."
        )
    kv_heads = config.num_kv_heads // split.count("kv_heads")
    together = split.over("kv_heads") == split.over("heads")
    if tiles.attention > 1 and (kv_heads % tiles.attention or not together):
        held = f"holds {kv_heads}" if together else "shares all of them with others"
        divisor = kv_heads if together else 1
        raise ValueError(
            f"{context}: {tiles.attention} weight tiles of attention must hold whole groups of "
            f"heads that share a key/value head; a device {held}. Use a divisor of {divisor}."
        )
    if tiles.attention > 1 and config.qk_norm and config.qk_norm_width == "all":
        raise ValueError(
            f"{context}: its norm of queries and keys is over all heads, which a weight tile does "
            "not see. Use 1 weight tile of attention, or layers=Scan() or Pipeline()."
        )
    formats = [parse_format(name) for name in config.compression or ()]
    if any(form.activation_bits for form in formats):
        raise ValueError(
            f"{context}: formats {config.compression} round a token's activations by the largest "
            "of all of them, which a weight tile does not see. Use formats that do not round them."
        )
    width = config.d_ff // split.count("mlp")
    if width % tiles.mlp:
        raise ValueError(
            f"{context}: {tiles.mlp} weight tiles of the MLP do not divide the {width} columns on "
            f"a device. Use a divisor of {width}."
        )
    for form in formats[1:]:
        form.check(width // tiles.mlp, f"{context}: a weight tile of the MLP's last matrix")


def _decompressed(module: Any) -> Any:
    """Decompress a module's weights once per weight tile, instead of in every product."""
    for name, weight in list(vars(module).items()):
        if isinstance(weight, PackedWeight):
            setattr(module, name, nnx.data(nnx.Param(weight[...])))
    return module


def _tile_of(w: Any, n, tile, count: int, dim: str) -> Any:
    """Return share `tile` of `count` of a stacked parameter's dim, for layer n."""
    names = (dim, "kv_heads") if dim == "heads" else (dim,)
    axes, value = w.out_sharding[1:], w[...]
    cuts = [any(name in names for name in names_of(a)) for a in axes]
    sizes = [s // count if cuts else s for s, cuts in zip(value.shape[1:], cuts, strict=True)]
    starts = [tile * s if cuts else 0 for s, cuts in zip(sizes, cuts, strict=True)]
    starts = (jnp.asarray(start, jnp.int32) for start in (n, *starts))
    cut = lax.dynamic_slice(value, tuple(starts), (1, *sizes))
    return w.replace(cut.reshape(sizes))


def _wide(spec: str, x: jax.Array, w: jax.Array, wide) -> jax.Array:
    return jnp.einsum(spec, x, w, preferred_element_type=wide)


def _at(x: jax.Array, index) -> jax.Array:
    return lax.dynamic_index_in_dim(x, index, keepdims=False)


def _numbers(count: int) -> jax.Array:
    return jnp.arange(count, dtype=jnp.int32)


def _join_heads(x_TRbGK: jax.Array) -> jax.Array:
    """Join the tiles' keys or values [T, R, b, ..., G, K] to all heads' [R, b, ..., G, K]."""
    x = jnp.moveaxis(x_TRbGK, 0, -3)
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])
