"""What the benchmarks share: rows of given lengths, the model, a timed stretch of training, the machine, CSV."""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import platform
import random
import resource
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

PROFILES = {  # mean tokens of prompt and completion: prompt-to-completion ratios 1.6, 0.4, 11 and 2.9
    "capybara": (240, 150),
    "ultrafeedback": (80, 200),
    "tldr": (330, 30),
    "hh_like": (130, 45),
}
WARM_UP = 2  # steps before the clock starts


# ---- rows and model ------------------------------------------------------------------------------------------------


def hh_rows(path: Path) -> list[dict[str, str]]:
    """Returns the dialogues of an HH-RLHF file with the prompt split off, as both programs take them."""
    rows = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            cut = row["chosen"].rfind("\n\nAssistant:") + len("\n\nAssistant:")
            if row["chosen"][:cut] != row["rejected"][:cut]:
                continue
            one = {"prompt": row["chosen"][:cut], "chosen": row["chosen"][cut:], "rejected": row["rejected"][cut:]}
            if one["chosen"].strip() and one["rejected"].strip() and one["chosen"] != one["rejected"]:
                rows.append(one)
    return rows


def profile_rows(prompt: int, completion: int, count: int = 400) -> list[dict[str, str]]:
    """Returns rows of random words whose lengths vary as real ones do (log-normally) about the given means."""
    chance = random.Random(1)
    words = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 7))) for _ in range(2000)]

    def text(mean: int) -> str:
        length = min(max(int(chance.lognormvariate(0, 0.6) * mean / 1.2), 2), 500)
        return " ".join(chance.choices(words, k=length))

    return [
        {"prompt": text(prompt), "chosen": " " + text(completion), "rejected": " " + text(completion)}
        for _ in range(count)
    ]


def make_tokenizer(rows: list[dict[str, str]]) -> Any:
    """Trains a byte-level BPE tokenizer on the rows."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<pad>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=8192, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((text for row in rows for text in row.values()), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def make_model(vocabulary: int = 8192) -> Any:
    """Returns a 6-layer decoder of width 256, from the same weights every time."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    shape = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=vocabulary, max_position_embeddings=4096, pad_token_id=0, eos_token_id=1, **shape)
    return AutoModelForCausalLM.from_config(config)


def settings_of(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Returns the trainer's options that both programs share: ``options`` has pairs a step, and timed steps."""
    import torch

    return {
        "output_dir": str(folder / "run"),
        "max_steps": options.steps + WARM_UP,
        "per_device_train_batch_size": options.pairs,
        "learning_rate": 1e-6,
        "logging_steps": 1000,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": not torch.cuda.is_available(),
        "max_length": 1024,
    }


# ---- a process of its own -------------------------------------------------------------------------------------------


def apart(*worker: str) -> dict[str, float]:
    """Runs this program again, with its own options and ``--worker`` and these words; returns what ``tell`` printed."""
    done = subprocess.run([sys.executable, *sys.argv, "--worker", *worker], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not lines:
        raise RuntimeError(f"{' '.join(worker)} failed:\n{done.stderr[-3000:]}")
    result: dict[str, float] = json.loads(lines[-1].removeprefix("RESULT "))
    return result


def tell(result: dict[str, float]) -> None:
    """Prints a worker's figures, for ``apart`` to read."""
    print("RESULT " + json.dumps(result))


# ---- measuring -----------------------------------------------------------------------------------------------------


def timed(trainer: Any, pairs: int, steps: int) -> dict[str, float]:
    """Trains; returns what a step takes after the warm-up, and peak memory above the start, MB."""
    import torch
    from transformers import TrainerCallback

    counted = [0]
    trainer.model.get_input_embeddings().register_forward_pre_hook(
        lambda _, args: counted.__setitem__(0, counted[0] + args[0].numel())
    )

    class Clock(TrainerCallback):  # type: ignore[misc]
        start, processor, tokens = 0.0, 0.0, 0

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == WARM_UP:
                synchronise()
                Clock.start, Clock.processor, Clock.tokens = time.perf_counter(), time.process_time(), counted[0]

    trainer.add_callback(Clock())
    before = reset_peak()
    trainer.train()
    synchronise()
    seconds, processor = time.perf_counter() - Clock.start, time.process_time() - Clock.processor
    return {
        "pairs_per_second": pairs * steps / seconds,
        "processor_seconds_per_step": processor / steps,
        "tokens_per_step": (counted[0] - Clock.tokens) / steps,
        "peak_megabytes": peak() - before,
        "threads": torch.get_num_threads(),
    }


def synchronise() -> None:
    """Waits for the GPU, if there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reset_peak() -> float:
    """Starts measuring the peak of memory anew; returns the memory now, MB (of the GPU, if there is one)."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 2**20
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak becomes what is resident now
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def peak() -> float:
    """Returns the peak of memory since ``reset_peak``, MB."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def machine() -> dict[str, Any]:
    """Returns what the figures were taken on."""
    import torch

    from alignlab.runtime import describe_environment

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    versions = {name: metadata.version(name) for name in ("torch", "transformers", "trl")}
    known = describe_environment()
    return {"device": device, "processors": known["processors"], "commit": known["commit"], **versions}


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows of equal keys."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
