"""KRD: the student also imitates its neighbours, the more often the more reliable they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch_geometric.utils import remove_self_loops

from g2m.batches import Batch
from g2m.errors import check_flag, check_range, check_whole
from g2m.graph import Graph
from g2m.losses import low_frequency_loss
from g2m.methods.base import Method, label_loss
from g2m.models import Output
from g2m.outputs import TeacherOutputs
from g2m.sparse import CSR

if TYPE_CHECKING:
    import optuna

_BINS = 50
_LEAST, _MOST = 0.05, 20.0  # bounds of the power


class KRD(Method):
    """Knowledge-inspired reliable distillation (Wu et al., "Quantifying the Knowledge in GNNs for Reliable Distillation
    into MLPs", ICML 2023).

    L = λ · mean CE(y, q) + (1 − λ) · mean over S of KL(p_j ‖ q_i)

    S has every node paired with itself, and every arc (i, j) with probability 1 − ρ_j^α, drawn anew each epoch: ρ in
    [0, 1] says how unsteady the teacher is at j when features are noisy. α follows the student: it is fitted to the
    share of nodes, by ρ, on which student and teacher agree. In the first ``warmup`` epochs S has all arcs. Summed over
    neighbourhoods beforehand, as FF-G2M's low-frequency loss: exact, and a step looks at no edge.

    What is not as published:

    - features are moved by several draws of noise as wide as each feature varies, not by one of variance 1;
    - ρ is divided by its 99 % quantile, not by its largest, an outlier of which makes all others look reliable;
    - α is fitted between 0.05 and 20 at the middles of bins that weigh as many nodes as they have; the released fit has
      neither bounds nor weights, and the middles are shifted.

    Args:
        lam: λ, weight of the true labels in [0, 1]; default 0 (published: 0 to 0.5, by data set).
        tau: temperature of both sides, above 0; default 1 (published: 0.8 to 1.2).
        momentum: of α, in [0, 1]; default 0.99, as published.
        warmup: epochs before neighbours are chosen, from 0; default 50, as published (51 for GCN teachers).
        separate_means: the mean over nodes themselves plus that over their neighbours, as in the paper, rather than one
            mean over S, as in its code; default False.
    """

    name = "krd"
    paper = "Wu et al., ICML 2023"
    needs = frozenset({"logits", "entropy_change"})
    takes_edges = True

    unsteady: Tensor
    log_p: Tensor
    power: Tensor
    epoch: Tensor

    def __init__(
        self,
        *,
        lam: float = 0.0,
        tau: float = 1.0,
        momentum: float = 0.99,
        warmup: int = 50,
        separate_means: bool = False,
    ) -> None:
        super().__init__()
        self.lam = check_range("lam", lam, 0, 1)
        self.tau = check_range("tau", tau, 0, open_low=True)
        self.momentum = check_range("momentum", momentum, 0, 1)
        self.warmup = check_whole("warmup", warmup, 0)
        self.separate_means = check_flag("separate_means", separate_means)

    def prepare(self, graph: Graph, outputs: TeacherOutputs) -> Mapping[str, Tensor]:
        change = outputs.entropy_change[:, 0]
        # By all but the largest: a single outlier would make all others look reliable.
        largest = change.kthvalue(99 * (len(change) - 1) // 100 + 1).values
        self.register_buffer("unsteady", (change / largest.clamp_min(1e-12)).clamp(0, 1), False)
        self.register_buffer("log_p", outputs.log_soft_labels(self.tau), False)
        self.register_buffer("power", torch.ones(()))
        self.register_buffer("epoch", torch.zeros((), dtype=torch.long))
        (source, target), _ = remove_self_loops(graph.edge_index)  # S has every node paired with itself as it is
        self._adjacency = CSR.from_coo(target, source, torch.ones(len(source)), (graph.num_nodes, graph.num_nodes))
        self._seed = int(torch.randint(2**31, ()))
        self._chosen: tuple[int, Tensor, Tensor] | None = None  # epoch, target, offset: follows from the buffers
        return {}

    def after_epoch(self, logits: Callable[[], Tensor]) -> Mapping[str, float]:
        self.epoch += 1
        if self.epoch >= self.warmup:
            agree = logits().argmax(1) == self.log_p.argmax(1)
            fitted = fitted_power(self.unsteady, agree, float(self.power))
            self.power.mul_(self.momentum).add_((1 - self.momentum) * fitted)
        return {"power": float(self.power)}

    def _targets(self) -> tuple[Tensor, Tensor]:
        """Return the teacher's probabilities, and their negative entropy, summed over this epoch's pairs by node."""
        epoch = int(self.epoch)
        if self._chosen is None or self._chosen[0] != epoch:
            a = self._adjacency = self._adjacency.to(self.log_p.device)
            weight = torch.ones(a.nnz)
            if epoch >= self.warmup and a.nnz:
                chance = 1 - self.unsteady.cpu()[a.col.cpu().long()] ** self.power.cpu()
                generator = torch.Generator().manual_seed(self._seed + epoch)
                weight = (torch.rand(a.nnz, generator=generator) < chance).float()
            p = self.log_p.exp()
            own = torch.cat([p, (p * self.log_p).sum(1, keepdim=True)], 1)
            of_others = CSR(a.crow, a.col, weight.to(p.device), a.shape).multiply(own)
            nodes, pairs = len(p), float(weight.sum())
            first, second = nodes / (nodes + pairs), nodes / (nodes + pairs)
            if self.separate_means:
                first, second = 1.0, nodes / max(pairs, 1.0)
            found = first * own + second * of_others
            self._chosen = epoch, found[:, :-1], found[:, -1]
        return self._chosen[1:]

    def loss(self, output: Output, batch: Batch) -> Mapping[str, Tensor]:
        target, offset = self._targets()
        soft = low_frequency_loss(output.logits, target[batch.row], offset[batch.row], self.tau)
        return {"label": self.lam * label_loss(output, batch), "soft": (1 - self.lam) * soft}

    @classmethod
    def space(cls, trial: optuna.Trial) -> dict[str, Any]:
        return {"lam": trial.suggest_float("lam", 0.0, 0.5), "tau": trial.suggest_float("tau", 0.5, 2.0)}


def fitted_power(unsteady: Tensor, agree: Tensor, before: float) -> float:
    """Return the a in [0.05, 20] for which 1 − ρ^a is nearest to the share of nodes that agree, by ρ.

    Shares are those of 50 bins of ρ, scaled to [0, 1] by the least and the greatest, in least squares weighted by the
    nodes in a bin. Where they are all the same, nothing is learned: ``before``.

    Args:
        unsteady: ρ ``[N]``, in [0, 1].
        agree: ``[N]``, whether student and teacher give the same class.
        before: the power so far.
    """
    from scipy.optimize import minimize_scalar

    rho, agree = unsteady.double().cpu(), agree.double().cpu()
    index = (rho * _BINS).long().clamp_max(_BINS - 1)
    count = torch.bincount(index, minlength=_BINS).double()
    there = count > 0
    share = torch.bincount(index, agree, minlength=_BINS)[there] / count[there]
    if share.max() - share.min() < 1e-9:
        return before
    share = (share - share.min()) / (share.max() - share.min())
    centre, weight = ((torch.arange(_BINS) + 0.5) / _BINS)[there].double(), count[there]

    def miss(power: float) -> float:
        return float((weight * (share - 1 + centre**power).square()).sum())

    return float(minimize_scalar(miss, bounds=(_LEAST, _MOST), method="bounded").x)
