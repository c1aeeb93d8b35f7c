"""AlpacaEval's and MT-Bench's files, in their own schemas: each answer is the greedy one of the model itself."""

import json
from dataclasses import replace

import pytest
from making import make_model, make_tokenizer

from alignlab.answers import Answer, read_answers
from alignlab.cli import main
from alignlab.cli.demo import CHAT_TEMPLATE
from alignlab.config import ModelOptions
from alignlab.sampling import Sampled, SampleOptions, answer_benchmark, generate, texts
from alignlab.sampling.engine import SeededEngine

ALPACA = [
    {"dataset": "helpful_base", "instruction": "the red cat", "output": "theirs", "generator": "davinci"},
    {"dataset": "koala", "instruction": "sees a bird", "input": "a small bird", "datasplit": "eval"},
    {"dataset": "vicuna", "instruction": "the red cat"},
]
MT_BENCH = [
    {"question_id": 81, "category": "writing", "turns": ["the red cat", "the old house"]},
    {"question_id": 82, "category": "math", "turns": ["a blue dog sees", "one more"], "reference": ["7", "9"]},
    {"question_id": 83, "category": "stem", "turns": ["a new song"]},
]


@pytest.fixture(scope="module")
def chat():
    """A tokenizer with a chat template."""
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


@pytest.fixture
def files(tmp_path, chat):
    """The tokenizer, and the two files of questions."""
    chat.save_pretrained(tmp_path / "tokenizer")
    (tmp_path / "alpaca_eval.json").write_text(json.dumps(ALPACA))
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in MT_BENCH))
    return tmp_path


@pytest.fixture
def asked(files, model_path):
    def make(prompts="question.jsonl", output="answers.jsonl", **options):
        told = {"samples": 1, "temperature": 0.0, "max_new_tokens": 8, "batch_size": 2, **options}
        model = ModelOptions(str(model_path), tokenizer=str(files / "tokenizer"))
        names = {"prompts": str(files / prompts), "output": files / output}
        return Sampled(model=model, options=SampleOptions(**told), **names)

    return make


@pytest.fixture
def greedy(chat):
    """The model's own greedy answer to a conversation whose turns go back and forth."""
    model = make_model(0).eval()

    def answer(*turns):
        conversation = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]
        return texts(chat, generate(model, chat, [conversation], max_new_tokens=8))[0]

    return answer


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_time(path):
    return [{**row, "tstamp": None} for row in lines(path)]


def test_alpaca_eval(files, greedy, model_path, capsys):
    """The command itself: a row each, in their order, with what the question had beside; an instruction that comes
    twice is answered twice alike."""
    words = ["sample", str(model_path), "--tokenizer", str(files / "tokenizer"), "--max-new-tokens", "8"]
    words += ["--prompts", str(files / "alpaca_eval.json"), "--as", "alpaca_eval", "--generator", "mine"]
    assert main([*words, "--output", str(files / "outputs.json")]) == 0
    assert capsys.readouterr().out == f"answers: {files / 'outputs.json'}\n"
    first, second = greedy("the red cat"), greedy("sees a bird\na small bird")
    assert first.strip()
    assert first != second
    assert json.loads((files / "outputs.json").read_text()) == [
        {"instruction": "the red cat", "output": first, "generator": "mine", "dataset": "helpful_base"},
        {
            "instruction": "sees a bird",
            "output": second,
            "generator": "mine",
            "dataset": "koala",
            "input": "a small bird",
            "datasplit": "eval",
        },
        {"instruction": "the red cat", "output": first, "generator": "mine", "dataset": "vicuna"},
    ]


def test_mt_bench_asks_the_second_turn_after_the_models_own_answer(files, greedy, asked):
    answer_benchmark(asked(), "mt_bench", "mine")
    rows = lines(files / "answers.jsonl")
    assert [list(row) for row in rows] == [["question_id", "answer_id", "model_id", "choices", "tstamp"]] * 3
    assert [(row["question_id"], row["model_id"]) for row in rows] == [(81, "mine"), (82, "mine"), (83, "mine")]
    for row, question in zip(rows, MT_BENCH, strict=True):
        first = greedy(question["turns"][0])
        wanted = [first, *(greedy(question["turns"][0], first, turn) for turn in question["turns"][1:])]
        assert row["choices"] == [{"index": 0, "turns": wanted}]
        assert all(wanted)
    assert len({row["answer_id"] for row in rows}) == 3
    answer_benchmark(asked(output="again.jsonl", batch_size=1), "mt_bench", "mine")
    assert without_time(files / "again.jsonl") == without_time(files / "answers.jsonl")
    answer_benchmark(asked(output="other.jsonl"), "mt_bench", "other")
    assert not {row["answer_id"] for row in rows} & {row["answer_id"] for row in lines(files / "other.jsonl")}


def test_a_kill_loses_a_batch_and_what_is_whole_is_left_alone(files, asked, monkeypatch):
    """Killed in the second turn: the same command asks that one alone; a third time there is nothing to do."""
    answer_benchmark(asked(output="whole.jsonl"), "mt_bench", "mine")
    drawn, draw = [], SeededEngine.draw

    def dies(self, prompts):
        drawn.append(len(prompts))
        if len(drawn) == 3:
            raise KeyboardInterrupt
        return draw(self, prompts)

    monkeypatch.setattr(SeededEngine, "draw", dies)
    with pytest.raises(KeyboardInterrupt):
        answer_benchmark(asked(), "mt_bench", "mine")
    assert not (files / "answers.jsonl").exists()
    answer_benchmark(asked(), "mt_bench", "mine")
    assert drawn == [2, 1, 2, 2]
    assert without_time(files / "answers.jsonl") == without_time(files / "whole.jsonl")
    before = (files / "answers.jsonl").read_bytes()
    answer_benchmark(asked(), "mt_bench", "mine")
    assert len(drawn) == 4
    assert (files / "answers.jsonl").read_bytes() == before


def test_a_temperature_draws_by_seeds(files, asked):
    answer_benchmark(asked(output="a.jsonl", temperature=1.0), "mt_bench", "mine")
    answer_benchmark(asked(output="c.jsonl", temperature=1.0, seed=1), "mt_bench", "mine")
    assert lines(files / "a.jsonl")[0]["choices"] != lines(files / "c.jsonl")[0]["choices"]
    [row, *_] = read_answers(files / "a.jsonl.turns" / "turn-1.jsonl")
    assert row.answers[0].seed == SampleOptions().seed_of(row.prompt_id, 0)


def test_broken_rows_are_named(files, asked):
    rows = [
        '{"question_id": 1, "turns": ["a"]}',
        '{"question_id": 1.5, "turns": ["a"]}',
        '{"question_id": 2, "turns": []}',
        '{"question_id": 3, "turns": ["a", " "]}',
        '{"question_id": 1, "turns": ["a"]}',
        "{",
    ]
    path = files / "broken.jsonl"
    path.write_text("\n".join(rows) + "\n")
    with pytest.raises(ValueError, match=r"^--prompts: 5 rows are no questions of mt_bench:\n") as caught:
        answer_benchmark(asked("broken.jsonl"), "mt_bench", "mine")
    said = str(caught.value).splitlines()[1:]
    assert said[:4] == [
        f"  {path}:2: question_id must be a whole number or a text, found 1.5",
        f"  {path}:3: turns must be a list of questions, found []",
        f"  {path}:4: turns[1] must be a text, found ' '",
        f"  {path}:5: question_id 1 is that of {path}:1 too",
    ]
    assert said[4].startswith(f"  {path}:6: broken JSON: ")
    (files / "broken.json").write_text('[{"instruction": "a"}, {"prompt": "b"}, {"instruction": "\\ud83d"}]')
    with pytest.raises(ValueError, match=r"2 rows are no questions of alpaca_eval:\n") as caught:
        answer_benchmark(asked("broken.json"), "alpaca_eval", "mine")
    assert str(caught.value).splitlines()[1:] == [
        f"  {files}/broken.json:2: instruction must be a text, found None",
        f"  {files}/broken.json:3: instruction has half of a surrogate pair",
    ]
    with pytest.raises(ValueError, match=r"none\.jsonl: no such file; --as mt_bench answers a file of questions"):
        answer_benchmark(asked("none.jsonl"), "mt_bench", "mine")


def test_what_cannot_be_asked_is_said_and_left_empty(files, asked, caplog, monkeypatch):
    """The first question leaves the model's 256 tokens no room; the second is answered with nothing, once."""
    rows = [
        {"question_id": 1, "turns": ["the cat " * 200, "more"]},
        {"question_id": 2, "turns": ["a", "b"]},
        MT_BENCH[0],
    ]
    (files / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    draw = SeededEngine.draw

    def silent(self, prompts):
        found = draw(self, prompts)
        return [
            [Answer("", [1], True, -1.0)] if prompt.prompt[0]["content"] == "a" else answers
            for prompt, answers in zip(prompts, found, strict=True)
        ]

    monkeypatch.setattr(SeededEngine, "draw", silent)
    answer_benchmark(asked("long.jsonl"), "mt_bench", "mine")
    long, empty, good = (row["choices"][0]["turns"] for row in lines(files / "answers.jsonl"))
    assert (long, empty) == (["", ""], ["", ""])
    assert all(good)
    path = files / "long.jsonl"
    said = "questions whose turn {} is not asked, and its answer left empty: {}\n  "
    assert f"{said.format(1, 1)}{path}:1: it leaves the model no room" in caplog.text
    why = "an earlier answer is empty"
    assert f"{said.format(2, 2)}{path}:1: {why}\n  {path}:2: {why}" in caplog.text
    account = json.loads((files / "answers.jsonl.made.json").read_text())["account"]
    assert account == {"questions": 3, "turns": 6, "empty": 4}


def test_what_is_refused(files, asked, monkeypatch):
    with pytest.raises(ValueError, match="--samples: a benchmark takes 1 answer to a question, found 2"):
        answer_benchmark(asked(samples=2, temperature=1.0), "mt_bench", "mine")
    with pytest.raises(ValueError, match="samples: at temperature 0 all answers to a prompt are one; found 2"):
        asked(samples=2)
    with pytest.raises(ValueError, match="--most: expected at least 1, found -1"):
        answer_benchmark(replace(asked(), most=-1), "mt_bench", "mine")
    with pytest.raises(ValueError, match="--as: expected one of alpaca_eval, mt_bench, found 'arena'"):
        answer_benchmark(asked(), "arena", "mine")
    (files / "mine.jsonl").write_text("mine\n")
    with pytest.raises(ValueError, match=r"mine\.jsonl is there, and nothing says what it is"):
        answer_benchmark(asked(output="mine.jsonl"), "mt_bench", "mine")
    answer_benchmark(asked(), "mt_bench", "mine")
    with pytest.raises(
        ValueError, match=r"answers\.jsonl was made of something else \(generator: \"mine\" -> \"you\"\)"
    ):
        answer_benchmark(asked(), "mt_bench", "you")
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    with pytest.raises(ValueError, match="--as: the questions of a benchmark are one job's"):
        answer_benchmark(asked(), "mt_bench", "mine")


def test_another_model_does_not_pass_for_the_one_that_answered(files, asked):
    """Not even where the answers to the turns were deleted."""
    answer_benchmark(asked(), "mt_bench", "mine")
    make_model(1).save_pretrained(files / "other")
    other = asked()
    object.__setattr__(other, "model", ModelOptions(str(files / "other"), tokenizer=str(files / "tokenizer")))
    with pytest.raises(ValueError, match=r"turn-1\.jsonl was made of something else \(model: "):
        answer_benchmark(other, "mt_bench", "mine")
    for path in (files / "answers.jsonl.turns").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match=r"answers\.jsonl was made of something else \(model: "):
        answer_benchmark(other, "mt_bench", "mine")
