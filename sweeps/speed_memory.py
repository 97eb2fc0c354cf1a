"""What keeps memory down, measured: features mapped from a file, activations computed again, answers in chunks.

    python sweeps/speed_memory.py mapped --out docs/results/speed_memory.jsonl
    python sweeps/speed_memory.py teacher --out docs/results/speed_memory.jsonl
    python sweeps/speed_memory.py answers --out docs/results/speed_memory.jsonl

``mapped``: a student by GLNN on made-up features, two million nodes of 256, once mapped from their file and once held;
the most anonymous memory, which is what cannot be left to the file. ``teacher``: SAGE, 256 wide, batch norm, dropout,
on the whole of a stand-in of ogbn-arxiv in one step; the most memory of all kinds. ``answers``: what answers for all
nodes of it add to that, three layers of 256, in chunks of rows and all rows of a layer together. Each in a process of
its own, Python and torch included.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch

import g2m
from g2m import models
from g2m.bench import append_result
from g2m.cli import mistakes

WHAT = ("mapped", "teacher", "answers")
NODES, FEATURES, CLASSES = 2_000_000, 256, 10
TEACHERS = {
    f"{layers} layers{said}": {"num_layers": layers, **options}
    for layers in (3, 6)
    for said, options in (("", {}), (", checkpoint_activations", {"checkpoint_activations": True}))
}


def anonymous() -> float:
    """GB of this process that no file is behind."""
    return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))[1]) / 1e6


def student(path: str, held: bool) -> float:
    """Return the most anonymous GB while a student is trained on the features in a file."""
    most, ended = 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.01):
            most = max(most, anonymous())

    watching = threading.Thread(target=watch)
    watching.start()
    x = np.load(path, mmap_mode=None if held else "r")
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(CLASSES, (NODES,), generator=generator)
    ids = torch.randperm(NODES, generator=generator)
    split = {"train": ids[:10_000], "val": ids[10_000:20_000], "test": ids[20_000:30_000]}
    ring = torch.stack([torch.arange(NODES), torch.arange(NODES).roll(1)])
    graph = g2m.Graph(x, ring, y, split, num_classes=CLASSES)
    logits = torch.randn(NODES, CLASSES, generator=generator)
    outputs = g2m.TeacherOutputs(graph.node_id, logits, meta={"fingerprint": graph.fingerprint()})
    g2m.Student("glnn", batch_size=16384, max_epochs=1).fit(graph, outputs)
    ended.set()
    watching.join()
    return most


def most_memory() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def answers(backbone: str, how: str) -> float:
    """Return the GB that answers for all nodes take beside the graph."""
    graph = g2m.load("sbm-arxiv")
    model = models.GNN(backbone, graph.num_features, 256, graph.num_classes, num_layers=3).eval()
    inputs = model.inputs(graph)
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak counts from here
    before = _status("VmRSS")
    if how == "together":
        models.ROWS = graph.num_nodes
    with torch.no_grad():
        model(*inputs)
    return _status("VmHWM") - before


def _status(figure: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{figure}:")[1].split()[0]) * 1024 / 1e9


def teacher(name: str) -> float:
    """Return the most GB while a teacher is trained."""
    graph = g2m.load("sbm-arxiv")
    g2m.Teacher("sage", hidden_channels=256, norm="batch", dropout=0.2, max_epochs=2, **TEACHERS[name]).fit(graph)
    return most_memory()


def measured(*words: str) -> tuple[float, float]:
    """Return what a process of its own prints, and its seconds."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout), time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", help=", ".join(WHAT))
    parser.add_argument("--one", action="store_true", help="in this process, printing a figure")
    parser.add_argument("--out", type=Path, help="results file to append rows to")
    given = parser.parse_args()
    if given.one:
        kind, *rest = given.what
        if kind == "mapped":
            print(student(rest[0], rest[1] == "held"))
        else:
            print({"teacher": teacher, "answers": answers}[kind](*rest))
        return
    if wrong := [word for word in given.what if word not in WHAT]:
        parser.error(f"what: expected {', '.join(WHAT)} (got {wrong[0]!r}).")
    rows = []
    if "mapped" in given.what:
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/x.npy"
            file = np.lib.format.open_memmap(path, "w+", np.float32, (NODES, FEATURES))
            for start in range(0, NODES, 100_000):
                file[start : start + 100_000] = np.random.default_rng(start).standard_normal((100_000, FEATURES))
            del file
            table = f"GLNN on {NODES:,} nodes of {FEATURES} features, {NODES * FEATURES * 4 / 1e9:.2f} GB"
            for how in ("mapped", "held"):
                most, seconds = measured("mapped", path, how, "--one")
                rows.append(
                    {"table": table, "features": how, "peak anonymous GB": f"{most:.2f}", "s": f"{seconds:.0f}"}
                )
    if "teacher" in given.what:
        table = "SAGE teachers on a stand-in of ogbn-arxiv, in one step"
        for name in TEACHERS:
            most, seconds = measured("teacher", name, "--one")
            rows.append({"table": table, "teacher": name, "peak GB": f"{most:.2f}", "s": f"{seconds:.0f}"})
    if "answers" in given.what:
        table = "Answers for all nodes of a stand-in of ogbn-arxiv"
        for backbone in ("sage", "gcn", "gat"):
            row = {"table": table, "network": backbone}
            for how in ("together", "in chunks"):
                runs = [measured("answers", backbone, how, "--one") for _ in range(5)]  # memory given back is chance
                most, seconds = map(statistics.median, zip(*runs, strict=True))
                row |= {f"GB {how}": f"{most:.2f}", f"s {how}": f"{seconds:.0f}"}
            rows.append(row)
    for row in rows:
        print(json.dumps(row))
        if given.out:
            append_result(given.out, row)


if __name__ == "__main__":
    with mistakes():
        main()
