"""Pages in headless Chromium, as a person sees them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium; Debian: apt-get install chromium")


def chromium(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run Chromium without a window, with its profile in `folder`."""
    assert CHROMIUM is not None
    return subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={folder / 'profile'}", *options,
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip


def on_a_phone(page: Path) -> dict[str, Any]:
    """Open a page 400 pixels wide.

    Returns:
        `scroll`: width of the page; `client`: width of what is seen of it; `heading`: height of the tallest
        heading of a table, all in pixels.
    """
    frame = page.with_name("phone.html")
    frame.write_text(
        f"""<iframe src="{page.name}" style="width: 400px; height: 800px; border: 0"></iframe><script>
        onload = () => {{ const page = frames[0].document;
            const heights = [...page.querySelectorAll("th")].map(heading => heading.offsetHeight);
            document.title = JSON.stringify({{scroll: page.documentElement.scrollWidth,
                client: page.documentElement.clientWidth, heading: Math.max(...heights)}}) }}</script>"""
    )
    options = "--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom"
    done = chromium(page.parent, *options, frame.as_uri())
    found = re.search(r"<title>(.*)</title>", done.stdout)
    assert found is not None
    return json.loads(unescape(found[1]))
