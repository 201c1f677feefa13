"""Calibration files: what is written reads back, and anything else is refused with an error."""

import copy
import dataclasses
import json
import math

import pytest

from parallax.cost.collectives import exchange_seconds
from parallax.cost.rates import FILE_VERSION, LinkRates, Rates, rates_of
from parallax.meshes.gpus import GPUS


def data():
    return json.loads(json.dumps(rates_of("h100").to_dict()))


@pytest.mark.parametrize("gpu", GPUS)
def test_shipped_rates_read_back(gpu, tmp_path):
    rates = rates_of(gpu)
    assert rates.gpu == gpu
    rates.save(tmp_path / "mine.json")
    assert Rates.load(tmp_path / "mine.json") == rates


def _set(path, value):
    def changed(found):
        inner = found
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        return found

    return changed


def _without(*path):
    def changed(found):
        inner = found
        for key in path[:-1]:
            inner = inner[key]
        del inner[path[-1]]
        return found

    return changed


WRONG = {
    "a field missing": (_without("launch_s"), "launch_s"),
    "a field missing inside": (_without("power", "idle_w"), "idle_w"),
    "a field unknown": (_set(["colour"], 1), "colour"),
    "a field unknown inside": (_set(["gemm", "f16", "colour"], 1), "colour"),
    "below 0": (_set(["launch_s"], -1e-6), "launch_s must be a non-negative number"),
    "below 0 inside": (_set(["links", "p2p", "start_s"], -1.0), "links.p2p.start_s"),
    "no number": (_set(["memory_bytes_per_s"], math.nan), "memory_bytes_per_s"),
    "infinite": (_set(["gemm", "f16", "flops_per_s"], math.inf), "gemm.f16.flops_per_s"),
    "a rate of 0": (_set(["gemm", "f16", "flops_per_s"], 0.0), "gemm.f16.flops_per_s"),
    "a bandwidth of 0": (_set(["memory_bytes_per_s"], 0), "memory_bytes_per_s"),
    "a wire of 0": (_set(["links", "p2p", "bytes_per_s"], 0), "links.p2p.bytes_per_s"),
    "text for a number": (_set(["launch_s"], "2e-06"), "launch_s: expected float"),
    "text for a rate": (_set(["gemm", "f16", "tile_s"], "fast"), "gemm.f16.tile_s"),
    "a truth for a number": (_set(["launch_s"], True), "launch_s"),
    "nothing": (_set(["launch_s"], None), "launch_s"),
    "a list": (_set(["gemm"], [1]), "gemm: expected an object, got list"),
    "a number for a table": (_set(["links"], 3), "links: expected an object, got int"),
    "a number for a name": (_set(["name"], 3), "name"),
    "another GPU": (_set(["gpu"], "v100"), "v100"),
    "a width that is none": (
        _set(["attention", "forward"], {"wide": {"flops_per_s": 1e12, "tile_s": 1e-6}}), "wide",
    ),
    "no widths": (_set(["attention", "backward"], {}), "attention.backward"),
    "a term missing": (_without("spreads", "memory"), "spreads"),
    "a link unknown": (
        _set(["links", "network p2p"], {
            "start_s": 1e-5, "bytes_per_s": 1e10, "step_s": 0.0, "few": 0.0, "extra_s": 0.0,
            "half_bytes": 1.0,
        }),
        "links.network p2p is not known",
    ),
    "a link missing": (_without("links", "network"), "links"),
    "a spread upside down": (_set(["spreads", "memory"], {"low": 1.2, "high": 0.9}), "spreads"),
    "a newer version": (_set(["rates_version"], FILE_VERSION + 1), "Calibrate again"),
    "no version": (_without("rates_version"), "rates_version"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_file_is_refused_in_words(what, tmp_path):
    change, why = WRONG[what]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(change(copy.deepcopy(data()))), encoding="utf-8")
    with pytest.raises(ValueError, match=r"mine\.json") as error:
        Rates.load(path)
    assert why in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "null", "\x00", '"rates"', "[" * 100_000])
def test_what_is_no_table_is_refused(text, tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"mine\.json: not") as error:
        Rates.load(path)
    assert len(str(error.value)) < 1000


def test_bytes_that_are_no_text_and_no_file_are_refused(tmp_path):
    path = tmp_path / "mine.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"mine\.json: not JSON"):
        Rates.load(path)
    with pytest.raises(ValueError, match="No such file"):
        Rates.load(tmp_path / "absent.json")
    with pytest.raises(ValueError, match=r"no rates for GPU 'v100'.*--rates=.*docs/extending\.md"):
        rates_of("v100")


def test_a_dtype_nobody_measured_is_refused():
    with pytest.raises(ValueError, match="no matrix product rate for f8e5m2"):
        rates_of("h100").gemm_rates("f8e5m2")
    assert rates_of("h100").gemm_rates("bf16") == rates_of("h100").gemm["f16"]


def test_a_collective_between_nodes_takes_its_own_rates():
    rates, slow = rates_of("h100"), LinkRates(1e-3, 1e9)
    own = dataclasses.replace(rates, links={**rates.links, "network all-reduce": slow})
    for kind, inside in (("all-reduce", 1), ("all-gather", 1), ("all-reduce", 8)):
        shipped = exchange_seconds(kind, 1e6, inside, 2, rates)
        found = exchange_seconds(kind, 1e6, inside, 2, own)
        assert (found > 5 * shipped) == (kind == "all-reduce")
    assert exchange_seconds("all-reduce", 1e6, 1, 2, own) == pytest.approx(1e-3 + 1e6 / 1e9)
    assert exchange_seconds("all-reduce", 1e6, 8, 1, own) == exchange_seconds(
        "all-reduce", 1e6, 8, 1, rates
    )
