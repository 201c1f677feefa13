"""The files in examples/: shells parse them, their commands are the command's own, two run."""

import os
import re
import shlex
import shutil
import socket
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from parallax.experiments.__main__ import EXPERIMENTS
from parallax.experiments.flags import read_flags
from parallax.experiments.launch import command_module
from parallax.models import huggingface
from parallax.programs.sharded_model import ShardedTransformer
from parallax.strategies import data_parallel
from parallax.workload import Workload

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
SCRIPTS = ("mpirun.sh", "slurm.sbatch", "two_shells.sh")
# Options of sbatch, and what they take.
DIRECTIVES = {
    "job-name": r"[\w-]+", "nodes": r"\d+", "gpus-per-node": r"\d+", "ntasks-per-node": r"\d+",
    "cpus-per-task": r"\d+", "time": r"\d+:\d\d:\d\d", "signal": r"TERM@\d+", "requeue": None,
    "open-mode": r"append|truncate", "output": r"\S*%j\S*",
}  # fmt: skip
# What the scripts start instead of the real commands: each writes its arguments down.
STUBS = {
    "parallax": 'echo "$@" >> calls; echo "${SAID:-done. Step 1}"; exit "${STATUS:-0}"',
    "srun": 'while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "mpirun": (
        '[[ $1 == --version ]] && { echo "mpirun (Open MPI) ${OPEN_MPI:-4.1.4}"; exit; }\n'
        'while [[ $1 != parallax ]]; do shift; done; exec "$@"'
    ),
    "scontrol": 'echo "$@" >> requeued',
}


def parsed(arguments):
    """The flags of a command line after `parallax`, as the command reads them."""
    name, *rest = arguments
    return name, read_flags(command_module(name).Flags, ["parallax", *rest])


@pytest.fixture
def run_script(tmp_path):
    """Runs a script among stubs: (exit status, command lines after `parallax`)."""
    for name, body in STUBS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)

    def run(script, *arguments, **environment):
        path = f"{tmp_path}:{os.environ['PATH']}"
        made = subprocess.run(
            ["bash", EXAMPLES / script, *arguments],
            cwd=tmp_path, env={**os.environ, "PATH": path, **environment},
            capture_output=True, text=True,
        )  # fmt: skip
        calls = (tmp_path / "calls").read_text().splitlines()
        return made.returncode, [shlex.split(line) for line in calls]

    return run


def test_every_example_says_what_it_needs():
    found = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    assert found == {*SCRIPTS, "jobset.yaml"}
    for name in found:
        text = (EXAMPLES / name).read_text(encoding="utf-8")
        for word in ("# Needs:", "# Change:", "# Start:"):
            assert word in text, (name, word)


@pytest.mark.parametrize("name", SCRIPTS)
def test_bash_parses_it(name):
    subprocess.run(["bash", "-n", EXAMPLES / name], check=True)


@pytest.mark.parametrize("name", [*SCRIPTS, "jobset.yaml"])
def test_commands_in_its_comments_are_taken(name):
    text = re.sub(r"\\\n# *", "", (EXAMPLES / name).read_text(encoding="utf-8"))
    lines = re.findall(rf"^# +parallax ((?:{'|'.join(EXPERIMENTS)}) .*)$", text, re.MULTILINE)
    # What follows mpirun.sh is a command's flags.
    lines += [
        f"train {rest}" for rest in re.findall(r"^# .*mpirun\.sh (--.*)$", text, re.MULTILINE)
    ]
    assert lines or name == "two_shells.sh"
    for line in lines:
        parsed(shlex.split(line))


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_starts_commands_that_are_taken(name, run_script):
    hosts = {"HOSTFILE": ""} if name == "mpirun.sh" else {}
    status, calls = run_script(name, **hosts)
    assert status == 0
    made = [parsed(call) for call in calls]
    assert any(command == "train" and flags.processes.distributed for command, flags in made)


def test_two_shells_are_two_processes_and_one_that_resumes(run_script):
    _, calls = run_script("two_shells.sh")
    plan, *train = [parsed(call)[1] for call in calls]
    assert plan.request.phase == "train"
    first, second, after = (flags for flags in train)
    assert {flags.processes.process_id for flags in (first, second)} == {0, 1}
    assert not after.processes.distributed
    assert after.request.workdir == first.request.workdir
    assert after.request.steps > first.request.steps


@pytest.mark.parametrize(("version", "found"), [("4.1.4", None), ("5.0.3", "node1:12345")])
def test_open_mpi_5_is_told_where_process_0_is(version, found, run_script, tmp_path):
    (tmp_path / "hosts").write_text("# two nodes\n\nnode1 slots=8\nnode2 slots=8\n")
    _, [call] = run_script("mpirun.sh", OPEN_MPI=version)
    assert parsed(call)[1].processes.coordinator == found


def test_sbatch_takes_its_directives():
    text = (EXAMPLES / "slurm.sbatch").read_text(encoding="utf-8")
    before, *_ = text.split("\nset -")  # sbatch stops at the first command
    given = dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", before, re.MULTILINE))
    assert set(given) == set(DIRECTIVES)
    assert text.count("#SBATCH") == len(given)
    for name, value in given.items():
        assert re.fullmatch(DIRECTIVES[name] or "", value), (name, value)
    assert int(given["ntasks-per-node"]) in (1, int(given["gpus-per-node"]))


@pytest.mark.parametrize(
    ("said", "status", "restarts", "requeued"),
    [
        ("done. Step 9", "0", "0", False),
        ("stopped; step 9 is saved", "0", "0", True),
        ("", "3", "0", True),
        ("", "137", "0", True),
        ("", "3", "5", False),
        ("", "2", "0", False),
        ("", "1", "0", False),
    ],
)
def test_a_slurm_job_goes_back_to_the_queue_where_it_can_go_on(
    said, status, restarts, requeued, run_script, tmp_path
):
    found, _ = run_script(
        "slurm.sbatch", SAID=said, STATUS=status, SLURM_RESTART_COUNT=restarts, SLURM_JOB_ID="7"
    )
    assert found == int(status)
    assert (tmp_path / "requeued").exists() == requeued


def test_the_jobset_has_its_shape():
    text = (EXAMPLES / "jobset.yaml").read_text(encoding="utf-8")
    account, role, binding, jobset = yaml.safe_load_all(text)
    kinds = [part["kind"] for part in (account, role, binding, jobset)]
    assert kinds == ["ServiceAccount", "Role", "RoleBinding", "JobSet"]
    assert jobset["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"][0]["name"] == account["metadata"]["name"]
    allowed = {(resource, verb) for rule in role["rules"] for resource in rule["resources"]
               for verb in rule["verbs"]}  # fmt: skip
    # What jax._src.clusters.k8s_cluster calls: list_namespaced_pod, read_namespaced_job.
    assert {("pods", "list"), ("jobs", "get")} <= allowed
    # JAX takes the number of processes from one job's parallelism: two replicas would be two runs.
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    assert replicated["replicas"] == 1
    assert job["parallelism"] == job["completions"] == 2
    assert job["completionMode"] == "Indexed"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert pod["serviceAccountName"] == account["metadata"]["name"]
    (rule,) = job["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}
    program, *arguments = container["command"]
    assert program == "parallax"
    assert parsed(arguments)[1].processes.distributed


def environment(**more):
    return {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **more}


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return str(one.getsockname()[1])


@pytest.mark.full
def test_two_shells_run_here(tmp_path):
    data_parallel(8).save(tmp_path / "strategy.json")
    made = subprocess.run(
        ["bash", EXAMPLES / "two_shells.sh"], cwd=tmp_path, capture_output=True, text=True,
        env=environment(PORT=free_port(), PLAN=".", WORKDIR="run", STEPS="1"), timeout=600,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    ends = re.findall(r"^done\. Step (\d)", made.stdout, re.MULTILINE)
    assert ends == ["1", "2"]  # process 0 alone speaks
    assert "done. Step 1" in (tmp_path / "run/logs/process-1.log").read_text()
    assert "resuming from step 1" in made.stderr


@pytest.mark.slow
def test_mpirun_runs_here(tmp_path):
    if shutil.which("mpirun") is None:
        pytest.skip("no mpirun on this machine; apt-get install openmpi-bin")
    flags = (
        "--virtual", "--model=ring_sp", "--small", f"--data={ROOT / 'README.md'}", "--workdir=run",
        "--strategy=data_parallel", "--mesh=data=2", "--batch=2", "--seq_len=16", "--steps=1",
    )  # fmt: skip
    made = subprocess.run(
        ["bash", EXAMPLES / "mpirun.sh", *flags], cwd=tmp_path, capture_output=True, text=True,
        env=environment(PROCESSES="2", PER_NODE="2", HOSTFILE=""), timeout=600,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert made.stdout.count("done. Step 1") == 1
    assert "2 processes on 1 node(s)" in made.stderr


def test_the_tiny_model_is_small_and_has_read_the_documentation():
    folder = EXAMPLES / "tiny"
    assert sum(file.stat().st_size for file in folder.iterdir()) < 300_000
    text = (ROOT / "docs/lessons.md").read_bytes()[: 8 * 128]
    tokens = np.frombuffer(text, np.uint8).astype(np.int32).reshape(8, 128)
    strategy = data_parallel(1)
    mesh = strategy.mesh.build(jax.devices()[:1])
    sharded = ShardedTransformer(huggingface.read_config(folder), strategy, Workload(8, 128))
    logits = jax.jit(sharded.forward(mesh, "all"))(huggingface.load(folder, sharded, mesh), tokens)
    said = np.asarray(jax.nn.log_softmax(logits)[:, :-1])
    nats = -np.take_along_axis(said, tokens[:, 1:, None], -1).mean()
    assert nats < 2  # random weights have 5.5
