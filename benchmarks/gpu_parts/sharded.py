"""Part fsdp: runs under FSDP2, saved and resumed, beside the same runs of one process; as a script, a rank."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file

from gpu_parts import common
from gpu_parts.common import Bench, Profile

STEPS, MIDDLE, ROWS_A_STEP = 3, 2, 8
PROFILE = Profile(12, 18, 60, pairs=ROWS_A_STEP, accumulation=1)
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
RUNS: dict[str, dict[str, Any]] = {
    "state": {"loss": "group_robust", "shape": "0.5B"},  # a loss with state, and a tied head
    "lora": {"peft": LORA, "reference": "adapter_off"},
    "parts": {"bf16": True, "max_grad_norm": 0.5, "fsdp_config": {"state_dict_type": "SHARDED_STATE_DICT"}},
}


def run(bench: Bench) -> list[dict[str, Any]]:
    """Trains under FSDP2 on all GPUs, or two ranks of a CPU, and in one process; returns a row for each run."""
    rows = []
    names = [name for name in bench.wanted(list(RUNS)) if bench.time_left(f"fsdp {name}")]
    if not names:
        return []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        found = launch(folder, names, gpu=bench.gpu)
        for name in names:
            if bench.time_left(f"fsdp {name}, in one process"):
                alone = live(folder / f"{name}_alone", name, gpu=bench.gpu)
                rows.append(compared(folder, name, found, alone))
                common.report(f"fsdp {name}", rows[-1])
    return rows


def compared(folder: Path, name: str, found: dict[str, Any], alone: dict[str, Any]) -> dict[str, Any]:
    """Returns how far a run is from one process's, and how far the resumed run is from the whole one."""
    whole, resumed = found[name], found[f"{name}_resumed"]

    def losses(other: dict[str, Any]) -> float:
        pairs = zip([*whole["losses"], whole["evaluated"]], [*other["losses"], other["evaluated"]], strict=True)
        return max(abs(one - two) for one, two in pairs)

    return {
        "run": name,
        "ranks": ranks_here(gpu=not whole["on_a_cpu"]),
        "sharded": whole["sharded"],
        "losses from one process": f"{losses(alone):.1e}",
        "weights from one process": f"{apart(folder / name, folder / f'{name}_alone'):.1e}",
        "losses once resumed": f"{losses(resumed):.1e}",
        "weights once resumed": f"{apart(folder / name, folder / f'{name}_resumed'):.1e}",
        "peak GB": round(whole["peak"], 3),
    }


def apart(one: Path, other: Path) -> float:
    """Returns the largest difference of any weight that two runs saved; NaN where one has a weight the other lacks."""
    mine, theirs = weights(one), weights(other)
    if mine.keys() != theirs.keys():
        return float("nan")
    return max(float((mine[key].float() - value.float()).abs().max()) for key, value in theirs.items())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Returns what a run saved, as any program reads it."""
    found: dict[str, torch.Tensor] = load_file(next(folder.glob("*model.safetensors")))
    return found


# ---- the runs --------------------------------------------------------------------------------------------------------


def ranks_here(*, gpu: bool) -> int:
    """Returns how many ranks share a step: as many GPUs as divide its rows, or two on a CPU."""
    return max(one for one in (1, 2, 4, 8) if one <= torch.cuda.device_count()) if gpu else 2


def launch(folder: Path, names: list[str], *, gpu: bool) -> dict[str, Any]:
    """Runs this file under torchrun; returns what every rank saw of the runs, which must be the same on all."""
    ranks = ranks_here(gpu=gpu)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    paths = os.pathsep.join([str(common.ROOT / "benchmarks"), *filter(None, [os.environ.get("PYTHONPATH")])])
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1" if not gpu else "4"}
    words = [*command, str(Path(__file__).resolve()), str(folder), "gpu" if gpu else "cpu", *names]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise RuntimeError(f"the ranks ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-5000:]}")
    seen = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(ranks)]
    for name, one in seen[0].items():
        for other in seen[1:]:
            if {**other[name], "peak": 0} != {**one, "peak": 0}:
                raise RuntimeError(f"{name}: the ranks differ: {one}, {other[name]}")
    return dict(seen[0])


@contextmanager
def on_a_cpu() -> Iterator[None]:
    """Within it accelerate shards on a CPU, where it would choose DDP; what it then does is its own, on gloo.

    Only that choice is another, and our refusal, which is right wherever accelerate chooses, is lifted.
    """
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    from alignlab.config import arguments

    made = AcceleratorState.__init__

    def make(state: Any, *args: Any, fsdp_plugin: Any = None, **options: Any) -> None:
        made(state, *args, fsdp_plugin=fsdp_plugin, **options)
        if fsdp_plugin is not None:
            state.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.FSDP
            state.fsdp_plugin = fsdp_plugin
            if state._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(state._mixed_precision)

    lifted = patch.object(arguments, "check_parallel", lambda *_, **__: None)
    with patch.object(AcceleratorState, "__init__", make), lifted:
        yield


def make_trainer(folder: Path, name: str, *, gpu: bool, ranks: int, fsdp: bool) -> Any:
    """Returns the trainer of a named run; ranks and FSDP change nothing of what it is to learn."""
    from peft import LoraConfig

    from alignlab import PreferenceConfig, PreferenceTrainer

    told = {"loss": "dpo", "shape": "8B", "peft": None, "fsdp_config": {}} | RUNS[name]
    loss, shape, peft, config = (told.pop(key) for key in ("loss", "shape", "peft", "fsdp_config"))
    args = PreferenceConfig(
        output_dir=str(folder),
        per_device_train_batch_size=ROWS_A_STEP // ranks,
        learning_rate=1e-3,
        adam_epsilon=1e-3,  # the usual one moves weights by the sign of gradients that are nearly zero: their rounding
        max_steps=STEPS,
        save_steps=MIDDLE,
        logging_steps=1,
        use_cpu=not gpu,
        disable_tqdm=True,
        score_cache_dir=str(folder.parent / "scores"),
        **{"bf16": False, "float32_matmul_precision": "highest"} | told,
        **({"fsdp": "full_shard", "fsdp_config": config} if fsdp else {}),
    )
    made = common.make_config(shape, tiny=True)
    if gpu:
        made.hidden_size, made.intermediate_size, made.num_attention_heads, made.head_dim = 1024, 4096, 16, 64
    rows, held_out = (common.make_rows(PROFILE, count, count) for count in (STEPS * ROWS_A_STEP, 5))
    for index, row in enumerate([*rows, *held_out]):
        row["group"] = "few" if index % 5 == 0 else "many"
    model = common.make_model(made, torch.device("cpu"))
    adapter = None if peft is None else LoraConfig(**peft)
    return PreferenceTrainer(model, args, loss, rows, held_out, common.make_tokenizer(), peft_config=adapter)


def live(
    folder: Path, name: str, checkpoint: Path | None = None, *, gpu: bool, ranks: int = 1, fsdp: bool = False
) -> dict[str, Any]:
    """Trains a run, evaluates, saves; returns losses, norms, the evaluation's loss, the state, and what it ran on."""
    from torch.distributed.tensor import DTensor

    one = make_trainer(folder, name, gpu=gpu, ranks=ranks, fsdp=fsdp)
    with common.emptied(one.args.device):
        one.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        sharded = all(isinstance(weight, DTensor) for weight in one.model.parameters())
        evaluated = one.evaluate()["eval_loss"]  # leaves the outermost weights gathered, as FSDP2 does
        one.save_model()
        steps = [entry for entry in one.state.log_history if "loss" in entry]
        return {
            "losses": [entry["loss"] for entry in steps],
            "norms": [entry["grad_norm"] for entry in steps],
            "evaluated": evaluated,
            "state": {key: value.tolist() for key, value in one.loss.state_dict().items()},
            "sharded": sharded,
            "on_a_cpu": one.args.device.type == "cpu",
            "peak": common.peak_gb(one.args.device) if gpu else 0.0,
        }


def main(folder: Path, kind: str, names: list[str]) -> None:
    """Lives every run twice, the second time from the middle of the first, and writes what this rank saw."""
    rank, ranks, gpu = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), kind == "gpu"
    found: dict[str, Any] = {}
    with nullcontext() if gpu else on_a_cpu():
        for name in names:
            found[name] = live(folder / name, name, gpu=gpu, ranks=ranks, fsdp=True)
            again, checkpoint = folder / f"{name}_resumed", folder / name / f"checkpoint-{MIDDLE}"
            found[again.name] = live(again, name, checkpoint, gpu=gpu, ranks=ranks, fsdp=True)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
