"""The command as a user types it: results, reruns, and bad input as one line with status 2."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from parallax.experiments.__main__ import EXPERIMENTS, main
from parallax.papers import PAPERS

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def parallax(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "parallax.experiments", *arguments], capture_output=True, text=True,
        cwd=cwd, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip


BAD = {
    "paper": (["--paper=x"], "unknown paper 'x'. Use one of: ring_sp"),
    "layers": (["--paper=ring_sp", "--strategies=layerwise"], "4 layers are fewer than 16 stages"),
    "hybrid": (
        ["--paper=ring_sp", "--strategies=ring_sequence+data_parallel"],
        "a hybrid needs a mesh",
    ),
    "sweep": (["--paper=ring_sp", "--sweep=depth:2..4"], "expected axis:low..high"),
    "phase": (["--paper=ring_sp", "--phase=guess"], "--phase=guess"),
    "nothing": ([], "neither a paper nor a model is given. Give --model=FOLDER"),
    "mesh axis": (["--paper=ring_sp", "--strategies=fsdp", "--mesh=foo=16"], "no mesh axis 'foo'"),
    "strategy": (["--paper=ring_sp", "--strategies=star"], "unknown strategy 'star'"),
    "both": (["--paper=ring_sp", "--strategies=a", "--strategy=b"], "Use one of them"),
    "twice a flag": (["--batch=2", "--batch=4", "--paper=ring_sp"], "already defined as 2"),
    "remat": (["--paper=ring_sp", "--remat=layer"], "remat: phase prefill has no backward pass"),
    "remat of old": (
        ["--paper=ring_sp", "--phase=train", "--remat=microbatch"],
        "--remat=microbatch: it is no more: a training step keeps one microbatch at a time",
    ),
    "gather of none": (
        ["--paper=ring_sp", "--phase=train", "--strategy=data_parallel", "--gather=step"],
        "gather step: no weights are sharded in data_parallel (mesh data=16). Shard them",
    ),
    "schedule of none": (
        ["--paper=ring_sp", "--phase=train", "--strategy=data_parallel", "--schedule=1f1b"],
        "schedule 1f1b: there are no pipeline stages in data_parallel",
    ),
    "repeats": (["--paper=ring_sp", "--repeats=3"], "repeats: the measure lens"),
    "text of none": (
        ["--paper=ring_sp", "--lenses=predict", "--text=a"],
        "text: neither verify nor measure",
    ),
    "rates of none": (["--paper=ring_sp", "--lenses=verify", "--rates=a"], "rates: the predict"),
    "kernels of none": (
        ["--paper=ring_sp", "--lenses=verify", "--kernels=mosaic"],
        "kernels: verify computes with XLA's",
    ),
    "microbatches of a step": (
        ["--paper=ring_sp", "--phase=decode", "--microbatches=4"],
        "microbatches: a decoding step takes as many",
    ),
    "batch of small": (["--paper=ring_sp", "--small", "--batch=4"], "batch: the small model runs"),
    "rates": (["--paper=ring_sp", "--rates=/none"], "calibration /none: No such file"),
    "undefok": (["--paper=ring_sp", "--undefok=colour", "--colour=red"], "flag 'undefok'"),
    "abseil's": (["--paper=ring_sp", "--logtostderr"], "Unknown command line flag 'logtostderr'"),
    "verbosity": (["--paper=ring_sp", "--v=1"], "Unknown command line flag 'v'"),
    "nearest": (["--paper=ring_sp", "--strateges=a"], "did you mean --strategies?"),
    "another's": (["--warmup_steps=3"], "--warmup_steps is a flag of train, not of compare."),
    "another's switch": (["--nofull"], "--nofull is a flag of regimes, not of compare."),
    "twice": (["--paper=ring_sp", "--strategies=ring_sequence,ring_sequence"], "more than once"),
    "length": (
        ["--paper=ring_sp", "--seq_len=10001", "--strategy=ring_sequence"],
        "16 does not divide 10001",
    ),
    "length of two": (
        ["--paper=ring_sp", "--seq_len=10001", "--strategies=ring_sequence,double_ring"],
        "none of the strategies can run. ring_sequence: ",
    ),
    "batch": (
        ["--paper=ring_sp", "--batch=15", "--strategy=data_parallel"],
        "16 does not divide 15",
    ),
    "microbatches": (["--paper=ring_sp", "--microbatches=7"], "7 microbatches do not divide"),
    "mesh": (["--paper=ring_sp", "--mesh=seq"], "expected name=size, got 'seq'"),
    "devices": (
        ["--paper=ring_sp", "--strategies=ring_sequence", "--mesh=seq=8"],
        "mesh seq=8 has 8 devices, cluster h100_2x8 has 16",
    ),
    "cluster": (["--paper=ring_sp", "--cluster=tpu"], "unknown cluster 'tpu'"),
    "lens": (["--paper=ring_sp", "--lenses=guess"], "unknown lens 'guess'"),
    "text": (["--paper=ring_sp", "--text=/none"], "--text=/none: No such file"),
    "out": (["--paper=ring_sp", "--out=/proc/none"], "--out=/proc/none"),
    "report": (["--from_report=/none"], "--from_report=/none: No such file"),
    "flag": (["--colour=red"], "Unknown command line flag 'colour'"),
    "value": (["--paper=ring_sp", "--batch=many"], "--batch=many"),
    "argument": (["ring_sp"], "unexpected argument 'ring_sp'"),
    "devices first": (
        ["--paper=ring_sp", "--strategies=ring_sequence", "--mesh=seq=3"],
        "mesh seq=3 has 3 devices",
    ),
    "no strategies": (["--paper=ring_sp", "--strategies="], "strategies: the list is empty"),
    "no lenses": (["--paper=ring_sp", "--lenses="], "lenses: the list is empty"),
    "no cluster": (["--paper=ring_sp", "--cluster="], "unknown cluster ''"),
    "no model": (["--model="], "model '' is neither a paper"),
    "mesh of a file": (
        ["--paper=ring_sp", "--strategy=a.json", "--mesh=seq=16"],
        "mesh seq=16 is for strategies given by name",
    ),
    "sentence": (["--paper=ring_sp", "--batch=0"], "positive integer. See parallax compare"),
    "budget": (["--paper=ring_sp", "--budget=0"], "nothing fits in zero bytes"),
    "budget's name": (["--paper=ring_sp", "--budget=l3"], "budget 'l3': expected l2, smem"),
    "format": (["--paper=ring_sp", "--compression=int3"], "unknown format 'int3'"),
    "formats": (["--paper=ring_sp", "--compression=int8,int8,int8"], "expected one format, or"),
    "formats twice": (
        ["--paper=ring_sp", "--compression=int8", "--compression=int4"],
        "already defined as int8",
    ),
    "format of experts": (["--paper=cross_node_ep", "--compression=w8a8"], "experts multiply in"),
    "format of a slice": (
        ["--paper=two_level", "--strategies=two_level", "--compression=int4"],
        "begin and end at whole groups",
    ),
    "file": (["--paper=ring_sp", "--strategy=none.json"], "strategy file none.json: No such file"),
}


@pytest.fixture(scope="module")
def bad_runs(tmp_path_factory):
    """All bad inputs in one process each would cost a minute: one process runs them all."""
    folder = tmp_path_factory.mktemp("bad")
    code = (
        "import json, sys, io, contextlib\n"
        "from parallax.experiments.__main__ import main\n"
        "out = {}\n"
        f"for name, arguments in {json.dumps({k: v[0] for k, v in BAD.items()})}.items():\n"
        "    err, std = io.StringIO(), io.StringIO()\n"
        "    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(std):\n"
        "        try:\n"
        "            main(['parallax', 'compare', *arguments])\n"
        "        except SystemExit as stop:\n"
        "            out[name] = stop.code, err.getvalue(), std.getvalue()\n"
        "print(json.dumps(out))\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert list(folder.iterdir()) == []  # nothing half written
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_status_2(name, bad_runs):
    status, err, out = bad_runs[name]
    assert status == 2, err
    assert BAD[name][1] in err
    assert err.startswith("parallax compare: ")
    assert len(err.strip().splitlines()) == 1
    assert out == ""


def test_no_traceback_in_a_real_process(tmp_path):
    run = parallax("compare", "--paper=x", cwd=tmp_path)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.full
def test_compare_writes_a_report_that_runs_again(tmp_path, aot):
    first = parallax(
        "compare", "--paper=ring_sp", "--small", "--strategies=ring_sequence",
        "--lenses=compile,predict,measure", "--repeats=3", "--out=first", cwd=tmp_path,
    )  # fmt: skip
    assert first.returncode == 0, first.stderr
    assert max(map(len, first.stdout.splitlines())) <= 100
    report = json.loads((tmp_path / "first" / "report.json").read_text())
    (result,) = report["results"]
    assert result["compile"]["ledger_matches"]
    assert result["measure"]["devices"] == 16
    assert result["measure"]["model"] == "ring_sp.small in float32"
    assert report["failed"] is False
    report["request"]["lenses"] = ["compile"]
    (tmp_path / "edited.json").write_text(json.dumps(report))
    again = parallax("compare", "--from_report=edited.json", "--out=again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    repeated = json.loads((tmp_path / "again" / "report.json").read_text())
    assert repeated["request"] == report["request"]
    assert repeated["results"][0]["compile"]["wire_bytes"] == result["compile"]["wire_bytes"]
    assert repeated["results"][0]["predict"] is None


def test_claims_are_printed_and_written(tmp_path):
    run = parallax("claims", "--out=found", "--json=copy.json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert max(map(len, run.stdout.splitlines())) <= 120
    assert "beyond the physical bound" in run.stdout
    record = json.loads((tmp_path / "found" / "claims.json").read_text())
    assert record == json.loads((tmp_path / "copy.json").read_text())
    for name, paper in PAPERS.items():
        assert len(record["papers"][name]["figures"]) == len(paper.claims)
    page = (tmp_path / "found" / "claims.md").read_text()
    assert page == (ROOT / "docs" / "generated" / "claims.md").read_text()
    page = (tmp_path / "found" / "claims.html").read_text()
    assert page.count("<caption>Every figure of the paper") == 5
    assert '<p class="answer">Of 111 figures of 5 papers, ' in page


BAD_CLAIMS = {
    "paper": (["--paper=x"], "unknown paper 'x'. Use one of: ring_sp"),
    "cluster": (["--cluster=h100_4x8"], "has 32 GPUs; the papers' figures are about 16"),
    "json": (["--json=none/out.json"], "its folder is not there"),
}


@pytest.mark.parametrize("name", BAD_CLAIMS)
def test_claims_refuses_in_one_line(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD_CLAIMS[name]
    status, text = shown(capsys, "claims", *arguments)
    assert status == 2
    assert message in text.err
    assert text.out == ""
    assert list(tmp_path.iterdir()) == []


def shown(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["parallax", *arguments])
    return stop.value.code, capsys.readouterr()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_help_is_as_wide_as_a_page_and_keeps_its_lines(name, capsys):
    status, text = shown(capsys, name, "--help")
    assert status == 0
    assert max(map(len, text.out.splitlines())) <= 100


def test_usage_help_and_lists(capsys):
    status, text = shown(capsys)
    assert status == 0
    assert all(name in text.out for name in EXPERIMENTS)
    status, text = shown(capsys, "compare", "--help")
    assert status == 0
    assert "--seq_len=..." in text.out
    assert "Exit status:" in text.out
    for kind, known in {
        "models": "compressed_layerwise", "families": "gpt_oss", "strategies": "ring_sequence",
        "clusters": "h100_nvl16", "papers": "cross_node_ep",
    }.items():  # fmt: skip
        status, text = shown(capsys, "list", kind)
        assert status == 0
        assert known in text.out
    assert shown(capsys, "list", "things")[0] == 2
    assert shown(capsys, "guess")[0] == 2
    status, text = shown(capsys, "generate", "--help")
    assert "0 is greedy decoding. (default 0.0)" in " ".join(text.out.split())


GENERATE = ["generate", "--model=ring_sp", "--small"]
BAD_GENERATE = {
    "prompts": (
        [*GENERATE, "--prompts=none.txt"],
        "--prompts=none.txt: No such file or directory.",
    ),
    "not text": ([*GENERATE, "--prompts=bytes.txt"], "--prompts=bytes.txt: not UTF-8."),
    "json": ([*GENERATE, "--prompt=a", "--json=none/out.json"], "its folder is not there"),
    "json in a folder of the kernel": (
        [*GENERATE, "--prompt=a", "--json=/proc/a.json"],
        "--json=/proc/a.json: No such file",
    ),
    "json folder": ([*GENERATE, "--prompt=a", "--json=."], "--json=.: Is a directory"),
    "mesh alone": ([*GENERATE, "--prompt=a", "--mesh=seq=4"], "no strategy is given"),
}


@pytest.mark.parametrize("name", BAD_GENERATE)
def test_generate_refuses_before_any_work(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bytes.txt").write_bytes(b"\xff\xfe")
    arguments, message = BAD_GENERATE[name]
    status, text = shown(capsys, *arguments)
    assert status == 2
    assert message in text.err
    assert len(text.err.strip().splitlines()) == 1
    assert text.out == ""


DATA = ["--strategy=data_parallel", "--mesh=data=8"]
STAGES = ["--strategy=layerwise+data_parallel", "--mesh=stage=2,data=4"]
TENSOR = ["--strategy=tensor_pipeline", "--mesh=stage=2,tensor=4"]
BAD_TRAIN = {
    "unknown axis": ([*DATA, "--shard_weights=foo"], "'foo' does not split its tokens; data of"),
    "axis of products": (
        [*TENSOR, "--shard_weights=tensor"],
        "'tensor' does not split its tokens; no other of mesh stage=2,tensor=4 does. Combine it",
    ),
    "axis twice": ([*DATA, "--shard_weights=data,data"], "auto alone, or mesh axes, each of them"),
    "auto and others": ([*DATA, "--shard_optimizer=auto,data"], "auto alone, or mesh axes, each"),
    "no axes": ([*DATA, "--shard_weights="], "shard_weights=: the list is empty. Name mesh axes"),
    "nothing to shard over": (
        [*TENSOR, "--shard_weights=auto"],
        "shard_weights auto: nothing is sharded, as no mesh axis splits the tokens in tensor_pipe",
    ),
    "no state to shard over": (
        ["--shard_optimizer=auto"], "shard_optimizer auto: nothing is sharded, as no mesh axis",
    ),
    "gather of none": ([*DATA, "--gather=step"], "gather step: no weights are sharded in"),
    "schedule of none": (
        [*DATA, "--schedule=1f1b"], "schedule 1f1b: there are no pipeline stages in data_parallel",
    ),
    "schedule of one stage": (
        ["--strategy=layerwise", "--mesh=stage=1", "--schedule=gpipe"],
        "no pipeline stages in layerwise (mesh",
    ),
    "virtual stages of none": ([*DATA, "--virtual_stages=2"], "virtual_stages 2: there are no"),
    "virtual stages of 1f1b": (
        [*STAGES, "--schedule=1f1b", "--virtual_stages=2"],
        "'layerwise+data_parallel': virtual_stages=2 are for schedule=interleaved; the schedule is "
        "1f1b. Add schedule=interleaved",
    ),
    "turns of microbatches": (
        [*STAGES, "--schedule=interleaved", "--microbatches=1"],
        "'layerwise+data_parallel': make_schedule: 'interleaved' takes microbatches in turns of "
        "one per stage, and 2 stages do not divide 1",
    ),
    "layers": (
        [*STAGES, "--schedule=interleaved", "--virtual_stages=3", "--microbatches=2"],
        "3 virtual stages on each of 2 stages need layers=None and a multiple of 6 layers",
    ),
    "remat": ([*DATA, "--remat=microbatch"], "one microbatch at a time by itself. Use layer, or"),
    "optimizer": ([*DATA, "--optimizer=foo"], "value should be one of <adamw|lion|muon>"),
    "moments": ([*DATA, "--moment_dtype=float16"], "one of <float32|bfloat16>"),
    "width": (
        ["--strategy=fsdp", "--mesh=data=12", "--batch=12"],
        "(size 12), but 12 does not divide 128. Use a multiple of 12",
    ),
    "width of the state": (
        ["--strategy=data_parallel", "--mesh=data=12", "--batch=12", "--shard_optimizer=auto"],
        "(size 12), but 12 does not divide 128",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_TRAIN)
def test_train_refuses_before_any_work(name, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("words " * 1000)
    arguments, message = BAD_TRAIN[name]
    status, text = shown(
        capsys, "train", "--model=ring_sp", "--small", "--data=text.txt", "--workdir=run",
        "--steps=1", "--seq_len=16", *arguments,
    )  # fmt: skip
    assert status == 2
    assert text.err.startswith("parallax train: ")
    assert message in text.err
    assert len(text.err.strip().splitlines()) == 1
    assert text.out == ""
    assert not Path("run").exists()
