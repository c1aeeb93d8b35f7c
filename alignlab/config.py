"""The typed configuration of a run: trainer arguments, loss, model, data and adapter, from Python or from YAML."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_type_hints

import torch
from transformers import TrainingArguments

from . import losses
from .config_checks import check_combinations, check_peft, check_sources, check_training_options, refuse_moved
from .config_parser import Key, Schema, Values, read_yaml, split_command_line, write_yaml
from .parallel_checks import check_parallel, zero_stage

Source = dict[str, Any]  # {path, weight, split, name, columns}: one part of a mixture
_HIDDEN = ("parallelism_config", "local_rank", "hub_token")  # a Python object, the launcher's, a secret

Reference = Literal["auto", "cached", "live", "adapter_off", "none"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass
class PreferenceConfig(TrainingArguments):  # type: ignore[misc]
    """``transformers.TrainingArguments`` plus what preference training needs; options of the loss live in the loss.

    Names and meanings are TRL's where TRL has them. Defaults that differ from TRL's: ``bf16`` and
    ``gradient_checkpointing`` are off, because the same config must run on any machine.
    """

    learning_rate: float = field(default=1e-6, metadata={"help": "The initial learning rate of the optimiser."})
    logging_steps: float = field(default=10, metadata={"help": "Log every so many steps; below 1: a share of them."})
    report_to: str | list[str] | None = field(default="none", metadata={"help": "Where metrics are reported to."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay false: rows carry own columns."})
    label_names: list[str] | None = field(default_factory=list, metadata={"help": "Must stay empty."})

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
    default_label: bool | None = field(
        default=None, metadata={"help": "Of labelled rows that have no label; by default such a row is a bad row."}
    )
    reward_names: list[str] | None = field(
        default=None, metadata={"help": "The order of the objectives that rows name (MODPO); by default by name."}
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
    float32_matmul_precision: Literal["highest", "high", "medium"] | None = field(
        default=None,
        metadata={
            "help": "How exactly fp32 matrices are multiplied (torch's switch). The error that it has on this machine "
            "is measured and logged; what it gains depends on the machine too. By default as the process has it."
        },
    )
    disable_dropout: bool = field(default=True, metadata={"help": "Set every dropout of the policy to 0."})
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
        metadata={"help": "Largest such difference, nats; by default 1e-3 in fp32, 0.1 in half precision."},
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
    trust_checkpoint: bool = field(
        default=False,
        metadata={"help": "Load a checkpoint although its manifest is missing or does not match; ZeRO's run code."},
    )

    report: bool = field(default=True, metadata={"help": "Write report.html and plots/ when a run is over."})
    report_samples: int = field(
        default=4,
        metadata={"help": "Answers to so many held-out prompts, before and after, in the report; 0: none."},
    )

    def __post_init__(self) -> None:
        check_training_options(vars(self), _hints())
        if not torch.accelerator.is_available():
            self.use_cpu = True  # what happens anyway, but DeepSpeed and accelerate have to be told
        super().__post_init__()
        spread = {"fsdp": bool(self.fsdp) and self.use_cpu, "parallelism": self.parallelism_config}
        check_parallel(self.deepspeed, self.reference_deepspeed, **spread)


@dataclass(frozen=True)
class ModelOptions:
    """The policy: which model, how it is loaded and what is saved of it."""

    name_or_path: str = field(metadata={"help": "A folder or a hub id; a folder with an adapter brings its base."})
    tokenizer: str | None = field(default=None, metadata={"help": "By default that of the model."})
    revision: str = field(default="main", metadata={"help": "Branch, tag or commit on the hub."})
    dtype: Dtype = field(default="float32", metadata={"help": "Of the weights in memory; auto: as they were saved."})
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flash_attention_2, ..."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that the model's repository brings."})
    adapter: str | None = field(default=None, metadata={"help": "A saved PEFT adapter to go on training."})
    load_in_4bit: bool = field(default=False, metadata={"help": "Quantise the frozen base to 4 bits (bitsandbytes)."})
    load_in_8bit: bool = field(default=False, metadata={"help": "Quantise the frozen base to 8 bits (bitsandbytes)."})
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = field(default="nf4", metadata={"help": "The 4-bit number format."})
    bnb_4bit_use_double_quant: bool = field(default=True, metadata={"help": "Quantise the scales as well."})
    bnb_4bit_compute_dtype: Literal["float32", "bfloat16", "float16"] | None = field(
        default=None, metadata={"help": "Of the arithmetic on 4-bit weights; by default `model.dtype`."}
    )
    chat_template: str | None = field(default=None, metadata={"help": "A Jinja file; by default the tokenizer's own."})
    merge_adapter: bool = field(default=False, metadata={"help": "Also save the model with its adapter merged in."})


@dataclass(frozen=True)
class DataConfig:
    """Where the rows come from: files, folders, hub ids, or weighted mixtures of them."""

    train: str | list[str | Source] = field(
        metadata={"help": "A file, a folder, a hub id, or a list of those or of {path, weight, split, name, columns}."}
    )
    eval: str | list[str | Source] | dict[str, str | list[str | Source]] | None = field(
        default=None, metadata={"help": "The same, or a mapping from the name of each evaluation set to the same."}
    )
    eval_rows: int | None = field(
        default=None, metadata={"help": "Hold that many rows of `train` out for evaluation, chosen by their content."}
    )


@dataclass(frozen=True)
class RunConfig:
    """A whole run, checked: the loss builds, the adapter's options exist, no combination is impossible."""

    loss: Values
    model: ModelOptions
    data: DataConfig
    peft: Values | None = None
    training: Values = field(default_factory=dict)  # the flat keys of PreferenceConfig

    def __post_init__(self) -> None:
        check_training_options(self.training, _hints())
        check_sources(self.data)
        losses.build(self.loss)  # an unknown name or option stops the run before anything is loaded
        if self.peft is not None:
            check_peft(self.peft)
        check_combinations(self)

    def training_args(self) -> PreferenceConfig:
        """Builds the trainer's arguments; this is what initialises devices and the distributed backend."""
        values = dict(self.training)
        for name in ("deepspeed", "reference_deepspeed"):
            if isinstance(values.get(name), str):
                values[name] = str(find_config(values[name]))
        if self.model.merge_adapter and zero_stage(values.get("deepspeed")) == 3:
            raise ValueError(
                "model.merge_adapter: under ZeRO-3 no rank holds a whole base to merge into; merge the saved adapter "
                "afterwards, or train at stage 2"
            )
        return PreferenceConfig(**values)

    def to_dict(self) -> Values:
        """Returns the config as ``load_config`` takes it, defaults included."""
        blocks = {"loss": self.loss, "model": asdict(self.model), "data": asdict(self.data), "peft": self.peft}
        return {**blocks, **self.training}

    def to_yaml(self) -> str:
        """Returns the resolved config as YAML; loading that gives the same config."""
        return write_yaml(self.to_dict())


def load_config(config: str | Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """Reads and checks a config without loading a model, data or the distributed backend.

    Args:
        config: a YAML file, the name of a shipped config, or the values themselves. Paths in a config are relative
            to the working directory.
        overrides: command-line words, ``["--loss.beta", "0.2", "--learning_rate=1e-6"]``.

    Raises:
        ValueError: unknown or duplicate key, wrong type, impossible combination; names the dotted key.
        FileNotFoundError: no such config; names the shipped ones.
    """
    extra, options = split_command_line(overrides)
    if extra is not None:
        raise ValueError(f"overrides start with --, found {extra!r}")
    values = dict(config) if isinstance(config, Mapping) else read_yaml(find_config(config))
    values = schema().override(values, options)
    refuse_moved(values)
    if values.get("output_dir") is None:
        values["output_dir"] = f"runs/{'run' if isinstance(config, Mapping) else Path(config).stem}"
    checked = schema().check(values)
    model, data = ModelOptions(**checked.pop("model")), DataConfig(**checked.pop("data"))
    return RunConfig(checked.pop("loss"), model, data, checked.pop("peft"), checked)


def find_config(name: str | Path) -> Path:
    """Returns the file called ``name``, or the shipped config of that name (with or without ``.yaml``)."""
    path, folder = Path(name), Path(str(resources.files("alignlab.configs")))
    candidates = [path]
    if path.name == str(name):  # a bare name
        candidates += [folder / path.name, folder / f"{path.name}.yaml"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    shipped = ", ".join(sorted(file.name for file in folder.iterdir() if file.suffix in (".yaml", ".json")))
    raise FileNotFoundError(f"no config {str(name)!r}; shipped ones, found by their bare name: {shipped}")


@cache
def schema() -> Schema:
    """Returns the keys of a config, in groups as the help shows them."""
    result = Schema()
    loss_help = "Name of the loss and its options: {name: dpo, beta: 0.1}; `alignlab losses` lists them."
    peft_help = "Options of a new adapter under their PEFT names: {r: 16}; `peft_type` is LORA unless given."
    result.add("loss", [Key("loss", Values, MISSING, loss_help)])
    result.add_dataclass("model", ModelOptions, prefix="model.")
    result.add_dataclass("data", DataConfig, prefix="data.")
    result.add("adapter", [Key("peft", Values | None, None, peft_help)])
    theirs = {one.name for one in fields(TrainingArguments)}
    result.add_dataclass("preference training", PreferenceConfig, skip=theirs)
    ours = {one.name for one in fields(PreferenceConfig)} - theirs
    result.add_dataclass("transformers.TrainingArguments", PreferenceConfig, skip=ours | {*_HIDDEN}, help=_their_help)
    return result


@cache
def _hints() -> dict[str, Any]:
    return get_type_hints(PreferenceConfig)


def _their_help(name: str) -> str:
    """Returns the first sentence that the docstring of TrainingArguments has for an argument."""
    found = re.search(rf"^ +{name} \(.*\):\n((?:.*\S.*\n)+)", inspect.getdoc(TrainingArguments) or "", re.MULTILINE)
    return re.split(r"(?<=\.)\s", " ".join(found[1].split()))[0] if found else ""
