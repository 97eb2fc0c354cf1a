"""What the trials of a sweep train, and all that they may see: no test label, no unseen node."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from g2m.bench import cache_folder
from g2m.data import load
from g2m.errors import G2MError, OutOfMemoryError
from g2m.estimators import Student, Teacher
from g2m.experiments import Experiment
from g2m.graph import Graph
from g2m.latency import student_latency
from g2m.methods import REGISTRY
from g2m.outputs import TeacherOutputs
from g2m.stacked import fit_stacked, stack_key

Report = Callable[[int, dict[str, float]], bool]
MOST = 8  # graphs kept, and what teachers emit, unless there are more seeds


class NodeTrials:
    """Trains the students that a sweep asks for, by experiment and seed.

    Graphs, teachers and what they emit are kept from one trial to the next; teachers are also kept in a folder.

    Args:
        setting: ``"transductive"`` or ``"inductive"``.
        root: data folder, see :func:`g2m.load`.
        cache: folder of trained teachers; default :func:`~g2m.bench.cache_folder`.
        alive: called now and then, and while a teacher is trained.
    """

    also = ("parameters", "bytes", "latency")  # second objectives

    def __init__(
        self,
        setting: str,
        *,
        root: str | Path | None = None,
        cache: str | Path | None = None,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        self.setting, self.root, self.alive = setting, root, alive
        self.cache = cache_folder() if cache is None else cache
        self._graphs: dict[str, Graph] = {}
        self._outputs: dict[str, TeacherOutputs] = {}
        self._most = MOST  # of each
        self._trained_on: WeakKeyDictionary[Student, Graph] = WeakKeyDictionary()

    def prepare(self, experiment: Experiment, seeds: Iterable[int]) -> None:
        """Load the graphs and train the teachers that all trials share, if they do."""
        seeds = list(seeds)
        self._most = max(MOST, len(seeds))  # they come round in every trial
        if not any(option.startswith(("data.", "teacher.")) for option in experiment.space):
            for seed in seeds:
                self.graph(experiment, seed)
                self.outputs(experiment, seed)

    def graph(self, experiment: Experiment, seed: int) -> Graph:
        """Return the graph of a seed as trials see it."""
        options = experiment.data_options
        return kept(
            self._graphs,
            [experiment.data, seed, options],
            lambda: load(experiment.data, seed=seed, setting=self.setting, root=self.root, **options).for_selection(),
            self._most,
        )

    def outputs(self, experiment: Experiment, seed: int) -> TeacherOutputs | None:
        """Return what the teacher of a seed emits; ``None`` without a teacher."""
        if experiment.teacher is None:
            return None
        graph, method = self.graph(experiment, seed), REGISTRY[experiment.method]
        noise = {} if "entropy_change" in method.needs | method.wants else {"noise_draws": 0}  # it takes passes

        def made() -> TeacherOutputs:
            teacher = Teacher(experiment.teacher, seed=seed, **experiment.teacher_options)
            return teacher.fit(graph, cache=self.cache, on_epoch=lambda _: self.alive()).outputs(graph, **noise)

        of_graph = [experiment.data, seed, experiment.data_options]
        identity = [*of_graph, experiment.teacher, experiment.teacher_options, noise]
        return kept(self._outputs, identity, made, self._most)

    def train(self, experiments: Sequence[Experiment], seed: int, report: Report) -> list[Student | G2MError | None]:
        """Train a student by each experiment, those of the same shape together.

        Args:
            experiments: what to train.
            seed: of all of them.
            report: called with the place of a student and an epoch's record; true ends its training. Of a method that
                searches it is not called: that is worth its best candidate, which may be its last.

        Returns:
            By place: the fitted student, the mistake that made it fail, or ``None`` where ``report`` ended it.
        """
        found: list[Student | G2MError | None] = [None] * len(experiments)
        given: dict[int, tuple[Graph, TeacherOutputs | None]] = {}
        together: dict[Any, list[int]] = {}
        for place, experiment in enumerate(experiments):
            try:
                student = Student(experiment.method, seed=seed, **experiment.student_options)
                graph, outputs = self.graph(experiment, seed), self.outputs(experiment, seed)
                key: Any = place
                if experiment.cell(self.setting, seed).stacks:
                    student._begin(graph, outputs)  # a mistake of its own is not to end the others
                    key = stack_key(student, graph)
            except G2MError as error:
                found[place] = error
            else:
                found[place], given[place], self._trained_on[student] = student, (graph, outputs), graph
                together.setdefault(key, []).append(place)
        for places in together.values():
            students = [found[place] for place in places]
            graphs, outputs = zip(*(given[place] for place in places), strict=True)
            searches = not experiments[places[0]].cell(self.setting, seed).stacks

            def on_epoch(i: int, record: dict[str, float], places: list[int] = places, searches=searches) -> bool:
                if searches:  # the curves of its candidates, one after the other: none of them is the trial's
                    self.alive()
                    return False
                return report(places[i], record)

            failed = _fit(students, graphs, outputs, on_epoch)
            for i, place in enumerate(places):
                if i in failed or not hasattr(students[i], "model_"):
                    found[place] = failed.get(i)
        return found

    def cost(self, student: Student, also: str) -> float:
        """Return what a student costs: its number of ``"parameters"``, their ``"bytes"``, or the ``"latency"`` of one
        node's answer in milliseconds."""
        if also == "latency":
            return student_latency(student, self._trained_on[student], sizes=(1,))[1]["p50"]
        each = (lambda p: p.numel()) if also == "parameters" else (lambda p: p.numel() * p.element_size())
        return float(sum(map(each, student.model_.parameters())))


def _fit(
    students: Sequence[Student], graphs: Sequence[Graph], outputs: Sequence[TeacherOutputs | None], on_epoch: Report
) -> dict[int, G2MError]:
    """Fit students, and return by place the mistakes of those that failed."""
    if len(students) > 1:
        try:
            return fit_stacked(students, graphs, outputs, on_epoch=on_epoch)
        except OutOfMemoryError as error:
            return dict.fromkeys(range(len(students)), error)
    try:
        end_early(students[0].fit, graphs[0], outputs[0], report=lambda record: on_epoch(0, record))
    except G2MError as error:
        return {0: error}
    return {}


class _Ended(Exception):
    """Ends a training."""


def end_early(fit: Callable[..., Any], *given: Any, report: Callable[[dict[str, float]], bool]) -> bool:
    """Call ``fit`` until ``report``, called with each epoch's record, says to end; return whether it did."""

    def on_epoch(record: dict[str, float]) -> None:
        if report(record):
            raise _Ended

    try:
        fit(*given, on_epoch=on_epoch)
    except _Ended:
        return True
    return False


def kept(store: dict[str, Any], identity: Any, make: Callable[[], Any], most: int = MOST) -> Any:
    """Return what is kept under an identity, made if it is not; of many, the oldest go."""
    key = json.dumps(identity, sort_keys=True)
    if key not in store:
        store[key] = make()
        while len(store) > most:
            store.pop(next(iter(store)))
    return store[key]
