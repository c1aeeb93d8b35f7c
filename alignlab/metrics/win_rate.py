"""Share of comparisons with a reference completion that are won, ties counting half."""

import datasets
import evaluate

from alignlab.metrics import formulas

DESCRIPTION = formulas.win_rate.__doc__


class WinRate(evaluate.Metric):  # type: ignore[misc]
    """``formulas.win_rate`` as a metric of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description="outcomes: 1 won, 0.5 tied, 0 lost; resamples, seed: of the bootstrap interval",
            features=datasets.Features(
                {
                    "outcomes": datasets.Value("float64"),
                }
            ),
        )

    def _compute(self, outcomes: list[float], resamples: int = 1000, seed: int = 0) -> formulas.Figures:
        return formulas.win_rate(outcomes, resamples, seed)
