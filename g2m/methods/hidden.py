"""Soft labels and the teacher's hidden state: what any richer target has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F

from g2m.batches import Batch
from g2m.errors import check_range
from g2m.graph import Graph
from g2m.losses import soft_label_loss
from g2m.methods.base import Method, hidden_width, label_loss
from g2m.models import MLP, Output
from g2m.outputs import TeacherOutputs

if TYPE_CHECKING:
    import optuna


class Hidden(Method):
    """Soft labels, and a linear map of the student's hidden state in the direction of the teacher's (as the hints of
    Romero et al., "FitNets", ICLR 2015, by cosine).

    L = λ · mean CE(y, q) + (1 − λ) · mean KL(p ‖ q) + w · mean (1 − cos(Wh', h)).

    Args:
        lam: λ, weight of the true labels in [0, 1]; default 0.
        tau: temperature of the soft labels, above 0; default 1.
        hidden_weight: w, from 0; default 1.
    """

    name = "hidden"
    paper = "after Romero et al., ICLR 2015"
    needs = frozenset({"logits", "hidden"})

    def __init__(self, *, lam: float = 0.0, tau: float = 1.0, hidden_weight: float = 1.0) -> None:
        super().__init__()
        self.lam = check_range("lam", lam, 0, 1)
        self.tau = check_range("tau", tau, 0, open_low=True)
        self.hidden_weight = check_range("hidden_weight", hidden_weight, 0)

    def build(self, model: MLP, outputs: TeacherOutputs | None) -> None:
        self.projection = nn.Linear(hidden_width(model, self.name), outputs.hidden.size(1))

    def prepare(self, graph: Graph, outputs: TeacherOutputs) -> Mapping[str, Tensor]:
        return {"log_soft_labels": outputs.log_soft_labels(self.tau), "hidden": outputs.hidden}

    def loss(self, output: Output, batch: Batch) -> Mapping[str, Tensor]:
        soft = soft_label_loss(output.logits, batch.targets["log_soft_labels"], self.tau)
        cosine = F.cosine_similarity(self.projection(output.hidden), batch.targets["hidden"])
        return {
            "label": self.lam * label_loss(output, batch),
            "soft": (1 - self.lam) * soft,
            "hidden": self.hidden_weight * (1 - cosine).mean(),
        }

    @classmethod
    def space(cls, trial: optuna.Trial) -> dict[str, Any]:
        return {
            "lam": trial.suggest_float("lam", 0.0, 0.5),
            "hidden_weight": trial.suggest_float("hidden_weight", 0.01, 10.0, log=True),
        }
