"""Propagated: the student imitates teacher probabilities that were diffused over the graph beforehand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from g2m.errors import check_flag, check_range, check_whole
from g2m.graph import Graph
from g2m.methods.glnn import GLNN
from g2m.models import sum_adjacency
from g2m.outputs import TeacherOutputs

if TYPE_CHECKING:
    import optuna


class Propagated(GLNN):
    """Diffused soft labels: g2m's own, after label propagation (Zhou et al., NIPS 2003) and APPNP (ICLR 2019).

    L = λ · mean CE(y, q) + (1 − λ) · mean KL(r ‖ q), r the teacher's probabilities after ``propagations`` steps of
    personalised PageRank over the observed graph, R ← (1 − α)·D̃⁻¹ÃR + α·P, in which the rows of training nodes are
    their labels. It is FF-G2M's low-frequency loss carried over all hops: the diffusion runs once, before training,
    and a step costs what GLNN's does.

    Args:
        lam: λ, weight of the true labels in [0, 1]; default 0: they come with the diffusion.
        tau: temperature of the teacher's probabilities and of the student, above 0; default 1.
        alpha: α, how much of a node's own answer is put back at every step, in [0, 1]; default 0.1. 1 is GLNN, but for
            the labels.
        propagations: steps, from 0; default 10.
        clamp: whether training nodes have their labels for probabilities; default True.
        compatibility: pass on what a neighbour's class says of a node's, by how often the teacher's classes are
            neighbours, and not the class itself. Default False. Meant for graphs where neighbours differ; measured, it
            is no better there than without, and worse elsewhere (docs/benchmarks.md, Variants).
    """

    name = "propagated"
    paper = "g2m"
    takes_edges = True

    def __init__(
        self,
        *,
        lam: float = 0.0,
        tau: float = 1.0,
        alpha: float = 0.1,
        propagations: int = 10,
        clamp: bool = True,
        compatibility: bool = False,
    ) -> None:
        super().__init__(lam=lam, tau=tau)
        self.alpha = check_range("alpha", alpha, 0, 1)
        self.propagations = check_whole("propagations", propagations, 0)
        self.clamp = check_flag("clamp", clamp)
        self.compatibility = check_flag("compatibility", compatibility)

    def prepare(self, graph: Graph, outputs: TeacherOutputs) -> Mapping[str, Tensor]:
        return {"log_soft_labels": self.diffused(graph, outputs.soft_labels(self.tau)).clamp_min(1e-12).log()}

    def diffused(self, graph: Graph, p: Tensor) -> Tensor:
        """Return probabilities ``[N, C]`` after the diffusion."""
        adjacency, train = sum_adjacency(graph, loops=1.0), graph.part("train")
        degree = torch.zeros(len(p)).index_add_(0, adjacency.row_of_entry(), adjacency.value)[:, None]
        p = p.clone()
        if self.clamp:
            p[train] = F.one_hot(graph.y[train], p.size(1)).to(p.dtype)
        between = torch.eye(p.size(1))
        if self.compatibility:
            between = (adjacency.multiply(p) - p).T @ p + 1e-6  # from the class of an arc's source to its target's
            between = between / between.sum(1, keepdim=True)
        r = p
        for _ in range(self.propagations):
            passed = r @ between  # to neighbours; a node's own answer stays what it is
            r = (1 - self.alpha) * (adjacency.multiply(passed) - passed + r) / degree + self.alpha * p
            if self.clamp:
                r[train] = p[train]
        return r / r.sum(1, keepdim=True)

    @classmethod
    def space(cls, trial: optuna.Trial) -> dict[str, Any]:
        return {
            "lam": trial.suggest_float("lam", 0.0, 0.5),
            "alpha": trial.suggest_float("alpha", 0.02, 1.0, log=True),
            "tau": trial.suggest_float("tau", 0.5, 2.0),
        }
