"""Asks ruff and pyright themselves whether they see each Python file once, links or not."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("parallax", "kernels", "meshes", "experiments", "tests", "benchmarks")


def tool_output(*command: str) -> str:
    """Standard output of a tool run in the root, whatever its exit status."""
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout


def main() -> None:
    files = {
        file.resolve()
        for folder in FOLDERS
        for file in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in file.parts
    }
    shown = [Path(line) for line in tool_output("ruff", "check", "--show-files").splitlines()]
    ruff_files = [file.resolve() for file in shown if file.suffix == ".py"]
    if len(ruff_files) != len(set(ruff_files)) or not files <= set(ruff_files):
        sys.exit(f"ruff sees {len(ruff_files)} files, expected each of {len(files)} once")
    analysed = json.loads(tool_output("pyright", "--outputjson"))["summary"]["filesAnalyzed"]
    if analysed != len(files):
        sys.exit(f"pyright sees {analysed} files, expected each of {len(files)} once")
    print(f"ruff and pyright see each of {len(files)} files once")


main()
