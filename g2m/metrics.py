"""Scores of logits against labels, in [0, 1], by the metric's name."""

from __future__ import annotations

from torch import Tensor

from g2m.errors import choose


def accuracy(logits: Tensor, y: Tensor) -> float:
    """Share of rows ``[N, C]`` whose largest logit is at the label ``[N]``."""
    return int((logits.argmax(-1) == y).sum()) / len(y)


def rocauc(logits: Tensor, y: Tensor) -> float:
    """Area under the ROC curve of class 1 against class 0, from logits ``[N, 2]``.

    NaN where only one class is present: it has no value there, and 0.5 would pass for one.
    """
    from sklearn.metrics import roc_auc_score  # slow to import, rarely needed

    if len(y.unique()) < 2:
        return float("nan")
    return float(roc_auc_score(y.cpu().numpy(), (logits[:, 1] - logits[:, 0]).float().cpu().numpy()))


_METRICS = {"accuracy": accuracy, "rocauc": rocauc}


def score(metric: str, logits: Tensor, y: Tensor) -> float:
    """Return the score of logits ``[N, C]`` against labels ``[N]``, higher is better."""
    return _METRICS[choose("metric", metric, _METRICS)](logits, y)
