"""Onehop: the student reads, beside a node's features, what is kept of its neighbours."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from g2m.batches import Batch, random_rows
from g2m.errors import check_range, check_whole
from g2m.graph import Graph
from g2m.methods.base import first_unless_beaten
from g2m.methods.propagated import Propagated
from g2m.models import MLP, Output, statistics_as_they_are
from g2m.outputs import TeacherOutputs
from g2m.sparse import CSR

if TYPE_CHECKING:
    import optuna

#: Whom to believe: the teacher, corrected by the labels around; the teacher, corrected where labels are; they alone.
TARGETS = ({"lam": 0.0}, {"lam": 0.0, "propagations": 0}, {"lam": 1.0})


class Onehop(Propagated):
    """One table of rows, one mean over known neighbours, then an MLP: g2m's own, after SIGN (Frasca et al., 2020) and
    the positions of NOSMOG (ICLR 2023).

    Of every node that training has seen a row is kept: the first principal components of its features, and what the
    teacher says of it. A student reads the mean of the rows of a node's known neighbours beside the node's own
    features, whether training has seen the node or not. Like one with positions it is not free of the graph, and a
    new node costs it as many short rows as the node has neighbours; a teacher of L layers reads L hops.

    The loss is that of :class:`~g2m.methods.propagated.Propagated`, L = λ · mean CE(y, q) + (1 − λ) · mean KL(r ‖ q),
    and ``alone`` times the same on a quarter of a step's nodes as if nothing were linked to them: a node that comes
    without a known neighbour is then answered as by a student of features.

    Where the teacher is worse than the labels, as GNNs that smooth are where neighbours differ, there is no reason to
    ask it. Three students are trained, on r diffused (λ = 0), on the teacher's own probabilities (λ = 0, no
    propagation; with ``clamp``, the known labels in their place) and on labels alone (λ = 1); the first is taken unless
    another beats it on ``val`` by a standard error of its score there. ``meta_["trials"]`` lists them.

    Args:
        lam: λ in [0, 1], of a single student; default ``None``: the three above.
        tau: temperature of the teacher's probabilities and of the student, above 0; default 1.
        alpha: how much of a node's own answer is put back at every step of the diffusion, in [0, 1]; default 0.1.
        propagations: steps of the diffusion, from 0; default 10.
        clamp: whether training nodes have their labels for probabilities; default True.
        compatibility: see :class:`~g2m.methods.propagated.Propagated`; default False.
        channels: principal components of the features that are kept, from 1, at most as many as there are; default 64.
        alone: weight of the loss without neighbours, from 0; default 0.3.
    """

    name = "onehop"
    reads_own = False

    def __init__(
        self,
        *,
        lam: float | None = None,
        tau: float = 1.0,
        alpha: float = 0.1,
        propagations: int = 10,
        clamp: bool = True,
        compatibility: bool = False,
        channels: int = 64,
        alone: float = 0.3,
    ) -> None:
        diffusion = {"alpha": alpha, "propagations": propagations, "clamp": clamp, "compatibility": compatibility}
        super().__init__(lam=0.0 if lam is None else lam, tau=tau, **diffusion)
        self.lam = lam
        self.channels, self.alone = check_whole("channels", channels), check_range("alone", alone, 0)
        self._components: dict[tuple[str, int], Tensor] = {}  # of the last graph

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_components": {}}  # a copy is trained with the rows that the original has made

    def search(self, model: MLP, graph: Graph, outputs: TeacherOutputs | None) -> Generator[Onehop, float, int] | None:
        return self._search(graph) if self.lam is None else None

    def _search(self, graph: Graph) -> Generator[Onehop, float, int]:
        own = {name: getattr(self, name) for name in self.options()}
        options = [own | target for target in TARGETS]
        scores = []
        for candidate in alike([each for i, each in enumerate(options) if each not in options[:i]], type(self)):
            scores.append((yield candidate))
        return first_unless_beaten(scores, graph)

    def build(self, model: MLP, outputs: TeacherOutputs) -> None:
        self._student = (model,)  # in a tuple: not a part of this module

    def prepare(self, graph: Graph, outputs: TeacherOutputs) -> Mapping[str, Tensor]:
        self.num_features = graph.num_features
        return super().prepare(graph, outputs)

    def loss(self, output: Output, batch: Batch) -> Mapping[str, Tensor]:
        parts = super().loss(output, batch)
        if not self.alone:
            return parts
        some, (model,) = random_rows(batch, max(2, len(batch.row) // 4)), self._student
        (x,) = some.inputs
        if isinstance(x, CSR):
            x = x.with_value(x.value * (x.col < self.num_features))
        else:
            x = torch.cat([x[:, : self.num_features], x.new_zeros(len(x), x.size(1) - self.num_features)], 1)
        with statistics_as_they_are(model):
            own = super().loss(model(x), some)
        if batch.only == "label":
            return parts | {"label": parts["label"] + self.alone * own["label"]}
        return parts | {"alone": self.alone * (own["soft"] if batch.only else sum(own.values()))}

    def positions(self, graph: Graph, outputs: TeacherOutputs) -> Tensor:
        key = graph.fingerprint(edges=False), self.channels
        if key not in self._components:
            from sklearn.decomposition import PCA  # slow to import

            pca = PCA(min(self.channels, *graph.x.shape), random_state=0)
            self._components.clear()
            self._components[key] = torch.from_numpy(pca.fit_transform(graph.x.numpy()))
        p = outputs.soft_labels()
        # About their mean, so that a node nothing is linked to is an average one.
        return torch.cat([self._components[key], p - p.mean(0)], 1)

    @classmethod
    def space(cls, trial: optuna.Trial) -> dict[str, Any]:
        return {"lam": trial.suggest_float("lam", 0.0, 1.0), "alpha": trial.suggest_float("alpha", 0.02, 1.0, log=True)}


def alike(options: Iterable[Mapping[str, Any]], cls: type[Onehop] = Onehop) -> list[Onehop]:
    """Return methods of these options that decompose a graph's features once for all of them."""
    methods = [cls(**each) for each in options]
    for method in methods:
        method._components = methods[0]._components
    return methods
