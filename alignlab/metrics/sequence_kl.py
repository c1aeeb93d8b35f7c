"""KL divergence of whole answers to the reference, sampled and exact."""

import datasets
import evaluate

from alignlab.metrics import formulas

DESCRIPTION = formulas.sequence_kl.__doc__


class SequenceKL(evaluate.Metric):  # type: ignore[misc]
    """``formulas.sequence_kl`` as a metric of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description="log_ratios: at each token of each answer; token_kl: the exact KL there, or none",
            features=datasets.Features({"log_ratios": datasets.Sequence(datasets.Value("float64"))}),
        )

    def _compute(self, log_ratios: list[list[float]], token_kl: list[list[float]] | None = None) -> formulas.Figures:
        return formulas.sequence_kl(log_ratios, token_kl)
