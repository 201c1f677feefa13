"""Losses of devices, spares included, one or several in a row: recovery changes no token."""

import pytest

from parallax.engine.deployment import Event
from tests.engine.deployment.cases import (
    CONFIG,
    NEW,
    PROMPTS,
    TWO,
    deployment,
    expected,
    generate,
    losing,
)

pytestmark = pytest.mark.slow

TIED = CONFIG.replace(tie_embeddings=True, positions="learned", num_layers=2, norm="layernorm",
                      mlp="gelu", bias=True)  # fmt: skip


@pytest.mark.parametrize(
    "losses",
    [
        ((Event(1, 0, 0), 0), (Event(1, 0, 2), 1)),  # one after the other in one step
        ((Event(0, 1, 3), 3), (Event(4, 1, 1), 0)),  # last in a prefill, first while decoding
        ((Event(0, 1, 2), 2), (Event(1, 1, 1), 3), (Event(5, 0, 0), 1)),
    ],
)
def test_several_losses_in_a_row(losses):
    made = deployment(4)
    served = generate(made, on_event=losing(made, *losses))
    assert served.continuations == expected()
    assert {d for r in served.recoveries for d in r.lost} == {d for _, d in losses}
    assert not {d for _, d in losses} & set(made.layout.devices)
    assert made.device_bytes("weights")[losses[0][1]] == 0


def test_a_spare_that_is_gone_itself_is_found_out():
    made = deployment(5, spares=1)
    served = generate(made, on_event=losing(made, (Event(1, 0, 0), 4), (Event(2, 1, 2), 1)))
    assert served.continuations == expected()
    (found,) = served.recoveries
    assert found.lost == (1, 4)
    assert found.spares == ()
    assert made.layout.devices == (0, 2, 3)


def test_a_spare_lost_between_calls_is_noticed():
    made = deployment(5, spares=1)
    made.lose(4)
    served = generate(made)
    assert served.continuations == expected()
    assert [(r.lost, r.layers, r.moved_layers) for r in made.recoveries] == [((4,), (), ())]
    assert made.spares == ()


def test_the_last_device_s_head_moves_too():
    made = deployment(4)
    made.lose(3)
    made.settle()
    end = CONFIG.vocab_size * CONFIG.d_model * 8 + CONFIG.d_model * 8
    layer = made.chain.sizes.footprints(made.layout.formats)[3].weights
    assert made.recoveries[0].host_to_device_bytes == layer + end


def test_a_replica_on_a_spare_need_not_move():
    made = deployment(5, spares=1)
    lost = made.layout.devices[2]
    held = made.replicate(made.layout.layers_on(lost), 4)
    assert held == made.device_bytes()[4] > 0
    made.lose(lost)
    made.settle()
    (found,) = made.recoveries
    assert found.spares == (4,)
    assert found.host_to_device_bytes == found.device_to_device_bytes == 0


def test_tied_tables_are_on_both_ends_and_survive_the_first():
    made = deployment(3, spares=1, config=TIED)
    served = generate(made, on_event=losing(made, (Event(3, 0, 1), 0)))
    assert served.continuations == expected(TIED)


def test_what_cannot_be_lost_repaired_or_continued():
    made = deployment(1)
    with pytest.raises(ValueError, match="no device 1; the deployment has 0 to 0"):
        made.lose(1)
    with pytest.raises(ValueError, match="is not lost"):
        made.repair(0)
    with pytest.raises(ValueError, match="room for 4"):
        made.generate([[1]] * 5, max_new_tokens=1)
    with pytest.raises(ValueError, match="room for 24"):
        made.generate([[1] * 20], max_new_tokens=5)
    with pytest.raises(ValueError, match="is not a spare"):
        made.replicate([0], 0)
    made.lose(0)
    with pytest.raises(ValueError, match="lost already"):
        made.lose(0)
    with pytest.raises(ValueError, match="no device is left"):
        made.generate([[1]], max_new_tokens=1)
    made.repair(0)
    assert generate(made).continuations == expected()
    made.lose(0)
    made.repair(0)  # before anybody noticed
    recoveries = made.recoveries
    assert generate(made).continuations == expected()
    assert made.recoveries == recoveries == ()


@pytest.mark.parametrize("spares", [0, 1])
@pytest.mark.parametrize("event", [Event(0, 0, 2), Event(0, 1, 1), Event(2, 1, 3)])
def test_a_switch_that_meets_a_loss_recovers_with_what_is_running(spares, event):
    """`on_event` switches a layer of a device that is gone: keys of both microbatches are there
    again, the pass runs again, and the layer is switched, once."""
    made = deployment(4 + spares, spares=spares)
    made.prepare_switch([1], ("int8", "int8"))
    done = []

    def on_event(now):
        if now == event and not done:
            made.lose(1)
            done.append(made.switch(1, number=now.number))

    served = generate(made, on_event=on_event)
    assert [len(c.tokens) for c in served.continuations] == [NEW] * len(PROMPTS)
    for got, free in zip(served.continuations, expected(), strict=True):
        assert got.tokens[: event.number] == free.tokens[: event.number]
    assert served.switches == tuple(done)
    assert [r.lost for r in served.recoveries] == [(1,)]


def test_a_switch_that_meets_a_loss_before_the_prefill_is_the_switched_model():
    made, calm = (deployment(4) for _ in range(2))
    for one in (made, calm):
        one.prepare_switch([1], ("int8", "int8+2:4"))
    calm.switch(1)
    right, done = generate(calm).continuations, []

    def on_event(now):
        if now == Event(0, 0, 3) and not done:
            made.lose(1)
            done.append(made.switch(1))

    assert generate(made, on_event=on_event).continuations == right != expected()


def test_a_loss_in_bfloat16_changes_nothing_here():
    """Without near-ties: random weights. In general keys computed again may differ in rounding."""
    config = TWO.replace(dtype="bfloat16")
    made = deployment(3, spares=1, config=config)
    right = generate(made).continuations
    served = generate(made, on_event=losing(made, (Event(3, 1, 1), 1)))
    assert len(served.recoveries) == 1
    assert served.recoveries[0].recomputed_tokens > 0
    assert [c.tokens[:3] for c in served.continuations] == [c.tokens[:3] for c in right]
    assert served.continuations == right
