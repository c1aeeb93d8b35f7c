"""What ``data_size.py`` times: each part in a process of its own, with the rows, the tokenizer and the model of all.

    python benchmarks/data_size_parts.py FOLDER PART [NUMBERS]

A part prints what it found as one line of JSON; in several ranks, rank 0 does.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] | trim + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


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
    with watched() as own:
        found = sets.open(str(folder / f"pairs-{rows}.jsonl"), tokenizer, DataOptions(max_length=1024))
        spent = began()
    size = sum(Path(one["filename"]).stat().st_size for one in found.dataset.cache_files)
    return spent | {"bytes": size, "peak": peak(), "anonymous": max(own)}


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


@contextmanager
def watched() -> Iterator[list[float]]:
    """Yields a list of what ``anonymous`` says, ten times a second, for as long as the block takes."""
    found, over = [anonymous()], threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            found.append(anonymous())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()


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


PARTS: dict[str, Any] = {"trl": trl, "alignlab": alignlab, "first": first, "again": again, "scores": scores}

if __name__ == "__main__":
    told = PARTS[sys.argv[2]](Path(sys.argv[1]), *map(int, sys.argv[3:]))
    if told:  # the other ranks have nothing to tell
        print(json.dumps(told), flush=True)
