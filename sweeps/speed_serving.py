"""How long an answer takes: a student as it is (eager), and exported.

Students of 2 × 128 and 3 × 512 on a graph of the width that is served; what they learned does not change what an answer
costs. Every round asks each form in turn, about the same nodes; times are medians, ratios medians over rounds (range).
All forms check the features they are given and answer with a tensor of logits; `alone`: the network and nothing else.

    python sweeps/speed_serving.py cora-cpf --out docs/results/speed_serving.jsonl
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from speed import report
from torch import Tensor

import g2m
from g2m.cli import mistakes
from g2m.latency import measure

SHAPES = {"2 × 128": (2, 128), "3 × 512": (3, 512)}
FORMS = {"onnx": ("student.onnx", "float32"), "onnx int8": ("int8.onnx", "int8"), "pt2": ("student.pt2", "float32")}
SIZES = (1, 10, 1000)


def forms(graph: g2m.Graph, num_layers: int, hidden_channels: int) -> dict[str, Callable[[Tensor], Tensor]]:
    options = {"num_layers": num_layers, "hidden_channels": hidden_channels, "device": "cpu"}
    student = g2m.Student("mlp", max_epochs=2, **options).fit(graph)
    with TemporaryDirectory() as folder:
        files = {form: student.export(Path(folder, name), precision=to) for form, (name, to) in FORMS.items()}
        exported = {form: g2m.Exported.load(file) for form, file in files.items()}
    network, onnx = student.model_.eval(), exported["onnx"]
    return {
        "eager": student.predict_logits,
        **{form: model.predict_logits for form, model in exported.items()},
        "eager alone": torch.no_grad()(lambda x: network(x).logits),
        "onnx alone": lambda x: onnx.run(x)[0],
    }


def rows(graph: g2m.Graph, shape: str, given: argparse.Namespace) -> None:
    calls = forms(graph, *SHAPES[shape])
    generator = torch.Generator().manual_seed(0)
    for size in SIZES:
        times: dict[str, list[dict[str, float]]] = {form: [] for form in calls}
        for _ in range(given.rounds):
            x = graph.x[torch.randint(graph.num_nodes, (size,), generator=generator)]
            for form, call in calls.items():
                seconds = given.seconds / (given.rounds * len(calls))
                times[form].append(measure(partial(call, x), repeats=1000, seconds=seconds))
        ratios = [eager["p50"] / onnx["p50"] for eager, onnx in zip(times["eager"], times["onnx"], strict=True)]
        difference = (calls["onnx"](graph.x) - calls["eager"](graph.x)).abs().max().item()
        row = {
            "table": "An answer by a student, as it is and exported",
            "data": graph.name,
            "student": shape,
            "threads": torch.get_num_threads(),
            "nodes": f"{size:,}",
            **{f"{form} ms": f"{statistics.median(time['p50'] for time in of):.3f}" for form, of in times.items()},
            "eager / onnx": f"{statistics.median(ratios):.1f}× ({min(ratios):.1f}–{max(ratios):.1f})",
            "difference of onnx": f"{difference:.0e}",
        }
        report(row, given.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="card names")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=4, help="spent at most on a row")
    parser.add_argument("--out", type=Path, help="results file to append to")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    for data in given.data:
        graph = g2m.load(data, seed=0)
        for shape in SHAPES:
            rows(graph, shape, given)


if __name__ == "__main__":
    with mistakes():
        main()
