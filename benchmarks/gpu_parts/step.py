"""Part step: packed against padded scores and gradients for six architectures, then the tests that need a GPU.

The yardstick is padded rows in true float32. An error is the largest difference of a token's log-probability, or of a
gradient relative to the largest; packed bf16 is right where its error is about that of padded bf16.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch

from gpu_parts import common
from gpu_parts.common import ROOT, Bench

SHAPE = {"vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 8}
SHAPE |= {"num_attention_heads": 8, "num_key_value_heads": 2, "max_position_embeddings": 4096, "head_dim": 64}
SHAPE |= {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
SMALL = {"vocab_size": 300, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
WINDOW = 64
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen3": ("Qwen3Config", {}),
    "mistral, windows": ("MistralConfig", {"sliding_window": WINDOW}),
    "gemma3, windows by layer": ("Gemma3TextConfig", {"sliding_window": WINDOW}),
    "gpt_oss, sinks and experts": ("GptOssConfig", {"sliding_window": WINDOW, "num_local_experts": 4}),
    "qwen3_moe": ("Qwen3MoeConfig", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}),
}


def run(bench: Bench) -> list[dict[str, Any]]:
    """Returns a row an architecture and dtype, and one for the GPU-marked tests."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    rows = []
    for name in bench.wanted([*ARCHITECTURES, "tests"]):
        if name != "tests" and bench.time_left(name):
            with common.emptied(bench.device):
                rows += _rows(bench, name)
    if bench.only is None or "tests" in bench.only:
        rows += _tests(bench)
    return rows


def _rows(bench: Bench, name: str) -> list[dict[str, Any]]:
    """Compares packed with padded in float32 and in bf16."""
    import transformers

    from alignlab.data import layout_fields
    from alignlab.scoring import choose_layout

    kind, extra = ARCHITECTURES[name]
    extra = {**extra, "sliding_window": WINDOW if bench.gpu else 8} if "sliding_window" in extra else extra
    config = getattr(transformers, kind)(**SHAPE | ({} if bench.gpu else SMALL) | extra)
    model = common.make_model(config, bench.device)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data *= 3  # so that a wrong mask shows
    fields = _fields(bench, config.vocab_size)
    yardstick = _scored(bench, model, layout_fields(fields, 0, "padded"), None)
    rows = []
    for dtype in ("float32", "bfloat16"):
        half = torch.bfloat16 if dtype == "bfloat16" else None
        with _autocast(bench, half):
            mode = choose_layout("auto", [model], 0)
        padded = _scored(bench, model, layout_fields(fields, 0, "padded"), half)
        packed = _scored(bench, model, layout_fields(fields, 0, mode), half)
        row = {"architecture": name, "dtype": dtype, "layout": mode}
        for part, place in (("log-probability", 0), ("gradient", 1)):
            errors = [_error(one[place], yardstick[place], relative=place == 1) for one in (padded, packed)]
            row |= {f"{part}: padded": f"{errors[0]:.1e}", f"{part}: packed": f"{errors[1]:.1e}"}
        row |= {"seconds padded": round(padded[2], 4), "seconds packed": round(packed[2], 4)}
        common.report(name, row)
        rows.append(row)
    return rows


def _fields(bench: Bench, vocabulary: int) -> dict[str, list[Any]]:
    """Returns eight ragged pairs of random tokens."""
    from alignlab.data import ScoredSequence

    chance = np.random.default_rng(0)
    profile = bench.profiles["ultrafeedback"]
    found: dict[str, list[Any]] = {"chosen": [], "rejected": []}
    for prompt_length, *completions in common.lengths(profile, 8 if bench.gpu else 3):
        prompt = chance.integers(2, vocabulary, prompt_length)
        for field, length in zip(found, completions, strict=True):
            ones = np.ones(length, dtype=bool)
            found[field].append(ScoredSequence(prompt, chance.integers(2, vocabulary, length), ones))
    return found


def _scored(bench: Bench, model: Any, layout: Any, half: torch.dtype | None) -> tuple[Any, Any, float]:
    """Returns scores, the gradient of a weighting of them, and the seconds of both."""
    from accelerate.utils import send_to_device

    from alignlab.scoring import head_of, score

    layout = send_to_device(layout, bench.device)
    head, found = head_of(model), {}

    def work() -> None:
        model.zero_grad(set_to_none=True)
        with _autocast(bench, half):
            logps = score(model, layout, head=head)["logps"]
        weights = torch.randn(logps.shape, generator=torch.Generator().manual_seed(0)).to(bench.device)
        (logps * weights).sum().backward()
        found["logps"] = logps.detach()

    seconds = common.seconds_of(work, bench.device, repeats=3, warm_up=1)
    gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    return found["logps"], gradient, seconds


def _autocast(bench: Bench, half: torch.dtype | None) -> AbstractContextManager[Any]:
    return torch.autocast(bench.device.type, half or torch.bfloat16, enabled=half is not None)


def _error(found: Any, yardstick: Any, *, relative: bool) -> float:
    scale = yardstick.abs().max() if relative else 1.0
    return float(((found - yardstick) / scale).abs().max())


def _tests(bench: Bench) -> list[dict[str, Any]]:
    """Runs the tests marked ``gpu``; on a machine without one they are skipped, and nothing is said of them."""
    if not bench.gpu or importlib.util.find_spec("pytest") is None:
        print("the tests marked gpu are left out: they want a GPU and pytest", flush=True)
        return []
    words = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(ROOT / "tests")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    print(done.stdout[-6000:], done.stderr[-2000:], flush=True)
    last = next((line for line in reversed(done.stdout.splitlines()) if re.search(r"passed|failed|error", line)), "?")
    return [{"architecture": "tests marked gpu", "dtype": last.strip("= ")}]
