"""Models compared: differences over seeds and over data sets, ranks, speed, cost of training.

Everything starts from the rows of :func:`g2m.report.grouped`. A *pair* is a data set and a backbone of the teacher:
within one, students are compared with each other; one that has no teacher is compared in every pair of its data set,
with another that has none once a data set.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from g2m.errors import G2MError, choose
from g2m.methods import REGISTRY

Row = Mapping[str, Any]
Pair = tuple[str, str | None]  # data set, backbone
#: What is compared: unseen nodes first, the case a student without a graph is for.
COMPARED = (("transductive", "test"), ("inductive", "unseen"), ("inductive", "test"))
REFERENCE, TEACHER, LEVEL = "glnn", "teacher", 0.05
_LEAST_SEEDS, _LEAST_PAIRS = 3, 6  # fewer, and a test says nothing


# -- differences -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """How far a model is above another, in points, over the seeds both have.

    ``error`` is the standard error of ``mean``, ``p`` that of a two-sided paired t-test (``None`` below three seeds),
    ``p_holm`` the same after Holm's correction over all pairs and models.
    """

    setting: str
    part: str
    data: str
    teacher: str | None
    model: str
    against: str
    seeds: int
    mean: float
    error: float | None
    p: float | None
    p_holm: float | None = None

    @property
    def significant(self) -> bool:
        """Whether chance alone would rarely give such a difference."""
        return self.p_holm is not None and self.p_holm < LEVEL


@dataclass(frozen=True)
class Overall:
    """How far a model is above another over all pairs, in points.

    ``better``, ``same`` and ``worse`` count pairs by the significance of their difference; ``p`` is of Wilcoxon's
    signed-rank test on the pairs' means (``None`` below six pairs), ``p_holm`` the same after Holm's correction.
    """

    setting: str
    part: str
    model: str
    against: str
    pairs: int
    mean: float
    better: int
    same: int
    worse: int
    p: float | None
    p_holm: float | None = None

    @property
    def significant(self) -> bool:
        """Whether chance alone would rarely give such differences."""
        return self.p_holm is not None and self.p_holm < LEVEL


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> tuple[int, float, float | None, float | None]:
    """Return the number of common seeds, the mean difference, its standard error, and p of a paired t-test.

    The test is two-sided. The error needs two seeds and p three; below that they are ``None``. Differences that are all
    zero have p 1.
    """
    from scipy import stats

    gains = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    mean = statistics.fmean(gains)
    if len(gains) < 2:
        return len(gains), mean, None, None
    error = statistics.stdev(gains) / len(gains) ** 0.5
    if len(gains) < _LEAST_SEEDS:
        return len(gains), mean, error, None
    if error == 0:
        return len(gains), mean, error, float(mean == 0)
    return len(gains), mean, error, float(2 * stats.t.sf(abs(mean) / error, len(gains) - 1))


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Return p-values after Holm's correction for as many tests as there are; ``None`` is no test and stays."""
    adjusted: list[float | None] = [None] * len(p)
    order = sorted((value, index) for index, value in enumerate(p) if value is not None)
    largest = 0.0
    for done, (value, index) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - done) * value))
        adjusted[index] = largest
    return adjusted


def reference(rows: Iterable[Row], against: str | None = None) -> str | None:
    """Return the method that others are compared with.

    Args:
        rows: of the results.
        against: its name; default ``"glnn"`` if there is a student of it, otherwise ``None``.

    Raises:
        G2MError: if no student is of the method named, with the nearest match.
    """
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] != TEACHER))
    if against is None:
        return REFERENCE if REFERENCE in methods else None
    if not methods:
        raise G2MError(f"--against: expected results of students (got {against!r} and none). Leave it out.")
    return choose("--against", against, methods)


def pairs(rows: Iterable[Row], setting: str) -> dict[Pair, list[Row]]:
    """Return the students of each pair; what has no teacher is in every pair of its data set.

    Raises:
        G2MError: if two students of a pair have one name.
    """
    rows = [row for row in rows if row["setting"] == setting and row["method"] != TEACHER]
    names = _data_names(rows)
    teachers: dict[str, list[str]] = {}
    for data, row in zip(names, rows, strict=True):
        if row["teacher"] is not None and row["teacher"] not in teachers.setdefault(data, []):
            teachers[data].append(row["teacher"])
    found: dict[Pair, list[Row]] = {}
    for data, row in zip(names, rows, strict=True):
        for teacher in [row["teacher"]] if row["teacher"] is not None else teachers.get(data, [None]):
            found.setdefault((data, teacher), []).append(row)
    for (data, teacher), members in found.items():
        name, count = Counter(row["name"] for row in members).most_common(1)[0]
        if count > 1:
            raise G2MError(
                f"results: expected one row a model (got {count} of {name!r} on {data}, teacher {teacher or 'none'}: "
                "the same options, written otherwise). Leave out one of them."
            )
    return found


def _data_names(rows: Sequence[Row]) -> list[str]:
    """Return for each row the name of its data set, with options where there are several."""
    options = Counter(data for data, _ in {(row["data"], row["of_data"]) for row in rows})
    return [row["data"] if options[row["data"]] == 1 else f"{row['data']} {row['of_data']}" for row in rows]


def differences(rows: Iterable[Row], setting: str, part: str, against: str | None) -> list[Difference]:
    """Return how far each student is above the reference method, and above its own teacher, pair by pair.

    Args:
        rows: of :func:`g2m.report.grouped`.
        setting, part: see :data:`COMPARED`.
        against: the reference method, or ``None`` for none. Of its students the one of the same teacher is taken, of
            these the one trained in the same way, else the one with the shipped options.
    """
    found: dict[str, dict[tuple, Difference]] = {}
    for (data, _), members in pairs(rows, setting).items():
        for row in members:
            others = {TEACHER: (row["teacher"], row["teacher_by_seed"])}
            if against is not None and (other := _reference_of(row, members, against)) is not None:
                others[against] = row["teacher"] or other["teacher"], other["by_seed"]
            for name, (whose, scores) in others.items():
                ours, theirs = _of_part(row["by_seed"], part), _of_part(scores, part)
                if ours.keys() & theirs.keys():
                    difference = Difference(setting, part, data, whose, row["name"], name, *paired(ours, theirs))
                    found.setdefault(name, {})[data, whose, row["name"]] = difference
    corrected = []
    for family in found.values():
        values = holm([difference.p for difference in family.values()])
        corrected += [replace(d, p_holm=p) for d, p in zip(family.values(), values, strict=True)]
    return corrected


def _of_part(scores: Mapping[int, Mapping[str, float]], part: str) -> dict[int, float]:
    return {seed: 100 * of_parts[part] for seed, of_parts in scores.items() if part in of_parts}


def _reference_of(row: Row, members: Iterable[Row], against: str) -> Row | None:
    candidates = sorted(
        (member for member in members if member["method"] == against),
        key=lambda member: (member["options"] != "", member["tokenizer"] is not None, member["options"]),
    )
    if not candidates or row is candidates[0]:
        return None
    if row["method"] == against:
        return candidates[0]
    return min(candidates, key=lambda one: (one["of_teacher"] != row["of_teacher"], _training(one) != _training(row)))


def _training(row: Row) -> dict[str, Any]:
    """Return a student's options but for those of its method."""
    own = REGISTRY[row["method"]].options() if row["method"] in REGISTRY else ()
    return {name: value for name, value in json.loads(row["of_student"]).items() if name not in own}


def overall(found: Iterable[Difference]) -> list[Overall]:
    """Return the differences of one setting and part over all pairs, by model, best first."""
    from scipy import stats

    groups: dict[tuple[str, str], list[Difference]] = {}
    for difference in found:
        groups.setdefault((difference.against, difference.model), []).append(difference)
    made: dict[str, list[Overall]] = {}
    for (against, model), group in groups.items():
        gains, p = [difference.mean for difference in group], None
        if len(gains) >= _LEAST_PAIRS:
            p = float(stats.wilcoxon(gains).pvalue) if any(gains) else 1.0
        signs = Counter((d.mean > 0) - (d.mean < 0) if d.significant else 0 for d in group if d.p is not None)
        counts = len(gains), statistics.fmean(gains), signs[1], signs[0], signs[-1]
        made.setdefault(against, []).append(Overall(group[0].setting, group[0].part, model, against, *counts, p))
    corrected = []
    for family in made.values():
        values = holm([each.p for each in family])
        family = [replace(each, p_holm=p) for each, p in zip(family, values, strict=True)]
        corrected += sorted(family, key=lambda each: -each.mean)
    return corrected


# -- ranks -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranks:
    """Mean ranks over pairs, 1 the best.

    ``mean`` is by model, best first. Two models differ, at the 5 % level, whose ranks are further apart than
    ``critical`` (Nemenyi's test); ``p`` is of Friedman's test that all are alike (``None`` for two models). ``missing``
    are the models that more than half of the pairs lack; the ``pairs`` that count have all the others.
    """

    setting: str
    part: str
    mean: dict[str, float]
    pairs: int
    critical: float
    p: float | None
    missing: tuple[str, ...]


def critical_difference(models: int, pairs: int, level: float = LEVEL) -> float:
    """Return Nemenyi's critical difference of mean ranks (Demšar 2006)."""
    from scipy import stats

    quantile = float(stats.studentized_range.ppf(1 - level, models, float("inf"))) / 2**0.5
    return quantile * (models * (models + 1) / (6 * pairs)) ** 0.5


def ranks(rows: Iterable[Row], setting: str, part: str) -> Ranks | None:
    """Return the mean ranks of the students; ``None`` unless two models share two pairs. Ties share their ranks."""
    from scipy import stats

    complete, missing = _complete(rows, setting, part)
    scores = [[statistics.fmean(of_seeds.values()) for of_seeds in by_model.values()] for by_model in complete.values()]
    if len(scores) < 2 or len(scores[0]) < 2:
        return None
    models, columns = list(next(iter(complete.values()))), list(zip(*scores, strict=True))
    of_pairs = [stats.rankdata([-score for score in line]) for line in scores]
    means = [statistics.fmean(column) for column in zip(*of_pairs, strict=True)]
    p = None
    if len(models) > 2:  # where all pairs tie all models, the statistic is 0/0
        tied = all(len(set(line)) == 1 for line in scores)
        p = 1.0 if tied else float(stats.friedmanchisquare(*columns).pvalue)
    mean = dict(sorted(zip(models, means, strict=True), key=lambda item: item[1]))
    return Ranks(setting, part, mean, len(scores), critical_difference(len(models), len(scores)), p, missing)


def _complete(
    rows: Iterable[Row], setting: str, part: str
) -> tuple[dict[Pair, dict[str, dict[int, float]]], tuple[str, ...]]:
    """Return the scores of the pairs that have all models, over the seeds all have, and the models left out."""
    scores = {
        pair: {row["name"]: of_seeds for row in members if (of_seeds := _of_part(row["by_seed"], part))}
        for pair, members in pairs(rows, setting).items()
    }
    counts = Counter(name for by_model in scores.values() for name in by_model)
    kept = sorted(name for name, count in counts.items() if 2 * count >= len(scores))
    complete = {}
    for pair, by_model in scores.items():
        if kept and all(name in by_model for name in kept):
            seeds = set.intersection(*(set(by_model[name]) for name in kept))
            if seeds:
                complete[pair] = {name: {seed: by_model[name][seed] for seed in sorted(seeds)} for name in kept}
    return complete, tuple(sorted(counts.keys() - set(kept)))


# -- speed and cost --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """Milliseconds for one node's answer, beside the points above the teacher, over pairs.

    ``ms`` and ``faster`` (than the teacher) are geometric means. A teacher is in the list by its backbone. ``of`` is
    how many pairs there are, with those that lack a time or a model.
    """

    setting: str
    part: str
    model: str
    pairs: int
    ms: float
    faster: float
    over_teacher: float
    of: int


def speeds(rows: Iterable[Row], setting: str, part: str) -> list[Speed]:
    """Return latency and quality of every model that has both in all pairs that have them, the fastest first.

    Rows without ``ms`` in any ``run``, as older versions wrote them, are left out. What has no teacher is compared with
    the pair's.
    """
    rows = list(rows)
    every = len(pairs(rows, setting))
    rows = [row for row in rows if any("ms" in run for run in row["runs"].values())]
    complete, _ = _complete(rows, setting, part)
    teachers = [row for row in rows if row["setting"] == setting and row["method"] == TEACHER]
    found: dict[str, list[tuple[float, float, float]]] = {}
    members_of = pairs(rows, setting)
    for pair, by_model in complete.items():
        students = [row for row in members_of[pair] if row["name"] in by_model]
        own = [row for row in teachers if any(_teaches(row, student) for student in students)]
        own.sort(key=lambda row: (row["options"] != "", row["tokenizer"] is not None))
        if not own:
            continue
        base = _ms(own[0])
        found.setdefault(own[0]["teacher"].upper(), []).append((base, 1.0, 0.0))
        for row in students:
            theirs = _of_part(row["teacher_by_seed"] or own[0]["by_seed"], part)
            ours = by_model[row["name"]]
            if ours.keys() & theirs.keys():
                found.setdefault(row["name"], []).append((_ms(row), base / _ms(row), paired(ours, theirs)[1]))
    made = []
    for model, values in found.items():
        ms, faster, gains = zip(*values, strict=True)
        means = statistics.geometric_mean(ms), statistics.geometric_mean(faster), statistics.fmean(gains)
        made.append(Speed(setting, part, model, len(values), *means, every))
    return sorted(made, key=lambda speed: speed.ms)


def _teaches(teacher: Row, student: Row) -> bool:
    return all(teacher[name] == student[name] for name in ("data", "of_data", "setting", "teacher", "of_teacher"))


def _ms(row: Row) -> float:
    return statistics.geometric_mean(run["ms"] for run in row["runs"].values() if "ms" in run)


@dataclass(frozen=True)
class Cost:
    """What training took, the mean over settings and seeds, and what training its teacher took."""

    data: str
    model: str
    teacher: str | None
    trainings: int
    seconds: float
    epochs: float
    teacher_seconds: float | None
    teacher_epochs: float | None


def costs(rows: Iterable[Row]) -> list[Cost]:
    """Return the cost of every student, by data set and teacher."""
    rows = list(rows)
    groups: dict[tuple[str, str, str | None], list[Row]] = {}
    students = [row for row in rows if row["method"] != TEACHER]
    for data, row in zip(_data_names(students), students, strict=True):
        groups.setdefault((data, row["name"], row["teacher"]), []).append(row)
    made = []
    for key, members in groups.items():
        own = [run for row in members for run in row["runs"].values()]
        of_teachers = [
            run
            for row in rows
            if row["method"] == TEACHER and any(_teaches(row, member) for member in members)
            for run in row["runs"].values()
        ]
        means = [
            statistics.fmean(run[name] for run in runs) if runs else None
            for runs in (own, of_teachers)
            for name in ("seconds", "epochs")
        ]
        made.append(Cost(*key, len(own), *means))
    return made


@dataclass(frozen=True)
class Comparisons:
    """All comparisons of one report; ``total`` is the number of trainings and their seconds, by who was trained."""

    against: str | None
    differences: list[Difference]
    overall: list[Overall]
    ranks: list[Ranks]
    speeds: list[Speed]
    costs: list[Cost]
    total: dict[str, tuple[int, float]]


def compare(rows: Sequence[Row], against: str | None = None) -> Comparisons:
    """Return every comparison of the rows of :func:`g2m.report.grouped`; see :func:`reference` for ``against``."""
    against = reference(rows, against)
    families = [differences(rows, *case, against) for case in COMPARED]
    return Comparisons(
        against,
        [each for family in families for each in family],
        [each for family in families for each in overall(family)],
        [found for case in COMPARED if (found := ranks(rows, *case)) is not None],
        [each for case in COMPARED[:2] for each in speeds(rows, *case)],
        costs(rows),
        training_seconds(rows),
    )


def training_seconds(rows: Iterable[Row]) -> dict[str, tuple[int, float]]:
    """Return the number of trainings and their seconds, of ``"students"`` and of ``"teachers"``.

    A teacher that several students share is counted once. What a row has taken over from another, as searches and
    teachers with codes beside do, is counted with both.
    """
    found = {"students": (0, 0.0), "teachers": (0, 0.0)}
    for row in rows:
        kind = "teachers" if row["method"] == TEACHER else "students"
        count, seconds = found[kind]
        times = [run["seconds"] for run in row["runs"].values()]
        found[kind] = count + len(times), seconds + sum(times)
    return found
