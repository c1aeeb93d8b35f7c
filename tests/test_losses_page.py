"""The page on the losses is the one that is made from them now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from alignlab import losses

DOCS = Path(__file__).parents[1] / "docs"


def test_page_is_the_generated_one(tmp_path: Path) -> None:
    (tmp_path / "make.py").write_text((DOCS / "make_losses_table.py").read_text(encoding="utf-8"), encoding="utf-8")
    subprocess.run([sys.executable, str(tmp_path / "make.py")], check=True)
    committed = (DOCS / "losses.md").read_text(encoding="utf-8")
    assert (tmp_path / "losses.md").read_text(encoding="utf-8") == committed, "run python docs/make_losses_table.py"


def test_every_loss_has_its_line_with_formula_paper_and_names_elsewhere() -> None:
    lines = (DOCS / "losses.md").read_text(encoding="utf-8").splitlines()
    for name in losses.names():
        (line,) = [line for line in lines if line.startswith((f"| `{name}` |", f"| `{name}`<br>"))]
        cells = [cell.strip() for cell in line.replace("\\|", "").strip("|").split("|")]
        assert len(cells) == 6, line
        described = losses.describe(name)
        assert all([described.formula, described.source, described.elsewhere]), name
        assert all(f"`{option}: " in cells[3] for option in described.defaults), name
