"""Planned against measured memory: whole runs of models of 100M parameters and more, each in processes of its own.

    python benchmarks/planner.py [NAME ...] [--malloc-as-it-is]

writes docs/results/planner.csv where no name is given; 10 to 20 minutes on two cores. Measured is the largest resident
size of a rank (VmHWM) in training, less its size after all imports; planned is what `alignlab plan` says without its
allowance for a GPU's framework. malloc is told to give all of more than 64 KB back at once (MALLOC_MMAP_THRESHOLD_):
the resident size is then that of the tensors alive, as a GPU's allocator counts them. Left as it is, glibc keeps freed
pieces of up to 32 MB in its heap, and runs measure larger; --malloc-as-it-is shows by how much.
"""

from __future__ import annotations

import csv
import ctypes
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MB = 1e6
WORDS = ["the", "red", "cat", "sees", "a", "blue", "bird", "and", "likes", "old", "stone", "houses", "near", "river"]
BASE = {"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12}
WIDE = {"vocab_size": 128000, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8}


@dataclass(frozen=True)
class Case:
    """One run: its architecture, what differs from the common config, and the number of ranks."""

    architecture: dict[str, int] = field(default_factory=lambda: BASE)
    words: tuple[str, ...] = ()
    ranks: int = 1


CASES = {
    "full, float32": Case(),
    "gradient checkpointing": Case(words=("--gradient_checkpointing", "true")),
    "LoRA": Case(words=("--peft.r", "16")),
    "4-bit and LoRA": Case(words=("--model.load_in_4bit", "true", "--peft.r", "16")),
    "vocabulary of 128k": Case(WIDE),
    "bfloat16 autocast": Case(words=("--bf16", "true")),
    "live reference, whole distributions": Case(words=("--loss.name", "tdpo")),
    "ZeRO-2 on two ranks": Case(words=("--deepspeed", "zero2.json"), ranks=2),
}


def prepare(case: Case, folder: Path, pairs: int = 2) -> tuple[Path, tuple[int, int]]:
    """Makes model, tokenizer, rows and config; returns the config and the mean tokens of prompt and completion."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from alignlab.cli.demo import build_tokenizer

    tokenizer = build_tokenizer([" ".join(WORDS)])
    torch.manual_seed(0)
    heads = {"num_attention_heads": 12 if case.architecture is BASE else 8, "num_key_value_heads": 4}
    options = {**case.architecture, **heads, "max_position_embeddings": 1024, "tie_word_embeddings": False}
    model = AutoModelForCausalLM.from_config(LlamaConfig(**options, pad_token_id=0, eos_token_id=1))
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    rng = random.Random(0)
    rows, lengths = [], []
    for _ in range(2 * pairs * case.ranks):
        row = {
            name: " ".join(rng.choices(WORDS, k=n)) for name, n in (("prompt", 100), ("chosen", 180), ("rejected", 180))
        }
        counts = [len(tokenizer(row[name]).input_ids) for name in ("prompt", "chosen", "rejected")]
        lengths.append((counts[0], (counts[1] + counts[2]) / 2 + 1))
        rows.append({**row, "prompt": row["prompt"] + " :"})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "run.yaml").write_text(f"""
loss: {{name: dpo}}
model: {{name_or_path: {folder}/model}}
data: {{train: {folder}/rows.jsonl}}
output_dir: {folder}/run
score_cache_dir: {folder}/scores
max_steps: 2
save_strategy: "no"
disable_tqdm: true
report: false
per_device_train_batch_size: {pairs}
per_device_eval_batch_size: 1
""")
    prompt, completion = (round(sum(column) / len(rows)) for column in zip(*lengths, strict=True))
    return folder / "run.yaml", (prompt + 1, completion)


def planned(config: Path, case: Case, lengths: tuple[int, int]) -> dict[str, float]:
    """Returns the planner's bytes by what they are for."""
    from alignlab.config.run import load_config
    from alignlab.planner.memory import estimate
    from alignlab.planner.micro_batch import Lengths

    found = estimate(load_config(config, list(case.words)), case.ranks, Lengths(*lengths), framework=0.0, device="cpu")
    return {**found.gpu, "peak": found.peak, "parameters": found.total}


def measured(config: Path, case: Case, *, given_back: bool = True) -> tuple[float, float]:
    """Runs in new processes; returns the bytes of the rank that took most, above its imports: training, and before.

    Args:
        given_back: whether malloc returns what is freed to the system at once.
    """
    words = [str(Path(__file__).resolve()), "--measure", str(config), *case.words]
    launcher = [sys.executable]
    if case.ranks > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(case.ranks)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # DeepSpeed compiles with ninja
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": path, "HF_HUB_OFFLINE": "1"}
    if given_back:
        environment["MALLOC_MMAP_THRESHOLD_"] = "65536"
    done = subprocess.run([*launcher, *words], env=environment, capture_output=True, text=True)
    found = {
        name: [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith(f"{name} ")]
        for name in ("PEAK", "LOADING")
    }
    if len(found["PEAK"]) != case.ranks:
        raise RuntimeError(f"{case.words}: {done.stdout[-2000:]}{done.stderr[-4000:]}")
    return max(found["PEAK"]), max(found["LOADING"])


def measure(config: str, words: list[str]) -> None:
    """In a process of its own: imports everything, trains, and prints the peak above the imports."""
    import bitsandbytes  # noqa: F401
    import datasets  # noqa: F401
    import deepspeed  # noqa: F401
    import peft  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401

    from alignlab import PreferenceTrainer
    from alignlab.config.run import load_config
    from alignlab.run import single as run

    before, train, loading = _status("VmRSS"), PreferenceTrainer.train, []

    def forget_peak() -> None:
        Path("/proc/self/clear_refs").write_text("5")

    def train_alone(self: Any, **options: Any) -> Any:
        loading.append(_status("VmHWM") - before)
        _page_out_weight_files()
        forget_peak()
        return train(self, **options)

    PreferenceTrainer.train = train_alone
    loaded = load_config(config, words)
    forget_peak()
    run.train(loaded)
    print(f"\nLOADING {loading[0]}\nPEAK {_status('VmHWM') - before}", flush=True)


def _page_out_weight_files() -> None:
    """Takes the pages of mapped weight files out of memory; those that training reads come back, and only those count.

    A mapping stays resident from when the file was read, also where its weights were quantised since.
    """
    libc, page_out = ctypes.CDLL(None, use_errno=True), 21  # MADV_PAGEOUT: nothing is lost
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(".safetensors"):
            start, end = (int(one, 16) for one in line.split()[0].split("-"))
            if libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), page_out) != 0:
                raise OSError(ctypes.get_errno(), "madvise")


def _status(key: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return float(line.split()[1]) * 1024


def compare(case: Case, folder: Path, *, given_back: bool = True) -> dict[str, Any]:
    """Returns planned and measured megabytes of a case."""
    config, lengths = prepare(case, folder)
    plan = planned(config, case, lengths)
    found, loading = measured(config, case, given_back=given_back)
    parts = {name: round(size / MB) for name, size in plan.items() if name not in ("parameters", "framework")}
    return {
        "parameters": f"{plan['parameters'] / 1e6:.0f}M",
        "ranks": case.ranks,
        **parts,
        "measured": round(found / MB),
        "planned / measured": round(plan["peak"] / found, 3),
        "measured before training": round(loading / MB),
    }


def main(names: list[str]) -> None:
    """Compares the named cases, or all, and writes them into the table in the place of what it had of them."""
    given_back = "--malloc-as-it-is" not in names
    names = [name for name in names if name != "--malloc-as-it-is"]
    rows = []
    for name in names or CASES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append({"case": name, **compare(CASES[name], Path(folder), given_back=given_back)})
        print(rows[-1], flush=True)
        if given_back:
            write(rows)


def write(rows: list[dict[str, Any]]) -> None:
    """Writes the table, with the machine and the versions above it."""
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    packages = ("alignlab", "torch", "transformers", "peft", "deepspeed", "bitsandbytes")
    versions = ", ".join(f"{one} {metadata.version(one)}" for one in packages)
    path = ROOT / "docs/results/planner.csv"
    new = {row["case"]: row for row in rows}
    if path.exists():
        old = {row["case"]: row for row in csv.DictReader(path.read_text(encoding="utf-8").splitlines()[1:])}
        new = {name: new.get(name) or old[name] for name in CASES if name in new or name in old}
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(f"# MB of one rank; {cpu.split(':')[1].strip()}, {os.cpu_count()} cores, Python ")
        file.write(f"{platform.python_version()}, {versions}\n")
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(new.values())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], sys.argv[3:])
    else:
        main(sys.argv[1:])
