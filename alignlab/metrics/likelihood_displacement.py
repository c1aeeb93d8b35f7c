"""Whether chosen completions fell along with the rejected ones."""

import datasets
import evaluate

from alignlab.metrics import formulas

DESCRIPTION = formulas.likelihood_displacement.__doc__


class LikelihoodDisplacement(evaluate.Metric):  # type: ignore[misc]
    """``formulas.likelihood_displacement`` as a metric of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description="chosen, ref_chosen, rejected, ref_rejected: log-probabilities of each pair",
            features=datasets.Features(
                {
                    "chosen": datasets.Value("float64"),
                    "ref_chosen": datasets.Value("float64"),
                    "rejected": datasets.Value("float64"),
                    "ref_rejected": datasets.Value("float64"),
                }
            ),
        )

    def _compute(
        self, chosen: list[float], ref_chosen: list[float], rejected: list[float], ref_rejected: list[float]
    ) -> formulas.Figures:
        return formulas.likelihood_displacement(chosen, ref_chosen, rejected, ref_rejected)
