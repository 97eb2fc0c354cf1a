"""Experiments of condensation, for sweeps: a set of graphs, how it is condensed, the network trained on the result."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from g2m.condense.bench import SET_OPTIONS, SETS, CondenseCell, scored
from g2m.data import find_card, load
from g2m.errors import G2MError, choose
from g2m.experiments import ExperimentFile
from g2m.graph_classifier import GraphClassifier
from g2m.graph_gnn import GRAPH_BACKBONES
from g2m.graphs import Graphs
from g2m.spaces import check_space
from g2m.trials import MOST, Report, end_early, kept


@dataclass(frozen=True)
class CondenseExperiment(ExperimentFile):
    """What to condense, how, and what to train on it.

    Args:
        data: name of a card of graphs.
        condense: name of a method of condensation, a row of ``g2m bench-condense``.
        backbone: of the network; default ``"gin"``.
        hops: of the trees, and layers of the network; default 2.
        budget: bytes, as in :func:`g2m.condense.condense`; default ``"1%"``; not looked at where ``min_support`` is
            among the method's options, or searched.
        options: of :class:`~g2m.GraphClassifier`.
        condense_options: of the method of condensation.
        space: what a sweep searches: ``hops``, ``budget``, options of the classifier, and with ``condense.`` before it
            of the method. Empty (default): see :meth:`searched`.
        tuned: how a sweep found these options, and their scores.
        paper: published scores.
    """

    required = ("data", "condense")
    example = "lr=0.01 or condense.min_size=2"

    data: str
    condense: str
    backbone: str = "gin"
    hops: int = 2
    budget: str | int = "1%"
    options: dict[str, Any] = field(default_factory=dict)
    condense_options: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Any] = field(default_factory=dict)
    tuned: dict[str, Any] = field(default_factory=dict)
    paper: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        choose("condense", self.condense, SETS)
        choose("backbone", self.backbone, GRAPH_BACKBONES)
        if find_card(self.data).task != "graph classification":
            raise G2MError(f"data: expected a set of graphs (got {self.data!r}, one graph). `g2m data` lists them.")
        self._check_tables()
        check_space(self.space)
        for name in ("num_layers", "seed", "share", "backbone"):
            if name in {**self.options, **self.space}:
                raise G2MError(f"options: {name!r} cannot be set here, the run sets it; hops are the layers.")
        for name in ("num_hops", "budget", "seed"):
            if name in self.condense_options or f"condense.{name}" in self.space:
                raise G2MError(f"condense_options: {name!r} cannot be set here, the run sets it from hops and budget.")
        if "budget" in self.space and self._by_support:
            raise G2MError("space: budget and min_support, one in place of the other. Leave out either.")

    @property
    def _by_support(self) -> bool:
        return "min_support" in self.condense_options or "condense.min_support" in self.space

    def changed(self, options: Mapping[str, Any]) -> CondenseExperiment:
        """Return the experiment with options set, by names as in ``space``; what is set is no longer searched."""
        own = {name: value for name, value in options.items() if name in ("hops", "budget")}
        of_network, of_method = {}, {}
        for key, value in options.items():
            group, dot, name = key.rpartition(".")
            if dot:
                choose("-o: the part before the dot", group, ("condense",))
                of_method[name] = value
            elif key not in own:
                of_network[key] = value
        return replace(
            self,
            **own,
            options=self.options | of_network,
            condense_options=self.condense_options | of_method,
            space={name: spec for name, spec in self.space.items() if name not in options},
        )

    def searched(self, *, sizes: bool = False) -> CondenseExperiment:
        """Return the experiment with its ``space`` spelt out; by default it is the network's learning rate, weight
        decay, dropout and norm.

        Args:
            sizes: by default, also the network's width, and the budget; default False.
        """
        if self.space:
            return self
        space = {
            "lr": {"low": 1e-3, "high": 3e-2, "log": True},
            "weight_decay": {"low": 1e-6, "high": 1e-2, "log": True},
            "dropout": {"low": 0.0, "high": 0.6, "step": 0.1},
            "norm": ["none", "batch", "layer"],
        }
        if sizes:
            space |= {name: spec for name, spec in _SIZES.items() if name != "budget" or not self._by_support}
        return replace(self, space=space)

    def cell(self, setting: str, seed: int) -> CondenseCell:
        if setting != "transductive":
            raise G2MError(f"setting: expected 'transductive', graphs share no edges (got {setting!r}).")
        options, budget = SET_OPTIONS | self.options, None if self._by_support else str(self.budget)
        return CondenseCell(
            self.data, self.condense, self.backbone, seed, self.hops, budget, options, self.condense_options
        )

    def trials(self, setting: str, **options: Any) -> CondenseTrials:
        return CondenseTrials(**options)

    def study_name(self, setting: str) -> str:
        return f"{self.data}-{self.condense}-{self.backbone}".replace(", ", "-")


_SIZES = {"hidden_channels": [16, 32, 64, 128], "budget": ["0.1%", "0.3%", "1%", "3%", "10%"]}


class CondenseTrials:
    """Trains the networks that a sweep asks for, on sets condensed from the training graphs; test graphs are not loaded
    into it.

    Args:
        root: data folder, see :func:`g2m.load`.
        cache: folder of condensed sets.
        alive: called now and then.
    """

    also = ("bytes", "parameters")

    def __init__(
        self,
        *,
        root: str | Path | None = None,
        cache: str | Path | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self.root, self.cache, self.alive = root, cache, alive
        self._graphs: dict[str, Graphs] = {}
        self._most = MOST

    def prepare(self, experiment: CondenseExperiment, seeds: Iterable[int]) -> None:
        """Load the graphs."""
        seeds = list(seeds)
        self._most = max(MOST, len(seeds))  # they come round in every trial
        for seed in seeds:
            self.graphs(experiment, seed)

    def graphs(self, experiment: CondenseExperiment, seed: int) -> Graphs:
        """Return the training and validation graphs of a seed."""

        def made() -> Graphs:
            graphs = load(experiment.data, seed=seed, root=self.root)
            ids = [i for part in ("train", "val") for i in graphs.part(part).tolist()]
            return scored(graphs.subset(ids))

        return kept(self._graphs, [experiment.data, seed], made, self._most)

    def train(
        self, experiments: Sequence[CondenseExperiment], seed: int, report: Report
    ) -> list[GraphClassifier | G2MError | None]:
        """Train a network by each experiment, see :meth:`g2m.trials.NodeTrials.train`."""
        return [self._train(experiment, seed, place, report) for place, experiment in enumerate(experiments)]

    def _train(
        self, experiment: CondenseExperiment, seed: int, place: int, report: Report
    ) -> GraphClassifier | G2MError | None:
        self.alive()
        cell = experiment.cell("transductive", seed)
        try:
            graphs = self.graphs(experiment, seed)
            condensed, network = cell.condensed(graphs, self.cache), cell.network()
            ended = end_early(network.fit, graphs, condensed, report=lambda record: report(place, record))
        except G2MError as error:
            return error
        if not ended:
            network.meta_["bytes"] = condensed.nbytes().raw
        return None if ended else network

    def cost(self, network: GraphClassifier, also: str) -> float:
        """Return the ``"bytes"`` of the set a network was trained on, or the network's ``"parameters"``."""
        return float(network.meta_["bytes"] if also == "bytes" else network.num_parameters())
