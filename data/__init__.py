"""Rows on disk to tensors.

Never here: a model or a loss: rows and token ids alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .check import CheckOptions, LengthBias, Lengths, Overlap, Statistics, check, kind_of, statistics
from .columns import NUMBERS, value_counts, value_ranges
from .formats import parse_row
from .holdout import hold_out
from .identity import file_hash, rows_digest, sources_digest
from .keys import content_key, keys_of
from .lengths import LIST, lengths, list_lengths, list_sizes, longest_text, row_tokens
from .options import DataOptions
from .page import write_page
from .prepare import Prepared, prepare
from .prompts import AskedPrompt, AskedPrompts, prompt_id, read_prompts
from .rows_file import open_rows
from .schema import BadRow, DataReport, RowError, SourceReport
from .set_identity import prepared_key, tokenizer_digest
from .show import peek
from .shown import as_values, printable, render
from .sources import check_there, open_sources
from .texts import TextReader, reading_options

if TYPE_CHECKING:
    from . import toy
    from .attention import AttentionPlan, attention_plan
    from .collate import CachedScores, PreferenceCollator, Rows, better_sequence, sequence, sequence_key, sequences_of
    from .layout import PROMPT, Layout, Mode, ScoredSequence, layout_fields, layout_sequences
    from .sampler import StepCut, StepSampler

__all__ = [
    "LIST",
    "NUMBERS",
    "PROMPT",
    "AskedPrompt",
    "AskedPrompts",
    "AttentionPlan",
    "BadRow",
    "CachedScores",
    "CheckOptions",
    "DataOptions",
    "DataReport",
    "Layout",
    "LengthBias",
    "Lengths",
    "Mode",
    "Overlap",
    "PreferenceCollator",
    "Prepared",
    "RowError",
    "Rows",
    "ScoredSequence",
    "SourceReport",
    "Statistics",
    "StepCut",
    "StepSampler",
    "TextReader",
    "as_values",
    "attention_plan",
    "better_sequence",
    "check",
    "check_there",
    "content_key",
    "file_hash",
    "hold_out",
    "keys_of",
    "kind_of",
    "layout_fields",
    "layout_sequences",
    "lengths",
    "list_lengths",
    "list_sizes",
    "longest_text",
    "open_rows",
    "open_sources",
    "parse_row",
    "peek",
    "prepare",
    "prepared_key",
    "printable",
    "prompt_id",
    "read_prompts",
    "reading_options",
    "render",
    "row_tokens",
    "rows_digest",
    "sequence",
    "sequence_key",
    "sequences_of",
    "sources_digest",
    "statistics",
    "tokenizer_digest",
    "toy",
    "value_counts",
    "value_ranges",
    "write_page",
]

_TENSORS = {
    "attention": ("AttentionPlan", "attention_plan"),
    "collate": (
        "CachedScores",
        "PreferenceCollator",
        "Rows",
        "better_sequence",
        "sequence",
        "sequence_key",
        "sequences_of",
    ),
    "layout": ("PROMPT", "Layout", "Mode", "ScoredSequence", "layout_fields", "layout_sequences"),
    "sampler": ("StepCut", "StepSampler"),
}


def __getattr__(name: str) -> Any:
    """Imports what makes tensors when it is first used: looking at rows need not wait for torch."""
    if name == "toy":
        return import_module(".toy", __name__)
    for file, names in _TENSORS.items():
        if name in names:
            return getattr(import_module(f".{file}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
