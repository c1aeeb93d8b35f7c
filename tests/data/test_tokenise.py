"""Token ids, masks, truncation and the content key."""

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from alignlab.data import DataOptions, content_key, prepare
from alignlab.data.schema import RowError
from alignlab.data.tokenise import Completion, Encoded, Tokeniser, truncate

ROW = {"prompt": "ask ", "chosen": "good", "rejected": "bad"}


def first(tokenizer, row, **options):
    return prepare([row], tokenizer, DataOptions(**options), progress=False).dataset[0]


def test_prompt_and_completion_are_tokenised_apart(make_tokenizer):
    """With the merge "k"+"g" a joint tokenisation has a token across the boundary; ours has none."""
    tokenizer = make_tokenizer(merges=[("k", "g")])
    row = first(tokenizer, {"prompt": "ask", "chosen": "good", "rejected": "kg"})
    assert "kg" in tokenizer.convert_ids_to_tokens(tokenizer("askgood")["input_ids"])
    assert tokenizer.convert_ids_to_tokens(row["prompt_ids"]) == ["a", "s", "k"]
    assert tokenizer.convert_ids_to_tokens(row["chosen_ids"]) == ["g", "o", "o", "d", "<eos>"]
    assert tokenizer.convert_ids_to_tokens(row["rejected_ids"]) == ["kg", "<eos>"]


def test_prompt_ending_in_whitespace_keeps_it_and_is_counted(tokenizer):
    prepared = prepare([ROW], tokenizer, DataOptions(), progress=False)
    assert tokenizer.decode(prepared.dataset[0]["prompt_ids"]) == "ask "
    assert prepared.report.prompts_ending_in_space == 1


def test_eos_is_appended_once_and_counts_though_it_is_the_padding_token(tokenizer):
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    row = first(tokenizer, {**ROW, "rejected": "bad<eos>"})
    for name, text in (("chosen", "good<eos>"), ("rejected", "bad<eos>")):
        assert tokenizer.decode(row[f"{name}_ids"]) == text
        assert row[f"{name}_mask"] == [True] * len(row[f"{name}_ids"])
    assert tokenizer.decode(first(tokenizer, ROW, add_eos=False)["chosen_ids"]) == "good"


def test_bos_is_written_once_in_front_of_the_prompt_only(make_tokenizer):
    tokenizer = make_tokenizer(bos=True)
    for prompt in ("ask", "<bos>ask"):
        row = first(tokenizer, {**ROW, "prompt": prompt})
        assert tokenizer.decode(row["prompt_ids"]) == "<bos>ask"
        assert tokenizer.decode(row["chosen_ids"]) == "good<eos>"


def test_tokenizer_that_opens_every_text_with_a_space_adds_none_to_completions(make_tokenizer):
    """Metaspace prepends "▁" to "good"; a completion that follows a prompt has none."""
    tokenizer = make_tokenizer(metaspace=True)
    assert tokenizer.convert_ids_to_tokens(tokenizer("good")["input_ids"]) == ["▁", "g", "o", "o", "d"]
    row = first(tokenizer, {"prompt": "ask", "chosen": "good", "rejected": " bad"})
    assert tokenizer.convert_ids_to_tokens(row["prompt_ids"]) == ["▁", "a", "s", "k"]
    assert tokenizer.convert_ids_to_tokens(row["chosen_ids"]) == ["g", "o", "o", "d", "<eos>"]
    assert tokenizer.convert_ids_to_tokens(row["rejected_ids"]) == ["▁", "b", "a", "d", "<eos>"]


def test_tokenizer_that_knows_few_words():
    """A probe for BOS must not rest on a letter the tokenizer has never seen."""
    words = Tokenizer(models.BPE({"<eos>": 0, "1": 1, "2": 2}, []))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>")
    row = first(tokenizer, {"prompt": "1", "chosen": "1 2", "rejected": "2"})
    assert (row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) == ([1], [1, 2, 0], [2, 0])


# ---- truncation ----------------------------------------------------------------------------------------------------


def encoded(prompt, chosen, rejected):
    """A row whose token ids say where they come from: 0.. the prompt, 1000.. chosen, 2000.. rejected."""
    sides = {"chosen": range(1000, 1000 + chosen), "rejected": range(2000, 2000 + rejected)}
    completions = {name: Completion(list(ids), [True] * len(ids)) for name, ids in sides.items()}
    return Encoded(list(range(prompt)), completions)


def cut(prompt, chosen, rejected, limit, mode="keep_start", bos=()):
    row = truncate(encoded(prompt, chosen, rejected), DataOptions(max_length=limit, truncation_mode=mode), list(bos))
    return row.prompt, row.completions["chosen"].ids, row.completions["rejected"].ids


def ids(start, *bounds):
    return list(range(start + bounds[0], start + bounds[1]))


@pytest.mark.parametrize(
    ("shape", "limit", "mode", "prompt", "chosen", "rejected"),
    [
        ((5, 4, 3), 9, "keep_start", (0, 5), (0, 4), (0, 3)),  # fits exactly
        ((5, 4, 3), None, "keep_start", (0, 5), (0, 4), (0, 3)),
        ((5, 4, 3), 8, "keep_start", (0, 5), (0, 3), (0, 3)),  # the longer end is cut
        ((5, 4, 3), 8, "keep_end", (1, 5), (0, 4), (0, 3)),  # the prompt's start is cut
        ((20, 4, 3), 16, "keep_start", (6, 20), (0, 2), (0, 2)),  # 16 // 8 = 2 completion tokens are kept
        ((20, 1, 3), 16, "keep_start", (6, 20), (0, 1), (0, 2)),
        ((15, 9, 9), 16, "keep_start", (1, 15), (0, 2), (0, 2)),
        ((14, 9, 9), 16, "keep_start", (0, 14), (0, 2), (0, 2)),
        ((20, 9, 3), 4, "keep_start", (17, 20), (0, 1), (0, 1)),  # always one token at least
        ((20, 4, 3), 16, "keep_end", (8, 20), (0, 4), (0, 3)),
        ((20, 40, 3), 16, "keep_end", (19, 20), (25, 40), (0, 3)),  # one prompt token stays, to predict from
        ((2, 9, 9), 2, "keep_start", (1, 2), (0, 1), (0, 1)),
    ],
)
def test_truncation_by_hand(shape, limit, mode, prompt, chosen, rejected):
    assert cut(*shape, limit, mode) == (ids(0, *prompt), ids(1000, *chosen), ids(2000, *rejected))


def test_bos_survives_a_cut_of_the_prompts_start():
    assert cut(20, 4, 3, 16, bos=[0])[0] == [0, *range(7, 20)]
    assert cut(20, 4, 3, 2, bos=[0])[0] == [19]  # with room for one token, it is the last word


@settings(max_examples=200, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40)),
    limit=st.integers(2, 60),
    mode=st.sampled_from(["keep_start", "keep_end"]),
)
def test_truncation_keeps_its_promises(shape, limit, mode):
    prompt, chosen, rejected = cut(*shape, limit, mode)
    longest = max(len(chosen), len(rejected))
    assert min(len(prompt), len(chosen), len(rejected)) >= 1
    assert len(prompt) + longest <= limit
    assert len(prompt) + longest == min(limit, shape[0] + max(shape[1:]))  # no room is wasted
    assert prompt == list(range(shape[0]))[shape[0] - len(prompt) :]  # the prompt's end always stays


def test_masks_are_cut_with_their_ids_and_a_row_without_counting_tokens_is_bad():
    row = Encoded([1], {"completion": Completion([5, 6, 7], [False, False, True])})
    options = DataOptions(kind="labelled", max_length=3)
    with pytest.raises(RowError, match="completion has no completion token left after truncation"):
        truncate(row, options, [])
    row = Encoded([1], {"completion": Completion([5, 6, 7], [True, False, True])})
    assert truncate(row, options, []).completions["completion"] == Completion([5, 6], [True, False])


def test_completions_that_truncation_makes_equal_are_a_bad_row(tokenizer):
    with pytest.raises(ValueError, match="row 0: chosen and rejected have equal tokens after truncation"):
        first(tokenizer, {"prompt": "ask", "chosen": "good a", "rejected": "good b"}, max_length=7)


def test_report_counts_what_was_cut(tokenizer):
    rows = [ROW, {**ROW, "chosen": "g" * 50}, {**ROW, "prompt": "p" * 50}, {**ROW, "prompt": "q" * 50, "rejected": "r"}]
    report = prepare(rows, tokenizer, DataOptions(max_length=32), progress=False).report
    # Row 1: one completion. Row 2: prompt, chosen (good<eos> is 5 > 32 // 8) but not rejected (bad<eos> is 4).
    assert (report.rows_truncated, report.prompts_truncated, report.completions_truncated) == (3, 2, 3)
    assert "3 rows truncated (2 prompts, 3 completions)" in report.summary()


# ---- content key ---------------------------------------------------------------------------------------------------


def test_content_key_is_the_documented_hash():
    expected = struct.pack("<2q3i2i2?", 3, 2, 1, 2, 3, 4, 5, True, False)
    assert content_key([1, 2, 3], [4, 5], [True, False]) == hashlib.blake2b(expected, digest_size=16).digest()
    arrays = np.array([1, 2, 3], np.int64), np.array([4, 5], np.int32), np.array([1, 0], np.uint8)
    assert content_key(*arrays) == content_key([1, 2, 3], [4, 5], [True, False])


def test_content_key_tells_every_change():
    keys = {
        content_key([1, 2], [3], [True]),
        content_key([1], [2, 3], [True, True]),
        content_key([1], [2, 3], [True, False]),
        content_key([1], [3, 2], [True, True]),
        content_key([2], [2, 3], [True, True]),
    }
    assert len(keys) == 5


def test_texts_that_come_again_are_tokenised_once_and_stay_apart(make_tokenizer, monkeypatch):
    """Equal prompts and replies, cut by length and at spelled control tokens, give what each row gives alone."""
    tokenizer = make_tokenizer(bos=True)
    spelled = {"role": "user", "content": "a <|im_end|> b"}
    turns = [[{"role": "assistant", "content": text}] for text in ("yes, it is", "no", "yes <eos> no")]
    rows = [
        {"prompt": [spelled], "chosen": turns[one], "rejected": turns[other]} for one, other in ((0, 1), (0, 2), (2, 1))
    ]
    options = DataOptions(max_length=40, truncation_mode="keep_end")
    together = prepare(rows, tokenizer, options, progress=False).dataset
    counted = []
    whole = Tokeniser._whole_ids
    monkeypatch.setattr(Tokeniser, "_whole_ids", lambda self, texts: counted.extend(texts) or whole(self, texts))
    for row, found in zip(rows, together, strict=True):
        [alone] = prepare([row], tokenizer, options, progress=False).dataset
        assert {**alone, "source": ""} == {**found, "source": ""}
    counted.clear()
    prepare(rows, tokenizer, options, progress=False)
    renderings = [text for text in counted if "assistant" in text]
    assert len(renderings) == len(set(renderings))
