"""Policy and tokenizer, from names and options to modules."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file

from alignlab.config import ModelOptions, four_bit_dtype, holds_adapter
from alignlab.runtime import is_sharded_at_load, this_machine
from alignlab.scoring import keep_caps

from .adapters import adapter_config, base_path, refuse_unrepeatable
from .naming import loading
from .quantised import guard_quantised, prepare_quantised
from .value_heads import check_task, outputs_of, widen_head

logger = logging.getLogger(__name__)


def torch_dtype(name: str) -> torch.dtype | str:
    """Returns the torch dtype called ``name``, or "auto" as it is."""
    return name if name == "auto" else getattr(torch, name)


def load_tokenizer(options: ModelOptions) -> PreTrainedTokenizerBase:
    """Loads the tokenizer; pads with EOS where it has no pad token, and takes the chat template that was asked for."""
    path = options.tokenizer or options.name_or_path
    with loading("tokenizer", path):
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=options.revision, trust_remote_code=options.trust_remote_code
        )
    if options.chat_template is not None:
        try:
            tokenizer.chat_template = Path(options.chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"model.chat_template: {options.chat_template} cannot be read: {error}") from error
    return tokenizer


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the id that pads rows. Padding is never attended to nor scored, so EOS serves where there is no pad."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def quantisation(options: ModelOptions) -> BitsAndBytesConfig | None:
    """Returns the bitsandbytes configuration that the options ask for, or None."""
    if options.load_in_4bit:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=options.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=options.bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=torch_dtype(four_bit_dtype(options, this_machine())),
        )
    return BitsAndBytesConfig(load_in_8bit=True) if options.load_in_8bit else None


def load_model(options: ModelOptions, path: str | None = None, *, outputs: int = 0) -> PreTrainedModel:
    """Loads ``path`` (by default the policy) as the options say: dtype, attention, quantisation, adapter.

    A folder that holds an adapter is loaded on the base model that it names. Weights come from safetensors.

    Args:
        outputs: of a value head in the place of the LM head; a new one where a language model was saved, drawn from
            torch's random numbers. 0: a language model.

    Raises:
        ValueError: it cannot be loaded, or is a model of another kind than asked for.
    """
    path = path or options.name_or_path
    if options.revision != "main" and Path(path).exists():
        logger.warning("model.revision: %r is not used: %s is a folder, which has no revisions", options.revision, path)
    _check_kind(path, options.revision, outputs)
    adapter = options.adapter if path == options.name_or_path else None
    if holds_adapter(path):
        adapter, path = path, base_path(path)
    if adapter is not None:
        refuse_unrepeatable(adapter)
    quantised = quantisation(options)
    auto, labels = AutoModelForCausalLM, {}
    if outputs:
        auto, labels = AutoModelForSequenceClassification, {"num_labels": outputs}
    with loading("model", path):
        model = auto.from_pretrained(
            path,
            revision=options.revision,
            dtype=torch_dtype(options.dtype),
            attn_implementation=options.attn_implementation,
            trust_remote_code=options.trust_remote_code,
            quantization_config=quantised,
            # ZeRO-3 places weights itself, and refuses a map.
            device_map={"": _local_device()} if quantised is not None and not is_sharded_at_load() else None,
            use_safetensors=True,
            **labels,
        )
    guard_quantised(model)
    keep_caps(model)
    return model if adapter is None else _adapted(model, adapter, outputs)


def _adapted(model: PreTrainedModel, adapter: str, outputs: int) -> Any:
    """Returns a model with a saved adapter, to be trained on."""
    from peft import PeftModel

    if outputs:
        check_task(adapter_config(adapter), outputs)
    with loading("adapter", adapter):
        adapted = PeftModel.from_pretrained(prepare_quantised(model), adapter, is_trainable=True)
    for config in adapted.peft_config.values():
        if config.base_model_name_or_path != model.name_or_path:
            found = (adapter, config.base_model_name_or_path, model.name_or_path)
            logger.warning("model.adapter: %s was made on %s, and stands on %s from here on", *found)
            config.base_model_name_or_path = model.name_or_path  # what is saved names the base that it was trained on
    if outputs:
        widen_head(adapted)
    return adapted


def _check_kind(path: str, revision: str, outputs: int) -> None:
    """Raises a ValueError where a saved reward model is to be a language model, or one of other outputs."""
    found = outputs_of(path, revision)
    if found is not None and found != outputs:
        wanted = f"a head of {outputs} outputs" if outputs else "a language model"
        raise ValueError(
            f"model: {path!r} is a reward model with {found} output{'s' * (found != 1)}, and {wanted} is needed here"
        )


def saved_folder(path: str, revision: str | None = None) -> Path | None:
    """Returns where the files of a model lie: the folder itself, or of a hub id its snapshot in the local cache.

    Args:
        revision: branch, tag or commit of a hub id; of a branch the commit that it was when it was fetched.

    Returns:
        None where ``path`` is neither. Nothing is fetched.
    """
    if Path(path).exists():
        return Path(path)
    try:
        found = cached_file(path, "config.json", revision=revision, local_files_only=True)
    except OSError:
        return None
    return None if found is None else Path(found).parent


def _local_device() -> torch.device:
    """Returns this rank's accelerator, or the CPU: quantised weights are placed as they are loaded."""
    from accelerate import PartialState

    return PartialState().device if torch.cuda.is_available() else torch.device("cpu")
