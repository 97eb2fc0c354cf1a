"""GLNN: the student imitates the teacher's class probabilities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from g2m.batches import Batch
from g2m.errors import check_range
from g2m.graph import Graph
from g2m.losses import soft_label_loss
from g2m.methods.base import Method, label_loss
from g2m.models import Output
from g2m.outputs import TeacherOutputs

if TYPE_CHECKING:
    import optuna


class GLNN(Method):
    """Soft labels on every observed node (Zhang et al., "Graph-less Neural Networks", ICLR 2022).

    L = λ · mean CE(y, q) over training nodes + (1 − λ) · mean KL(p ‖ q) over observed nodes.

    Args:
        lam: λ, weight of the true labels in [0, 1]; default 0, as released: labels come through the teacher.
        tau: temperature on both sides, above 0; default 1.
    """

    name = "glnn"
    paper = "Zhang et al., ICLR 2022"
    needs = frozenset({"logits"})

    def __init__(self, *, lam: float = 0.0, tau: float = 1.0) -> None:
        super().__init__()
        self.lam = check_range("lam", lam, 0, 1)
        self.tau = check_range("tau", tau, 0, open_low=True)

    def prepare(self, graph: Graph, outputs: TeacherOutputs) -> Mapping[str, Tensor]:
        return {"log_soft_labels": outputs.log_soft_labels(self.tau)}

    def loss(self, output: Output, batch: Batch) -> Mapping[str, Tensor]:
        soft = soft_label_loss(output.logits, batch.targets["log_soft_labels"], self.tau)
        return {"label": self.lam * label_loss(output, batch), "soft": (1 - self.lam) * soft}

    @classmethod
    def space(cls, trial: optuna.Trial) -> dict[str, Any]:
        return {"lam": trial.suggest_float("lam", 0.0, 0.5), "tau": trial.suggest_float("tau", 0.5, 4.0, log=True)}
