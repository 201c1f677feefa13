"""Cache pressure: stronger formats when the hit rate stays low, back when high, no flapping."""

import pytest

from parallax.engine.deployment import Event, Pressure
from parallax.engine.deployment.memory import DeviceLost, DeviceMemory
from parallax.engine.deployment.pressure import step_bytes
from parallax.engine.deployment.stages import programs_compiled
from parallax.engine.deployment.trials import switch_while_serving
from parallax.engine.latency import spread
from tests.engine.deployment.cases import CONFIG, NEW, PROMPTS, deployment, expected, params

DENSE, STRONG = ("float64", "float64"), ("int8", "int8+2:4")
TWO = CONFIG.replace(num_layers=2)


@pytest.fixture(scope="module")
def made():
    found = deployment(2, config=TWO)
    found.prepare_switch([0, 1], STRONG)
    found.prepare()
    return found


def generate(made, **options):
    return made.generate(PROMPTS, max_new_tokens=NEW, **options)


def switch_repeatedly(made, layer, count):
    return [made.switch(layer) for _ in range(count)]


def back_to_dense(made):
    for layer, pair in enumerate(made.layout.formats):
        if pair == STRONG:
            made.switch(layer)


def weights(made, pair):
    return made.chain.sizes.footprints((pair,) * 2)[0].weights


@pytest.mark.slow
def test_both_kinds_of_weights_are_counted(made):
    both = weights(made, DENSE) + weights(made, STRONG)
    assert made.device_bytes("weights") == (both, both)


def test_there_and_back_by_a_pointer(made):
    compiled = programs_compiled()
    there, back = switch_repeatedly(made, 1, 2)
    assert (there.was, there.now) == (DENSE, STRONG) == (back.now, back.was)
    assert there.source == "device"
    assert there.copied_bytes == 0
    assert programs_compiled() == compiled
    assert made.layout.formats == (DENSE, DENSE)
    assert generate(made).continuations == expected(TWO)


def test_a_switched_model_is_the_compressed_one(made):
    """Both layers switched: the tokens of a model that was compressed from the beginning."""
    always = deployment(2, config=TWO, formats=(STRONG,) * 2)
    switch_repeatedly(made, 0, 1)
    switch_repeatedly(made, 1, 1)
    served, right = generate(made), generate(always)
    back_to_dense(made)
    assert served.continuations == right.continuations != expected(TWO)


def test_prepared_on_the_host_is_copied(made):
    found = deployment(2, config=TWO)
    assert found.prepare_switch([0], STRONG, where="host") == 0
    (there,) = switch_repeatedly(found, 0, 1)
    assert there.source == "host"
    assert there.copied_bytes == weights(found, STRONG) == found.device_bytes("weights")[0]
    assert there.modelled.from_host_s > there.modelled.from_device_s > 0


def test_a_reported_rate_switches_after_patience_and_back(made):
    rates = iter([0.99, 0.5, 0.95, 0.5, 0.5, 0.99, 0.99, 0.99])
    reported = {}

    def rate(device):
        reported[device] = next(rates) if device == 0 else 0.95
        return reported[device]

    pressure = Pressure(low=0.9, high=0.97, patience=2, reported=rate)
    made.generate(PROMPTS, max_new_tokens=NEW, pressure=pressure)
    served = made.generate(PROMPTS[:1], max_new_tokens=2, pressure=pressure)
    found = [s for s in made.switches if "reported" in s.reason][-2:]
    assert [(s.layer, s.now) for s in found] == [(0, STRONG), (0, DENSE)]
    assert found[0].number == 5  # 0.5 once was not enough
    assert "hit rate 0.500 (reported) below 0.9" in found[0].reason
    assert served.switches == (found[1],)


def test_a_rate_between_the_thresholds_changes_nothing(made):
    before = made.switches
    generate(made, pressure=Pressure(low=0.9, high=0.97, patience=1, reported=lambda d: 0.93))
    assert made.switches == before


def test_a_growing_cache_switches_once_and_does_not_flap(made):
    """Modelled: weights fit until keys and values of the new tokens come."""
    start = sum(map(len, PROMPTS)) + 1 + 3
    cache = int(0.9 * step_bytes(made.chain, 0, start + 4))
    pressure = Pressure(low=0.9, high=0.95, patience=1, cache_bytes=cache)
    served = generate(made, pressure=pressure)
    assert [s.layer for s in served.switches] == [0, 1]  # one a device, once
    assert all(s.now == STRONG and s.number > 1 for s in served.switches)
    assert all("modelled" in s.reason for s in served.switches)
    assert [len(c.tokens) for c in served.continuations] == [NEW] * 3
    first = min(s.number for s in served.switches)
    for got, free in zip(served.continuations, expected(TWO), strict=True):
        assert got.tokens[:first] == free.tokens[:first]  # none changes before
    # The texts are gone: no pressure, and the layers go back.
    after = made.generate([[1]], max_new_tokens=4, pressure=pressure)
    assert [(s.layer, s.now) for s in after.switches] == [(0, DENSE), (1, DENSE)]


def test_a_loss_while_switched_keeps_the_formats(made):
    found = deployment(3, spares=1, config=TWO)
    found.prepare_switch([0, 1], STRONG)
    found.switch(1)
    gone = []

    def on_event(event):
        if event == Event(2, 0, 1) and not gone:
            gone.append(found.lose(1))

    served = generate(found, on_event=on_event)
    switch_repeatedly(made, 1, 1)
    right = generate(made)
    back_to_dense(made)
    assert served.continuations == right.continuations
    both = weights(found, DENSE) + weights(found, STRONG)
    assert found.recoveries[0].host_to_device_bytes == both + sum(found.device_bytes("last"))


def test_many_switches_while_requests_run(made):
    before = made.layout
    found = switch_while_serving(made, PROMPTS, NEW, [0, 1], 8)
    assert [(s.layer, s.now) for s in found[:4]] == [
        (0, STRONG),
        (0, DENSE),
        (1, STRONG),
        (1, DENSE),
    ]
    assert [s.number for s in found] == [1, 2, 3, 4, 5, 1, 2, 3]
    assert made.layout == before
    assert generate(made).continuations == expected(TWO)


def test_spread():
    assert spread([float(i) for i in range(100)]) == {"p50": 50, "p90": 90, "p99": 99, "max": 99}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: d.prepare_switch([9], STRONG), "no layer 9; the model has 2"),
        (lambda d: d.prepare_switch([0], DENSE), "Give a stronger one"),
        (lambda d: d.prepare_switch([0], ("int3", "int3")), "unknown format"),
        (lambda d: d.prepare_switch([0], STRONG, where="disk"), "must be device or host"),
        (lambda d: d.switch(1), "layer 1 has no other formats prepared"),
        (lambda d: Pressure(low=0.9, high=0.8, cache_bytes=1), "low < high"),
        (lambda d: Pressure(), "cache_bytes .* or reported"),
        (lambda d: Pressure(cache_bytes=0), "above 0"),
        (lambda d: d.generate([[1]], max_new_tokens=1, pressure=Pressure(reported=lambda x: 2.0)),
         "reported a hit rate of 2.0"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call(deployment(2, config=TWO))


def test_what_does_not_fit_beside_is_refused():
    table = TWO.vocab_size * TWO.d_model * 8 + TWO.d_model * 8
    layer = deployment(2, config=TWO).chain.sizes.footprints((DENSE,) * 2)[0].total
    tight = deployment(2, config=TWO, weights=params(TWO), budget=table + layer + 100)
    with pytest.raises(ValueError, match=r"budget is \d+. Use where='host'"):
        tight.prepare_switch([0], STRONG)


def one_layer_budget():
    table = TWO.vocab_size * TWO.d_model * 8 + TWO.d_model * 8
    layer = deployment(2, config=TWO).chain.sizes.footprints((DENSE,) * 2)[0].total
    return table + layer + 100


def test_a_switch_from_the_host_never_holds_both(monkeypatch):
    """Also for a event: the larger copy comes when the smaller one is gone."""
    budget = one_layer_budget()
    made, most = deployment(2, config=TWO, budget=budget), []
    made.prepare_switch([0, 1], STRONG, where="host")
    put = DeviceMemory.put

    def watched(memory, name, tree):
        placed = put(memory, name, tree)
        kv = made.chain.sizes.footprints(made.layout.formats)[0].kv
        most.append(memory.n_bytes() + kv)
        return placed

    monkeypatch.setattr(DeviceMemory, "put", watched)
    for layer in (0, 0, 1, 1):
        made.switch(layer)
    assert len(most) == 4
    assert max(most) <= budget
    assert made.layout.formats == (DENSE, DENSE)


def test_a_format_that_no_longer_fits_is_refused_and_left():
    """After a loss two strong layers share a device that has no room for both in the mild one."""
    table = TWO.vocab_size * TWO.d_model * 8
    found = deployment(2, config=TWO)
    kv = found.chain.sizes.footprints((DENSE,) * 2)[0].kv
    tables = 2 * table + TWO.d_model * 8
    budget = tables + 2 * kv + weights(found, DENSE) + weights(found, STRONG) - 1
    made = deployment(2, config=TWO, budget=budget)
    made.prepare_switch([0, 1], STRONG, where="host")
    for layer in (0, 1):
        made.switch(layer)
    made.lose(0)
    made.settle()
    assert made.layout.devices == (1,)
    with pytest.raises(ValueError, match="would hold more than its budget"):
        made.switch(0)
    calm = Pressure(low=0.9, high=0.97, patience=1, reported=lambda d: 1.0)
    assert generate(made, pressure=calm).switches == ()
    assert max(made.device_bytes()) <= budget
    assert made.layout.formats == (STRONG, STRONG)


def test_preparing_notices_a_loss_first():
    made = deployment(3, spares=1, config=TWO)
    made.lose(1)
    assert made.prepare_switch([0, 1], STRONG) == 2 * weights(made, STRONG)
    assert [r.lost for r in made.recoveries] == [(1,)]
    assert set(made.chain.prepared) == {0, 1}
    assert made.switch(1).device == 2


def test_a_failed_preparation_prepares_nothing(monkeypatch):
    made = deployment(2, config=TWO)
    put = DeviceMemory.put

    def failing(memory, name, tree):
        if memory.number == 1:
            raise DeviceLost(1, memory.device)
        return put(memory, name, tree)

    monkeypatch.setattr(DeviceMemory, "put", failing)
    with pytest.raises(DeviceLost):
        made.prepare_switch([0, 1], STRONG)
    assert made.chain.prepared == {}


def test_switches_need_two_tokens(made):
    with pytest.raises(ValueError, match="switches happen between tokens: .* at least 2, got 1"):
        switch_while_serving(made, PROMPTS, 1, [0], 2)


def test_a_modelled_rate_says_what_it_assumes(made):
    cache = int(0.5 * step_bytes(made.chain, 0, 1))
    pressure = Pressure(patience=1, cache_bytes=cache)
    served = made.generate([[1]], max_new_tokens=2, pressure=pressure)
    back_to_dense(made)
    assert "(modelled: the share that fits) below 0.9" in served.switches[0].reason
