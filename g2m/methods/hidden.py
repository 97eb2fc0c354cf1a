"""Soft labels and the teacher's hidden state: what any richer target has to beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn import functional as F

from g2m.batches import Batch
from g2m.errors import check_range
from g2m.graph import Graph
from g2m.methods.base import hidden_width
from g2m.methods.glnn import GLNN
from g2m.models import MLP, Output
from g2m.outputs import TeacherOutputs

if TYPE_CHECKING:
    import optuna


class Hidden(GLNN):
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
        super().__init__(lam=lam, tau=tau)
        self.hidden_weight = check_range("hidden_weight", hidden_weight, 0)

    def build(self, model: MLP, outputs: TeacherOutputs | None) -> None:
        self.projection = nn.Linear(hidden_width(model, self.name), outputs.hidden.size(1))

    def prepare(self, graph: Graph, outputs: TeacherOutputs) -> Mapping[str, Tensor]:
        return {**super().prepare(graph, outputs), "hidden": outputs.hidden}

    def loss(self, output: Output, batch: Batch) -> Mapping[str, Tensor]:
        cosine = F.cosine_similarity(self.projection(output.hidden), batch.targets["hidden"])
        return {**super().loss(output, batch), "hidden": self.hidden_weight * (1 - cosine).mean()}

    @classmethod
    def space(cls, trial: optuna.Trial) -> dict[str, Any]:
        return {
            "lam": trial.suggest_float("lam", 0.0, 0.5),
            "hidden_weight": trial.suggest_float("hidden_weight", 0.01, 10.0, log=True),
        }
