"""The demo's rounds: the small model answers, its answers are judged by the true reward, and it learns from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from .console import show

PROMPTS, HELD_OUT = 1536, 128
JUDGES = '''"""Judges of the demo: its true reward, which ranks, and a part of it, which decides when to stop."""

from alignlab.data import toy


def reward(prompt, answer):
    return toy.reward(prompt[-1]["content"], answer)


def helpful(prompt, answer):
    return toy.rewards(prompt[-1]["content"], answer)["helpful"]
'''


def rounds_of_the_demo(folder: Path, start: Path, rounds: int, seed: int) -> None:
    """Runs a loop from the supervised start, and shows what it did."""
    from alignlab.data import toy
    from alignlab.rounds import Rounds, best_line, round_rows

    from .rounds import rounds_table

    for name, split, count in (("prompts", "train", PROMPTS), ("held-out-prompts", "heldout", HELD_OUT)):
        rows = [{"prompt": toy.user(text)} for text in toy.prompts(count, seed, split)]  # type: ignore[arg-type]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (folder / "judges.py").write_text(JUDGES, encoding="utf-8")
    shutil.rmtree(folder / "rounds", ignore_errors=True)  # an earlier demo's
    loop = Rounds.load(demo_loop(folder, start, rounds, seed))
    loop.run(lambda line: show(f"\n{line}"))
    found = round_rows(loop.loop)
    show(rounds_table(found), best_line(found).strip(), f"The report: {loop.loop.folder / 'rounds.md'}")


def demo_loop(folder: Path, start: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Returns the loop of the demo: 512 prompts a round, four answers each, the best over the worst."""
    return {
        "config": "demo.yaml",
        "output_dir": str(folder / "rounds"),
        "rounds": rounds,
        "start": str(start),
        "prompts": {"path": str(folder / "prompts.jsonl"), "per_round": 512, "repeat": True},
        "sample": {"samples": 4, "max_new_tokens": 64, "batch_size": 256},
        "judge": {"reward": f"{folder / 'judges.py'}:reward"},
        "pair": {"rule": "best_worst"},
        "train": {
            "data.eval": None,
            "seed": seed,
            "score_cache_dir": str(folder / "scores"),
            "loss.beta": 0.5,
            "report_samples": 0,
            "report": False,
        },
        "stop": {
            "prompts": str(folder / "held-out-prompts.jsonl"),
            "judge": f"{folder / 'judges.py'}:helpful",
            "patience": rounds,
        },
        "seed": seed,
    }
