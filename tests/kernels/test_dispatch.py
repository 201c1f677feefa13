"""One rule for choosing an implementation."""

import pytest

from parallax.kernels.dispatch import PROVEN, choose, refusals, trusting


def test_none_takes_the_best_that_can_and_is_proven_or_trusted():
    able = {"mosaic": None, "cudnn": "it is too wide", "xla": None}
    assert choose("op", None, able) == "xla"
    with trusting("mosaic"):
        assert choose("op", None, able) == "mosaic"
        assert choose("op", None, able | {"mosaic": "it is too long"}) == "xla"
    assert choose("op", None, able) == "xla"
    assert choose("op", "mosaic", able) == "mosaic"


@pytest.mark.parametrize(
    ("asked", "message"),
    [("cudnn", "cannot do this: it is too wide. "), ("magic", "does not exist here: there are ")],
)
def test_one_that_cannot_is_refused_by_name(asked, message):
    with pytest.raises(NotImplementedError, match=f"op: implementation='{asked}' {message}") as no:
        choose("op", asked, {"mosaic": None, "cudnn": "it is too wide", "xla": None})
    assert "Use implementation='xla'" in str(no.value)


def test_a_trusted_one_that_cannot_is_told():
    with refusals() as told:
        choose("op", None, {"mosaic": "it is too wide", "xla": None})
        assert told == set()
        with trusting("mosaic"):
            choose("op", None, {"mosaic": "it is too wide", "xla": None})
    assert told == {"op: mosaic cannot do this: it is too wide"}


def test_one_proven_operation_proves_no_other(monkeypatch):
    able = {"mosaic": None, "xla": None}
    monkeypatch.setitem(PROVEN, "decode_attention", ("mosaic",))
    assert choose("decode_attention", None, able) == "mosaic"
    assert choose("attention_step", None, able) == "xla"
    assert choose("decoding", None, able, kernel="decode_attention") == "mosaic"
    with trusting("mosaic"):
        assert choose("attention_step", None, able) == "mosaic"
