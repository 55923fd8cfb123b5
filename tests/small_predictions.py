"""Predictions of a few subjects at three sites, by methods of chosen skill."""

import numpy as np

from tablet_hf.evaluation.predictions import Predictions


def classifier(method="TABLeT", count=40, classes=("control", "ADHD"), seed=0, skill=1.0, folds=2):
    drawn = np.random.default_rng(1)
    targets = drawn.permutation(np.arange(count) % len(classes))
    sites = drawn.choice(["NYU", "KKI", "OHSU"], count, p=[0.5, 0.4, 0.1])
    odds = np.random.default_rng(seed).standard_normal((count, len(classes)))
    odds[np.arange(count), targets] += skill
    return Predictions(
        method,
        "diagnosis",
        classes,
        tuple(f"{number:04}" for number in range(count)),
        targets,
        np.exp(odds) / np.exp(odds).sum(1, keepdims=True),
        tuple(map(str, sites)),
        tuple(f"fold-{number % folds + 1}" for number in range(count)),
    )


def regressor(method="TABLeT", count=40, seed=0):
    targets = 50 + 10 * np.random.default_rng(1).standard_normal(count)
    values = targets + 8 * np.random.default_rng(seed).standard_normal(count)
    like = classifier(method, count)
    return Predictions(method, "age", None, like.subjects, targets, values, like.sites, like.folds)
