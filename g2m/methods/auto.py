"""Auto: several methods at once, or one alone, as validation has it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from g2m.batches import Batch
from g2m.errors import G2MError, check_flag, check_range, check_whole, choose
from g2m.graph import Graph
from g2m.methods.base import REGISTRY, Method, first_unless_beaten
from g2m.methods.onehop import TARGETS, alike
from g2m.models import MLP, Output
from g2m.outputs import TeacherOutputs

#: What can be mixed, in the order in which it is tried, with the options it is taken with: no positions, for a student
#: is to stay free of the graph, and no adversary, which costs more than all the rest.
COMPONENTS: Mapping[str, Mapping[str, Any]] = {
    "propagated": {},
    "ff_g2m": {},
    "krd": {},
    "glnn": {},
    "nosmog": {"position": "none", "eta": 0.0},
    "vqgraph": {},
    "hidden": {},
    "simmlp": {},
}

#: In equal parts, what is tried first.
BLEND = ("hidden", "simmlp")


class Auto(Method):
    """The weighted sum of other methods' losses; which of them count is decided on validation.

    First a blend, equal parts of :data:`BLEND`; then each method alone that the teacher's outputs allow; then blends of
    weights that Optuna's TPE proposes from the scores so far, as long as the budget lasts. Another has to beat the
    first blend on ``val`` by a standard error of its score there: of eight students on two hundred nodes, the best is
    mostly lucky. One that cannot be trained is passed over. ``meta_["trials"]`` lists them, with what went wrong as
    ``error``, and ``taken`` in ``meta_["figures"]`` is the place there of the one kept.

    Args:
        mixture: weights by name of a method, above 0, scaled to sum to 1: train by it, and search for nothing. Default
            ``None``: search.
        budget: how many students are trained, from 1; default 8: the first blend and seven alone, all that
            a teacher without codes allows.
        neighbours: try the three of :class:`~g2m.methods.onehop.Onehop` before the blend, and take the first of them
            unless another student beats it: nodes of ``val`` were there in training, and do not show what a student
            that reads of neighbours gains on nodes that were not. It is not free of the graph; default False.
    """

    name = "auto"
    paper = "g2m"
    needs = frozenset({"logits"})
    wants = frozenset({"hidden", "low_target", "entropy_change", "codebook", "code_input"})

    def __init__(
        self, *, mixture: Mapping[str, float] | None = None, budget: int = 8, neighbours: bool = False
    ) -> None:
        super().__init__()
        self.budget, self.neighbours = check_whole("budget", budget), check_flag("neighbours", neighbours)
        self.mixture = mixture
        if mixture is None:
            return
        if neighbours:
            raise G2MError("neighbours: expected False with a mixture, which is not searched for. Leave out either.")
        if not isinstance(mixture, Mapping) or not mixture:
            raise G2MError(f"mixture: expected weights by name, {{'glnn': 1.0, 'krd': 0.5}} (got {mixture!r}).")
        checked = {
            name: check_range(f"mixture: {choose('mixture', name, COMPONENTS)}", weight, 0, open_low=True)
            for name, weight in mixture.items()
        }
        # In one order, whichever it was written in: components draw their weights one after the other.
        self.mixture = mixture = {name: checked[name] for name in COMPONENTS if name in checked}
        total = sum(mixture.values())
        self.figures = {f"weight of {name}": weight / total for name, weight in mixture.items()}
        self.components = nn.ModuleDict({name: _component(name) for name in mixture})
        self.needs = frozenset().union(*(component.needs for component in self.components.values()))
        self.takes_edges = any(component.takes_edges for component in self.components.values())

    def search(self, model: MLP, graph: Graph, outputs: TeacherOutputs | None) -> Generator[Method, float, int] | None:
        if self.mixture is not None:
            return None
        return self._search(graph, [name for name in COMPONENTS if _possible(name, model, graph, outputs)])

    def _search(self, graph: Graph, known: list[str]) -> Generator[Method, float, int]:
        blend = [name for name in known if name in BLEND] or known[:1]
        alone = [name for name in known if [name] != blend]
        reading = TARGETS if self.neighbours and graph.observed().num_edges else ()
        mixtures = [dict.fromkeys(names, 1.0) for names in (blend, *([name] for name in alone))]
        candidates = [*alike(reading), Auto(mixture=mixtures[0]), *map(_component, alone)]
        scores = []
        for candidate in candidates[: self.budget]:
            scores.append((yield candidate))
        if len(known) > 1 and self.budget > len(scores):
            blends = _blends(known, zip(mixtures, scores[len(reading) :], strict=True))
            mixture = next(blends)
            while self.budget > len(scores):
                scores.append((yield Auto(mixture=mixture)))
                mixture = blends.send(scores[-1])
        return first_unless_beaten(scores, graph)

    # -- a mixture ---------------------------------------------------------------------------------------------

    def build(self, model: MLP, outputs: TeacherOutputs | None) -> None:
        for component in self.components.values():
            component.build(model, outputs)

    def prepare(self, graph: Graph, outputs: TeacherOutputs | None) -> Mapping[str, Tensor]:
        targets = {}
        for name, component in self.components.items():
            targets |= {f"{name}.{key}": value for key, value in component.prepare(graph, outputs).items()}
        return targets

    def edges(self, graph: Graph) -> Tensor | None:
        found = {name: component.edges(graph) for name, component in self.components.items()}
        self._of_edges = {name for name, edges in found.items() if edges is not None}
        return next((edges for edges in found.values() if edges is not None), None)

    def after_epoch(self, logits: Callable[[], Tensor]) -> Mapping[str, float]:
        return {
            f"{name}.{key}": value
            for name, component in self.components.items()
            for key, value in component.after_epoch(logits).items()
        }

    def loss(self, output: Output, batch: Batch) -> Mapping[str, Tensor]:
        total, parts = sum(self.mixture.values()), {}
        drawn = _drawn(output, batch)
        for name, component in self.components.items():
            own_output, own = (output, batch) if name in self._of_edges else drawn
            targets = {key.removeprefix(f"{name}."): v for key, v in own.targets.items() if key.startswith(f"{name}.")}
            weight = self.mixture[name] / total
            for key, value in component(own_output, replace(own, targets=targets)).items():
                if key == "label":
                    parts[key] = parts.get(key, 0) + weight * value
                else:
                    parts[f"{name}.{key}"] = weight * value
        return parts


def _component(name: str) -> Method:
    return REGISTRY[name](**COMPONENTS[name])


def _blends(
    names: list[str], told: Iterable[tuple[Mapping[str, float], float]]
) -> Generator[dict[str, float], float, None]:
    """Yield weights in (0, 1) of two methods or more, as TPE proposes them; each is answered with its score.

    Of a number for each method those above ½ are taken, and the two highest; ``told`` are known mixtures and scores.
    """
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # no line for every search
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    optuna.logging.set_verbosity(verbosity)
    space = {name: optuna.distributions.FloatDistribution(0, 1) for name in names}
    for mixture, score in told:
        params = {name: mixture.get(name, 0.25) for name in names}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=space, value=score))
    while True:
        trial = study.ask(space)
        highest = sorted(names, key=trial.params.__getitem__)[-2:]
        score = yield {name: weight for name, weight in trial.params.items() if weight > 0.5 or name in highest}
        study.tell(trial, score)


def _possible(name: str, model: MLP, graph: Graph, outputs: TeacherOutputs) -> bool:
    """Whether teacher, student and graph have what a method takes."""
    component = _component(name)
    if any(getattr(outputs, need, None) is None for need in component.needs):
        return False
    if component.takes_edges and not graph.observed().num_edges:
        return False
    try:
        component.build(copy.deepcopy(model), outputs)
    except G2MError:  # of a student too shallow for it
        return False
    return True


def _drawn(output: Output, batch: Batch) -> tuple[Output, Batch]:
    """Return the rows that were drawn, without those that are there for their edges."""
    size = batch.batch_size
    if size is None or size == len(batch.row):
        return output, batch
    hidden = None if output.hidden is None else output.hidden[:size]
    rows = {key: value[:size] for key, value in batch.targets.items()}
    inputs = tuple(value[torch.arange(size, device=batch.row.device)] for value in batch.inputs)
    cut = replace(
        batch, inputs=inputs, row=batch.row[:size], y=batch.y[:size], labelled=batch.labelled[:size], targets=rows
    )
    return Output(output.logits[:size], hidden, output.extra), cut
