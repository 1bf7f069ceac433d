"""Metrics against their definitions written as plain loops over samples and pairs."""

import numpy as np
import pytest

from minidl import metrics


@pytest.fixture(params=range(20))
def binary(request):
    """Labels and scores with many ties (few distinct scores) or none."""
    rng = np.random.default_rng(request.param)
    n = int(rng.integers(2, 40))
    labels = rng.integers(0, 2, n)
    labels[:2] = 0, 1
    scores = rng.integers(0, 5, n) / 4 if request.param % 2 else rng.normal(size=n).astype(np.float32)
    return labels, scores


def rates(labels, scores, threshold):
    positive = scores >= threshold
    tp = sum(1 for p, label in zip(positive, labels, strict=True) if p and label)
    fp = sum(1 for p, label in zip(positive, labels, strict=True) if p and not label)
    return tp, fp


def test_confusion_matrix_and_scores_follow_their_definition():
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 4, 100), rng.integers(0, 4, 100)
    matrix = metrics.confusion_matrix(labels, predictions, 5)
    for i in range(5):
        for j in range(5):
            assert matrix[i, j] == sum(1 for a, b in zip(labels, predictions, strict=True) if (a, b) == (i, j))
    precision, recall, f1 = metrics.precision_recall_f1(matrix)
    for c in range(4):
        tp = np.sum((labels == c) & (predictions == c))
        p, r = tp / np.sum(predictions == c), tp / np.sum(labels == c)
        assert (precision[c], recall[c]) == (p, r)
        assert abs(f1[c] - 2 * p * r / (p + r)) < 1e-15
    assert (precision[4], recall[4], f1[4]) == (0, 0, 0)  # a class that never occurs
    support = matrix.sum(1)
    macro, weighted = (metrics.precision_recall_f1(matrix, average) for average in ("macro", "weighted"))
    for k, score in enumerate((precision, recall, f1)):
        assert abs(macro[k] - sum(score) / 5) < 1e-15
        assert abs(weighted[k] - sum(score * support) / sum(support)) < 1e-15
    assert metrics.precision_recall_f1(matrix, "micro") == (metrics.accuracy(labels, predictions),) * 3
    assert abs(weighted.recall - metrics.accuracy(labels, predictions)) < 1e-15


def test_roc_curve_is_its_definition_and_its_area_is_the_ranking_probability(binary):
    labels, scores = binary
    fpr, tpr, thresholds = metrics.roc_curve(labels, scores)
    assert len(thresholds) == len(set(scores.tolist())) + 1
    for x, y, threshold in zip(fpr, tpr, thresholds, strict=True):
        tp, fp = rates(labels, scores, threshold)
        assert (x, y) == (fp / sum(labels == 0), tp / sum(labels))
    pairs = [(a > b) + (a == b) / 2 for a in scores[labels == 1] for b in scores[labels == 0]]
    assert abs(metrics.roc_auc(labels, scores) - np.mean(pairs)) < 1e-12


def test_precision_recall_curve_is_its_definition(binary):
    labels, scores = binary
    precision, recall, thresholds = metrics.precision_recall_curve(labels, scores)
    assert (precision[-1], recall[-1], recall[0]) == (1, 0, 1)
    assert len(precision) == len(recall) == len(thresholds) + 1
    for p, r, threshold in zip(precision, recall, thresholds, strict=False):
        tp, fp = rates(labels, scores, threshold)
        assert (p, r) == (tp / (tp + fp), tp / sum(labels))
    area, before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        tp, fp = rates(labels, scores, threshold)
        area += (tp / sum(labels) - before) * tp / (tp + fp)
        before = tp / sum(labels)
    assert abs(metrics.average_precision(labels, scores) - area) < 1e-12


def test_known_values():
    assert metrics.roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) == 0.75
    assert abs(metrics.average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) - 5 / 6) < 1e-15
    assert metrics.roc_auc([0, 1, 0, 1], [1, 1, 1, 1]) == 0.5  # nothing but ties
    assert metrics.auc([0, 1, 2], [0, 1, 0]) == metrics.auc([2, 1, 0], [0, 1, 0]) == 1.0
    assert metrics.accuracy([True, False], [1, 1]) == 0.5
    assert metrics.roc_auc([0, 1, 1], np.array([0, 1, 255], np.uint8)) == 1.0  # no wrap-around


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.confusion_matrix([0, 3], [0, 1], 3), "labels must lie in 0 ... 2, found 3"),
        (lambda: metrics.confusion_matrix([0, 1], [0, -1], 3), "predictions must lie"),
        (lambda: metrics.confusion_matrix([0, 1], [0], 3), "differ in length: 1 and 2"),
        (lambda: metrics.confusion_matrix([0, 0.5], [0, 1], 3), "whole numbers, found 0.5"),
        (lambda: metrics.accuracy([], []), "at least one"),
        (lambda: metrics.accuracy([[1]], [[1]]), "one-dimensional"),
        (lambda: metrics.accuracy(["a"], ["a"]), "must be numbers"),
        (lambda: metrics.roc_auc([0, 1], [0.5, np.nan]), "NaN or infinity, first at position 1"),
        (lambda: metrics.roc_auc([0, 2], [0.5, 0.1]), "labels must be 0 or 1, found 2"),
        (lambda: metrics.roc_auc([1, 1], [0.5, 0.1]), "one class is missing"),
        (lambda: metrics.average_precision([0, 0], [0.5, 0.1]), "needs positives"),
        (lambda: metrics.roc_curve([0, 1, 1], [0.5, 0.1]), "differ in length"),
        (lambda: metrics.auc([0, 2, 1], [0, 0, 0]), "rising or falling"),
        (lambda: metrics.auc([0], [0]), "two points"),
        (lambda: metrics.precision_recall_f1([[1, 2]]), "square"),
        (lambda: metrics.precision_recall_f1([[-1]]), "negative"),
        (lambda: metrics.precision_recall_f1([[1]], "mean"), "'mean'"),
    ],
)
def test_bad_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_small_integers_do_not_overflow():
    matrix = np.array([[200, 10], [5, 100]])
    assert np.array_equal(metrics.precision_recall_f1(matrix.astype(np.uint8)), metrics.precision_recall_f1(matrix))
