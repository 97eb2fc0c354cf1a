"""SimMLP-like: labels, and a hidden state that foretells the neighbourhood; no teacher at all."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from g2m.batches import Batch
from g2m.errors import check_range, check_whole
from g2m.graph import Graph
from g2m.methods.base import Method, hidden_width, label_loss
from g2m.models import MLP, Output, symmetric_adjacency
from g2m.outputs import TeacherOutputs

if TYPE_CHECKING:
    import optuna


class SimMLP(Method):
    """Self-supervised alignment with the neighbourhood (after Wang et al., "Training MLPs on Graphs without
    Supervision", WSDM 2025).

    L = λ · mean CE(y, q) + w · mean (1 − cos(Wh, z))

    z are the principal components of the features smoothed over ``hops`` hops, Â^hops X: what a GNN without weights
    sees of a node's surroundings, which the hidden state h, made of the node's own features, is to foretell. The paper
    aligns with a GNN that shares the MLP's weights, and keeps the two from collapsing by reconstruction; a target
    that stands still cannot collapse, and is made once, before training.

    Args:
        lam: λ, weight of the true labels in [0, 1]; default 0.1.
        neighbourhood_weight: w, from 0; default 10: few nodes have a label, every node a neighbourhood.
        hops: of the smoothing, from 1; default 2.
        channels: principal components, from 1, of at most as many as there are features; default 128.
    """

    name = "simmlp"
    paper = "after Wang et al., WSDM 2025"
    takes_edges = True

    def __init__(
        self, *, lam: float = 0.1, neighbourhood_weight: float = 10.0, hops: int = 2, channels: int = 128
    ) -> None:
        super().__init__()
        self.lam = check_range("lam", lam, 0, 1)
        self.neighbourhood_weight = check_range("neighbourhood_weight", neighbourhood_weight, 0)
        self.hops, self.channels = check_whole("hops", hops), check_whole("channels", channels)

    def build(self, model: MLP, outputs: TeacherOutputs | None) -> None:
        self.width = hidden_width(model, self.name)

    def prepare(self, graph: Graph, outputs: TeacherOutputs | None) -> Mapping[str, Tensor]:
        from sklearn.decomposition import PCA  # slow to import

        if not graph.num_edges:
            warnings.warn(
                f"graph: {graph.name!r} has no edges, 'simmlp' has no neighbourhood to foretell. Pass the whole graph, "
                "or take method 'mlp'.",
                stacklevel=2,
            )
        smooth, adjacency = graph.x, symmetric_adjacency(graph)
        for _ in range(self.hops):
            smooth = adjacency.multiply(smooth)
        channels = min(self.channels, *smooth.shape)
        self.projection = nn.Linear(self.width, channels)
        z = PCA(channels, svd_solver="randomized", random_state=0).fit_transform(smooth.numpy())
        return {"neighbourhood": torch.from_numpy(z)}

    def loss(self, output: Output, batch: Batch) -> Mapping[str, Tensor]:
        cosine = F.cosine_similarity(self.projection(output.hidden), batch.targets["neighbourhood"])
        return {
            "label": self.lam * label_loss(output, batch),
            "neighbourhood": self.neighbourhood_weight * (1 - cosine).mean(),
        }

    @classmethod
    def space(cls, trial: optuna.Trial) -> dict[str, Any]:
        return {"lam": trial.suggest_float("lam", 0.001, 1.0, log=True), "hops": trial.suggest_int("hops", 1, 3)}
