"""Whole steps of the trainer on fake CUDA tensors, through the flash path; as a script, in a process of their own.

Fake tensors have shapes, dtypes and devices, and no numbers: every operation is asked where its tensors lie and what
comes out, kernels included, and what would make the host wait for a number of the device cannot be answered. They see
neither what is computed nor wrong head counts; ``scoring/kernels`` refuses those itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import zoo_ranks
from making import make_tokenizer
from pretend_runs import Runs, lora
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import flex_attention as flex
from transformers import TrainingArguments

from alignlab.data import attention_plan
from alignlab.runtime import unwrap
from alignlab.scoring import TREES, forward, packing, planned
from alignlab.scoring.kernels import capped, cuda, ops, trees
from alignlab.training import PreferenceTrainer

Planted = tuple[Any, str, Callable[..., Any]]
_token_logps, _tree_plans, _model_inputs = forward.token_logps, planned.tree_plans, packing.model_inputs
_forward = cuda.forward


class Opened(torch.autograd.Function):
    """The operator of the kernels, not opaque: what it runs on a GPU is seen, where its fake would say shapes alone."""

    @staticmethod
    def forward(*inputs: Any) -> Any:
        return ops.tree_forward._init_fn(*inputs)

    setup_context = staticmethod(ops._keep)
    backward = staticmethod(ops._gradient)


class Step:
    """A trainer over a tiny model of the CPU, and one step of it after model and batches have moved.

    Args:
        half: whether the weights are bfloat16, under an adapter; otherwise they are float32, under autocast.
    """

    def __init__(self, runs: Runs, loss: str, *, half: bool, chunked: bool = False, **options: Any) -> None:
        self.chunked, model = chunked, zoo_ranks.tiny(0)
        options |= {"peft_config": lora()} if half else {"bf16": True}
        model = model.to(torch.bfloat16) if half else model
        self.run: PreferenceTrainer = runs.trainer(loss, model, optim="adamw_torch_fused", use_cpu=True, **options)
        assert self.run.layout == "flat"
        assert unwrap(self.run.model).config._attn_implementation == TREES
        self.batch = next(iter(self.run.get_train_dataloader()))
        self.run._step._head.of(self.run.model)  # proven by numbers, which fake tensors have not

    def take(self) -> dict[str, Any]:
        """Runs the step; returns the kernels' calls, where its tensors lie, and how many moments are kept."""
        run, called = self.run, {"forward": 0, "backward": 0}
        with ExitStack() as stack:
            mode = stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
            for context in _on_cuda(called), _chunked(self.chunked):
                stack.enter_context(context)
            _move(run.model, mode)
            run.loss.to("cuda")
            if run.args.gradient_checkpointing:
                run.model.gradient_checkpointing_enable({"use_reentrant": False})
            run.create_optimizer()
            run._step.begin(run.model, [self.batch])
            part = run.training_step(run.model, self.batch)
            weights = [one for one in run.model.parameters() if one.requires_grad]
            norm = nn.utils.clip_grad_norm_(weights, 1.0)
            run.optimizer.step()
            kept = [one for state in run.optimizer.state.values() for name, one in state.items() if name != "step"]
            places = {str(one.device) for one in (part, norm, *(weight.grad for weight in weights), *kept)}
            return {**called, "places": sorted(places), "moments": len(kept)}


def soft_capped() -> list[str]:
    """Returns what FlexAttention with a soft-cap gives: the output, and the gradients of queries, keys and values."""
    plan = attention_plan([[300, 90, 200], [1, 40]])
    with (
        patch.object(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True),
        patch.object(capped, "_compiled", return_value=flex.flex_attention),
        FakeTensorMode() as mode,
    ):
        plan = plan._replace(table=mode.from_tensor(plan.table).to("cuda"))
        inputs = [torch.empty(631, n, 64, dtype=torch.bfloat16, device="cuda", requires_grad=True) for n in (8, 2, 2)]
        out = capped.capped_attention(inputs[0], inputs[1], inputs[2], plan, cap=50.0, window=60)
        made = [out, *torch.autograd.grad(out, inputs, torch.empty_like(out))]
        return [f"{tuple(one.shape)} {one.dtype} {one.device}" for one in made]


@contextmanager
def _on_cuda(called: dict[str, int]) -> Iterator[None]:
    """Within it a run's device is the fake one, and the kernels' calls are counted."""

    def counted(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            called[name] += 1
            return run(*args, **options)

        return call

    with (
        patch.object(TrainingArguments, "device", torch.device("cuda", 0)),
        patch.object(torch.cuda.amp.common, "amp_definitely_not_available", return_value=False),
        patch.object(torch.cuda, "is_bf16_supported", return_value=True),
        patch.object(trees, "tree_forward", Opened.apply),
        patch.object(ops, "tree_backward", ops.tree_backward._init_fn),
        patch.object(cuda, "forward", counted("forward", cuda.forward)),
        patch.object(cuda, "backward", counted("backward", cuda.backward)),
    ):
        yield


@contextmanager
def _chunked(always: bool) -> Iterator[None]:
    """Within it the LM head runs in chunks, or on whole logits."""
    with patch.object(forward, "worthwhile", return_value=always):
        yield


def _move(model: nn.Module, mode: FakeTensorMode) -> None:
    """Puts fake CUDA tensors in the place of a model's weights and buffers."""
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                fake = mode.from_tensor(weight.data).to("cuda")
                module._parameters[name] = nn.Parameter(fake, requires_grad=weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = mode.from_tensor(buffer).to("cuda")


# ---- mistakes, each in the code of alignlab --------------------------------------------------------------------------


def _offsets_on_the_cpu(q: Any, k: Any, v: Any, parts: Any, *rest: Any) -> Any:
    return _forward(q, k, v, [one.cpu() for one in parts], *rest)


def _ids_on_the_cpu(model: Any, layout: Any) -> Any:
    inputs = _model_inputs(model, layout)
    return {**inputs, "input_ids": inputs["input_ids"].cpu()}


def _plan_on_the_cpu(*of: Any) -> Any:
    return {chunk: plan._replace(table=plan.table.cpu()) for chunk, plan in _tree_plans(*of).items()}


MISTAKES: dict[str, Planted] = {
    "targets on the CPU": (forward, "token_logps", lambda logits, target: _token_logps(logits, target.cpu())),
    "offsets on the CPU": (cuda, "forward", _offsets_on_the_cpu),
    "ids on the CPU": (forward, "model_inputs", _ids_on_the_cpu),
    "a plan on the CPU": (packing, "tree_plans", _plan_on_the_cpu),
    "a number read by the host": (forward, "token_logps", lambda z, at: _token_logps(z, at) * float(z.detach().max())),
}
STEPS: dict[str, dict[str, Any]] = {
    "dpo, an adapter on bfloat16": {"loss": "dpo", "half": True},
    "dpo under autocast": {"loss": "dpo", "half": False},
    "dpo with a chunked head": {"loss": "dpo", "half": False, "chunked": True},
    "simpo with checkpointing": {"loss": "simpo", "half": False, "gradient_checkpointing": True},
    "tdpo, live": {"loss": "tdpo", "half": True, "reference": "live"},
}


def main(out: Path) -> None:
    """Takes every step, then the first one with each mistake in it, and writes what was found."""
    runs = Runs(make_tokenizer(), out.parent)
    made = {name: Step(runs, **options) for name, options in STEPS.items()}
    planted = {name: Step(runs, "dpo", half=True) for name in MISTAKES}
    found: dict[str, Any] = {"soft-capped": soft_capped()}
    for name, step in made.items():
        found[name] = step.take()
    for name, step in planted.items():
        with patch.object(*MISTAKES[name]):
            try:
                step.take()
                found[name] = "not caught"
            except Exception as error:
                found[name] = f"{type(error).__name__}: {error}"
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
