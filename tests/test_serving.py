"""A saved run behind ``transformers serve``: the real server says what the run's model says."""

import json
import urllib.request

import pytest
from making import make_rows, make_tokenizer
from serving import transformers_serve

from alignlab import load_config, models, train
from alignlab.cli.demo import CHAT_TEMPLATE
from alignlab.config import ModelOptions
from alignlab.sampling import generate, texts

pytestmark = pytest.mark.slow
QUESTIONS = ["the red cat :", "a small bird sees", "the old house"]
TOKENS = 12


@pytest.fixture(scope="module")
def run(tmp_path_factory, model_path):
    """One step of DPO on conversations, fast enough to move every greedy answer."""
    folder = tmp_path_factory.mktemp("run")
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder / "tokenizer")
    rows = [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in make_rows(4)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "loss": {"name": "dpo"},
        "model": {"name_or_path": str(model_path), "tokenizer": str(folder / "tokenizer")},
        "data": {"train": str(folder / "rows.jsonl")},
        "output_dir": str(folder / "run"),
        "score_cache_dir": str(folder / "scores"),
        "learning_rate": 0.02,
        "max_steps": 1,
        "save_strategy": "no",
        "report": False,
        "disable_tqdm": True,
    }
    train(load_config(values))
    return folder / "run"


def ask(address, body):
    request = urllib.request.Request(
        f"{address}/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)


def greedy(path, tokenizer_path):
    """Our own greedy answers of a saved model, as tokens and as text."""
    options = ModelOptions(str(path), tokenizer=str(tokenizer_path))
    tokenizer = models.load_tokenizer(options)
    conversations = [[{"role": "user", "content": question}] for question in QUESTIONS]
    answers = generate(models.load_model(options).eval(), tokenizer, conversations, max_new_tokens=TOKENS)
    return [len(one.completion) for one in answers], texts(tokenizer, answers)


def test_a_saved_run_answers_as_its_model_does(run, model_path, tmp_path):
    """Three greedy answers, text for text; a server on the start of the run would have said something else."""
    counts, ours = greedy(run, run)
    assert greedy(model_path, run)[1] != ours
    assert all(ours)
    with transformers_serve(run, tmp_path / "home") as (_, address):
        with urllib.request.urlopen(f"{address}/models", timeout=60) as answer:
            assert json.load(answer)["object"] == "list"
        for question, count, text in zip(QUESTIONS, counts, ours, strict=True):
            body = {"model": str(run), "messages": [{"role": "user", "content": question}], "temperature": 0}
            found = ask(address, {**body, "max_tokens": TOKENS})
            assert found["choices"][0]["message"]["content"] == text
            assert found["usage"]["completion_tokens"] == count
