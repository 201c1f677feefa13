"""One table for a terminal, a page and a Markdown file: heads with tags, rows of cells, lines."""

from dataclasses import dataclass
from html import escape

from rich.console import Group, RenderableType
from rich.table import Table, box
from rich.text import Text

from parallax.report.facts import Cell
from parallax.report.words import markdown_row
from parallax.results.lens_results import TAGS, Tag

_STYLES = {"good": "green", "bad": "bold red", "plain": ""}

Heads = tuple[tuple[str, Tag | None], ...]


@dataclass(frozen=True)
class DataTable:
    """A table that every output renders in its own way.

    Attributes:
      title: the heading above the table.
      heads: each column's name and its numbers' tag; None for names and words.
      rows: one cell per head.
      lines: sentences below the table.
    """

    title: str
    heads: Heads
    rows: tuple[tuple[Cell, ...], ...]
    lines: tuple[str, ...] = ()

    def __post_init__(self):
        wide = {len(row) for row in self.rows} - {len(self.heads)}
        assert not wide, f"{self.title}: rows of {wide} cells under {len(self.heads)} heads"


def grid_table(grid: DataTable) -> RenderableType:
    """Render a table for a rich console."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), show_edge=False)
    for head, tag in grid.heads:
        name = Text(head)
        name.append(f"\n{tag}" if tag else "", style="dim")
        table.add_column(name, justify="right" if tag else "left", overflow="fold")
    for row in grid.rows:
        table.add_row(*(Text(cell.text, style=_STYLES[cell.status]) for cell in row))
    return Group(Text(grid.title, style="bold"), table, *(Text(line) for line in grid.lines))


def grid_html(grid: DataTable) -> str:
    """Render a heading, a table and paragraphs for a page with the report's style."""
    heads = "".join(
        f'<th scope="col"{_number(tag)}>{escape(head)}{_tag(tag)}</th>' for head, tag in grid.heads
    )
    rows = "".join(f"<tr>{''.join(_cells(grid, row))}</tr>\n" for row in grid.rows)
    lines = "".join(f'<p class="small">{escape(line)}</p>\n' for line in grid.lines)
    return (
        f'<h2>{escape(grid.title)}</h2>\n<div class="scroll" tabindex="0" role="group" '
        f'aria-label="{escape(grid.title)}">\n<table>\n'
        f'<caption class="hidden">{escape(grid.title)}</caption>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n{lines}"
    )


def grid_markdown(grid: DataTable) -> str:
    """Render a table as a section of a Markdown page."""
    heads = [head + (f" ({tag})" if tag else "") for head, tag in grid.heads]
    lines = [f"## {grid.title}", "", markdown_row(*heads)]
    lines.append("|" + "".join("---:|" if tag else "---|" for _, tag in grid.heads))
    lines += [markdown_row(*(cell.text for cell in row)) for row in grid.rows]
    for line in grid.lines:
        lines += ["", line]
    return "\n".join(lines) + "\n"


def _cells(grid: DataTable, row: tuple[Cell, ...]):
    for i, ((_, tag), cell) in enumerate(zip(grid.heads, row, strict=True)):
        classes = [*(["number"] if tag else []), *([cell.status] if cell.status != "plain" else [])]
        said = f' class="{" ".join(classes)}"' if classes else ""
        if i == 0 and not tag:
            yield f'<th scope="row"{said}>{escape(cell.text)}</th>'
        else:
            yield f"<td{said}>{escape(cell.text)}</td>"


def _number(tag: Tag | None) -> str:
    return ' class="number"' if tag else ""


def _tag(tag: Tag | None) -> str:
    return f'<br><span class="tag" title="{escape(TAGS[tag])}">{tag}</span>' if tag else ""
