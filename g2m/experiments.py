"""Experiments: one TOML file says data, teacher, method, their options, and what the paper reports."""

from __future__ import annotations

import ast
import json
import logging
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

import tomli_w

from g2m.data import find_card
from g2m.errors import G2MError, check_keys, choose
from g2m.errors import nearest as nearest_name
from g2m.methods import REGISTRY
from g2m.models import BACKBONES
from g2m.spaces import Recorder, check_space
from g2m.storage import write_text

log = logging.getLogger(__name__)
_TABLES = ("data_options", "teacher_options", "student_options")
_OF_NO_RESULT = ("space", "tuned", "paper")
# What a run sets itself: the card's name, the seed of the cell …
_OF_THE_RUN = {
    "data_options": ("name", "seed", "setting", "root"),
    "teacher_options": ("model", "seed"),
    "student_options": ("method", "seed"),
    "space": ("seed", "device", "method", "teacher.model", "teacher.seed", "teacher.device"),
}
_OF_ANY_STUDENT = ("hidden_channels", "num_layers", "dropout", "norm", "lr", "weight_decay", "max_epochs", "patience")
_INSTALLED = Path(__file__).parent / "_experiments"
FOLDER = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / "sweeps"
TUNED = FOLDER / "tuned"


class ExperimentFile:
    """What every experiment has in common: it is a TOML file, options are set by ``key=value``, a space is searched.

    Attributes:
        required: keys that the file must have.
        example: of an option.
        space: what a sweep searches, in the words of :mod:`g2m.spaces`.
        tuned: how a sweep found the options, and their scores.
        paper: published scores.
    """

    required: ClassVar[tuple[str, ...]]
    example: ClassVar[str]
    space: dict[str, Any]
    tuned: dict[str, Any]
    paper: dict[str, Any]

    def changed(self, options: Mapping[str, Any]) -> Self:
        """Return the experiment with options set; what is set is no longer searched."""
        raise NotImplementedError

    def searched(self, *, sizes: bool = False) -> Self:
        """Return the experiment with its ``space`` spelt out, with the sizes of the network in it if asked."""
        raise NotImplementedError

    def cell(self, setting: str, seed: int) -> Any:
        """Return the run of a benchmark that trains and scores this on one seed."""
        raise NotImplementedError

    def trials(self, setting: str, **options: Any) -> Any:
        """Return what trains this for a sweep, see :class:`g2m.trials.NodeTrials`."""
        raise NotImplementedError

    def study_name(self, setting: str) -> str:
        """Return what a sweep is called in its storage, unless told otherwise."""
        raise NotImplementedError

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a TOML file; an unknown key is an error with the nearest match."""
        path, content = Path(path), read_toml(path)
        check_keys(path.name, content, [each.name for each in fields(cls)])
        for key, value in content.items():
            try:
                json.dumps(value)
            except TypeError:
                raise G2MError(f"{path.name}: {key}: expected no dates or times (got {value}). Quote them.") from None
        for key in cls.required:
            if key not in content:
                raise G2MError(f"path: {str(path)!r} lacks the key {key!r}.")
        return cls(**content)

    def write(self, path: str | Path) -> Path:
        """Write a TOML file that :meth:`read` reads."""
        content = {key: value for key, value in asdict(self).items() if value not in (None, {})}
        return write_text(path, tomli_w.dumps(content))

    def _check_tables(self) -> None:
        for each in fields(self):
            if each.default_factory is dict and not isinstance(value := getattr(self, each.name), dict):
                raise G2MError(f"{each.name}: expected a table of key = value (got {value!r}).")

    def override(self, options: Iterable[str]) -> Self:
        """Return the experiment with ``key=value`` options set, see ``changed``; values are TOML, or bare words."""
        return self.changed(key_values(options, self.example))

    def config(self) -> dict[str, Any]:
        """Return everything that decides a result, as plain values."""
        return {key: value for key, value in asdict(self).items() if key not in _OF_NO_RESULT}


def read_toml(path: Path) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        G2MError: if there is none, or it is not TOML.
    """
    if not path.is_file():
        raise G2MError(f"path: no experiment file {str(path)!r}.")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise G2MError(f"path: {str(path)!r} is not valid TOML ({error}).") from None


@dataclass(frozen=True)
class Experiment(ExperimentFile):
    """What to run: a data set, a teacher, a method, and the options of each.

    Args:
        data: name of a card.
        method: name of a method.
        teacher: name of a backbone, or ``None`` for methods without a teacher.
        data_options: of :func:`g2m.load`.
        teacher_options: of :class:`~g2m.Teacher`.
        student_options: of :class:`~g2m.Student`.
        space: what a sweep searches, by option, ``"teacher.lr"`` for the teacher's, in the words of
            :mod:`g2m.spaces`. Empty (default): see :meth:`searched`.
        tuned: how a sweep found these options, and their scores.
        paper: published scores as ``{setting: {"teacher" | "student": {part: [mean, std]}}}`` in percent, and
            ``source``.
    """

    required = ("data", "method")
    example = "teacher.lr=0.01"

    data: str
    method: str
    teacher: str | None = None
    data_options: dict[str, Any] = field(default_factory=dict)
    teacher_options: dict[str, Any] = field(default_factory=dict)
    student_options: dict[str, Any] = field(default_factory=dict)
    space: dict[str, Any] = field(default_factory=dict)
    tuned: dict[str, Any] = field(default_factory=dict)
    paper: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_tables()
        for table, names in _OF_THE_RUN.items():
            for name in names:
                if name in getattr(self, table):
                    raise G2MError(f"{table}: {name!r} cannot be set here, the run sets it by an argument of its own.")
        needs = REGISTRY[choose("method", self.method, REGISTRY)].needs
        if self.teacher is not None:
            choose("teacher", self.teacher, BACKBONES)
            if not needs:
                raise G2MError(f"teacher: method {self.method!r} has none (got {self.teacher!r}). Leave it out.")
        elif needs:
            raise G2MError(f"teacher: method {self.method!r} learns from one. Name it: {', '.join(BACKBONES)}.")
        check_space(self.space)
        found: dict[tuple[str, str], str] = {}
        for key in self.space:
            group, name = _place(key, "space")
            if not self._has(group):
                raise G2MError(f"space: {key!r} changes nothing: there is no {group} in this. Leave it out.")
            of = (self._whose(group), name)
            if found.setdefault(of, key) != key:
                raise G2MError(f"space: expected an option once (got {found[of]!r} and {key!r}). Leave out either.")

    def _has(self, group: str) -> bool:
        """Whether options of a group, as in :meth:`changed`, are of anything here."""
        return self.teacher is not None if group == "teacher" else group not in REGISTRY or group == self.method

    def _whose(self, group: str) -> str:
        return "student" if group == self.method else group

    def changed(self, options: Mapping[str, Any]) -> Experiment:
        """Return the experiment with options set; what is set is no longer in ``space``.

        Where that is empty, and so the method's own, spell it out before (:meth:`searched`), or all of it is searched.

        ``teacher.lr`` goes to the teacher, ``data.num_nodes`` to the data, ``dropout`` to the student, and ``glnn.tau``
        to the student if its method is that one.
        """
        groups: dict[str, dict[str, Any]] = {name: {} for name in _GROUPS}
        for key in sorted(options, key=lambda key: key.startswith(f"{self.method}.")):  # the method's own come last
            group, name = _place(key)
            if self._has(group):
                groups[self._whose(group)][name] = options[key]

        def left(key: str) -> bool:
            group, name = _place(key)
            return name not in groups[self._whose(group)]

        return replace(
            self,
            data_options=self.data_options | groups["data"],
            teacher_options=self.teacher_options | groups["teacher"],
            student_options=self.student_options | groups["student"],
            space={key: spec for key, spec in self.space.items() if left(key)},
        )

    def override(self, options: Iterable[str]) -> Experiment:
        (changed,) = overridden([self], options)
        return changed

    def searched(self, *, sizes: bool = False) -> Experiment:
        """Return the experiment with its ``space`` spelt out; by default it is the method's own and any student's.

        Args:
            sizes: by default, also the student's width and depth; default False.
        """
        if self.space:
            return self
        recorder = Recorder()
        REGISTRY[self.method].space(recorder)
        return replace(self, space={**_OF_A_STUDENT, **(_SIZES if sizes else {}), **recorder.space})

    def cell(self, setting: str, seed: int) -> Any:
        from g2m.bench import Cell  # which reads experiments

        return Cell(self, setting, seed)

    def trials(self, setting: str, **options: Any) -> Any:
        from g2m.trials import NodeTrials

        return NodeTrials(setting, **options)

    def study_name(self, setting: str) -> str:
        return "-".join(filter(None, (self.data, self.teacher, self.method, setting)))


_GROUPS = ("data", "teacher", "student")


def _place(key: str, argument: str = "-o") -> tuple[str, str]:
    """Return whose option a key is, and the option's name."""
    group, dot, name = key.rpartition(".")
    return choose(f"{argument}: the part before the dot", group, (*_GROUPS, *REGISTRY)) if dot else "student", name


def overridden(experiments: Sequence[Experiment], options: Iterable[str]) -> list[Experiment]:
    """Return experiments with ``key=value`` options set, each with those that are its own, see
    :meth:`Experiment.changed`; what none of them has is said.
    """
    given = key_values(options, Experiment.example)
    for key in given:
        group, _ = _place(key)
        if not any(experiment._has(group) for experiment in experiments):
            log.warning("-o: %s changes nothing: there is no %s in this run.", key, group)
    return [experiment.changed(given) for experiment in experiments]


_OF_A_STUDENT = {
    "lr": {"low": 1e-3, "high": 3e-2, "log": True},
    "weight_decay": {"low": 1e-5, "high": 1e-2, "log": True},
    "dropout": {"low": 0.0, "high": 0.8, "step": 0.1},
}
_SIZES = {"hidden_channels": [16, 32, 64, 128, 256], "num_layers": [2, 3]}


def key_values(options: Iterable[str], example: str) -> dict[str, Any]:
    """Return ``key=value`` words as a table; values are TOML, or Python's True, False and .5; bare words are
    strings.

    Raises:
        G2MError: on a word that is not of that form; the message shows ``example``.
    """
    found = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or not key.rpartition(".")[2]:
            raise G2MError(f"-o: expected key=value, for example {example} (got {option!r}).")
        found[key] = _value(text)
    return found


def _value(text: str) -> Any:
    try:
        value = tomllib.loads(f"v = {text}")["v"]
        json.dumps(value)  # not so a date: no option is one, a name may look like one
    except (tomllib.TOMLDecodeError, TypeError):
        try:
            value = ast.literal_eval(text)  # True, .5: as Python has it, and tables of ours
        except (ValueError, SyntaxError):
            return text
        return value if isinstance(value, bool | float) else text
    return value


@cache
def shipped() -> Mapping[tuple[str, str, str | None], Experiment]:
    """Return the experiments that come with g2m, by (data, method, teacher)."""
    return _by_key(path for path in FOLDER.glob("*/*.toml") if path.parent.name in REGISTRY)


@cache
def tuned() -> Mapping[tuple[str, str, str | None], Experiment]:
    """Return the experiments whose options a sweep of ours found, by (data, method, teacher)."""
    return _by_key(TUNED.glob("*.toml"))


def _by_key(paths: Iterable[Path]) -> dict[tuple[str, str, str | None], Experiment]:
    return {(e.data, e.method, e.teacher): e for e in map(Experiment.read, sorted(paths))}


def open_experiment(name: str | Path) -> ExperimentFile:
    """Return the experiment of a TOML file, or a shipped one by its name, ``"glnn/cora-cpf-sage"``: of a student, or of
    condensation if it has the key ``condense``.

    Raises:
        G2MError: if there is no such file, with the nearest name, or its content is wrong.
    """
    path = _find_file(name)
    if "condense" not in read_toml(path):
        return Experiment.read(path)
    from g2m.condense.experiment import CondenseExperiment  # condensation is a part of its own

    return CondenseExperiment.read(path)


def _find_file(name: str | Path) -> Path:
    path = Path(name)
    if path.suffix == ".toml" and path.exists():
        return path
    names = {str(p.relative_to(FOLDER).with_suffix("")): p for p in sorted(FOLDER.glob("*/*.toml"))}
    word = str(path.with_suffix("") if path.suffix == ".toml" else path).removeprefix("sweeps/")
    if word in names:
        return names[word]
    raise G2MError(f"FILE: no experiment file {str(name)!r}, nor one of that name with g2m.{nearest_name(word, names)}")


def tuned_methods(data: Iterable[str], teachers: Iterable[str]) -> list[str]:
    """Return the methods that a sweep of ours found options for, on each of the data sets from each of the teachers.

    Raises:
        G2MError: on an unknown name, or if there is none; it says what there is.
    """
    data, teachers = [find_card(name).name for name in data], [choose("teachers", name, BACKBONES) for name in teachers]
    pairs = [(name, teacher) for name in data for teacher in teachers]
    found = [method for method in REGISTRY if all(_key(name, method, teacher) in tuned() for name, teacher in pairs)]
    if not found:
        raise _no_tuned("a method on " + " and ".join(map("-".join, pairs)))
    return found


def find_tuned(data: str, method: str, teacher: str | None = None) -> Experiment:
    """Return the experiment whose options a sweep of ours found.

    Raises:
        G2MError: if there is none; it says what there is.
    """
    key = _key(data, method, teacher)
    found = tuned().get(key)
    if found is None:
        raise _no_tuned("-".join(filter(None, key)))
    return found


def _no_tuned(asked: str) -> G2MError:
    there = ", ".join("-".join(filter(None, key)) for key in tuned()) or "none"
    return G2MError(
        f"--tuned: no tuned options for {asked}; there are {there}. g2m sweep writes what it finds to best.toml, which "
        "g2m train takes in the place of a card."
    )


def find(data: str, method: str, teacher: str | None = None) -> Experiment:
    """Return the shipped experiment, with its published options; where there is none, as :func:`alike`."""
    key = _key(data, method, teacher)
    return shipped().get(key) or alike(*key)


def alike(data: str, method: str, teacher: str | None = None) -> Experiment:
    """Return the experiment in which a method has the teacher and the student that every other has on a data set.

    Split, teacher, size and optimiser are those of the data set's plain method, ``glnn``, or ``mlp`` without a teacher;
    the method's own options are those of its shipped experiment, if it has one.
    """
    key = _key(data, method, teacher)
    cls = REGISTRY[choose("method", method, REGISTRY)]
    like = shipped().get((data, "glnn" if cls.needs else "mlp", key[2])) or Experiment(*key)
    of_student = {name: like.student_options[name] for name in like.student_options if name in _OF_ANY_STUDENT}
    own = shipped().get(key)
    of_method = {} if own is None else {k: v for k, v in own.student_options.items() if k in cls.options()}
    return Experiment(
        *key,
        data_options=like.data_options,
        teacher_options={**like.teacher_options, **(cls.teacher_options if cls.needs else {})},
        student_options={**of_student, **of_method},
        paper={} if own is None else own.paper,
    )


def nearest(config: Mapping[str, Any]) -> Experiment:
    """Return that of :func:`find` and :func:`alike` from which a configuration differs in fewer options.

    Of a method that is not known here, the plain method's; nothing is published for it.
    """
    known = config["method"] in REGISTRY
    plain = "mlp" if config["teacher"] is None else "glnn"
    key = (config["data"], config["method"] if known else plain, config["teacher"])

    def differences(experiment: Experiment) -> int:
        tables = [(getattr(experiment, name), config[name]) for name in _TABLES]
        return sum(a.get(option) != b.get(option) for a, b in tables for option in a | b)

    found = min((find(*key), alike(*key)), key=differences)
    return found if known else replace(found, paper={})


def _key(data: str, method: str, teacher: str | None) -> tuple[str, str, str | None]:
    return data, method, teacher if method in REGISTRY and REGISTRY[method].needs else None
