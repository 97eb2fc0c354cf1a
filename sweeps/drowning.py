"""Information drowning: how much of a teacher's low and high frequencies its students take up, epoch by epoch.

Trains students of the published options on the same teachers and draws the indicators of
:func:`g2m.frequency.indicators` by epoch. The table has those of the students that are kept, of the best epoch on
validation; and as soft answers are alike whatever they say, also those of the same answers at the temperature that
makes their mean entropy the teacher's.

    python sweeps/drowning.py cora --out docs/results/drowning.jsonl --plot docs/methods/drowning.png
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

from scipy.optimize import brentq
from torch import Tensor
from torch.distributions import Categorical

import g2m
from g2m.bench import append_result, cache_folder
from g2m.cli import mistakes
from g2m.estimators import Student, Teacher
from g2m.experiments import find
from g2m.frequency import indicators
from g2m.graph import Graph
from g2m.report import check_plot, curves, mean_std

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
    check_plot("--plot", given.plot)
    warnings.filterwarnings("ignore")

    by_model: dict[str, list[list[dict[str, float]]]] = {"teacher": [], **{name: [] for name in STUDENTS}}
    kept: dict[str, list[dict[str, float]]] = {name: [] for name in by_model}
    for seed in range(given.seeds):
        graph = g2m.load(given.data, seed=seed)
        experiment = find(given.data, "ff_g2m", given.teacher)
        teacher = Teacher(given.teacher, seed=seed, **experiment.teacher_options).fit(graph, cache=cache_folder())
        outputs = teacher.outputs(graph)
        kept["teacher"].append(measure(outputs.logits, outputs.logits, graph) | {"test %": 100 * teacher.score(graph)})
        by_model["teacher"].append([kept["teacher"][-1]] * given.epochs)
        for name, (method, changes) in STUDENTS.items():
            options = find(given.data, method, given.teacher).student_options
            fixed = {"max_epochs": given.epochs, "patience": given.epochs, "seed": seed}
            student = Student(method, **{**options, **changes, **fixed}).fit(graph, outputs, indicators=True)
            by_model[name].append(student.history_.epochs)
            kept[name].append(measure(student.predict_logits(graph.x), outputs.logits, graph))
            kept[name][-1]["test %"] = 100 * student.score(graph)
            print(f"seed {seed}, {name}: {kept[name][-1]}", flush=True)

    for name, runs in kept.items():
        row = {"table": f"The best of {given.epochs} epochs on {given.data}", "model": name, "seeds": given.seeds}
        for key in runs[0]:
            row |= _mean_std(key, [run[key] for run in runs], 2 if key == "test %" else 4)
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


def measure(logits: Tensor, teacher: Tensor, graph: Graph) -> dict[str, float]:
    """Return a model's indicators and mean entropy, and how alike and far apart it answers when as sure as its teacher.

    Args:
        logits: ``[N, C]``.
        teacher: its teacher's, likewise.
        graph: of N nodes.
    """
    scaled = indicators(at_entropy(logits, entropy(teacher)), teacher, graph.edge_index)
    return indicators(logits, teacher, graph.edge_index)._asdict() | {
        "entropy": entropy(logits),
        "similarity at teacher's entropy": scaled.similarity,
        "distance at teacher's entropy": scaled.distance,
    }


def entropy(logits: Tensor) -> float:
    """Return the mean entropy of the probabilities of ``[N, C]`` logits, in nats."""
    return float(Categorical(logits=logits.double()).entropy().mean())


def at_entropy(logits: Tensor, target: float) -> Tensor:
    """Return logits ``[N, C]`` over the temperature, from 0.001 to 1000, that makes their mean entropy ``target``."""
    power = brentq(lambda power: entropy(logits.double() / 10**power) - target, -3, 3)  # entropy grows with it
    return logits.double() / 10**power


def _mean_std(key: str, values: list[float], digits: int) -> dict[str, str]:
    mean, std = mean_std(values)
    return {key: f"{mean:.{digits}f} ± {std:.{digits}f}"}


if __name__ == "__main__":
    with mistakes():
        main()
