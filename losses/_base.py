"""What every loss is given, what it returns, and what it may declare that it needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from ._returned import check_returned
from ._scored import Scored

Totals = dict[str, Tensor]
Metrics = dict[str, tuple[Tensor, Tensor]]


@dataclass(eq=False)
class Pairs:
    """N preference pairs.

    Attributes:
        chosen, rejected: the two completions of each prompt.
        gold: a third completion of each prompt, for losses that need one.
        online: an answer to each prompt that the policy has drawn in this step, for losses that need one.
        group: ``[N]`` int64, index of the row's group in ``Facts.groups``.
        weight: ``[N]`` float, weight of the row. The trainer multiplies the row's loss by it; a loss reads it
            only where its totals must be weighted as the rows are.
        margin: ``[N]`` float, by how much the chosen completion is better.
        score_chosen, score_rejected: ``[N]`` float, scalar quality of each completion.
    """

    chosen: Scored
    rejected: Scored
    gold: Scored | None = None
    group: Tensor | None = None
    weight: Tensor | None = None
    margin: Tensor | None = None
    score_chosen: Tensor | None = None
    score_rejected: Tensor | None = None
    online: Scored | None = None

    def __len__(self) -> int:
        return self.chosen.logps.shape[0]


@dataclass(eq=False)
class Labelled:
    """N single completions, each desirable or not.

    Attributes:
        completions: the completions.
        desirable: ``[N]`` bool.
        mismatched: the completion of another prompt under this row's prompt, scored without gradient,
            or None where the totals already hold what the loss draws from it.
        group, weight: as in ``Pairs``.
    """

    completions: Scored
    desirable: Tensor
    mismatched: Scored | None = None
    group: Tensor | None = None
    weight: Tensor | None = None

    def __len__(self) -> int:
        return self.completions.logps.shape[0]


@dataclass(eq=False)
class Listed:
    """N lists, each of up to K completions of one prompt.

    A list of fewer than K completions has holes, anywhere: a hole is a completion that has no tokens. What ``scores``
    holds there, NaN included, changes nothing, and neither does the order of a list's completions.

    Attributes:
        completions: scores of ``[N, K, T]`` tokens; ``prompt_logps`` and ``prompt_mask`` are ``[N, P]``, once a list.
        scores: ``[N, K]`` float, how good each completion is, higher is better; equal ones are tied.
        group, weight: as in ``Pairs``.
    """

    completions: Scored
    scores: Tensor
    group: Tensor | None = None
    weight: Tensor | None = None

    def __len__(self) -> int:
        return self.completions.logps.shape[0]

    @property
    def present(self) -> Tensor:
        """``[N, K]`` bool, False at holes."""
        return self.completions.mask.any(-1)


Batch = Pairs | Labelled | Listed


def pairs_of(batch: Batch) -> Pairs:
    """Returns ``batch`` if it holds pairs, else raises ValueError."""
    if not isinstance(batch, Pairs):
        raise ValueError(f"this loss compares pairs, and was given {type(batch).__name__}")
    return batch


def labelled_of(batch: Batch) -> Labelled:
    """Returns ``batch`` if it holds labelled completions, else raises ValueError."""
    if not isinstance(batch, Labelled):
        raise ValueError(f"this loss reads labelled completions, and was given {type(batch).__name__}")
    return batch


def lists_of(batch: Batch) -> Listed:
    """Returns ``batch`` if it holds lists, else raises ValueError."""
    if not isinstance(batch, Listed):
        raise ValueError(f"this loss ranks lists, and was given {type(batch).__name__}")
    return batch


@dataclass(eq=False)
class LossOutput:
    """What a loss returns.

    Attributes:
        loss: ``[N]``, differentiable; its mean over the global batch of the optimiser step is the objective.
        chosen_rewards, rejected_rewards: ``[N]`` detached implicit rewards of pairs.
        rewards: detached implicit rewards of labelled completions, ``[N]``, or of lists, ``[N, K]``; any at holes.
        metrics: name -> (sum, count), both 0-dim and detached; the trainer adds both over rows, ranks and steps.
    """

    loss: Tensor
    chosen_rewards: Tensor | None = None
    rejected_rewards: Tensor | None = None
    rewards: Tensor | None = None
    metrics: Metrics = field(default_factory=dict)


# What a loss may need of a language model's head, or of a frozen one beside it.
_LOG_PROBABILITIES = ("logps", "ref_logps", "kl", "mismatched", "prompt_logps", "second_moment", "scorers", "online")


@dataclass(frozen=True)
class Needs:
    """What a loss must be given; the trainer reads this and never asks a loss its name.

    Attributes:
        data: "pairs", "labelled" or "lists".
        ref_logps: the reference's per-token log-probabilities.
        kl: KL(reference || policy) at each position over the whole vocabulary; implies a live reference.
        logps: the policy's own log-probabilities; False for losses that read ``values`` instead.
        values: how many numbers a value head must give each completion; a reward model has one. The model is then a
            sequence classifier and has no log-probabilities.
        mismatched: for labelled losses, the completion of another prompt.
        prompt_logps: log-probabilities of the prompt's tokens.
        second_moment: log sum of squared policy probabilities at each position.
        gold: a third completion.
        online: of pairs, an answer that the policy draws to each prompt in every step; implies a live reference.
        rejected: the rejected completion; without it a training step scores the chosen one alone, and the batch's
            rejected ones have no tokens.
        columns: columns that every row must have ("group", "margin", "score_chosen", "rewards", ...).
        rewards: how many explicit rewards each completion must carry.
        scorers: names of other frozen models whose log-probabilities are needed.
        coupled: over what the rows of a loss are coupled. "none": not at all. "step": over the optimiser step,
            through ``totals``. "micro_batch": over the micro-batch of one rank only.
        totals_from: where ``totals`` reads from: "masks" (known before any forward), "mismatched" (scored
            without gradient), or "scores" (of the completions themselves).
        totals_in_evaluation: whether ``forward`` reads totals in evaluation too, where they are summed over the
            whole set; False spares a pass where state alone is used.
    """

    data: Literal["pairs", "labelled", "lists"] = "pairs"
    ref_logps: bool = False
    kl: bool = False
    logps: bool = True
    values: int = 0
    mismatched: bool = False
    prompt_logps: bool = False
    second_moment: bool = False
    gold: bool = False
    online: bool = False
    rejected: bool = True
    columns: tuple[str, ...] = ()
    rewards: int = 0
    scorers: tuple[str, ...] = ()
    coupled: Literal["none", "step", "micro_batch"] = "none"
    totals_from: Literal["masks", "mismatched", "scores"] = "masks"
    totals_in_evaluation: bool = True

    def __post_init__(self) -> None:
        scored = [name for name in _LOG_PROBABILITIES if getattr(self, name)]
        if self.values and scored:
            raise ValueError(
                f"needs.values: a model has a value head or a language model's, not both: {self.values} values go "
                f"without {', '.join(scored)}"
            )
        if self.values < 0 or not (self.values or self.logps):
            raise ValueError(f"needs: expected logps, or at least one of values, found values={self.values}")

    @property
    def reference(self) -> bool:
        """True if anything of the reference model is needed."""
        return self.ref_logps or self.kl


@dataclass(frozen=True)
class Facts:
    """What is known of the training data once it is filtered.

    Attributes:
        rows: number of rows.
        groups: name -> number of rows, in the order of the group indices; empty where rows have no group.
        desirable, undesirable: label counts of labelled data.
        objectives: names of the explicit rewards that rows carry, in order.
        ranges: column of numbers that the loss reads (``scores`` of lists) -> the least and the largest, over the rows
            that are trained on and those held out; ``score_gap`` is ``score_chosen - score_rejected`` of each pair.
    """

    rows: int
    groups: Mapping[str, int] = field(default_factory=dict)
    desirable: int = 0
    undesirable: int = 0
    objectives: tuple[str, ...] = ()
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)


class BindError(ValueError):
    """What keeps a loss from being trained on the data, under the dotted key of the loss that says so."""

    def __init__(self, key: str, found: str) -> None:
        super().__init__(f"{key}: {found}")
        self.key, self.found = key, found


def bind(key: str, loss: Loss, facts: Facts) -> None:
    """Tells the loss that stands at ``key`` of the training data; a loss that holds others tells them likewise.

    Raises:
        BindError: it cannot be trained on; names the key, nested ones with all that they stand in.
    """
    try:
        loss.bind(facts)
    except BindError as error:
        raise BindError(f"{key}.{error.key}", error.found) from None
    except ValueError as error:
        raise BindError(key, str(error)) from error


class Loss(nn.Module):
    """A loss over a batch of scored completions.

    Subclasses have an explicit, typed and validated ``__init__``, set ``self.needs`` there (or as a class
    attribute), and implement ``forward``. A loss sees tensors only: never a model, a file or a collective.

    Attributes:
        needs: what the loss must be given; may depend on the options.
        stops_gradient: fields of ``Scored`` whose gradient the formula stops on purpose somewhere, so that finite
            differences and autograd are meant to differ there; ``_contract.check`` does not compare them.
        aliases: other names of this loss in configs, each with the options it stands for.
    """

    needs: Needs = Needs()
    stops_gradient: tuple[str, ...] = ()
    aliases: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def __call__(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        """Returns what ``forward`` returns, checked.

        Raises:
            ValueError: it is not of the right type, shape, device or has no gradient; names file, line and class.
        """
        out: LossOutput = super().__call__(batch, totals)
        like = (batch.chosen if isinstance(batch, Pairs) else batch.completions).leading
        check_returned(self, out, like, output_type=LossOutput)
        return out

    def bind(self, facts: Facts) -> None:
        """Takes note of the training data, once, after it is filtered. Raises ValueError if it cannot be trained on."""

    def totals(self, batch: Batch) -> Totals:
        """Returns detached tensors of fixed shape that add over rows: zeros for a batch of no rows."""
        return {}

    def forward(self, batch: Batch, totals: Totals | None = None) -> LossOutput:
        """Returns the loss of each row. ``totals`` are summed over the optimiser step; None means: this batch alone.

        Pure: no state moves here.
        """
        raise NotImplementedError

    def update(self, totals: Totals) -> None:
        """Moves state; never called in evaluation.

        Called once per optimiser step, after its forwards, with the totals of the step; where ``needs.coupled`` is
        "micro_batch", once per micro-batch, after its forward, with the totals of that micro-batch.
        """
