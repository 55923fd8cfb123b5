"""An `evaluate` module of classification metrics; `tablet_hf.evaluation.metrics.load_metric` loads it by its path."""

import datasets
import evaluate

from tablet_hf.evaluation.metrics import classification_metrics

_DESCRIPTION = (
    "AUROC, balanced accuracy, accuracy and F1, for two classes also sensitivity and specificity; for more than two "
    "AUROC (one against the rest) and F1 are means over the classes."
)

_INPUTS = """
Args:
    predictions: the probability of the positive class of two, or a list of the probabilities of all classes.
    references: the number of the true class, from 0 on.
Returns:
    a number for each metric, NaN where it is not defined.
"""


class TabletClassification(evaluate.Metric):
    def _info(self):
        reference = datasets.Value("int64")
        one = datasets.Features({"predictions": datasets.Value("float64"), "references": reference})
        several = datasets.Features({"predictions": datasets.List(datasets.Value("float64")), "references": reference})
        return evaluate.MetricInfo(
            description=_DESCRIPTION, citation="", inputs_description=_INPUTS, features=[one, several]
        )

    def _compute(self, predictions, references):
        return classification_metrics(references, predictions)
