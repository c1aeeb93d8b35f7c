"""What the GPU's benchmarks share: shapes, profiles of lengths, rows, models, clocks, the machine, tables."""

from __future__ import annotations

import csv
import gc
import importlib.util
import math
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
OPTIONAL = ("flash_attn", "liger_kernel", "bitsandbytes", "deepspeed", "trl", "peft")
WORDS = 2000  # of the tokenizer, a token each; models may have a larger vocabulary

# Qwen 2.5 of two sizes and Llama 3.1, as decoders of one kind; weights are random.
SHAPES: dict[str, dict[str, Any]] = {
    "0.5B": {"layers": 24, "width": 896, "ffn": 4864, "heads": (14, 2), "words": 151936, "tied": True},
    "1.5B": {"layers": 28, "width": 1536, "ffn": 8960, "heads": (12, 2), "words": 151936, "tied": True},
    "8B": {"layers": 32, "width": 4096, "ffn": 14336, "heads": (32, 8), "words": 128256, "tied": False},
}
TINY = {"layers": 2, "width": 64, "ffn": 128, "heads": (4, 2), "words": WORDS + 3}


@dataclass(frozen=True)
class Profile:
    """Mean tokens of prompt and completion, the longest completion, and pairs a micro-batch and a step."""

    prompt: int
    completion: int
    longest: int
    pairs: int
    accumulation: int
    checkpointing: bool = False


PROFILES = {
    "ultrafeedback": Profile(200, 300, 2048, pairs=8, accumulation=1),
    "hh": Profile(110, 40, 512, pairs=16, accumulation=1),
    "reasoning": Profile(300, 8000, 16000, pairs=1, accumulation=4, checkpointing=True),
}
TINY_PROFILES = {
    "ultrafeedback": Profile(12, 18, 60, pairs=2, accumulation=1),
    "reasoning": Profile(6, 60, 100, pairs=1, accumulation=2, checkpointing=True),
}


@dataclass(frozen=True)
class Bench:
    """How this machine measures: its device, where tables go, and until when a measurement may begin."""

    device: torch.device
    output: Path
    repeats: int
    only: tuple[str, ...] | None
    until: float

    @classmethod
    def here(cls, output: Path | None, repeats: int | None, only: list[str] | None, until: float) -> Bench:
        """Measures on the GPU where there is one, and tiny on the CPU where there is none."""
        gpu = torch.cuda.is_available()
        folder = output or (ROOT / "docs" / "results" if gpu else ROOT / "runs" / "gpu")
        device, names = torch.device("cuda" if gpu else "cpu"), tuple(only) if only else None
        return cls(device, folder, repeats or (3 if gpu else 1), names, until)

    @property
    def gpu(self) -> bool:
        """Whether the figures mean anything."""
        return self.device.type == "cuda"

    @property
    def profiles(self) -> dict[str, Profile]:
        """Lengths at the size of the machine."""
        return PROFILES if self.gpu else TINY_PROFILES

    def wanted(self, names: Iterator[str] | list[str]) -> list[str]:
        """Returns the names that were asked for, all by default, and says which no time is left for as they come."""
        names = list(names)
        if self.only is None:
            return names
        if unknown := set(self.only) - set(names):
            raise SystemExit(f"--only: found {', '.join(sorted(unknown))}, allowed {', '.join(names)}")
        return [name for name in names if name in self.only]

    def time_left(self, name: str) -> bool:
        """Whether another measurement may begin; says so where not."""
        if time.monotonic() < self.until:
            return True
        print(f"left out for want of time: {name} (--seconds)", flush=True)
        return False

    def say(self) -> None:
        """Prints the machine and what is missing on it."""
        print("  ".join(f"{name} {value}" for name, value in machine(self.device).items()), flush=True)
        if not self.gpu:
            print("no GPU here: the same code runs tiny on the CPU, and its times mean nothing", flush=True)

    def write(self, part: str, rows: list[dict[str, Any]]) -> None:
        """Writes the part's table as CSV and markdown, and prints it."""
        if not rows:
            print(f"{part}: nothing was measured")
            return
        self.output.mkdir(parents=True, exist_ok=True)
        columns = list(dict.fromkeys(name for row in rows for name in row))
        with (self.output / f"gpu_{part}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        facts = ", ".join(f"{name} {value}" for name, value in machine(self.device).items())
        lines = [f"{facts}.", "", f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
        lines += ["| " + " | ".join(str(row.get(name, "")) for name in columns) + " |" for row in rows]
        text = "\n".join(lines) + "\n"
        (self.output / f"gpu_{part}.md").write_text(text, encoding="utf-8")
        print(text, flush=True)


def machine(device: torch.device) -> dict[str, str]:
    """Returns what the figures were taken on: device, versions, commit, and the optional packages that are missing."""
    from alignlab.runtime import describe_environment

    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    versions = {one: metadata.version(one) for one in ("torch", "transformers", "accelerate")}
    missing = [one for one in OPTIONAL if importlib.util.find_spec(one) is None]
    found = {one: metadata.version(one) for one in ("trl", "bitsandbytes") if one not in missing}
    commit = str(describe_environment()["commit"])[:12]
    return {"device": name, **versions, **found, "commit": commit, "missing": " ".join(missing) or "nothing"}


# ---- rows and models -------------------------------------------------------------------------------------------------


def lengths(profile: Profile, count: int, seed: int = 0) -> list[tuple[int, int, int]]:
    """Draws tokens of prompt, chosen and rejected log-normally, with a deviation of half the mean."""
    chance = random.Random(seed)
    spread = math.sqrt(math.log(1.25))

    def draw(mean: int, most: int) -> int:
        return min(max(int(chance.lognormvariate(math.log(mean) - spread**2 / 2, spread)), 2), most)

    return [
        (draw(profile.prompt, profile.longest), *(draw(profile.completion, profile.longest) for _ in range(2)))
        for _ in range(count)
    ]


def make_rows(profile: Profile, count: int, seed: int = 0) -> list[dict[str, str]]:
    """Returns rows of random words, a token each, with the profile's lengths."""
    chance = random.Random(seed + 1)

    def text(tokens: int) -> str:
        return " ".join(f"w{chance.randrange(WORDS)}" for _ in range(tokens))

    return [
        {"prompt": text(prompt), "chosen": " " + text(chosen), "rejected": " " + text(rejected)}
        for prompt, chosen, rejected in lengths(profile, count, seed)
    ]


def make_tokenizer() -> Any:
    """Returns a tokenizer of which each word is a token."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", *(f"w{i}" for i in range(WORDS))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def make_config(name: str, *, tiny: bool, **extra: Any) -> Any:
    """Returns the configuration of a named shape; tiny keeps what is tied."""
    from transformers import LlamaConfig

    shape = SHAPES[name] | (TINY if tiny else {})
    heads, of_keys = shape["heads"]
    return LlamaConfig(
        vocab_size=shape["words"],
        hidden_size=shape["width"],
        intermediate_size=shape["ffn"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=heads,
        num_key_value_heads=of_keys,
        tie_word_embeddings=shape["tied"],
        max_position_embeddings=32768,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
        **extra,
    )


def make_model(config: Any, device: torch.device, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """Returns a model of random weights, made where it will run; the same weights every time."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with device:
        return AutoModelForCausalLM.from_config(config, dtype=dtype, **options)


# ---- clocks ----------------------------------------------------------------------------------------------------------


def synchronise(device: torch.device) -> None:
    """Waits until the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def seconds_of(work: Callable[[], Any], device: torch.device, repeats: int = 5, warm_up: int = 2) -> float:
    """Returns the median seconds of a call."""
    found = []
    for turn in range(warm_up + repeats):
        synchronise(device)
        start = time.perf_counter()
        work()
        synchronise(device)
        if turn >= warm_up:
            found.append(time.perf_counter() - start)
    return sorted(found)[len(found) // 2]


@contextmanager
def emptied(device: torch.device) -> Iterator[None]:
    """Gives back what the work within it left on the device, and begins the count of its peak anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        yield
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def peak_gb(device: torch.device) -> float:
    """Returns the largest memory of tensors since ``emptied`` began, GB; on a CPU nothing is counted."""
    return torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else float("nan")


def matmul_rate(device: torch.device) -> float:
    """Returns what a bf16 matrix product of random numbers reaches here, TFLOP/s: the ceiling of all shares."""
    size = 8192 if device.type == "cuda" else 256
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: left @ right, device, repeats=10, warm_up=3) / 1e12


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the device is full."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error)


def report(name: str, row: dict[str, Any]) -> None:
    """Prints a row as it is found: a run that is cut short has said what it knew."""
    print(f"{name}: " + "  ".join(f"{key} {value}" for key, value in row.items()), file=sys.stderr, flush=True)
