"""Data at the size people have: preparing it, starting on it, and what a rank holds of it in memory.

    python benchmarks/data_size.py [--rows 1000000] [--entries 2000000] [--folder runs/data-size] [--workers 2]

Rows are made from a fixed seed. Four questions, each answered in processes of their own: how rows a second compare with
TRL's DPOTrainer on the same conversations; whether the rate at the full number is that at a tenth of it; how long a
second start takes to its first step, and what a rank holds then and after an epoch's reads; how long a score cache
takes to open. Processor time is given beside the clock: on a busy machine it is the figure to compare.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONVERSATIONS = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--entries", type=int, default=2_000_000)
    parser.add_argument("--conversations", type=int, default=CONVERSATIONS)
    parser.add_argument("--folder", type=Path, default=Path("runs/data-size"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="+", choices=("trl", "growth", "start", "cache"))
    parser.add_argument("--output", type=Path, help="a csv file of the figures")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        told = PARTS[options.part[0]](options.folder, *map(int, options.part[1:]))
        if told:  # the other ranks have nothing to tell
            print(json.dumps(told), flush=True)
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    figures: list[dict[str, Any]] = []
    where = place()
    for name in options.only or ("trl", "growth", "start", "cache"):
        figures += MEASURES[name](options)
    if options.output:
        with options.output.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["measure", "case", "figure", "unit", "machine", "versions"])
            writer.writeheader()
            writer.writerows({**one, **where} for one in figures)


# ---- what is measured ------------------------------------------------------------------------------------------------


def compare_with_trl(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows a second of TRL's preparation and ours, in turns, with one worker and two."""
    write_rows(options.folder / "conversations.jsonl", options.conversations, conversational=True)
    found = []
    for workers in (1, 2):
        case, spent = counted(workers, "worker"), {}
        for name in ("trl", "alignlab"):
            spent[name] = part(options.folder, name, workers)
            found += rates("preparation", f"{name}, {case}", options.conversations, spent[name])
        for kind, unit in {"cpu": "x per cpu s", "clock": "x per s"}.items():
            found.append(figure("preparation, ours to TRL's", case, spent["trl"][kind] / spent["alignlab"][kind], unit))
    return found


def compare_sizes(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows a second of the whole set and of a tenth of it, at a first start."""
    shutil.rmtree(options.folder / "cache", ignore_errors=True)
    found = []
    for rows in (options.rows // 10, options.rows):
        write_rows(options.folder / f"pairs-{rows}.jsonl", rows, conversational=False)
        told = part(options.folder, "first", rows, options.workers)
        found += rates("first start", f"{rows} rows, {counted(options.workers, 'worker')}", rows, told)
        found += [
            figure("first start", f"{rows} rows", told["bytes"] / rows, "bytes/row"),
            figure("first start", f"{rows} rows, the process that prepares", told["peak"], "MB peak"),
        ]
    return found


def start_again(options: argparse.Namespace) -> list[dict[str, Any]]:
    """From the end of imports to the first step, and the memory of a rank, at a start that finds all prepared."""
    write_rows(options.folder / f"pairs-{options.rows}.jsonl", options.rows, conversational=False)
    part(options.folder, "first", options.rows, options.workers)
    found = []
    for ranks in (1, 2):
        case = f"{options.rows} rows, {counted(ranks, 'rank')}"
        told = part(options.folder, "again", options.rows, ranks=ranks)["figures"]
        found += [figure(f"second start, {name}", case, value, unit) for name, value, unit in told]
    return found


def open_scores(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Opening a score cache, with its index, and reading from it."""
    told = part(options.folder, "scores", options.entries)
    case = f"{options.entries} entries"
    return [
        figure("score cache opens", case, told["clock"], "s"),
        figure("score cache opens", case, told["cpu"], "cpu s"),
        figure("score cache opens", case, told["anonymous"], "MB anonymous"),
    ]


MEASURES = {"trl": compare_with_trl, "growth": compare_sizes, "start": start_again, "cache": open_scores}


def rates(measure: str, case: str, rows: int, told: dict[str, float]) -> list[dict[str, Any]]:
    units = {"cpu": "rows/cpu s", "clock": "rows/s"}
    return [figure(measure, case, rows / told[kind], unit) for kind, unit in units.items()]


def counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"


def figure(measure: str, case: str, value: float, unit: str) -> dict[str, Any]:
    print(f"{measure:40} {case:32} {value:12,.1f} {unit}", flush=True)
    return {"measure": measure, "case": case, "figure": f"{value:.2f}", "unit": unit}


def part(folder: Path, *words: object, ranks: int = 1) -> dict[str, Any]:
    """Runs one part in a process of its own (in several ranks, that of rank 0) and returns what it prints last."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, __file__, "--folder", str(folder), "--part", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    told: dict[str, Any] = json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])
    return told


# ---- in a process of its own -----------------------------------------------------------------------------------------


def trl(folder: Path, workers: int) -> dict[str, float]:
    import trl as package
    from datasets import disable_caching, load_dataset
    from transformers import AutoModelForCausalLM

    disable_caching()
    kwargs: dict[str, Any] = {"report_to": "none", "bf16": False, "dataset_num_proc": workers, "use_cpu": True}
    args = package.DPOConfig(output_dir=str(folder / "trl-run"), **kwargs)
    tokenizer, saved = make_tokenizer(), folder / "model"
    AutoModelForCausalLM.from_config(tiny()).save_pretrained(saved)
    tokenizer.save_pretrained(saved)
    model = AutoModelForCausalLM.from_pretrained(saved)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        began = stopwatch()  # both read the file: ours does nothing before it either
        rows = load_dataset("json", data_files=str(folder / "conversations.jsonl"), cache_dir=scratch)["train"]
        package.DPOTrainer(model=model, args=args, train_dataset=rows, processing_class=tokenizer)
        return began()


def alignlab(folder: Path, workers: int) -> dict[str, float]:
    from alignlab.data import DataOptions, prepare

    tokenizer, began = make_tokenizer(), stopwatch()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        source = str(folder / "conversations.jsonl")
        prepare(source, tokenizer, DataOptions(), progress=False, workers=workers, folder=Path(scratch))
        return began()


def first(folder: Path, rows: int, workers: int) -> dict[str, float]:
    from alignlab.cache import PreparedSets
    from alignlab.data import DataOptions

    tokenizer, began = make_tokenizer(), stopwatch()
    sets = PreparedSets(folder / "cache", workers, progress=False)
    found = sets.open(str(folder / f"pairs-{rows}.jsonl"), tokenizer, DataOptions(max_length=1024))
    size = sum(Path(one["filename"]).stat().st_size for one in found.dataset.cache_files)
    return began() | {"bytes": size, "peak": peak()}


def again(folder: Path, rows: int) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM, TrainerCallback

    from alignlab import PreferenceConfig, PreferenceTrainer

    figures: list[tuple[str, float, str]] = []
    ready = stopwatch()

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            took = ready()
            figures.extend([("first step", took["clock"], "s"), ("first step", took["cpu"], "cpu s")])
            figures.extend([("first step", peak(), "MB peak"), ("first step", anonymous(), "MB anonymous")])
            control.should_training_stop = True

    args = PreferenceConfig(
        output_dir=str(folder / "run"),
        data_cache_dir=str(folder / "cache"),
        save_strategy="no",
        per_device_train_batch_size=2,
        max_steps=1,
        disable_tqdm=True,
        report=False,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny())
    source = str(folder / f"pairs-{rows}.jsonl")
    more: dict[str, Any] = {"processing_class": make_tokenizer(), "callbacks": [Watch()]}
    trainer = PreferenceTrainer(model, args, {"name": "simpo"}, source, **more)
    trainer.train()
    data = trainer.train_dataset.with_format("numpy")
    for start in range(1000 * args.process_index, len(data), 1000 * args.world_size):
        data[start : start + 1000]
    figures.append(("after an epoch's reads", anonymous(), "MB anonymous"))
    return {"figures": figures} if args.process_index == 0 else {}


def scores(folder: Path, entries: int) -> dict[str, float]:
    import numpy as np
    import torch

    from alignlab.cache import ScoreCache

    cache, draw = ScoreCache(folder / "scores"), np.random.default_rng(0)
    name, each = f"made{entries}", 4096
    keys = np.frombuffer(draw.bytes(entries * 16), "S16")
    if not len(cache.open(name)):
        values = torch.zeros(64)
        with cache.open(name).writing(shard_rows=each) as writer:
            for start in range(0, entries, each):
                some = keys[start : start + each]
                writer.append(some, {"logps": [values] * len(some)})
    before, began = anonymous(), stopwatch()
    store = cache.open(name)
    assert bool(store.holds(keys[:: max(1, entries // 1000)]).all())
    return began() | {"anonymous": anonymous() - before}


PARTS: dict[str, Any] = {"trl": trl, "alignlab": alignlab, "first": first, "again": again, "scores": scores}


# ---- what they share -------------------------------------------------------------------------------------------------


def stopwatch() -> Any:
    """Returns what says the seconds since now, by the clock and of processors (children that ended included)."""

    def used() -> float:
        both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(one.ru_utime + one.ru_stime for one in both)

    clock, cpu = time.monotonic(), used()
    return lambda: {"clock": time.monotonic() - clock, "cpu": used() - cpu}


def peak() -> float:
    """The most memory that this process ever had, mapped files included, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def anonymous() -> float:
    """The memory of this process that is no file's, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("RssAnon"))


def place() -> dict[str, str]:
    """Where it was measured: cores, how many processes wanted them when it began, and what was installed."""
    packages = ("torch", "transformers", "trl", "tokenizers", "datasets", "pyarrow")
    versions = [f"python {sys.version.split()[0]}", *(f"{name} {version(name)}" for name in packages)]
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    kind = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")
    machine = f"{os.cpu_count()} x {kind}, load {os.getloadavg()[0]:.0f}"
    return {"machine": machine, "versions": ", ".join(versions)}


def words(count: int) -> list[str]:
    draw = random.Random(0)
    return ["".join(draw.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(draw.randint(2, 9))) for _ in range(count)]


def write_rows(path: Path, count: int, *, conversational: bool) -> None:
    """Writes pairs of about 150 tokens: a prompt of about 60, and two completions of about 45 each."""
    if path.exists():
        return
    draw, known = random.Random(1), words(2000)
    aside = path.with_suffix(".partial")
    with aside.open("w", encoding="utf-8") as file:
        for number in range(count):
            prompt, *sides = (
                " ".join(draw.choices(known, k=draw.randint(least, most)))
                for least, most in ((40, 80), (25, 65), (25, 65))
            )
            row: dict[str, Any] = {"prompt": f"{number} {prompt}", "chosen": " " + sides[0], "rejected": " " + sides[1]}
            if conversational:
                turns = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
                row = {name: [{"role": role, "content": row[name].strip()}] for name, role in turns.items()}
            file.write(json.dumps(row) + "\n")
    aside.rename(path)


def make_tokenizer() -> Any:
    """A byte-level BPE tokenizer that knows the words, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<eos>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8192, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" ".join(words(2000)), " " + " ".join(words(2000))], trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    made.chat_template = TEMPLATE
    return made


def tiny() -> Any:
    from transformers import LlamaConfig

    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaConfig(vocab_size=8192, max_position_embeddings=1024, pad_token_id=0, eos_token_id=1, **shape)


if __name__ == "__main__":
    main()
