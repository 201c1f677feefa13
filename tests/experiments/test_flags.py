"""A command has the flags that it lists and no others; what would be ignored is bad input."""

import contextlib
import io

import pytest
from absl import flags as absl_flags

import parallax as px
from parallax.experiments import starting
from parallax.experiments.__main__ import EXPERIMENTS
from parallax.experiments.compare import _request as compare_request
from parallax.experiments.flags import UnknownFlagError, read_flags
from parallax.experiments.launch import command_module, launch
from parallax.experiments.train import Flags, chosen_optimizer
from parallax.papers import PAPERS
from parallax.report import Report
from parallax.requests.option import Request, described
from parallax.workload import Workload

OWN = {
    name: {one.flag: one for one in described(command_module(name).Flags)} for name in EXPERIMENTS
}
ALL = {flag: one for own in OWN.values() for flag, one in own.items()}
FOREIGN = [(name, flag) for name in EXPERIMENTS for flag in sorted(set(ALL) - set(OWN[name]))]
# To be given always: without them a command says that they are missing.
NEEDED = {
    name: [f"--{flag}=1" for flag, one in own.items() if one.option.missing]
    for name, own in OWN.items()
}


def typed(one):
    """The flag with a value that its grammar takes."""
    value = {"choice": one.option.choices[:1], "number": ("0.5",)}.get(one.option.kind, ("7",))
    return f"--{one.flag}" if one.option.kind == "switch" else f"--{one.flag}={value[0]}"


@pytest.mark.parametrize(
    "flag", sorted({f for f, one in ALL.items() if "whole" in one.option.kind})
)
def test_every_count_may_end_in_k(flag, monkeypatch):
    """As in --sweep=seq_len:4k: k is 1024."""
    monkeypatch.setattr(Request, "refuse_unused", lambda *_: None)
    name = next(name for name in EXPERIMENTS if flag in OWN[name])
    argv = ["parallax", *(x for x in NEEDED[name] if not x.startswith(f"--{flag}="))]
    found = flag_of(read_flags(command_module(name).Flags, [*argv, f"--{flag}=2k"]), flag)
    assert found in (2048, (2048,))
    with pytest.raises((ValueError, absl_flags.Error), match=r"4k or 1M \(k = 1024\), got '2K'"):
        read_flags(command_module(name).Flags, [*argv, f"--{flag}=2K"])


def flag_of(flags, name):
    return dict(starting._values(flags))[name]


def test_there_are_many_pairs():
    assert len(FOREIGN) > 700


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_foreign_flag_is_refused(name, monkeypatch):
    """Each flag of every other command, alone and after the command's own: no work is started."""
    monkeypatch.setattr(command_module(name), "main", lambda flags: pytest.fail("it started"))
    for _, flag in (pair for pair in FOREIGN if pair[0] == name):
        one = ALL[flag]
        spellings = [typed(one)] + ([f"--no{flag}"] if one.option.kind == "switch" else [])
        for spelling in spellings:
            err = io.StringIO()
            with contextlib.redirect_stderr(err):
                status = launch(name, [*NEEDED[name], spelling], tuple(EXPERIMENTS))
            said = err.getvalue()
            owners = ", ".join(other for other in EXPERIMENTS if flag in OWN[other])
            assert status == 2
            assert f"is a flag of {owners}, not of {name}." in said, said
            assert len(said.splitlines()) == 1


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_own_flag_is_taken(name, monkeypatch):
    """Alone, also those that mean nothing alone."""
    flags = command_module(name).Flags
    monkeypatch.setattr(flags, "check", lambda self: None)
    for flag, one in OWN[name].items():
        needed = [x for x in NEEDED[name] if not x.startswith(f"--{flag}=")]
        assert flag in read_flags(flags, ["parallax", *needed, typed(one)]).given


ABSEIL = ["v", "logtostderr", "alsologtostderr", "stderrthreshold", "undefok", "pdb", "helpxml"]


@pytest.mark.parametrize("flag", ABSEIL)
def test_abseils_flags_are_none_of_ours(flag):
    with pytest.raises(UnknownFlagError, match=f"Unknown command line flag '{flag}'"):
        read_flags(command_module("claims").Flags, ["parallax", f"--{flag}=1"])


def test_a_file_of_flags_is_read_and_is_as_strict(tmp_path):
    claims = command_module("claims").Flags
    (tmp_path / "good").write_text("--paper=ring_sp\n--out=there\n")
    found = read_flags(claims, ["parallax", f"--flagfile={tmp_path / 'good'}", "--json=x"])
    assert (found.paper, found.out, found.json) == ("ring_sp", "there", "x")
    for bad in ("--warmup_steps=3", "--undefok=colour"):
        (tmp_path / "bad").write_text(f"{bad}\n")
        with pytest.raises(UnknownFlagError):
            read_flags(claims, ["parallax", f"--flagfile={tmp_path / 'bad'}"])


IGNORED = {
    "plan": (["--model=a", "--batch=1", "--prompt_len=1", "--output_len=1", "--max_tpot_s=1"],
             "max_tpot_s: output_len is 1"),
    "explain": (["a.hlo", "--batch=2"], "batch: a text is explained"),
    "generate": (["--model=a", "--seed=3"], "seed: at temperature 0 nothing is drawn"),
    "compress_quality": (["--race_steps=0", "--race_seeds=2"], "race_seeds: race_steps is 0"),
    "deploy": (["--model=a", "--stronger=int4"], "stronger: neither switches nor pressure"),
    "pairs": (["--paper=a", "--small", "--seq_len=7"], "seq_len: the small model runs at sizes"),
    "regimes": (["--full", "--clusters=a", "--stored=int8"], "full: clusters and stored are given"),
}  # fmt: skip


@pytest.mark.parametrize("name", IGNORED)
def test_a_flag_that_would_be_ignored_is_refused(name):
    arguments, message = IGNORED[name]
    with pytest.raises(ValueError, match=message):
        read_flags(command_module(name).Flags, ["parallax", *arguments])


@pytest.fixture
def recorded(tmp_path):
    """A report that asked for two lenses of one strategy."""
    config = PAPERS["ring_sp"].config
    asked = {"paper": "ring_sp", "strategies": ["ring_sequence"], "lenses": ["compile", "predict"],
             "cluster": "h100_2x8", "remat": "microbatch", "repeats": 10}  # fmt: skip
    report = Report(config, Workload(1, 16), "h100_2x8", ("compile",), asked, ())
    return report.save(tmp_path)[0]


def asked(*arguments):
    return compare_request(read_flags(command_module("compare").Flags, ["parallax", *arguments]))


def test_flags_beside_a_report_replace_what_it_asked_for(recorded):
    found = asked(f"--from_report={recorded}")
    assert (found.cluster, found.strategies) == ("h100_2x8", ["ring_sequence"])
    found = asked(f"--from_report={recorded}", "--cluster=h200_2x8", "--rates=mine.json", "--out=x")
    assert (found.paper, found.cluster, found.rates) == ("ring_sp", "h200_2x8", "mine.json")
    assert found.lenses == ["compile", "predict"]
    assert asked(f"--from_report={recorded}", "--strategy=two_level").strategies == ("two_level",)
    assert asked(f"--from_report={recorded}", "--phase=train", "--remat=layer").remat == "layer"


def test_a_flag_beside_a_report_that_would_be_ignored_is_refused(recorded):
    with pytest.raises(ValueError, match="repeats: the measure lens"):
        asked(f"--from_report={recorded}", "--repeats=3")


def test_train_makes_the_optimizer_that_its_flags_ask_for():
    def made(*given):
        needed = ["--model=ring_sp", "--data=a.txt", "--workdir=run"]
        return chosen_optimizer(read_flags(Flags, ["train", *needed, *given]))

    assert made() == px.Adamw()
    asked = made("--optimizer=lion", "--weight_decay=0.5", "--moment_dtype=bfloat16")
    assert asked == px.Lion(weight_decay=0.5, moment_dtype="bfloat16")
    assert made("--optimizer=muon", "--warmup_steps=0").warmup_steps == 0
