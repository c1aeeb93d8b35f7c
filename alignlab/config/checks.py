"""What a config must not say: keys known from elsewhere, options that cannot work, blocks that contradict."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import fields
from multiprocessing import get_all_start_methods
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from .options import DataConfig, ModelOptions, holds_adapter
from .parser import Schema, Values, unknown_key

_SOURCE_KEYS = ("path", "weight", "split", "name", "columns", "format", "streaming")
_IN_LOSS = (
    "label_smoothing desirable_weight undesirable_weight ld_alpha "
    "use_weighting discopop_tau loss_weights rpo_alpha cpo_alpha simpo_gamma gamma alpha lambda_ tau"
)
MOVED = {  # keys that people know from elsewhere -> what to write here
    "beta": "it is an option of the loss: write `loss: {beta: ...}`",
    "loss_type": "the loss is chosen by its name: write `loss: {name: ...}` (`alignlab losses` lists them)",
    **{key: f"options of the loss live in its block: write `loss: {{{key}: ...}}`" for key in _IN_LOSS.split()},
    "f_divergence_type": "it is a loss of its own: write `loss: {name: f_dpo, divergence: ...}`",
    "f_alpha_divergence_coef": "it is a loss of its own: write `loss: {name: f_dpo, divergence: alpha, alpha: ...}`",
    "model_name_or_path": "write `model: {name_or_path: ...}`",
    "torch_dtype": "write `model: {dtype: ...}`",
    "dtype": "write `model: {dtype: ...}`",
    "model_revision": "write `model: {revision: ...}`",
    "attn_implementation": "write `model: {attn_implementation: ...}`",
    "trust_remote_code": "write `model: {trust_remote_code: ...}`",
    "load_in_4bit": "write `model: {load_in_4bit: ...}`",
    "load_in_8bit": "write `model: {load_in_8bit: ...}`",
    "use_peft": "an adapter is made where there is a block `peft: {r: 16, ...}`",
    "lora_r": "write `peft: {r: ...}`",
    "lora_alpha": "write `peft: {lora_alpha: ...}`",
    "lora_dropout": "write `peft: {lora_dropout: ...}`",
    "lora_target_modules": "write `peft: {target_modules: ...}`",
    "dataset_name": "write `data: {train: ...}`",
    "precompute_ref_log_probs": "scores of the reference are cached by default: write `reference: cached` to insist",
    "ref_model": "write `ref_model_name_or_path: ...`",
    "reference_free": "write `reference: none`",
    "max_prompt_length": "`max_length` bounds prompt and completion together, as in TRL",
    "padding_free": "rows are packed without padding wherever the model can take it; there is nothing to switch on",
    "warmup_ratio": "write `warmup_steps: 0.1`; a value below 1 is a share of all steps",
    "evaluation_strategy": "write `eval_strategy: ...`",
    "no_cuda": "write `use_cpu: true`",
    "group_by_length": "packed rows need no grouping by length; for padded ones write `length_window: 8` (steps)",
    "parallelism_config": "sequence, context and tensor parallelism would cut rows, which must be whole on a rank",
    "hub_token": "secrets do not belong in a config: use the environment variable HF_TOKEN",
}

_AS_TRAINED = (
    "evaluation runs in the precision of training, in which the reference's scores are made too; "
    "for both write `bf16: true`, or `model: {dtype: ...}`"
)
CANNOT_WORK: dict[str, tuple[tuple[Any, ...], str]] = {  # option: (values that are harmless, why the others are not)
    "train_sampling_strategy": (("random", "sequential"), "rows are packed without padding, whatever their order"),
    "label_smoothing_factor": ((0, 0.0), "it smooths labels; for preferences write `loss: {label_smoothing: ...}`"),
    "include_num_input_tokens_seen": (("no", False), "it counts columns that batches of pairs do not have"),
    "average_tokens_across_devices": ((True,), "the objective is the mean over the rows of all ranks, not over tokens"),
    "auto_find_batch_size": ((False,), "a changed batch size changes the optimiser step; set it yourself"),
    "remove_unused_columns": ((False,), "it would drop the columns that the loss draws on"),
    "enable_jit_checkpoint": ((False,), "SIGTERM and SIGUSR1 save a checkpoint here anyway, and both would save"),
    "save_on_each_node": ((False,), "all ranks write one checkpoint, into one folder that they share"),
    "use_cache": ((False,), "packed rows are wrong with a key-value cache"),
    "label_names": (([], None), "batches of preferences have no labels"),
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), ((False, None), _AS_TRAINED)),
}
_LEAST = {
    "ref_model_sync_steps": 1,
    "length_window": 0,
    "data_workers": 1,
    "report_samples": 0,
    "eval_generations": 0,
    "eval_max_new_tokens": 1,
    "online_max_new_tokens": 1,
    "gradient_accumulation_steps": 1,
    "per_device_eval_batch_size": 1,
    "dataloader_num_workers": 0,
    "learning_rate": 0,
    "weight_decay": 0,
    "max_grad_norm": 0,
    "dataloader_prefetch_factor": 1,
    "torch_empty_cache_steps": 1,
    "seed": 0,
    "data_seed": 0,
    "warmup_steps": 0,
    "eval_delay": 0,
    "adam_beta1": 0,
    "adam_beta2": 0,
    "adam_epsilon": 0,
    "reference_tolerance": 0,
}
_BELOW = {"seed": 2**32, "data_seed": 2**32, "adam_beta1": 1, "adam_beta2": 1}
_MAY_BE_ENDLESS = ("max_grad_norm", "reference_tolerance")  # which then bound nothing
_ABOVE = {"progress_seconds": 0, "logging_steps": 0, "eval_steps": 0, "save_steps": 0, "ddp_timeout": 0}
_BACKENDS = ("nccl", "gloo", "mpi", "ucc", "xccl", "ccl", "hccl", "cncl", "mccl")
_CHECKPOINTING = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop", "context_fn")
_LEVELS = ("debug", "info", "warning", "error", "critical", "detail", "passive")
_STAYS = {  # why such a reference cannot follow the policy
    "cached": "keeps the scores of a reference that never changes, but sync_ref_model moves it",
    "adapter_off": "makes the frozen base the reference, but sync_ref_model moves it",
    "none": "leaves sync_ref_model nothing to move",
}


def refuse_moved(values: Mapping[str, Any]) -> None:
    """Raises a ValueError that says what to write for a key that is known from elsewhere."""
    for key, advice in MOVED.items():
        if key in values:
            raise ValueError(f"{key}: not a key of this config; {advice}")


def check_training_options(values: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Raises a ValueError for options that cannot work here or would silently do nothing."""
    for name, hint in hints.items():
        if get_origin(hint) is not Literal:
            continue
        if values.get(name, get_args(hint)[0]) not in get_args(hint):
            raise ValueError(f"{name}: expected one of {', '.join(get_args(hint))}, found {values[name]!r}")
    for name, value in values.items():
        endless = isinstance(value, float) and not math.isfinite(value)
        if endless and (math.isnan(value) or name not in _MAY_BE_ENDLESS):
            raise ValueError(f"{name}: expected a finite number, found {value}")
    for name, (harmless, reason) in CANNOT_WORK.items():
        if values.get(name, harmless[0]) not in harmless:
            raise ValueError(f"{name}: {values[name]!r} cannot work here: {reason}")
    if values.get("bf16") is True and values.get("fp16"):
        raise ValueError("bf16 and fp16 are both true: choose one")
    least_values = {"max_length": 2, "precompute_ref_batch_size": 1, "per_device_train_batch_size": 1}
    for name, least in (least_values | _LEAST).items():
        value = values.get(name)
        if value is not None and value < least:
            raise ValueError(f"{name}: expected at least {least}, found {value}")
    for name, bound in _ABOVE.items():
        if (value := values.get(name)) is not None and value <= bound:
            raise ValueError(f"{name}: expected more than {bound}, found {values[name]}")
    for name, bound in _BELOW.items():
        if (value := values.get(name)) is not None and value >= bound:
            raise ValueError(f"{name}: expected less than {bound}, found {value}")
    _check_choices(values)
    for name in ("log_level", "log_level_replica"):
        if values.get(name, "passive") not in _LEVELS:
            raise ValueError(f"{name}: expected one of {', '.join(_LEVELS)}, found {values[name]!r}")
    if values.get("max_steps") == 0:
        raise ValueError("max_steps: expected -1, for as many as num_train_epochs says, or at least 1; found 0")
    duration("max_wall_time", values.get("max_wall_time"))
    alpha = values.get("ref_model_mixup_alpha", 1)
    if not 0 < alpha <= 1:
        raise ValueError(f"ref_model_mixup_alpha: expected more than 0 and at most 1, found {alpha}")
    if values.get("sync_ref_model") and values.get("reference", "auto") not in ("auto", "live"):
        raise ValueError(f"reference: {values['reference']} {_STAYS[values['reference']]}; allowed: auto, live")
    if values.get("eval_judge") is not None and not values.get("eval_generations"):
        raise ValueError("eval_judge: there is nothing to judge; say how many answers to sample with eval_generations")
    for name in ("ref_model_name_or_path", "ref_adapter"):
        if values.get(name) is not None and values.get("reference") in ("none", "adapter_off"):
            raise ValueError(f"{name}: {values[name]!r} would never be used with reference: {values['reference']}")


def _check_choices(values: Mapping[str, Any]) -> None:
    """Raises a ValueError for what torch would answer without a key, or not at all."""
    if (backend := values.get("ddp_backend")) is not None:
        names = {part.rpartition(":")[2] for part in str(backend).split(",")}  # also "cpu:gloo,cuda:nccl"
        if not names <= {*_BACKENDS}:
            raise ValueError(f"ddp_backend: expected one of {', '.join(_BACKENDS)}, found {backend!r}")
    if (context := values.get("dataloader_multiprocessing_context")) is not None:
        if context not in (ways := get_all_start_methods()):
            raise ValueError(
                f"dataloader_multiprocessing_context: expected one of {', '.join(ways)}, found {context!r}"
            )
        if not values.get("dataloader_num_workers"):
            raise ValueError(
                f"dataloader_multiprocessing_context: {context!r} starts nothing, for there are no workers; say how "
                "many with dataloader_num_workers"
            )
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        options = values.get(name)
        if isinstance(options, Mapping) and (unknown := [key for key in options if key not in _CHECKPOINTING]):
            raise unknown_key(f"{name}.{unknown[0]}", _CHECKPOINTING)


def duration(name: str, value: float | str | None) -> float | None:
    """Returns a length of time in seconds: a number of them, also as text, or [D-]HH:MM:SS.

    Raises:
        ValueError: neither, or not more than 0.
    """
    if value is None:
        return None
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", value) if isinstance(value, str) else None
    if match is not None:
        days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        value = 86400 * days + 3600 * hours + 60 * minutes + seconds
    try:
        found = float(value)
    except ValueError:
        found = 0.0
    if not 0 < found < float("inf"):
        raise ValueError(f"{name}: expected seconds, or time as [D-]HH:MM:SS, more than 0; found {value!r}")
    return found


def check_sources(data: DataConfig) -> None:
    """Checks the keys of mixtures; what stands behind them is checked when it is read."""
    evals = data.eval if isinstance(data.eval, dict) else {"": data.eval}
    named = {"data.train": data.train, **{f"data.eval.{name}".rstrip("."): one for name, one in evals.items()}}
    for where, source in named.items():
        if source in ("", []):
            raise ValueError(f"{where}: expected a path, a hub id, or a list of these, found {source!r}")
        for index, part in enumerate(source if isinstance(source, list) else ()):
            if not isinstance(part, dict):
                continue
            for key in part:
                if key not in _SOURCE_KEYS:
                    raise unknown_key(f"{where}[{index}].{key}", _SOURCE_KEYS)
            if "path" not in part:
                raise ValueError(f"{where}[{index}].path: required, and not given")
    if data.eval is not None and data.eval_rows is not None:
        raise ValueError("data.eval and data.eval_rows are both given: evaluate on a set, or hold rows out")
    if data.eval_rows is not None and data.eval_rows < 1:
        raise ValueError(f"data.eval_rows: expected at least 1, found {data.eval_rows}")


def check_peft(options: Values) -> None:
    """Checks names and types of an adapter's options against its PEFT class."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    classes = {str(kind.value): cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    kind = str(options.get("peft_type", "LORA"))
    if kind not in classes:
        raise ValueError(f"peft.peft_type: expected one of {', '.join(sorted(classes))}, found {kind!r}")
    free = {"peft_type", "task_type"}
    start = str(options.get("init_lora_weights"))
    if start == "lora_ga" or re.fullmatch(r"pissa_niter_\d+", start):
        free.add("init_lora_weights")  # a pattern that the annotation cannot express, and a name that it lacks
    names = {one.name for one in fields(classes[kind])}
    for key in options:
        if key not in names:
            raise unknown_key(f"peft.{key}", names)
    checked = {key: value for key, value in options.items() if key not in free}
    keys = Schema()
    keys.add_dataclass("peft", classes[kind], prefix="peft.", skip=names - set(checked))
    if checked:
        keys.check({"peft": checked})
    try:
        classes[kind](**{key: value for key, value in options.items() if key != "peft_type"})
    except (ValueError, TypeError, ImportError) as error:
        raise ValueError(f"peft: {error}") from error


def unlike_intervals(training: Mapping[str, Any]) -> str:
    """Says why the best model cannot be loaded at the end: evaluations and checkpoints at other steps; "" if it can."""
    evaluation, saving = training.get("eval_strategy") or "no", training.get("save_strategy") or "steps"
    if saving == "best":
        return ""
    if evaluation != saving:
        return f"eval_strategy is {evaluation} and save_strategy {saving}, and the best is known of a checkpoint alone"
    steps = training.get("eval_steps") or training.get("logging_steps", 500)
    apart = training.get("save_steps", 500)
    ratio = apart / steps
    same_kind = (apart < 1) == (steps < 1)  # shares of all steps, or numbers of them
    if saving == "steps" and not (same_kind and ratio >= 1 - 1e-6 and abs(ratio - round(ratio)) < 1e-6):
        return f"save_steps, {apart:g}, is no multiple of eval_steps, {steps:g}"
    return ""


def check_combinations(model: ModelOptions, data: DataConfig, peft: Values | None, training: Values) -> None:
    """Raises a ValueError for blocks that contradict one another."""
    if model.load_in_4bit and model.load_in_8bit:
        raise ValueError("model.load_in_4bit and model.load_in_8bit are both true: choose one")
    if peft is not None and model.adapter is not None:
        raise ValueError("peft and model.adapter are both given: make a new adapter, or go on training a saved one")
    if model.adapter is not None and Path(model.adapter).exists() and not holds_adapter(model.adapter):
        raise ValueError(f"model.adapter: {model.adapter} holds no adapter_config.json: it is no saved adapter")
    if model.adapter is not None and holds_adapter(model.name_or_path):
        raise ValueError(
            f"model.adapter: {model.name_or_path} (model.name_or_path) holds an adapter too, which would be left out; "
            "name the base model there, or leave model.adapter out"
        )
    has_adapter = peft is not None or model.adapter is not None
    if not has_adapter and not holds_adapter(model.name_or_path):
        for name in ("load_in_4bit", "load_in_8bit", "merge_adapter"):
            if getattr(model, name):
                raise ValueError(f"model.{name}: needs an adapter; add a block such as `peft: {{r: 16}}`")
        if training.get("reference") == "adapter_off":
            raise ValueError("reference: adapter_off needs an adapter; add a block such as `peft: {r: 16}`")
    if training.get("load_best_model_at_end") and (why := unlike_intervals(training)):
        raise ValueError(f"load_best_model_at_end: {why}; write the same for both, or save_strategy: best")
    evaluates = training.get("eval_strategy", "no") != "no" or training.get("eval_on_start")
    if data.eval is None and data.eval_rows is None:
        for name, asked in {"eval_strategy": evaluates, "eval_generations": training.get("eval_generations")}.items():
            if asked:
                raise ValueError(f"{name}: nothing to evaluate on; give data.eval or data.eval_rows")
