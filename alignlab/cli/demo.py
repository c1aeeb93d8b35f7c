"""The demo: a small language model, made from nothing on the spot, learns a preference whose true reward is known."""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .console import quiet_libraries
from .demo_rounds import one_thread, rounds_of_the_demo
from .parsers import add_reader, with_examples

# torch and all that needs it is imported inside functions, so that `alignlab demo --help` comes at once.

DEMONSTRATIONS, PAIRS, HELD_OUT_PAIRS, HELD_OUT_PROMPTS = 8192, 4096, 512, 128

# What the losses of `--loss` are given; any other loss runs with its defaults.
RECIPES: dict[str, dict[str, Any]] = {
    "dpo": {"beta": 1.0},
    "ipo": {"beta": 2.5},  # of mean log-ratios: the margin to reach is 1 / (2 beta) nats a token
    "kto": {"beta": 1.0},
    "orpo": {"beta": 1.0},
    "tdpo": {"beta": 1.0},
    "modpo": {"beta": 1.0, "weights": [0.6, 0.2, 0.2]},
    "group_robust": {"base": {"name": "dpo", "beta": 1.0}, "step_size": 0.1},
}

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}<|end|>{% endgeneration %}"
    "{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def add_to(commands: Any) -> None:
    """Names the command; its options are below."""
    add_reader(commands, "demo", "a small model learns a preference, from nothing, in minutes")


def main(words: Sequence[str] = ()) -> None:
    """Runs the demo: rows and an untrained model, a supervised start, preference training, and what came of it."""
    options = _parser().parse_args(words)
    if options.rounds:
        quiet_libraries()  # a loop loads its models many times
    with one_thread() if options.rounds else nullcontext():
        _run(options)


def _run(options: argparse.Namespace) -> None:
    folder = Path(options.output_dir)
    say = _console().print
    say("[bold]1/4  Making rows, a tokenizer and a model with random weights[/]")
    prepare(folder, options.seed)
    if options.prepare_only:
        say(f"Now: alignlab train demo_sft.yaml; alignlab train demo.yaml (files are in {folder})")
        return
    say("\n[bold]2/4  Supervised start: the model learns to answer as people do, well and badly[/]")
    sft = supervised_start(folder, options.seed)
    if options.rounds:
        rounds_of_the_demo(folder, sft, options.rounds, options.seed)
        return
    say(f"\n[bold]3/4  Preference training with {options.loss}: it learns which answers are better[/]")
    trained = preference_training(folder, options.loss, options.seed)
    say("\n[bold]4/4  Held-out questions, before and after[/]")
    before, after = evaluate(sft, sft, options.seed), evaluate(trained, sft, options.seed)
    report(before, replace(after, accuracy_over_reference=_trainers_accuracy(trained)), options.loss)
    say(f"\nThe trained model: [bold]{trained}[/]   AutoModelForCausalLM.from_pretrained({str(trained)!r}) loads it.")
    say(f"Rows, models, logs and configs of this run: {folder}")


def _parser() -> argparse.ArgumentParser:
    shown = with_examples(
        "alignlab demo", "alignlab demo --loss ipo --output-dir runs/demo-ipo", "alignlab demo --rounds 3"
    )
    parser = argparse.ArgumentParser(prog="alignlab demo", description=__doc__, allow_abbrev=False, **shown)
    parser.add_argument("--output-dir", default="runs/demo", help="what the demo wrote there before is replaced")
    parser.add_argument("--seed", type=int, default=0, help="of rows, weights and training (%(default)s)")
    parser.add_argument("--loss", default="dpo", metavar="NAME", help="any loss that `alignlab losses` lists")
    parser.add_argument("--rounds", type=int, default=0, metavar="N", help="sample, judge, pair and train, N times")
    parser.add_argument("--prepare-only", action="store_true", help="write rows and the untrained model, then stop")
    return parser


# ---- rows, tokenizer, model --------------------------------------------------------------------------------------


def prepare(folder: Path, seed: int) -> None:
    """Writes demonstrations.jsonl, train.jsonl, heldout.jsonl and the untrained model.

    Raises:
        ValueError: the folder holds something, and it is not an earlier demo.
    """
    from alignlab.data import toy

    if folder.exists() and any(folder.iterdir()) and not (folder / "demonstrations.jsonl").is_file():
        raise ValueError(f"--output-dir: {folder} is neither empty nor an earlier demo's; choose another one")
    demonstrations = toy.demonstrations(DEMONSTRATIONS, seed)
    _write(folder / "demonstrations.jsonl", demonstrations)
    _write(folder / "train.jsonl", toy.pairs(PAIRS, seed))
    _write(folder / "heldout.jsonl", toy.pairs(HELD_OUT_PAIRS, seed, "heldout"))
    shutil.rmtree(folder / "untrained", ignore_errors=True)
    tokenizer = build_tokenizer(turn["content"] for row in demonstrations for turn in row["prompt"] + row["completion"])
    tokenizer.save_pretrained(folder / "untrained")
    build_model(tokenizer, seed).save_pretrained(folder / "untrained")


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def build_tokenizer(texts: Iterable[str]) -> Any:
    """Trains a byte-level BPE tokenizer of at most 1024 tokens, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")
    wrapped.chat_template = CHAT_TEMPLATE
    return wrapped


def build_model(tokenizer: Any, seed: int) -> Any:
    """Returns a Llama of four layers and 1.2M parameters, with random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=256,
            initializer_range=0.06,  # so narrow a model learns faster from larger weights than the usual 0.02
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


# ---- training: what `alignlab train demo_sft.yaml` and `alignlab train demo.yaml` do ------------------------------


def supervised_start(folder: Path, seed: int) -> Path:
    """Trains the untrained model on the demonstrations; returns the folder of the result."""
    return _train("demo_sft", folder, {"seed": seed})


def preference_training(folder: Path, loss: str, seed: int, **changes: Any) -> Path:
    """Trains the supervised start on the pairs, perhaps with other keys of the config; returns the result's folder."""
    options = {"name": loss, **RECIPES.get(loss, {})}
    return _train("demo", folder, {"loss": options, "output_dir": f"runs/demo/{loss}", "seed": seed, **changes})


def _train(config: str, folder: Path, changes: dict[str, Any]) -> Path:
    """Trains as a shipped config says, in ``folder`` rather than runs/demo."""
    from alignlab.config import find_config, load_config, read_yaml
    from alignlab.run import train

    text = json.dumps({**read_yaml(find_config(config)), **changes})
    values = json.loads(text.replace("runs/demo", str(folder)))
    shutil.rmtree(values["output_dir"], ignore_errors=True)  # an earlier demo's
    return train(load_config(values))


# ---- evaluation --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figures:
    """What one model does on held-out questions.

    Attributes:
        accuracy: share of pairs whose better answer has the higher log-probability, summed over its tokens.
        accuracy_over_reference: share whose better answer gained more log-probability since the supervised start.
        greedy, sampled: mean true reward of greedy and of sampled answers.
        kl: KL(model || supervised start) over whole answers in nats, exact at each token, mean over sampled answers.
        answers: (question, greedy answer, its true reward).
    """

    accuracy: float
    greedy: float
    sampled: float
    kl: float
    answers: list[tuple[str, str, float]]
    accuracy_over_reference: float | None = None


def evaluate(path: Path, reference: Path, seed: int) -> Figures:
    """Measures the model in ``path`` on held-out pairs and questions."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from alignlab.data import toy
    from alignlab.evaluation import sequence_kl
    from alignlab.sampling import generate, texts

    model, other = (AutoModelForCausalLM.from_pretrained(one) for one in (path, reference))
    tokenizer = AutoTokenizer.from_pretrained(path)
    questions = toy.prompts(HELD_OUT_PROMPTS, seed)
    conversations = [toy.user(question) for question in questions]
    greedy = texts(tokenizer, generate(model, tokenizer, conversations))
    samples = generate(model, tokenizer, conversations, sample=True, seed=seed)
    scores = [toy.reward(*both) for both in zip(questions, greedy, strict=True)]
    sampled = [toy.reward(*both) for both in zip(questions, texts(tokenizer, samples), strict=True)]
    return Figures(
        accuracy=pair_accuracy(model, tokenizer, toy.pairs(HELD_OUT_PAIRS, seed, "heldout")),
        greedy=sum(scores) / len(scores),
        sampled=sum(sampled) / len(sampled),
        kl=float(sequence_kl(model, other, samples, tokenizer.pad_token_id).mean()),
        answers=list(zip(questions, greedy, scores, strict=True)),
    )


def pair_accuracy(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> float:
    """Returns the share of pairs whose chosen completion is likelier under the model than the rejected one."""
    from alignlab.data import prepare as tokenise
    from alignlab.data import sequence
    from alignlab.evaluation import log_likelihoods

    pairs = list(tokenise(rows, tokenizer, progress=False).dataset)
    chosen, rejected = (
        log_likelihoods(model, [sequence(pair, field) for pair in pairs], tokenizer.pad_token_id)
        for field in ("chosen", "rejected")
    )
    return float((chosen > rejected).float().mean())


def _trainers_accuracy(folder: Path) -> float | None:
    """Returns what the trainer measured, under the name that TRL's users know."""
    metrics: dict[str, float] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return metrics.get("eval_rewards/accuracies")


# ---- report ------------------------------------------------------------------------------------------------------


def report(before: Figures, after: Figures, loss: str) -> None:
    """Prints the table, and three answers before and after."""
    from rich.table import Table

    def share(value: float | None) -> str:
        return "-" if value is None else f"{value:.1%}"

    table = Table("on held-out questions", "supervised start", f"after {loss}", title="What was learnt")
    for name, one, other in (
        ("preference accuracy: better answer likelier", share(before.accuracy), share(after.accuracy)),
        ("rewards/accuracies: it gained more than the worse one", "-", share(after.accuracy_over_reference)),
        ("true reward of greedy answers (best 2)", f"{before.greedy:+.2f}", f"{after.greedy:+.2f}"),
        ("true reward of sampled answers", f"{before.sampled:+.2f}", f"{after.sampled:+.2f}"),
        ("KL to the supervised start, nats an answer", f"{before.kl:.2f}", f"{after.kl:.2f}"),
    ):
        table.add_row(name, one, other)
    console = _console()
    console.print(table)
    for (question, was, low), (_, now, high) in list(zip(before.answers, after.answers, strict=True))[:3]:
        console.print(f"\n[bold]{question}[/]", f"  before {low:+.1f}  {was}", f"  after  {high:+.1f}  {now}", sep="\n")


def _console() -> Any:
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False)
