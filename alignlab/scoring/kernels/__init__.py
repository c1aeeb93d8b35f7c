"""Attention over trees of one prompt and its completions, without masks: a flat row as plain causal sequences.

Never here: a model, a layout, or a score: queries, keys, values and a plan go in.
"""

from .capped import block_mask, capped_attention, dense_capped
from .trees import UnsupportedAttention, tree_attention

__all__ = ["UnsupportedAttention", "block_mask", "capped_attention", "dense_capped", "tree_attention"]
