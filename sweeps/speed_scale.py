"""Time and memory against the size of the graph: made-up graphs with ogbn-products' degrees, classes and features.

    python sweeps/speed_scale.py 10000 100000 1000000 2449029 --out docs/results/speed_scale.jsonl \
        --plot docs/scale.png

Each size is a process of its own: a teacher trained on random parts of the graph, its outputs, then students by GLNN
and FF-G2M. Seconds are of an epoch, its validation included; memory is the most the process had so far.

    python sweeps/speed_scale.py --whole "bench sbm-arxiv --methods ff_g2m,vqgraph --settings transductive --seeds 1" \
        --out docs/results/speed_scale.jsonl

One command of g2m from its start to its end, with a cache and a results file of its own: minutes by the clock and of
CPU, and the most memory that it or one of its processes had.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

import g2m
from g2m.bench import append_result, read_results
from g2m.cli import mistakes
from g2m.memory import teacher_memory

TABLE = "Time and memory by size of the graph"
WHOLE = "Whole commands"


def gigabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def rows_of(num_nodes: int, given: argparse.Namespace) -> None:
    started = time.perf_counter()
    graph = g2m.load("sbm-products", num_nodes=num_nodes)
    made = time.perf_counter() - started
    common = {"hidden_channels": given.hidden_channels, "max_epochs": given.epochs}
    teacher = g2m.Teacher("sage", partitions=given.partitions, **common)
    expected = sum(teacher_memory(teacher, graph).values()) / 1e9
    base, seconds = gigabytes(), []
    clock = time.perf_counter()

    def tick(_: dict[str, float]) -> None:
        nonlocal clock
        seconds.append(time.perf_counter() - clock)
        clock = time.perf_counter()

    def report(what: str, scores: dict[str, float], estimate: str = "–") -> None:
        row = {"table": TABLE, "nodes": f"{num_nodes:,}", "arcs": f"{graph.num_edges:,}", "model": what}
        row |= {"s an epoch": f"{min(seconds):.2f}", "peak GB": f"{gigabytes():.1f}", "estimated GB": estimate}
        row |= {"µs a node and arc": f"{1e6 * min(seconds) / (num_nodes + graph.num_edges):.3f}"}
        row |= {"test": f"{100 * scores['test']:.1f}"}
        print(json.dumps(row), flush=True)

    print(f"{num_nodes:,} nodes: made in {made:.0f} s, {base:.1f} GB", file=sys.stderr, flush=True)
    teacher.fit(graph, on_epoch=tick)
    report(f"SAGE, {given.partitions} parts", teacher.evaluate(graph), f"{expected + 0.5:.1f}")
    outputs = teacher.outputs(graph, noise_draws=0)
    for method, options in {"glnn": {}, "ff_g2m": {"edge_batch_size": 16384}}.items():
        seconds.clear()
        clock = time.perf_counter()
        student = g2m.Student(method, batch_size=16384, **options, **common)
        student.fit(graph, outputs, on_epoch=tick)
        report(method, student.evaluate(graph))


def whole(command: str) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.jsonl"
        words = [*shlex.split(command), "--out", str(results), "--cache", f"{folder}/cache", "--json"]
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-m", "g2m", *words], stdout=subprocess.DEVNULL)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
        minutes = (time.perf_counter() - start) / 60
        records = read_results(results)
    trained = {record["teacher"].upper(): record["teacher_scores"] for record in records if record["teacher"]}
    trained |= {record["method"]: record["scores"] for record in records}
    row = {"table": WHOLE, "command": f"g2m {command}", "threads": str(torch.get_num_threads())}
    row |= {"minutes": f"{minutes:.1f}", "CPU minutes": f"{(used.ru_utime + used.ru_stime) / 60:.1f}"}
    row |= {"peak GB": f"{used.ru_maxrss / 1e6:.1f}"}
    return row | {"test": ", ".join(f"{name} {100 * scores['test']:.1f}" for name, scores in trained.items())}


def plot(path: Path, rows: list[dict[str, str]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2)
    for panel, column in zip(panels, ("s an epoch", "peak GB"), strict=True):
        for model in dict.fromkeys(row["model"] for row in rows):
            line = [row for row in rows if row["model"] == model]
            size = [int(row["nodes"].replace(",", "")) + int(row["arcs"].replace(",", "")) for row in line]
            panel.plot(size, [float(row[column]) for row in line], "o-", label=model)
        panel.set(xlabel="nodes + arcs", ylabel=column, xscale="log", yscale="log")
        panel.grid(alpha=0.3)
    panels[0].legend()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, help="numbers of nodes")
    parser.add_argument("--whole", action="append", default=[], metavar="COMMAND", help="a command of g2m")
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--hidden-channels", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--one", action="store_true", help="in this process, printing rows as JSON")
    parser.add_argument("--plot", type=Path, help="PNG of all rows in --out")
    parser.add_argument("--out", type=Path, help="results file to add rows to")
    given = parser.parse_args()
    if given.plot and not given.out:
        parser.error("--plot draws the rows of a results file: name it by --out")
    if given.one:
        rows_of(given.sizes[0], given)
        return
    for command in given.whole:
        row = whole(command)
        print(json.dumps(row), flush=True)
        if given.out:
            append_result(given.out, row)
    for size in given.sizes:
        options = [f"--{name}={getattr(given, name.replace('-', '_'))}" for name in ("partitions", "epochs")]
        command = [sys.executable, __file__, str(size), "--one", *options, f"--hidden-channels={given.hidden_channels}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        for line in done.stdout.splitlines():
            print(line, flush=True)
            if given.out:
                append_result(given.out, json.loads(line))
    if given.plot:
        plot(given.plot, [row for row in read_results(given.out) if row.get("table") == TABLE])


if __name__ == "__main__":
    with mistakes():
        main()
