"""Scores inside the model's own forward, whatever wraps it, and the model as it was before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from launching import free_port
from making import make_model
from peft import LoraConfig, get_peft_model
from torch import nn

from alignlab.scoring.head import head_of
from alignlab.scoring.logits import States
from alignlab.scoring.positions import hidden_positions, score_positions
from alignlab.scoring.wanted import Wanted


def test_after_scoring_the_model_is_as_before() -> None:
    model = make_model().eval()
    head, ids = head_of(model), torch.randint(300, (1, 5))
    assert head is not None
    before = model(input_ids=ids).logits
    score_positions(model, {"input_ids": ids}, torch.tensor([2]), head, Wanted(torch.tensor([7])))
    with pytest.raises(IndexError):
        score_positions(model, {"input_ids": ids}, torch.tensor([9]), head, Wanted(torch.tensor([7])))
    assert torch.equal(model(input_ids=ids).logits, before)
    assert "forward" not in vars(model.lm_head)
    assert not model.lm_head._forward_hooks


def test_kl_from_hidden_states_of_a_reference_under_lora_and_gradient_checkpointing() -> None:
    """LoRA policy against its base with the adapter off: values and gradients as from whole logits."""
    policy = get_peft_model(make_model(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    policy.enable_input_require_grads()
    policy.gradient_checkpointing_enable()
    policy.train()
    head, ids = head_of(policy), torch.randint(300, (2, 6))
    assert head is not None
    assert not head.module.weight.requires_grad
    inputs, positions, target = {"input_ids": ids}, torch.tensor([0, 3, 9]), torch.tensor([7, 8, 9])
    with torch.inference_mode(), policy.disable_adapter():
        ref_hidden = hidden_positions(policy, inputs, positions)
    assert ref_hidden.shape == (3, 32)
    wanted = Wanted(target, States(ref_hidden, head), second_moment=True)
    found, _ = score_positions(policy, inputs, positions, head, wanted)
    with torch.no_grad(), policy.disable_adapter():
        ref = torch.log_softmax(policy(**inputs).logits.reshape(12, -1)[positions], -1)
    logps = torch.log_softmax(policy(**inputs).logits.reshape(12, -1)[positions], -1)
    plain = {
        "logps": logps[range(3), target],
        "kl": (ref.exp() * (ref - logps)).sum(-1),
        "second_moment": (2 * logps).logsumexp(-1),
    }
    assert plain["kl"].min() > 1e-4
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=1e-5, atol=2e-6)
    adapters = [p for p in policy.parameters() if p.requires_grad]
    ours, theirs = (torch.autograd.grad(torch.stack(list(s.values())).sum(), adapters) for s in (found, plain))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-5 * float(other.abs().max()) + 1e-8)


def test_scores_inside_a_head_that_accelerate_dispatched() -> None:
    """Its hook wraps the module's forward (quantised models on a GPU have one), and still runs, once."""
    model, ids = make_model(), torch.randint(300, (1, 5))
    head = head_of(model)
    assert head is not None
    plain, _ = score_positions(model, {"input_ids": ids}, torch.tensor([1, 3]), head, Wanted(torch.tensor([7, 8])))
    seen: list[tuple[int, ...]] = []

    class Watch(ModelHook):  # type: ignore[misc]
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            seen.append(args[0].shape)
            return args, kwargs

    add_hook_to_module(model.lm_head, Watch())
    hooked, _ = score_positions(model, {"input_ids": ids}, torch.tensor([1, 3]), head, Wanted(torch.tensor([7, 8])))
    assert torch.equal(hooked["logps"], plain["logps"])
    assert seen == [(1, 5, 32)]
    assert head_of(model) == head
    assert model(input_ids=ids).logits.shape == (1, 5, 300)


ENGINES = """
import copy, os, sys
sys.path.insert(0, sys.argv[1])
import deepspeed, torch
from deepspeed.utils import safe_get_full_grad
from making import make_model
from torch.nn.parallel import DistributedDataParallel
from alignlab.scoring.head import head_of
from alignlab.scoring.logits import States
from alignlab.scoring.positions import hidden_positions, score_positions
from alignlab.scoring.wanted import Wanted

deepspeed.init_distributed("gloo")
for tied in (False, True):
    plain = make_model(tie_word_embeddings=tied)
    ddp = DistributedDataParallel(copy.deepcopy(plain), find_unused_parameters=True)
    sharded = copy.deepcopy(plain)
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": zero, "gradient_clipping": 0}
    config["zero_allow_untested_optimizer"] = True
    optimiser = torch.optim.SGD(sharded.parameters(), 0.1)
    engine, *_ = deepspeed.initialize(model=sharded, optimizer=optimiser, config=config)
    models = {"plain": plain, "ddp": ddp, "zero3": engine}
    optimisers = {name: torch.optim.SGD(models[name].parameters(), 0.1) for name in ("plain", "ddp")}
    heads = {name: head_of(model) for name, model in models.items()}
    assert all(head is not None and head.tied == tied for head in heads.values()), heads
    assert sharded.lm_head.weight.shape == (0,), "nothing is sharded"
    for step in range(3):
        ids = torch.randint(300, (2, 7), generator=torch.Generator().manual_seed(step))
        inputs, positions, target = {"input_ids": ids}, torch.tensor([1, 4, 9]), torch.tensor([5, 6, 7])
        losses = {}
        for name, model in models.items():
            with torch.no_grad():
                hidden = hidden_positions(model, inputs, positions)
            wanted = Wanted(target, States(hidden * 1.1, heads[name]), second_moment=True, vocab_chunk=64)
            values, _ = score_positions(model, inputs, positions, heads[name], wanted)
            loss = (values["kl"] + values["second_moment"] - values["logps"]).mean()
            losses[name] = loss.item()
            engine.backward(loss) if name == "zero3" else loss.backward()
        triples = zip(plain.named_parameters(), ddp.parameters(), sharded.parameters(), strict=True)
        for (name, one), two, three in triples:
            size = one.grad.abs().max()
            for other in (two.grad, safe_get_full_grad(three)):
                assert (other - one.grad).abs().max() <= 1e-5 * size, (step, name)
        engine.step()
        for optimiser in optimisers.values():
            optimiser.step()
            optimiser.zero_grad()
        assert max(losses.values()) - min(losses.values()) < 1e-5, losses
        print("LOSS", tied, step, losses["zero3"], flush=True)
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.slow
def test_ddp_and_zero3_give_the_gradients_of_one_process() -> None:
    """Three steps, head tied and not: ZeRO-3 gathers the weight for forward and backward; DDP finds all parameters."""
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    words = [sys.executable, "-c", ENGINES, str(Path(__file__).parents[2] / "support")]
    env = os.environ | ranks | {"OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    losses = [float(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("LOSS")]
    assert len(set(losses)) == 6, "the weights move"
