"""The blocks of a config: which model, and which data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Source = dict[str, Any]  # {path, weight, split, name, columns, format}: one part of a mixture
Dtype = Literal["auto", "float32", "bfloat16", "float16"]


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
        default=None, metadata={"help": "Of the arithmetic on 4-bit weights; by default bfloat16 where a GPU has it."}
    )
    chat_template: str | None = field(default=None, metadata={"help": "A Jinja file; by default the tokenizer's own."})
    merge_adapter: bool = field(default=False, metadata={"help": "Also save the model with its adapter merged in."})


@dataclass(frozen=True)
class DataConfig:
    """Where the rows come from: files, folders, hub ids, or weighted mixtures of them."""

    train: str | list[str | Source] = field(
        metadata={
            "help": "A file, a folder, a hub id, or a list of those or of {path, weight, split, name, columns, format}."
        }
    )
    eval: str | list[str | Source] | dict[str, str | list[str | Source]] | None = field(
        default=None, metadata={"help": "The same, or a mapping from the name of each evaluation set to the same."}
    )
    eval_rows: int | None = field(
        default=None, metadata={"help": "Hold that many rows of `train` out for evaluation, chosen by their content."}
    )


def holds_adapter(path: str | Path) -> bool:
    """True for a folder with a saved PEFT adapter, which names its base model: it can stand where a model does."""
    return (Path(path) / "adapter_config.json").is_file()
