"""The attention step in XLA against the textbook's attention, in float64, block by block."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from parallax.kernels.ring_attention import (
    attention_step,
    attention_step_backward,
    empty_carry,
    finish,
    mask,
    reference,
    score_elements,
    tiles,
)
from parallax.kernels.ring_attention.mask import Mask
from parallax.kernels.ring_attention.mosaic_tasks import schedule
from parallax.lenses.reference import Plain
from parallax.parallel.scoring import Scoring

CASES = [  # length, query heads, key/value heads, causal
    (40, 4, 4, False),
    (40, 4, 2, True),
    (1100, 2, 1, True),  # three blocks, the last one padded
    (1200, 1, 1, False),
]


def draw(shape, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def whole(q, k, v, *, is_causal=False):
    """The textbook's attention, with no code in common."""
    return Plain().attend(q, k, v, scoring=Scoring(is_causal), segment_ids=None)


def relative(a, b):
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


@pytest.mark.parametrize(("length", "heads", "kv_heads", "causal"), CASES)
def test_step_and_its_backward_are_attention(length, heads, kv_heads, causal):
    q, d_out = draw((2, length, heads, 8), 0), draw((2, length, heads, 8), 1)
    k, v = draw((2, length, kv_heads, 8), 2), draw((2, length, kv_heads, 8), 3)
    scale = 8**-0.5
    out, lse = finish(
        attention_step(q, k, v, empty_carry(q), is_causal=causal, scale=scale), q.dtype
    )
    expected, vjp = jax.vjp(lambda q, k, v: whole(q, k, v, is_causal=causal), q, k, v)
    assert relative(out, expected) < 1e-14
    delta = jnp.einsum("blhk,blhk->bhl", out, d_out)
    found = attention_step_backward(q, k, v, d_out, lse, delta, is_causal=causal, scale=scale)
    for mine, theirs in zip(found, vjp(d_out), strict=True):
        assert relative(mine, theirs) < 1e-13


def test_slices_sum_their_scores_and_values_have_a_width_of_their_own():
    """Four devices with a quarter of q and k each; v stays whole, three wide."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("head_slice",))
    spec, out_spec = P(None, None, None, "head_slice"), P("head_slice")
    q, k, v = draw((1, 6, 2, 8), 0), draw((1, 6, 2, 8), 1), draw((1, 6, 2, 3), 2)

    def local(q, k, v):
        return finish(attention_step(q, k, v, empty_carry(q, 3), is_causal=True, scale=8**-0.5,
                                     partial_over="head_slice"), q.dtype)[0][None]  # fmt: skip

    found = jax.jit(
        jax.shard_map(local, mesh=mesh, in_specs=(spec, spec, P()), out_specs=out_spec)
    )(q, k, v)
    expected = whole(q, k, v, is_causal=True)
    assert found.shape == (4, 1, 6, 2, 3)
    for mine in found:
        assert relative(mine, expected) < 1e-14


def test_score_elements_are_what_a_mask_leaves():
    assert score_elements(40, 30, is_causal=False) == 40 * 30
    assert score_elements(10_000, 10_000, is_causal=False) == 10_000**2
    assert score_elements(10_000, 10_000, is_causal=True) == 20 * 21 // 2 * 500**2


@pytest.mark.parametrize(("window", "offset"), [(50, 0), (300, 200), (70, 1000), (70, -1000)])
@pytest.mark.parametrize(
    "tile", [tiles.shipped_tile((1, 900, *x)) for x in ((16, 128), (8, 128), (8, 512))]
)
def test_blocks_outside_the_window_cost_the_kernel_nothing(tile, window, offset):
    """Counted one by one: a block is visited where some row of the cluster sees some key of it."""
    length, rows = 900, tile.cluster_queries
    back = offset + np.arange(-(-length // rows) * rows)[:, None] - np.arange(length)
    seen = (back >= 0) & (back < window)
    seen = np.pad(seen, ((0, 0), (0, -length % tile.keys)))
    visited = seen.reshape(-(-length // rows), rows, -1, tile.keys).any((1, 3)).sum(1)
    hidden = Mask(False, window=window, offset=offset)
    found = mask.score_elements(hidden, (length, length), rows, tile.keys)
    assert found == np.maximum(visited, 1).sum() * rows * tile.keys
    unknown = hidden._replace(offset=jnp.int32(offset))
    assert mask.score_elements(unknown, (length, length), rows, tile.keys) >= found


def test_short_pieces_do_not_fill_clusters():
    def shipped(length):
        return tiles.shipped((1, length, 16, 512))

    assert shipped(10_000) == shipped(625) == "ahead, cluster"
    for length in (312, 320):  # 5 blocks, or 3 clusters of 2
        assert shipped(length) == "ahead"


@pytest.mark.parametrize(
    ("batch", "length", "heads", "name"),
    [
        (1, 312, 16, "64 rows"),  # 16 x 3 blocks of 128 rows for 132 multiprocessors
        (1, 384, 22, "64 rows"),  # 66, the most
        (1, 385, 22, "turns"),
        (2, 312, 16, "turns"),
        (1, 625, 13, "64 rows"),  # 65
        (1, 625, 16, "turns"),  # 80: some multiprocessor has two blocks of 64 rows
        (1, 10_000, 1, "turns"),
    ],
)
def test_blocks_of_64_rows_run_where_each_has_a_multiprocessor(batch, length, heads, name):
    for head_dim in (64, 128, 256):
        assert tiles.shipped((batch, length, heads, head_dim)) == name
    tile = tiles.CANDIDATES[128]["64 rows"]
    assert (tile.queries, tile.cluster_queries) == (64, 128)


@pytest.mark.parametrize(
    ("length", "heads", "head_dim", "name"),
    [
        (10_000, 16, 128, "turns, persistent"),
        (1024, 16, 256, "turns"),  # 128 tiles: none for which a block is not free
        (1024, 17, 64, "turns, persistent"),
        (10_000, 16, 512, "ahead, cluster, persistent"),
        (312, 64, 512, "ahead"),
        (625, 13, 128, "64 rows"),
    ],
)
def test_blocks_of_whole_attention_persist_where_some_take_several_tiles(
    length, heads, head_dim, name
):
    shape = 1, length, heads, head_dim
    assert tiles.shipped(shape, is_whole=True) == name
    assert tiles.shipped(shape) == name.removesuffix(", persistent")


@pytest.mark.parametrize("tiles", [1, 7, 32, 79])
@pytest.mark.parametrize("heads", [3, 16, 40])
def test_a_schedule_has_every_tile_once_and_ends_at_about_the_same_time(tiles, heads):
    for costs in (np.full(tiles, 40), np.arange(2, tiles + 2)):
        made, times = schedule(costs.tolist(), heads, 132, together=8), []
        for row in made:
            given = row[1 : 1 + row[0]]
            assert not row[1 + row[0] :].any()
            times.append(costs[given % tiles].sum())
        every = np.concatenate([row[1 : 1 + row[0]] for row in made])
        np.testing.assert_array_equal(np.sort(every), np.arange(heads * tiles))
        assert max(times) <= np.mean(times) + costs.max()


def test_a_causal_schedule_is_even_where_one_head_at_a_time_is_not():
    costs = np.arange(2, 34)

    def lateness(together):
        made = schedule(costs.tolist(), 16, 132, together)
        times = [costs[row[1 : 1 + row[0]] % 32].sum() for row in made]
        return max(times) / (costs.sum() * 16 / 132)

    assert lateness(1) > 1.2
    assert lateness(4) < 1.01
    assert lateness(7) == lateness(4)  # no more heads at a time than asked for


@pytest.mark.parametrize("head_dim", [128, 512])
def test_what_a_ring_fills_up_keeps_its_tiling(head_dim):
    for heads in (1, 13, 16, 64):
        for length in range(1, 2000, 7):
            name = tiles.shipped((1, length, heads, head_dim))
            rows = tiles.CANDIDATES[head_dim][name].cluster_queries
            assert tiles.shipped((1, -(-length // rows) * rows, heads, head_dim)) == name


def test_segment_ids_of_one_side_alone_are_refused():
    q, k, v = draw((1, 12, 2, 4), 0), draw((1, 24, 2, 4), 1), draw((1, 24, 2, 4), 2)
    ids = jnp.zeros((1, 24), jnp.int32)
    with pytest.raises(ValueError, match="kv_segment_ids came without q_segment_ids"):
        attention_step(q, k, v, None, is_causal=False, scale=1.0, kv_segment_ids=ids)


def test_steps_chain():
    q, k, v = draw((1, 12, 2, 4), 0), draw((1, 24, 2, 4), 1), draw((1, 24, 2, 4), 2)
    carry = empty_carry(q)
    for part in (slice(0, 10), slice(10, 24)):
        carry = attention_step(q, k[:, part], v[:, part], carry, is_causal=False, scale=0.5)
    expected = whole(q, k, v)
    assert relative(finish(carry, q.dtype)[0], expected) < 1e-14


def test_kv_length_hides_the_rest():
    q, k, v = draw((1, 6, 1, 4), 0), draw((1, 9, 1, 4), 1), draw((1, 9, 1, 4), 2)
    limit = jnp.asarray(5, jnp.int32)
    step = attention_step(q, k, v, empty_carry(q), is_causal=False, scale=0.5, kv_length=limit)
    expected = whole(q, k[:, :5], v[:, :5])
    assert relative(finish(step, q.dtype)[0], expected) < 1e-14


def test_rows_that_see_nothing_stay_empty():
    q, k = draw((1, 3, 1, 4), 0), draw((1, 3, 1, 4), 1)
    mine, theirs = jnp.ones((1, 3), jnp.int32), jnp.zeros((1, 3), jnp.int32)
    carry = attention_step(
        q, k, k, empty_carry(q), is_causal=False, scale=1.0,
        q_segment_ids=mine, kv_segment_ids=theirs,
    )  # fmt: skip
    assert bool((carry.l == 0).all())
    assert bool((finish(carry, q.dtype)[0] == 0).all())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_sums_are_float32(dtype):
    q = draw((1, 4, 1, 4), 0).astype(dtype)
    carry = attention_step(q, q, q, empty_carry(q), is_causal=True, scale=0.5)
    assert {x.dtype for x in carry} == {jnp.dtype("float32")}
    assert finish(carry, q.dtype)[0].dtype == dtype


def test_a_causal_mask_costs_half_at_ten_thousand_tokens():
    _, count, size = reference._cut(10_000)
    assert count * size == 10_000  # no padding
    assert (count + 1) / (2 * count) <= 0.55


def test_cut_covers_every_length():
    for length in [1, 7, 1024, 1025, 4999, 10_007, 32_768]:
        _, count, size = reference._cut(length)
        assert (count - 1) * size < length <= count * size


def test_an_implementation_that_does_not_exist_names_one_that_does():
    q = draw((1, 4, 1, 4), 0)
    with pytest.raises(NotImplementedError, match="implementation='xla'"):
        attention_step(q, q, q, empty_carry(q), is_causal=False, scale=1.0, implementation="magic")


@pytest.mark.parametrize(
    ("implementation", "dtype", "head_dim", "options", "reason"),
    [
        ("cudnn", "bfloat16", 64, {}, "neither takes nor returns"),
        ("mosaic", "float32", 64, {}, "inputs are float32"),
        ("mosaic", "bfloat16", 96, {}, "head_dim is 96"),
        ("mosaic", "bfloat16", 64, {"cap": 30.0}, "capped scores"),
        ("mosaic", "bfloat16", 64, {"partial_over": "x"}, "sum scores"),
        ("mosaic", "bfloat16", 64, {"scale": -1.0}, "positive"),
        ("mosaic", "bfloat16", 64, {}, "for Hopper GPUs .* for 'cpu'"),
    ],
)
def test_what_an_implementation_cannot_do_it_refuses(
    implementation, dtype, head_dim, options, reason
):
    q = draw((1, 4, 1, head_dim), 0).astype(dtype)
    with pytest.raises(NotImplementedError, match=reason) as refused:
        attention_step(
            q, q, q, empty_carry(q), is_causal=False, implementation=implementation,
            **{"scale": 1.0, **options},
        )  # fmt: skip
    assert "implementation='xla'" in str(refused.value)


def test_causal_blocks_of_unequal_length_are_refused():
    q, k = draw((1, 4, 1, 4), 0), draw((1, 6, 1, 4), 0)
    with pytest.raises(ValueError, match="4 queries and 6 keys"):
        attention_step(q, k, k, empty_carry(q), is_causal=True, scale=1.0)


def blocks_of(q_ids, kv_ids, rows, block, **options):
    """Numbers of the blocks that each tile visits, by [sequence][tile]."""
    sight = Mask(False, **options).known(kv_ids.shape[1])
    tiles = np.broadcast_to(
        np.arange(0, q_ids.shape[1], rows), (len(q_ids), -(-q_ids.shape[1] // rows))
    )
    shared = np.moveaxis(np.asarray(mask.shared_blocks(q_ids, kv_ids, rows, block)), -1, 0)
    first, count = sight.visits(tiles, rows, block, kv_ids.shape[1], shared)
    return [[set(range(*x)) for x in zip(*y, strict=True)]
            for y in zip(first, first + count, strict=True)]  # fmt: skip


@pytest.mark.parametrize(
    ("documents", "rows", "block"), [(8, 128, 128), (4, 64, 128), (5, 128, 64)]
)
def test_packed_documents_cost_the_kernel_their_own_blocks(documents, rows, block):
    """A document of D tokens is D / block blocks for each tile in it; two, where it ends inside."""
    one = 256
    length, blocks = documents * one, one // block
    ids = np.arange(length, dtype=np.int32)[None] // one
    visited = blocks_of(ids, ids, rows, block)[0]
    assert [len(x) for x in visited] == [blocks] * (length // rows)
    assert visited[-1] == set(range((documents - 1) * blocks, documents * blocks))
    shifted = blocks_of(ids[:, rows // 2 : -rows // 2], ids, rows, block)[0]
    assert [len(x) for x in shifted[one // rows - 1 :: one // rows]] == [2 * blocks] * (
        documents - 1
    )
    windowed = blocks_of(ids, ids, rows, block, window=1)[0]
    assert [len(x) for x in windowed] == [-(-rows // block)] * (length // rows)


def test_segments_of_any_order_visit_what_may_match_and_no_sequence_another():
    random = np.random.default_rng(0)
    q_ids = random.integers(-9, 9, (3, 300))
    kv_ids = np.concatenate([np.full((3, 128), 99), random.integers(-9, 9, (3, 250))], 1)
    q_ids[2], kv_ids[2, :200] = 7, -7
    for ours, mine, theirs in zip(blocks_of(q_ids, kv_ids, 64, 32), q_ids, kv_ids, strict=True):
        for tile, visited in enumerate(ours):
            seen = np.isin(theirs, mine[64 * tile : 64 * tile + 64]).nonzero()[0] // 32
            assert set(seen) <= visited
            assert min(visited) >= 4
    assert blocks_of(q_ids[:1], q_ids[:1] + 100, 64, 32) == [[set()] * 5]
