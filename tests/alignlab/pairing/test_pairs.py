"""Files of answers to files of pairs: rows, provenance, and an account that sums to all answers."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from alignlab.answers import Answer, AnswerRow, read_answers, write_answers
from alignlab.cli import main
from alignlab.data import DataOptions, prepare, toy
from alignlab.pairing import RULES, Account, PairOptions, pair, pairs

PROMPT = [5, 6]


def row(
    scores: list[float | None], lengths: list[int] | None = None, finished: list[bool] | None = None, **more: Any
) -> AnswerRow:
    count = len(scores)
    lengths, finished = lengths or [2] * count, finished or [True] * count
    answers = [
        Answer(f"answer {n}", [10 + n] * (length - 1) + [1], done, -1.0, n, {"rm": score})
        for n, (score, length, done) in enumerate(zip(scores, lengths, finished, strict=True))
    ]
    return AnswerRow(f"{count:032x}", "the prompt", PROMPT, "model", "transformers", 2, answers, **more)


def made(one: AnswerRow, **options: Any) -> tuple[list[dict[str, Any]], dict[str, int]]:
    account = Account()
    found = list(pairs([one], PairOptions(**options), account))
    assert sum(account.fates.values()) == account.answers == len(one.answers)
    account.rows()
    return found, dict(account.fates)


def test_a_pair_has_tokens_scores_and_where_it_comes_from() -> None:
    found, fates = made(row([0.5, 2.0, -1.0], group="kitchen"))
    assert found == [
        {
            "prompt": "the prompt",
            "chosen": "answer 1",
            "rejected": "answer 2",
            "prompt_ids": PROMPT,
            "chosen_ids": [11, 1],
            "rejected_ids": [12, 1],
            "group": "kitchen",
            "score_chosen": 2.0,
            "score_rejected": -1.0,
            "margin": 3.0,
            "origin": {
                "prompt_id": f"{3:032x}", "model": "model", "round": 2, "rule": "best_worst", "judge": "rm",
                "tokens": "ids", "chosen": 1, "rejected": 2,
            },
        }
    ]  # fmt: skip
    assert fates == {"not_picked": 1, "chosen": 1, "rejected": 1}


def test_ties_are_dropped_and_counted() -> None:
    assert made(row([1.0, 1.0])) == ([], {"tie": 2})
    assert made(row([1.0, 1.05]), min_margin=0.1) == ([], {"margin": 2})
    found, fates = made(row([1.0, 1.0, 2.0]), rule="all_pairs")
    assert [(one["origin"]["chosen"], one["origin"]["rejected"]) for one in found] == [(2, 0), (2, 1)]
    assert fates == {"rejected": 2, "chosen": 1}


def test_what_a_rule_never_sees() -> None:
    """Of six: one cut off, one judged by nobody, one a duplicate; the best of the three left is 40 tokens long."""
    one = row([9.0, None, 1.0, 1.0, 3.0, 2.0], lengths=[2, 2, 2, 2, 40, 2], finished=[False, *[True] * 5])
    one.answers[3].ids = one.answers[2].ids
    found, fates = made(one, max_length_ratio=2.0)
    assert found == []
    assert fates == {"unfinished": 1, "unjudged": 1, "duplicate": 1, "length": 2, "not_picked": 1}
    [kept], fates = made(one, unfinished="keep")
    assert kept["chosen_ids"] == [10, 1]
    assert fates == {"chosen": 1, "unjudged": 1, "duplicate": 1, "rejected": 1, "not_picked": 2}


def test_a_length_penalty_changes_who_is_best() -> None:
    """2 tokens at 1.0 against 40 at 3.0: with 0.1 a token 0.8 against -1."""
    [one], _ = made(row([1.0, 3.0], lengths=[2, 40]), length_penalty=0.1)
    assert (one["score_chosen"], one["score_rejected"]) == pytest.approx((0.8, -1.0))
    assert one["origin"]["chosen"] == 0


def test_verifiers_count_prompts_that_teach_nothing() -> None:
    assert made(row([1.0, 1.0]), rule="pass_fail") == ([], {"all_pass": 2})
    assert made(row([0.0, 0.0]), rule="pass_fail") == ([], {"all_fail": 2})
    found, fates = made(row([1.0, 0.0, 1.0, 0.0]), rule="pass_fail", per_prompt=2)
    assert len(found) == 2
    assert fates == {"chosen": 2, "rejected": 2}
    found, fates = made(row([1.0, 0.0, 1.0, 0.0]), rule="pass_fail", per_prompt=1)
    assert fates == {"chosen": 1, "rejected": 1, "not_taken": 2}


def test_human_over_own() -> None:
    """No judge is needed; an own answer that is the human one teaches nothing."""
    one = row([None, None], human="human", human_ids=[11, 1])
    found, fates = made(one, rule="human_own")
    assert [(pair["chosen"], pair["rejected_ids"]) for pair in found] == [("human", [10, 1])]
    assert fates == {"rejected": 1, "equal": 1}
    assert made(row([1.0]), rule="human_own") == ([], {"no_human": 1})


def test_gold_stands_beside_pairs() -> None:
    [one], _ = made(row([1.0, 2.0], human="human", human_ids=[7, 1]), gold=True)
    assert (one["gold"], one["gold_ids"]) == ("human", [7, 1])


def test_the_best_alone() -> None:
    [one], fates = made(row([1.0, 2.0]), rule="best")
    assert (one["completion_ids"], one["label"], one["prompt_ids"]) == ([11, 1], True, PROMPT)
    assert fates == {"chosen": 1, "not_picked": 1}
    assert made(row([1.0, 2.0]), rule="best", least=2.5) == ([], {"below": 2})


def test_lists() -> None:
    [one], fates = made(row([1.0, 2.0, 2.0]), rule="lists")
    assert (one["completions"], one["scores"]) == (["answer 0", "answer 1", "answer 2"], [1.0, 2.0, 2.0])
    assert one["completions_ids"] == [[10, 1], [11, 1], [12, 1]]
    assert fates == {"listed": 3}
    assert made(row([2.0, 2.0]), rule="lists") == ([], {"tie": 2})


@pytest.mark.parametrize("rule", ["best_worst", "west_of_n", "best_random", "best_sigma", "all_pairs", "steps"])
def test_min_margin_is_read_by_every_rule_of_scores(rule: str) -> None:
    """A gap has to be larger than what is told, which may be as large."""
    one = row([1.0, 1.05])
    assert made(one, rule=rule, min_margin=1.05 - 1.0) == ([], {"margin": 2})
    assert made(one, rule=rule, min_margin=0.04)[1] == {"rejected": 1, "chosen": 1}


def test_text_without_tokens_is_said_and_never_given_an_end_it_did_not_have() -> None:
    one = row([1.0, 2.0, 3.0], finished=[True, True, False])
    for answer in one.answers:
        answer.ids = None
    [pair_], fates = made(one, unfinished="keep")
    assert "chosen_ids" not in pair_
    assert "prompt_ids" not in pair_
    assert pair_["origin"]["tokens"] == "text"
    assert fates == {"rejected": 1, "chosen": 1, "text_only": 1}


def test_code_is_joined_to_its_test() -> None:
    """The end of the code is left out, that of the test ends both."""
    one = row([None, None], tests=[Answer(" t0", [20, 1]), Answer(" t1", [21, 1])])
    one.answers[0].passed, one.answers[1].passed = [True, True], [True, False]
    [pair_], _ = made(one, rule="minimax")
    assert (pair_["chosen"], pair_["chosen_ids"]) == ("answer 0 t0", [10, 20, 1])
    assert (pair_["rejected"], pair_["rejected_ids"]) == ("answer 1 t1", [11, 21, 1])
    assert pair_["origin"]["tests"] == [0, 1]
    one.answers[1].passed = [True, None]
    assert made(one, rule="minimax") == ([], {"alone": 1, "untested": 1})


def test_which_judge_decides() -> None:
    one = row([1.0, 2.0])
    for answer, score in zip(one.answers, (5.0, 4.0), strict=True):
        answer.scores["other"] = score
    with pytest.raises(ValueError, match=r"which judge decides.* has rm, other; name one with --score"):
        made(one)
    [pair_], _ = made(one, score="other")
    assert pair_["origin"]["chosen"] == 0
    with pytest.raises(ValueError, match=r"no judge called 'third' scored prompt .*; found rm, other"):
        made(one, score="third")


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    rows = [row([float(n) for n in range(count)]) for count in (3, 5, 8)]
    options = PairOptions(rule="best_random")
    assert list(pairs(rows, options)) == [one for part in reversed(rows) for one in pairs([part], options)][::-1]


# ---- the file ----------------------------------------------------------------------------------------------------


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers, output = tmp_path / "a.jsonl", tmp_path / "p.jsonl"
    write_answers(answers, [row([1.0, 2.0, 1.5]), row([1.0, 1.0])])
    words = ["pair", str(answers), "--output", str(output)]
    assert main(words) == 0
    shown = capsys.readouterr().out
    cells = [line.replace("│", " ").split() for line in shown.splitlines() if "│" in line]
    assert [line[0] for line in cells] == ["1", "1", "2", "1", "5"]
    assert cells[-1] == ["5", "all", "answers"]
    assert "1 rows from 2 prompts" in shown
    assert len(output.read_text().splitlines()) == 1
    assert main(words) == 0  # it is there
    assert main([*words, "--min-margin", "0.5"]) == 2
    assert "p.jsonl is there (min_margin: 0.0 -> 0.5)" in capsys.readouterr().err
    assert main(["pair", str(answers), "--output", str(tmp_path / "q.jsonl"), "--min-margin", "5"]) == 2
    assert "no pair is left of 5 answers" in capsys.readouterr().err
    assert main(["pair", str(answers), "--output", "x", "--rule", "help"]) == 0
    assert "best_sigma" in capsys.readouterr().out


def test_pairs_are_read_as_the_tokens_that_they_are(tmp_path: Path, tokenizer: Any) -> None:
    """Text to tokens would give others: here the same text in tokens of one byte each, and no end where it was cut."""
    text = "the cat"
    spelled = [tokenizer(letter)["input_ids"][0] for letter in text.replace(" ", "Ġ").replace("Ġ", " ")]
    assert tokenizer.decode(spelled) == text
    assert spelled != tokenizer(text)["input_ids"]
    one = row([1.0, 2.0], finished=[True, False])
    one.prompt_ids = tokenizer("the prompt")["input_ids"]
    one.answers[0].text, one.answers[0].ids = text, [*spelled, 1]
    one.answers[1].text, one.answers[1].ids = "a dog", tokenizer("a dog")["input_ids"]
    answers, output = tmp_path / "a.jsonl", tmp_path / "p.jsonl"
    write_answers(answers, [one])
    pair(answers, output, PairOptions(unfinished="keep"))
    prepared = prepare(str(output), tokenizer, DataOptions(columns=("margin",)), progress=False)
    [found] = list(prepared.dataset)
    assert found["rejected_ids"] == [*spelled, 1]
    assert found["chosen_ids"] == tokenizer("a dog")["input_ids"]
    assert found["chosen_mask"] == [True] * len(found["chosen_ids"])
    assert (found["score_chosen"], found["margin"]) == (2.0, 1.0)
    assert not prepared.report.notes


# ---- the toy task, whose reward is known -------------------------------------------------------------------------


def toy_rows(prompts: int, samples: int) -> list[AnswerRow]:
    """Answers of a writer without habits, eight claims on each answer, and nine tests of which two are wrong."""
    rng, rows = random.Random(0), []
    for prompt in toy.prompts(prompts):
        texts = [toy._answer(rng, prompt, toy.EVEN) for _ in range(samples)]
        rewards = [toy.reward(prompt, text) for text in texts]
        answers = [
            Answer(text, [n + 10, 1], True, scores={"true": r})
            for n, (text, r) in enumerate(zip(texts, rewards, strict=True))
        ]
        rows.append(AnswerRow(prompt, prompt, PROMPT, "m", "e", 1, answers))
    return rows


def agreement(rows: list[AnswerRow], options: PairOptions) -> tuple[float, int]:
    """The share of pairs whose chosen answer has the higher true reward, of those where the rewards differ."""
    truth = {(one.prompt_id, n): answer.scores["true"] for one in rows for n, answer in enumerate(one.answers)}
    right = []
    account = Account()
    for one in pairs(rows, options, account):
        origin = one["origin"]
        gap = truth[origin["prompt_id"], origin["chosen"]] - truth[origin["prompt_id"], origin["rejected"]]  # type: ignore[operator]
        right += [gap > 0] if gap else []
    assert sum(account.fates.values()) == account.answers
    return sum(right) / len(right), len(right)


def test_facttune_on_the_toy_task() -> None:
    """The score is the share of supported claims, of which one in eight is judged wrongly: 88 % of pairs agree."""
    rows, rng = toy_rows(60, 6), random.Random(1)
    for one in rows:
        for answer in one.answers:
            true = answer.scores["true"]
            assert true is not None
            supported = round((true + 2.5) / 4.5 * 8)
            judged = [(claim < supported) != (rng.random() < 1 / 8) for claim in range(8)]
            answer.scores["claims"] = sum(judged) / 8
    share, count = agreement(rows, PairOptions(rule="all_pairs", score="claims", dedupe=False))
    assert count > 500
    assert share == pytest.approx(0.883, abs=0.005)
    wide, fewer = agreement(rows, PairOptions(rule="all_pairs", score="claims", dedupe=False, min_margin=0.3))
    assert fewer < count
    assert wide > share


def test_dstc_on_the_toy_task() -> None:
    """Tests ask for a reward of so much; two of nine ask for the opposite. Minimax is right in all 60 pairs."""
    rows = toy_rows(60, 6)
    for one in rows:
        one.tests = [Answer(f" test {n}", [30 + n, 1]) for n in range(9)]
        for answer in one.answers:
            true = answer.scores["true"]
            assert true is not None
            honest = [true > level for level in (-2, -1.5, -1, -0.5, 0, 0.5, 1)]
            answer.passed = [*honest, true < 0, true < -1]
    share, count = agreement(rows, PairOptions(rule="minimax"))
    assert (share, count) == (1.0, 60)


def test_every_rule_accounts_for_every_answer() -> None:
    rows = toy_rows(20, 5)
    for n, one in enumerate(rows):
        one.answers[n % 5].finished = n % 3 == 0
        one.answers[(n + 1) % 5].scores["true"] = None
        one.human, one.human_ids = "human", [99, 1]
        one.tests = [Answer("t", [3, 1])]
        for k, answer in enumerate(one.answers):
            answer.passed = [k % 2 == 0]
    for rule in RULES:
        account = Account()
        some: Any = {} if rule in ("best", "lists") else {"per_prompt": 2}
        some |= {"threshold": 0.0} if rule == "pass_fail" else {}
        made = list(pairs(rows, PairOptions(rule=rule, **some), account))
        assert sum(account.fates.values()) == account.answers == 100, rule
        assert made
        assert account.pairs == len(made)


def test_shown_accounts_are_plain_values(tmp_path: Path) -> None:
    answers = tmp_path / "a.jsonl"
    write_answers(answers, [row([1.0, 2.0])])
    pair(answers, tmp_path / "p.jsonl", PairOptions())
    account = json.loads((tmp_path / "p.jsonl.made.json").read_text())["account"]
    assert account == {"prompts": 1, "answers": 2, "pairs": 1, "fates": {"chosen": 1, "rejected": 1}, "dropped": {}}


def test_two_judges_do_not_decide_in_one_file() -> None:
    """Neither under two names, nor under one: files that were put together, say."""
    one, two = row([1.0, 0.0]), row([3.0, 1.0, 2.0])
    for answer in two.answers:
        answer.scores = {"other": answer.scores["rm"]}
    with pytest.raises(ValueError, match="was scored by 'other', and those before by 'rm'; name the one"):
        list(pairs([one, two], PairOptions()))
    one, two = row([1.0, 0.0]), row([3.0, 1.0, 2.0])
    one.judges, two.judges = ({"rm": {"by": by, "kind": "reward"}} for by in ("first", "second"))
    with pytest.raises(ValueError, match=r"the scores called 'rm' are of two judges: of second for prompt .* of first"):
        list(pairs([one, two], PairOptions(score="rm")))


def test_a_prompt_without_answers_stops_nobody() -> None:
    for options in ({}, {"score": "rm"}, {"rule": "lists"}, {"rule": "best"}):
        account = Account()
        assert len(list(pairs([row([]), row([1.0, 0.0])], PairOptions(**options), account))) == 1  # type: ignore[arg-type]
        assert (account.prompts, account.answers) == (2, 2)


def test_one_text_in_other_tokens_is_no_pair() -> None:
    """A length penalty tells them apart, a judge that compares may; training on them would teach tokens alone."""
    one = row([1.0, 1.0], lengths=[2, 5])
    one.answers[1].text = one.answers[0].text
    assert made(one, length_penalty=0.1) == ([], {"tie": 2})
    human = row([1.0, 1.0], human="answer 0", human_ids=[99, 1])
    found, fates = made(human, rule="human_own")
    assert [pair["rejected"] for pair in found] == ["answer 1"]
    assert fates == {"equal": 1, "rejected": 1}


def test_empty_answers_make_no_pair() -> None:
    """A server of texts may say nothing: one such row would stop the training. An end alone is an answer."""
    one = row([3.0, 2.0, 1.0, 0.0], lengths=[2, 2, 1, 2])
    one.answers[0].text, one.answers[0].ids = " ", None
    one.answers[1].ids = []
    found, fates = made(one)
    assert fates == {"empty": 2, "chosen": 1, "rejected": 1}
    assert found[0]["chosen_ids"] == [1]


def test_scores_that_are_no_numbers_are_none() -> None:
    """From Python, where no file was read: NaN and infinity rank nothing, in no rule."""
    for rule in ("best_worst", "win_rate", "rso", "all_pairs", "best_sigma"):
        all_taken = {"beta": 1e9} if rule == "rso" else {}
        found, fates = made(row([math.nan, 1.0, math.inf, 0.0, -math.inf]), rule=rule, **all_taken)
        assert fates == {"unjudged": 3, "chosen": 1, "rejected": 1}, rule
        assert found[0]["chosen"] == "answer 1"
    assert made(row([math.nan, 1.0]), rule="best")[0][0]["completion"] == "answer 1"
    assert made(row([math.nan, 1.0, 0.0]), rule="lists")[0][0]["scores"] == [1.0, 0.0]
    with pytest.raises(ValueError, match=r"score: 'rm' gave 1e\+200 to answer 1 of prompt .*; a score beyond 1e\+30"):
        made(row([0.0, 1e200]), rule="best_sigma")


def test_lengths_are_tokens_or_nobodys() -> None:
    """A penalty of each token is not taken of characters; a ratio compares characters with characters."""
    one = row([1.0, 0.5], lengths=[8, 2])
    one.answers[0].ids = None
    with pytest.raises(ValueError, match=r"length_penalty: .* the tokens of answer 0 to prompt .* are not known"):
        made(one, length_penalty=0.01)
    assert len(made(one, max_length_ratio=1.5)[0]) == 1  # eight characters each
    one.answers[1].text = "x" * 13
    assert made(one, max_length_ratio=1.5)[1] == {"length": 2}


def test_lists_say_that_they_have_tokens() -> None:
    assert made(row([1.0, 0.0]), rule="lists")[0][0]["origin"]["tokens"] == "ids"
    one = row([1.0, 0.0])
    one.answers[0].ids = None
    assert made(one, rule="lists")[0][0]["origin"]["tokens"] == "text"


def test_a_kill_before_the_file_is_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the manifest was written by then or not, the same command makes the pairs."""
    write_answers(tmp_path / "a.jsonl", [row([1.0, 0.0])])
    replace = Path.replace
    for name in ("p.jsonl.made.json", "p.jsonl"):

        def dies(self: Path, target: Path, last: str = name) -> Path:
            done = replace(self, target)
            if target.name == last:
                raise KeyboardInterrupt
            return done

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", dies)
            with pytest.raises(KeyboardInterrupt):
                pair(tmp_path / "a.jsonl", tmp_path / "p.jsonl", PairOptions())
        assert (tmp_path / "p.jsonl").exists() == (name == "p.jsonl")
        assert pair(tmp_path / "a.jsonl", tmp_path / "p.jsonl", PairOptions()).pairs == 1
        for path in tmp_path.glob("p.jsonl*"):
            path.unlink()


def test_what_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    write_answers(tmp_path / "a.jsonl", [row([1.0, 0.0])])
    (tmp_path / ".p.jsonl").write_text("another's")
    for options in ({"score": "none"}, {"min_margin": 5.0}):
        with pytest.raises(ValueError, match=r"no judge called|no pair is left"):
            pair(tmp_path / "a.jsonl", tmp_path / "p.jsonl", PairOptions(**options))
    assert sorted(one.name for one in tmp_path.iterdir()) == [".p.jsonl", "a.jsonl"]
    assert (tmp_path / ".p.jsonl").read_text() == "another's"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt_ids": None}, "prompt_ids is missing beside the other ids"),
        ({"chosen_ids": [2**40, 1]}, "chosen_ids has the id 1099511627776; the tokenizer has"),
    ],
)
def test_hostile_ids_are_named(change: dict[str, Any], message: str, tokenizer: Any) -> None:
    values = {
        "prompt": "the",
        "chosen": "",
        "rejected": "",
        "prompt_ids": [5],
        "chosen_ids": [1],
        "rejected_ids": [1, 1],
    }
    with pytest.raises(ValueError, match=message):
        prepare([{**values, **change}], tokenizer, DataOptions(kind="pairs"), progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": {"rm": "nan"}}, "answers.1.scores.rm: Input should be a finite number"),
        ({"ids": [-3, 1]}, "answers.1.ids.0: Input should be greater than or equal to 0"),
        ({"score": 1.0}, "answers.1.score: Unexpected keyword argument"),
    ],
)
def test_hostile_answers_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    """A key that nobody reads would be lost once a judge writes the file again."""
    source = tmp_path / "answers.jsonl"
    write_answers(source, [row([1.0, 0.0])])
    values = json.loads(source.read_text())
    values["answers"][1] |= change
    source.write_text(json.dumps(values) + "\n")
    with pytest.raises(ValueError, match=f"answers.jsonl:1: {message}"):
        list(read_answers(source))
