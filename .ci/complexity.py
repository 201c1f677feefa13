"""Fails, naming them, where a function is more complex (cyclomatic, by radon) than the limit."""

import subprocess
import sys
from pathlib import Path

from radon.complexity import cc_visit

ROOT = Path(__file__).resolve().parent.parent
LIMIT = 20
LINKED = tuple(f"parallax/{name}" for name in ("kernels", "meshes", "experiments"))


def functions(file: Path) -> list[tuple[int, str, int]]:
    """(complexity, name, line) of every function and method of a file."""
    blocks = cc_visit(file.read_text(encoding="utf-8"))
    methods = [method for block in blocks for method in getattr(block, "methods", ())]
    return [(x.complexity, x.name, x.lineno) for x in (*blocks, *methods) if x.letter != "C"]


def main() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    # `.ci/run` works on a copy without git.
    names = listed.stdout.split() or [
        str(f.relative_to(ROOT)) for f in ROOT.rglob("*.py") if ".venv" not in f.parts
    ]
    found = sorted(
        {(n, name, line, Path(file)) for file in names if not file.startswith(LINKED)
         for n, name, line in functions(ROOT / file)}, key=lambda row: row[0],
    )  # fmt: skip
    over = [row for row in found if row[0] > LIMIT]
    for complexity, name, line, file in over:
        print(f"{file}:{line}: {name}: complexity {complexity}, expected {LIMIT} at most.")
    if over:
        sys.exit(1)
    complexity, name, _, file = found[-1]
    print(f"most complex of {len(found)} functions: {name} in {file}, {complexity}")


main()
