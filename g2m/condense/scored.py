"""Scored trees: the commonest trees, each labelled by what a linear model of tree counts makes of it."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.sparse import csr_array, hstack
from scipy.special import expit, softmax

from g2m.condense.condensed import CondensedSet
from g2m.condense.mirage import TreeTable, longest, rounded, shares
from g2m.errors import G2MError
from g2m.graphs import Graphs

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

STRENGTHS = (0.1, 1.0, 10.0, 100.0)
_HELD_OUT = 0.2
_STEPS = 100  # of the solver
_MIN_GRAPHS = 2  # a class of trees in fewer graphs says nothing of others


class CountModel:
    """Logistic regression on how often each class of trees, of every depth, is in a graph.

    The regression's strength is chosen by likelihood on a fifth of the training graphs, held out.

    Args:
        levels: counts ``[G, K_l]`` by depth.
        y: classes ``[G]``.
        seed: of what is held out.
    """

    def __init__(self, levels: list[csr_array], y: np.ndarray, seed: int) -> None:
        held_by = [np.bincount(x.indices, minlength=x.shape[1]) for x in levels]
        least = min(_MIN_GRAPHS, max(int(number.max(initial=0)) for number in held_by))
        self.kept = [np.flatnonzero(number >= least) for number in held_by]
        self.scale = 1.0
        whole = self._features(levels)
        # So that a strength means the same for large graphs as for small ones.
        self.scale = float(np.sqrt(whole.multiply(whole).sum() / len(y))) or 1.0
        features = whole / self.scale
        order = np.random.default_rng(seed).permutation(len(y))
        held, rest = np.split(order, [round(_HELD_OUT * len(y))])
        known = set(y[rest])
        held = held[[label in known for label in y[held]]] if len(held) else held

        def likelihood(strength: float) -> float:
            model = self._fitted(features[rest], y[rest], strength)
            column = np.searchsorted(model.classes_, y[held])
            return float(model.predict_log_proba(features[held])[np.arange(len(held)), column].mean())

        usable = len(known) > 1 and len(held)
        self.strength = max(STRENGTHS, key=likelihood) if usable else STRENGTHS[0]
        self.model = self._fitted(features, y, self.strength)

    @staticmethod
    def _fitted(features: csr_array, y: np.ndarray, strength: float) -> LogisticRegression:
        from sklearn.exceptions import ConvergenceWarning  # slow to import, rarely needed
        from sklearn.linear_model import LogisticRegression

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # stopped early is as good a model, of less strength
            return LogisticRegression(C=strength, max_iter=_STEPS).fit(features, y)

    def _features(self, levels: list[csr_array]) -> csr_array:
        return (
            csr_array(hstack([x[:, kept] for x, kept in zip(levels, self.kept, strict=True)]), dtype=float) / self.scale
        )

    def logits(self, levels: list[csr_array]) -> np.ndarray:
        """Return logits ``[G, C]``, or ``[G]`` of two classes."""
        return self.model.decision_function(self._features(levels))

    def scores(self, sizes: list[int]) -> tuple[list[np.ndarray], np.ndarray]:
        """Return what each class of trees adds to the logits ``[K_l, 1 or C]`` by depth, and the logits of nothing."""
        parts = np.split(self.model.coef_.T, np.cumsum([len(kept) for kept in self.kept])[:-1])
        scores = [np.zeros((size, self.model.coef_.shape[0])) for size in sizes]
        for score, kept, part in zip(scores, self.kept, parts, strict=True):
            score[kept] = part / self.scale
        return scores, self.model.intercept_


def scored(graphs: Graphs, *, num_hops: int, budget: int, degrees: bool = False, seed: int = 0) -> CondensedSet:
    """Condense graphs to their commonest trees, each with the label of a graph made of nothing else.

    A linear model of how often each class of trees is in a graph, of any depth up to ``num_hops``, says what a node
    adds to the logits of its graph. A record is a bag of one tree, as often as a mean graph has nodes, and the model's
    probabilities for such a graph. It weighs as often as the tree occurs. A network that sums over nodes and learns
    them all has the model's knowledge of the trees that are there, and its own of others.

    Args:
        graphs: the training graphs.
        num_hops: of the trees, from 1: as many as layers of the networks to be trained.
        budget: bytes that the set may take.
        degrees: whether to tell nodes of different degree apart, for GCN; default: give it one hop more.
        seed: of the fifth of the graphs on which the model's strength is chosen.

    Raises:
        G2MError: if there are no nodes, or not even one tree fits the budget.
    """
    table = TreeTable(graphs, num_hops, degrees)
    levels = [table.at(depth) for depth in range(num_hops + 1)]
    sizes = [level.shape[1] for level in levels]
    of = [table.dag.below(np.arange(sizes[-1]), depth) for depth in range(num_hops + 1)]
    mean_size = max(1, round(graphs.num_nodes / len(graphs)))
    label, known = table.labels()
    y = graphs.y.numpy()

    def probabilities(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return those ``[K, C]`` of graphs of one class of trees each."""
        present = np.unique(labels)
        made = np.zeros((sizes[-1], int(present.max()) + 1))
        if len(present) == 1:
            made[:, present] = 1
            return made
        model = CountModel([level[rows] for level in levels], labels, seed)
        scores, start = model.scores(sizes)
        logits = start + mean_size * sum(score[index] for score, index in zip(scores, of, strict=True))
        found = softmax(logits, 1) if logits.shape[1] > 1 else np.column_stack([expit(-logits), expit(logits)])
        made[:, present] = found
        return made

    if y.ndim == 1:
        found = probabilities(y, np.arange(len(y)))
        found = np.pad(found, ((0, 0), (0, graphs.num_classes - found.shape[1])))
    else:
        found = np.full((sizes[-1], y.shape[1]), np.nan)
        for task in range(y.shape[1]):
            rows = np.flatnonzero(known[:, task])
            if len(rows):
                found[:, task] = probabilities(label[rows, task].astype(int), rows)[:, 1:].sum(1)
    counts = np.asarray(table.counts.sum(0)).ravel()
    order = np.argsort(-counts, kind="stable")

    def make(size: int) -> CondensedSet:
        kept = np.sort(order[:size])
        content = table.bags(np.arange(size), kept, np.full(size, mean_size), size)
        labels = shares(found[kept]) if y.ndim == 1 else np.rint(255 * found[kept]) / 255
        weight = rounded(counts[kept])
        if y.ndim == 2:
            weight = weight[:, None].expand(-1, y.shape[1]).contiguous()
        return CondensedSet(content, torch.from_numpy(labels.astype(np.float32)), weight)

    made = longest(make, len(order), budget)
    if not len(made):
        raise G2MError(f"budget: expected at least {make(1).nbytes().raw} bytes, what a tree takes (got {budget}).")
    return made
