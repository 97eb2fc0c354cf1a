"""The graph tokenizer of VQGraph: codes for nodes and their surroundings, inside a teacher or beside it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.utils import to_undirected

from g2m.codebook import CODE_METRICS, Codebook, perplexity, usage
from g2m.errors import G2MError, check_flag, check_range, check_whole, choose
from g2m.graph import Graph
from g2m.losses import min_max_edge_loss, sampled_edge_loss, scaled_cosine_error
from g2m.models import GNN, BatchNorm, Output
from g2m.sparse import CSR

log = logging.getLogger(__name__)
_MOST_PAIRED = 10_000  # nodes: a step on pairs of more takes seconds
PLACES = ("inside", "beside", "reference")
NODE_TARGETS = ("features", "hidden")
EDGE_DECODERS = ("minmax", "sigmoid", "sigmoid-balanced")


class Tokens(NamedTuple):
    """Codes of nodes: the hidden state they are of ``[N, H]``, ``index`` ``[N]`` or ``[N, L]``, their vectors ``code``
    ``[N, D]``, those decoded ``[N, H]``, and the commitment to them.
    """

    hidden: Tensor
    index: Tensor
    code: Tensor
    decoded: Tensor
    commitment: Tensor


class Tokenizer(nn.Module):
    """Turns hidden states into codes from which features and edges can be told again (Yang et al., VQGraph, ICLR 2024).

    hidden state → linear → codebook → node decoder (features, by scaled cosine error) and edge decoder (adjacency, root
    mean squared error). Both losses are exact at linear cost, see :mod:`g2m.losses`.

    Args:
        hidden_channels: H, width of the hidden states.
        num_features: F of the graph.
        num_codes: K, default 256. Codes stay in use up to about an eighth of the nodes.
        code_dim: D. ``"hidden"`` (default): the hidden state itself is quantised; a number: a linear map of it, batch
            norm after it; ``None``: likewise, F wide.
        code_metric: ``"euclidean"`` (default) or ``"cosine"``.
        code_levels: codes per node, each for what the ones before left (Euclidean only); default 1. From 2, nearly
            every node has codes that no other has, and ``edge_decoder="minmax"`` looks at all pairs of them: take one
            that samples pairs for graphs of more than some thousand nodes.
        code_decay: of the codebook's moving averages, in [0, 1), default 0.2: a step sees the whole graph, there is
            little to average, and slower codes are left behind by the encoder.
        kmeans_iterations: of its start, default 10; 0: random directions.
        dead_threshold: replace codes with fewer members, from 0, default 1.
        node_weight: of the node term, from 0, default 1.
        node_target: ``"features"`` (default), or ``"hidden"``: the hidden state, by squared error.
        edge_weight: of the edge term, from 0, default 0.03, as published.
        edge_decoder: ``"minmax"`` (default): Gram matrix of the decoded nodes scaled to [0, 1], all N² pairs;
            ``"sigmoid"``: cross-entropy of sampled pairs, unbiased for all; ``"sigmoid-balanced"``: with linked and
            other pairs at half each.
        commitment: weight of the distance to the codes, from 0, default 0.25.
        reference: the published form: random codes that nobody keeps in use, nodes reconstructing their own live
            hidden state, its norm drawn to that of the codes; default False. Goes with :class:`TokenizedGNN`.
    """

    def __init__(
        self,
        hidden_channels: int,
        num_features: int,
        *,
        num_codes: int = 256,
        code_dim: int | str | None = "hidden",
        code_metric: str = "euclidean",
        code_levels: int = 1,
        code_decay: float = 0.2,
        kmeans_iterations: int = 10,
        dead_threshold: float = 1.0,
        node_weight: float = 1.0,
        node_target: str = "features",
        edge_weight: float = 0.03,
        edge_decoder: str = "minmax",
        commitment: float = 0.25,
        reference: bool = False,
    ) -> None:
        super().__init__()
        direct = code_dim == "hidden"
        if direct or code_dim is None:
            code_dim = hidden_channels if direct else num_features
        elif isinstance(code_dim, str):
            choose("code_dim", code_dim, ("hidden",))
        check_whole("code_dim", code_dim)
        if code_metric == "cosine" and check_whole("code_levels", code_levels) > 1:
            raise G2MError(f"code_levels: expected 1 under the cosine metric (got {code_levels}). Take 'euclidean'.")
        self.node_weight = check_range("node_weight", node_weight, 0)
        self.edge_weight = check_range("edge_weight", edge_weight, 0)
        self.commitment = check_range("commitment", commitment, 0)
        self.node_target = choose("node_target", node_target, NODE_TARGETS)
        self.edge_decoder = choose("edge_decoder", edge_decoder, EDGE_DECODERS)
        self.reference = check_flag("reference", reference)
        # Batch norm: codes follow slowly, and a step of the encoder shifts all vectors at once (Łańcucki et al., Robust
        # Training of Vector Quantized Bottleneck Models, IJCNN 2020).
        linear = (nn.Linear(hidden_channels, code_dim), BatchNorm(code_dim, affine=False))
        self.project = nn.Sequential(*(() if direct else linear))
        self.codebook = Codebook(
            num_codes,
            code_dim,
            metric=choose("code_metric", code_metric, CODE_METRICS),
            num_levels=check_whole("code_levels", code_levels),
            decay=check_range("code_decay", code_decay, 0, 1, open_high=True),
            kmeans_iterations=kmeans_iterations,
            dead_threshold=dead_threshold,
            renormalise=not reference,
        )
        self.decode_nodes = nn.Linear(code_dim, num_features if node_target == "features" else hidden_channels)
        self.decode_edges = nn.Linear(code_dim, hidden_channels)
        if direct and not reference:  # a GNN with codes inside starts as the GNN without, but for the rounding to codes
            nn.init.eye_(self.decode_edges.weight)
            nn.init.zeros_(self.decode_edges.bias)

    def forward(self, hidden: Tensor) -> Tokens:
        """Return the codes of hidden states ``[N, H]``; in training, the codebook follows."""
        value, index, commitment = self.codebook(self.project(hidden))
        if self.reference:
            commitment = F.mse_loss(hidden, value.detach())
        return Tokens(hidden, index, value, self.decode_edges(value), commitment)

    def losses(self, tokens: Tokens, x: Tensor | CSR, edges: Tensor | CSR) -> dict[str, Tensor]:
        """Return the weighted terms by name.

        Args:
            tokens: of all nodes.
            x: features ``[N, F]``.
            edges: from :func:`linked_pairs`.
        """
        parts = {"commitment": self.commitment * tokens.commitment}
        if self.node_weight:
            if self.node_target == "features":
                node = scaled_cosine_error(x, tokens.code, self.decode_nodes.weight, self.decode_nodes.bias)
            else:
                target = tokens.hidden if self.reference else tokens.hidden.detach()
                node = F.mse_loss(self.decode_nodes(tokens.code), target)
            parts["node"] = self.node_weight * node
        if self.edge_weight:
            parts["edge"] = self.edge_weight * self._edge_loss(tokens, edges)
        return parts

    def _edge_loss(self, tokens: Tokens, edges: Tensor | CSR) -> Tensor:
        if isinstance(edges, Tensor):
            balanced = self.edge_decoder == "sigmoid-balanced"
            return sampled_edge_loss(tokens.decoded, edges, balanced=balanced)
        with torch.no_grad():
            distinct = tokens.decoded[_one_of_each(tokens.index, self.codebook.num_codes)]
        return min_max_edge_loss(tokens.decoded, edges, distinct).clamp_min(1e-12).sqrt()

    def linked_pairs(self, graph: Graph) -> Tensor | CSR:
        """Return the linked pairs of a graph, loops and both directions included, as the edge term takes them."""
        nodes = torch.arange(graph.num_nodes)
        arcs = torch.cat([to_undirected(graph.edge_index, num_nodes=graph.num_nodes), nodes.expand(2, -1)], 1)
        key = (arcs[0] * graph.num_nodes + arcs[1]).unique()
        if self.edge_decoder != "minmax":
            return key
        if self.codebook.num_levels > 1 and graph.num_nodes > _MOST_PAIRED:
            log.warning(
                "edge_decoder: 'minmax' looks at nearly all pairs of %s nodes with code_levels=%d. Take 'sigmoid'.",
                *(f"{graph.num_nodes:,}", self.codebook.num_levels),
            )
        row, col = key // graph.num_nodes, key % graph.num_nodes
        return CSR.from_coo(row, col, torch.ones(len(key)), (graph.num_nodes, graph.num_nodes))

    def figures(self, index: Tensor) -> dict[str, float]:
        """Return ``usage`` (share of codes in use) and ``perplexity`` of the codes ``[N]`` or ``[N, L]``."""
        codes = self.codebook.num_codes
        return {"usage": usage(index, codes), "perplexity": perplexity(index, codes)}


def _one_of_each(index: Tensor, num_codes: int) -> Tensor:
    """Return a row of each distinct code (of each distinct path of codes, where there are levels)."""
    group = index if index.dim() == 1 else index.unique(dim=0, return_inverse=True)[1]
    row = torch.full((max(num_codes, len(group)),), -1, device=index.device)
    row[group] = torch.arange(len(group), device=index.device)
    return row[row >= 0]


def tokenizer_options() -> list[str]:
    """Return the names of the options of a tokenizer."""
    return [
        p.name
        for p in inspect.signature(Tokenizer).parameters.values()
        if p.kind is p.KEYWORD_ONLY and p.name != "reference"
    ]


_PUBLISHED = {
    "num_codes": 5000,
    "code_metric": "cosine",
    "code_decay": 0.8,
    "kmeans_iterations": 0,
    "dead_threshold": 0.0,
    "node_weight": 1e-3,
    "node_target": "hidden",
    "edge_weight": 0.03,
}


class TokenizedGNN(nn.Module):
    """A GNN with a tokenizer.

    Args:
        place: ``"inside"``: the last layer reads the decoded codes, not the hidden state, and all is trained together,
            as published. ``"beside"``: the GNN is as it is without one. ``"reference"``: the published network, two
            GCN layers of which the first is F wide, and a linear classifier; of ``gnn``'s options it takes all
            but ``num_layers``, which is 2.
        backbone, in_channels, hidden_channels, out_channels, gnn: as :class:`~g2m.models.GNN` takes them.
        options: of :class:`Tokenizer`.
    """

    def __init__(
        self,
        place: str,
        backbone: str,
        in_channels: int,
        hidden_channels: int,
        out_channels: int,
        *,
        gnn: Mapping[str, Any],
        **options: Any,
    ) -> None:
        super().__init__()
        self.place, reference = choose("tokenizer", place, PLACES), place == "reference"
        if gnn["num_layers"] < 2:
            raise G2MError("num_layers: a tokenizer needs a hidden state, expected at least 2 (got 1).")
        if reference and (backbone, gnn["num_layers"]) != ("gcn", 2):
            got = f"{backbone!r}, {gnn['num_layers']} layers"
            raise G2MError(f"tokenizer: 'reference' is a 'gcn' of 2 layers (got {got}). Take 'inside' for others.")
        if reference and (code_dim := options.get("code_dim", "hidden")) != "hidden":
            raise G2MError(f"code_dim: tokenizer='reference' has codes as wide as the features (got {code_dim!r}).")
        inner = (in_channels, hidden_channels) if reference else (hidden_channels, out_channels)
        self.gnn = GNN(backbone, in_channels, *inner, **gnn)
        self.tokenizer = Tokenizer(
            inner[0], in_channels, reference=reference, **({**_PUBLISHED, **options} if reference else options)
        )
        untrained = not len(self.tokenizer.project) and not self.tokenizer.node_weight + self.tokenizer.edge_weight
        if place == "beside" and untrained:
            raise G2MError(
                "node_weight, edge_weight: expected one above 0 (got 0 both: codes of the hidden state as it is follow "
                "it without training). Give one, or a code_dim, whose projection is trained."
            )
        head = (nn.ReLU(), nn.Linear(hidden_channels, out_channels)) if reference else ()
        self.classifier = nn.Sequential(*head)
        self.dropout, self._index = gnn["dropout"], None

    @property
    def hops(self) -> int:
        return self.gnn.hops

    def inputs(self, graph: Graph) -> tuple[Tensor | CSR, CSR]:
        return self.gnn.inputs(graph)

    def inputs_for(self, graph: Graph, nodes: Tensor) -> tuple[tuple, Tensor]:
        """Return what training takes, and the ids of the rows of the answer: reconstruction is over all nodes."""
        return (*self.inputs(graph), self.tokenizer.linked_pairs(graph)), torch.arange(graph.num_nodes)

    def forward(self, x: Tensor | CSR, adjacency: CSR | list[CSR], edges: Tensor | CSR | None = None) -> Output:
        if self.place == "beside":
            return self.gnn(x, adjacency)
        tokens: Tokens

        def between(hidden: Tensor) -> Tensor:
            nonlocal tokens
            if self.place == "reference":  # as published: codes of what dropout has left
                hidden = F.dropout(hidden, self.dropout, self.training)
            tokens = self.tokenizer(hidden)
            return (
                tokens.decoded if self.place == "reference" else F.dropout(tokens.decoded, self.dropout, self.training)
            )

        output = self.gnn(x, adjacency, between=between)
        self._index = tokens.index
        extra = {}
        if self.training and edges is not None:
            extra = self.tokenizer.losses(tokens, x, edges)
        return Output(self.classifier(output.logits), output.hidden, extra)

    def observe(self) -> dict[str, float]:
        """Return usage and perplexity of the codes that the last forward pass gave."""
        return {} if self._index is None else self.tokenizer.figures(self._index)

    @torch.no_grad()
    def knowledge(self, output: Output) -> dict[str, Any]:
        """Return what :class:`~g2m.outputs.TeacherOutputs` has of codes."""
        codes = self.tokenizer.codebook.codes.clone()
        return {
            **({} if self.place == "reference" else self.gnn.knowledge(output)),  # there, more layers follow
            "codebook": codes[0] if len(codes) == 1 else codes,
            "code_input": self.tokenizer.project(output.hidden).clone(),
            "code_metric": self.tokenizer.codebook.metric,
        }


class Reconstruction(nn.Module):
    """The tokenizer's own task, for training it beside a GNN: ``(hidden, x, edges)`` to its losses alone."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self._index: Tensor | None = None

    def forward(self, hidden: Tensor, x: Tensor | CSR, edges: Tensor | CSR) -> Output:
        tokens = self.tokenizer(hidden)
        self._index = tokens.index
        return Output(tokens.decoded, hidden, self.tokenizer.losses(tokens, x, edges))

    def observe(self) -> dict[str, float]:
        return self.tokenizer.figures(self._index)
