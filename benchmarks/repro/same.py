"""What changes nothing: reference caching and packing, on full weights and on a 4-bit base with an adapter.

    python benchmarks/repro/same.py [--quick] [--seeds 5] [--output runs/repro]

Same start, same data, same order: every way to get the reference's scores and to lay rows out is the same arithmetic,
so that the final metrics differ by rounding only. The 4-bit base itself is another model: how far it moves is measured
too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import results
import tiny
from world import Row, World

PAIRS, STEPS, PROMPTS = 512, 32, 256
BASES = {  # quantised, adapter, how the reference is scored, layouts
    "full": (False, False, ("cached", "live"), ("padded", "packed")),
    "4-bit": (True, True, ("cached", "live"), ("padded", "packed")),
    "adapter": (False, True, ("cached",), ("padded",)),
}
FIGURES = ("eval_loss", "eval_margin", "eval_accuracy", "reward_0", "kl")
LOSS = {"name": "dpo", "beta": 0.3}


def plan() -> list[tuple[str, str, str]]:
    """Returns the runs of a seed: (base, reference, layout)."""
    return [(base, r, layout) for base, (_, _, ways, layouts) in BASES.items() for r in ways for layout in layouts]


def loaded(seed: int, work: Path, quick: bool, *, quantised: bool) -> Any:
    """Returns a fresh copy of the supervised start, its linear layers in four bits where asked for."""
    from alignlab.config.options import ModelOptions
    from alignlab.models.load import load_model

    tiny.start(seed, work, quick=quick)
    return load_model(ModelOptions(name_or_path=str(work / f"start_{seed}"), load_in_4bit=quantised))


def train(base: str, reference: str, layout: str, seed: int, work: Path, quick: bool) -> Row:
    """Trains one way; returns the metrics on held-out pairs, and what sampled answers are like."""
    from peft import LoraConfig

    quantised, adapter, _, _ = BASES[base]
    world, original = World(seed), tiny.start(seed, work, quick=quick)
    count, steps = (64, 2) if quick else (PAIRS, STEPS)
    prompts = world.prompts(PROMPTS if not quick else 32, "test")
    model = loaded(seed, work, quick, quantised=quantised)
    moved = tiny.measure(model, original, world, prompts)["kl"] if (reference, layout) == ("cached", "padded") else 0.0
    peft = LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM") if adapter else None
    trainer = tiny.fit(
        model,
        world.pairs(count),
        LOSS,
        seed,
        work,
        steps,
        peft_config=peft,
        eval_rows=world.pairs(256 if not quick else 32, "heldout"),
        reference="adapter_off" if adapter and reference == "live" else reference,
        layout=layout,
        learning_rate=3e-3 if adapter else 1e-3,
    )
    metrics = trainer.evaluate()
    return {
        "eval_loss": metrics["eval_loss"],
        "eval_margin": metrics["eval_rewards/margins"],
        "eval_accuracy": metrics["eval_rewards/accuracies"],
        **tiny.measure(trainer.model, original, world, prompts),
        "quantisation_kl": moved,
    }


def main(words: Sequence[str] | None = None) -> results.Runs:
    chosen = results.options(__doc__, words)
    tiny.quiet()
    runs = results.Runs(chosen.output / "repro_same.csv", ("base", "reference", "layout", "seed"))
    for seed in range(chosen.seeds):
        for base, reference, layout in plan():
            key = {"base": base, "reference": reference, "layout": layout, "seed": seed}
            runs.run(lambda key=key: train(**key, work=chosen.output / "work", quick=chosen.quick), **key)
    conclude(runs, chosen)
    return runs


def conclude(runs: results.Runs, chosen: argparse.Namespace) -> None:
    """Writes, for each way, the largest difference from the plainest one, and how far four bits move the results."""
    claims = results.Claims()
    for base, reference, layout in plan():
        plain = ("live", "padded") if base != "adapter" else ("cached", "padded")
        if (reference, layout) == plain:
            continue
        for figure in FIGURES:
            pairs = zip(
                runs.pick(base=base, reference=reference, layout=layout),
                runs.pick(base=base, reference=plain[0], layout=plain[1]),
                strict=True,
            )
            differences = [abs(a[figure] - b[figure]) for a, b in pairs]
            words = f"{base}, {reference}, {layout}: |difference of {figure}| from live, padded"
            claims.note(f"{words}; largest {max(differences):.2g}", differences)
    for figure in FIGURES:
        rows = (runs.pick(base=base, reference="cached", layout="padded") for base in ("4-bit", "adapter"))
        claims.note(
            f"{figure} on the 4-bit base less that on the full one",
            [a[figure] - b[figure] for a, b in zip(*rows, strict=True)],
        )
    moved = [row["quantisation_kl"] for row in runs.pick(base="4-bit", reference="cached", layout="padded")]
    claims.note("KL(4-bit start || start), nats an answer", moved)
    claims.write(chosen.output / "repro_same_claims.csv")


if __name__ == "__main__":
    main()
