"""Numbers that say how good a classifier is: counts of right and wrong, and curves over all thresholds.

Plain NumPy, no Tensor needed: read it at any time. Labels and predictions are one-dimensional arrays over N samples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Fraction of predictions equal to their labels.  labels (N,), predictions (N,) -> float

    Raises ValueError for no samples, other shapes, or values that are not whole numbers.
    """
    labels, predictions = _whole("labels", labels), _whole("predictions", predictions)
    _same_length("predictions", predictions, labels)
    return float(np.mean(labels == predictions))


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, classes: int) -> Array:
    """How often each class was taken for which.  labels (N,), predictions (N,) -> counts (classes, classes) int64

    counts[i, j] = number of samples of class i predicted as class j: rows are the truth.
    Raises ValueError for values outside 0 ... classes - 1 and whatever `accuracy` refuses.
    """
    labels, predictions = _whole("labels", labels), _whole("predictions", predictions)
    _same_length("predictions", predictions, labels)
    for name, values in (("labels", labels), ("predictions", predictions)):
        if values.min() < 0 or values.max() >= classes:
            wrong = values[(values < 0) | (values >= classes)][0]
            raise ValueError(f"{name} must lie in 0 ... {classes - 1}, found {wrong}")
    return np.bincount(labels * classes + predictions, minlength=classes * classes).reshape(classes, classes)


class Scores(NamedTuple):
    """Precision, recall and F1: arrays (classes,) or, averaged, three numbers."""

    precision: Any
    recall: Any
    f1: Any


def precision_recall_f1(matrix: ArrayLike, average: str | None = None) -> Scores:
    """Precision, recall and F1 from a confusion matrix (C, C) with the truth in its rows.

        precision_j = m_jj / Σ_i m_ij      recall_i = m_ii / Σ_j m_ij      F1 = 2·TP / (2·TP + FP + FN)

    Where 0/0 would stand (a class never predicted, a class that never occurs) the value is 0.
    `average`: None gives one value per class; "macro" their mean; "weighted" their mean weighted by the true counts;
    "micro" counts all classes together, which for one label per sample is the accuracy.
    """
    m = np.asarray(matrix)
    if m.ndim != 2 or m.shape[0] != m.shape[1] or m.size == 0:
        raise ValueError(f"a confusion matrix is square, got shape {m.shape}")
    if not np.all(m >= 0):
        raise ValueError("a confusion matrix holds counts: found a negative number or NaN")
    m = m.astype(np.float64)  # small integers overflow in 2·TP
    right, predicted, true = np.diagonal(m), m.sum(axis=0), m.sum(axis=1)
    if average == "micro":
        right, predicted, true = right.sum(), predicted.sum(), true.sum()
    scores = [_ratio(right, predicted), _ratio(right, true), _ratio(2 * right, predicted + true)]
    if average is None:
        return Scores(*scores)
    if average == "micro":
        return Scores(*map(float, scores))
    if average == "macro":
        return Scores(*(float(score.mean()) for score in scores))
    if average == "weighted":
        return Scores(*(float(_ratio(score @ true, true.sum())) for score in scores))
    raise ValueError(f"average must be None, 'macro', 'micro' or 'weighted', got {average!r}")


class Roc(NamedTuple):
    """False and true positive rate at each threshold, all (K,)."""

    fpr: Array
    tpr: Array
    thresholds: Array


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> Roc:
    """Receiver operating characteristic of "positive if score >= threshold".  labels (N,) of 0 and 1, scores (N,)

        fpr = FP / negatives,  tpr = TP / positives

    One point for each distinct score, thresholds falling, after the point (0, 0) at threshold infinity: tied samples
    enter together. Raises ValueError if one of the two classes is missing, since a rate is then 0/0.
    """
    tp, fp, thresholds = _counts_above(labels, scores)
    if tp[-1] == 0 or fp[-1] == 0:
        raise ValueError("a ROC curve needs positives and negatives: one class is missing from the labels")
    return Roc(np.append(0, fp) / fp[-1], np.append(0, tp) / tp[-1], np.append(np.inf, thresholds))


class PrecisionRecall(NamedTuple):
    """Precision and recall (K + 1,) at thresholds (K,); the last point has none."""

    precision: Array
    recall: Array
    thresholds: Array


def precision_recall_curve(labels: ArrayLike, scores: ArrayLike) -> PrecisionRecall:
    """Precision and recall of "positive if score >= threshold".  labels (N,) of 0 and 1, scores (N,)

    One point for each distinct score, thresholds rising and so recall falling, then the point (precision 1, recall 0)
    that ends the curve, as in scikit-learn. Raises ValueError if there are no positives.
    """
    tp, fp, thresholds = _counts_above(labels, scores)
    if tp[-1] == 0:
        raise ValueError("a precision-recall curve needs positives: none among the labels")
    precision, recall = tp / (tp + fp), tp / tp[-1]
    return PrecisionRecall(np.append(precision[::-1], 1.0), np.append(recall[::-1], 0.0), thresholds[::-1])


def auc(x: ArrayLike, y: ArrayLike) -> float:
    """Area under y(x) by the trapezoid rule; x (K,) must rise or fall throughout.  Σ_k (x_k+1 − x_k)·(y_k+1 + y_k)/2"""
    x, y = _finite("x", x), _finite("y", y)
    _same_length("y", y, x)
    steps = np.diff(x)
    if len(x) < 2 or not (np.all(steps >= 0) or np.all(steps <= 0)):
        raise ValueError("auc needs at least two points with x rising or falling throughout")
    return float(abs(np.sum(steps * (y[1:] + y[:-1]) / 2)))


def roc_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve = P(score of a positive > score of a negative) + P(equal)/2."""
    fpr, tpr, _ = roc_curve(labels, scores)
    return auc(fpr, tpr)


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the precision-recall curve as a step function: Σ_k (recall_k − recall_k+1)·precision_k.

    No interpolation: a straight line between two points of this curve is not reachable (Davis & Goadrich 2006).
    """
    precision, recall, _ = precision_recall_curve(labels, scores)
    return float(-np.sum(np.diff(recall) * precision[:-1]))


def _counts_above(labels: ArrayLike, scores: ArrayLike) -> tuple[Array, Array, Array]:
    """True and false positives at each distinct score taken as threshold, scores falling: (K,), (K,), (K,)."""
    labels, scores = _whole("labels", labels), _finite("scores", scores)
    _same_length("scores", scores, labels)
    if not np.all((labels == 0) | (labels == 1)):
        raise ValueError(f"labels must be 0 or 1, found {labels[(labels != 0) & (labels != 1)][0]}")
    order = np.argsort(scores, kind="stable")[::-1]
    labels, scores = labels[order], scores[order]
    last = np.flatnonzero(np.append(np.diff(scores) != 0, True))  # the last sample of each group of equal scores
    tp = np.cumsum(labels)[last]
    return tp, last + 1 - tp, scores[last]


def _ratio(a: Array, b: Array) -> Array:
    """a / b, and 0 where b is 0."""
    return np.where(b > 0, a / np.where(b > 0, b, 1), 0.0)


def _finite(name: str, values: ArrayLike) -> Array:
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a one-dimensional array with at least one value, got shape {array.shape}")
    if array.dtype.kind not in "buif":
        raise ValueError(f"{name} must be numbers, got dtype {array.dtype}")
    if not np.all(np.isfinite(array)):
        raise ValueError(f"{name} hold NaN or infinity, first at position {np.flatnonzero(~np.isfinite(array))[0]}")
    return array


def _whole(name: str, values: ArrayLike) -> Array:
    array = _finite(name, values)
    if np.any(array != np.trunc(array)):
        raise ValueError(f"{name} must be whole numbers, found {array[array != np.trunc(array)][0]}")
    return array.astype(np.int64)


def _same_length(name: str, values: Array, labels: Array) -> None:
    if values.shape != labels.shape:
        raise ValueError(f"{name} and what they are compared with differ in length: {len(values)} and {len(labels)}")
