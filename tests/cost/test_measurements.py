"""Published measurements load and name their source; a malformed file is refused."""

import dataclasses
from collections import Counter

import pytest

from parallax.bounds import wire_bytes
from parallax.cost import measurements
from parallax.cost.measurements import (
    FOLDS,
    MeasuredAttention,
    MeasuredCollective,
    MeasuredGemm,
    fold_of,
    is_test,
    read,
)
from parallax.meshes.gpus import GPUS

TABLES = {
    "gemm": measurements.gemms,
    "attention": measurements.attentions,
    "experts": measurements.experts,
    "dispatch": measurements.dispatches,
    "collectives": measurements.collectives,
}
# Dense peak FLOP/s and bytes/s of memory, of the datasheets.
PEAKS = {
    "bfloat16": {"h100": 989e12, "h200": 989e12, "a100": 312e12, "b200": 2250e12},
    "tensorfloat32": {"h100": 495e12, "h200": 495e12, "a100": 156e12, "b200": 1125e12},
}
PEAKS["float16"] = PEAKS["bfloat16"]
MEMORY = {"h100": 3.352e12, "h200": 4.8e12, "a100": 2.039e12, "b200": 7.67e12}
LINKS = {"h100": 450e9, "h200": 450e9, "a100": 300e9, "b200": 900e9}  # bytes/s a direction


@pytest.mark.parametrize("table", TABLES)
def test_every_row_has_a_source_and_a_shape_of_its_own(table):
    rows = TABLES[table]()
    seen = Counter(
        (row.source, row.gpu, getattr(row, "dtype", ""), getattr(row, "kernel", ""), row.key)
        for row in rows
    )
    assert [shape for shape, count in seen.items() if count > 1] == []
    assert TABLES[table]() is rows  # read once


def test_there_is_enough_to_test_products_and_to_leave_a_source_out():
    rows = measurements.gemms()
    hopper = [row for row in rows if row.gpu in ("h100", "h200")]
    assert len([row for row in hopper if is_test(row.key)]) >= 150
    assert len([row for row in rows if is_test(row.key)]) >= 200
    per_source = Counter(row.source for row in rows)
    assert len(per_source) >= 3
    assert min(per_source.values()) >= 20


def test_each_source_is_described_and_used():
    sources = measurements.sources()
    used = {row.source for rows in TABLES.values() for row in rows()}
    assert used == set(sources)
    wanted = {
        "title",
        "url",
        "licence",
        "authors",
        "gpu",
        "software",
        "method",
        "conversions",
        "retrieved",
    }
    for name, table in sources.items():
        assert set(table) == wanted, name
        assert all(table.values()), name
        assert table["url"].startswith("https://"), name


def test_no_product_is_faster_than_its_gpu():
    for row in measurements.gemms():
        flops = 2 * row.batch * row.m * row.n * row.k
        assert flops / row.seconds < PEAKS[row.dtype][row.gpu], row


def test_no_attention_reads_faster_than_memory():
    for row in measurements.attentions():
        kv_bytes = 2 * row.batch * row.kv_len * row.kv_heads * row.head_dim * 2
        # What the L2 cache holds from the run before is not read again.
        far = kv_bytes - GPUS[row.gpu].l2_bytes
        assert far / row.seconds < MEMORY[row.gpu], row


def test_no_collective_sends_faster_than_its_links():
    # What one device has to send, with an all-reduce that the switch may do in one pass.
    for row in measurements.collectives():
        n = row.devices
        share = 1 if row.kind == "p2p" else (n - 1) / n
        assert share * row.bytes / row.seconds < LINKS[row.gpu], row


def test_split_depends_on_the_shape_alone():
    row = measurements.gemms()[0]
    other = dataclasses.replace(row, source="elsewhere", dtype="int8", gpu="a100", seconds=1.0)
    assert other.key == row.key == f"{row.batch},{row.m},{row.n},{row.k}"
    # Written down once: the split may not move between versions of Python or of this file.
    split = [is_test(key) for key in ("1,256,2048,256", "1,256,2048,512", "4,512,1024,256")]
    assert split == [False, True, False]


def test_bus_bandwidths_are_those_of_nccls_conventions():
    """Bytes of a gathered array taken for those of one device's part would be eightfold off."""
    for row in measurements.collectives():
        if row.nodes == 1 and row.bytes >= 2**28 and row.kind != "p2p":
            bus = wire_bytes(row.kind, row.devices, row.bytes) / row.seconds
            # Two devices reach less; switches that sum, more than a ring would send.
            assert 0.33 < bus / LINKS[row.gpu] < 1.1, row


def test_kinds_that_move_as_much_take_about_as_long():
    rows = {(r.gpu, r.devices, r.kind): r.seconds
            for r in measurements.collectives()
            if r.source == "aiconfigurator_nccl" and r.bytes == 2**28}  # fmt: skip
    assert len(rows) == 4 * 3 * 4
    for (gpu, devices, kind), seconds in rows.items():
        times = 2.0 if kind == "all-reduce" else 1.0
        assert seconds / rows[gpu, devices, "all-gather"] == pytest.approx(times, rel=0.35)


def test_folds_are_five_of_about_the_same_size():
    keys = [f"1,8,all-reduce,{size}" for size in range(2000)]
    counts = Counter(map(fold_of, keys))
    assert sorted(counts) == list(range(FOLDS))
    assert max(counts.values()) < 1.2 * min(counts.values())
    assert fold_of(keys[0]) == fold_of(str(keys[0]))


def test_split_is_about_two_fifths():
    keys = [f"1,{m},{n},128" for m in range(50) for n in range(50)]
    share = sum(map(is_test, keys)) / len(keys)
    assert share == pytest.approx(0.4, abs=0.03)


GOOD = "s,h100,bfloat16,1,2,3,4,0.5"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("s,h100,bfloat16,1,2,3,4", "7 cells, expected 8"),
        ("t,h100,bfloat16,1,2,3,4,0.5", "source 't' is not in sources.toml"),
        ("s,v100,bfloat16,1,2,3,4,0.5", "gpu 'v100' is not known"),
        ("s,h100,float8,1,2,3,4,0.5", "dtype 'float8' is not known"),
        ("s,h100,bfloat16,1,0,3,4,0.5", "m is '0', expected a positive whole number"),
        ("s,h100,bfloat16,1,2.0,3,4,0.5", "m is '2.0', expected a positive whole number"),
        ("s,h100,bfloat16,1,2,3,4,-1", "seconds is '-1', expected a positive number"),
        ("s,h100,bfloat16,1,2,3,4,nan", "seconds is 'nan'"),
        ("s,h100,bfloat16,1,2,3,4,inf", "seconds is 'inf'"),
        ("s,h100,bfloat16,1,2,3,4,fast", "seconds is 'fast'"),
    ],
)
def test_a_wrong_row_is_refused_with_file_and_line(tmp_path, line, words):
    path = tmp_path / "gemm.csv"
    path.write_text(f"source,gpu,dtype,batch,m,n,k,seconds\n{GOOD}\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"gemm\.csv line 3: ") as error:
        read(MeasuredGemm, path, {"s": {}})
    assert words in str(error.value)


def test_other_columns_are_refused(tmp_path):
    path = tmp_path / "gemm.csv"
    path.write_text(f"source,gpu,dtype,batch,m,k,n,seconds\n{GOOD}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"gemm\.csv line 1: the columns are source, gpu"):
        read(MeasuredGemm, path, {"s": {}})
    path.write_text("", encoding="utf-8")
    with pytest.raises(ValueError, match="the columns are none"):
        read(MeasuredGemm, path, {"s": {}})


def test_kinds_and_truths_are_refused(tmp_path):
    path = tmp_path / "collectives.csv"
    path.write_text(
        "source,gpu,nodes,devices,kind,bytes,seconds\ns,h100,1,8,broadcast,1024,0.5\n",
        encoding="utf-8",
    )
    with pytest.raises(ValueError, match="kind 'broadcast' is not known"):
        read(MeasuredCollective, path, {"s": {}})
    path = tmp_path / "attention.csv"
    path.write_text(
        "source,gpu,kernel,dtype,batch,heads,kv_heads,head_dim,value_dim,q_len,kv_len,causal,"
        "backward,window,seconds\ns,h100,k,bfloat16,1,8,8,64,64,1,128,yes,false,128,0.5\n",
        encoding="utf-8",
    )
    with pytest.raises(ValueError, match="causal is 'yes', expected true or false"):
        read(MeasuredAttention, path, {"s": {}})
