"""One optimiser step of DPO on two ranks under torch's own FSDP2, and the same in one process; as a script, a rank."""

from __future__ import annotations

import json
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from making import make_model, make_rows, make_tokenizer
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from alignlab import scoring
from alignlab.config.arguments import PreferenceConfig
from alignlab.reference.scorers import Frozen
from alignlab.reference.separate import SeparateModel
from alignlab.runtime.numerics import Numerics
from alignlab.training.step import PreferenceStep
from alignlab.training.trainer import PreferenceTrainer

RANKS = 2


def sharded(model: Any, policy: MixedPrecisionPolicy | None = None) -> Any:
    """Shards a model as accelerate does: each layer, and the rest."""
    for layer in model.model.layers:
        fully_shard(layer, mp_policy=policy or MixedPrecisionPolicy())
    return fully_shard(model, mp_policy=policy or MixedPrecisionPolicy())


def gradients(trainer: Any, model: Any, batches: list[Any], ranks: int) -> tuple[float, dict[str, torch.Tensor]]:
    """Returns this rank's part of the step's objective, and the gradients that its backward leaves, whole."""

    def over_ranks(value: torch.Tensor) -> torch.Tensor:
        if ranks > 1:
            dist.all_reduce(value)
        return value

    reference = Frozen("reference", SeparateModel(make_model(1), torch.device("cpu")), cached=False)
    step = PreferenceStep(
        trainer.loss, {"reference": reference}, torch.device("cpu"), trainer._autocast, over_ranks, ranks
    )
    step.begin(model, batches)
    parts = []
    for batch in batches:
        part, *_ = step.forward(model, batch)
        part.backward()
        parts.append(part.item())
    whole = {name: one.grad for name, one in model.named_parameters()}
    return sum(parts), {name: one.full_tensor() if ranks > 1 else one for name, one in whole.items()}


def main(folder: Path, rank: int) -> None:
    """Writes what both ways find into ``rank.json``."""
    args = PreferenceConfig(
        output_dir=str(folder / str(rank)),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=RANKS,
        reference="live",
        use_cpu=True,
    )
    trainer = PreferenceTrainer(make_model(), args, "dpo", make_rows(4), processing_class=make_tokenizer())
    loader = iter(trainer.get_train_dataloader())
    batches = [trainer._prepare_inputs(next(loader)) for _ in range(RANKS)]
    loss, expected = gradients(trainer, make_model(), batches, 1)
    mixed = Numerics("fsdp", torch.bfloat16, autocast=torch.bfloat16)
    plain = make_model().eval()
    with torch.no_grad(), mixed.applied(plain), torch.autocast("cpu", torch.bfloat16):
        before = scoring.score(plain, batches[rank]["completions"])["logps"]
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    part, found = gradients(trainer, sharded(make_model()), [batches[rank]], RANKS)
    parts: list[Any] = [None] * RANKS
    dist.all_gather_object(parts, part)
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.bfloat16, torch.bfloat16)
    half = sharded(deepcopy(make_model()), policy).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        after = scoring.score(half, batches[rank]["completions"])["logps"]
    result = {
        "loss": loss,
        "sharded": sum(parts) / RANKS,
        "gradient": max(float((found[name] - one).abs().max()) for name, one in expected.items()),
        "size": max(float(one.abs().max()) for one in expected.values()),
        "scores": float((before - after).abs().max()),
    }
    (folder / f"{rank}.json").write_text(json.dumps(result))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
