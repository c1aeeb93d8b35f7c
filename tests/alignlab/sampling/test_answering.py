"""A file of answers: the same bytes for any batch, any number of processes and any kill."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from making import make_model, make_rows, make_tokenizer

from alignlab.answers import read_answers
from alignlab.cli import main
from alignlab.cli.demo import CHAT_TEMPLATE
from alignlab.config import ModelOptions
from alignlab.data import AskedPrompt, AskedPrompts
from alignlab.sampling import Sampled, SampleOptions, sample
from alignlab.sampling.answering import chosen_prompts
from alignlab.sampling.engine import SeededEngine

ROWS = [{"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["rejected"]} for row in make_rows(7)]


@pytest.fixture
def asked(tmp_path: Path, model_path: Path) -> Any:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in [*ROWS, ROWS[2]]))

    def make(output: str = "answers.jsonl", **options: Any) -> Sampled:
        told = {"samples": 3, "max_new_tokens": 8, "batch_size": 6, **options}
        model = ModelOptions(str(model_path))
        return Sampled(model=model, prompts=str(prompts), output=tmp_path / output, options=SampleOptions(**told))

    return make


@pytest.fixture
def bytes_of(asked: Any) -> bytes:
    assert sample(asked("first.jsonl"))
    return bytes(asked("first.jsonl").output.read_bytes())


def test_a_file_holds_what_was_asked(asked: Any, bytes_of: bytes) -> None:
    """Seven prompts (an eighth row repeats one), three answers each, with tokens, seeds and the model's own logp."""
    one = asked("first.jsonl")
    rows = list(read_answers(one.output))
    assert [row.prompt for row in rows] == [row["prompt"] for row in ROWS]
    assert [len(row.answers) for row in rows] == [3] * 7
    assert [row.human for row in rows] == [row["chosen"] for row in ROWS]
    assert len({answer.seed for row in rows for answer in row.answers}) == 21
    assert rows[0].answers[0].seed == one.options.seed_of(rows[0].prompt_id, 0)
    model: Any = make_model(0).eval()
    for row in rows[:3]:
        assert row.human_ids is not None
        assert row.human_ids[-1] == 1  # the end that training puts behind it
        for answer in row.answers:
            assert answer.ids is not None
            ids = torch.tensor([row.prompt_ids + answer.ids])
            with torch.no_grad():
                logps = model(ids).logits[0].log_softmax(-1)
            start = len(row.prompt_ids)
            exact = sum(float(logps[start - 1 + n, token]) for n, token in enumerate(answer.ids))
            assert answer.logp == pytest.approx(exact, abs=1e-4)
            assert answer.finished == (answer.ids[-1] == 1)
    made = json.loads(one.output.with_name("first.jsonl.made.json").read_text())
    finished = sum(answer.finished is True for row in rows for answer in row.answers)
    tokens = sum(len(answer.ids or ()) for row in rows for answer in row.answers)
    counts = {"answers": 21, "finished": finished, "unfinished": 21 - finished, "tokens": tokens}
    assert made["account"] == {"prompts": 7, "repeated": 1, "too_long": 0, **counts}
    assert not one.output.with_name("first.jsonl.parts").exists()


@pytest.mark.parametrize("size", [1, 5, 64])
def test_the_batch_size_changes_no_byte(size: int, asked: Any, bytes_of: bytes) -> None:
    assert sample(asked(batch_size=size))
    assert asked().output.read_bytes() == bytes_of


def test_a_kill_loses_a_batch(asked: Any, bytes_of: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in the third shard of four (two prompts each), it goes on with that one, also in other batches."""
    drawn: list[int] = []
    draw = SeededEngine.draw

    def dies(self: SeededEngine, prompts: Any) -> Any:
        drawn.append(len(prompts))
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return draw(self, prompts)

    monkeypatch.setattr(SeededEngine, "draw", dies)
    with pytest.raises(KeyboardInterrupt):
        sample(asked())
    assert not asked().output.exists()
    assert sample(asked(batch_size=3))
    assert drawn == [2, 2, 2, 1, 1, 1]
    assert asked().output.read_bytes() == bytes_of


def test_the_jobs_of_an_array_share_the_work(asked: Any, bytes_of: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four shards the second of two jobs draws two; only the last job finds the file whole, and writes it."""
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "0")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    assert sample(asked()) is False
    assert len(list(asked().output.with_name("answers.jsonl.parts").glob("[0-9]*.jsonl"))) == 2
    assert sample(asked()) is False  # its part is done
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    assert sample(asked()) is True
    assert asked().output.read_bytes() == bytes_of


def test_rounds_and_seeds_draw_other_answers(asked: Any) -> None:
    """``row * samples + k`` would draw round 1 again in round 2."""
    drawn = []
    for name, options in {"a": {}, "b": {"round": 2}, "c": {"seed": 1}}.items():
        assert sample(asked(f"{name}.jsonl", **options))
        rows = read_answers(asked(f"{name}.jsonl").output)
        drawn.append([tuple(answer.ids or ()) for row in rows for answer in row.answers])
    assert all(one != other for a, b in ((0, 1), (0, 2), (1, 2)) for one, other in zip(drawn[a], drawn[b], strict=True))


def test_a_low_temperature_is_greedy(asked: Any) -> None:
    assert sample(asked(temperature=1e-4))
    for row in read_answers(asked().output):
        assert len({tuple(answer.ids or ()) for answer in row.answers}) == 1


def test_a_temperature_of_0_takes_the_likeliest_token(asked: Any) -> None:
    """Token for token the argmax of the model's own logits; nothing is drawn, so that there is no seed to name."""
    model: Any = make_model(0).eval()
    assert sample(asked(samples=1, temperature=0.0))
    for row in read_answers(asked(samples=1, temperature=0.0).output):
        [answer] = row.answers
        assert answer.seed is None
        with torch.no_grad():
            likeliest = model(torch.tensor([row.prompt_ids + (answer.ids or [])])).logits[0].argmax(-1)
        assert answer.ids == likeliest[len(row.prompt_ids) - 1 : -1].tolist()


def test_what_is_there_is_not_made_again_and_nothing_is_overwritten(
    asked: Any, bytes_of: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SeededEngine, "draw", lambda *_: pytest.fail("nothing is left to draw"))
    assert sample(asked("first.jsonl"))
    with pytest.raises(ValueError, match=r"first\.jsonl was made of something else \(samples: 3 -> 4\)"):
        sample(asked("first.jsonl", samples=4))
    asked("other.jsonl").output.write_text("mine\n")
    with pytest.raises(ValueError, match=r"other\.jsonl is there, and nothing says what it is"):
        sample(asked("other.jsonl"))


def test_shards_of_other_work_are_refused(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SeededEngine, "draw", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        sample(asked())
    with pytest.raises(ValueError, match=r"holds shards of other answers \(other: temperature\)"):
        sample(asked(temperature=0.5))


def test_prompts_without_room_are_left_out_and_counted(asked: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The model takes 256 tokens: with 250 new ones only prompts of six tokens or fewer fit."""
    with pytest.raises(ValueError, match=r"none is left of 7 \(7 are too long\)"):
        sample(asked(max_new_tokens=256))
    assert "7 prompts are left out: with max_new_tokens=256 they are longer than the model's 256 tokens" in caplog.text


def test_messages_go_through_the_template_and_unfinished_turns_go_on(
    tmp_path: Path, model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command itself, over conversations; the second prompt ends within the assistant's turn."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    turns = [{"role": "user", "content": "the cat"}]
    begun = [*turns, {"role": "assistant", "content": "a dog"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": one}) + "\n" for one in (turns, begun)))
    words = [
        "sample",
        str(model_path),
        "--tokenizer",
        str(tmp_path / "tokenizer"),
        "--samples",
        "2",
        "--dtype",
        "float32",
    ]
    words += ["--prompts", str(tmp_path / "p.jsonl"), "--output", str(tmp_path / "a.jsonl"), "--max-new-tokens", "4"]
    assert main(words) == 0
    rows = list(read_answers(tmp_path / "a.jsonl"))
    assert rows[0].prompt_ids == tokenizer("<|user|>the cat<|assistant|>")["input_ids"]
    assert rows[1].prompt_ids == tokenizer("<|user|>the cat<|assistant|>a dog")["input_ids"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r":2: not JSON"),
        ('{"prompt_id": 3}', r":2: prompt_id: Input should be a valid string; is this a file of answers\?"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str, asked: Any, bytes_of: bytes) -> None:
    path = asked("first.jsonl").output
    path.write_bytes(bytes_of.splitlines(keepends=True)[0] + line.encode() + b"\n")
    with pytest.raises(ValueError, match=message):
        list(read_answers(path))


def test_more_prompts_a_round_than_there_are_begin_again(asked: Any) -> None:
    """Of 7 prompts 10 are asked for from the 10th on: each once, beginning with the fourth."""
    prompts = [AskedPrompt("", str(n), "p", [1]) for n in range(7)]
    many = replace(asked(), first=10, most=10, repeat=True)
    chosen, _ = chosen_prompts(AskedPrompts(prompts), many, None)
    assert [one.id for one in chosen] == ["3", "4", "5", "6", "0", "1", "2"]
    with pytest.raises(ValueError, match="--most: expected at least 1, found -1"):
        chosen_prompts(AskedPrompts(prompts), replace(asked(), most=-1), None)
