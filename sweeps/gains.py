"""How far a method's students are above their teachers, above GLNN's and above plain MLPs, from a results file.

python sweeps/gains.py ff_g2m docs/results/ff_g2m.jsonl --out docs/results/ff_g2m_gains.jsonl
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from g2m.bench import append_result, read_results
from g2m.report import summary

AGAINST = {"teacher": "over teacher", "mlp": "over MLP", "glnn": "over GLNN"}


def gains(rows: list[Mapping[str, Any]], method: str, setting: str, part: str, options: str) -> list[dict[str, str]]:
    """Return a row per graph and teacher, the same seeds on both sides, and one with the means of each teacher."""
    scores = {
        (row["data"], row["teacher"], row["method"]): row["scores"][part]
        for row in rows
        if row["setting"] == setting and row["options"] == (options if row["teacher"] else "")
    }
    found: list[tuple[str, dict[str, float]]] = []
    for (data, teacher, name), own in scores.items():
        if name != method:
            continue
        others = {key: scores[data, None if key == "mlp" else teacher, key] for key in AGAINST}
        differences = {
            AGAINST[key]: 100 * statistics.fmean(a - b for a, b in zip(own, other, strict=False))
            for key, other in others.items()
        }
        found.append((f"{data} ← {teacher.upper()}", {"seeds": len(own), **differences}))
    mean = {key: statistics.fmean(of[key] for _, of in found) for key in AGAINST.values()}
    rows = [*found, (f"mean of {len(found)}", mean)]
    return [
        {
            "table": f"{method} against others, {setting}, {part} nodes: points of accuracy",
            "student": name,
            "seeds": str(values.get("seeds", "–")),
            **{key: f"{values[key]:+.2f}" for key in AGAINST.values()},
        }
        for name, values in rows
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method")
    parser.add_argument("results", type=Path)
    parser.add_argument("-o", dest="options", default="", help="rows with these options of the run, as in the table")
    parser.add_argument("--out", type=Path, help="results file to write")
    given = parser.parse_args()
    rows = summary(record for record in read_results(given.results) if "key" in record)
    if given.out:
        given.out.unlink(missing_ok=True)
    for setting, part in (("transductive", "test"), ("inductive", "unseen")):
        for row in gains(rows, given.method, setting, part, given.options):
            print("  ".join(f"{key}: {value}" for key, value in row.items() if key != "table"))
            if given.out:
                append_result(given.out, row)


if __name__ == "__main__":
    main()
