"""Experiments: one TOML file says data, teacher, method, their options, and what the paper reports."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from g2m.errors import G2MError, check_keys, choose
from g2m.methods import REGISTRY
from g2m.models import BACKBONES

_KEYS = ("data", "teacher", "method", "data_options", "teacher_options", "student_options", "paper")
# What a run sets itself: the card's name, the seed of the cell …
_OF_THE_RUN = {
    "data_options": ("name", "seed", "setting", "root"),
    "teacher_options": ("model", "seed"),
    "student_options": ("method", "seed"),
    "paper": (),
}
_OF_ANY_STUDENT = ("hidden_channels", "num_layers", "dropout", "norm", "lr", "weight_decay", "max_epochs", "patience")
_INSTALLED = Path(__file__).parent / "_experiments"
FOLDER = _INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1] / "sweeps"


@dataclass(frozen=True)
class Experiment:
    """What to run: a data set, a teacher, a method, and the options of each.

    Args:
        data: name of a card.
        method: name of a method.
        teacher: name of a backbone, or ``None`` for methods without a teacher.
        data_options: of :func:`g2m.load`.
        teacher_options: of :class:`~g2m.Teacher`.
        student_options: of :class:`~g2m.Student`.
        paper: published scores as ``{setting: {"teacher" | "student": {part: [mean, std]}}}`` in percent, and
            ``source``.
    """

    data: str
    method: str
    teacher: str | None = None
    data_options: dict[str, Any] = field(default_factory=dict)
    teacher_options: dict[str, Any] = field(default_factory=dict)
    student_options: dict[str, Any] = field(default_factory=dict)
    paper: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for table, names in _OF_THE_RUN.items():
            if not isinstance(getattr(self, table), dict):
                raise G2MError(f"{table}: expected a table of key = value (got {getattr(self, table)!r}).")
            for name in names:
                if name in getattr(self, table):
                    raise G2MError(f"{table}: {name!r} cannot be set here, the run sets it by an argument of its own.")
        needs = REGISTRY[choose("method", self.method, REGISTRY)].needs
        if self.teacher is not None:
            choose("teacher", self.teacher, BACKBONES)
        elif needs:
            raise G2MError(f"teacher: method {self.method!r} learns from one. Name it: {', '.join(BACKBONES)}.")

    @classmethod
    def read(cls, path: str | Path) -> Experiment:
        """Read a TOML file; an unknown key is an error with the nearest match."""
        path = Path(path)
        if not path.is_file():
            raise G2MError(f"path: no experiment file {str(path)!r}.")
        try:
            content = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise G2MError(f"path: {str(path)!r} is not valid TOML ({error}).") from None
        check_keys(path.name, content, _KEYS)
        for key in ("data", "method"):
            if key not in content:
                raise G2MError(f"path: {str(path)!r} lacks the key {key!r}.")
        return cls(**content)

    def override(self, options: Iterable[str]) -> Experiment:
        """Return the experiment with ``key=value`` options set; values are TOML, bare words are strings.

        ``teacher.lr=0.01`` goes to the teacher, ``data.num_nodes=500`` to the data, ``dropout=0.5`` to the student, and
        ``glnn.tau=2`` to the student if its method is that one.
        """
        groups: dict[str, dict[str, Any]] = {name: {} for name in ("data", "teacher", "student", *REGISTRY)}
        for key, value in key_values(options, "teacher.lr=0.01").items():
            group, dot, name = key.rpartition(".")
            groups[choose("-o: the part before the dot", group, groups) if dot else "student"][name] = value
        return replace(
            self,
            data_options=self.data_options | groups["data"],
            teacher_options=self.teacher_options | (groups["teacher"] if self.teacher is not None else {}),
            student_options=self.student_options | groups["student"] | groups[self.method],
        )

    def config(self) -> dict[str, Any]:
        """Return everything that decides a result, as plain values."""
        return {key: value for key, value in asdict(self).items() if key != "paper"}


def key_values(options: Iterable[str], example: str) -> dict[str, Any]:
    """Return ``key=value`` words as a table; values are TOML, bare words are strings.

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
        return text
    return value


@cache
def shipped() -> Mapping[tuple[str, str, str | None], Experiment]:
    """Return the experiments that come with g2m, by (data, method, teacher)."""
    found = [Experiment.read(path) for path in sorted(FOLDER.glob("*/*.toml"))]
    return {(e.data, e.method, e.teacher): e for e in found}


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
    cls = REGISTRY.get(method)
    if cls is None:
        return Experiment(*key)
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
    """Return that of :func:`find` and :func:`alike` from which a configuration differs in fewer options."""
    key = (config["data"], config["method"], config["teacher"])

    def differences(experiment: Experiment) -> int:
        tables = [(getattr(experiment, name), config[name]) for name in _KEYS if name.endswith("_options")]
        return sum(a.get(option) != b.get(option) for a, b in tables for option in a | b)

    return min((find(*key), alike(*key)), key=differences)


def _key(data: str, method: str, teacher: str | None) -> tuple[str, str, str | None]:
    return data, method, teacher if method in REGISTRY and REGISTRY[method].needs else None
