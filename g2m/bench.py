"""Benchmarks: data × teacher × method × setting × seed, resumable, over processes, one JSON line per cell."""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
import os
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from logging.handlers import QueueHandler
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from g2m import distributed
from g2m.data import find_card, load
from g2m.errors import G2MError, OutOfMemoryError, check_keys, check_names, check_whole, choose
from g2m.estimators import Student, Teacher, versions
from g2m.experiments import Experiment, alike, find, find_tuned, overridden
from g2m.graph import SETTINGS, Graph
from g2m.latency import student_latency, teacher_latency
from g2m.methods import REGISTRY, Method
from g2m.models import BACKBONES
from g2m.outputs import TeacherOutputs
from g2m.stacked import fit_stacked, stack_key
from g2m.storage import check_writable

try:
    import fcntl
except ImportError:  # not there on Windows
    fcntl = None

log = logging.getLogger(__name__)
Record = dict[str, Any]
#: What ``g2m bench --all`` runs every method on.
ALL_DATA = (
    *(f"{name}-cpf" for name in ("cora", "citeseer", "photo", "computers", "cs", "physics")),
    *("tolokers", "minesweeper", "chameleon-filtered", "squirrel-filtered"),
)
ALL_TEACHERS = ("sage", "gcn")
_LATENCY_SECONDS = 0.2  # a model and way of asking it; three calls at least

# What the lines of a results file have at least, see :func:`_wrong`.
_SCORES = {...: int | float | None}
_RUN = dict.fromkeys(("layers", "width", "parameters", "epochs", "seconds"), int | float)
_NAMES = {"data": str, "teacher": str | None, "method": str}
_CONFIG = {**_NAMES, **dict.fromkeys(("data_options", "teacher_options", "student_options"), dict), "versions": dict}
_COMMON = {"key": str, "data": str, "seed": int, "metric": str, "scores": _SCORES}
_OF_NODES = {**_COMMON, **_NAMES, "setting": SETTINGS, "run": _RUN, "config": _CONFIG}
_OF_TEACHER = {"teacher_scores": _SCORES, "teacher_run": _RUN}
_OF_SETS = {**_COMMON, "row": str, "backbone": str | None, "hops": int, "budget": object}
_OF_SETS |= {"options": dict, "method_options": dict}


def cache_folder() -> Path:
    """Return the folder of trained teachers: ``G2M_CACHE``, otherwise ``~/.cache/g2m``."""
    return Path(os.environ.get("G2M_CACHE") or Path.home() / ".cache" / "g2m")


@dataclass(frozen=True)
class Cell:
    """One training run of a benchmark."""

    experiment: Experiment
    setting: str
    seed: int

    @property
    def job(self) -> tuple:
        """Cells of one job run one after the other: they share a teacher, which the first trains, and others read."""
        return self.experiment.data, self.experiment.teacher, self.setting, self.seed

    @property
    def stacks(self) -> bool:
        """Whether students of several seeds can be trained at once: not where the method searches."""
        return REGISTRY[self.experiment.method].search is Method.search

    @property
    def files(self) -> tuple[str, ...]:
        """What is in its folder once it is run."""
        names = ("student",) if self.experiment.teacher is None else ("student", "teacher", "outputs")
        return tuple(f"{name}.safetensors" for name in names)

    def run(self, **options: Any) -> Record:
        """Train the cell, see :func:`run_cell`."""
        return run_cell(self, **options)

    def check(self) -> None:
        """Refuse a wrong card, option or size before anything is trained."""
        card = find_card(self.experiment.data)
        if card.task != "node classification":
            raise G2MError(
                f"data: expected one graph (got {card.name!r}, a set of graphs). For those see g2m condense and "
                "bench-condense."
            )
        check_keys(f"data {card.name!r}", self.experiment.data_options, [*card.options, "split", "download"])
        with torch.device("meta"):  # no memory, no random numbers
            for estimator in self.estimators():
                if estimator is not None:
                    estimator._build(2, 2)

    @property
    def key(self) -> str:
        """A hash of everything that is asked for; what is left to a default is what the versions at hand make it."""
        content = {**self.experiment.config(), "setting": self.setting, "seed": self.seed}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    def estimators(self) -> tuple[Teacher | None, Student]:
        """Return the unfitted teacher (``None`` if the method has none) and student; wrong options are refused."""
        experiment = self.experiment
        teacher = None
        if experiment.teacher is not None:
            teacher = Teacher(experiment.teacher, seed=self.seed, **experiment.teacher_options)
        return teacher, Student(experiment.method, seed=self.seed, **experiment.student_options)


def cells(
    data: Iterable[str],
    *,
    methods: Iterable[str] = ("mlp", "glnn"),
    teachers: Iterable[str] = ("sage",),
    settings: Iterable[str] = SETTINGS,
    seeds: int = 10,
    common: bool = False,
    tuned: bool = False,
    overrides: Iterable[str] = (),
) -> list[Cell]:
    """Return the cells of a grid; a method without a teacher is there once, not once per teacher.

    Args:
        data: card names.
        methods: method names.
        teachers: backbone names.
        settings: ``"transductive"``, ``"inductive"``.
        seeds: seeds 0 … seeds-1; a seed draws the split, the unseen nodes and the initial weights.
        common: give every method the teacher and the student that the plain one has on a data set
            (:func:`g2m.experiments.alike`), for a comparison of methods; default False: each what was published for it.
        tuned: the options that a sweep of ours found (:func:`g2m.experiments.find_tuned`) instead; default False.
        overrides: ``key=value`` options on top of that.
    """
    data, methods, teachers, settings = list(data), list(methods), list(teachers), list(settings)
    overrides = list(overrides)
    check_names(data=data, methods=methods, teachers=teachers, settings=settings)
    for setting in settings:
        choose("settings", setting, SETTINGS)
    for teacher in teachers:
        choose("teachers", teacher, BACKBONES)
    check_whole("seeds", seeds)
    for name in data:  # an unknown one is no method's mistake
        find_card(name)
    found: dict[str, Cell] = {}
    choice = find_tuned if tuned else alike if common else find
    chosen = [choice(name, method, teacher) for name in data for teacher in teachers for method in methods]
    chosen = overridden(chosen, overrides)
    for name in data:
        first = [Cell(experiment, settings[0], 0) for experiment in chosen if experiment.data == name]
        for cell in first:
            try:
                cell.check()
            except G2MError as error:
                if len(first) == 1:
                    raise
                raise G2MError(f"{error} (Asked of {cell.experiment.method!r} on {name!r}.)") from None
        # What searches comes last, and takes over what the others have trained.
        experiments = [cell.experiment for cell in sorted(first, key=lambda cell: not cell.stacks)]
        for setting in settings:
            for seed in range(seeds):
                for experiment in experiments:
                    cell = Cell(experiment, setting, seed)
                    found.setdefault(cell.key, cell)
    return list(found.values())


def run_cell(
    cell: Cell,
    *,
    root: str | Path | None = None,
    cache: str | Path | None = None,
    folder: str | Path | None = None,
    progress: bool = False,
) -> Record:
    """Train one cell (its teacher is read from the cache if it is there) and return its record.

    ``run``, and ``teacher_run`` where there is a teacher, have the size of the model, what its training took, the
    ``threads`` and the ``device`` of it, and ``ms``: the median milliseconds for one node's answer, the teacher's with
    the fetch of the neighbourhood.

    Args:
        cell: what to run.
        root: data folder, see :func:`g2m.load`.
        cache: folder of trained teachers; default :func:`cache_folder`.
        folder: keep teacher, outputs and student there, with checkpoints to resume from; default: keep none.
        progress: show bars; default False.
    """
    begun = _Begun(cell, root=root, cache=cache, all_outputs=folder is not None, progress=progress)
    known, there, checkpoint = _students(begun.graph), [], None
    if folder is not None:
        file, checkpoint = Path(folder) / "student.safetensors", Path(folder) / "student.checkpoint"
        if distributed.alike(file.is_file, file):  # trained before, and stopped on the way to its record
            there = [Student.load(file)]
    trained = there if cell.stacks else [*there, *known]  # what does not search was asked for
    begun.student.fit(begun.graph, begun.outputs, checkpoint=checkpoint, trained=trained, progress=progress)
    if folder is not None:
        distributed.from_first(lambda: str(begun.student.save(file)))
    if cell.stacks and begun.student.position_ is None:
        known.append(begun.student)
    return distributed.from_first(lambda: begun.end(folder))


def run_stacked(cells: Sequence[Cell], *, progress: bool = False, **options: Any) -> list[Record | G2MError]:
    """Train cells that differ in their seed alone, their students at once (:func:`g2m.fit_stacked`).

    Returns what :func:`run_cell` returns of each, or the mistake that made it fail.
    """
    begun: dict[int, _Begun] = {}
    found: dict[int, Record | G2MError] = {}
    together: dict[tuple, list[int]] = {}  # a seed may draw fewer nodes, and so fewer steps
    for place, cell in enumerate(cells):
        try:
            begun[place] = each = _Begun(cell, progress=progress, **options)
            each.student._begin(each.graph, each.outputs)  # a mistake of its own is not to end the others
            key = stack_key(each.student, each.graph)
        except G2MError as error:
            found[place] = error
        else:
            together.setdefault(key, []).append(place)
    for places in together.values():
        runs = [begun[place] for place in places]
        given = ([getattr(each, name) for each in runs] for name in ("student", "graph", "outputs"))
        try:
            failed = fit_stacked(*given, progress=progress)
        except OutOfMemoryError as error:  # of these; others may be smaller
            failed = dict.fromkeys(range(len(places)), error)
        found |= {place: failed[i] if i in failed else runs[i].end() for i, place in enumerate(places)}
    return [found[place] for place in range(len(cells))]


class _Lesson:
    """A trained teacher and what it says of a graph; cells of one job share it."""

    def __init__(self, teacher: Teacher, graph: Graph) -> None:
        self.teacher, self.graph = teacher, graph
        self._outputs: dict[bool, TeacherOutputs] = {}

    def outputs(self, with_noise: bool) -> TeacherOutputs:
        """Return the outputs, with what noise does to them if asked: that takes several passes."""
        if with_noise not in self._outputs:
            options = {} if with_noise else {"noise_draws": 0}
            self._outputs[with_noise] = self.teacher.outputs(self.graph, **options)
        return self._outputs[with_noise]

    @cached_property
    def record(self) -> Record:
        times = teacher_latency(self.teacher, self.graph, sizes=(1,), seconds=_LATENCY_SECONDS)
        run = _run(self.teacher) | {"ms": round(times[1]["p50"], 4)}
        return {"teacher_scores": self.teacher.evaluate(self.graph), "teacher_run": run}


# One of each is kept: a job's cells come one after the other. Options are JSON, to be compared.
@lru_cache(maxsize=1)
def _graph(data: str, options: str, setting: str, seed: int, root: str | Path | None) -> Graph:
    return load(data, seed=seed, setting=setting, root=root, **json.loads(options))


@lru_cache(maxsize=1)
def _lesson(graph: Graph, model: str, options: str, seed: int, cache: str | Path, progress: bool) -> _Lesson:
    teacher = Teacher(model, seed=seed, **json.loads(options))
    distributed.from_first(lambda: teacher.fit(graph, cache=cache, progress=progress).meta_)
    if distributed.rank():  # it is in the cache; where that is another machine's, it is trained here as well
        teacher.fit(graph, cache=cache)
    return _Lesson(teacher, graph)


@lru_cache(maxsize=1)
def _students(graph: Graph) -> list[Student]:
    """Those that cells of this graph have trained: what a search tries is often one of them."""
    return []


def _forget() -> None:
    for cached in (_graph, _lesson, _students):
        cached.cache_clear()


class _Begun:
    """A cell whose teacher is trained and whose student is not."""

    def __init__(
        self,
        cell: Cell,
        *,
        root: str | Path | None = None,
        cache: str | Path | None = None,
        all_outputs: bool = False,
        progress: bool = False,
    ) -> None:
        experiment, setting, seed = cell.experiment, cell.setting, cell.seed
        self.graph = graph = _graph(experiment.data, json.dumps(experiment.data_options), setting, seed, root)
        _, self.student = cell.estimators()
        self.lesson, self.outputs, self.config = None, None, experiment.config()
        self.record: Record = {
            "key": cell.key,
            "data": experiment.data,
            "setting": setting,
            "teacher": experiment.teacher,
            "method": experiment.method,
            "seed": seed,
            "metric": graph.metric,
        }
        if experiment.teacher is None:
            return
        options = json.dumps(experiment.teacher_options, sort_keys=True)
        cache = cache_folder() if cache is None else cache
        self.lesson = _lesson(graph, experiment.teacher, options, seed, cache, progress)
        method = REGISTRY[experiment.method]
        self.outputs = self.lesson.outputs(all_outputs or "entropy_change" in method.needs | method.wants)

    def end(self, folder: str | Path | None = None) -> Record:
        """Return the record, now that the student is trained; keep its teacher and the outputs in ``folder``."""
        if self.lesson is not None:
            if folder is not None:
                self.lesson.teacher.save(Path(folder) / "teacher.safetensors")
                self.outputs.save(Path(folder) / "outputs.safetensors")
            self.record |= self.lesson.record
        scores = self.student.evaluate(self.graph)
        times = student_latency(self.student, self.graph, sizes=(1,), seconds=_LATENCY_SECONDS)
        run = _run(self.student) | {"ms": round(times[1]["p50"], 4)}
        config = {**self.config, "versions": self.student.meta_["versions"]}
        return {**self.record, "scores": scores, "run": run, "config": config}


def _run(estimator: Teacher | Student) -> dict[str, Any]:
    history = estimator.history_
    return {
        "layers": estimator.num_layers,
        "width": estimator.hidden_channels,
        "parameters": estimator.num_parameters(),
        "entries": estimator.num_entries(),
        "best_epoch": history.best_epoch,
        "epochs": len(history),
        "seconds": round(estimator.meta_["seconds"], 2),  # of codes beside the network as well
        # Files of older versions do not say.
        **{name: estimator.meta_[name] for name in ("threads", "device") if name in estimator.meta_},
        **{name: round(value, 4) for name, value in estimator.meta_.get("figures", {}).items()},
    }


def read_results(path: str | Path) -> list[Record]:
    """Read a results file. A last line cut short by a kill is left out; any other broken line is an error.

    A line is a JSON object with ``key`` (a training, see :func:`run_cell`), with ``key`` and ``row`` (see
    :mod:`g2m.condense.bench`), or with ``table`` (a row of that table).
    """
    path = Path(path)
    if not path.is_file():
        raise G2MError(f"path: no results file {str(path)!r}.")
    records: list[Record] = []
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line.decode())
        except ValueError as error:
            if number == len(lines) and not line.endswith(b"\n") and line.startswith(b"{"):
                break
            raise G2MError(f"path: line {number} of {str(path)!r} is not JSON ({error}).") from None
        if not isinstance(record, dict):
            raise G2MError(f"path: line {number} of {str(path)!r} is not a result of g2m (got {record!r}).")
        expected = _OF_SETS if "row" in record else _OF_NODES | (_OF_TEACHER if "teacher_scores" in record else {})
        if "table" not in record and (wrong := _wrong(record, expected)):
            raise G2MError(
                f"path: line {number} of {str(path)!r} is not a result of g2m, it lacks {wrong[1:]!r} or has something "
                "else there. Leave the line out."
            )
        records.append(record)
    return records


def _wrong(found: Any, expected: Any, path: str = "") -> str:
    """Return the path of the first value that is missing or not as expected: of a type, one of a tuple, a table of
    such by name, or, where the name is ``...``, by any name. Empty if there is none."""
    if not isinstance(expected, dict):
        known = found in expected if isinstance(expected, tuple) else isinstance(found, expected)
        return "" if known else path
    if not isinstance(found, dict):
        return path
    missing = (f"{path}.{name}" for name in expected if name is not ... and name not in found)
    wrong = (_wrong(found[name], expected.get(name, expected.get(..., object)), f"{path}.{name}") for name in found)
    return next(missing, "") or next(filter(None, wrong), "")


def append_result(path: str | Path, record: Mapping[str, Any]) -> None:
    """Add one line to a results file; a line cut short by a kill is taken off first.

    Several processes may write to one file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if fcntl is not None:  # until it is closed: the half of another process's line is not one cut short
            fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        content = file.read()
        line = json.dumps(record).encode() + b"\n"
        if content and not content.endswith(b"\n"):
            start = content.rfind(b"\n") + 1
            if _is_json(content[start:]):  # whole but for its end: reading takes it, so it stays
                line = b"\n" + line
            else:
                file.truncate(start)
        file.write(line)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def run(
    grid: Iterable[Cell],
    *,
    out: str | Path | None = None,
    workers: int = 1,
    stack: int = 1,
    folders: Mapping[str, Path] | None = None,
    progress: bool = False,
    on_error: Callable[[Cell, G2MError], None] | None = None,
    **options: Any,
) -> Iterator[Record]:
    """Run cells and yield their records as they are ready; finished ones are read from ``out``, not run again.

    Args:
        grid: from :func:`cells`, or of :func:`g2m.condense.bench.cells`.
        out: results file, one JSON line per cell; a killed run continues from it.
        workers: processes; threads are divided among them. Default 1: this process.
        stack: seeds whose students are trained at once, see :func:`run_stacked`; default 1. Cells with a folder,
            and methods that search, go one by one.
        folders: by cell key, where to keep what was trained; where a file of that is gone, the cell is run again.
        progress: show a bar per training (one process only); default False.
        on_error: called with a cell that a user's mistake made fail, and the run goes on. Default: the mistake ends it.
        options: ``root`` and ``cache`` of :func:`run_cell`.

    Raises:
        G2MError: on a broken results file, a killed worker and, where ``on_error`` is not given, a failed cell.
    """
    check_keys("run", options, ("root", "cache"))
    check_whole("workers", workers)
    check_whole("stack", stack)
    if distributed.size() > 1 and (workers > 1 or stack > 1):
        raise G2MError(
            f"workers, stack: expected 1 and 1 where torchrun's processes train one student together (got {workers} "
            f"and {stack}). Leave them out, or leave out torchrun."
        )
    _forget()  # what single cells left: data may be others by now
    if out is not None:
        check_writable("out", Path(out))
    finished = {r["key"]: r for r in read_results(out) if "key" in r} if out is not None and Path(out).exists() else {}
    left, folders, made_by = [], folders or {}, set()
    for cell in grid:
        folder = folders.get(cell.key)
        if cell.key in finished and (folder is None or all((folder / name).is_file() for name in cell.files)):
            made_by.add(json.dumps(finished[cell.key].get("config", {}).get("versions")))
            yield finished[cell.key]
        else:
            left.append(cell)
    if left and (others := made_by - {"null", json.dumps(versions())}):
        log.warning(
            "out: %s has finished trainings of %s; this one's are of %s. Name another file to keep them apart.",
            *(out, " and ".join(sorted(others)), json.dumps(versions())),
        )
    with closing(_outcomes(_jobs(left, stack, folders), workers, folders, progress, options)) as outcomes:
        for cells, outcome in outcomes:
            for cell, record in zip(cells, outcome(), strict=True):
                if isinstance(record, G2MError):
                    if on_error is None:
                        raise record
                    on_error(cell, record)
                    continue
                if out is not None:
                    distributed.from_first(partial(append_result, out, record))
                yield record
    _forget()


_Cells = list[Cell]  # trained at once


def _jobs(grid: Iterable[Cell], stack: int, folders: Mapping[str, Path]) -> list[list[_Cells]]:
    """Return what is to be run one after the other, because it shares a teacher, job by job."""
    jobs: dict[tuple, dict[tuple, _Cells]] = {}
    for cell in grid:
        alone = stack == 1 or cell.key in folders or not cell.stacks
        job = (*cell.job[:-1], cell.seed // stack) if stack > 1 else cell.job
        together = (cell.key,) if alone else (json.dumps(cell.experiment.config(), sort_keys=True),)
        jobs.setdefault(job, {}).setdefault(together, []).append(cell)
    return [list(job.values()) for job in jobs.values()]


def _run_cells(cells: _Cells, folder: Path | None, options: Mapping[str, Any]) -> list[Record | G2MError]:
    if len(cells) > 1:
        return run_stacked(cells, **options)
    try:
        return [cells[0].run(folder=folder, **options)]
    except G2MError as error:
        return [error]


def _outcomes(
    jobs: list[list[_Cells]], workers: int, folders: Mapping[str, Path], progress: bool, options: dict[str, Any]
) -> Iterator[tuple[_Cells, Callable[[], list[Record | G2MError]]]]:
    """Yield cells and a call that returns the record of each, or the mistake that made it fail."""
    if workers <= 1:
        for job in jobs:
            for cells in job:
                yield cells, partial(_run_cells, cells, folders.get(cells[0].key), {**options, "progress": progress})
        return
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    logs = context.Queue()
    options_of_pool = {"mp_context": context, "initializer": start_worker, "initargs": (threads, logs)}
    with _logged_here(logs), ProcessPoolExecutor(workers, **options_of_pool) as pool:
        running: dict[Future, list[_Cells]] = {}  # the cells, and what is to follow in the same job

        def start(job: list[_Cells]) -> None:
            if job:
                running[pool.submit(_run_cells, job[0], folders.get(job[0][0].key), options)] = job

        waiting = deque(jobs)
        try:
            for _ in range(min(workers, len(jobs))):  # a job a worker: what its cells share stays in that process
                start(waiting.popleft())
            while running:
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    cells, *rest = running.pop(future)
                    start(rest or (waiting.popleft() if waiting else []))
                    if isinstance(broken := future.exception(), BrokenProcessPool):
                        raise broken
                    yield cells, future.result
        except BrokenProcessPool:
            raise G2MError("workers: one was killed, perhaps for memory. Run the same command with fewer.") from None
        finally:
            # Stopped or failed: what runs is ended, not waited for. After the last result, there is nothing to end.
            for process in list((pool._processes or {}).values()) if running else ():
                process.terminate()
            pool.shutdown(cancel_futures=True)


@contextmanager
def _logged_here(logs: multiprocessing.Queue) -> Iterator[None]:
    """Inside, what workers log is logged by this process."""

    def listen() -> None:
        while (record := logs.get()) is not None:
            log = logging.getLogger(record.name)
            if log.isEnabledFor(record.levelno):
                log.handle(record)

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
    finally:  # a worker that was ended while it wrote holds the queue's lock for ever: wait no more than a moment
        logs.cancel_join_thread()
        logs.put(None)
        listener.join(5)


def start_worker(threads: int, logs: multiprocessing.Queue | None = None) -> None:
    """Prepare a process that trains: its threads, its end with its parent, and the queue its logs go to, if any."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    threading.Thread(target=_end_with_parent, daemon=True).start()
    tqdm.set_lock(threading.RLock())  # its own would be a semaphore that an ended process leaves behind
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    if logs is not None:
        log = logging.getLogger("g2m")
        log.addHandler(QueueHandler(logs))
        log.setLevel(logging.INFO)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
