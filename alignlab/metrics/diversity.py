"""How much texts differ from one another: distinct-n and self-BLEU."""

import datasets
import evaluate

from alignlab.metrics import formulas

DESCRIPTION = formulas.diversity.__doc__


class Diversity(evaluate.Metric):  # type: ignore[misc]
    """``formulas.diversity`` as a metric of `evaluate`."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description="texts; groups: figures are taken within each; one group for all compares all",
            features=datasets.Features(
                {
                    "texts": datasets.Value("string"),
                    "groups": datasets.Value("string"),
                }
            ),
        )

    def _compute(self, texts: list[str], groups: list[str]) -> formulas.Figures:
        return formulas.diversity(texts, groups)
