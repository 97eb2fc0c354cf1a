"""NOSMOG: position features, similarities between nodes, and features an adversary has moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from g2m.batches import Batch, random_rows
from g2m.errors import check_flag, check_range, check_whole, choose
from g2m.graph import Graph
from g2m.losses import similarity_loss, soft_label_loss
from g2m.methods.base import hidden_width
from g2m.methods.glnn import GLNN
from g2m.models import MLP, Output, statistics_as_they_are
from g2m.outputs import TeacherOutputs
from g2m.positions import deepwalk
from g2m.sparse import CSR

if TYPE_CHECKING:
    import optuna

POSITIONS = ("deepwalk", "none")


class NOSMOG(GLNN):
    """Noise-robust structure-aware distillation (Tian et al., "Learning MLPs on Graphs: A Unified View of
    Effectiveness, Robustness, and Efficiency", ICLR 2023).

    L = λ · mean CE(y, q) + (1 − λ) · (mean KL(p ‖ q) + η · ADV) + μ · RSD

    - Positions: DeepWalk's columns beside the features. A node that training has not seen gets the mean of its
      neighbours', so that such a student is not free of the graph; ``position="none"`` leaves them out.
    - RSD: the similarity of two nodes of a batch is the same for student and teacher: mean over pairs of the squared
      difference of the cosines of ReLU(Wh') and of h, hidden states of the two.
    - ADV: the soft-label loss at features moved by up to ε where it hurts most, by projected gradient ascent.

    What is not as published, whatever the options: hidden states of RSD are those after the ReLU, and the student's map
    has no dropout after it; the published ones are before it where the teacher is SAGE, and in the student. Walks pass
    no loops, and DeepWalk is trained with negative samples alone.

    Args:
        lam: λ, weight of the true labels in [0, 1]; default 0, as released.
        tau: temperature of the soft labels, above 0; default 1.
        mu: μ, from 0; default 0.1 (published: 1e-9 to 0.9, of inner products, see
            ``sweeps/nosmog``).
        normalise: similarities are cosines (default True), or, as published, inner products, whose size follows the
            width.
        eta: η, from 0; default 0.1, as released.
        epsilon: ε, from 0, in units of the features; default 0.05 (published: 0.001 to 0.1).
        ascents: steps of the adversary, from 1; default 5, as published.
        adversarial_nodes: how many nodes of a batch it moves, from 2 (batch norm takes no fewer), drawn at random: the
            term and its cost are a share of the published one's, its mean is the same. Default 64; ``"all"``, as
            published.
        position: ``"deepwalk"`` (default) or ``"none"``.
        position_channels, walk_length, num_walks, window, position_epochs: of :func:`g2m.positions.deepwalk`; default
            64, 50, 1, 5, 1.
        standardise: columns of positions have mean 0 and variance 1 (default True), or are raw, as published.
    """

    name = "nosmog"
    paper = "Tian et al., ICLR 2023"
    needs = frozenset({"logits", "hidden"})

    def __init__(
        self,
        *,
        lam: float = 0.0,
        tau: float = 1.0,
        mu: float = 0.1,
        normalise: bool = True,
        eta: float = 0.1,
        epsilon: float = 0.05,
        ascents: int = 5,
        adversarial_nodes: int | str = 64,
        position: str | None = "deepwalk",
        position_channels: int = 64,
        walk_length: int = 50,
        num_walks: int = 1,
        window: int = 5,
        position_epochs: int = 1,
        standardise: bool = True,
    ) -> None:
        super().__init__(lam=lam, tau=tau)
        self.mu, self.eta = check_range("mu", mu, 0), check_range("eta", eta, 0)
        self.epsilon = check_range("epsilon", epsilon, 0)
        self.normalise, self.ascents = check_flag("normalise", normalise), check_whole("ascents", ascents)
        every = adversarial_nodes == "all"
        self.adversarial_nodes = "all" if every else check_whole("adversarial_nodes", adversarial_nodes, 2)
        position = "none" if position is None else choose("position", position, POSITIONS)
        self.position_channels = check_whole("position_channels", position_channels)
        self.walk_length = check_whole("walk_length", walk_length, 2)
        self.num_walks, self.window = check_whole("num_walks", num_walks), check_whole("window", window)
        self.position_epochs = check_whole("position_epochs", position_epochs)
        self.position, self.takes_edges = position, position != "none"
        self.standardise = check_flag("standardise", standardise)

    def positions(self, graph: Graph, outputs: TeacherOutputs | None) -> Tensor | None:
        if self.position == "none":
            return None
        return deepwalk(
            graph,
            channels=self.position_channels,
            walk_length=self.walk_length,
            num_walks=self.num_walks,
            window=self.window,
            epochs=self.position_epochs,
            seed=int(torch.randint(2**31, ())),
            standardise=self.standardise,
        )

    def build(self, model: MLP, outputs: TeacherOutputs | None) -> None:
        width = hidden_width(model, self.name)
        self.projection = nn.Linear(width, width)
        self._student = (model,)  # in a tuple: not a part of this module

    def prepare(self, graph: Graph, outputs: TeacherOutputs) -> Mapping[str, Tensor]:
        return {**super().prepare(graph, outputs), "hidden": outputs.hidden}

    def loss(self, output: Output, batch: Batch) -> Mapping[str, Tensor]:
        parts = dict(super().loss(output, batch))
        if self.mu:
            student = F.relu(self.projection(output.hidden))
            parts["similarity"] = self.mu * similarity_loss(student, batch.targets["hidden"], normalise=self.normalise)
        if self.eta and batch.only != "label":  # a step on labels alone has no use for it
            parts["adversarial"] = (1 - self.lam) * self.eta * self._adversarial(batch)
        return parts

    def _adversarial(self, batch: Batch) -> Tensor:
        """Return the soft-label loss at the worst features found within ε."""
        (model,) = self._student
        if self.adversarial_nodes != "all":
            batch = random_rows(batch, self.adversarial_nodes)
        (x,), log_p = batch.inputs, batch.targets["log_soft_labels"]
        x = x.to_dense() if isinstance(x, CSR) else x
        moved = torch.empty_like(x).uniform_(-self.epsilon, self.epsilon)
        with statistics_as_they_are(model):
            for _ in range(self.ascents):
                moved.requires_grad_()
                (uphill,) = torch.autograd.grad(soft_label_loss(model(x + moved).logits, log_p, self.tau), moved)
                moved = moved.detach().add_(uphill.sign_(), alpha=self.epsilon / 4).clamp_(-self.epsilon, self.epsilon)
            return soft_label_loss(model(x + moved).logits, log_p, self.tau)

    @classmethod
    def space(cls, trial: optuna.Trial) -> dict[str, Any]:
        return {
            "lam": trial.suggest_float("lam", 0.0, 0.5),
            "mu": trial.suggest_float("mu", 0.01, 10.0, log=True),
            "epsilon": trial.suggest_float("epsilon", 0.001, 0.1, log=True),
        }
