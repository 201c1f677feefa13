"""A browser without a network, for pages on disk."""

import os
import shutil
from pathlib import Path

import pytest

# Debian's launcher; PARALLAX_CHROMIUM names another.
CHROMIUM = os.environ.get("PARALLAX_CHROMIUM") or shutil.which("chromium")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@pytest.fixture(scope="module")
def browser():
    """Chromium; skips where it or the `browser` extra is missing, and says which."""
    if CHROMIUM is None or not Path(CHROMIUM).exists():
        pytest.skip("no chromium: apt-get install chromium, or name it in PARALLAX_CHROMIUM")
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install -e '.[browser]'"
    )
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        chromium.close()
