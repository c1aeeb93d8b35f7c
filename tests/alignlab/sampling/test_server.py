"""A server as an engine: one that gives tokens, ones that give text, go away or talk nonsense, and a real one."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from making import make_model, make_rows, make_tokenizer
from serving import transformers_serve

from alignlab.answers import read_answers
from alignlab.cli.demo import CHAT_TEMPLATE
from alignlab.config import ModelOptions
from alignlab.sampling import Sampled, SampleOptions, sample
from alignlab.sampling.build import build_engine
from alignlab.sampling.local import sample_answers
from alignlab.sampling.server import _logp_of

Reply = tuple[int, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sharp model with a chat template, a greedy twin of it, and prompts as text and as messages."""
    path = tmp_path_factory.mktemp("served")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    model: Any = make_model(initializer_range=0.3)
    model.save_pretrained(path / "model")
    tokenizer.save_pretrained(path / "model")
    rows = list({str(row["prompt"]): row for row in make_rows(80)}.values())[:50]
    (path / "text.jsonl").write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    turns = [{"prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]
    (path / "turns.jsonl").write_text("".join(json.dumps(row) + "\n" for row in turns))
    return path


def ask(folder: Path, url: str, output: Path, prompts: str = "text.jsonl", **options: Any) -> bool:
    told: dict[str, Any] = {"samples": 4, "max_new_tokens": 8, "batch_size": 32, **options}
    spec = {"name": url, "model": str(folder / "model"), "attempts": 2, "backoff": 0.01, "workers": 4}
    spec |= {key: told.pop(key) for key in ("max_gap",) if key in told}
    model, prompt_file = ModelOptions(str(folder / "model")), str(folder / prompts)
    return sample(Sampled(model=model, prompts=prompt_file, output=output, options=SampleOptions(**told), engine=spec))


class Server:
    """An address on this machine; ``answer(number, path, body)`` says what comes back."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.answer: Callable[[int, str, dict[str, Any]], Reply] = lambda number, path, body: (500, {})
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.bodies.append(body)
                    status, reply = outer.answer(len(outer.bodies), self.path, body)
                data = reply.encode() if isinstance(reply, str) else json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *words: Any) -> None:
                """Keeps the test's output clean."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    thread = threading.Thread(target=one.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield one
    one.http.shutdown()
    one.http.server_close()


@pytest.fixture(scope="module")
def model() -> Any:
    return make_model(initializer_range=0.3).eval()


def gives_tokens(model: Any, shift: float = 0.0) -> Callable[[int, str, dict[str, Any]], Reply]:
    """What vLLM does: tokens in, tokens and their log-probabilities out; ``shift`` makes the latter wrong."""
    import torch

    tokenizer = make_tokenizer()

    def answer(number: int, path: str, body: dict[str, Any]) -> Reply:
        [one] = sample_answers(model, tokenizer, [body["prompt"]], [body["seed"]], max_new_tokens=body["max_tokens"])
        ids = one.completion.tolist()
        with torch.no_grad():
            logps = model(torch.tensor([body["prompt"] + ids])).logits[0].log_softmax(-1)
        start = len(body["prompt"])
        said = [float(logps[start - 1 + n, token]) + shift for n, token in enumerate(ids)]
        reason = "stop" if ids[-1] == 1 else "length"
        choice = {"text": tokenizer.decode(ids), "token_ids": ids, "finish_reason": reason}
        return 200, {"choices": [choice | {"logprobs": {"token_logprobs": said}}], "usage": {}}

    return answer


def test_tokens_are_kept_as_they_come(server: Server, folder: Path, model: Any, tmp_path: Path) -> None:
    """Every answer is a request of its own with a seed of its own; 64 are rescored before any is kept."""
    server.answer = gives_tokens(model)
    assert ask(folder, server.url, tmp_path / "a.jsonl")
    rows = list(read_answers(tmp_path / "a.jsonl"))
    assert len(rows) == 50
    assert len(server.bodies) == 1 + 64 + 200
    first = [body for body in server.bodies if body["prompt"] == rows[0].prompt_ids]  # requests meet on their way
    assert len(first) == 1 + 4 + 4
    assert len({one.seed for row in rows for one in row.answers}) == 200
    assert all(one.ids and one.logp is not None for row in rows for one in row.answers)
    assert rows[0].engine == "server"


def test_stale_weights_stop_the_run(server: Server, folder: Path, model: Any, tmp_path: Path) -> None:
    server.answer = gives_tokens(model, shift=0.3)
    with pytest.raises(
        ValueError, match=r"64 answers rescored: its log-probabilities and ours are 0\.300 nats a token "
    ):
        ask(folder, server.url, tmp_path / "a.jsonl")
    assert ask(folder, server.url, tmp_path / "a.jsonl", max_gap=0.4)


def gives_text(text: str) -> Callable[[int, str, dict[str, Any]], Reply]:
    """A server that takes no tokens, and says the same to everything."""

    def answer(number: int, path: str, body: dict[str, Any]) -> Reply:
        if isinstance(body.get("prompt"), list):
            return 400, {"error": "prompt must be a string"}
        return 200, {"choices": [{"text": text, "finish_reason": "stop"}], "usage": {}}

    return answer


def test_a_server_that_ignores_the_temperature_is_found(
    server: Server, folder: Path, model: Any, tmp_path: Path
) -> None:
    """Greedy answers with their tokens and no log-probabilities: far likelier than those that are drawn here."""
    tokenizer = make_tokenizer()

    def greedy(number: int, path: str, body: dict[str, Any]) -> Reply:
        [one] = sample_answers(model, tokenizer, [body["prompt"]], None, max_new_tokens=8)
        return 200, {"choices": [{"text": "", "token_ids": one.completion.tolist(), "finish_reason": "length"}]}

    server.answer = greedy
    with pytest.raises(
        ValueError, match=r"log p of its answers and of answers drawn here are \d\.\d+ nats a token apart \(stand"
    ):
        ask(folder, server.url, tmp_path / "a.jsonl")


def test_what_a_server_of_texts_is_told(server: Server, folder: Path, tmp_path: Path) -> None:
    """Sampling stands in the generation config, which transformers serve listens to where it ignores a temperature."""
    server.answer = gives_text("the cat")
    assert ask(folder, server.url, tmp_path / "a.jsonl", max_gap=100.0)
    config = json.loads(server.bodies[-1]["generation_config"])
    assert (config["do_sample"], config["temperature"], config["top_k"]) == (True, 1.0, 0)
    assert "n" not in server.bodies[-1]


def test_a_temperature_of_0_is_greedy_at_a_server_too(server: Server, folder: Path, tmp_path: Path) -> None:
    """``do_sample: false`` and no temperature of 0, which transformers refuses in a config; no seed is named."""
    server.answer = gives_text("the cat")
    assert ask(folder, server.url, tmp_path / "a.jsonl", max_gap=100.0, samples=1, temperature=0.0)
    assert server.bodies[-1]["temperature"] == 0
    config = json.loads(server.bodies[-1]["generation_config"])
    assert (config["do_sample"], config["temperature"]) == (False, 1.0)
    assert {one.seed for row in read_answers(tmp_path / "a.jsonl") for one in row.answers} == {None}


def test_text_is_kept_as_text(server: Server, folder: Path, tmp_path: Path) -> None:
    server.answer = gives_text("the cat")
    assert ask(folder, server.url, tmp_path / "a.jsonl", max_gap=100.0)
    answers = [one for row in read_answers(tmp_path / "a.jsonl") for one in row.answers]
    assert {(one.text, one.ids is None, one.finished) for one in answers} == {("the cat", True, True)}


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ("<html>garbage</html>", "the reply is no chat completion: <html>garbage"),
        ({"choices": []}, "the reply is no completion"),
        ({"choices": [{"text": 7}]}, "an answer is no text"),
        ([1, 2], "the reply is no completion"),
    ],
)
def test_garbage_stops_the_run(reply: Any, message: str, server: Server, folder: Path, tmp_path: Path) -> None:
    server.answer = lambda number, path, body: (400, {}) if isinstance(body.get("prompt"), list) else (200, reply)
    with pytest.raises(ValueError, match=message):
        ask(folder, server.url, tmp_path / "a.jsonl")
    assert not (tmp_path / "a.jsonl").exists()


def test_a_server_that_dies_is_gone_on_with(server: Server, folder: Path, model: Any, tmp_path: Path) -> None:
    """It answers 150 requests of 265, then fails; started again it is asked only for what is missing."""
    alive = gives_tokens(model)
    server.answer = lambda n, path, body: alive(n, path, body) if n <= 150 else (503, {})
    with pytest.raises(
        ValueError, match=r"does not answer as it should \(after 2 attempts: HTTP 503\); what was drawn is "
    ):
        ask(folder, server.url, tmp_path / "a.jsonl")
    done = len(list((tmp_path / "a.jsonl.parts").glob("[0-9]*.jsonl")))
    assert done == (150 - 65) // 32
    server.answer, before = alive, len(server.bodies)
    assert ask(folder, server.url, tmp_path / "a.jsonl")
    assert len(server.bodies) - before == 65 + 200 - 32 * done
    assert ask(folder, server.url, tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"token_ids": [5000, 1]}, r"gave the token 5000, and the model has 300: another tokenizer's"),
        ({"token_ids": [-5, 1]}, r"gave the token -5, and the model has 300: another tokenizer's"),
        ({"logprobs": {"token_logprobs": [float("nan")]}}, r"are nan nats a token apart, over max_gap 0\.25"),
    ],
)
def test_what_another_model_gives_stops_the_run(
    told: dict[str, Any], message: str, server: Server, folder: Path, model: Any, tmp_path: Path
) -> None:
    """Tokens that this model does not have were an IndexError; NaN passed for the same weights."""
    good = gives_tokens(model)

    def answer(number: int, path: str, body: dict[str, Any]) -> Reply:
        _, reply = good(number, path, body)
        return 200, {"choices": [reply["choices"][0] | told]}

    server.answer = answer
    with pytest.raises(ValueError, match=message):
        ask(folder, server.url, tmp_path / "a.jsonl", samples=1, max_new_tokens=2)


@pytest.mark.parametrize("logprobs", [[1, 2], "x", {"token_logprobs": 5}, {"token_logprobs": "ab"}])
def test_log_probabilities_in_another_form_are_none(logprobs: Any) -> None:
    assert _logp_of({"logprobs": logprobs}) is None


def test_an_answer_that_a_server_cut_off_is_unfinished(server: Server, folder: Path, tmp_path: Path) -> None:
    """Whatever cut it off, and nobody said so: pairs of it would be given an end. Half a character is no text."""
    replies = [("a", "content_filter", False), ("b", "abort", False), ("c\ud800", "stop", True), ("d", None, None)]

    def answer(number: int, path: str, body: dict[str, Any]) -> Reply:
        text, reason, _ = replies[number % 4]
        refused = isinstance(body.get("prompt"), list)
        return (400, {}) if refused else (200, {"choices": [{"text": text, "finish_reason": reason}]})

    server.answer = answer
    assert ask(folder, server.url, tmp_path / "a.jsonl", max_gap=100.0, samples=1, max_new_tokens=2)
    found = {(one.text, one.finished) for row in read_answers(tmp_path / "a.jsonl") for one in row.answers}
    assert found == {("a", False), ("b", False), ("c?", True), ("d", None)}


@pytest.mark.parametrize("reply", [{"error": "wrong: SECRET"}, {"choices": [{"text": 7, "key": "SECRET"}]}])
def test_a_key_that_comes_back_is_not_shown(
    reply: Any, server: Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1234567")
    text = json.dumps(reply).replace("SECRET", "sk-1234567")
    server.answer = lambda number, path, body: (400, {}) if isinstance(body.get("prompt"), list) else (200, text)
    with pytest.raises(ValueError, match=r"\*\*\*") as caught:
        ask(folder, server.url, tmp_path / "a.jsonl")
    assert "sk-1234567" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"max_gap": float("nan")}, "engine.max_gap: expected 0 or more, found nan"),
        ({"workers": 0}, "engine.workers: expected more than 0, found 0"),
        ({"timeout": "5"}, "engine.timeout: expected float, found '5'"),
        ({"timeout": float("nan")}, "engine.timeout: expected more than 0, found nan"),
        ({"attempts": 1.5}, "engine.attempts: expected int, found 1.5"),
    ],
)
def test_options_of_an_engine_are_checked(option: dict[str, Any], message: str) -> None:
    policy: Any = type("Policy", (), {"name": "model"})
    with pytest.raises(ValueError, match=message):
        build_engine({"name": "http://127.0.0.1:1/v1", "model": "m", **option}, policy, SampleOptions(), "m")


def test_a_wrong_address_is_said_at_once(server: Server, folder: Path, tmp_path: Path) -> None:
    server.answer = lambda number, path, body: (404, {"error": "no such model"})
    with pytest.raises(ValueError, match=r"answered HTTP 404: .*no such model"):
        ask(folder, server.url, tmp_path / "a.jsonl")
    assert len(server.bodies) == 1


# ---- transformers serve ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_server(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """200 answers through `transformers serve`; it is killed when half of them are there, and gone on with."""
    caplog.set_level("INFO", logger="alignlab")
    with transformers_serve(folder / "model", tmp_path / "home") as (process, url):
        killer = threading.Thread(target=_kill_at_half, args=(process, tmp_path / "a.jsonl.parts"))
        killer.start()
        with pytest.raises(ValueError, match="does not answer as it should"):
            ask(folder, url, tmp_path / "a.jsonl", "turns.jsonl")
        killer.join()
    done = len(list((tmp_path / "a.jsonl.parts").glob("[0-9]*.jsonl")))
    assert 3 <= done < 7
    with transformers_serve(folder / "model", tmp_path / "home") as (_, url):
        assert ask(folder, url, tmp_path / "a.jsonl", "turns.jsonl")
    rows = list(read_answers(tmp_path / "a.jsonl"))
    assert sum(len(row.answers) for row in rows) == 200
    assert all(one.finished is not None and one.ids is None for row in rows for one in row.answers)
    assert len({one.text for one in rows[0].answers}) > 1
    assert len(re.findall(r"64 answers rescored: .* are \d\.\d+ nats a token apart", caplog.text)) == 2


def _kill_at_half(process: Any, parts: Path) -> None:
    for _ in range(6000):
        if len(list(parts.glob("[0-9]*.jsonl"))) >= 3:
            process.kill()
            return
        time.sleep(0.05)
