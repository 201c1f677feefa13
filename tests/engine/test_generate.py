"""Generating text: the same tokens under every strategy, whatever is padded; times; errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from parallax.engine.generate import Generator
from parallax.engine.latency import Latency, percentile
from parallax.engine.sampling import Sampling, next_tokens, same_on_all
from parallax.meshes.mesh import MeshSpec
from parallax.programs.sharded_model import ShardedTransformer
from parallax.strategies import data_parallel, hybrid, layerwise, ring_sequence, tensor_pipeline
from parallax.workload import Workload
from tests.strategies.cases import SMALL

pytestmark = pytest.mark.slow

CONFIG = SMALL.replace(dtype="float32")
PROMPTS = [list(b"def add("), list(b"import jax.numpy as jnp\n"), list(b"x")]
STRATEGIES = {
    "one device": data_parallel(1),
    "data_parallel": data_parallel(4),
    "ring x tensor": hybrid(ring_sequence(2), tensor_pipeline(2, 1)),
    "layerwise": layerwise(2),
}


def generator(strategy, config=CONFIG):
    mesh = strategy.mesh.build(jax.devices()[: strategy.mesh.size])
    sharded = ShardedTransformer(config, strategy, Workload(16, 16))
    return Generator(config, strategy, sharded.init(jax.random.key(0), mesh), mesh)


@pytest.fixture(scope="module")
def generators():
    return {name: generator(strategy) for name, strategy in STRATEGIES.items()}


def tokens(generation):
    return [c.tokens for c in generation.continuations]


@pytest.mark.parametrize(
    "sampling",
    [
        pytest.param(Sampling(), id="greedy"),
        pytest.param(
            Sampling(temperature=0.8, top_k=20, top_p=0.9, seed=3),
            id="drawn",
            marks=pytest.mark.full,
        ),
    ],
)
def test_the_same_tokens_under_every_strategy(generators, sampling):
    found = {
        name: tokens(g(PROMPTS, max_new_tokens=12, sampling=sampling))
        for name, g in generators.items()
    }
    exact = found.pop("one device")
    assert [len(row) for row in exact] == [12, 12, 12]
    assert len({t for row in exact for t in row}) > 6
    for name, rows in found.items():
        assert rows == exact, name


def test_a_prompt_alone_and_among_others_continues_alike(generators):
    together = tokens(generators["ring x tensor"](PROMPTS, max_new_tokens=8))
    for prompt, row in zip(PROMPTS, together, strict=True):
        assert tokens(generators["ring x tensor"]([prompt], max_new_tokens=8)) == [row]


def test_stop_tokens_end_a_sequence_and_are_left_out(generators):
    run = generators["one device"]
    whole = tokens(run(PROMPTS, max_new_tokens=12))
    stop = whole[0][4]
    seen = []
    generation = run(
        PROMPTS, max_new_tokens=12, stop_tokens=[stop], on_token=lambda *x: seen.append(x)
    )
    for row, (one, free) in enumerate(zip(generation.continuations, whole, strict=True)):
        cut = free.index(stop) if stop in free else 12
        assert one.tokens == free[:cut]
        assert one.finished == ("stop" if stop in free else "length")
        assert [t for r, t in seen if r == row] == list(one.tokens)
    assert generation.continuations[0].finished == "stop"


def test_all_stopped_ends_early(generators):
    run = generators["one device"]
    first = tokens(run(PROMPTS[:1], max_new_tokens=12))[0][0]
    generation = run(PROMPTS[:1], max_new_tokens=12, stop_tokens=[first])
    assert generation.continuations[0].tokens == ()
    assert generation.latency.itl_s == ()


def test_latency_counts_real_tokens_only(generators):
    generation = generators["data_parallel"](PROMPTS, max_new_tokens=5)
    latency = generation.latency
    assert latency.prompt_tokens == sum(map(len, PROMPTS))
    assert latency.new_tokens == 15
    assert len(latency.itl_s) == 4
    assert latency.total_s == pytest.approx(latency.ttft_s + sum(latency.itl_s))
    assert any("batch of 4" in note for note in generation.notes)
    assert any("TTFT" in line and "TPOT" in line for line in latency.lines())


def test_tpot_is_mlperfs():
    latency = Latency(10, 4, ttft_s=0.5, itl_s=(0.1, 0.2, 0.3), total_s=1.1, compile_s=0.0)
    assert latency.tpot_s == pytest.approx((1.1 - 0.5) / 3)
    assert latency.tokens_per_s == pytest.approx(4 / 1.1)
    assert percentile((3.0, 1.0, 2.0), 0.99) == 3.0


def test_replicated_decoding_is_said(generators):
    (note,) = [
        n for n in generators["ring x tensor"](PROMPTS, max_new_tokens=2).notes if "seq" in n
    ]
    assert "computes the same sequences" in note


LEARNED = CONFIG.replace(positions="learned", max_seq_len=20)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": []}, "no prompt"),
        ({"prompts": [[1], []]}, "prompt 1 is empty"),
        ({"prompts": [[1, 256]]}, "token 256.*0 to 255"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1"),
        ({"cache_len": 12}, "prompt 1 has 24 tokens.*room for 12.*at least 28"),
        ({"stop_tokens": [-1]}, "stop token -1"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_bad_input_is_one_clear_error(generators, arguments, message):
    arguments = {"prompts": PROMPTS, "max_new_tokens": 4} | arguments
    with pytest.raises(ValueError, match=message):
        generators["one device"](arguments.pop("prompts"), **arguments)


def test_learned_positions_have_an_end():
    run = generator(STRATEGIES["one device"], LEARNED)
    with pytest.raises(ValueError, match="learned positions for 20"):
        run([[1] * 18], max_new_tokens=3)
    assert len(run([[1] * 17], max_new_tokens=3).continuations[0].tokens) == 3


def draws(sampling, logits, count=400):
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (count, len(logits)))
    return np.asarray(next_tokens(rows, sampling, 0))


LOGITS = np.log([0.5, 0.25, 0.15, 0.1])


def test_sampling_draws_what_it_says():
    free = draws(Sampling(temperature=1.0), LOGITS, 4000)
    assert np.bincount(free, minlength=4) / 4000 == pytest.approx(np.exp(LOGITS), abs=0.03)
    assert set(draws(Sampling(temperature=1.0, top_k=2), LOGITS)) == {0, 1}
    # 0.5 + 0.25 reach 0.7; half of it is reached by the first alone.
    assert set(draws(Sampling(temperature=1.0, top_p=0.7), LOGITS)) == {0, 1}
    assert set(draws(Sampling(temperature=1.0, top_p=0.5), LOGITS)) == {0}
    # Of the three that top_k leaves the first two have 0.83.
    assert set(draws(Sampling(temperature=1.0, top_k=3, top_p=0.8), LOGITS)) == {0, 1}
    cold = draws(Sampling(temperature=0.1), LOGITS)
    assert (cold == 0).mean() > 0.95
    assert set(draws(Sampling(), LOGITS)) == {0}
    assert (draws(Sampling(temperature=1.0, seed=1), LOGITS) != free[:400]).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": 1.0, "top_k": 0}, "top_k"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p"),
        ({"top_k": 5}, "at temperature 0"),
    ],
)
def test_sampling_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


COPIES = {
    (): [0] * 8,
    ("data",): [0] * 4 + [4] * 4,
    ("data", "tensor"): [0, 0, 1, 1, 4, 4, 5, 5],
}


@pytest.mark.parametrize("axes", COPIES, ids=str)
def test_of_copies_that_differ_one_is_taken_by_all(axes):
    mesh = MeshSpec({"data": 2, "seq": 2, "tensor": 2}).build(jax.devices()[:8])
    sharding = NamedSharding(mesh, PartitionSpec(axes or None))
    numbers = np.arange(8, dtype=np.int32)
    # Each device adds ten times its own number, so that copies differ.
    held = [
        jax.device_put(numbers[index] + np.int32(10 * device.id), device)
        for device, index in sharding.addressable_devices_indices_map((8,)).items()
    ]
    tokens = jax.make_array_from_single_device_arrays((8,), sharding, held)
    replicated, share = same_on_all(sharding)
    found = jax.jit(share, out_shardings=replicated)(tokens)
    for shard in found.addressable_shards:
        np.testing.assert_array_equal(shard.data, numbers + 10 * np.array(COPIES[axes]))
