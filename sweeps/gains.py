"""How far a method's students are above their teachers, above GLNN's and above plain MLPs, from a results file.

python sweeps/gains.py ff_g2m docs/results/ff_g2m.jsonl -o teacher.select=loss --out docs/results/ff_g2m_gains.jsonl

``all`` in place of a method: every method above the teacher, a column per graph.

python sweeps/gains.py all docs/results/all.jsonl --out docs/results/all_gains.jsonl
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from g2m.bench import read_results
from g2m.cli import mistakes
from g2m.comparisons import pairs
from g2m.errors import G2MError
from g2m.report import grouped, of_trainings
from g2m.storage import write_text

#: Another student's method, and where the codes of its teacher are.
AGAINST = {
    "over MLP": ("mlp", None),
    "over GLNN": ("glnn", None),
    "over GLNN ← codes inside": ("glnn", "inside"),
    "over hidden": ("hidden", None),
}
#: The same student but for one option.
WITHOUT = {"over its low part alone": "high=0", "over its high part alone": "low=0"}
COLUMNS = ("over teacher", *AGAINST, *WITHOUT)


def gains(
    rows: list[Mapping[str, Any]], method: str, setting: str, part: str, options: str | None
) -> list[dict[str, str]]:
    """Return a row per graph and teacher, the same seeds on both sides, and the means of each kind of codes.

    A gain is followed by its standard error over seeds, where there are several.
    """
    rows = [row for row in rows if row["setting"] == setting]
    found: list[dict[str, Any]] = []
    named = Counter()
    for row in rows:
        if row["method"] != method or options not in (None, row["options"]):
            continue
        others = {"over teacher": row["teacher_by_seed"]}
        known = {key: _other(row, rows, key) for key in AGAINST}
        known |= {key: _with(row, rows, word) for key, word in WITHOUT.items()}
        others |= {key: other["by_seed"] for key, other in known.items() if other is not None}
        differences = {
            key: _gains(row["by_seed"], other, part)
            for key, other in others.items()
            if row["by_seed"].keys() & other.keys()
        }
        codes = row["tokenizer"]
        name = f"{row['data']} ← {(row['teacher'] or 'none').upper()}" + (f" + codes {codes}" if codes else "")
        named[name] += 1
        if named[name] > 1:
            raise G2MError(f"-o: expected options where there are several (got none for {name}). Say which.")
        seeds = {len(of) for of in differences.values()}
        found.append({"of": name, "codes": codes, "seeds": "–".join(map(str, sorted(seeds))), **differences})
    for codes in dict.fromkeys(row["codes"] for row in found):
        alike = [row for row in found if row["codes"] == codes]
        name = f"mean of {len(alike)}" + (f", codes {codes}" if codes else "")
        shared = [key for key in COLUMNS if all(key in row for row in alike)]
        means = {key: [statistics.fmean(statistics.fmean(row[key]) for row in alike)] for key in shared}
        found.append({"of": name, "codes": ..., **means})
    return [
        {
            "table": f"{method} against others, {setting}, {part} nodes: points of accuracy, ± standard error",
            "student": row["of"],
            "seeds": row.get("seeds", "–"),
            **{key: _shown(row[key]) for key in COLUMNS if key in row},
        }
        for row in found
    ]


def _other(row: Mapping[str, Any], rows: list[Mapping[str, Any]], key: str) -> Mapping[str, Any] | None:
    """Return the row to compare with; of several, that of the same teacher or, if it has codes, of the same options."""
    method, codes = AGAINST[key]
    of = {"method": method, "tokenizer": codes, "data": row["data"], "of_data": row["of_data"]}
    known = [other for other in rows if of.items() <= other.items() and other["teacher"] in (None, row["teacher"])]
    for name in ("of_teacher", "options"):
        if len(known) > 1:
            known = [other for other in known if other[name] == row[name]] or known
    if len(known) > 1:
        raise G2MError(f"results: expected one {method} for {row['name']} on {row['data']} (got {len(known)}).")
    return known[0] if known else None


def _with(row: Mapping[str, Any], rows: list[Mapping[str, Any]], word: str) -> Mapping[str, Any] | None:
    """Return the row whose options are those of another and one more."""
    of = {name: row[name] for name in ("method", "data", "of_data", "teacher", "of_teacher")}
    options = {*row["options"].split(), word}
    alike = (other for other in rows if of.items() <= other.items() and {*other["options"].split()} == options)
    return next(alike, None)


def _gains(own: Mapping[int, Mapping[str, float]], other: Mapping[int, Mapping[str, float]], part: str) -> list[float]:
    """Return the differences in points, of each seed that both have."""
    return [100 * (own[seed][part] - other[seed][part]) for seed in sorted(own.keys() & other.keys())]


def _shown(differences: list[float]) -> str:
    mean = f"{statistics.fmean(differences):+.2f}"
    return mean if len(differences) < 2 else f"{mean} ± {statistics.stdev(differences) / len(differences) ** 0.5:.2f}"


def over_teachers(rows: list[Mapping[str, Any]], setting: str, part: str) -> list[dict[str, str]]:
    """Return a row per student and backbone, the same seeds on both sides; the best mean comes first.

    A student is compared with its own teacher; one that has none, with that of each backbone, the shipped one if there.
    Two means: over the graphs that every row has, which compares rows, and over all that a row has itself. ``seeds``
    are the fewest and the most of a graph.
    """
    teachers = [row for row in rows if row["method"] == "teacher"]
    teachers.sort(key=lambda row: (row["tokenizer"] is not None, row["options"] != ""))
    found: dict[str, dict[str, float]] = {}
    seeds: dict[str, set[int]] = {}
    for (data, backbone), members in pairs(rows, setting).items():
        for row in members:
            of = (setting, row["data"], row["of_data"], backbone)
            others = (t["by_seed"] for t in teachers if (t["setting"], t["data"], t["of_data"], t["teacher"]) == of)
            other = row["teacher_by_seed"] or next(others, {})
            if row["by_seed"].keys() & other.keys():
                student = f"{row['name']} ← {backbone.upper()}"
                differences = _gains(row["by_seed"], other, part)
                found.setdefault(student, {})[data] = statistics.fmean(differences)
                seeds.setdefault(student, set()).add(len(differences))
    if not found:
        return []
    graphs, shared = set().union(*found.values()), set.intersection(*map(set, found.values()))
    if not shared:
        raise G2MError(f"results: expected a graph that all have, {setting} (got none of {', '.join(sorted(graphs))}).")
    table = f"Above the teacher, {setting}, {part} nodes: points"
    means = {key: statistics.fmean(by_data[data] for data in shared) for key, by_data in found.items()}
    return [
        {
            "table": table,
            "student": key,
            "seeds": "–".join(map(str, sorted({min(seeds[key]), max(seeds[key])}))),
            **{data: f"{found[key][data]:+.2f}" if data in found[key] else "–" for data in sorted(graphs)},
            f"mean of {len(shared)}": f"{means[key]:+.2f}",
            "mean of all": f"{statistics.fmean(found[key].values()):+.2f} of {len(found[key])}",
            "median": f"{statistics.median(found[key].values()):+.2f}",
        }
        for key in sorted(means, key=means.__getitem__, reverse=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", help="its name, or 'all'")
    parser.add_argument("results", type=Path)
    parser.add_argument("-o", dest="options", help="rows with these options of the run, as in the table; default: any")
    parser.add_argument("--out", type=Path, help="results file to write")
    given = parser.parse_args()
    rows, found = grouped(of_trainings(read_results(given.results))), []
    for setting, part in (("transductive", "test"), ("inductive", "unseen")):
        own = (rows, given.method, setting, part, given.options)
        found += over_teachers(rows, setting, part) if given.method == "all" else gains(*own)
    if not found:
        raise G2MError(f"results: expected students of {given.method!r} (got none in {str(given.results)!r}).")
    for row in found:
        print("  ".join(f"{key}: {value}" for key, value in row.items() if key != "table"))
    if given.out:
        write_text(given.out, "".join(json.dumps(row) + "\n" for row in found))


if __name__ == "__main__":
    with mistakes():
        main()
