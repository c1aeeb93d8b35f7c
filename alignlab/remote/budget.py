"""What requests to an endpoint may cost, and what they have cost: how many, how many tokens, how much money."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class LimitReached(Exception):
    """Nothing more may be asked."""


class UnknownCost(ValueError):
    """Money is limited, and a reply does not say what it cost."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What may be spent.

    Attributes:
        max_requests: of all requests, retries included; None: no limit.
        max_cost: US dollars, of all of them, by the usage that replies report; needs both prices.
        price_in, price_out: US dollars for a million tokens of prompts, and of replies.
    """

    max_requests: int | None = 1000
    max_cost: float | None = None
    price_in: float | None = None
    price_out: float | None = None


class Budget:
    """Keeps limits, and counts what is spent; threads share it.

    Requests are counted before they are sent, so that their limit holds exactly, retries included. Money is known only
    from the replies: what was in flight when its limit was reached is paid as well.

    Raises:
        ValueError: money is limited, and a price is missing; or a limit is no number from 0. The message opens with the
            option's name.
    """

    def __init__(self, limits: Limits) -> None:
        if limits.max_cost is not None and (limits.price_in is None or limits.price_out is None):
            raise ValueError("max_cost: needs price_in and price_out, US dollars for a million tokens")
        for name in ("max_requests", "max_cost", "price_in", "price_out"):
            value = getattr(limits, name)
            if value is not None and not value >= 0:  # NaN would be reached by nothing
                raise ValueError(f"{name}: expected 0 or more, found {value}")
        self.limits = limits
        self._granted = self._requests = self._tokens_in = self._tokens_out = 0
        self._lock = threading.Lock()

    @property
    def cost(self) -> float:
        """US dollars, from the usage that replies report."""
        prices = self.limits.price_in or 0.0, self.limits.price_out or 0.0
        return (self._tokens_in * prices[0] + self._tokens_out * prices[1]) / 1e6

    def take(self, count: int) -> None:
        """Grants so many requests, or none.

        Raises:
            LimitReached: there are not so many left, or no money.
        """
        most, dearest = self.limits.max_requests, self.limits.max_cost
        with self._lock:
            if most is not None and self._granted + count > most:
                raise LimitReached(f"the limit of {most} requests is reached (max_requests)")
            if dearest is not None and self.cost >= dearest:
                raise LimitReached(f"the limit of {dearest} US dollars is reached (max_cost)")
            self._granted += count

    def give_back(self, count: int) -> None:
        """Returns requests that were granted and not sent."""
        with self._lock:
            self._granted -= count

    def sent(self) -> None:
        """Counts a request that is about to be sent."""
        with self._lock:
            self._requests += 1

    def spend(self, usage: Any) -> None:
        """Counts the tokens of a reply, as its field ``usage`` says them.

        Raises:
            UnknownCost: money is limited, and the reply does not say what it cost.
        """
        counts = [
            usage.get(name) if isinstance(usage, Mapping) else None for name in ("prompt_tokens", "completion_tokens")
        ]
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            if self.limits.max_cost is not None:
                raise UnknownCost("the endpoint reports no usage, so the limit cannot be kept")
            return
        with self._lock:
            self._tokens_in += counts[0] or 0
            self._tokens_out += counts[1] or 0

    def usage(self) -> dict[str, Any]:
        """Returns requests and tokens so far, and their cost where there are prices."""
        tokens = {"prompt_tokens": self._tokens_in, "completion_tokens": self._tokens_out}
        priced = self.limits.price_in or self.limits.price_out
        return {"requests": self._requests, **tokens, **({"cost_usd": self.cost} if priced else {})}
