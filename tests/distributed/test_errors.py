"""Which errors are a lost process's doing, and a host without an address of its own."""

import os
import types

import jax
import pytest

from parallax.distributed import agreement, startup


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
