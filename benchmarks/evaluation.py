"""
How long an evaluation takes: all draws at once as weights, against scikit-learn draw by draw.

    python benchmarks/evaluation.py [--people 1000 40000] [--draws 2000]

People are simulated, two classes at four sites in four folds. Ours is the whole evaluation: metrics with intervals, at
each site too, permutation p value, calibration, folds. Beside it stands the same bootstrap of all people together with
the package's own metrics of one draw (scikit-learn), which is a part of that work only; a tenth of the draws is timed.
"""

import argparse
import os
import platform
import resource
import time

import numpy as np
import scipy
import sklearn
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, roc_auc_score

from tablet_hf.evaluation.predictions import Predictions
from tablet_hf.evaluation.statistics import evaluate_predictions


def simulated(num_subjects: int) -> Predictions:
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, num_subjects)
    positive = 1 / (1 + np.exp(0.5 - targets - rng.standard_normal(num_subjects)))
    subjects = tuple(f"{number:06}" for number in range(num_subjects))
    sites = tuple("ABCD"[number % 4] for number in range(num_subjects))
    folds = tuple(f"fold-{number // 4 % 4 + 1}" for number in range(num_subjects))
    outputs = np.stack([1 - positive, positive], axis=1)
    return Predictions("simulated", "sex", ("F", "M"), subjects, targets, outputs, sites, folds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, nargs="+", default=[1000, 40_000])
    parser.add_argument("--draws", type=int, default=2000)
    arguments = parser.parse_args()
    threads = os.environ.get("OMP_NUM_THREADS", "not set")
    print(
        f"{platform.platform()}, {os.cpu_count()} cores, OMP_NUM_THREADS {threads}, "
        f"numpy {np.__version__}, scipy {scipy.__version__}, scikit-learn {sklearn.__version__}"
    )
    evaluate_predictions(simulated(50), 2, 2)  # imports
    for num_subjects in arguments.people:
        predictions = simulated(num_subjects)
        started = time.perf_counter()
        evaluate_predictions(predictions, arguments.draws, arguments.draws)
        ours = time.perf_counter() - started

        rng, timed = np.random.default_rng(0), max(1, arguments.draws // 10)
        started = time.perf_counter()
        for _ in range(timed):
            rows = rng.integers(num_subjects, size=num_subjects)
            targets, positive = predictions.targets[rows], predictions.outputs[rows, 1]
            roc_auc_score(targets, positive)
            for metric in (accuracy_score, balanced_accuracy_score, f1_score):
                metric(targets, positive >= 0.5)
        loop = (time.perf_counter() - started) * arguments.draws / timed
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(
            f"{num_subjects} people, {arguments.draws} draws: whole evaluation {ours:.1f} s "
            f"(peak memory {peak:.0f} MiB), bootstrap draw by draw alone {loop:.1f} s: {loop / ours:.1f} times as long"
        )


if __name__ == "__main__":
    main()
