"""``alignlab eval``: measures a model on held-out pairs and on sampled answers."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .console import quiet_libraries, show
from .launched import leave
from .parsers import add_reader, with_examples

JUDGE_HELP = """file.py:function, a reward model's path, or an OpenAI-compatible address https://.../v1; with options as
'{name: https://.../v1, model: NAME, max_requests: 200}'"""


def add_to(commands: Any) -> None:
    """Names the command; its options are those of a parser of its own."""
    text = "measure a model on held-out pairs and on sampled answers: alignlab eval MODEL --data FILE"
    add_reader(commands, "eval", text)


def main(words: Sequence[str]) -> int:
    """Evaluates as the words say, prints tables, and returns the exit status."""
    arguments = vars(_parser().parse_args(words))
    from alignlab.evaluation import EvalOptions, evaluate

    quiet_libraries()
    harness = {name: arguments.pop(name) for name in ("lm_eval", "lm_eval_tasks", "lm_eval_limit", "lm_eval_chat")}
    if arguments["data"] is None and harness["lm_eval"] is None:
        raise ValueError(
            "--data: expected held-out pairs, or --lm-eval with tasks of lm-evaluation-harness; found neither"
        )
    if harness["lm_eval"] is not None:
        _run_harness(harness, arguments)
    if arguments["data"] is None:
        return leave(0)
    judge = read_judge(arguments.pop("judge"))
    unlimited = arguments["max_length"] == 0
    options = EvalOptions(**{**arguments, "judge": judge} | ({"max_length": None} if unlimited else {}))
    result = evaluate(options, say=lambda text: print(f"alignlab: {text}", file=sys.stderr))
    show(*tables(result))
    return leave(0)


def _run_harness(harness: dict[str, Any], arguments: dict[str, Any]) -> None:
    """Runs tasks of lm-evaluation-harness, shows their figures, and writes them beside the others."""
    from rich.table import Table

    from alignlab.evaluation import HarnessOptions, run_harness

    shared = {
        name: arguments[name] for name in ("model", "tokenizer", "batch_size", "dtype", "seed", "trust_remote_code")
    }
    tasks = tuple(one.strip() for one in harness["lm_eval"].split(","))
    told = {
        name: harness[f"lm_eval_{key}"] for name, key in (("include", "tasks"), ("limit", "limit"), ("chat", "chat"))
    }
    found = run_harness(HarnessOptions(**shared, tasks=tasks, **told))
    table = Table("task", "figure", "value", title="lm-evaluation-harness", title_justify="left")
    for task, figures in found.items():
        for name, value in figures.items():
            table.add_row(task, name, f"{value:.4g}")
        table.add_section()
    if found:
        show(table)
    output: Path | None = arguments["output"]
    if output is not None and found:
        path = output if arguments["data"] is None else output.with_suffix(".lm_eval.json")
        path.write_text(json.dumps({"tasks": found}, indent=2) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    text = "Measure a model on held-out preference pairs, and on answers that it samples."
    sampled = "alignlab eval runs/dpo --reference path/to/sft-model --data held-out.jsonl --generate 200 --samples 4"
    shown = with_examples("alignlab eval runs/dpo --data held-out.jsonl --output eval.json", sampled)
    parser = argparse.ArgumentParser(prog="alignlab eval", description=text, allow_abbrev=False, **shown)
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="folder or hub id of a language model or a reward model; an adapter brings its base",
    )
    add(
        "--data",
        metavar="FILE",
        help="held-out pairs: a file, a folder or a hub id; for a reward model also rows of RewardBench 2",
    )
    add("--reference", metavar="MODEL", help="what rewards and divergence are measured against")
    add("--tokenizer", metavar="PATH", help="by default that of MODEL")
    add(
        "--beta",
        type=float,
        default=0.1,
        help="the reward is beta (log p - log q), and calibration depends on it (%(default)s)",
    )
    add("--generate", type=int, default=0, metavar="N", help="sample answers to N different prompts of the data")
    add("--samples", type=int, default=1, metavar="K", help="answers a prompt (%(default)s)")
    add("--judge", metavar="JUDGE", help=f"compares answers with the chosen completions: {JUDGE_HELP}")
    _add_harness(add)
    add("--output", type=Path, metavar="FILE.json", help="write the figures there")
    add("--rows", type=Path, metavar="FILE.jsonl", help="write every pair and every answer there")
    add("--batch_size", type=int, default=8, metavar="N", help="pairs or answers a forward (%(default)s)")
    add(
        "--max_length",
        type=int,
        default=1024,
        metavar="N",
        help="tokens of a row; 0: no limit (%(default)s)",
    )
    add("--max_new_tokens", type=int, default=128, metavar="N", help="tokens of an answer (%(default)s)")
    add("--seed", type=int, default=0, help="of the samples (%(default)s)")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="of the weights (as saved)")
    add("--layout", choices=("auto", "packed", "padded"), default="auto", help="how rows are laid out (%(default)s)")
    add("--trust_remote_code", action="store_true", help="run code that the model's repository brings")
    return parser


def _add_harness(add: Callable[..., Any]) -> None:
    add(
        "--lm-eval",
        metavar="TASKS",
        help="tasks of lm-evaluation-harness, with commas between (pip install 'alignlab[eval]')",
    )
    add("--lm-eval-tasks", type=Path, metavar="FOLDER", help="a folder of further tasks, in the harness's YAML")
    add("--lm-eval-limit", type=int, metavar="N", help="documents of each task (all)")
    add("--lm-eval-chat", action="store_true", help="put the chat template around every request")


def read_judge(text: str | None) -> str | dict[str, Any] | None:
    """Returns what ``--judge`` says: a name, or ``{name: ..., option: ...}`` in YAML."""
    if text is None or not text.lstrip().startswith("{"):
        return text
    from alignlab.config import parse_yaml

    value: dict[str, Any] = parse_yaml(text, "--judge")
    return value


def tables(result: dict[str, Any]) -> list[Any]:
    """Returns the figures as tables, a section a block."""
    from rich.table import Table

    from alignlab.evaluation import flat

    found = []
    titles = {"lists": "held-out lists", "pairs": "held-out pairs"}
    if "lists" in result:
        titles["pairs"] = "the best and the worst of held-out lists"
    for part, title in (*titles.items(), ("bench", "RewardBench 2"), ("answers", "sampled answers")):
        if part not in result:
            continue
        table = Table("figure", "value", title=title, title_justify="left")
        sections: dict[str, list[tuple[str, float]]] = {}
        for name, value in flat(result[part]).items():
            sections.setdefault(name.split("/")[0], []).append((name, value))
        for rows in sections.values():
            for name, value in rows:
                table.add_row(name, f"{value:.4g}" if value != int(value) else f"{int(value)}")
            table.add_section()
        found.append(table)
    return found
