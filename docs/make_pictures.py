"""Draws the pictures of the pages from a finished demo: python docs/make_pictures.py runs/demo (needs Chromium)."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.text import Text

PICTURES = Path(__file__).resolve().parent / "pictures"
COLUMNS = 100
FORMAT = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>.{unique_id}-matrix {{ font-family: monospace; font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-family: sans-serif; font-size: 18px; font-weight: bold; }}
{styles}</style><defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>{lines}</defs>{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g></g></svg>
"""  # rich's own form asks a server for its font


def terminal(command: list[str]) -> list[str]:
    """Returns the lines that a command leaves on a terminal of 100 columns, what it wrote over left out."""
    main, other = pty.openpty()
    environment = os.environ | {"COLUMNS": str(COLUMNS), "LINES": "40", "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdout=other, stderr=other, env=environment, close_fds=True)
    os.close(other)
    written = b""
    while process.poll() is None or select.select([main], [], [], 0.2)[0]:
        try:
            written += os.read(main, 65536) if select.select([main], [], [], 0.2)[0] else b""
        except OSError:
            break
    lines: list[str] = []
    for line in written.decode("utf-8", "replace").replace("\r\n", "\n").split("\n"):
        shown = line.split("\r")[-1]  # a live line is written over: what stands last stays
        shown = re.sub(r"\x1b\[[0-9;?]*[A-LN-Za-ln-z]", "", shown)
        if shown.strip():
            lines.append(shown)
    return lines


def draw_terminal(folder: Path) -> None:
    target = folder / "picture"
    shutil.rmtree(target, ignore_errors=True)
    words = ["train", "demo.yaml", "--max_steps", "60", "--logging_steps", "10", "--output_dir", str(target)]
    program = shutil.which("alignlab", path=str(Path(sys.executable).parent)) or "alignlab"
    lines = terminal([program, *words])
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ alignlab {' '.join(words)}", style="bold"))
    first = next(place for place, line in enumerate(lines) if line.startswith("train data"))
    for line in lines[first:]:
        console.print(Text.from_ansi(line), no_wrap=True, overflow="crop")
    console.save_svg(str(PICTURES / "terminal.svg"), title="alignlab train", code_format=FORMAT)


def draw_report(folder: Path) -> None:
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1100, "height": 1250})
        page.goto((folder / "dpo" / "report.html").resolve().as_uri())
        content = page.screenshot()
        browser.close()
    Image.open(io.BytesIO(content)).quantize(64).save(PICTURES / "report.png", optimize=True)


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    draw_report(Path(sys.argv[1]))
    draw_terminal(Path(sys.argv[1]))
