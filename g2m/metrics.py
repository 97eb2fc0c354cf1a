"""Scores of logits against labels, in [0, 1], by the metric's name."""

from __future__ import annotations

from torch import Tensor

from g2m.errors import G2MError, choose


def accuracy(logits: Tensor, y: Tensor) -> float:
    """Share of rows ``[N, C]`` whose largest logit is at the label ``[N]``.

    Of several binary tasks, ``[N, T]`` against ``[N, T]``: the share of known labels, those not NaN, on whose side of
    zero the logit is; mean over the tasks that have any, NaN if none has.
    """
    if y.dim() == 1:
        return int((logits.argmax(-1) == y).sum()) / len(y)
    known = ~_per_task(logits, y).isnan()
    right = ((logits > 0) == (y == 1)) & known
    return float((right.sum(0).double() / known.sum(0))[known.any(0)].mean())


def rocauc(logits: Tensor, y: Tensor) -> float:
    """Area under the ROC curve of class 1 against class 0, from logits ``[N, 2]`` and labels ``[N]``.

    NaN where only one class is present: it has no value there, and 0.5 would pass for one.

    Of several binary tasks, ``[N, T]`` against ``[N, T]``, NaN for a missing label: mean over the tasks in which both
    classes are known, as OGB's Evaluator has it; NaN if there is none.
    """
    from sklearn.metrics import roc_auc_score  # slow to import, rarely needed

    if y.dim() == 1:
        if logits.size(1) != 2:
            raise G2MError(f"metric: 'rocauc' needs two classes (got {logits.size(1)}). Use metric='accuracy'.")
        logits, y = (logits[:, 1] - logits[:, 0])[:, None], y[:, None]
    y, logits = _per_task(logits, y).cpu().numpy(), logits.double().cpu().numpy()
    areas = []
    for label, score in zip(y.T, logits.T, strict=True):
        known = (label == 0) | (label == 1)
        if 0 < label[known].sum() < known.sum():
            areas.append(float(roc_auc_score(label[known], score[known])))
    return sum(areas) / len(areas) if areas else float("nan")


_METRICS = {"accuracy": accuracy, "rocauc": rocauc}


def score(metric: str, logits: Tensor, y: Tensor) -> float:
    """Return the score of logits ``[N, C]`` against classes ``[N]``, or of ``[N, T]`` against binary tasks ``[N, T]``.

    Higher is better; a missing label of a task, NaN, does not count.

    Raises:
        G2MError: on an unknown metric, or tasks that are not one logit a label.
    """
    return _METRICS[choose("metric", metric, _METRICS)](logits, y)


def standard_error(metric: str, score: float, y: Tensor) -> float:
    """Return the standard error of a score on classes ``[N]``: of accuracy that of a share, of the area under the ROC
    curve that of Hanley & McNeil (Radiology, 1982), which follows the smaller class.

    Raises:
        G2MError: on an unknown metric.
    """
    if choose("metric", metric, _METRICS) == "accuracy":
        return (score * (1 - score) / len(y)) ** 0.5
    ones, zeros = int((y == 1).sum()), int((y == 0).sum())
    pairs = 1 + (ones - 1) * (1 - score) / (2 - score) + (zeros - 1) * score / (1 + score)
    return (score * (1 - score) * pairs / (ones * zeros)) ** 0.5


def _per_task(logits: Tensor, y: Tensor) -> Tensor:
    if logits.shape != y.shape:
        raise G2MError(f"logits: expected {list(y.shape)}, one per label of every task (got {list(logits.shape)}).")
    return y.float()
