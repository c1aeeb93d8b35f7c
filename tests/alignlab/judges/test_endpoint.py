"""An endpoint as a judge, over a real local HTTP server that fails in every way."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from alignlab.judges import Comparison, Verdict, build_judge
from alignlab.judges.endpoint import Endpoint, EndpointOptions, JudgeError
from alignlab.remote import ChatClient, ClientOptions, LimitReached, Limits

GOOD, BAD = "a good answer", "a bad answer"
ONE = Comparison("Why?", GOOD, BAD)

Reply = tuple[int, dict[str, str], Any]  # status, headers, body: text as it is, else as JSON


class Server:
    """A chat server on this machine; ``answer(number, request)`` says what comes back."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.piece, self.pause = 1 << 20, 0.0  # bytes at a time, and seconds between them
        self.answer: Callable[[int, dict[str, Any]], Reply] = lambda number, request: says("Verdict: A")
        self.lock, self.closing = threading.Lock(), threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.seen.append({"path": self.path, "headers": dict(self.headers), "body": body})
                    number = len(outer.seen)
                status, headers, reply = outer.answer(number, body)
                data = reply.encode() if isinstance(reply, str) else json.dumps(reply).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(OSError):  # who asked may have gone
                    for start in range(0, len(data), outer.piece):
                        self.wfile.write(data[start : start + outer.piece])
                        outer.closing.wait(outer.pause)

            def log_message(self, *words: Any) -> None:
                """Keeps the test's output clean."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"

    def judge(self, **options: Any) -> Endpoint:
        quick: dict[str, Any] = {"model": "judge-1", "workers": 1, "backoff": 0.01, "timeout": 5.0}
        return Endpoint(self.url, EndpointOptions(**{**quick, **options}))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    one = Server()
    thread = threading.Thread(target=one.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield one
    one.closing.set()
    one.http.shutdown()
    one.http.server_close()


def says(text: str, prompt_tokens: int = 100, completion_tokens: int = 10) -> Reply:
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return 200, {}, {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": usage}


def prefers(text: str) -> Callable[[int, dict[str, Any]], Reply]:
    """A judge that knows what is good, wherever it stands."""
    opening = f"<answer A>\n{text}"
    return lambda number, request: says(
        f"I prefer it. Verdict: {'A' if opening in request['messages'][1]['content'] else 'B'}"
    )


def test_both_orders_are_asked(server: Server) -> None:
    server.answer = prefers(GOOD)
    assert server.judge()([ONE, Comparison("Why?", BAD, GOOD)]) == [Verdict(1.0), Verdict(0.0)]
    first, second = (one["body"]["messages"][1]["content"] for one in server.seen[:2])
    assert first.index(GOOD) < first.index(BAD)
    assert second.index(BAD) < second.index(GOOD)
    assert server.seen[0]["path"] == "/v1/chat/completions"
    assert server.seen[0]["body"]["model"] == "judge-1"
    assert server.seen[0]["body"]["temperature"] == 0
    assert server.seen[0]["headers"]["Authorization"] == "Bearer sk-very-secret"


def test_a_judge_that_likes_the_first_has_no_opinion(server: Server) -> None:
    assert server.judge()([ONE]) == [Verdict(0.5, note="the orders disagree")]
    server.answer = lambda number, request: says("verdict: **TIE**")
    assert server.judge()([ONE]) == [Verdict(0.5)]


def test_the_last_verdict_counts(server: Server) -> None:
    server.answer = lambda n, r: says(f"Not `Verdict: tie`.\nVerdict: {'A' if n == 1 else 'B'}")
    assert server.judge()([ONE]) == [Verdict(1.0)]


def test_many_at_once_come_back_in_order(server: Server) -> None:
    server.answer = prefers(GOOD)
    asked = [ONE if index % 3 else Comparison("Why?", BAD, GOOD) for index in range(24)]
    assert [v.outcome for v in server.judge(workers=6)(asked)] == [float(index % 3 > 0) for index in range(24)]
    assert len(server.seen) == 48


def test_failures_pass(server: Server) -> None:
    """503, a rate limit, then an answer: three requests for the first order, one for the second."""
    replies = {1: (503, {}, "later"), 2: (429, {"Retry-After": "0.01"}, "slow down")}
    server.answer = lambda number, request: replies.get(number) or prefers(GOOD)(number, request)
    judge = server.judge()
    assert judge([ONE]) == [Verdict(1.0)]
    assert len(server.seen) == 4
    assert judge.usage() == {"requests": 4, "prompt_tokens": 200, "completion_tokens": 20}


def test_retry_after_is_kept(server: Server) -> None:
    """The server asks for half a second; our own wait would be at most 0.01 s."""
    at: list[float] = []

    def answer(number: int, request: dict[str, Any]) -> Reply:
        at.append(time.monotonic())
        return (429, {"Retry-After": "0.5"}, "") if number == 1 else prefers(GOOD)(number, request)

    server.answer = answer
    assert server.judge()([ONE]) == [Verdict(1.0)]
    assert at[1] - at[0] >= 0.5


def test_a_server_that_hangs_is_left(server: Server) -> None:
    """The first reply never comes within the timeout; the second attempt is answered."""

    def answer(number: int, request: dict[str, Any]) -> Reply:
        if number == 1:
            server.closing.wait(20)
        return prefers(GOOD)(number, request)

    server.answer = answer
    assert server.judge(timeout=0.3)([ONE]) == [Verdict(1.0)]
    assert len(server.seen) == 3


def test_a_server_that_drips_is_left(server: Server) -> None:
    """A byte every 0.1 s never lets a read time out, but the reply is not whole within 0.5 s."""
    server.answer, server.piece, server.pause = prefers(GOOD), 1, 0.1
    verdict = server.judge(timeout=0.5, attempts=1)([ONE])[0]
    assert verdict.note == "after 1 attempts: no answer within 0.5 s"


def test_what_fails_for_good_is_unjudged_and_the_rest_goes_on(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    def answer(number: int, request: dict[str, Any]) -> Reply:
        text = request["messages"][1]["content"]
        if "broken" in text:
            return 500, {}, "oops"
        return (400, {}, "too long") if "long" in text else prefers(GOOD)(number, request)

    server.answer = answer
    asked = [Comparison("broken", GOOD, BAD), ONE, Comparison("long", GOOD, BAD), ONE]
    with caplog.at_level(logging.WARNING):
        verdicts = server.judge(attempts=2)(asked)
    assert [one.outcome for one in verdicts] == [None, 1.0, None, 1.0]
    assert verdicts[0].note == "after 2 attempts: HTTP 500"
    assert verdicts[2].note == "HTTP 400: too long"
    assert "2 of 4 comparisons were not judged" in caplog.text
    assert len(server.seen) == 2 + 2 + 1 + 2


def test_gives_up_after_three_failures_in_a_row(server: Server) -> None:
    """Five comparisons: three fail with two attempts each, the others are not even asked; the next call asks again."""
    server.answer = lambda number, request: (502, {}, "")
    judge = server.judge(attempts=2)
    verdicts = judge([ONE] * 5)
    assert [one.outcome for one in verdicts] == [None] * 5
    assert len(server.seen) == 6
    assert verdicts[4].note == "the endpoint failed 3 times in a row; the last time: HTTP 502"
    assert judge.usage()["stopped"] == verdicts[4].note
    server.answer = prefers(GOOD)
    assert judge([ONE]) == [Verdict(1.0)]


def test_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    one = Server()
    one.http.server_close()
    verdict = one.judge(attempts=2)([ONE])[0]
    assert verdict.outcome is None
    assert verdict.note.startswith("after 2 attempts: ConnectionError")


@pytest.mark.parametrize("status", [401, 403, 404, 302])
def test_a_wrong_key_or_address_stops_at_once(server: Server, status: int) -> None:
    server.answer = lambda number, request: (status, {}, "no, not with sk-very-secret")
    with pytest.raises(JudgeError, match=rf"/v1/chat/completions answered HTTP {status}: no, not with \*\*\*"):
        server.judge()([ONE] * 4)
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("reply", "note"),
    [
        ((200, {}, "<html>"), "the reply is no chat completion: <html>"),
        ((200, {}, {"choices": []}), "the reply is no chat completion"),
        ((200, {}, {"choices": [{"message": {"content": None}}]}), "the reply holds no verdict: ''"),
        (says("I like A best"), "the reply holds no verdict: 'I like A best'"),
        (says("so " * 100 + "I like A best"), f"the reply holds no verdict: '{('so ' * 100 + 'I like A best')[-80:]}'"),
    ],
)
def test_replies_that_say_nothing(server: Server, reply: Reply, note: str) -> None:
    server.answer = lambda number, request: reply
    verdict = server.judge()([ONE])[0]
    assert verdict.outcome is None
    assert verdict.note.startswith(note)
    assert len(server.seen) == 1


def test_limit_of_requests_holds_exactly(server: Server) -> None:
    """Five requests pay for two comparisons; no order is asked that its other could not follow."""
    server.answer = prefers(GOOD)
    judge = server.judge(max_requests=5, workers=4)
    verdicts = judge([ONE] * 8)
    assert sum(one.outcome == 1.0 for one in verdicts) == 2
    assert len(server.seen) == 4
    assert "the limit of 5 requests is reached (max_requests)" in {one.note for one in verdicts}
    assert judge([ONE])[0].outcome is None
    assert len(server.seen) == 4


def test_an_order_that_was_not_asked_costs_no_request(server: Server) -> None:
    """The first comparison fails for good in its first order: two of three requests are left for the second."""
    server.answer = lambda number, request: (400, {}, "") if number == 1 else prefers(GOOD)(number, request)
    verdicts = server.judge(max_requests=3)([ONE, ONE])
    assert [one.outcome for one in verdicts] == [None, 1.0]


def test_retries_count_as_requests(server: Server) -> None:
    server.answer = lambda number, request: (500, {}, "")
    judge = server.judge(max_requests=3, attempts=10)
    assert judge([ONE])[0].note == "the limit of 3 requests is reached (max_requests)"
    assert len(server.seen) == judge.usage()["requests"] == 2  # one stays reserved for the other order


def test_limit_of_money(server: Server) -> None:
    """100 + 10 tokens at 10 and 100 dollars a million cost 0.002; after five requests, 0.01, the third pair ends."""
    server.answer = prefers(GOOD)
    judge = server.judge(max_cost=0.01, price_in=10.0, price_out=100.0)
    verdicts = judge([ONE] * 6)
    assert [one.outcome for one in verdicts] == [1.0] * 3 + [None] * 3
    assert verdicts[3].note == "the limit of 0.01 US dollars is reached (max_cost)"
    assert judge.usage()["cost_usd"] == pytest.approx(0.012)
    assert len(server.seen) == 6


def test_money_without_usage_cannot_be_limited(server: Server) -> None:
    server.answer = lambda number, request: (200, {}, {"choices": [{"message": {"content": "Verdict: A"}}]})
    with pytest.raises(JudgeError, match="the endpoint reports no usage"):
        server.judge(max_cost=1.0, price_in=1.0, price_out=1.0)([ONE])


def test_body_is_the_users(server: Server) -> None:
    server.judge(body={"max_tokens": None, "max_completion_tokens": 9, "seed": 1}, instructions="Be fair.")([ONE])
    body = server.seen[0]["body"]
    assert "max_tokens" not in body
    assert (body["max_completion_tokens"], body["seed"]) == (9, 1)
    assert body["messages"][0] == {"role": "system", "content": "Be fair."}


def test_the_key_is_never_shown(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("MY_KEY", "sk-other-secret\n")
    server.answer = lambda number, request: (500, {}, "")
    with caplog.at_level(logging.DEBUG):
        judge = server.judge(key_env="MY_KEY", attempts=2)
        verdicts = judge([ONE])
    assert server.seen[0]["headers"]["Authorization"] == "Bearer sk-other-secret"
    shown = caplog.text + repr(verdicts) + repr(judge.usage()) + judge.description + repr(judge)
    assert "secret" not in shown
    monkeypatch.setenv("MY_KEY", "sk-\nsecret")
    with pytest.raises(ValueError, match="MY_KEY has characters that no header can carry"):
        server.judge(key_env="MY_KEY")
    monkeypatch.delenv("MY_KEY")
    server.judge(key_env="MY_KEY", attempts=1)([ONE])
    assert "Authorization" not in server.seen[-1]["headers"]


# ---- the client by itself ----------------------------------------------------------------------------------------


def test_the_client_serves_who_does_not_judge(server: Server) -> None:
    """It sends what it is given, and nothing of a judge's; its budget counts and ends."""
    server.answer = lambda number, request: says("Blue.")
    client = ChatClient(server.url, ClientOptions(model="writer"), Limits(max_requests=2))
    turns = [{"role": "user", "content": "Which colour?"}]
    client.budget.take(1)
    assert client.ask({"messages": turns, "temperature": 0.7, "seed": None}) == "Blue."
    assert server.seen[0]["body"] == {"model": "writer", "messages": turns, "temperature": 0.7}
    assert client.budget.usage() == {"requests": 1, "prompt_tokens": 100, "completion_tokens": 10}
    with pytest.raises(LimitReached, match=r"the limit of 2 requests is reached \(max_requests\)"):
        client.budget.take(2)


def test_scores_are_win_rates(server: Server) -> None:
    """The good answer beats the two others, which tie: each couple is asked about in both orders."""
    server.answer = prefers(GOOD)
    judge = server.judge()
    assert judge.scores("Why?", [GOOD, BAD]) == [1.0, 0.0]
    assert len(server.seen) == 2
    assert (judge.kind, judge.identity().split()[0]) == ("wins", "judge-1")


def test_what_was_not_judged_has_no_score(server: Server) -> None:
    server.answer = lambda number, request: says("I cannot say.")
    assert server.judge().scores("Why?", [GOOD, BAD]) == [None, None]


@pytest.mark.parametrize("limit", [{"max_cost": float("nan")}, {"max_cost": -1.0}, {"price_in": float("nan")}])
def test_limits_that_nothing_reaches_are_refused(limit: dict[str, float]) -> None:
    """A limit of NaN dollars limited nothing."""
    spec = {"name": "http://127.0.0.1:1/v1", "model": "m", "max_cost": 1.0, "price_in": 1.0, "price_out": 1.0, **limit}
    with pytest.raises(ValueError, match=f"judge.{next(iter(limit))}: expected 0 or more, found"):
        build_judge(spec)


def test_a_usage_below_nothing_is_none(server: Server) -> None:
    """It would earn money, and the limit never come."""
    server.answer = lambda number, request: says("Verdict: A", -100, -10)
    with pytest.raises(ValueError, match=r"judge\.max_cost: the endpoint reports no usage"):
        server.judge(max_cost=1.0, price_in=1.0, price_out=1.0)([Comparison("p", "a", "b")])


def test_why_nothing_was_judged_is_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1234567")
    server.answer = lambda number, request: says("I was given sk-1234567")
    judge = server.judge()
    assert judge.scores("p", ["a", "b"]) == [None, None]
    assert judge.usage()["first_failure"] == "the reply holds no verdict: 'I was given ***'"
