"""What choosing the epoch on test would add: published code of VQGraph does so, this library never does.

    python sweeps/selection.py cora-cpf citeseer-cpf --out docs/results/selection.jsonl

The same students twice: their epoch chosen on the validation nodes, and on the very nodes they are then scored on.
What the second is above the first says nothing of the method.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from dataclasses import replace
from pathlib import Path

import g2m
from g2m.bench import append_result, cache_folder
from g2m.estimators import Student, Teacher
from g2m.experiments import find

METHODS = ("glnn", "vqgraph")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="card names")
    parser.add_argument("--teacher", default="sage")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, help="results file to append to")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    for data in given.data:
        for method in METHODS:
            experiment = find(data, method, given.teacher)
            scores: dict[str, list[float]] = {"val": [], "test": []}
            for seed in range(given.seeds):
                graph = g2m.load(data, seed=seed)
                teacher = Teacher(given.teacher, seed=seed, **experiment.teacher_options)
                outputs = teacher.fit(graph, cache=cache_folder()).outputs(graph)
                for chosen_on, found in scores.items():
                    other = graph.with_split({**graph.split, "val": graph.part(chosen_on), "test": graph.part("val")})
                    same = replace(outputs, meta={**outputs.meta, "fingerprint": other.fingerprint()})
                    student = Student(method, seed=seed, **experiment.student_options).fit(other, same)
                    predicted = student.predict(graph.x)[graph.part("test")]
                    found.append(100 * float((predicted == graph.y[graph.part("test")]).float().mean()))
            added = [b - a for a, b in zip(*scores.values(), strict=True)]
            row = {"table": "The epoch chosen on validation, and on test", "data": data, "student": method}
            row |= {"seeds": str(given.seeds)}
            for title, values in (("on val", scores["val"]), ("on test", scores["test"]), ("added", added)):
                deviation = statistics.stdev(values) if len(values) > 1 else 0.0
                row[title] = f"{statistics.fmean(values):.2f} ± {deviation:.2f}"
            print("  ".join(f"{key}: {value}" for key, value in row.items() if key != "table"), flush=True)
            if given.out:
                append_result(given.out, row)


if __name__ == "__main__":
    main()
