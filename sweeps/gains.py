"""How far a method's students are above their teachers, above GLNN's and above plain MLPs, from a results file.

python sweeps/gains.py ff_g2m docs/results/ff_g2m.jsonl --out docs/results/ff_g2m_gains.jsonl

``all`` in place of a method: every method above the teacher, a column per graph.

python sweeps/gains.py all docs/results/all.jsonl --out docs/results/all_gains.jsonl
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from g2m.bench import append_result, read_results
from g2m.report import grouped

AGAINST = {
    "over teacher": lambda data, teacher, codes: (data, teacher, codes, "teacher"),
    "over MLP": lambda data, teacher, codes: (data, None, None, "mlp"),
    "over GLNN": lambda data, teacher, codes: (data, teacher, None, "glnn"),
    "over GLNN ← codes inside": lambda data, teacher, codes: (data, teacher, "inside", "glnn"),
    "over hidden": lambda data, teacher, codes: (data, teacher, None, "hidden"),
}


def gains(
    rows: list[Mapping[str, Any]], method: str, setting: str, part: str, options: str | None
) -> list[dict[str, str]]:
    """Return a row per graph and teacher, the same seeds on both sides, and the means of each kind of codes."""
    scores: dict[tuple[str | None, ...], Mapping[int, Mapping[str, float]]] = {}
    for row in rows:
        if row["setting"] != setting or options not in (None, row["options"] if row["teacher"] else options):
            continue
        name = row["data"], row["teacher"], row["tokenizer"], row["method"]
        if name in scores:
            raise SystemExit(f"error: {name} is there with several options: say which with -o.")
        scores[name] = row["by_seed"]
    found: list[dict[str, Any]] = []
    for (data, teacher, codes, name), own in scores.items():
        if name != method:
            continue
        differences = {
            key: _gained(own, scores[other], part)
            for key, of in AGAINST.items()
            if (other := of(data, teacher, codes)) in scores and own.keys() & scores[other].keys()
        }
        suffix = f" + codes {codes}" if codes else ""
        found.append({"of": f"{data} ← {teacher.upper()}{suffix}", "codes": codes, "seeds": len(own), **differences})
    for codes in dict.fromkeys(row["codes"] for row in found):
        alike = [row for row in found if row["codes"] == codes]
        name = f"mean of {len(alike)}" + (f", codes {codes}" if codes else "")
        shared = [key for key in AGAINST if all(key in row for row in alike)]
        found.append({"of": name, "codes": ..., **{key: statistics.fmean(row[key] for row in alike) for key in shared}})
    return [
        {
            "table": f"{method} against others, {setting}, {part} nodes: points of accuracy",
            "student": row["of"],
            "seeds": str(row.get("seeds", "–")),
            **{key: f"{row[key]:+.2f}" for key in AGAINST if key in row},
        }
        for row in found
    ]


def _gained(own: Mapping[int, Mapping[str, float]], other: Mapping[int, Mapping[str, float]], part: str) -> float:
    """Return the mean difference in points over the seeds that both have."""
    return 100 * statistics.fmean(own[seed][part] - other[seed][part] for seed in own.keys() & other.keys())


def over_teachers(rows: list[Mapping[str, Any]], setting: str, part: str) -> list[dict[str, str]]:
    """Return a row per method and teacher, the same seeds on both sides; the best mean comes first.

    Two means: over the graphs that every row has, which compares rows, and over all that a row has itself.
    """
    rows = [row for row in rows if row["setting"] == setting]
    found: dict[str, dict[str, float]] = {}
    for teacher in rows:
        if teacher["method"] != "teacher" or teacher["tokenizer"]:
            continue
        for row in rows:
            if row["method"] == "teacher" or row["data"] != teacher["data"]:
                continue
            if row["teacher"] in (teacher["teacher"], None):
                student = f"{row['method']} {row['options']}".strip() + f" ← {teacher['teacher'].upper()}"
                found.setdefault(student, {})[row["data"]] = _gained(row["by_seed"], teacher["by_seed"], part)
    graphs, shared = set().union(*found.values()), set.intersection(*map(set, found.values()))
    table = f"Above the teacher, {setting}, {part} nodes: points"
    means = {key: statistics.fmean(by_data[data] for data in shared) for key, by_data in found.items()}
    return [
        {
            "table": table,
            "student": key,
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
    rows = grouped(record for record in read_results(given.results) if "key" in record)
    if given.out:
        given.out.unlink(missing_ok=True)
    for setting, part in (("transductive", "test"), ("inductive", "unseen")):
        own = (rows, given.method, setting, part, given.options)
        for row in over_teachers(rows, setting, part) if given.method == "all" else gains(*own):
            print("  ".join(f"{key}: {value}" for key, value in row.items() if key != "table"))
            if given.out:
                append_result(given.out, row)


if __name__ == "__main__":
    main()
