"""``alignlab plan``: a config's memory on each GPU, as a table or as JSON."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .console import show
from .parsers import add_reader, with_examples

if TYPE_CHECKING:
    from alignlab.planner import Plan

MEANING = {
    "weights": "as they are stored on this rank",
    "gradients": "that stand beside the rest at the fullest moment",
    "optimiser": "its states; under ZeRO also the float32 weights it steps",
    "activations": "kept for the backward, and the backward's own",
    "logits": "of the LM head, chunk by chunk where that pays",
    "reference": "weights of a live reference of its own",
    "communication": "buckets of gradients; under ZeRO-3 the weights gathered at one time",
    "framework": "CUDA context, NCCL, what the allocator loses: assumed, not measured",
}


def add_to(commands: Any) -> None:
    """Names the command; its options are those of a parser of its own, and the keys of the config."""
    text = "memory on each GPU before it is spent: alignlab plan CONFIG.yaml --gpus 8 --gpu-memory 80 [--KEY VALUE ...]"
    add_reader(commands, "plan", text)


def main(words: Sequence[str]) -> int:
    """Plans a config; returns 0 if it fits, 1 if not."""
    options, overrides = _parser().parse_known_args(words)
    from alignlab.config import find_config, load_config, read_recipe
    from alignlab.planner import plan

    config = load_config(options.config, overrides)
    gpus, gpu_memory = read_recipe(find_config(options.config)).cards or (1, 80.0)
    gpus = gpus if options.gpus is None else options.gpus
    gpu_memory = gpu_memory if options.gpu_memory is None else options.gpu_memory
    found = plan(config, gpus, gpu_memory, options.prompt_tokens, options.completion_tokens)
    if options.json:
        print(json.dumps({**asdict(found), "peak": found.estimate.peak}, indent=2))
    else:
        _show(found)
        if config.training.get("fsdp"):
            print("fsdp: counted as DeepSpeed's ZeRO-3, without its buckets")
    return 0 if found.fits else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="alignlab plan",
        description="Estimate the memory of a run on each GPU, before any weight is loaded.",
        allow_abbrev=False,
        **with_examples(
            "alignlab plan dpo.yaml --model.name_or_path path/to/sft-model --data.train pairs.jsonl",
            "alignlab plan dpo.yaml --gpus 8 --gpu-memory 80 --deepspeed zero3.json --max_length 4096 ...",
            "alignlab plan zephyr_dpo_7b --gpus 4",
            text="Every other --KEY VALUE is one of the config. Exit status: 0 it fits, 1 it does not.",
        ),
    )
    add = parser.add_argument
    add("config", metavar="CONFIG", help="a YAML file, or the name of a shipped config or recipe")
    add("--gpus", type=int, help="ranks, one a GPU (default: as the head of a recipe says, else 1)")
    add("--gpu-memory", type=float, help="of each, in GB (default: as the head of a recipe says, else 80)")
    add("--prompt-tokens", type=int, help="of the longest rows; by default half of max_length")
    add("--completion-tokens", type=int, help="of each completion; by default the rest of max_length")
    add("--json", action="store_true", help="print it for programs, in bytes")
    return parser


def _show(found: Plan) -> None:
    from rich.table import Table

    from alignlab.planner import GB

    one = found.estimate
    title = (
        f"{one.total / 1e6:,.0f}M parameters, {one.trained / 1e6:,.1f}M trained; {found.gpus} x {found.gpu_memory:g} GB"
    )
    table = Table(
        "on each GPU", "GB", "", title=f"{title}; {found.tokens:,} tokens a micro-batch", title_justify="left"
    )
    table.columns[1].justify = "right"
    for name, size in one.gpu.items():
        table.add_row(name, f"{size / GB:,.2f}", MEANING[name])
    table.add_section()
    table.add_row("peak", f"{one.peak / GB:,.2f}", "fits" if found.fits else f"does not fit in {found.gpu_memory:g} GB")
    show(table)
    if one.host:
        print(f"in the host's memory, for each rank: {one.host / GB:,.2f} GB")
    if one.cache:
        print(f"cached scores on disk: {one.cache / 1e6:,.1f} MB for 1000 rows")
    if found.fits:
        return
    for change in found.changes:
        print(f"{'fits' if change.fits else 'no  '} {change.peak / GB:8,.2f} GB  {shlex.join(change.words)}")
    if not any(change.fits for change in found.changes):
        print("nothing tried here makes it fit: more GPUs, shorter rows (max_length), or a smaller model")
