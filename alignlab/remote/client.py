"""A chat model behind an OpenAI-compatible address: replies to requests, with retries, within a budget."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import requests
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from .budget import Budget, Limits

_LONGEST_WAIT = 60.0  # seconds that a server may ask us to wait before the next attempt


class Refused(ValueError):
    """Nothing can be asked: the address, the model or the key is wrong."""


class Unanswered(Exception):
    """This request was not answered; others may be."""


class Unreachable(Unanswered):
    """Every attempt failed in a way that may pass; ``reason`` is that of the last one."""

    def __init__(self, attempts: int, reason: str) -> None:
        super().__init__(f"after {attempts} attempts: {reason}")
        self.reason = reason


class _Temporary(Exception):
    """An attempt that may succeed later; ``after`` is how many seconds the server asks us to wait."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """How a chat model is reached.

    Attributes:
        model: its name there.
        key_env: environment variable that holds the key; none is sent where it is not set.
        timeout: seconds to connect, and until a reply is whole. attempts: of each request.
        backoff: seconds that the first retry waits for at most; doubled each time, up to 30.
    """

    model: str
    key_env: str = "OPENAI_API_KEY"
    timeout: float = 60.0
    attempts: int = 4
    backoff: float = 1.0


class ChatClient:
    """Asks a chat model; threads may share it.

    Timeouts, refused connections, rate limits (429, with Retry-After) and server errors are tried again, at growing
    intervals. A wrong key, address or model is refused at once.

    Args:
        url: up to and including ``/v1``.

    Raises:
        ValueError: options that cannot work. The message opens with the option's name; that of the address is ``name``.
    """

    def __init__(self, url: str, options: ClientOptions, limits: Limits) -> None:
        try:
            parts = urlsplit(url)
        except ValueError as error:
            raise ValueError(f"name: {error}") from error
        if parts.username or parts.password or parts.query:
            raise ValueError("name: secrets do not belong in an address; put the key into a variable (key_env)")
        self.url, self.options, self.budget = url.rstrip("/"), options, Budget(limits)
        check_positive(timeout=options.timeout, attempts=options.attempts)
        self._key, self._session = _key(options.key_env), requests.Session()

    def ask(self, fields: Mapping[str, Any]) -> str:
        """Returns the text of the reply to one request, whose first attempt the budget has granted (``take``).

        Args:
            fields: of the request's body, besides the model: messages, temperature and the like; None takes one out.

        Raises:
            Unanswered, LimitReached: there is no reply; after the latter there will be none to any request.
            Refused, UnknownCost: nothing can be asked here, or not under these limits.
        """
        reply = self.reply("chat/completions", fields)
        try:
            said = reply["choices"][0]["message"]["content"]
        except (LookupError, TypeError) as error:
            raise Unanswered(f"the reply is no chat completion: {self.clean(json.dumps(reply))}") from error
        return str(said or "")

    def reply(self, path: str, fields: Mapping[str, Any]) -> Any:
        """Returns the whole reply to one request, as plain values; otherwise as ``ask``.

        Args:
            path: behind ``/v1/``.
        """
        wanted = {"model": self.options.model, **fields}
        body = {name: value for name, value in wanted.items() if value is not None}
        retrying = Retrying(
            stop=stop_after_attempt(self.options.attempts),
            wait=self._wait,
            retry=retry_if_exception_type(_Temporary),
            before_sleep=lambda _: self.budget.take(1),
            reraise=True,
        )
        try:
            text: str = retrying(self._post, f"{self.url}/{path}", body)
        except _Temporary as failure:
            raise Unreachable(self.options.attempts, str(failure)) from failure
        return self._read(text)

    def _wait(self, state: RetryCallState) -> float:
        failure = state.outcome.exception() if state.outcome is not None else None
        if isinstance(failure, _Temporary) and failure.after is not None:
            return min(failure.after, _LONGEST_WAIT)
        return wait_random_exponential(multiplier=self.options.backoff, max=30)(state)

    def _post(self, address: str, body: Mapping[str, Any]) -> str:
        """Sends one request and returns the text of the reply."""
        self.budget.sent()
        try:
            status, headers, text = self._exchange(address, body)
        except requests.Timeout as error:
            raise _Temporary(f"no answer within {self.options.timeout} s") from error
        except requests.RequestException as error:
            raise _Temporary(self.clean(f"{type(error).__name__}: {error}")) from error
        if status in (408, 409, 425, 429) or status >= 500:
            raise _Temporary(f"HTTP {status}", _seconds(headers.get("Retry-After")))
        if status in (400, 413, 422):  # this one is too long, or not allowed
            raise Unanswered(f"HTTP {status}: {self.clean(text)}")
        if status != 200:
            raise Refused(f"{address} answered HTTP {status}: {self.clean(text)}")
        return text

    def _exchange(self, address: str, body: Mapping[str, Any]) -> tuple[int, Mapping[str, str], str]:
        """Returns status, headers and text of a reply that is whole within the timeout."""
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        options: dict[str, Any] = {"json": body, "headers": headers, "allow_redirects": False, "stream": True}
        end = time.monotonic() + self.options.timeout
        with self._session.post(address, timeout=self.options.timeout, **options) as response:
            parts = bytearray()
            for part in response.iter_content(1):  # a larger piece would wait for all of it, from a server that drips
                parts += part
                if time.monotonic() > end:
                    raise requests.Timeout
            return response.status_code, response.headers, parts.decode("utf-8", "replace")

    def _read(self, text: str) -> Any:
        """Returns a reply's values, and counts what it says that it cost; one that holds no choices costs nothing."""
        try:
            reply = json.loads(text)
        except (ValueError, RecursionError) as error:  # the latter of brackets without end
            raise Unanswered(f"the reply is no chat completion: {self.clean(text)}") from error
        if isinstance(reply, dict) and isinstance(reply.get("choices"), list) and reply["choices"]:
            self.budget.spend(reply.get("usage"))
        return reply

    def clean(self, text: str, last: bool = False) -> str:
        """Returns the opening, or the end, of a text on one line, without the key, should a server send it back."""
        line = " ".join((text.replace(self._key, "***") if self._key else text).split())
        return line[-200:] if last else line[:200]


def check_positive(**options: float) -> None:
    """Raises a ValueError for the first option that is not above 0."""
    for name, value in options.items():
        if not value > 0:  # NaN is not, either
            raise ValueError(f"{name}: expected more than 0, found {value}")


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise ValueError(f"key_env: the key in {variable} has characters that no header can carry")
    return key


def _seconds(header: str | None) -> float | None:
    """Returns what Retry-After asks for: seconds, or a date."""
    if header is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(header))
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    return None
