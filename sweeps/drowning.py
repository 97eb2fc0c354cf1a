"""Information drowning: how much of a teacher's low and high frequencies its students take up, epoch by epoch.

Trains students of the published options on the same teachers and draws the indicators of
:func:`g2m.frequency.indicators` by epoch.

    python sweeps/drowning.py cora --out docs/results/drowning.jsonl --plot docs/methods/drowning.png
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import g2m
from g2m.bench import append_result, cache_folder
from g2m.estimators import Student, Teacher
from g2m.experiments import find
from g2m.frequency import indicators
from g2m.report import curves, mean_std

STUDENTS = {
    "GLNN": ("glnn", {}),
    "FF-G2M, low part alone": ("ff_g2m", {"high": 0.0}),
    "FF-G2M, high part alone": ("ff_g2m", {"low": 0.0}),
    "FF-G2M": ("ff_g2m", {}),
}
PANELS = {
    "similarity": "low frequency: likeness of neighbours",
    "distance": "high frequency: distance of neighbours",
    "distance_gap": "gap to the teacher's distances",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="card name")
    parser.add_argument("--teacher", default="gcn")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--out", type=Path, help="results file to append to")
    parser.add_argument("--plot", type=Path, default=Path("drowning.png"))
    given = parser.parse_args()
    warnings.filterwarnings("ignore")

    by_model: dict[str, list[list[dict[str, float]]]] = {"teacher": [], **{name: [] for name in STUDENTS}}
    test: dict[str, list[float]] = {name: [] for name in by_model}
    for seed in range(given.seeds):
        graph = g2m.load(given.data, seed=seed)
        experiment = find(given.data, "ff_g2m", given.teacher)
        teacher = Teacher(given.teacher, seed=seed, **experiment.teacher_options).fit(graph, cache=cache_folder())
        outputs = teacher.outputs(graph)
        own = indicators(outputs.logits, outputs.logits, graph.edge_index)._asdict()
        by_model["teacher"].append([own] * given.epochs)
        test["teacher"].append(teacher.score(graph))
        for name, (method, changes) in STUDENTS.items():
            options = find(given.data, method, given.teacher).student_options
            fixed = {"max_epochs": given.epochs, "patience": given.epochs, "seed": seed}
            student = Student(method, **{**options, **changes, **fixed}).fit(graph, outputs, indicators=True)
            by_model[name].append(student.history_.epochs)
            test[name].append(student.score(graph))
            print(f"seed {seed}, {name}: {test[name][-1]:.4f}", flush=True)

    for name, runs in by_model.items():
        row = {"table": f"After {given.epochs} epochs on {given.data}", "model": name, "seeds": given.seeds}
        for key in PANELS:
            row |= _mean_std(key, [epochs[-1][key] for epochs in runs], 4)
        row |= _mean_std("test %", [100 * score for score in test[name]], 2)
        print("  ".join(f"{key}: {value}" for key, value in row.items() if key != "table"))
        if given.out:
            append_result(given.out, row)
    lines = {
        key: {name: [[epoch[key] for epoch in run] for run in runs] for name, runs in by_model.items()}
        for key in PANELS
    }
    title = f"{given.data}, {given.teacher.upper()} teacher: what its students take up ({given.seeds} seeds)"
    curves({PANELS[key]: of for key, of in lines.items()}, given.plot, title=title, xlabel="epoch")
    print(f"plot: {given.plot}")


def _mean_std(key: str, values: list[float], digits: int) -> dict[str, str]:
    mean, std = mean_std(values)
    return {key: f"{mean:.{digits}f} ± {std:.{digits}f}"}


if __name__ == "__main__":
    main()
