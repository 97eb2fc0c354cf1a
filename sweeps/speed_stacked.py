"""Students a second: trained together as one batched model, against one by one.

Every student is GLNN's on a 2 × 128 MLP with a seed of its own, for as many epochs; a made-up teacher, for which one it
is does not change what an epoch costs. Loading is left out. The two ways run in turn, each in its own process; every
number of threads asked for is tried, and the better one is taken for each way. On a GPU, its memory is measured too.

    python sweeps/speed_stacked.py cora-cpf --out docs/results/speed_stacked.jsonl
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from speed import measure, report

import g2m
from g2m.cli import mistakes


def train(data: str, count: int, width: int, epochs: int, device: str) -> tuple[list[float], list[float]]:
    """Return seconds a student, and every student's last loss; ``width`` 0: one by one."""
    graph = g2m.load(data, seed=0)
    logits = torch.randn(graph.num_nodes, graph.num_classes, generator=torch.Generator().manual_seed(1))
    outputs = g2m.TeacherOutputs(graph.node_id, logits, meta={"fingerprint": graph.fingerprint()})
    options = {"dropout": 0.5, "max_epochs": epochs, "patience": epochs, "device": device}
    g2m.Student("glnn", **options | {"max_epochs": 1}).fit(graph, outputs)  # what is made once is made
    students = [g2m.Student("glnn", seed=seed, **options) for seed in range(count)]
    start = time.perf_counter()
    if width:
        g2m.fit_stacked(students, graph, outputs, width=width)
    else:
        for student in students:
            student.fit(graph, outputs)
    seconds = time.perf_counter() - start
    return [seconds / count], [student.history_.epochs[-1]["loss"] for student in students]


def run(data: str, given: argparse.Namespace, threads: int, width: int) -> dict:
    count = max(width, given.least)
    command = [sys.executable, __file__, data, "--run", str(count), str(width), str(threads)]
    command += ["--epochs", str(given.epochs), "--device", given.device]
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return json.loads(out[0]) | json.loads(out[1])


def rows(data: str, given: argparse.Namespace) -> None:
    for width in given.widths:
        results: dict[tuple[int, int], list[dict]] = {}
        for _ in range(given.rounds):
            for way in [(w, threads) for threads in given.threads for w in (0, width)]:
                results.setdefault(way, []).append(run(data, given, way[1], way[0]))

        def middle(way: tuple[int, int], key: str, results: dict = results) -> float:
            return statistics.median(result[key] for result in results[way])

        alone, stacked = (
            min((way for way in results if way[0] == w), key=lambda way: middle(way, "ms")) for w in (0, width)
        )
        shared = zip(results[alone][0]["losses"], results[stacked][0]["losses"], strict=False)
        row = {
            "table": f"Students a second, together and one by one, {given.epochs} epochs each",
            "data": data,
            "device": given.device,
            "together": width,
            "one by one, a second": f"{1e3 / middle(alone, 'ms'):.2f}",
            "stacked, a second": f"{1e3 / middle(stacked, 'ms'):.2f}",
            "ratio": f"{middle(alone, 'ms') / middle(stacked, 'ms'):.2f}×",
            "threads": f"{alone[1]}, {stacked[1]}",
            "peak MB": f"{middle(alone, 'peak_mb'):.0f}, {middle(stacked, 'peak_mb'):.0f}",
            "loss difference": f"{max(abs(a - b) for a, b in shared):.0e}",
        }
        if given.device != "cpu":
            row["GPU MB"] = f"{middle(alone, 'gpu_mb'):.0f}, {middle(stacked, 'gpu_mb'):.0f}"
        report(row, given.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="card names")
    parser.add_argument("--widths", nargs="+", type=int, default=[1, 8, 32, 128], help="students trained at once")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--least", type=int, default=4, help="train as many at least, to measure")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, help="results file to append to")
    parser.add_argument("--run", nargs=3, type=int, metavar=("COUNT", "WIDTH", "THREADS"), help="in this process")
    given = parser.parse_args()
    if given.run:
        warnings.filterwarnings("ignore")
        count, width, threads = given.run
        torch.set_num_threads(threads)
        measure(lambda: train(given.data[0], count, width, given.epochs, given.device))
        gpu = torch.cuda.max_memory_allocated() / 2**20 if given.device != "cpu" else 0.0
        print(json.dumps({"gpu_mb": gpu}))
        return
    for data in given.data:
        rows(data, given)


if __name__ == "__main__":
    with mistakes():
        main()
