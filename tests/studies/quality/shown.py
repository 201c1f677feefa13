"""A rich renderable as text."""

import io

from rich.console import Console


def shown(renderable, width: int = 140) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(renderable)
    return out.getvalue()
