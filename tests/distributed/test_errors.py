"""What the watch says, which errors are a lost process's doing, a host without an address."""

import os
import types

import jax
import pytest

from parallax.distributed import agreement, startup, watch


@pytest.fixture
def two(monkeypatch):
    monkeypatch.setattr(agreement, "process_count", lambda: 2)


def chained():
    try:
        raise jax.errors.JaxRuntimeError("UNKNOWN: Gloo AllGather failed")
    except jax.errors.JaxRuntimeError as error:
        wrapped = ValueError("cannot save")
        wrapped.__cause__ = error
        return wrapped


@pytest.mark.parametrize(
    "error", [chained(), ValueError("cannot save: [Gloo] Connection closed by peer [::1]:9")]
)
def test_a_lost_process_is_not_the_disk(two, error):
    with pytest.raises(jax.errors.JaxRuntimeError, match="Gloo"):
        agreement.raise_lost_peer(error)


@pytest.mark.usefixtures("two")
def test_the_disk_is_not_a_lost_process():
    agreement.raise_lost_peer(OSError(28, "No space left on device"))


def test_one_process_loses_none():
    agreement.raise_lost_peer(chained())


def test_a_host_whose_name_has_no_address(monkeypatch):
    monkeypatch.setattr(os, "uname", lambda: types.SimpleNamespace(nodename="no-such-host.invalid"))
    with pytest.raises(ValueError, match=r"host 'no-such-host.invalid': its own name has no addr"):
        startup._check_own_name()


def test_a_process_that_others_wait_for_is_said_once(monkeypatch):
    said, beats = [], {}
    monkeypatch.setattr(watch, "_read_all", lambda key: beats if key == watch._BEAT else {})
    peers, of_this = watch._Peers(), watch._Watch(said.append)
    now = 1000.0
    monkeypatch.setattr(watch.time, "monotonic", lambda: now)
    for second in range(300):
        now = 1000.0 + second
        # Both compile for 100 s; then process 1 stays at step 5, lives on, and moves at last.
        step = min(5, max(0, second - 100))
        beats = {0: f"[{second}, {min(6, max(0, second - 100))}]", 1: f"[{second}, {step}]"}
        if second > 250:
            beats[1] = f"[{second}, 6]"
        assert peers.judge(of_this) is None
    assert said == ["process 1 has been at step 5 for 26 s, and the others wait at step 6"]


def test_silence_is_a_loss(monkeypatch):
    monkeypatch.setattr(watch, "_read_all", lambda key: beats if key == watch._BEAT else {})
    peers, of_this = watch._Peers(), watch._Watch(print)
    now, found = 0.0, None
    monkeypatch.setattr(watch.time, "monotonic", lambda: now)
    while found is None:
        now += 1.0
        beats = {0: f"[{now}, 0]", 1: "[1, 0]"}
        found = peers.judge(of_this)
    assert now == 20.0  # 18 s after the beat was first seen, at 1 s
    assert found.status == 3
    assert found.line.startswith("process 1 is lost: no sign of life for 18 s")
