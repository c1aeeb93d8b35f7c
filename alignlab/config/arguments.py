"""The trainer's arguments: those of transformers, and what preference training needs besides."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Literal, get_type_hints

import torch
from transformers import TrainingArguments
from transformers.integrations import integration_utils
from transformers.utils import is_liger_kernel_available

from alignlab.runtime import check_fsdp, check_parallel, deepspeed_values, shown_as, this_machine

from .automatic import decide
from .checks import check_training_options

logger = logging.getLogger(__name__)
Shown = Literal["auto", "live", "lines", "none"]
Reference = Literal["auto", "cached", "live", "adapter_off", "none"]


@dataclass
class PreferenceConfig(TrainingArguments):  # type: ignore[misc]
    """``transformers.TrainingArguments`` plus what preference training needs; options of the loss live in the loss.

    Names and meanings are TRL's where TRL has them. What says "auto" is decided by the machine when this is made (see
    ``automatic``), because the same config must run on any; ``gradient_checkpointing``, which takes a plan, by
    ``alignlab train``: here it is off.
    """

    learning_rate: float = field(default=1e-6, metadata={"help": "The initial learning rate of the optimiser."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps; below 1: a share of them."})
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={"help": "Needless, and waits for the device twice a micro-batch: a loss that is not finite stops."},
    )
    report_to: str | list[str] | None = field(default="none", metadata={"help": "Where metrics are reported to."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay false: rows carry own columns."})
    label_names: list[str] | None = field(default_factory=list, metadata={"help": "Must stay empty."})

    bf16: bool | Literal["auto"] = field(
        default="auto", metadata={"help": "Compute in bfloat16; auto: where an accelerator has it, never on a CPU."}
    )
    gradient_checkpointing: bool | Literal["auto"] = field(
        default="auto",
        metadata={"help": "Keep fewer activations, and compute them again; auto: where a run is not planned to fit."},
    )

    max_length: int | None = field(
        default=1024, metadata={"help": "Tokens of prompt and completion together; longer rows are truncated."}
    )
    truncation_mode: Literal["keep_start", "keep_end"] = field(
        default="keep_start", metadata={"help": "Which end of a row that is too long is kept."}
    )
    on_bad_row: Literal["error", "skip"] = field(
        default="error", metadata={"help": "A bad row stops the run, or is written to rejected_rows.jsonl."}
    )
    chat_template_kwargs: dict[str, Any] | None = field(
        default=None,
        metadata={"help": "Passed to the chat template, e.g. {enable_thinking: false}; a row's own go first."},
    )
    score_empty_thoughts: bool = field(
        default=True,
        metadata={"help": "Count the tokens of empty thoughts (<think></think>) that a chat template writes."},
    )
    default_label: bool | None = field(
        default=None, metadata={"help": "Of labelled rows that have no label; by default such a row is a bad row."}
    )
    special_tokens_in_text: Literal["auto", "keep", "split", "error"] = field(
        default="auto",
        metadata={
            "help": "Control tokens that the text of a row spells: keep lets them be tokens, split reads them as text, "
            "error makes a bad row of it; auto splits in messages and keeps in plain rows."
        },
    )
    lists_as: Literal["best_worst", "best_rest", "best_random", "all"] = field(
        default="best_worst",
        metadata={
            "help": "What losses of pairs make of rows of several answers: the best with the worst, with every worse "
            "one, or with one drawn by content; or every two of which one is better."
        },
    )
    max_completions: int | None = field(
        default=None,
        metadata={"help": "Most answers of a row that are taken: the best, the worst, and others drawn by content."},
    )
    reward_names: list[str] | None = field(
        default=None, metadata={"help": "The order of the objectives that rows name (MODPO); by default by name."}
    )
    data_workers: int | None = field(
        default=None,
        metadata={
            "help": "Processes that prepare rows; by default the cores of the machine divided by its ranks. The result "
            "is the same for any number."
        },
    )
    data_cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder of prepared rows, on a disk of the machine (one process a machine prepares) or shared; by "
            "default that of the scores."
        },
    )
    layout: Literal["auto", "packed", "padded"] = field(
        default="auto",
        metadata={
            "help": "packed: several pairs a row, prompts once, no padding; auto: packed where the model takes it "
            "exactly, found by running it, else padded."
        },
    )
    length_window: int = field(
        default=0,
        metadata={
            "help": "Sort rows by length within windows of that many optimiser steps, which changes which rows meet "
            "in a step; 0: never. Packed rows need none of it, padded ones save padding."
        },
    )
    float32_matmul_precision: Literal["auto", "highest", "high", "medium"] | None = field(
        default="auto",
        metadata={
            "help": "How exactly fp32 matrices are multiplied (torch's switch). The error that it has on this machine "
            "is measured and logged; what it gains depends on the machine too. auto: high where there is TF32, else "
            "null: as the process has it."
        },
    )
    disable_dropout: bool = field(
        default=True, metadata={"help": "Set every dropout of the base to 0; an adapter's own (lora_dropout) stays."}
    )
    reference: Reference = field(
        default="auto",
        metadata={
            "help": "Where reference scores come from; auto: none where the loss needs none, cached where it needs "
            "log-probabilities, live where it needs whole distributions."
        },
    )
    ref_model_name_or_path: str | None = field(
        default=None, metadata={"help": "Another model as the reference; by default the policy as it starts."}
    )
    ref_adapter: str | None = field(default=None, metadata={"help": "A saved adapter that makes the reference."})
    sync_ref_model: bool = field(
        default=False, metadata={"help": "Let a live reference follow the policy (TR-DPO), for any loss."}
    )
    ref_model_mixup_alpha: float = field(
        default=0.6,
        metadata={"help": "Of sync_ref_model: ref = alpha * policy + (1 - alpha) * ref; 1 is the hard update."},
    )
    ref_model_sync_steps: int = field(
        default=512, metadata={"help": "Of sync_ref_model: optimiser steps between two updates."}
    )
    reference_deepspeed: str | dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "A DeepSpeed configuration at stage 3, such as zero3.json or zero3_offload.json: a reference with "
            "weights of its own is sharded (and offloaded) by it, whatever the policy's stage."
        },
    )
    reference_hidden_dtype: Literal["float32", "bfloat16", "float16"] = field(
        default="float32",
        metadata={"help": "Of the hidden states that reference: cached keeps where a loss needs whole distributions."},
    )
    score_cache_dir: str | None = field(
        default=None, metadata={"help": "Folder of the scores of frozen models; by default under the user's cache."}
    )
    precompute_ref_batch_size: int | None = field(
        default=None, metadata={"help": "Completions per scoring batch; by default 2 * per_device_eval_batch_size."}
    )
    allow_reference_mismatch: bool = field(
        default=False, metadata={"help": "Go on although policy and reference differ before the first step."}
    )
    reference_tolerance: float | None = field(
        default=None,
        metadata={"help": "Largest such difference, nats a token; by default what rounding does to the policy."},
    )
    scorers: dict[str, str] | None = field(
        default=None, metadata={"help": "Further frozen models that the loss draws on (MODPO), name: path."}
    )
    router_aux_loss_coef: float | None = field(
        default=None,
        metadata={"help": "Weight of a mixture of experts' load-balancing loss; by default as its config says."},
    )
    coupled_totals: Literal["exact", "previous_step"] = field(
        default="exact", metadata={"help": "Batch totals of coupled losses: of this step, or of the one before."}
    )
    eval_generations: int = field(
        default=0, metadata={"help": "At each evaluation, sample answers to so many prompts and log their metrics."}
    )
    online_max_new_tokens: int = field(
        default=256, metadata={"help": "Of losses that sample in the step: most tokens of an answer."}
    )
    eval_max_new_tokens: int = field(default=128, metadata={"help": "Of eval_generations: tokens of an answer."})
    eval_judge: str | dict[str, Any] | None = field(
        default=None,
        metadata={
            "help": "Of eval_generations: what compares answers with the chosen completions: file.py:function, a "
            "reward model's path, an address https://.../v1, or {name: one of these, option: ...}."
        },
    )
    max_wall_time: str | float | None = field(
        default=None,
        metadata={
            "help": "Seconds or [D-]HH:MM:SS from the start of the process: saves and stops, with exit status 75, "
            "while there still is time."
        },
    )
    overwrite_output_dir: bool = field(
        default=False,
        metadata={
            "help": "Where output_dir holds another run: put it aside until this one is whole, and then delete it."
        },
    )
    resume_with_changes: bool = field(
        default=False,
        metadata={"help": "Go on from a checkpoint of a config that trained otherwise, and apply what is new."},
    )
    trust_checkpoint: bool = field(
        default=False,
        metadata={"help": "Load a checkpoint although its manifest is missing or does not match; ZeRO's run code."},
    )

    progress: Shown = field(
        default="auto",
        metadata={
            "help": "live: one moving line and a table; lines: plain lines; none; auto: live on a terminal, lines in a "
            "file and under Slurm."
        },
    )
    progress_seconds: float = field(default=30, metadata={"help": "Between two plain lines of progress."})
    report: bool = field(default=True, metadata={"help": "Write report.html and plots/ when a run is over."})
    report_samples: int = field(
        default=4,
        metadata={"help": "Answers to so many held-out prompts, before and after, in the report; 0: none."},
    )

    disable_tqdm: bool | None = field(default=None, metadata={"help": "Show no moving bars, as progress: lines does."})

    def __post_init__(self) -> None:
        check_training_options(vars(self), hints())
        for asked in (self.deepspeed, self.reference_deepspeed):
            if asked is not None:
                deepspeed_values(asked)  # whose errors name the key
        if not torch.accelerator.is_available():
            self.use_cpu = True  # what happens anyway, but DeepSpeed and accelerate have to be told
        for name, (value, why) in decide(vars(self), this_machine(use_cpu=self.use_cpu)).items():
            logger.info("%s: %s (%s)", name, value, why)
            setattr(self, name, value)
        if getattr(self, "activation_checkpointing", True) is None:  # the newer name, of which the other is an alias
            self.activation_checkpointing = self.gradient_checkpointing
        given = self.fsdp_config if isinstance(self.fsdp_config, dict) else None  # a file is read by the next line
        check_fsdp(self.fsdp, given, deepspeed=self.deepspeed is not None)
        self.disable_tqdm = shown_as(self.progress, bars=not self.disable_tqdm) != "live"  # no bars in a file
        try:
            super().__post_init__()
        except (TypeError, ValueError) as error:
            key = next((key for words, key in _SAID.items() if words in str(error)), None)
            raise (error if key is None else ValueError(f"{key}: {error}")) from error
        _check_reporters(self.report_to)
        check_fsdp(self.fsdp, self.fsdp_config, deepspeed=False)
        if self.use_liger_kernel:
            self.liger_kernel_config: dict[str, bool] | None = _liger_kernels(self.liger_kernel_config)
        spread = {"fsdp": bool(self.fsdp) and self.use_cpu, "parallelism": self.parallelism_config}
        check_parallel(self.deepspeed, self.reference_deepspeed, **spread)


_SAID = {  # words of the libraries' errors that name no key of ours
    "AcceleratorConfig": "accelerator_config",
    "--tf32": "tf32: this machine has none, leave it out",
    "Default process group": "ddp_backend: one process runs, which connects to none; leave it out",
}


def _check_reporters(names: Any) -> None:
    """Refuses a reporter that transformers does not know, or whose package is not installed."""
    others = {"comet_ml": "comet", "azure_ml": "azureml", "flyte": "flytekit"}
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"report_to: {name} stands there twice, and would be told everything twice")
        if name in ("none", "all"):
            raise ValueError(f"report_to: {name} stands alone, found {names}")
        if name not in integration_utils.INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(integration_utils.INTEGRATION_TO_CALLBACK))
            raise ValueError(f"report_to: there is no {name!r}; allowed are none, all, {known}")
        is_there = getattr(integration_utils, f"is_{others.get(name, name)}_available", lambda: True)
        if not is_there():
            raise ValueError(f"report_to: {name} needs a package that is not installed: pip install {name}")


def _liger_kernels(asked: dict[str, bool] | None) -> dict[str, bool]:
    """Returns which of Liger's kernels are wanted: what was asked for, and never its losses."""
    if not is_liger_kernel_available():
        raise ValueError(
            "use_liger_kernel: needs the package liger-kernel, which is not installed, or is older than 0.3; "
            "install it (pip install liger-kernel), or leave the key out"
        )
    losses = ("cross_entropy", "fused_linear_cross_entropy")
    for name in losses:
        if (asked or {}).get(name):
            raise ValueError(
                f"liger_kernel_config.{name}: it is a loss over labels; the loss here is a preference loss"
            )
    return {**(asked or {}), **dict.fromkeys(losses, False)}


@cache
def hints() -> dict[str, Any]:
    return get_type_hints(PreferenceConfig)
