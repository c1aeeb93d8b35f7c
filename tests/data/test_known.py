"""Rows of our own in the exact schemas of public sets: fields to columns, and a broken row of each, named."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignlab.data import DataOptions, prepare
from alignlab.data.formats import parse_row
from alignlab.data.known import FORMATS, SCHEMAS, near_formats, schema_of
from alignlab.data.schema import RowError
from alignlab.data.sources import Source

Row = dict[str, Any]
ASK, GOOD, BAD = "Which is larger, 2 or 3?", "3 is.", "2 is."
TURNS: Any = [{"role": "user", "content": ASK}]
YES, NO = {"role": "assistant", "content": GOOD}, {"role": "assistant", "content": BAD}
CHOSEN, REJECTED = [*TURNS, YES], [*TURNS, NO]
PAIR: Row = {"chosen": CHOSEN, "rejected": REJECTED}
TEXTS: Row = {"chosen": GOOD, "rejected": BAD}
PARTS: Row = {"type": "text", "image": None, "mimeType": None}
RATED: Row = {"helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 1, "verbosity": 2}


def judged(response, overall, *ratings):
    names = ("helpfulness", "honesty", "instruction_following", "truthfulness")
    annotations = {
        name: {"Rating": rating, "Rationale": "because", "Rationale For Rating": None, "Type": None}
        for name, rating in zip(names, ratings, strict=True)
    }
    return {
        "annotations": annotations,
        "critique": "fine",
        "custom_system_prompt": "Be kind.",
        "fine-grained_score": sum(float(rating) for rating in ratings if rating != "N/A") / 4,
        "model": "m",
        "overall_score": overall,
        "principle": "helpfulness",
        "response": response,
    }


def aspects(*ratings):
    return dict(zip(("helpfulness", "honesty", "instruction_following", "truthfulness"), ratings, strict=True))


def parts(turns):
    return [{"role": turn["role"], "content": [{**PARTS, "text": turn["content"]}]} for turn in turns]


SHP: Row = {"post_id": "a1", "domain": "askmaths_train", "upvote_ratio": 0.9, "history": ASK, "c_root_id_A": "b"}
SHP |= {"c_root_id_B": "c", "created_at_utc_A": 1, "created_at_utc_B": 2, "score_A": 2, "score_B": 8}
SHP |= {"human_ref_A": BAD, "human_ref_B": GOOD, "labels": 0, "seconds_difference": 1.0, "score_ratio": 4.0}
PKU: Row = {"prompt": ASK, "response_0": BAD, "response_1": GOOD, "prompt_source": "x", "response_0_source": "y"}
PKU |= {"response_1_source": "z", "is_response_0_safe": True, "is_response_1_safe": False}
PKU |= {"response_0_harm_category": {"Cybercrime": False}, "response_1_harm_category": {"Cybercrime": True}}
PKU |= {"response_0_severity_level": 0, "response_1_severity_level": 2, "better_response_id": 1}
PKU |= {"safer_response_id": 0, "response_0_sha256": "0", "response_1_sha256": "1"}
ARENA: Row = {"question_id": "q", "model_a": "a", "model_b": "b", "winner": "model_b", "judge": "arena_user_1"}
ARENA |= {"conversation_a": REJECTED, "conversation_b": CHOSEN, "turn": 1, "anony": True, "language": "English"}
ARENA |= {"tstamp": 1.0, "openai_moderation": {}, "toxic_chat_tag": {}}
ARENA140: Row = {"id": "i", "model_a": "a", "model_b": "b", "winner": "model_a", "evaluation_session_id": "e"}
ARENA140 |= {"evaluation_order": 1, "conversation_a": parts(CHOSEN), "conversation_b": parts(REJECTED)}
ARENA140 |= {"full_conversation": [], "conv_metadata": {}, "category_tag": {}, "language": "en", "is_code": False}
ARENA55: Row = {"id": 1, "model_a": "a", "model_b": "b", "prompt": json.dumps([ASK]), "response_a": json.dumps([BAD])}
ARENA55 |= {"response_b": json.dumps([GOOD]), "winner_model_a": 0, "winner_model_b": 1, "winner_tie": 0}
POST: Row = {"id": "t3", "post": "I count.", "title": "Numbers", "subreddit": "maths", "site": None, "article": None}
SUMMARIES: Row = {"info": POST, "choice": 1, "worker": "w", "batch": "b", "split": "train", "extra": {"confidence": 8}}
SUMMARIES |= {"summaries": [{"text": BAD, "policy": "p", "note": ""}, {"text": " " + GOOD, "policy": "q", "note": ""}]}
WEBGPT: Row = {"question": {"dataset": "eli5", "id": "x", "full_text": ASK}, "quotes_0": {"title": [], "extract": []}}
WEBGPT |= {"answer_0": GOOD, "tokens_0": {}, "score_0": 0.5, "quotes_1": {"title": [], "extract": []}}
WEBGPT |= {"answer_1": BAD, "tokens_1": {}, "score_1": -0.5}
PROMETHEUS: Row = {
    "orig_instruction": ASK,
    "orig_response_A": GOOD,
    "orig_response_B": BAD,
    "orig_reference_answer": "3",
}
PROMETHEUS |= {"orig_criteria": "truth", "orig_preference": "A", "orig_score_A": "5", "orig_score_B": "2"}
PROMETHEUS |= {"orig_feedback_A": "f", "orig_feedback_B": "g", "instruction": "###Task", "input": "", "output": "A"}
HELPSTEER3: Row = {"domain": "stem", "language": "english", "context": TURNS, "response1": BAD, "response2": GOOD}
HELPSTEER3 |= {"overall_preference": 2, "individual_preference": [{"score": 2, "reasoning": "r"}]}
HELPSTEER2: Row = {"split": "train", "prompt": ASK, "response_1": GOOD, "response_2": BAD, "preference_strength": -3}
HELPSTEER2 |= {"preference_statement": "s", "preference_elaboration": "e", "three_most_similar_preferences": []}
ULTRA: Row = {"prompt": ASK, "prompt_id": "p", **PAIR, "messages": CHOSEN, "score_chosen": 8.5, "score_rejected": 3.0}
CLEANED: Row = {
    "source": "evol",
    "prompt": ASK,
    **PAIR,
    "chosen-rating": 4.5,
    "rejected-rating": 2.0,
    "chosen-model": "m",
}
RAW: Row = {"source": "sharegpt", "instruction": ASK, "models": ["a", "b", "c"], "correct_answers": ["None"]}
RAW |= {"completions": [judged(ASK, 5.0, "3", "3", "3", "3"), judged(GOOD, 9.0, "5", "4", "5", "5")]}
RAW["completions"] += [judged(BAD, 2.0, "1", "2", "3", "1")]
ORCA2: Row = {"system": "Be kind.", "input": ASK, **TEXTS, "generations": [GOOD, BAD], "order": ["chosen", "rejected"]}
ORCA2 |= {"labelling_model": "m", "labelling_prompt": [], "raw_labelling_response": "r", "rating": [9.0, 4.0]}
ORCA2 |= {"rationale": "r", "status": "unchanged", "original_chosen": GOOD, "original_rejected": BAD}
ORCA2 |= {"chosen_score": 9.0, "in_gsm8k_train": False}
DISTILABEL: Row = {
    "prompt": ASK,
    "prompt_id": "p",
    **PAIR,
    "chosen_rating": 5,
    "rejected_rating": 1,
    "chosen_model": "m",
}
MATH: Row = {"metadata": "{}", "instruction": ASK, "chosen_response": GOOD, "chosen_rating": 5.0}
MATH |= {"rejected_response": BAD, "rejected_rating": 3.0}
RATINGS: Row = {"instruction": ASK, "generations": [BAD, "?", GOOD], "ratings": [2, 1, 5], "generation_models": ["a"]}
CAPYBARA: Row = {
    "source": "Airoboros",
    "conversation": [{"input": ASK, "output": GOOD}],
    "original_response": GOOD,
    **PAIR,
}
CAPYBARA |= {"prompt": ASK, "rating_chosen": 5, "rating_rejected": 2, "chosen_model": "m", "rejected_model": "n"}
TULU: Row = {"id": "i", "prompt": ASK, **PAIR, "source": "wildchat"}
TULU405: Row = {**TULU, "chosen_rating": 4.5, "rejected_rating": 2.5, "chosen_model": "m", "rejected_model": "n"}
MAGPIE: Row = {
    "uuid": "u",
    "instruction": ASK,
    "responses": ["?", BAD, GOOD],
    "intent": "i",
    **PAIR,
    "difficulty": "easy",
}
MAGPIE |= {"rewards_armorm": [{"score": 0.15}, {"score": 0.125}, {"score": 0.25}], "task_category": "Math"}
NECTAR: Row = {"prompt": f"\n\nHuman: {ASK}\n\nAssistant: ", "turns": 1, "num_responses": 3, "source": ["a"]}
NECTAR |= {"answers": [{"answer": BAD, "model": "m", "rank": 3.0}, {"answer": GOOD, "model": "n", "rank": 1.0}]}
NECTAR["answers"] += [{"answer": "Both.", "model": "o", "rank": 2.0}]
OPENR1: Row = {"problem": ASK, "solution": "3", "answer": "3", "problem_type": "Algebra", "source": "olympiads"}
OPENR1 |= {"generations": [BAD, GOOD], "correctness_math_verify": [False, True], "messages": CHOSEN, "uuid": "u"}
MATHS1: Row = {"question": ASK, "expected_answer": "3", "predicted_answer": "3", "generated_solution": GOOD}
MATHS1 |= {"is_correct": True, "dataset": "gsm8k", "error_message": "", "generation_type": "masked"}
OUTPUTS: Row = {"instruction": ASK, "input": "", "output": [GOOD, BAD]}
DIALOGUES: Row = {side: f"\n\nHuman: {ASK}\n\nAssistant: {words}" for side, words in TEXTS.items()}
SHAREGPT: Row = {"conversations": [{"from": "human", "value": ASK}], "chosen": {"from": "gpt", "value": GOOD}}
SHAREGPT |= {"rejected": {"from": "gpt", "value": BAD}}
BEAVER: Row = {"prompt": ASK, "response": GOOD, "category": {"animal_abuse": False}, "is_safe": True}


def scores(chosen, rejected):
    return {"score_chosen": chosen, "score_rejected": rejected}


def rewards(chosen, rejected):
    return {"rewards_chosen": chosen, "rewards_rejected": rejected}


@pytest.mark.parametrize(
    ("name", "raw", "columns"),
    [
        ("ultrafeedback_binarized", ULTRA, scores(8.5, 3.0)),
        ("ultrafeedback_cleaned", CLEANED, {**scores(4.5, 2.0), "group": "evol"}),
        (
            "ultrafeedback",
            RAW,
            {**scores(9.0, 2.0), **rewards(aspects(5, 4, 5, 5), aspects(1, 2, 3, 1)), "group": "sharegpt"},
        ),
        ("orca_dpo_pairs", {"system": "", "question": ASK, **TEXTS}, {}),
        ("truthy_dpo", {"id": "i", "source": "x", "system": "", "prompt": ASK, **TEXTS}, {}),
        ("truthy_dpo", {"system": "", "prompt": ASK, **TEXTS, "margin": 2}, {"margin": 2.0}),
        ("orca_distilabel", {**ORCA2, "system": ""}, scores(9.0, 4.0)),
        ("distilabel", DISTILABEL, scores(5.0, 1.0)),
        (
            "distilabel",
            {"dataset": "x", **PAIR, "chosen_rating": 5, "rejected_rating": 1},
            {**scores(5, 1), "group": "x"},
        ),
        ("distilabel", {"instruction": ASK, **TEXTS, "chosen_rating": 5, "rejected_rating": 1}, scores(5.0, 1.0)),
        ("distilabel_responses", MATH, scores(5.0, 3.0)),
        ("capybara_dpo", CAPYBARA, {**scores(5.0, 2.0), "group": "Airoboros"}),
        ("tulu3", TULU, {"group": "wildchat"}),
        ("tulu3_rated", TULU405, {**scores(4.5, 2.5), "group": "wildchat"}),
        ("helpsteer2", HELPSTEER2, {"margin": 3.0}),
        ("helpsteer3", HELPSTEER3, {"margin": 2.0, "group": "stem"}),
        ("pku_saferlhf", PKU, rewards({"better": 1, "safer": 0}, {"better": 0, "safer": 1})),
        ("skywork", {**PAIR, "source": "wild"}, {"group": "wild"}),
        ("arena", ARENA, {"group": "English"}),
        ("arena", ARENA140, {"group": "en"}),
        (
            "arena",
            {**ARENA, "conversation_a": json.dumps(REJECTED), "conversation_b": json.dumps(CHOSEN)},
            {"group": "English"},
        ),
        ("arena_votes", ARENA55, {}),
        ("shp", SHP, {**scores(8.0, 2.0), "group": "askmaths_train"}),
        ("webgpt", WEBGPT, scores(0.5, -0.5)),
        ("prometheus", PROMETHEUS, scores(5.0, 2.0)),
        ("magpie_dpo", MAGPIE, scores(0.25, 0.125)),
        ("magpie_dpo", {"uuid": "u", "instruction": ASK, **PAIR}, {}),
        ("code_pairs", {"input": ASK, "accepted": GOOD, "rejected": BAD, "ID": 1}, {}),
        ("distilabel_ratings", RATINGS | {"ratings": [1, 2, 5]}, scores(5.0, 1.0)),
        ("graded", OPENR1, {**scores(1.0, 0.0), "group": "olympiads"}),
        ("alpaca", {"instruction": ASK, "input": "", **TEXTS}, {}),
        ("alpaca_outputs", OUTPUTS, {}),
        ("sharegpt", SHAREGPT, {}),
    ],
)
def test_pairs_of_public_sets(name, raw, columns):
    assert schema_of(raw).name == name
    for form in (None, name):
        row = parse_row(raw, DataOptions(), form)
        assert row.prompt == TURNS
        assert [[turn["content"] for turn in row.completions[side]] for side in TEXTS] == [[GOOD], [BAD]]
        assert row.columns == columns
        assert row.read_as == SCHEMAS[name].title


@pytest.mark.parametrize(
    ("name", "raw", "prompt"),
    [
        ("hh_rlhf", DIALOGUES, f"\n\nHuman: {ASK}\n\nAssistant:"),
        ("nectar", NECTAR, f"\n\nHuman: {ASK}\n\nAssistant:"),
        ("summarize_from_feedback", SUMMARIES, "SUBREDDIT: r/maths\n\nTITLE: Numbers\n\nPOST: I count.\n\nTL;DR:"),
    ],
)
def test_pairs_of_public_sets_that_are_texts(name, raw, prompt):
    assert schema_of(raw).name == name
    row = parse_row(raw, DataOptions())
    assert (row.prompt, row.completions) == (prompt, {"chosen": [(f" {GOOD}", True)], "rejected": [(f" {BAD}", True)]})
    assert row.columns == ({"group": "maths"} if name == "summarize_from_feedback" else {})


def test_articles_are_summarised_too():
    info = {"id": "c", "post": None, "title": "Numbers", "subreddit": None, "site": "cnn", "article": "Three won."}
    row = parse_row({**SUMMARIES, "info": info}, DataOptions())
    assert (row.prompt, row.columns) == ("TITLE: Numbers\n\nARTICLE: Three won.\n\nTL;DR:", {})


@pytest.mark.parametrize(
    ("name", "raw", "label", "columns"),
    [
        ("beavertails", BEAVER, True, {}),
        ("beavertails", {**BEAVER, "is_safe": False}, False, {}),
        ("graded", MATHS1, True, {}),
        ("graded", {"prompt": ASK, "completion": GOOD, "passed": 0, "source": "x"}, False, {"group": "x"}),
        ("helpsteer_ratings", {"prompt": ASK, "response": GOOD, **RATED}, True, {"rewards": RATED}),
        (None, {"prompt": TURNS, "completion": [YES], "label": True}, True, {}),  # KTO-mix-14k: a form of our own
        (None, {"instruction": ASK, "input": "", "output": GOOD, "kto_tag": True}, True, {}),
    ],
)
def test_labelled_public_sets(name, raw, label, columns):
    schema = schema_of(raw)
    assert (schema and schema.name) == name
    row = parse_row(raw, DataOptions(kind="labelled", default_label=True))
    assert (row.prompt, row.label, row.columns) == (TURNS, label, columns)
    assert [turn["content"] for turn in row.completions["completion"]] == [GOOD]


def test_systems_messages_and_turns():
    row = parse_row({"system": "Be kind.", "question": ASK, **TEXTS}, DataOptions())
    assert row.prompt == [{"role": "system", "content": "Be kind."}, *TURNS]
    assert parse_row({"system": "Be kind.", "prompt": ASK, **TEXTS}, DataOptions()) == replace(
        row, read_as="Truthy DPO"
    )
    assert parse_row(ORCA2, DataOptions()).prompt[0]["content"] == "Be kind."
    prompt = f"Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\n{ASK}\n<extra_id_1>Assistant\n"
    row = parse_row({**HELPSTEER2, "prompt": prompt}, DataOptions())
    assert row.prompt == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, *TURNS]
    votes = {"prompt": json.dumps([ASK, "Why?"]), "response_a": '["a", "b"]', "response_b": '["c", "d"]'}
    row = parse_row({**ARENA55, **votes}, DataOptions())
    assert row.prompt == TURNS
    assert [turn["content"] for turn in row.completions["chosen"]] == ["c", "Why?", "d"]


def test_a_system_beside_plain_texts_is_read_where_there_is_one():
    """A column without values, as parquet and csv files fill in, leaves texts as they are."""
    row = parse_row({"system": None, "prompt": ASK, **TEXTS}, DataOptions())
    assert (row.read_as, row.prompt) == ("", ASK)


def test_the_safer_answer_when_the_format_says_so():
    row = parse_row(PKU, DataOptions(), "pku_saferlhf_safer")
    assert row.completions["chosen"] == [NO]
    assert row.columns == rewards({"better": 0, "safer": 1}, {"better": 1, "safer": 0})


BROKEN: Any = [
    (ULTRA, {"score_chosen": "high"}, "score_chosen is 'high' of type str; it must be a number"),
    (CLEANED, {"chosen-rating": "high"}, "chosen-rating is 'high'; it must be a number"),
    (RAW, {"completions": RAW["completions"][:1]}, "completions must be a list of two answers or more"),
    (RAW, {"completions": [{**judged(GOOD, None, 1, 1, 1, 1)}]}, r"completions\[0\].overall_score is missing"),
    (
        RAW,
        {"completions": [judged(GOOD, 10, 1, 1, 1, 1)]},
        r"completions\[0\].overall_score is 10 and fine-grained_score 1: ",
    ),
    ({"question": ASK, **TEXTS}, {"question": ""}, "question is empty"),
    ({"system": "Be kind.", "prompt": ASK, **TEXTS}, {"prompt": ""}, "prompt is empty"),
    (ORCA2, {"status": "tie"}, "status is 'tie': neither answer is better"),
    (DISTILABEL, {"rejected_rating": "N/A"}, "rejected_rating is 'N/A'; it must be a number"),
    (MATH, {"chosen_response": 3}, "chosen_response is of type int; allowed is text"),
    (RATINGS, {"ratings": [1, None, 3]}, r"ratings\[1\] is missing"),
    (RATINGS, {"ratings": [1, 3]}, "completions has 3 answers and scores 2 numbers"),
    (CAPYBARA, {"rating_rejected": "low"}, "rating_rejected is 'low'; it must be a number"),
    (TULU, {"chosen": REJECTED}, "chosen and rejected are equal"),
    (TULU405, {"chosen_rating": "x"}, "chosen_rating is 'x'; it must be a number"),
    (HELPSTEER2, {"preference_strength": 0}, "preference_strength is 0: neither answer is better"),
    (HELPSTEER2, {"prompt": "Hi\n<extra_id_1>Robot\n"}, "prompt has a turn of 'Robot'; allowed are User and Assistant"),
    (HELPSTEER3, {"overall_preference": 0}, "overall_preference is 0: neither answer is better"),
    (HELPSTEER3, {"response2": None}, "response2 is missing"),
    (HELPSTEER3, {"context": [{"role": "robot", "content": "x"}]}, r"prompt\[0\] has the unknown role 'robot'"),
    (PKU, {"better_response_id": 2}, "better_response_id is 2; allowed are 0, 1"),
    (PKU, {"safer_response_id": None}, "safer_response_id is missing"),
    (BEAVER, {"is_safe": "yes"}, "is_safe is 'yes'; allowed are true and false"),
    ({**PAIR, "source": "x"}, {"chosen": []}, "chosen is empty"),
    (DIALOGUES, {"rejected": f"\n\nHuman: {ASK}\n\nAssistant: "}, "rejected is empty after the prompt"),
    (ARENA, {"winner": "tie (bothbad)"}, r"winner is 'tie \(bothbad\)': neither answer is better"),
    (ARENA, {"winner": "model_c"}, "winner is 'model_c'; allowed are 'model_a', 'model_b'"),
    (ARENA55, {"winner_tie": 1, "winner_model_b": 0}, "winner_tie is 1: neither answer is better"),
    (ARENA55, {"response_a": "[]"}, "response_a has 0 turns and prompt has 1"),
    (ARENA55, {"response_a": "["}, "response_a is text that is not JSON; it must be a list"),
    (SHP, {"labels": 2}, "labels is 2; allowed are 1, 0"),
    (SUMMARIES, {"choice": 2}, "choice is 2; allowed are 0, 1"),
    (SUMMARIES, {"info": {"title": "x"}}, "article is missing"),
    (WEBGPT, {"score_0": 0, "score_1": 0}, "score_0 and score_1 are equal: neither answer is better"),
    (PROMETHEUS, {"orig_preference": "C"}, "orig_preference is 'C'; allowed are 'A', 'B'"),
    (MAGPIE, {"chosen": REJECTED}, "chosen and rejected are equal"),
    (NECTAR, {"answers": [{"answer": GOOD, "rank": None}]}, r"answers\[0\].rank is missing"),
    (
        NECTAR,
        {"answers": [{"answer": one, "rank": 1.0} for one in (GOOD, BAD)]},
        "all 2 completions are equally good",
    ),
    (OPENR1, {"correctness_math_verify": [True, 2]}, r"correctness_math_verify\[1\] is 2; allowed are true and false"),
    (OPENR1, {"correctness_math_verify": [True, True]}, "all 2 completions are equally good"),
    (MATHS1, {"is_correct": "maybe"}, "is_correct is 'maybe'; allowed are true and false"),
    ({"prompt": ASK, "response": GOOD, **RATED}, {"helpfulness": "x"}, "helpfulness is 'x'; it must be a number"),
    ({"input": ASK, "accepted": GOOD, "rejected": BAD}, {"accepted": " "}, "accepted is empty"),
    (OUTPUTS, {"output": [GOOD]}, "output holds 1 answers; it must hold the better and the worse one"),
    (SHAREGPT, {"conversations": "x"}, "conversations must be a list of turns, found str"),
    ({"instruction": ASK, **TEXTS}, {"input": 3}, "instruction and input must be text"),
]


@pytest.mark.parametrize(("raw", "change", "reason"), BROKEN)
def test_a_broken_row_names_the_field_of_its_set(raw, change, reason):
    with pytest.raises(RowError, match=reason):
        parse_row(raw | change, DataOptions(kind="labelled", default_label=True))


@pytest.mark.parametrize(
    ("raw", "change"),
    [
        (ORCA2, {"rating": 9}),
        (MAGPIE, {"responses": [GOOD, BAD], "rewards_armorm": [1, 2]}),
        (MAGPIE, {"responses": [[GOOD], [BAD]], "rewards_armorm": [{"score": 1}, {"score": 2}]}),
    ],
)
def test_no_value_of_a_known_set_is_a_traceback(raw, change):
    with pytest.raises(
        RowError, match=r"^(a field is not what Magpie DPO has there|rating is of type int; it must be)"
    ):
        parse_row(raw | change, DataOptions())


def test_conversations_beside_a_prompt_and_a_question_are_our_own_form():
    """Mixtures such as orpo-dpo-mix-40k carry the question twice beside whole conversations, some with a system."""
    chosen, rejected = ([{"role": "user", "content": ASK}, one] for one in (YES, NO))
    raw = {"source": "x", "chosen": chosen, "rejected": rejected, "prompt": ASK}
    for question in (ASK, None):
        row = parse_row({**raw, "question": question}, DataOptions())
        assert (row.read_as, row.prompt) == ("", [{"role": "user", "content": ASK}])
        assert row.completions == {"chosen": [YES], "rejected": [NO]}
    assert schema_of({"question": ASK, **TEXTS}).name == "orca_dpo_pairs"


def test_every_schema_has_a_broken_row():
    named = {schema_of(raw).name for raw, *_ in BROKEN}
    assert named == SCHEMAS.keys() - {"pku_saferlhf_safer"}


def test_own_columns_go_before_those_of_the_set():
    row = parse_row({**HELPSTEER3, "weight": 2, "margin": 0.5, "group": "mine"}, DataOptions())
    assert row.columns == {"weight": 2.0, "margin": 0.5, "group": "mine"}
    assert not row.lent_group


def test_fields_that_a_set_leaves_out_are_named(tokenizer):
    found = prepare([HELPSTEER3], tokenizer, progress=False).report.notes
    assert found == ["rows: read as HelpSteer3", "fields that nothing reads: individual_preference, language"]


def test_the_format_of_a_source_forces_it(tokenizer, write):
    path = str(write([PKU]))
    chosen = []
    for form in (None, "pku_saferlhf_safer"):
        ids = prepare({"path": path, "format": form}, tokenizer, progress=False).dataset[0]["chosen_ids"]
        chosen.append(tokenizer.decode(ids))
    assert chosen == [f"{GOOD}<|im_end|>\n", f"{BAD}<|im_end|>\n"]
    with pytest.raises(ValueError, match=r"rows.jsonl:1: overall_preference, response1, response2 are missing, "):
        prepare({"path": str(write([{"context": TURNS, **TEXTS}])), "format": "helpsteer3"}, tokenizer, progress=False)


def test_unknown_formats_are_refused_with_the_near_one():
    with pytest.raises(ValueError, match=r"x: format is 'helpster3', allowed are own, .*; did you mean helpsteer3\?"):
        Source("x", format="helpster3")
    assert FORMATS[0] == "own"


def test_two_schemas_that_fit_are_both_named():
    both = {**WEBGPT, **HELPSTEER3}
    reason = r"the fields fit HelpSteer3 \(helpsteer3\) and WebGPT comparisons \(webgpt\): say which with format:"
    with pytest.raises(RowError, match=reason):
        parse_row(both, DataOptions())
    assert parse_row(both, DataOptions(), "webgpt").columns == scores(0.5, -0.5)


def test_own_forms_stay_own_forms():
    raw = {"id": 1, "source": "x", "prompt": ASK, **TEXTS}
    assert schema_of(raw) is None  # texts: Tulu's are conversations
    assert schema_of(TULU, "own") is None
    row = parse_row(TULU, DataOptions(), "own")
    assert (row.read_as, row.columns, sorted(row.unread)) == ("", {}, ["id", "source"])


def test_rows_in_no_form_say_what_was_found_and_what_is_near():
    raw = {"context": TURNS, "response1": GOOD, "overall_preference": 1}
    reason = (
        "chosen and rejected are missing; found the fields context, overall_preference, response1; "
        r"near formats: helpsteer3 \(lacking response2\)"
    )
    with pytest.raises(RowError, match=reason):
        parse_row(raw, DataOptions())
    graded = "graded answers need one field each of prompt, problem, question, instruction; of "
    with pytest.raises(RowError, match=graded):
        parse_row(raw, DataOptions(), "graded")
    with pytest.raises(RowError, match="completion is missing; found the fields context, "):
        parse_row(raw, DataOptions(kind="labelled"))
    assert near_formats({"x": 1}) == "; found the fields x"


def test_null_fields_of_other_sets_do_not_hide_a_schema():
    others = dict.fromkeys(("question", "answer_0", "answer_1", "score_0", "score_1"))
    assert schema_of({**HELPSTEER3, **others}).name == "helpsteer3"
    assert schema_of({**HELPSTEER3, "response1": None}).name == "helpsteer3"


def test_a_group_that_a_set_lends_asks_nothing_of_other_rows(tokenizer, write):
    mine = {"prompt": TURNS, "chosen": [YES], "rejected": [NO]}
    mixture = [str(write([HELPSTEER3], "a.jsonl")), str(write([mine], "b.jsonl"))]
    found = prepare(mixture, tokenizer, progress=False)
    assert found.report.rows_kept == 2
    assert "group" not in found.dataset.column_names
    assert "only 1 of 2 rows have group, which the loss does not need: it is left out" in found.report.notes
    with pytest.raises(ValueError, match=r"b.jsonl:1: group is missing, and the loss needs it"):
        prepare(mixture, tokenizer, DataOptions(columns=("group",)), progress=False)
    with pytest.raises(ValueError, match=r"b.jsonl:1: group is missing, and other rows have one"):
        prepare([str(write([{**HELPSTEER3, "group": "mine"}], "a.jsonl")), mixture[1]], tokenizer, progress=False)


def test_every_format_has_its_row_in_the_docs():
    page = (Path(__file__).parents[2] / "docs" / "data-formats.md").read_text(encoding="utf-8")
    named = {
        name for line in page.splitlines() if line.startswith("| `") for name in line.split("|")[1].split("`")[1::2]
    }
    assert named >= SCHEMAS.keys()
