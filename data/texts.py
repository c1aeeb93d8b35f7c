"""Single texts to token ids: a prompt and an answer, read as the rows that a model was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from .control import ControlTokens
from .messages import as_messages
from .options import DataOptions
from .schema import DataReport, Message, Row, RowError, Segment
from .template import ChatTemplate
from .tokenise import Ids, Tokeniser, truncate

Prompt = str | list[Message]


def reading_options(reading: Mapping[str, Any]) -> DataOptions:
    """Returns the options of rows that a saved reward model was trained with.

    Raises:
        ValueError: one of them is unknown, or has a value that is not allowed.
    """
    unknown = sorted(reading.keys() - {one.name for one in fields(DataOptions)})
    if unknown:
        raise ValueError(f"reward_model.json: reading.{unknown[0]}: no option of rows has this name")
    try:
        return DataOptions(**reading)
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward_model.json: reading: {error}") from error


class TextReader:
    """Reads a prompt and an answer as a completion of a training row is read.

    Control tokens, chat template, EOS and truncation are those of training; the ids are the same to the last one.

    Args:
        reading: options of ``DataOptions`` that decide how texts become tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, reading: Mapping[str, Any]) -> None:
        self.options = replace(reading_options(reading), kind="labelled", default_label=True)
        self.control = ControlTokens(tokenizer, self.options.special_tokens_in_text)
        self.template = ChatTemplate(tokenizer, self.options, DataReport())
        self.tokeniser = Tokeniser(tokenizer, self.options.add_eos)

    def ids(self, prompt: Prompt, answer: str) -> tuple[Ids, Ids]:
        """Returns the tokens of the prompt and of the answer.

        Raises:
            RowError: nothing is left of the answer, or the chat template refuses the two.
        """
        turn: list[Segment] | list[Message] = [(answer, True)]
        if isinstance(prompt, list):
            prompt, turn = as_messages(prompt, "prompt"), [{"role": "assistant", "content": answer}]
        elif not answer:
            raise RowError("the answer is empty")
        row, _ = self.control.treat(Row(prompt, {"completion": turn}))
        [encoded] = self.tokeniser.encode([self.template.render(row)])
        truncate(encoded, self.options, self.tokeniser.bos)
        return encoded.prompt, encoded.completions["completion"].ids
