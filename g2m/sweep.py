"""Sweeps: an Optuna study over an experiment's options, shared by processes and machines, resumed when killed."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import socket
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage, GrpcStorageProxy, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from g2m.bench import run, start_worker
from g2m.errors import G2MError, check_range, check_seed, check_whole, choose
from g2m.estimators import versions
from g2m.experiments import ExperimentFile
from g2m.graph import SETTINGS
from g2m.report import mean_std
from g2m.spaces import corners, suggest

log = logging.getLogger(__name__)
JOURNAL = "journal.log"
_REPORT_EVERY = 10  # epochs: a report is a write to the storage
_SPAN = 100_000  # a trial's reports: step = place of the seed × this + epoch
_BEAT_SECONDS = 30.0
#: A trial of another machine that has not been heard of for so long is taken to be dead.
GRACE_SECONDS = 900.0
_LOST = "was lost; the same command goes on from here"
_RESTARTS = 3  # of killed workers, a run
_LOSSES = 3  # of a trial, killed with its process: its options are what kills, perhaps
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)


class _PerTrial(optuna.samplers.TPESampler):
    """Optuna's TPE, seeded anew for every trial from the sweep's seed and the trial's number.

    Whichever worker on whichever machine asks, no two trials draw the same, and one worker draws the same every time.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed)
        self.seed = seed

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        super().__init__(seed=int(np.random.SeedSequence([self.seed, trial.number]).generate_state(1)[0]))
        super().before_trial(study, trial)

    def reseed_rng(self) -> None:
        """Nothing to do: see the class."""


class _MedianOfSeed(optuna.pruners.BasePruner):
    """Optuna's median rule, seed by seed: its own would set the best of the easier splits against the harder ones."""

    def __init__(self, *, startup_trials: int, warmup_epochs: int) -> None:
        self.startup_trials, self.warmup_epochs = startup_trials, warmup_epochs

    def prune(self, study: optuna.Study, trial: FrozenTrial) -> bool:
        step = trial.last_step
        if step is None or step % _SPAN < self.warmup_epochs:
            return False
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        others = [other.intermediate_values[step] for other in finished if step in other.intermediate_values]
        enough = len(finished) >= self.startup_trials and others
        return bool(enough) and trial.intermediate_values[step] < statistics.median(others)


@dataclass(frozen=True)
class Sweep:
    """A search for the options of an experiment that do best on validation. Test labels never reach a trial.

    Args:
        experiment: what to search, in its ``space``; see :meth:`g2m.experiments.Experiment.searched`.
        setting: ``"transductive"`` (default) or ``"inductive"``.
        seeds: a trial trains a student for each of the seeds 0 … seeds-1, and scores their mean; default 1.
        also: a second objective, to be small: ``"parameters"``, ``"bytes"`` or ``"latency"`` (milliseconds for one
            node) of the student; the answer is then a front. Default ``None``.
        prune: stop trials that are below the median of the earlier ones at the same epoch of the same seed, once ten
            are finished and from epoch 20 on; default True. With ``also`` there is no pruning.
        seed: of what is drawn; default 0.

    Raises:
        G2MError: on a name or a range that no student or teacher would take.
    """

    experiment: ExperimentFile
    setting: str = "transductive"
    seeds: int = 1
    also: str | None = None
    prune: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        choose("setting", self.setting, SETTINGS)
        check_whole("seeds", self.seeds)
        check_seed(self.seed)
        if self.also is not None:
            choose("also", self.also, self._trials().also)
        object.__setattr__(self, "experiment", self.experiment.searched(sizes=self.also is not None))
        for options in corners(self.experiment.space):
            self.experiment.changed(options).cell(self.setting, 0).check()

    @property
    def name(self) -> str:
        """What the study is called in its storage, unless told otherwise."""
        return self.experiment.study_name(self.setting)

    def identity(self) -> dict[str, Any]:
        """Return everything that decides what a trial is scored by, as plain values."""
        return {
            **self.experiment.config(),
            "space": self.experiment.space,
            "setting": self.setting,
            "seeds": self.seeds,
            "also": self.also,
        }

    # -- the study ---------------------------------------------------------------------------------------------

    def study(self, storage: str | Path, name: str | None = None) -> optuna.Study:
        """Return the study, made if there is none of that name in the storage.

        Args:
            storage: a journal file, or an URL: ``sqlite:///…``, ``postgresql://…``, ``grpc://host:port`` (Optuna's
                proxy).
            name: default :attr:`name`.

        Raises:
            G2MError: if the storage cannot be opened, or the study there is another one.
        """
        name = name or self.name
        directions = ["maximize"] if self.also is None else ["maximize", "minimize"]
        pruner = _MedianOfSeed(startup_trials=10, warmup_epochs=2 * _REPORT_EVERY)
        pruner = pruner if self.prune and self.also is None else optuna.pruners.NopPruner()
        with _driver_errors(storage, "cannot be opened"):
            try:
                study = optuna.create_study(
                    storage=_open(storage),
                    study_name=name,
                    sampler=_PerTrial(self.seed),
                    pruner=pruner,
                    directions=directions,
                    load_if_exists=True,
                )
                known = study.user_attrs.get("sweep")
            except (ImportError, OSError, ValueError, KeyError, RuntimeError) as error:  # KeyError: other JSON
                raise _unusable(storage, "cannot be opened", error) from None
        identity = json.loads(json.dumps(self.identity()))
        if known is None:
            if study.get_trials(deepcopy=False) or [d.name.lower() for d in study.directions] != directions:
                raise G2MError(
                    f"storage: the study {name!r} there is not one of g2m's. Name another study (--name), or another "
                    "folder (--out)."
                )
            study.set_user_attr("versions", versions())
            study.set_user_attr("sweep", identity)
        elif known != identity:
            changed = sorted(key for key in known | identity if known.get(key) != identity.get(key))
            raise G2MError(
                f"storage: the study {name!r} there is of another sweep, it differs in: {', '.join(changed)}. "
                "Name another folder (--out); in a --storage that is not a folder's, also another study (--name)."
            )
        return study

    def left(self, study: optuna.Study, trials: int) -> int:
        """Return how many of ``trials`` are neither done nor being run by anyone."""
        return max(0, trials - _count(study, *_DONE, TrialState.RUNNING))

    def release(self, study: optuna.Study) -> None:
        """End trials whose process is gone; their options are tried again, first of all, unless lost three times."""
        for trial in _running(study):
            if _is_dead(trial):
                _give_back(study, trial, lost=True)

    def _trials(self, **options: Any) -> Any:
        return self.experiment.trials(self.setting, **options)

    # -- trials ------------------------------------------------------------------------------------------------

    def work(
        self,
        study: optuna.Study,
        *,
        trials: int,
        stack: int = 1,
        until: float | None = None,
        root: str | Path | None = None,
        cache: str | Path | None = None,
        on_change: Callable[[optuna.Study], None] | None = None,
    ) -> None:
        """Run trials here until the study has as many as asked for, those of other processes counted.

        Args:
            study: of :meth:`study`.
            trials, stack, root, cache, on_change: see :meth:`run`.
            until: a time in seconds since the epoch after which no trial is begun; default ``None``.

        Raises:
            G2MError: on options that make every trial fail, or data that are not there.
        """
        beat = _Heart()
        trainer = self._trials(root=root, cache=cache, alive=beat)
        if self.left(study, trials):  # what is missing for all trials is no fault of one
            trainer.prepare(self.experiment, range(self.seeds))
        while until is None or time.time() < until:
            self.release(study)
            asked: list[Trial] = []
            try:
                while len(asked) < stack and self.left(study, trials):  # others ask for some meanwhile
                    with _undisturbed():  # or it would belong to nobody
                        asked.append(study.ask())
                        asked[-1].set_user_attr("worker", _me())
                    asked[-1].set_user_attr("beat", time.time())  # when it was begun is in its machine's time zone
                if not asked:
                    return
                beat.trials = asked
                self._try(study, trainer, asked, beat)
            except UpdateFinishedTrialError:  # suspended before it drew, and taken for dead
                for trial in asked:
                    _give_back(study, trial)
            except BaseException:  # stopped, or a fault of ours: nothing stays behind as running
                for trial in asked:
                    _give_back(study, trial)
                raise
            if on_change is not None:
                on_change(study)

    def _try(self, study: optuna.Study, trainer: Any, asked: list[Trial], beat: Callable[[], None]) -> None:
        drawn = [suggest(trial, self.experiment.space) for trial in asked]
        experiments = [self.experiment.changed(options) for options in drawn]
        scores: dict[int, list[float]] = {place: [] for place in range(len(asked))}
        costs: dict[int, float] = {}
        started = time.perf_counter()
        for seed in range(self.seeds):
            places = list(scores)
            if not places:
                break
            best = dict.fromkeys(places, -np.inf)

            def report(i: int, record: dict[str, float], places=places, best=best, seed=seed) -> bool:
                beat()
                place, epoch = places[i], int(record["epoch"])
                best[place] = max(best[place], record["val"])
                if self.also is not None or (epoch + 1) % _REPORT_EVERY:
                    return False
                try:
                    asked[place].report(best[place], step=seed * _SPAN + epoch)
                except UpdateFinishedTrialError:  # taken for dead: it is being tried again elsewhere
                    return True
                return asked[place].should_prune()

            for place, student in zip(
                places, trainer.train([experiments[p] for p in places], seed, report), strict=True
            ):
                if hasattr(student, "history_"):
                    scores[place].append(student.history_.best_score)
                    if self.also is not None and seed == 0:
                        costs[place] = trainer.cost(student, self.also)
                    continue
                scores.pop(place)
                if student is None:
                    _tell(study, asked[place], state=TrialState.PRUNED)
                else:
                    _note(asked[place], "error", str(student))
                    _tell(study, asked[place], state=TrialState.FAIL)
                    _refuse_if_all_fail(study, student)
        for place, found in scores.items():
            _note(asked[place], "val", found)
            _note(asked[place], "seconds", round((time.perf_counter() - started) / len(asked), 2))
            mean = statistics.fmean(found)
            _tell(study, asked[place], values=mean if self.also is None else [mean, costs[place]])

    def run(
        self,
        storage: str | Path,
        *,
        trials: int = 100,
        workers: int = 1,
        stack: int = 1,
        timeout: float | None = None,
        name: str | None = None,
        root: str | Path | None = None,
        cache: str | Path | None = None,
        on_change: Callable[[optuna.Study], None] | None = None,
    ) -> optuna.Study:
        """Run trials until the study has as many as asked for, and return it. Called again, it goes on.

        Every process and machine that runs the same sweep on the same storage shares the work.

        Args:
            storage: a journal file or an URL, see :meth:`study`.
            trials: of the study as a whole, finished and pruned; default 100. Several processes may end up with as many
                more as there are processes. Those that others run are waited for.
            workers: processes, one for each GPU in turn where there are some, else threads are divided among them;
                default 1: this process.
            stack: trials asked for and trained at once, see :func:`g2m.fit_stacked`; default 1.
            timeout: seconds after which this call begins no more trials, from 0; default ``None``.
            name: of the study, default :attr:`name`.
            root, cache: folders of data and of trained teachers, see :func:`g2m.bench.run_cell`.
            on_change: called with the study as trials end.

        Raises:
            G2MError: on options that make every trial fail, a storage that cannot be opened or is lost, workers killed
                again and again.
        """
        for argument, value in (("trials", trials), ("workers", workers), ("stack", stack)):
            check_whole(argument, value)
        until = None if timeout is None else time.time() + check_range("timeout", timeout, 0)
        study = self.study(storage, name)
        made_by = study.user_attrs.get("versions", versions())  # older studies do not say
        if made_by != versions():
            log.warning(
                "storage: the study %r was begun by %s; this one's are %s. Name another to keep them apart.",
                *(study.study_name, json.dumps(made_by), json.dumps(versions())),
            )
        common = {"trials": trials, "stack": stack, "until": until, "root": root, "cache": cache}
        with _driver_errors(storage, _LOST):
            while True:
                if workers == 1:
                    self.work(study, on_change=on_change, **common)
                else:
                    self._run_workers(study, storage, name, workers, common, on_change)
                while any("worker" not in trial.user_attrs for trial in _running(study)):  # killed as it was asked for
                    time.sleep(0.5)
                    self.release(study)
                if _count(study, *_DONE) >= trials or (until is not None and time.time() > until):
                    return study
                if not self.left(study, trials):  # others run the last ones: the best may be among them, or be lost
                    time.sleep(0.5)

    def _run_workers(
        self,
        study: optuna.Study,
        storage: str | Path,
        name: str | None,
        workers: int,
        common: dict[str, Any],
        on_change: Callable[[optuna.Study], None] | None,
    ) -> None:
        """Have processes work on the study; one that is killed is replaced, its trial tried again."""
        if self.left(study, common["trials"]):  # what trials share is made once, not by every worker
            self._trials(root=common["root"], cache=common["cache"]).prepare(self.experiment, range(self.seeds))
        context = multiprocessing.get_context("spawn")
        threads = max(1, (os.cpu_count() or 1) // workers)
        receiver, sender = context.Pipe(duplex=False)
        restarts = 0

        def start(place: int) -> Any:
            arguments = (self, str(storage), name, place, threads, common, sender)
            process = context.Process(target=_worker, args=arguments, name=f"g2m-sweep-{place}")
            process.start()
            return process

        running = {place: start(place) for place in range(min(workers, self.left(study, common["trials"])))}
        try:
            while running:
                time.sleep(0.2)
                for place, process in list(running.items()):
                    if process.is_alive():
                        continue
                    running.pop(place)
                    if receiver.poll():
                        raise G2MError(receiver.recv())
                    if process.exitcode > 0:
                        raise RuntimeError(f"a worker of the sweep failed, exit code {process.exitcode}: see above.")
                    self.release(study)
                    late = common["until"] is not None and time.time() > common["until"]
                    if process.exitcode < 0 and not late and self.left(study, common["trials"]):
                        restarts += 1
                        if restarts > _RESTARTS:
                            raise G2MError(
                                f"workers: {restarts} were killed, perhaps for memory. Run the same command with fewer."
                            )
                        running[place] = start(place)
                if on_change is not None:
                    on_change(study)
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.join()
            self.release(study)

    # -- the answer --------------------------------------------------------------------------------------------

    def best(self, study: optuna.Study) -> ExperimentFile:
        """Return the experiment with the options that did best on validation; of a front, those of the best score.

        Raises:
            G2MError: if no trial was finished.
        """
        finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not finished:
            errors = [t.user_attrs["error"] for t in study.get_trials(deepcopy=False) if "error" in t.user_attrs]
            why = f", the last one failed by: {errors[-1]}" if errors else ""
            raise G2MError(f"trials: expected at least one that was finished (got none{why}). Run more.")
        trial = max(finished, key=lambda trial: trial.values[0])
        done = study.get_trials(deepcopy=False, states=_DONE)
        found = {"setting": self.setting, "trials": len(done), "seeds": self.seeds, "val": round(trial.values[0], 5)}
        options = suggest(optuna.trial.FixedTrial(trial.params), self.experiment.space)
        return replace(self.experiment.changed(options), tuned=found, paper={})

    def replicate(
        self, experiment: ExperimentFile, count: int = 10, *, out: str | Path | None = None, **options: Any
    ) -> tuple[ExperimentFile, list[dict[str, Any]]]:
        """Train an experiment on fresh seeds and read test, once; return it with its scores, and the records.

        Args:
            experiment: from :meth:`best`.
            count: seeds, from the first that no trial was trained with; default 10. Splits that come with a data set
                are taken in turn: of ten, seed 10 has the first again.
            out: results file; a killed run goes on from it.
            options: ``workers``, ``root``, ``cache``, ``progress`` of :func:`g2m.bench.run`.
        """
        seeds = range(self.seeds, self.seeds + check_whole("replicate", count))
        records = list(run([experiment.cell(self.setting, seed) for seed in seeds], out=out, **options))
        parts = {part: [record["scores"][part] for record in records] for part in records[0]["scores"]}
        scores = {part: [round(figure, 5) for figure in mean_std(values)] for part, values in parts.items()}
        return replace(experiment, tuned={**experiment.tuned, "fresh_seeds": count, "scores": scores}), records


# -- storage -----------------------------------------------------------------------------------------------------------


def _open(storage: str | Path) -> BaseStorage:
    text = str(storage)
    scheme, url, rest = text.partition("://")
    if scheme == "grpc":
        host, _, port = rest.rstrip("/").partition(":")
        if port and not port.isdecimal():
            raise ValueError("expected grpc://host:port")
        # Who asks for it by its name knows that Optuna calls it experimental.
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            return GrpcStorageProxy(host=host or "localhost", port=int(port or 13000))
    if url:
        return _database(text)
    path = Path(text)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not _is_journal(path):
        raise ValueError("expected a journal of Optuna's")
    # Of a relative path Optuna's lock would be a link to nowhere: left by a killed process, waited for without end.
    return JournalStorage(JournalFileBackend(str(path.absolute())))


def _is_journal(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.readline()
    try:
        return not first or "op_code" in json.loads(first)
    except (ValueError, TypeError):
        return False


def _database(url: str, tries: int = 10) -> RDBStorage:
    """Open a database. Of two who make its tables at once, one fails, and has them when it tries again."""
    from sqlalchemy.exc import DBAPIError

    url = _with_driver(url)
    while True:
        try:
            return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})  # a connection may break between two trials
        except DBAPIError as error:
            tries -= 1
            if not tries or error.statement is None:  # it was not even reached
                raise
            time.sleep(0.1)


def _with_driver(url: str) -> str:
    """Name the driver that is there: which one ``postgresql://`` means differs by version of SQLAlchemy."""
    scheme, _, rest = url.partition("://")
    if scheme != "postgresql":
        return url
    return f"postgresql+{next(filter(find_spec, ('psycopg', 'psycopg2')), 'psycopg')}://{rest}"


@contextmanager
def _driver_errors(storage: str | Path, what: str) -> Iterator[None]:
    """Turn errors of a storage's driver into ours: a database that is not there is no fault of the program."""
    try:
        yield
    except Exception as error:  # drivers differ by storage
        if isinstance(error, StorageInternalError):  # Optuna's, around the driver's
            error = error.__cause__ or error
        if type(error).__module__.split(".")[0] in ("sqlalchemy", "grpc"):
            raise _unusable(storage, what, error) from None
        raise


def _unusable(storage: str | Path, what: str, error: BaseException) -> G2MError:
    scheme, url, rest = str(storage).partition("://")
    shown = f"{scheme}://…" if url else scheme  # an URL may hold a password
    reason = error.details() if hasattr(error, "details") else str(error)  # gRPC's
    reason = reason.replace(rest, "…") if rest else reason
    install = " pip install 'g2m[distributed]' has the drivers." if isinstance(error, ImportError) else ""
    return G2MError(f"storage: {shown!r} {what} ({type(error).__name__}: {reason.partition(chr(10))[0]}).{install}")


def _tell(study: optuna.Study, trial: Trial, **outcome: Any) -> None:
    """Tell how a trial ended, unless somebody took it for dead and ended it."""
    try:
        study.tell(trial.number, **outcome)
    except (ValueError, UpdateFinishedTrialError):
        if study.get_trials(deepcopy=False)[trial.number].state == TrialState.RUNNING:
            raise


def _give_back(study: optuna.Study, trial: Trial | FrozenTrial, *, lost: bool = False) -> None:
    """End a running trial and have its options tried again; of several who do so at once, one does.

    Lost with its process, it counts against its options: perhaps their size is what kills.
    """
    try:
        study.tell(trial.number, state=TrialState.FAIL)
    except (ValueError, UpdateFinishedTrialError):  # it has ended
        return
    ended = study.get_trials(deepcopy=False)[trial.number]
    losses = ended.user_attrs.get("lost", 0) + lost
    params = ended.system_attrs.get("fixed_params", {}) | ended.params  # or one that was to be tried again itself
    if params and losses < _LOSSES:
        study.enqueue_trial(params, user_attrs={"again": trial.number} | ({"lost": losses} if losses else {}))


def _note(trial: Trial, name: str, value: Any) -> None:
    with suppress(UpdateFinishedTrialError):  # it was taken for dead; or is done, while others of its stack go on
        trial.set_user_attr(name, value)


def _running(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))


def _count(study: optuna.Study, *states: TrialState) -> int:
    """Return how many trials are in one of these states, or failed by their options."""
    return sum(t.state in states or "error" in t.user_attrs for t in study.get_trials(deepcopy=False))


def _refuse_if_all_fail(study: optuna.Study, error: G2MError, most: int = 5) -> None:
    found = study.get_trials(deepcopy=False)
    failed = sum("error" in trial.user_attrs for trial in found)
    if failed >= most and not any(trial.state in _DONE for trial in found):
        raise G2MError(f"space: the first {failed} trials failed, the last one by: {error}")


# -- who runs what -----------------------------------------------------------------------------------------------------


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Inside, a signal to end waits."""
    known = signal.getsignal(signal.SIGTERM) is not None  # None: not Python's, and not to be put back by it
    if threading.current_thread() is not threading.main_thread() or not known:  # that one alone is told of signals
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
        if came:
            os.kill(os.getpid(), signal.SIGTERM)


def _begun(pid: int) -> str | None:
    """Return when a process of this machine began, in ticks, or ``None`` if it is gone or none can tell."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else rest[18]  # a zombie is gone: in a container nobody may come for it


def _me() -> list[Any]:
    return [socket.gethostname(), os.getpid(), _begun(os.getpid())]


def _is_dead(trial: FrozenTrial) -> bool:
    worker = trial.user_attrs.get("worker")
    heard = trial.user_attrs.get("beat", trial.datetime_start.timestamp())
    if worker is None:  # a moment after it was asked for; long after, its process was killed in that moment
        return time.time() - heard > _BEAT_SECONDS
    host, pid, begun = worker
    if host != socket.gethostname():
        return time.time() - heard > GRACE_SECONDS
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return begun is not None and _begun(pid) != begun  # the number was given to another process


class _Heart:
    """Marks trials as alive, twice a minute at most."""

    def __init__(self) -> None:
        self.trials: list[Trial] = []
        self._last = time.monotonic()

    def __call__(self) -> None:
        if time.monotonic() - self._last > _BEAT_SECONDS:
            self._last = time.monotonic()
            for trial in self.trials:
                _note(trial, "beat", time.time())


def _device_of(place: int, devices: int, visible: str | None) -> str:
    """Return the GPU of a worker as ``CUDA_VISIBLE_DEVICES`` names it: one of those that are visible already."""
    return visible.split(",")[place % devices].strip() if visible else str(place % devices)


def _worker(
    sweep: Sweep, storage: str, name: str | None, place: int, threads: int, common: dict[str, Any], sender: Any
) -> None:
    if devices := torch.cuda.device_count():
        os.environ["CUDA_VISIBLE_DEVICES"] = _device_of(place, devices, os.environ.get("CUDA_VISIBLE_DEVICES"))
    start_worker(threads)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # by an exception: the journal is not left locked
    try:
        with _driver_errors(storage, _LOST):
            sweep.work(sweep.study(storage, name), **common)
    except G2MError as error:
        sender.send(str(error))
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # what is done at exit may be cut off, without a word
