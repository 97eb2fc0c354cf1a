"""FF-G2M's losses and a whole student epoch: g2m against the same maths written edge by edge.

``losses``: on made-up logits of a graph of ogbn-arxiv's size (169 343 nodes, 2 315 598 arcs, 40 classes), value and
gradient of the low-frequency loss by nodes against by edges, of the high-frequency loss in chunks against at once.

``epoch``: a student of the published shape on a real graph. Plain: dense features, ``nn.Linear``, torch's dropout, both
losses over arcs, Adam's default kernel, and after each epoch a pass over the graph for each of train, val and test.

    python sweeps/speed_ff_g2m.py losses --out docs/results/speed_ff_g2m.jsonl
    python sweeps/speed_ff_g2m.py epoch cora physics --epochs 4 --out docs/results/speed_ff_g2m.jsonl

``size``: memory of a student's training on made-up graphs of ogbn-arxiv's and ogbn-products' size, by kind of batch.

    python sweeps/speed_ff_g2m.py size arxiv products --epochs 1 --out docs/results/size_ff_g2m.jsonl
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from speed import Clock, compare, measure, parse, report
from torch import Generator, Tensor, nn
from torch.nn import functional as F

import g2m
from g2m.cli import mistakes
from g2m.estimators import Student
from g2m.experiments import find
from g2m.losses import high_frequency_loss, low_frequency_loss
from g2m.models import sum_adjacency

NODES, EDGES, CLASSES = 169_343, 1_157_799, 40

Times = tuple[list[float], list[float]]


# -- losses --------------------------------------------------------------------------------------------------------


def plain_low(logits: Tensor, log_p: Tensor, row: Tensor, col: Tensor) -> Tensor:
    """Mean of KL(p_j ‖ q_i) over arcs and loops."""
    return F.kl_div(logits.log_softmax(1)[row], log_p[col], reduction="batchmean", log_target=True)


def plain_high(logits: Tensor, teacher: Tensor, row: Tensor, col: Tensor, tau: float) -> Tensor:
    """Mean over arcs of KL between softmaxed differences."""
    log_u, log_v = (((z[row] - z[col]).abs() / tau).log_softmax(1) for z in (teacher, logits))
    return F.kl_div(log_v, log_u, reduction="batchmean", log_target=True)


def loss_runs() -> dict[tuple[str, str], Callable[[Tensor], Tensor]]:
    generator = Generator().manual_seed(0)
    teacher = torch.randn(NODES, CLASSES, generator=generator)
    ends = torch.randint(NODES, (2, EDGES), generator=generator)
    once = torch.stack([ends.min(0).values, ends.max(0).values])
    once = once[:, torch.argsort(once[0] * NODES + once[1])]
    row, col = torch.cat([once, once.flip(0)], 1)
    loops = torch.arange(NODES)
    log_p = teacher.log_softmax(1)
    p = log_p.exp()
    scale = NODES / (2 * EDGES + NODES)
    target = scale * (p + torch.zeros_like(p).index_add_(0, row, p[col]))
    entropy = (p * log_p).sum(1)
    offset = scale * (entropy + torch.zeros(NODES).index_add_(0, row, entropy[col]))
    row_and_loop, col_and_loop = torch.cat([row, loops]), torch.cat([col, loops])
    return {
        ("low", "plain"): lambda s: plain_low(s, log_p, row_and_loop, col_and_loop),
        ("low", "g2m"): lambda s: low_frequency_loss(s, target, offset),
        ("high", "plain"): lambda s: plain_high(s, teacher, row, col, 1.5),
        ("high", "g2m"): lambda s: high_frequency_loss(s, teacher, once, 1.5),
    }


def time_loss(loss: Callable[[Tensor], Tensor], epochs: int) -> Times:
    student = torch.randn(NODES, CLASSES, generator=Generator().manual_seed(1), requires_grad=True)
    times, losses = [], []
    for _ in range(epochs + 1):
        start = time.perf_counter()
        value = loss(student)
        (gradient,) = torch.autograd.grad(value, student)
        times.append(time.perf_counter() - start)
        losses.append(value.item() + gradient.abs().sum().item())
    return times[1:], losses


# -- a whole epoch -------------------------------------------------------------------------------------------------


def made_up_outputs(graph: g2m.Graph) -> g2m.TeacherOutputs:
    """Which teacher it is does not change what an epoch costs."""
    logits = torch.randn(graph.num_nodes, graph.num_classes, generator=Generator().manual_seed(1))
    low_target = sum_adjacency(graph, loops=1.0).multiply(logits.softmax(1))
    return g2m.TeacherOutputs(graph.node_id, logits, low_target=low_target, meta={"fingerprint": graph.fingerprint()})


def make_student(data: str, **options: int) -> Student:
    return Student("ff_g2m", **{**find(data, "ff_g2m", "gcn").student_options, "hfd_space": "raw", **options})


def plain_epoch(graph: g2m.Graph, epochs: int) -> Times:
    student, teacher = make_student(graph.name), made_up_outputs(graph).logits
    torch.manual_seed(0)
    built = student._build(graph.num_features, graph.num_classes)
    layers: list[nn.Module] = []
    for source in built.layers:
        linear = nn.Linear(source.in_features, source.out_features)
        linear.load_state_dict({key: value.contiguous() for key, value in source.state_dict().items()})
        layers += [linear, nn.ReLU(), nn.Dropout(student.dropout)]
    model = nn.Sequential(*layers[:-2])
    lam, tau = student.options["lam"], student.options["tau2"]
    source, target = graph.edge_index
    loops = torch.arange(graph.num_nodes)
    col, row = torch.cat([source, loops]), torch.cat([target, loops])
    log_p, train = teacher.log_softmax(1), graph.part("train")

    def loss() -> Tensor:
        logits = model(graph.x)
        label = F.cross_entropy(logits[train], graph.y[train])
        knowledge = plain_low(logits, log_p, row, col) + plain_high(logits, teacher, target, source, tau)
        return lam * label + (1 - lam) * knowledge

    optimizer = torch.optim.Adam(model.parameters(), lr=student.lr, weight_decay=student.weight_decay)
    with torch.no_grad():
        losses = [model.eval() and loss().item()]
    times = []
    for _ in range(epochs):
        start = time.perf_counter()
        model.train()
        value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            for part in ("train", "val", "test"):
                ids = graph.part(part)
                (model(graph.x)[ids].argmax(1) == graph.y[ids]).float().mean().item()
        times.append(time.perf_counter() - start)
    return times, losses


def our_epoch(graph: g2m.Graph, epochs: int) -> Times:
    outputs, clock = made_up_outputs(graph), Clock()
    # The loss of the first weights, without dropout: a step of size next to none, on a student with none.
    still = make_student(graph.name, max_epochs=1, dropout=0.0).fit(graph, outputs)
    make_student(graph.name, max_epochs=epochs + 1, patience=epochs + 1).fit(graph, outputs, on_epoch=clock)
    return clock.times(), [still.history_.epochs[0]["loss"]]


# -- size ----------------------------------------------------------------------------------------------------------

#: nodes, edges, features, classes
SIZES = {"arxiv": (NODES, EDGES, 128, CLASSES), "products": (2_449_029, 61_859_012, 100, 47)}
#: by what a step has: all; nodes with their edges; nodes, and as many edges drawn
BATCHES = {
    "arxiv": [{"batch_size": "all"}, {"batch_size": 4096}, {"batch_size": 4096, "edge_batch_size": 16384}],
    "products": [{"batch_size": 65536, "edge_batch_size": 262144}],
}


def made_up_graph(name: str) -> g2m.Graph:
    nodes, edges, features, classes = SIZES[name]
    generator = Generator().manual_seed(0)
    ends = torch.randint(nodes, (2, edges), generator=generator)
    x, y = torch.randn(nodes, features, generator=generator), torch.arange(nodes) % classes
    split = {"train": torch.arange(0, nodes // 10), "val": torch.arange(nodes // 10, nodes // 5)}
    return g2m.Graph(x, torch.cat([ends, ends.flip(0)], 1), y, split, name=name)


def size_row(name: str, number: int, epochs: int) -> None:
    options = BATCHES[name][number]
    graph = made_up_graph(name)
    outputs = made_up_outputs(graph)
    shape = {"num_layers": 3, "hidden_channels": 256, "max_epochs": epochs + 1, "patience": epochs + 1}
    clock = Clock()
    student = Student("ff_g2m", **shape, **options)
    measure(lambda: (student.fit(graph, outputs, on_epoch=clock) and clock.times(), []))


def sizes(names: list[str], epochs: int, out: Path | None) -> None:
    for name in names:
        times = []
        for number, options in enumerate(BATCHES[name]):
            command = [sys.executable, __file__, "size", name, str(number), "--run", "g2m", "--epochs", str(epochs)]
            run = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            nodes, edges, features, classes = SIZES[name]
            times.append(run["ms"])
            row = {
                "table": "Training a student of 3 × 256, everything in memory",
                "size of": f"ogbn-{name}",
                "nodes": f"{nodes:,}",
                "arcs": f"{2 * edges:,}",
                "features, classes": f"{features}, {classes}",
                "nodes a step": options["batch_size"],
                "edges a step": options.get("edge_batch_size", "those of its nodes"),
                "peak GB": f"{run['peak_mb'] / 1024:.1f}",
                "epoch, of the first row's": f"{times[-1] / times[0]:.1f}×",
            }
            report(row, out)


def main() -> None:
    given = parse(__doc__, [])
    kind, *names = given.data
    if given.run:
        warnings.filterwarnings("ignore")
        if kind == "size":
            size_row(names[0], int(names[1]), given.epochs)
        elif kind == "losses":
            loss = loss_runs()[names[0], given.run]
            measure(lambda: time_loss(loss, given.epochs))
        else:
            graph = g2m.load(names[0], seed=0)
            run = {"plain": plain_epoch, "g2m": our_epoch}[given.run]
            measure(lambda: run(graph, given.epochs))
        return
    if kind == "size":
        sizes(names or [*SIZES], given.epochs, given.out)
        return
    if kind == "losses":
        table = f"Losses at {NODES:,} nodes, {2 * EDGES:,} arcs, {CLASSES} classes: value and gradient"
        names = names or ["low", "high"]
    else:
        table = "FF-G2M student, a whole epoch"
    for name in names:
        report(compare(__file__, {"kind": kind, "of": name}, given.epochs, given.rounds, table=table), given.out)


if __name__ == "__main__":
    with mistakes():
        main()
