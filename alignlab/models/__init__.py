"""Names and options to modules: policy, tokenizer, quantised base, adapters.

Never here: a forward pass, data, or training.
"""

from .adapters import add_adapter, base_path, is_peft, leaves_base_alone, merge_adapter, peft_options
from .load import load_model, load_tokenizer, pad_token_id, saved_folder, torch_dtype
from .quantised import guard_quantised, is_quantised

__all__ = [
    "add_adapter",
    "base_path",
    "guard_quantised",
    "is_peft",
    "is_quantised",
    "leaves_base_alone",
    "load_model",
    "load_tokenizer",
    "merge_adapter",
    "pad_token_id",
    "peft_options",
    "saved_folder",
    "torch_dtype",
]
