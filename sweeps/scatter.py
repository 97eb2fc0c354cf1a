"""What torch_scatter changes: PyG's own operations with it and without it, forward and backward.

    python sweeps/scatter.py --out docs/results/scatter.jsonl

Needs the extra: pip install 'g2m[scatter]'.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from torch_geometric.utils import scatter, segment, softmax

from g2m.bench import append_result
from g2m.cli import mistakes
from g2m.data import sbm
from g2m.errors import G2MError
from g2m.models import GNN

NODES, DEGREE, WIDTH = 8000, 30, 64


def operations() -> dict[str, Callable[[], torch.Tensor]]:
    torch.manual_seed(0)
    graph = sbm(num_nodes=NODES, avg_degree=DEGREE, num_features=WIDTH, seed=0)
    target = graph.edge_index[1].sort().values
    ptr = torch.zeros(NODES + 1, dtype=torch.long)
    ptr[1:] = torch.bincount(target, minlength=NODES).cumsum(0)
    message = torch.randn(len(target), WIDTH, requires_grad=True)
    models = {name: GNN(name, WIDTH, WIDTH, 4) for name in ("gat", "sage")}
    inputs = {name: model.inputs(graph) for name, model in models.items()}
    return {
        "scatter sum": lambda: scatter(message, target, 0, NODES, "sum"),
        "scatter mean": lambda: scatter(message, target, 0, NODES, "mean"),
        "scatter max": lambda: scatter(message, target, 0, NODES, "max"),
        "segment sum": lambda: segment(message, ptr, "sum"),
        "segment max": lambda: segment(message, ptr, "max"),
        "softmax by index": lambda: softmax(message, target, num_nodes=NODES),
        "softmax by pointer": lambda: softmax(message, ptr=ptr),
        "GAT, 2 layers": lambda: models["gat"](*inputs["gat"]).logits,
        "SAGE, 2 layers (CSR)": lambda: models["sage"](*inputs["sage"]).logits,
    }


def measure(repeats: int) -> dict[str, tuple[float, float]]:
    """Return the median milliseconds of each operation, forward and backward, and the sum of its result."""
    results = {}
    for name, operation in operations().items():
        torch.manual_seed(0)
        value = operation()
        value.square().mean().backward()
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            operation().square().mean().backward()
            times.append((time.perf_counter() - start) * 1e3)
        results[name] = (statistics.median(times), float(value.double().sum()))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="results file to append to")
    parser.add_argument("--run", choices=("with", "without"), help="run one way in this process")
    given = parser.parse_args()
    if given.run:
        warnings.filterwarnings("ignore")
        if given.run == "without":
            import torch_geometric.typing

            torch_geometric.typing.WITH_TORCH_SCATTER = False
        print(json.dumps(measure(given.repeats)))
        return
    if find_spec("torch_scatter") is None:
        raise G2MError("torch_scatter: not installed, there is nothing to compare. Run pip install 'g2m[scatter]'.")
    runs: dict[str, list[dict]] = {"with": [], "without": []}
    for _ in range(given.rounds):
        for way, done in runs.items():
            command = [sys.executable, __file__, "--run", way, "--repeats", str(given.repeats)]
            done.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
    for name in runs["with"][0]:
        ratios = [b[name][0] / a[name][0] for a, b in zip(runs["with"], runs["without"], strict=True)]
        middle = {way: statistics.median(run[name][0] for run in done) for way, done in runs.items()}
        first, second = runs["with"][0][name][1], runs["without"][0][name][1]
        row = {
            "table": f"With and without torch_scatter ({NODES:,} nodes, {NODES * DEGREE:,} arcs, {WIDTH} wide)",
            "operation": name,
            "with ms": f"{middle['with']:.1f}",
            "without ms": f"{middle['without']:.1f}",
            "without / with": f"{statistics.median(ratios):.2f}",
            "relative difference": f"{abs(first - second) / max(abs(first), 1e-12):.0e}",
        }
        print("  ".join(f"{key}: {value}" for key, value in row.items() if key != "table"), flush=True)
        if given.out:
            append_result(given.out, row)


if __name__ == "__main__":
    with mistakes():
        main()
