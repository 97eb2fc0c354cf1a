"""Time and memory of an epoch: g2m against the same maths written the plain way.

The plain way: dense features, PyG convolutions on ``edge_index``, Adam's default kernel, and after each epoch one
forward pass for each of train, val and test. Both start from the same weights and see the same batches.

    python sweeps/speed.py cora-cpf citeseer-cpf --out docs/results/speed.jsonl
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch_geometric.nn import SimpleConv
from torch_geometric.utils import add_self_loops

import g2m
from g2m.bench import append_result
from g2m.cli import mistakes
from g2m.estimators import Student, Teacher
from g2m.experiments import find

PARTS = ("train", "val", "test")


class PlainSAGE(nn.Module):
    """The teacher on ``edge_index``: linear, then PyG's mean over neighbours and, twice, the node itself."""

    def __init__(self, trained: nn.Module) -> None:
        super().__init__()
        weights = [(conv.linear.weight.detach().contiguous(), conv.bias.detach()) for conv in trained.backbone.convs]
        self.weights = nn.ParameterList([nn.Parameter(w.clone()) for w, _ in weights])
        self.biases = nn.ParameterList([nn.Parameter(b.clone()) for _, b in weights])
        self.mean = SimpleConv(aggr="mean")

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = self.mean(F.linear(x, weight), edge_index) + bias
            x = F.relu(x) if i + 1 < len(self.weights) else x
        return x


def plain_teacher(graph: g2m.Graph, epochs: int) -> tuple[list[float], list[float]]:
    experiment = find(graph.name, "glnn", "sage")
    teacher = Teacher("sage", **experiment.teacher_options)
    torch.manual_seed(0)
    model = PlainSAGE(teacher._build(graph.num_features, graph.num_classes))
    edge_index = graph.edge_index
    for _ in range(2):
        edge_index, _ = add_self_loops(edge_index, num_nodes=graph.num_nodes)
    optimizer = torch.optim.Adam(model.parameters(), lr=teacher.lr, weight_decay=teacher.weight_decay)
    times, losses = [], []
    for _ in range(epochs):
        start = time.perf_counter()
        model.train()
        ids = graph.part("train")
        loss = F.cross_entropy(model(graph.x, edge_index)[ids], graph.y[ids])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            for part in PARTS:
                ids = graph.part(part)
                (model(graph.x, edge_index)[ids].argmax(1) == graph.y[ids]).float().mean().item()
        times.append(time.perf_counter() - start)
        losses.append(loss.item())
    return times, losses


def plain_student(graph: g2m.Graph, epochs: int) -> tuple[list[float], list[float]]:
    student = _student(graph)
    torch.manual_seed(0)
    built = student._build(graph.num_features, graph.num_classes)
    first, last = (nn.Linear(layer.in_features, layer.out_features) for layer in built.layers)
    for layer, source in zip((first, last), built.layers, strict=True):
        layer.load_state_dict({key: value.contiguous() for key, value in source.state_dict().items()})
    model = nn.Sequential(first, nn.ReLU(), last)
    target = _soft_labels(graph)
    optimizer = torch.optim.Adam(model.parameters(), lr=student.lr, weight_decay=student.weight_decay)
    generator = torch.Generator().manual_seed(0)
    times, losses = [], []
    for _ in range(epochs):
        start = time.perf_counter()
        model.train()
        total = 0.0
        batches = torch.randperm(graph.num_nodes, generator=generator).split(student.batch_size)
        for ids in batches:
            log_q = model(graph.x[ids]).log_softmax(1)
            loss = F.kl_div(log_q, target[ids], reduction="batchmean", log_target=True)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        model.eval()
        with torch.no_grad():
            for part in PARTS:
                ids = graph.part(part)
                logits = torch.cat([model(graph.x[rows]) for rows in ids.split(student.batch_size)])
                (logits.argmax(1) == graph.y[ids]).float().mean().item()
        times.append(time.perf_counter() - start)
        losses.append(total / len(batches))
    return times, losses


def ours_teacher(graph: g2m.Graph, epochs: int) -> tuple[list[float], list[float]]:
    options = {**find(graph.name, "glnn", "sage").teacher_options, "max_epochs": epochs, "patience": epochs}
    clock = Clock()
    teacher = Teacher("sage", **options).fit(graph, on_epoch=clock)
    return clock.times(), [epoch["loss"] for epoch in teacher.history_.epochs]


def ours_student(graph: g2m.Graph, epochs: int) -> tuple[list[float], list[float]]:
    clock = Clock()
    student = _student(graph, max_epochs=epochs, patience=epochs).fit(graph, _outputs(graph), on_epoch=clock)
    return clock.times(), [epoch["loss"] for epoch in student.history_.epochs]


def _student(graph: g2m.Graph, **options: int) -> Student:
    published = {**find(graph.name, "glnn", "sage").student_options, "reference_schedule": False, "dropout": 0.0}
    return Student("glnn", **{**published, **options})


def _outputs(graph: g2m.Graph) -> g2m.TeacherOutputs:
    """A made-up teacher: which one it is does not change what an epoch costs."""
    logits = torch.randn(graph.num_nodes, graph.num_classes, generator=torch.Generator().manual_seed(1))
    return g2m.TeacherOutputs(graph.node_id, logits, meta={"fingerprint": graph.fingerprint()})


def _soft_labels(graph: g2m.Graph) -> torch.Tensor:
    return _outputs(graph).log_soft_labels()


class Clock:
    """Times between epochs; the first is left out, it also builds the sparse matrices."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def __call__(self, record: dict[str, float]) -> None:
        self.marks.append(time.perf_counter())

    def times(self) -> list[float]:
        return [b - a for a, b in zip(self.marks[:-1], self.marks[1:], strict=True)]


RUNS = {
    ("teacher", "plain"): plain_teacher,
    ("teacher", "g2m"): ours_teacher,
    ("student", "plain"): plain_student,
    ("student", "g2m"): ours_student,
}


def measure(run: Callable[[], tuple[list[float], list[float]]]) -> None:
    """Run one way in this process and print what it took as JSON."""
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak counts from here, loading is left out
    times, losses = run()
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0])
    result = {"ms": statistics.median(times) * 1e3, "peak_mb": peak / 1024, "losses": losses}
    print(json.dumps(result))


def compare(
    script: str,
    what: dict[str, str],
    epochs: int,
    rounds: int,
    *,
    table: str,
    ways: Sequence[str] = ("plain", "g2m"),
) -> dict[str, object]:
    """Run the ways in turn, each in its own process, and return a row of the table.

    ``script what… --run plain|g2m --epochs N`` is to end in :func:`measure`; losses of the first epoch are compared.
    """
    results: dict[str, list[dict]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, runs in results.items():
            command = [sys.executable, script, *what.values(), "--run", way, "--epochs", str(epochs)]
            runs.append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    middle = {
        way: {key: statistics.median(run[key] for run in runs) for key in ("ms", "peak_mb")}
        for way, runs in results.items()
    }
    row = {
        "table": table,
        **what,
        **{f"{way} ms": f"{of['ms']:.1f}" for way, of in middle.items()},
        "ratio": "–",
        **{f"{way} peak MB": f"{of['peak_mb']:.0f}" for way, of in middle.items()},
    }
    if len(ways) == 2:
        difference = abs(results["plain"][0]["losses"][0] - results["g2m"][0]["losses"][0])
        ratios = [plain["ms"] / ours["ms"] for plain, ours in zip(*results.values(), strict=True)]
        row["ratio"] = f"{statistics.median(ratios):.1f}× ({min(ratios):.1f}–{max(ratios):.1f})"
        row["loss difference"] = f"{difference:.0e}"
    return row


def parse(description: str, runs: Iterable[str]) -> argparse.Namespace:
    """Read the command line of a script that compares the runs named."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="card names")
    parser.add_argument("--stages", nargs="+", choices=[*runs], default=[*runs])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="results file to append to")
    parser.add_argument("--run", choices=["plain", "g2m"], help="run one way of one stage in this process")
    return parser.parse_args()


def report(row: dict[str, object], out: Path | None) -> None:
    print("  ".join(f"{key}: {value}" for key, value in row.items() if key != "table"), flush=True)
    if out:
        append_result(out, row)


def main() -> None:
    given = parse(__doc__, ["teacher", "student"])
    if given.run:
        warnings.filterwarnings("ignore")
        data, stage = given.data
        graph = g2m.load(data, seed=0)
        measure(lambda: RUNS[stage, given.run](graph, given.epochs))
        return
    for data in given.data:
        for stage in given.stages:
            what = {"data": data, "stage": stage}
            row = compare(__file__, what, given.epochs, given.rounds, table="Epoch: g2m against the plain way")
            report(row, given.out)


if __name__ == "__main__":
    with mistakes():
        main()
