"""Writes docs/losses.md from the docstrings of the losses: python docs/make_losses_table.py"""

from pathlib import Path

from alignlab.cli.tables import losses_markdown
from alignlab.losses import describe, names
from alignlab.losses._names import AMBIGUOUS

PAGE = """# Which losses are there?

Made by `python docs/make_losses_table.py` from the docstrings of `losses/`: edit those. `alignlab losses NAME` shows
one loss.

In formulas, L and R are the summed log-probabilities of a completion under policy and reference, n is its number of
tokens, Lbar = L / n; a = L - R of the chosen completion (w), b that of the rejected one (l), z = beta (a - b). The
objective of a step is the mean over its rows. "needs" says what a loss is given: kind of rows, scores, columns, and
over what its rows are coupled. Where `beta` is `null` it is that of the base, 0.1 without one. Of lists, L, R and n are
those of each completion, "better" and "worse" compare their scores, K is the number of completions that a list has.

{table}

## Losses that hold losses

`weighted_sum` adds losses of the same kind of rows, and logs each part as `loss/NAME`. `group_robust` and `group_dro`
weight groups under any base that couples no rows of its own; `modpo`, `odpo`, `r_dpo` and `dpo_margin` shift the margin
of any base that is a function of it; `f_dpo` takes another divergence under any base of z. What does not combine is
refused with the reason: an f-divergence under `kto`, say, since its normaliser cancels only in the difference of two
completions. Any loss takes weights of rows (the column `weight`), and a reference that follows the policy
(`sync_ref_model`, see [trainer.md](trainer.md)).

## Losses of lists

A row of K completions with scores (two or more) is ranked by `plackett_luce`, `softmax_dpo`, `lipo_lambda`, `infonca`,
`nca` and `sppo` (these two with `data: lists`) against a reference, by `rrhf`, `pro` and `mppo` without one, and by any
loss of pairs under `over_pairs`, unless its pairs are coupled. With two completions `plackett_luce`, `softmax_dpo`,
`infonca` at `alpha: 0` and `over_pairs` are DPO to the last digit.

- **The order of a list's completions changes nothing**, and neither does a place that is empty.
- **Ties say nothing**: no loss compares two completions of equal scores. `plackett_luce` and `pro` let each of them win
  against what is strictly worse; where the best are tied, `softmax_dpo`, `rrhf` and `pro` take the mean over them,
  `infonca` and `nca` share their target among them, and `mppo` compares each with the rest.
- **How long a list is** counts in the sums of `plackett_luce` (K - 1 places), `lipo_lambda`, `rrhf`, `pro` and `mppo`,
  as their papers have it, and not in the means of `over_pairs`, `nca`, `sppo`, `softmax_dpo` and `infonca`.
- **Scores** are an order to `plackett_luce`, `softmax_dpo`, `rrhf` and `mppo`; their size counts in `pro`, `infonca`,
  `nca`, `lipo_lambda` (labels in [0, 1]) and `sppo` (probabilities).

## Names that are no loss here

| name | why |
|---|---|
{ambiguous}

## Not integrated

Two methods reach beyond the scores of a batch. Their formulas are in `losses/_beyond.py` and agree with the golden
values; no trainer here runs them, since each would need a way through the trainer that nothing else uses:

- **IFT** (Hua et al. 2024, arXiv:2405.11870) takes the policy's greedy tokens from a first forward, mixes their
  embeddings into the inputs and runs a second forward on the mixture. Scoring here runs on tokens.
- **VAA** (Chen et al. 2025, arXiv:2506.03850) draws each batch from one of two groups with a probability that follows
  the losses, and takes the gradient at weights that a first gradient has moved. Here seed and epoch alone say which
  rows meet in a step, which is what a resumed run and several ranks rely on. Weighting groups by their losses is
  `group_dro`.
"""


def page() -> str:
    """Returns the page."""
    ambiguous = "\n".join(f"| `{name}` | {reason.replace('|', chr(92) + '|')} |" for name, reason in AMBIGUOUS.items())
    return PAGE.format(table=losses_markdown(map(describe, names())), ambiguous=ambiguous)


if __name__ == "__main__":
    Path(__file__).with_name("losses.md").write_text(page(), encoding="utf-8")
