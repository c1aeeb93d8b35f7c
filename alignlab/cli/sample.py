"""``alignlab sample``: draws answers to prompts, shard by shard, into one file."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .console import start_logging
from .evaluate import read_judge
from .launched import leave
from .parsers import add_reader, both_ways, with_examples

ENGINE_HELP = """transformers (the default: seeded and exact), continuous (transformers' continuous batching), or an
OpenAI-compatible address http://.../v1; with options as '{name: http://.../v1, model: NAME, workers: 16}'"""
AS_HELP = """FILE holds the questions of a benchmark, and the output is what its judges read; one greedy answer to each,
unless --temperature is given"""


def add_to(commands: Any) -> None:
    """Names the command; its options are those of a parser of its own."""
    add_reader(commands, "sample", "draw answers to prompts: alignlab sample MODEL --prompts FILE --output FILE")


def main(words: Sequence[str]) -> int:
    """Samples as the words say; returns the exit status."""
    parser = _parser()
    if parser.parse_args(words).form:
        parser.set_defaults(samples=1, temperature=0.0)
    told = vars(parser.parse_args(words))
    start_logging()
    from alignlab.config import ModelOptions
    from alignlab.sampling import Sampled, SampleOptions, answer_benchmark, sample

    options = {name: told[name] for name in SampleOptions.__dataclass_fields__}
    model = {name: told[name] for name in ("tokenizer", "dtype", "trust_remote_code", "load_in_4bit")}
    asked = Sampled(
        model=ModelOptions(told["model"], **model),
        prompts=told["prompts"],
        output=told["output"],
        options=SampleOptions(**options),
        engine=read_judge(told["engine"]) or "transformers",
        most=told["most"],
    )
    whole = True
    if told["form"]:
        answer_benchmark(asked, told["form"], told["generator"] or Path(told["model"]).resolve().name)
    else:
        whole = sample(asked)
    if whole and os.environ.get("RANK", "0") == "0":
        print(f"answers: {told['output']}", flush=True)
    return leave(0)


def _parser() -> argparse.ArgumentParser:
    text = """Draw answers to prompts, each by a seed of its own. A kill loses one batch: the same command goes on.
Ranks (torchrun --nproc-per-node 8 -m alignlab sample ...) and jobs of a Slurm array share the work; the file is the
same whoever drew what."""
    example = "alignlab sample path/to/model --prompts prompts.jsonl --samples 8 --output answers.jsonl"
    bench = "alignlab sample path/to/model --prompts question.jsonl --as mt_bench --output answers.jsonl"
    shown = with_examples(example, f"{example} --max-new-tokens 1024 --temperature 0.8", bench)
    parser = argparse.ArgumentParser(prog="alignlab sample", description=text, allow_abbrev=False, **shown)
    add = both_ways(parser)
    add("model", metavar="MODEL", help="folder or hub id; a folder with an adapter brings its base")
    add("--prompts", required=True, metavar="FILE", help="rows with a prompt: of any form that can be trained on")
    add("--output", required=True, type=Path, metavar="FILE.jsonl", help="the answers, a line a prompt")
    add("--as", dest="form", choices=("alpaca_eval", "mt_bench"), help=AS_HELP)
    add("--generator", metavar="NAME", help="of the model in such a file (the last part of MODEL)")
    add("--samples", type=int, default=8, metavar="K", help="answers a prompt (%(default)s)")
    add("--engine", default="transformers", metavar="ENGINE", help=ENGINE_HELP)
    add("--max-new-tokens", type=int, default=512, metavar="N", help="tokens of an answer (%(default)s)")
    add("--temperature", type=float, default=1.0, help="1: the model's own distribution; 0: greedy (%(default)s)")
    add("--top-p", type=float, default=1.0, metavar="P", help="draw from the likeliest tokens that hold so much")
    add("--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest tokens; 0: from all")
    add("--seed", type=int, default=0, help="of all answers together (%(default)s)")
    add("--round", type=int, default=1, metavar="R", help="of a loop: every round draws others (%(default)s)")
    add("--most", type=int, metavar="N", help="answer only the first N prompts")
    add("--batch-size", type=int, default=32, metavar="N", help="answers at a time (%(default)s)")
    add("--tokenizer", metavar="PATH", help="by default that of MODEL")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto", help="of the weights (as saved)")
    add("--load-in-4bit", action="store_true", help="quantise the base of an adapter to 4 bits (bitsandbytes)")
    add("--trust-remote-code", action="store_true", help="run code that the model's repository brings")
    return parser
