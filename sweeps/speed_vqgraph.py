"""VQGraph's costs: a step of the tokenizer, and an answer by teacher and by student.

``tokenizer``: forward and backward of a tokenizer on made-up graphs with Cora's, Photo's and CS's number of nodes.
Plain: with the adjacency reconstructed as an N × N matrix, which at ogbn-arxiv's number of nodes would take 115 GB.

    python sweeps/speed_vqgraph.py tokenizer --epochs 5 --out docs/results/speed_vqgraph.jsonl

``answer``: the paper's setting, ten random nodes. The teacher, GraphSAGE of 3 × 256, fetches neighbourhoods of 15, 10
and 5 from a made-up graph of ogbn-arxiv's or ogbn-products' size; the student, an MLP of 3 × 256, reads the ten rows.

    python sweeps/speed_vqgraph.py answer arxiv products --out docs/results/speed_vqgraph.jsonl

``size``: memory of training on such graphs: a teacher with a tokenizer inside, whole graph at a time (arxiv), and
students in batches of 4 096 nodes.

    python sweeps/speed_vqgraph.py size arxiv products --out docs/results/speed_vqgraph.jsonl
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import torch
from speed import Clock, compare, measure, report
from torch import Generator, Tensor

import g2m
from g2m import latency
from g2m.cli import mistakes
from g2m.estimators import Student, Teacher
from g2m.models import GNN, MLP
from g2m.sparse import CSR, sampled_field
from g2m.tokenizer import Reconstruction, Tokenizer, Tokens

NODES = {"2485": 2_485, "7487": 7_487, "18333": 18_333, "169343": 169_343}
HIDDEN, FEATURES, CODES, DEGREE = 128, 500, 256, 14
SIZES = {"arxiv": (169_343, 2_315_598, 128, 40), "products": (2_449_029, 123_718_024, 100, 47)}
FAN_OUTS, ASKED = (15, 10, 5), 10


# -- a step of the tokenizer ---------------------------------------------------------------------------------------


class Dense(Tokenizer):
    """The edge term as published: an N × N Gram matrix, scaled by its extremes, against a dense adjacency."""

    def _edge_loss(self, tokens: Tokens, edges: CSR) -> Tensor:
        gram = tokens.decoded @ tokens.decoded.T
        low, high = gram.detach().min(), gram.detach().max()
        return (self.adjacency - (gram - low) / (high - low)).square().mean().sqrt()


def steps(kind: type[Tokenizer], num_nodes: int, epochs: int) -> tuple[list[float], list[float]]:
    generator = Generator().manual_seed(0)
    hidden = torch.randn(num_nodes, HIDDEN, generator=generator).relu_()
    x = CSR.from_dense((torch.rand(num_nodes, FEATURES, generator=generator) < 0.02).float())
    ends = torch.randint(num_nodes, (2, num_nodes * DEGREE // 2), generator=generator)
    loops = torch.arange(num_nodes).expand(2, -1)
    row, col = torch.cat([ends, ends.flip(0), loops], 1)
    key = (row * num_nodes + col).unique()
    edges = CSR.from_coo(key // num_nodes, key % num_nodes, torch.ones(len(key)), (num_nodes, num_nodes))
    torch.manual_seed(0)
    tokenizer = kind(HIDDEN, FEATURES, num_codes=CODES)
    if kind is Dense:
        tokenizer.adjacency = edges.to_dense()
    task = Reconstruction(tokenizer).train()
    times, losses = [], []
    for _ in range(epochs + 1):  # the first also starts the codes
        start = time.perf_counter()
        loss = sum(task(hidden, x, edges).extra.values())
        tokenizer.zero_grad()
        loss.backward()
        times.append(time.perf_counter() - start)
        losses.append(loss.item())
    return times[1:], losses


def tokenizer_rows(given: argparse.Namespace) -> None:
    table = "Tokenizer, one step: adjacency as a matrix (plain), in closed form (g2m)"
    for name in given.of or NODES:
        what = {"stage": "tokenizer", "nodes": name}
        if NODES[name] < 50_000:
            row = compare(__file__, what, given.epochs, given.rounds, table=table)
        else:  # the matrix does not fit: the closed form alone
            row = compare(__file__, what, given.epochs, given.rounds, table=table, ways=("g2m",))
        report({key: value for key, value in row.items() if key != "stage"}, given.out)


# -- an answer -----------------------------------------------------------------------------------------------------


def made_up(num_nodes: int, num_arcs: int, generator: Generator) -> CSR:
    """The mean over neighbours in a random graph with the skew of degrees that such graphs have (log-normal)."""
    weight = torch.randn(num_nodes, generator=generator).mul_(1.2).exp_().double()
    crow = torch.zeros(num_nodes + 1, dtype=torch.int32)
    crow[1:] = (weight.cumsum(0) * (num_arcs / weight.sum())).round()
    col = torch.randint(num_nodes, (int(crow[-1]),), generator=generator, dtype=torch.int32)
    count = crow.diff()
    return CSR(crow, col, (1 / count).repeat_interleave(count), (num_nodes, num_nodes))


def answer_row(name: str) -> dict[str, str]:
    num_nodes, num_arcs, width, classes = SIZES[name]
    generator = Generator().manual_seed(0)
    adjacency, x = made_up(num_nodes, num_arcs, generator), torch.randn(num_nodes, width, generator=generator)
    teacher = GNN("sage", width, 256, classes, num_layers=3, norm="batch").eval()
    student = MLP(width, 256, classes, num_layers=3, norm="batch").eval()
    asked = itertools.cycle([torch.randint(num_nodes, (ASKED,), generator=generator) for _ in range(512)])
    read: list[int] = []

    @torch.no_grad()
    def by_teacher() -> Tensor:
        field, layers = sampled_field(adjacency, next(asked).unique(), FAN_OUTS)
        read.append(len(field))
        return teacher(x[field], layers).logits

    @torch.no_grad()
    def by_student() -> Tensor:
        return student(x[next(asked)]).logits

    calls = {"teacher": by_teacher, "student": by_student}
    rounds = [{who: latency.measure(call, repeats=300, seconds=10) for who, call in calls.items()} for _ in range(3)]
    times = {who: min((each[who] for each in rounds), key=lambda time: time["p50"]) for who in calls}
    return {
        "table": f"{ASKED} random nodes: teacher with neighbourhoods of {FAN_OUTS}, student without",
        "size of": f"ogbn-{name}",
        "nodes": f"{num_nodes:,}",
        "arcs": f"{adjacency.nnz:,}",
        "nodes the teacher reads": f"{sum(read) / len(read):,.0f}",
        **{f"{who} {p} ms": f"{times[who][p]:.2f}" for who in times for p in ("p50", "p99")},
        "teacher / student": f"{times['teacher']['p50'] / times['student']['p50']:.0f}×",
    }


def answer_rows(given: argparse.Namespace) -> None:
    for name in given.of or SIZES:
        report(answer_row(name), given.out)


# -- size ----------------------------------------------------------------------------------------------------------


def graph_of(name: str, generator: Generator, *, edges: bool) -> g2m.Graph:
    num_nodes, num_arcs, width, classes = SIZES[name]
    ends = torch.randint(num_nodes, (2, num_arcs // 2 if edges else 0), generator=generator)
    ids = torch.arange(num_nodes)
    split = {"train": ids[: num_nodes // 2], "val": ids[num_nodes // 2 : num_nodes // 2 + 2**15]}
    return g2m.Graph(
        torch.randn(num_nodes, width, generator=generator),
        torch.cat([ends, ends.flip(0)], 1),
        torch.randint(classes, (num_nodes,), generator=generator),
        split,
        name=name,
        num_classes=classes,
    )


def train_teacher(name: str, epochs: int) -> list[float]:
    graph = graph_of(name, Generator().manual_seed(0), edges=True)
    clock, options = Clock(), {"num_layers": 3, "hidden_channels": 256, "norm": "batch", "num_codes": 8192}
    Teacher("sage", tokenizer="inside", max_epochs=epochs + 1, **options).fit(graph, on_epoch=clock)
    return clock.times()


def train_student(name: str, epochs: int) -> list[float]:
    generator = Generator().manual_seed(0)
    graph = graph_of(name, generator, edges=False)
    codebook, logits = torch.randn(4096, 128, generator=generator), torch.randn(len(graph.y), graph.num_classes)
    codes = {"codebook": codebook, "code_input": torch.randn(len(graph.y), 128, generator=generator)}
    outputs = g2m.TeacherOutputs(graph.node_id, logits, meta={"fingerprint": graph.fingerprint()}, **codes)
    clock, options = Clock(), {"num_layers": 3, "hidden_channels": 256, "norm": "batch", "batch_size": 4096}
    Student("vqgraph", max_epochs=epochs + 1, **options).fit(graph, outputs, on_epoch=clock)
    return clock.times()


def size_rows(given: argparse.Namespace) -> None:
    kinds = {"arxiv": ("teacher, inside, 8 192 codes", "student, 4 096 codes"), "products": ("student, 4 096 codes",)}
    for name in given.of or SIZES:
        for kind in kinds[name]:
            command = [sys.executable, __file__, "size", name, "--run", kind.split(",")[0], "--epochs", "1"]
            result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            num_nodes, num_arcs, width, classes = SIZES[name]
            row = {"table": "Training on made-up graphs of OGB's size, all in memory", "size of": f"ogbn-{name}"}
            row |= {"nodes": f"{num_nodes:,}", "arcs": f"{num_arcs:,}" if "teacher" in kind else "not needed"}
            row |= {"features, classes": f"{width}, {classes}", "trained": kind}
            report(
                row | {"peak GB": f"{result['peak_mb'] / 1024:.1f}"},
                given.out,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["tokenizer", "answer", "size"])
    parser.add_argument("of", nargs="*", help="numbers of nodes, or arxiv, products; default all")
    parser.add_argument("--epochs", type=int, default=5, help="steps timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="results file to append to")
    parser.add_argument("--run", choices=["plain", "g2m", "teacher", "student"], help="run one in this process")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    if given.run:
        (of,) = given.of
        runs = {
            "plain": lambda: steps(Dense, NODES[of], given.epochs),
            "g2m": lambda: steps(Tokenizer, NODES[of], given.epochs),
            "teacher": lambda: (train_teacher(of, given.epochs), []),
            "student": lambda: (train_student(of, given.epochs), []),
        }
        measure(runs[given.run])
    else:
        {"tokenizer": tokenizer_rows, "answer": answer_rows, "size": size_rows}[given.stage](given)


if __name__ == "__main__":
    with mistakes():
        main()
