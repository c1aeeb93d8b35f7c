"""Any OpenAI-compatible address as an engine: vLLM, SGLang, transformers serve, in an environment of its own."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from alignlab.answers import Answer
from alignlab.data import AskedPrompt
from alignlab.remote import ChatClient, ClientOptions, Limits, Refused, Unanswered, Unreachable, check_positive

from .engine import SeededEngine, known_tokens
from .options import SampleOptions
from .policy import Policy

logger = logging.getLogger(__name__)
RESCORED = 64  # answers, before any is kept


@dataclass(frozen=True, kw_only=True)
class ServerOptions(ClientOptions):
    """How a server is reached, and how far from the model it may be.

    Attributes:
        workers: requests at the same time.
        max_gap: nats a token that the server's answers may be from the model's, over 64 of them; more stops the run
            (where only texts can be compared, more by three standard errors).
    """

    workers: int = 8
    max_gap: float = 0.25


class ServerError(ValueError):
    """The server cannot be sampled from; what was drawn before is kept, and the same command goes on."""


class ServerEngine:
    """Draws answers through requests, one each: ``n`` is ignored by some servers, with status 200.

    It is given the prompt's tokens and asked for the answer's, where the server takes and gives tokens (vLLM). Where it
    refuses them it is given messages or text, and answers are text, which pairs then say (``tokens: text``). The model
    in this process scores 64 answers first: by the server's own log-probabilities where it gives some, else against as
    many answers that are drawn here to the same prompts. A server of another model, of stale weights, or one that
    ignores the temperature is found so.

    Args:
        url: up to and including ``/v1``. policy: the model that the server is to be.
    """

    name = "server"

    def __init__(self, url: str, server: ServerOptions, policy: Policy, options: SampleOptions) -> None:
        check_positive(workers=server.workers)
        if not server.max_gap >= 0:
            raise ValueError(f"max_gap: expected 0 or more, found {server.max_gap}")
        self.client = ChatClient(url, server, Limits(max_requests=None))
        self.server, self.policy, self.options, self.model = server, policy, options, policy.name
        self.of: dict[str, Any] = {"served": server.model}
        self.takes_tokens: bool | None = None
        self.gap: float | None = None
        self.gaps: list[float] = []  # of the server's log-probabilities to ours, nats a token
        self._is_plain = options.temperature == 1 and options.top_p == 1 and not options.top_k

    def draw(self, prompts: Sequence[AskedPrompt]) -> list[list[Answer]]:
        """Returns the answers to each prompt.

        Raises:
            ServerError: the server does not answer, answers garbage, or is not the model.
        """
        if self.takes_tokens is None:
            self.takes_tokens = self._asked_for_tokens(prompts[0])
        asked = [(prompt, sample) for prompt in prompts for sample in range(self.options.samples)]
        with ThreadPoolExecutor(self.server.workers) as pool:
            found = list(pool.map(lambda one: self._answer(*one), asked))
        count = self.options.samples
        rows = [found[start : start + count] for start in range(0, len(found), count)]
        for prompt, row in zip(prompts, rows, strict=True):
            known = [one for one in row if one.ids is not None]
            scored = known_tokens(self.policy, prompt, [one.ids or [] for one in known])
            for answer, score in zip(known, scored, strict=True):
                if answer.logp is not None and score.logp is not None and self._is_plain:
                    self.gaps.append(abs(answer.logp - score.logp) / max(1, len(answer.ids or ())))
                answer.text, answer.finished, answer.logp = score.text, score.finished, score.logp
        return rows

    # ---- requests ------------------------------------------------------------------------------------------------

    def _asked_for_tokens(self, prompt: AskedPrompt) -> bool:
        """Finds out whether the server takes and gives tokens."""
        try:
            reply = self._reply("completions", self._body(prompt, 0) | self._tokens(prompt))
        except Refused as error:
            raise ServerError(f"--engine: {error}") from error
        except Unreachable as error:
            raise self._silent(error) from error
        except Unanswered:
            gives = False
        else:
            gives = _ids_of(reply) is not None
        if not gives:
            logger.warning(
                "%s takes or gives no tokens: its answers are text, and pairs of them say so", self.client.url
            )
        return gives

    def _answer(self, prompt: AskedPrompt, sample: int) -> Answer:
        body = self._body(prompt, sample)
        try:
            if self.takes_tokens:
                reply = self._reply("completions", body | self._tokens(prompt))
            elif isinstance(prompt.prompt, str):
                reply = self._reply("completions", body | self._told() | {"prompt": prompt.prompt})
            else:
                reply = self._reply("chat/completions", body | self._told() | {"messages": prompt.prompt})
        except Refused as error:
            raise ServerError(f"--engine: {error}") from error
        except Unanswered as error:
            raise self._silent(error) from error
        choice = reply["choices"][0]
        text = choice["message"]["content"] if "message" in choice else choice["text"]
        if not isinstance(text, str):
            raise self._silent(f"an answer is no text: {self.client.clean(json.dumps(choice))}")
        ids = _ids_of(reply) if self.takes_tokens else None
        if ids and not (min(ids) >= 0 and max(ids) < self.policy.tokens):
            raise ServerError(
                f"--engine: {self.client.url} gave the token {max(ids) if min(ids) >= 0 else min(ids)}, and the model "
                f"has {self.policy.tokens}: another tokenizer's"
            )
        why = choice.get("finish_reason")
        finished = None if why is None else why == "stop"  # length, a filter, a fault: it was cut off
        seed = None if self.options.greedy else self.options.seed_of(prompt.id, sample)
        # half a surrogate pair is no text that a file can hold
        return Answer(text.encode("utf-8", "replace").decode(), ids, finished, _logp_of(choice), seed)

    def _reply(self, path: str, body: Mapping[str, Any]) -> Any:
        """Returns a reply that holds a choice.

        Raises:
            Unanswered: it holds none.
        """
        reply = self.client.reply(path, body)
        try:
            choice = reply["choices"][0]
            choice["message"]["content"] if "message" in choice else choice["text"]
        except (LookupError, TypeError) as error:
            raise Unanswered(f"the reply is no completion: {self.client.clean(json.dumps(reply))}") from error
        return reply

    def _body(self, prompt: AskedPrompt, sample: int) -> dict[str, Any]:
        seed = self.options.seed_of(prompt.id, sample) % 2**31
        told = {"temperature": self.options.temperature, "top_p": self.options.top_p, "seed": seed}
        return {**told, "top_k": self.options.top_k or None, "max_tokens": self.options.max_new_tokens}

    def _tokens(self, prompt: AskedPrompt) -> dict[str, Any]:
        return {"prompt": prompt.ids, "return_token_ids": True, "logprobs": 0}

    def _told(self) -> dict[str, Any]:
        """What transformers serve listens to: a temperature alone is ignored where the model's own config is greedy."""
        config: dict[str, Any] = {
            "do_sample": not self.options.greedy,
            "temperature": self.options.temperature or 1.0,
            "top_p": self.options.top_p,
        }
        config |= {"top_k": self.options.top_k, "max_new_tokens": self.options.max_new_tokens}
        config |= {"eos_token_id": sorted(self.policy.ends), "pad_token_id": self.policy.pad}
        return {"generation_config": json.dumps(config)}

    def _silent(self, reason: object) -> ServerError:
        return ServerError(
            f"--engine: {self.client.url} does not answer as it should ({reason}); what was drawn is kept, and "
            "the same command goes on"
        )

    # ---- is it the model? ----------------------------------------------------------------------------------------

    def check(self, prompts: Sequence[AskedPrompt]) -> None:
        """Measures how far the server is from the model, and says it.

        Raises:
            ServerError: further than ``max_gap``.
        """
        some = prompts[: max(1, RESCORED // self.options.samples)]
        theirs = self.draw(some)
        noise = 0.0
        if self.gaps:
            how, self.gap = "its log-probabilities and ours", float(np.mean(self.gaps))
        else:
            mine = SeededEngine(self.policy, self.options).draw(some)
            how = "log p of its answers and of answers drawn here"
            one, other = (self._per_token(some, rows) for rows in (theirs, mine))
            self.gap = abs(float(one.mean() - other.mean()))
            noise = float(np.sqrt(one.var() / len(one) + other.var() / len(other)))
        count = len(some) * self.options.samples
        line = f"{self.client.url}: {count} answers rescored: {how} are {self.gap:.3f} nats a token apart"
        line += f" (standard error {noise:.3f})" if noise else ""
        if not self.gap <= self.server.max_gap + 3 * noise:  # NaN is over it as well
            raise ServerError(
                f"--engine: {line}, over max_gap {self.server.max_gap:g}{' and three of these' if noise else ''}: "
                "other weights, or a temperature that it ignores"
            )
        logger.info("%s", line)

    def _per_token(self, prompts: Sequence[AskedPrompt], rows: Sequence[Sequence[Answer]]) -> Any:
        """Returns log p a token of each answer, in nats; of text as the tokenizer spells it, whoever drew it."""
        found = []
        for prompt, row in zip(prompts, rows, strict=True):
            spelled = [self._spelled(one) for one in row]
            logps = self.policy.logps(prompt.ids, spelled)
            found += [logp / len(ids) for logp, ids in zip(logps, spelled, strict=True) if ids]
        return np.array(found or [0.0])

    def _spelled(self, answer: Answer) -> list[int]:
        if self.takes_tokens and answer.ids is not None:
            return answer.ids
        ids: list[int] = self.policy.tokenizer(answer.text, add_special_tokens=False)["input_ids"]
        return [*ids, min(self.policy.ends)] if answer.finished else ids


def _ids_of(reply: Any) -> list[int] | None:
    """Returns the tokens of an answer, where a server gives them."""
    choice = reply["choices"][0]
    found = choice.get("token_ids") or reply.get("token_ids")
    good = isinstance(found, list) and bool(found) and all(type(one) is int for one in found)
    return list(found) if good else None


def _logp_of(choice: Mapping[str, Any]) -> float | None:
    """Returns the log-probability of an answer, where a server gives that of each of its tokens.

    Something else in its place is as if none were given; NaN is a number here, and over every gap.
    """
    told = choice.get("logprobs")
    logps = told.get("token_logprobs") if isinstance(told, dict) else None
    good = isinstance(logps, list) and bool(logps) and all(isinstance(one, (int, float)) for one in logps)
    return float(sum(logps)) if good else None  # type: ignore[arg-type]
