"""`parallax compress_quality`: bad input ends at once, in one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
BAD = {
    "data": (["--data=/none"], "data /none: No such file"),
    "share": (["--budget_share=0"], "budget_share must be above 0"),
    "steps": (["--train_steps=0"], "--train_steps=0"),
    "out": (["--out=/proc/none"], "--out=/proc/none"),
}


@pytest.fixture(scope="module")
def bad_runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    code = (
        "import json, io, contextlib\n"
        "from parallax.experiments.__main__ import main\n"
        "out = {}\n"
        f"for name, arguments in {json.dumps({k: v[0] for k, v in BAD.items()})}.items():\n"
        "    err = io.StringIO()\n"
        "    with contextlib.redirect_stderr(err):\n"
        "        try:\n"
        "            main(['parallax', 'compress_quality', *arguments])\n"
        "        except SystemExit as stop:\n"
        "            out[name] = stop.code, err.getvalue()\n"
        "print(json.dumps(out))\n"
    )
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=folder,
        env=environment, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert list(folder.iterdir()) == []
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_status_2(name, bad_runs):
    status, err = bad_runs[name]
    assert status == 2
    assert err.startswith("parallax compress_quality: ")
    assert BAD[name][1] in err
    assert len(err.strip().splitlines()) == 1
