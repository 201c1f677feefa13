"""Deployment: the unsharded model's tokens, whatever is lost; nothing reads a lost device."""

import random

import jax
import numpy as np
import pytest

from parallax.engine.deployment import Deployment, DeviceLost, Event
from parallax.engine.deployment.chain import compile_chain
from parallax.engine.deployment.failover import likely_layouts
from parallax.engine.deployment.reference import unsharded_params, unsharded_tokens
from parallax.engine.deployment.stages import programs_compiled
from parallax.engine.deployment.trials import lose_at_random
from parallax.lenses.child import run_in_child
from parallax.lenses.environment import cpu_environment
from parallax.models.compressing import compress_params
from parallax.models.layer_kinds import LayerKind
from tests.engine.deployment.cases import (
    CONFIG,
    MIXED,
    NEW,
    PROMPTS,
    TWO,
    deployment,
    expected,
    generate,
    losing,
    params,
    tokens,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def with_spare():
    made = deployment(5, spares=1)
    made.prepare()
    return made


@pytest.fixture(scope="module")
def without():
    made = deployment(4)
    made.prepare()
    return made


def test_tokens_are_the_unsharded_models(with_spare):
    served = generate(with_spare)
    assert served.continuations == expected()
    assert len({t for row in tokens(expected()) for t in row}) > 6
    assert served.latency.new_tokens == NEW * len(PROMPTS)
    assert served.recoveries == served.switches == ()


def test_a_window_hides_tokens_here_too():
    config = TWO.replace(num_layers=2, pattern=(LayerKind(window=3),), norms="both")
    served = generate(deployment(2, config=config))
    assert served.continuations == expected(config)
    assert tokens(expected(config)) != tokens(expected(config.replace(pattern=())))


def test_a_stop_token_ends_its_sequence_alone(without):
    stop = expected()[0].tokens[3]
    for one, free in zip(generate(without, stop_tokens=[stop]).continuations, expected(),
                         strict=True):  # fmt: skip
        cut = free.tokens.index(stop) if stop in free.tokens else NEW
        assert one.tokens == free.tokens[:cut]
        assert one.finished == ("stop" if stop in free.tokens else "length")


@pytest.mark.parametrize(("fixture", "seed"), [("with_spare", 1), ("without", 2)])
def test_twenty_random_moments_change_nothing(request, fixture, seed):
    made = request.getfixturevalue(fixture)
    before = made.layout
    trials = lose_at_random(made, PROMPTS, expected(), NEW, 20, seed=seed, prepare=True)
    assert trials[0].event == Event(0, 0, 0)
    assert len({t.event for t in trials}) > 12
    assert {t.event.number for t in trials} >= {0, 1, 2}
    assert [(t.lost_requests, t.changed_tokens) for t in trials] == [(0, 0)] * 20
    for trial in trials:
        found = trial.recovery
        assert found.lost == (trial.device,)
        assert found.kind == "simulated"
        assert found.moved_layers
        assert found.compiled_programs == 0  # ahead
        assert found.resume_s == pytest.approx(
            found.detect_s + found.place_s + found.move_s + found.compile_s + found.recompute_s
        )
        assert (found.recomputed_layers > 0) == (found.recomputed_tokens > 0)
    assert sum(t.recovery.recomputed_layers > 0 for t in trials) > 8
    assert made.layout.groups == before.groups


def on_seventeen(*, on_progress):
    """16 layers on 16 devices with a spare and without one: 20 losses each."""
    config = CONFIG.replace(num_layers=16)
    right = unsharded_tokens(config, params(config), PROMPTS, NEW)
    found = []
    for devices, spares in ((17, 1), (16, 0)):
        made = Deployment(config, params(config), jax.devices()[:devices], batch=3, max_len=24,
                          spares=spares)  # fmt: skip
        # Without a spare four devices are lost again and again: 24 programs fewer to compile.
        some = None if spares else (0, 15, 7, 8)
        trials = lose_at_random(made, PROMPTS, right, NEW, 20, seed=devices, devices=some)
        found.append([(t.device, t.lost_requests, t.changed_tokens, t.recovery) for t in trials])
    return found


@pytest.mark.full
def test_sixteen_devices_and_seventeen():
    spare, none = run_in_child(on_seventeen, environment=cpu_environment(17))
    for rows in (spare, none):
        assert [row[1:3] for row in rows] == [(0, 0)] * 20
    assert len({row[0] for row in spare}) > 8
    assert all(row[3].spares and len(row[3].layers) == 1 for row in spare)
    assert not any(row[3].spares for row in none)
    assert any(row[3].compiled_programs for row in none)  # nothing was prepared
    # Only what was on the lost device moves.
    assert all(row[3].moved_layers == row[3].layers for row in none)


def test_reads_of_what_is_gone_are_refused(with_spare):
    held = []

    def on_event(event):
        if event == Event(2, 0, 1) and not held:  # it comes again after the recovery
            memory = with_spare.chain.memories[with_spare.layout.devices[2]]
            names = memory.names()
            assert {"weights", "kv"} <= {name[0] for name in names}
            held.extend(x for name in names for x in jax.tree.leaves(memory.read(name)))
            with_spare.lose(memory.number)
            for name in names:
                with pytest.raises(DeviceLost, match=r"lost \(simulated\)"):
                    memory.read(name)
            with pytest.raises(DeviceLost):
                memory.put(("x", 0), np.zeros(1))

    served = generate(with_spare, on_event=on_event)
    assert served.continuations == expected()
    assert held
    assert all(x.is_deleted() for x in held)
    with pytest.raises(RuntimeError, match="deleted"):
        np.asarray(held[0])
    with_spare.repair(served.recoveries[0].lost[0])


@pytest.mark.full
def test_every_layer_its_own_formats():
    made = deployment(3, formats=MIXED)
    dense = unsharded_params(made.chain.host, MIXED)
    right = unsharded_tokens(CONFIG, dense, PROMPTS, NEW)
    assert right != expected()  # compression is another function
    served = generate(made, on_event=losing(made, (Event(3, 1, 1), made.layout.devices[1])))
    assert served.continuations == right


@pytest.mark.full
def test_rounded_activations_too():
    """w8a8 rounds activations: held against the model that is compressed as a whole."""
    served = generate(deployment(2, config=TWO, formats="w8a8"))
    whole = TWO.replace(compression=("w8a8", "w8a8"))
    compressed = compress_params(params(TWO), whole)
    assert served.continuations == unsharded_tokens(whole, compressed, PROMPTS, NEW)


def test_bytes_are_placements(with_spare):
    seen = []

    def on_event(event):
        if event == Event(2, 0, 0):
            seen.append([with_spare.device_bytes(kind) for kind in ("weights", "kv")])

    generate(with_spare, on_event=on_event)
    footprints = with_spare.chain.sizes.footprints(with_spare.layout.formats)
    for kind, held in zip(("weights", "kv"), seen[0], strict=True):
        for device, group in zip(with_spare.layout.devices, with_spare.layout.groups, strict=True):
            assert held[device] == sum(getattr(footprints[i], kind) for i in group)
    ends = CONFIG.vocab_size * CONFIG.d_model * 8
    assert sum(with_spare.device_bytes("first")) == ends
    assert sum(with_spare.device_bytes("last")) == ends + CONFIG.d_model * 8


def test_compressed_bytes_are_placements_and_move_as_such():
    made = deployment(3, formats=MIXED)
    sizes = [f.weights for f in made.chain.sizes.footprints(MIXED)]
    assert sum(made.device_bytes("weights")) == sum(sizes)
    lost = made.layout.devices[1]
    layers = made.layout.layers_on(lost)
    made.lose(lost)
    made.settle()
    (found,) = made.recoveries
    assert found.layers == tuple(layers)
    assert found.host_to_device_bytes == sum(sizes[i] for i in layers)
    assert found.device_to_device_bytes == 0


def test_what_is_compiled_ahead_is_not_compiled_again(without):
    """The next layouts of a deployment that was prepared cost nothing to compile."""
    layouts = likely_layouts(without.chain)
    assert len(layouts) == 4
    before = programs_compiled()
    for layout in layouts:
        compile_chain(without.chain, layout)
    assert programs_compiled() == before


def test_losses_between_calls_are_noticed_in_the_next(without):
    draw = random.Random(3)
    device = draw.choice(without.layout.devices)
    without.lose(device)
    served = generate(without)
    assert served.continuations == expected()
    assert [r.lost for r in served.recoveries] == [(device,)]
    assert served.recoveries[0].recomputed_tokens == 0
    without.repair(device)
    assert without.layout.devices == (0, 1, 2, 3)


def test_greedy_leaves_the_last_devices_as_spares():
    layer = deployment(4).chain.sizes.footprints((("float64", "float64"),) * 4)[0].total
    table = CONFIG.vocab_size * CONFIG.d_model * 8
    made = deployment(4, rule="greedy", budget=2 * layer + table + CONFIG.d_model * 8)
    assert [len(g) for g in made.layout.groups] == [2, 2] or len(made.layout.devices) < 4
    assert made.spares == tuple(range(len(made.layout.devices), 4))
    assert max(made.device_bytes()) <= 2 * layer + table + CONFIG.d_model * 8
    assert generate(made).continuations == expected()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"devices": 5}, "4 layers for 5 devices"),
        ({"devices": 3, "spares": 3}, "3 spares of 3 devices"),
        ({"budget": 0}, "budget 0: nothing fits into no bytes"),
        ({"budget": 50_000}, r"layer 0 takes \d+ bytes .* a device has 50000"),
        ({"devices": 2, "budget": 180_000}, "do not fit 2 devices of 180000 bytes"),
        ({"formats": "int3"}, "unknown format 'int3'"),
        ({"formats": MIXED[:2]}, "2 formats for 4 layers"),
        ({"formats": "int8+5:7"}, "multiples of"),
        ({"config": CONFIG.replace(causal=False)}, "not causal"),
        ({"config": CONFIG.replace(compression=("int8", "int8"))}, "dense parameters and formats="),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_error(options, message):
    with pytest.raises(ValueError, match=message):
        deployment(weights=params(), **options)


def test_copies_on_a_spare_add_up_to_its_budget():
    layer = deployment(4).chain.sizes.footprints((("float64", "float64"),) * 4)[0]
    table = CONFIG.vocab_size * CONFIG.d_model * 8 + CONFIG.d_model * 8
    made = deployment(5, spares=1, budget=layer.total + table)
    fitting = (layer.total + table) // layer.weights
    assert 0 < fitting < 4
    for number in range(fitting):
        made.replicate([number, number], 4)
        made.replicate([number], 4)  # is there already
    assert made.device_bytes("weights")[4] == fitting * layer.weights
    with pytest.raises(ValueError, match=r"bytes more, device 4 holds \d+ and its budget"):
        made.replicate([fitting], 4)
