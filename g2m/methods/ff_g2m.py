"""FF-G2M: the student imitates what its neighbourhood has in common, and how it differs within."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional as F

from g2m.batches import Batch
from g2m.errors import G2MError, check_range, choose
from g2m.graph import Graph
from g2m.losses import centred, high_frequency_loss, low_frequency_loss, soft_label_loss
from g2m.methods.base import Method, label_loss
from g2m.models import Output, sum_adjacency
from g2m.outputs import TeacherOutputs

if TYPE_CHECKING:
    import optuna

#: What HFD takes of logits.
SPACES = {"centred": centred, "logprob": partial(F.log_softmax, dim=-1), "raw": lambda logits: logits}


class FFG2M(Method):
    """Full-frequency distillation (Wu et al., "Extracting Low-/High-Frequency Knowledge …", AAAI 2023).

    L = λ · mean CE(y, q) + (1 − λ) · (low · LFD + high · HFD + soft · KD)

    - LFD: a node imitates the teacher on itself and on each of its neighbours, mean of KL(p_j ‖ q_i) over arcs and
      nodes. Computed from sums over neighbourhoods that the teacher hands over: exact, and no edge is needed.
    - HFD: a pair of neighbours differs as it does for the teacher, mean over edges of
      KL(softmax(abs(t_i − t_j) / τ₂) ‖ softmax(abs(s_i − s_j) / τ₂)). Takes edges: all, or those of the batch.
    - KD: GLNN's mean of KL(p_i ‖ q_i), off by default.

    Args:
        lam: λ, weight of the true labels in [0, 1]; default 0.1 (published: 0 to 0.5, by data set).
        tau1: temperature of LFD and KD, above 0; default 1, as published.
        tau2: temperature of HFD, above 0; default 1.5 (published: 1 to 1.5).
        low, high, soft: weights of LFD, HFD and KD, from 0; default 1, 1, 0. ``high=0`` is LFD alone, ``low=0`` HFD
            alone, ``low=0, high=0, soft=1`` GLNN. With ``high=0`` and ``tau1=1`` the graph's edges are not used.
        hfd_space: ``"centred"`` (default): logits less their mean, for HFD would see the constant that softmax does
            not; ``"logprob"``: log-probabilities, which do not either; ``"raw"``: logits as they are, as published.

    The teacher's ``low_target`` is read where LFD is at ``tau1=1`` alone; otherwise its logits will do.
    """

    name = "ff_g2m"
    paper = "Wu et al., AAAI 2023"
    needs = frozenset({"logits", "low_target"})

    def __init__(
        self,
        *,
        lam: float = 0.1,
        tau1: float = 1.0,
        tau2: float = 1.5,
        low: float = 1.0,
        high: float = 1.0,
        soft: float = 0.0,
        hfd_space: str = "centred",
    ) -> None:
        super().__init__()
        self.lam = check_range("lam", lam, 0, 1)
        self.tau1 = check_range("tau1", tau1, 0, open_low=True)
        self.tau2 = check_range("tau2", tau2, 0, open_low=True)
        self.low, self.high = check_range("low", low, 0), check_range("high", high, 0)
        self.soft = check_range("soft", soft, 0)
        self.hfd_space = choose("hfd_space", hfd_space, SPACES)
        self.takes_edges = bool(high or (low and tau1 != 1))
        if not low or tau1 != 1:  # sums at another temperature are made here
            self.needs = frozenset({"logits"})
        if not low + high + soft:
            raise G2MError("low, high, soft: expected at least one above 0 (got 0, 0, 0). Use method 'mlp' instead.")

    def prepare(self, graph: Graph, outputs: TeacherOutputs) -> Mapping[str, Tensor]:
        targets = {}
        log_p = outputs.log_soft_labels(self.tau1)
        if self.soft:
            targets["log_soft_labels"] = log_p
        if self.low:
            p = log_p.exp()
            low = outputs.low_target if self.tau1 == 1 else sum_adjacency(graph, loops=1.0).multiply(p)
            # How often a node is counted: its degree, and once for itself. (Of a directed graph, the arcs into it: the
            # value of the loss is then off by a constant.)
            times = low.sum(1)
            mean = times.mean()  # (E + N) / N
            targets["low_target"], targets["low_offset"] = low / mean, times / mean * (p * log_p).sum(1)
        if self.high:
            targets["logits"] = SPACES[self.hfd_space](outputs.logits)
        return targets

    def edges(self, graph: Graph) -> Tensor | None:
        return graph.undirected_edges if self.high else None

    def loss(self, output: Output, batch: Batch) -> Mapping[str, Tensor]:
        logits, targets, size = output.logits, batch.targets, batch.batch_size
        parts = {}
        if self.low:
            low = low_frequency_loss(
                logits[:size], targets["low_target"][:size], targets["low_offset"][:size], self.tau1
            )
            parts["low"] = (1 - self.lam) * self.low * low
        if self.high and batch.only != "label":  # a step on labels alone has no edges
            high = high_frequency_loss(SPACES[self.hfd_space](logits), targets["logits"], batch.edge_index, self.tau2)
            scale = batch.edge_scale * batch.edge_index.size(1)
            parts["high"] = (1 - self.lam) * self.high * scale * high
        if self.soft:
            soft = soft_label_loss(logits[:size], targets["log_soft_labels"][:size], self.tau1)
            parts["soft"] = (1 - self.lam) * self.soft * soft
        return {"label": self.lam * label_loss(output, batch), **parts}

    @classmethod
    def space(cls, trial: optuna.Trial) -> dict[str, Any]:
        return {
            "lam": trial.suggest_float("lam", 0.0, 0.5),
            "tau2": trial.suggest_float("tau2", 0.5, 2.0),
            "high": trial.suggest_float("high", 0.1, 10.0, log=True),
        }
