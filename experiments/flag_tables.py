"""The tables of flags in docs/api.md, generated from the commands' `Flags`.

python -m parallax.experiments.flag_tables       rewrites them
"""

import re
from pathlib import Path

from parallax.experiments import flags
from parallax.experiments.__main__ import EXPERIMENTS
from parallax.experiments.launch import command_module
from parallax.report.words import markdown_row
from parallax.requests.option import described

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
_TABLE = re.compile(r"\| flag \| default \| meaning \|\n(?:\|.*\n)+")
_OWNERS = re.compile(r"\| flag \| commands \|\n(?:\|.*\n)+")


def flag_table(name: str) -> str:
    """Return the table of a command's flags, each with its default and its meaning."""
    rows = ["| flag | default | meaning |", "|---|---|---|"]
    for one in described(command_module(name).Flags):
        shown = flags.shown_default(one.default)
        default = f"`{shown}`" if shown else ""
        rows.append(markdown_row(f"`--{one.flag}`", default, flags.meaning(one.option)))
    return "\n".join(rows) + "\n"


def owner_table() -> str:
    """Return the table of all flags, each with the commands that have it."""
    owners: dict[str, list[str]] = {}
    for name in EXPERIMENTS:
        for one in described(command_module(name).Flags):
            owners.setdefault(one.flag, []).append(name)
    rows = [markdown_row(f"`--{flag}`", ", ".join(names)) for flag, names in sorted(owners.items())]
    return "\n".join(("| flag | commands |", "|---|---|", *rows)) + "\n"


def with_tables(page: str) -> str:
    """Return the page with its tables regenerated; all other text stays."""
    parts = re.split(r"(?=^## )", page, flags=re.MULTILINE)
    for number, part in enumerate(parts):
        if heading := re.match(r"## `parallax (\w+)`", part):
            if heading[1] in EXPERIMENTS:
                table = flag_table(heading[1])
                parts[number] = _TABLE.sub(lambda _, table=table: table, part)
        elif part.startswith("## Flags"):
            parts[number] = _OWNERS.sub(lambda _: owner_table(), part)
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
