"""The demo's rounds: the small model answers, its answers are judged by the true reward, and it learns from them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .console import show

PROMPTS, HELD_OUT, SHOWN = 1536, 128, 3
JUDGES = '''"""Judges of the demo: its true reward, which ranks, and a part of it, which decides when to stop."""

from alignlab.data import toy


def reward(prompt, answer):
    return toy.reward(prompt[-1]["content"], answer)


def helpful(prompt, answer):
    return toy.rewards(prompt[-1]["content"], answer)["helpful"]
'''


@contextmanager
def one_thread() -> Iterator[None]:
    """Keeps torch to one thread: of a model of a million parameters two make no quicker steps, and on a machine that
    is busy they wait for each other at the full cost of both."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
    show(rounds_table(found), best_line(found).strip(), *answers_of(loop.loop.folder, found[-1]["round"]))
    last = loop.loop.folder / f"round-{found[-1]['round']:02}" / "train"
    show(f"\nThe model of the last round: {last}", f"The report: {loop.loop.folder / 'rounds.md'}")


def answers_of(folder: Path, last: int) -> Iterator[str]:
    """Yields the first held-out questions with what was answered at the start and after the last round, and rewards."""
    from alignlab.answers import read_answers

    start, end = (read_answers(folder / f"round-{number:02}" / "watch" / "answers.jsonl") for number in (0, last))
    for _, before, after in zip(range(SHOWN), start, end, strict=False):
        yield f"\n{before.prompt[-1]['content']}"  # type: ignore[index]
        for name, row in (("start", before), (f"round {last}", after)):
            yield f"  {name:8} {row.answers[0].scores['reward'] or 0:+.1f}  {row.answers[0].text}"


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
