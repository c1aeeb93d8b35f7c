"""Tasks of lm-evaluation-harness, by the real package, on a task of our own."""

import json
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignlab.cli import main

pytestmark = pytest.mark.slow
TASK = """
task: which_word
dataset_path: json
dataset_kwargs: {data_files: {test: "{file}"}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
metric_list:
  - {metric: acc}
"""
QUESTIONS = ["a good", "the bad", "one more", "no more"]
CHOICES = [" answer", " word"]


@pytest.fixture
def tasks(tmp_path):
    rows = [{"question": text, "choices": CHOICES, "answer": index % 2} for index, text in enumerate(QUESTIONS)]
    file = tmp_path / "documents.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "which_word.yaml").write_text(TASK.replace("{file}", str(file)), encoding="utf-8")
    return folder


def accuracy(model_path):
    """What the task measures, by hand: the likelier continuation of each question."""
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path).eval()
    right = 0
    for index, question in enumerate(QUESTIONS):
        scores = []
        for choice in CHOICES:
            context, whole = (tokenizer(text)["input_ids"] for text in (question, question + choice))
            with torch.no_grad():
                logps = model(torch.tensor([whole])).logits.float().log_softmax(-1)[0]
            scores.append(sum(logps[place - 1, whole[place]].item() for place in range(len(context), len(whole))))
        right += scores.index(max(scores)) == index % 2
    return right / len(QUESTIONS)


def test_a_task_of_our_own(tmp_path, tasks, model_path, capsys):
    output = tmp_path / "eval.json"
    words = ["eval", str(model_path), "--lm-eval", "which_word", "--lm-eval-tasks", str(tasks), "--output", str(output)]
    assert main(words) == 0
    found = json.loads(output.read_text())["tasks"]["which_word"]
    assert found["acc"] == accuracy(model_path)
    assert found["documents"] == 4
    assert "which_word" in capsys.readouterr().out


def test_what_is_not_there_is_named(tmp_path, tasks, model_path, capsys, monkeypatch):
    assert main(["eval", str(model_path), "--lm-eval", "no_such_task , no_other"]) == 2
    assert "--lm-eval: there is no task 'no_such_task', 'no_other'" in capsys.readouterr().err
    assert main(["eval", str(model_path)]) == 2
    assert "--data: expected held-out pairs, or --lm-eval" in capsys.readouterr().err
    assert main(["eval", str(model_path), "--lm-eval", "a", "--lm-eval-tasks", str(tmp_path / "none")]) == 2
    assert "--lm-eval-tasks: " in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    assert main(["eval", str(model_path), "--lm-eval", "which_word", "--lm-eval-tasks", str(tasks)]) == 2
    assert "pip install 'alignlab[eval]'" in capsys.readouterr().err
