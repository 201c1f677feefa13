"""`parallax train` by several processes on a small published folder, for tests of its endings."""

import json
import re
import time
from pathlib import Path

from tests.distributed.running import ROOT, free_port, started, wait

MODEL = ROOT / "tests" / "models" / "huggingface" / "golden" / "llama"
STRATEGY = ("--strategy=data_parallel", "--mesh=data=4")


def commands(count, workdir, data, *flags):
    """The command line of each process, without Python."""
    port = free_port()
    given = (
        "-m", "parallax.experiments", "train", f"--model={MODEL}", f"--data={data}",
        f"--workdir={workdir}", "--virtual", "--dtype=float64", "--batch=8", "--seq_len=16",
        *(STRATEGY if not any(f.startswith("--strategy") for f in flags) else ()), *flags,
    )  # fmt: skip
    if count == 1:
        return [given]
    several = ("--distributed", f"--coordinator=localhost:{port}", f"--num_processes={count}")
    return [(*given, *several, f"--process_id={k}") for k in range(count)]


def losses(workdir):
    """The losses of a run by step, from its metrics."""
    path = Path(workdir) / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return {x["step"]: x["loss"] for x in map(json.loads, lines)}


def complete(workdir):
    """The newest complete step; 0 for none."""
    names = (p.parent.name for p in Path(workdir).glob("checkpoints/*/_CHECKPOINT_METADATA"))
    return max((int(name) for name in names if name.isdigit()), default=0)


def wait_until(true, processes, folder, timeout=180):
    """Wait until something is so while all processes run."""
    end = time.monotonic() + timeout
    while not true():
        running = [p.poll() is None for p in processes]
        said = [(folder / f"{k}.err").read_text()[-1500:] for k in range(len(processes))]
        assert all(running), said
        assert time.monotonic() < end, said
        time.sleep(0.02)


def kill_one(folder, workdir, data, random, victim_of=2, count=2):
    """Train, kill a random process at a random time after a save; returns what was seen."""
    folder.mkdir(parents=True, exist_ok=True)
    before = complete(workdir)
    flags = ("--steps=100000", "--save_every=1", "--keep=3")
    with started(commands(count, workdir, data, *flags), folder) as processes:
        wait_until(lambda: complete(workdir) > before + 1, processes, folder)
        time.sleep(random.uniform(0, 0.5))
        victim = int(random.integers(victim_of))
        processes[victim].kill()
        at = time.monotonic()
        ended = wait(processes, folder)
    said = (folder / "0.err").read_text()
    resumed = re.search(r"resuming from step (\d+)", said)
    return {
        "before": before, "resumed": int(resumed[1]) if resumed else 0, "victim": victim,
        "others": [one for k, one in enumerate(ended) if k != victim],
        "seconds": max(one.at - at for k, one in enumerate(ended) if k != victim),
        "newest": complete(workdir),
    }  # fmt: skip
