"""What a trainer is made of: from its arguments to loss, policy, moving reference, layout and step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pyarrow.compute as pc
from torch import Tensor, nn
from transformers.trainer_utils import set_seed

from alignlab import losses, models
from alignlab.config import ModelOptions, PreferenceConfig, check_places
from alignlab.data import Mode, lengths, longest_text
from alignlab.evaluation import first_of_each_prompt
from alignlab.losses import Loss, Needs
from alignlab.reference import REFERENCE, Frozen, ReferenceSync, check_sync
from alignlab.runtime import FULL_FP32, Numerics, check_one_device, numerics_of, product_error, set_matmul_precision
from alignlab.scoring import base_of, choose_layout, keep_caps, liger_name, router_of, value_head

from .adapter_start import start_adapter
from .sets import TrainingData
from .step import PreferenceStep

logger = logging.getLogger(__name__)
LossLike = str | Mapping[str, Any] | Loss | Callable[..., Any]


def settle_options(
    model: str | nn.Module, given: ModelOptions | None, args: PreferenceConfig, peft_config: Any | None, needs: Needs
) -> ModelOptions:
    """Returns how to load a model, and the tokenizer beside it; refuses what could not be trained before it is loaded.

    Raises:
        ValueError: folders that stand in each other's way, an adapter that could not be saved and loaded exactly, or
            what a reward model cannot do.
    """
    path = model if isinstance(model, str) else str(getattr(getattr(model, "config", None), "_name_or_path", "") or "")
    options = given or ModelOptions(name_or_path=path)
    check_places(options, vars(args))
    if peft_config is not None:
        quantised = not isinstance(model, str) and models.is_quantised(model)
        quantised = quantised or options.load_in_4bit or options.load_in_8bit
        models.check_adapter(peft_config, quantised=quantised, merges=options.merge_adapter)
        models.check_task(peft_config, needs.values)
    if needs.values and args.eval_generations:
        raise ValueError("eval_generations: a reward model writes no answers; leave it out")
    return options


def settle_devices(args: PreferenceConfig) -> None:
    """Says what is done otherwise than the stock Trainer does: one device a process.

    Of several devices of one process the stock Trainer would give each a part of every tensor, cut along its first
    dimension, which cuts rows and prompts in pieces.
    """
    if args.n_gpu > 1:
        logger.warning(
            "%d accelerators are visible, but a process trains on one (%s): start a process for each, for example "
            "torchrun --nproc-per-node %d launch/train.py ...",
            args.n_gpu,
            args.device,
            args.n_gpu,
        )
        args._n_gpu = 1


def check_given(model: Any, args: Any, ref_model: Any, others: Mapping[str, Any]) -> None:
    """Refuses arguments that are known from the stock Trainer and cannot work here, each by its name.

    Raises:
        ValueError: says what to give instead.
    """
    if not isinstance(args, PreferenceConfig):
        found = type(args).__name__
        raise ValueError(f"args: expected a PreferenceConfig, found {found}; PreferenceConfig takes the same options")
    if ref_model is not None and ref_model is model:
        raise ValueError(
            "ref_model: it is the policy itself, which would be frozen; leave it out: the policy as it is before the "
            "first step is the reference then"
        )
    for name, instead in {
        "data_collator": "batches are made by the trainer, as the loss and the layout need them",
        "compute_loss_func": "give the function as loss=",
        "compute_metrics": "a loss returns metrics, and `alignlab eval --rows` writes every pair",
        "preprocess_logits_for_metrics": "logits are never held as a whole",
    }.items():
        if others.get(name) is not None:
            raise ValueError(f"{name}: not taken here: {instead}")


def check_rows(policy: nn.Module, tokenizer: Any, args: PreferenceConfig, data: TrainingData) -> None:
    """Refuses rows that the model cannot read: ids without an embedding, texts and answers that outgrow its positions.

    Raises:
        ValueError: names the key, what was found and what the model has.
    """
    sets = [one for one in (data.train, *data.evaluations()) if one is not None]
    _check_token_ids(policy, tokenizer, sets)
    longest = max((longest_text(one, data.fields) for one in sets), default=0)
    models.check_room(policy, longest, "max_length", "the longest row has")
    for one in data.evaluations() if args.eval_generations else ():
        prompts = lengths(one, "prompt")[first_of_each_prompt(one, args.eval_generations)]
        most = int(prompts.max(initial=0)) + args.eval_max_new_tokens
        models.check_room(policy, most, "eval_max_new_tokens", "prompts and answers have up to")


def _check_token_ids(policy: nn.Module, tokenizer: Any, sets: Sequence[Any]) -> None:
    """Refuses rows with token ids that the model has no embedding for, as where its tokenizer was enlarged.

    Raises:
        ValueError: names both sizes and the largest id.
    """
    config: Any = getattr(policy, "config", None)
    size = getattr(config.get_text_config() if hasattr(config, "get_text_config") else config, "vocab_size", None)
    if size is None or len(tokenizer) <= size:
        return
    largest = max(map(_largest_id, sets), default=-1)
    if largest >= size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens and the model embeddings for {size}: the rows hold token id "
            f"{largest}. Is model.tokenizer that of the model? Otherwise resize_token_embeddings({len(tokenizer)}) and "
            "save it first"
        )


def _largest_id(dataset: Any) -> int:
    columns = [name for name in dataset.column_names if name.endswith("_ids")]
    values = (pc.max(pc.list_flatten(dataset.data.column(name), recursive=True)).as_py() for name in columns)
    return max((one for one in values if one is not None), default=-1)


def build_loss(loss: LossLike) -> Loss:
    """Returns the loss, also where a plain function of the batch was given."""
    if callable(loss) and not isinstance(loss, nn.Module):
        return losses.from_function(loss)
    return losses.build(loss)  # type: ignore[arg-type]


def build_numerics(args: PreferenceConfig, accelerator: Any) -> Numerics:
    """Returns how every forward of the run computes, once float32 products are as exact as was asked for.

    How exact they are is measured, whoever chose it: our key, ``tf32: true``, or the process before us.
    """
    precision = args.float32_matmul_precision
    error = product_error(args.device) if precision is None else set_matmul_precision(precision, args.device)
    found = numerics_of(accelerator, rounds_fp32=error > FULL_FP32)
    return replace(found, kernels=liger_name(args.liger_kernel_config)) if args.use_liger_kernel else found


def build_policy(
    model: str | nn.Module, options: ModelOptions, args: PreferenceConfig, peft_config: Any | None, data: TrainingData
) -> nn.Module:
    """Returns the model to train: loaded where a path was given, with a new adapter and without dropout if asked.

    A new value head is drawn by the run's seed.

    Args:
        data: its training rows are what some adapters are made from; its needs say which head the model must have.
    """
    outputs, train = data.needs.values, data.train
    if outputs and isinstance(model, str):
        set_seed(args.seed)
    policy: nn.Module = models.load_model(options, outputs=outputs) if isinstance(model, str) else model
    check_one_device("model", policy)
    check_head(policy, outputs)
    models.guard_quantised(policy)
    keep_caps(base_of(policy))
    if peft_config is not None:
        set_seed(args.seed)  # the Trainer's own call comes too late for the adapter's random start
        policy = start_adapter(policy, peft_config, train, args)
        check_head(policy, outputs)
    if args.disable_dropout:
        models.disable_dropout(policy)
    if outputs:
        tokenizer = data.tokenizer
        models.settle_reading(policy, tokenizer, models.pad_token_id(tokenizer), outputs, data.reading)
    return policy


def check_head(policy: nn.Module, outputs: int) -> None:
    """Looks whether a model has the head that the loss reads: one of so many values, or with 0 a language model's.

    Raises:
        ValueError: says what was found, and what to give; or the head is frozen, as an adapter of a language model
            leaves it.
    """
    head, found = value_head(policy), type(base_of(policy)).__name__
    if head is None and outputs:
        raise ValueError(
            f"model: the loss reads {outputs} value{'s' * (outputs > 1)} of a reward model, and {found} has no value "
            f"head `score`; give its path, or AutoModelForSequenceClassification.from_pretrained(..., "
            f"num_labels={outputs}) of a decoder"
        )
    if head is None:
        return
    if not outputs:
        raise ValueError(f"model: {found} is a reward model, and the loss reads log-probabilities of a language model")
    labels = base_of(policy).config.num_labels
    if labels != outputs:
        raise ValueError(f"model: its value head has {labels} outputs, and the loss reads {outputs}")
    if not any(weight.requires_grad for weight in head.parameters()):
        raise ValueError(
            "model: its value head `score` is frozen, so that what it was drawn as would stay; an adapter trains it "
            "with task_type: SEQ_CLS"
        )


def build_sync(policy: nn.Module, frozen: Mapping[str, Frozen], args: PreferenceConfig) -> ReferenceSync | None:
    """Returns what moves the reference, if it is to move."""
    if not args.sync_ref_model:
        return None
    check_sync(args.deepspeed, args.fsdp)
    return ReferenceSync(policy, frozen[REFERENCE].model, args.ref_model_mixup_alpha, args.ref_model_sync_steps)


def shared_layout(policy: nn.Module, frozen: Mapping[str, Frozen], requested: str, pad_id: int, *, half: bool) -> Mode:
    """Returns how rows are laid out: as the policy, and every frozen model that scores its batches live, can take."""
    live = [one.model.loaded() for one in frozen.values() if not one.cached]
    return choose_layout(requested, [policy, *live], pad_id, half=half)


def build_step(
    loss: Loss,
    policy: nn.Module,
    frozen: Mapping[str, Frozen],
    args: PreferenceConfig,
    autocast: Callable[[], AbstractContextManager[Any]],
    over_ranks: Callable[[Tensor], Tensor],
) -> PreferenceStep:
    """Returns the optimiser step; see ``PreferenceStep`` for what it takes."""
    return PreferenceStep(
        loss,
        frozen,
        args.device,
        autocast,
        over_ranks,
        args.world_size,
        use_previous_totals=args.coupled_totals == "previous_step",
        router=router_of(policy, args.router_aux_loss_coef),
    )
