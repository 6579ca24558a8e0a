"""What predictions are worth: rates with intervals, confusions, calibration, and two models compared. NumPy, no pictures.

`truth` (N,) holds the right classes, `scores` or `logits` (N, C) a number for each class, all arithmetic is in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

BINS = 15  # of the reliability diagram: as in Guo et al. 2017, "On Calibration of Modern Neural Networks"
EXACT = 1000  # discordant pictures up to which McNemar's test counts out the binomial distribution


@dataclass(frozen=True)
class Rate:
    """`right` of `total`, and Wilson's interval, in which the true rate lies with 95% confidence; NaN for 0 of 0."""

    right: int
    total: int

    @property
    def value(self) -> float:
        return self.right / self.total if self.total else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.right, self.total)

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.value:.1%} (95% interval {low:.1%} to {high:.1%})" if self.total else "no pictures"


def wilson(right: int, total: int, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a rate (Wilson 1927): unlike the normal approximation, right for few pictures and for rates near 1."""
    if total == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, scale = right / total, 1 + z * z / total
    centre = (rate + z * z / (2 * total)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / total + z * z / (4 * total * total))
    return (0.0 if right == 0 else centre - half), (1.0 if right == total else centre + half)


def top_classes(logits: np.ndarray, k: int) -> np.ndarray:
    """(N, C) -> (N, k): the classes of the k highest numbers, falling; of equal numbers the lower class comes first."""
    return np.argsort(-logits, axis=-1, kind="stable")[:, :k]


def probabilities(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Softmax of logits / temperature, (N, C) float64."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


# -- confusions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClassScore:
    """A class: `recall`, how many of its pictures were recognised; `precision`, how many that were called so are it."""

    index: int
    recall: Rate
    precision: Rate


def per_class(truth: np.ndarray, predicted: np.ndarray) -> list[ClassScore]:
    """A score for each class that occurs in `truth` or in `predicted`, in class order."""
    size = int(max(truth.max(initial=-1), predicted.max(initial=-1))) + 1
    of, called = np.bincount(truth, minlength=size), np.bincount(predicted, minlength=size)
    right = np.bincount(truth[truth == predicted], minlength=size)
    return [
        ClassScore(index, Rate(int(right[index]), int(of[index])), Rate(int(right[index]), int(called[index])))
        for index in np.flatnonzero(of + called).tolist()
    ]


def confusions(truth: np.ndarray, predicted: np.ndarray) -> list[tuple[int, int, int]]:
    """[(class, what it was taken for, how often)], the most frequent first, then in class order."""
    wrong = truth != predicted
    pairs, counts = np.unique(np.stack([truth[wrong], predicted[wrong]]), axis=1, return_counts=True)
    found = list(zip(pairs[0].tolist(), pairs[1].tolist(), counts.tolist(), strict=True))
    return sorted(found, key=lambda row: (-row[2], row[0], row[1]))


# -- calibration ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bin:
    """Pictures whose confidence lies in (`low`, `high`]: how many, their mean confidence, and the share that was right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> list[Bin]:
    """The reliability diagram: bins of equal width; an empty one has NaN for its means."""
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    rows = []
    for number in range(bins):
        inside = place == number
        count = int(inside.sum())
        means = (float(confidence[inside].mean()), float(right[inside].mean())) if count else (math.nan, math.nan)
        rows.append(Bin(float(edges[number]), float(edges[number + 1]), count, *means))
    return rows


def calibration_error(rows: list[Bin]) -> float:
    """Expected calibration error: the mean over pictures of |accuracy - confidence| of their bin (Naeini et al. 2015)."""
    total = sum(row.count for row in rows)
    return sum(row.count / total * abs(row.accuracy - row.confidence) for row in rows if row.count) if total else math.nan


def cross_entropy(logits: np.ndarray, truth: np.ndarray, temperature: float = 1.0) -> float:
    """The mean of -log of the probability that the right class was given, in nats."""
    scaled = logits.astype(np.float64) / temperature
    highest = scaled.max(axis=-1)
    sums = highest + np.log(np.exp(scaled - highest[:, None]).sum(axis=-1))
    return float(np.mean(sums - scaled[np.arange(len(truth)), truth]))


def fit_temperature(logits: np.ndarray, truth: np.ndarray) -> float:
    """The temperature by which logits are divided for the least cross entropy on these pictures (Guo et al. 2017, section 4.2).

    Cross entropy is convex in 1 / temperature, so its slope has one zero, which is found by bisection between 1/100 and 100.
    Where the slope has none there (all pictures right, or wrong), the end of the range comes back.
    """
    logits = logits.astype(np.float64)
    of_truth = logits[np.arange(len(truth)), truth].mean()

    def slope(inverse: float) -> float:
        return float((probabilities(logits, 1 / inverse) * logits).sum(axis=-1).mean() - of_truth)

    low, high = math.log(0.01), math.log(100.0)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if slope(math.exp(middle)) > 0 else (middle, high)
    return math.exp(-(low + high) / 2)


def cross_fitted(logits: np.ndarray, truth: np.ndarray, right: np.ndarray) -> list[Bin]:
    """The reliability diagram with a temperature that no picture had a part in: each half is scaled by the other's."""
    confidence = np.empty(len(truth))
    for half in (0, 1):
        fitted = fit_temperature(logits[1 - half :: 2], truth[1 - half :: 2])
        confidence[half::2] = probabilities(logits[half::2], fitted).max(axis=-1)
    return reliability(confidence, right)


# -- two models -------------------------------------------------------------------------------------------------------


def mcnemar(only_first: int, only_second: int) -> float:
    """McNemar's test: the p-value of so uneven a share, or a more uneven one, of the pictures that one model alone got right.

    Two-sided. Exact, from the binomial distribution, up to EXACT such pictures; beyond, chi-square with Edwards' continuity
    correction.
    """
    total = only_first + only_second
    if total == 0:
        return 1.0
    if total <= EXACT:
        tail = sum(math.comb(total, count) for count in range(min(only_first, only_second) + 1))
        return min(1.0, tail * 2 / 2**total)
    return math.erfc(math.sqrt(max(0, abs(only_first - only_second) - 1) ** 2 / total / 2))
