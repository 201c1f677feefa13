"""What a command says of itself and of the machine, and Ctrl-C while it starts."""

import importlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import parallax as px
from parallax.distributed import cuda_plugin
from parallax.experiments import ctrl_c
from parallax.experiments.__main__ import EXPERIMENTS, main
from parallax.experiments.completion import completion
from parallax.lenses import installation

ROOT = Path(__file__).resolve().parents[2]


def shown(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        main(["parallax", *arguments])
    return stop.value.code, capsys.readouterr()


def test_python_m_parallax_prints_the_version_without_jax(tmp_path):
    code = (
        "import runpy, sys\n"
        "sys.argv = ['parallax', '--version']\n"
        "try:\n    runpy.run_module('parallax', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        "assert not {'jax', 'numpy', 'absl'} & set(sys.modules)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert (run.stdout, run.stderr) == (f"parallax {px.__version__}\n", "")


def test_doctor_says_what_works_and_leaves_folders_out(capsys, monkeypatch):
    monkeypatch.setattr(installation, "missing_compiler", lambda: None)
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", "") + " --xla_dump_to=/home/me/x")
    status, text = shown(capsys, "doctor")
    assert status == 0
    lines = dict(line.split(maxsplit=1) for line in text.out.splitlines())
    assert lines["jax"] == importlib.import_module("jax").__version__
    assert lines["compile"] == "works, for GPUs that need not be here"
    assert "/home" not in text.out
    assert "--xla_dump_to=.../x" in text.out


def test_doctor_says_what_to_install(capsys, monkeypatch):
    lacking = "compile lens not run: the compiler is not installed. Get it with: pip install it."
    monkeypatch.setattr(installation, "missing_compiler", lambda: lacking)
    status, text = shown(capsys, "doctor")
    assert status == 1
    assert "compile               does not: the compiler is not installed. Get it" in text.out
    assert "predict               does not, as nothing compiles" in text.out
    assert "verify                works" in text.out


def test_a_driver_that_jax_does_not_see_has_a_next_step(capsys, monkeypatch, tmp_path):
    driver = tmp_path / "version"
    driver.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue\n")
    monkeypatch.setattr(installation, "NVIDIA_DRIVER", driver)
    _, text = shown(capsys, "doctor")
    assert "NVIDIA driver         550.54.15" in text.out
    assert "JAX sees no GPU: pip install 'parallax-sharding[cuda12]'" in text.out


def test_the_plugin_is_kept_quiet_only_without_a_driver(monkeypatch, tmp_path):
    name = "JAX_SKIP_CUDA_CONSTRAINTS_CHECK"
    monkeypatch.setenv(name, "0")
    monkeypatch.delenv(name)
    monkeypatch.setattr(cuda_plugin, "NVIDIA_DRIVER", tmp_path)
    cuda_plugin.quiet_without_driver()
    assert name not in os.environ
    monkeypatch.setattr(cuda_plugin, "NVIDIA_DRIVER", tmp_path / "none")
    cuda_plugin.quiet_without_driver()
    assert os.environ[name] == "1"


def completed(*words):
    code = (
        f"{completion('bash', ('train', 'claims'))}\nCOMP_WORDS=(parallax {' '.join(words)} '')\n"
        f"unset 'COMP_WORDS[{len(words) + 1}]'; COMP_CWORD={len(words)}; _parallax\n"
        'echo "${COMPREPLY[@]}"'
    )
    run = subprocess.run([shutil.which("bash") or "bash", "-c", code], capture_output=True)
    return run.stdout.decode().split(), run.stderr.decode()


def test_the_completion_knows_commands_flags_and_kinds(capsys):
    assert completed("cl") == (["claims"], "")
    assert completed("train", "--sma")[0] == ["--small"]
    assert completed("train", "--steps")[0] == ["--steps="]
    assert completed("claims", "--steps")[0] == []
    assert completed("list", "fam")[0] == ["families"]
    status, text = shown(capsys, "completion", "zsh")
    assert status == 0
    assert text.out.startswith("autoload -U +X bashcompinit")
    assert all(f"  {name}) words=" in text.out for name in EXPERIMENTS)
    status, text = shown(capsys, "completion", "fish")
    assert (status, text.err) == (2, "parallax completion: expected bash or zsh; got fish.\n")


@pytest.fixture
def own_signals():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGALRM)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGALRM, before[1])


@pytest.mark.usefixtures("own_signals")
def test_ctrl_c_waits_for_the_end_of_an_import(tmp_path, monkeypatch):
    """NumPy prints a traceback and JAX makes an ImportError of one in the middle of an import."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "interrupted_module.py").write_text(
        "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\n    done = True\n"
        "except BaseException as error:\n    raise ImportError('circular') from error\n"
    )

    def start():
        with ctrl_c.handled():
            import interrupted_module  # pyright: ignore[reportMissingImports]

            assert interrupted_module.done
            signal.sigtimedwait([signal.SIGUSR1], 10)

    with pytest.raises(KeyboardInterrupt):
        start()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # nothing is left to interrupt


@pytest.mark.usefixtures("own_signals")
def test_a_process_in_the_background_goes_on_ignoring_ctrl_c():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with ctrl_c.handled():
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
