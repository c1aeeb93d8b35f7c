"""The architecture of a model by its name: from its folder, the hub's cache, or a table of shapes."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedTokenizerBase, set_seed

from alignlab.config import ModelOptions, read_yaml

from .adapters import base_path
from .load import saved_folder
from .naming import loading

logger = logging.getLogger(__name__)
TINY_LAYERS, TINY_HEADS, TINY_HEAD, TINY_EXPERTS = 2, 4, 16, 4


@cache
def known_shapes() -> dict[str, dict[str, Any]]:
    """Returns the table of shapes: model id to values of its transformers config, ``model_type`` among them."""
    return read_yaml(Path(__file__).with_name("shapes.yaml"))


def architecture(options: ModelOptions) -> PretrainedConfig:
    """Returns the transformers config of a model, of an adapter's folder that of its base.

    A folder, or a hub id in the local cache, is read; else the table of shapes answers, which has what memory depends
    on and nothing else; else the hub is asked.

    Raises:
        ValueError: none of them knows it; names it.
    """
    path = base_path(options.name_or_path)
    known = known_shapes().get(path)
    if known is not None and saved_folder(path, options.revision) is None:
        logger.info("%s is not on this disk: its shapes are those of the table that comes with alignlab", path)
        return AutoConfig.for_model(**known)
    with loading("model", path):
        return AutoConfig.from_pretrained(path, revision=options.revision, trust_remote_code=options.trust_remote_code)


def shrunk(config: PretrainedConfig, vocabulary: int) -> PretrainedConfig:
    """Returns the same architecture with two layers of 4 heads, 16 wide each, and at most 4 experts.

    The ratio of heads to key and value heads stays, as far as 4 heads allow. Token ids that the vocabulary lacks are
    left out.
    """
    values = config.get_text_config().to_dict()
    heads, groups = values["num_attention_heads"], values.get("num_key_value_heads") or values["num_attention_heads"]
    width = TINY_HEADS * TINY_HEAD
    tiny = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "moe_intermediate_size": width,
        "num_hidden_layers": TINY_LAYERS,
        "num_attention_heads": TINY_HEADS,
        "num_key_value_heads": max(TINY_HEADS * groups // heads, 1),
        "head_dim": TINY_HEAD,
        "query_pre_attn_scalar": TINY_HEAD,
        "num_experts": TINY_EXPERTS,
        "num_local_experts": TINY_EXPERTS,
        "num_experts_per_tok": min(values.get("num_experts_per_tok") or 1, TINY_EXPERTS // 2),
        "layer_types": (values.get("layer_types") or [])[:TINY_LAYERS] or None,
    }
    changed = {name: value for name, value in tiny.items() if name in values}
    changed |= {name: None for name in ("bos_token_id", "eos_token_id", "pad_token_id") if name in values}
    return AutoConfig.for_model(**{**values, **changed, "dtype": "float32"})


def write_tiny(options: ModelOptions, tokenizer: PreTrainedTokenizerBase, folder: Path, seed: int = 0) -> None:
    """Writes a two-layer model of the same architecture with random weights, and its tokenizer, into a folder."""
    config = shrunk(architecture(options), len(tokenizer))
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    set_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
