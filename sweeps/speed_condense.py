"""Condensation's costs, in CPU seconds of one run each: tree classes, condensed sets, and training on equal trees once.

``classes``: computation trees of a data set, all of its graphs, and of the same graphs several times over.

    python sweeps/speed_condense.py classes ogbg-molhiv --hops 3 --out docs/results/speed_condense.jsonl

``sets``: from graphs in memory to a condensed set of 1 % of the bytes.

    python sweeps/speed_condense.py sets nci1 ogbg-molhiv --out docs/results/speed_condense.jsonl

``step``: forward and backward of a GIN on all graphs of a data set in one step: PyG's GINEConv, our layers node by
node, our layers with equal trees computed once.

    python sweeps/speed_condense.py step ogbg-molhiv --hops 3 --out docs/results/speed_condense.jsonl

``training``: the same seed with and without equal trees computed once, in float64, over epochs of mini-batches: time,
and the difference of the test scores.

    python sweeps/speed_condense.py training nci1 ogbg-molbace --out docs/results/speed_condense.jsonl
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from speed import report
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import GINConv, GINEConv, global_add_pool

import g2m
from g2m.cli import mistakes
from g2m.condense import TreeKeys, condense, tree_classes
from g2m.condense.bench import shipped
from g2m.graph_gnn import GraphGNN, shape_of

PUBLISHED = {"ogbg-molhiv": 201.6, "nci1": 444.0}  # seconds: the reference's trees at three hops; its stages at two


def cpu(call: Callable[..., Any], *given: Any, **options: Any) -> tuple[Any, float]:
    """Return what a call gives, and the CPU seconds it took on all threads together."""
    start = time.process_time()
    return call(*given, **options), time.process_time() - start


def memory() -> float:
    """Return the most memory this process has had, in GB: rows made before count as well."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def hops_of(name: str, given: argparse.Namespace) -> int:
    return given.hops or shipped().get(name, {}).get("hops", 2)


def classes_rows(given: argparse.Namespace) -> None:
    for name in given.data:
        graphs = g2m.load(name)
        keys, keyed = cpu(lambda g: TreeKeys().fit(g).transform(g), graphs)
        for times in given.times:
            nodes, arcs = (part.repeat(times) for part in keys)
            shift = torch.arange(times).repeat_interleave(graphs.num_edges) * graphs.num_nodes
            edge_index, hops = graphs.edge_index.repeat(1, times) + shift, hops_of(name, given)
            for way, options in {"hashed": {"verify": False}, "verified": {}, "exact": {"method": "exact"}}.items():
                if way != "verified" and times > 1:
                    continue
                found, seconds = cpu(tree_classes, edge_index, nodes, arcs, num_hops=hops, **options)
                row = {
                    "table": "Tree classes",
                    "data": name,
                    "graphs": f"{len(graphs) * times:,}",
                    "nodes": f"{graphs.num_nodes * times:,}",
                    "hops": hops,
                    "way": way,
                    "classes": f"{found.num_classes[-1]:,}",
                    "CPU s": f"{seconds:.2f}",
                    "keys, CPU s": f"{keyed:.2f}" if times == 1 else "–",
                    "peak GB": f"{memory():.1f}",
                    "reference s": PUBLISHED.get(name, "–") if hops == 3 and times == 1 else "–",
                }
                report(row, given.out)


def sets_rows(given: argparse.Namespace) -> None:
    for name in given.data:
        graphs = g2m.load(name)
        for method, options in {"mirage, faithful": {"faithful": True}, "mirage": {}, "scored": {}}.items():
            given_to = {"method": method.partition(",")[0], "num_hops": hops_of(name, given), **options}
            made, seconds = cpu(condense, graphs, **given_to)
            row = {
                "table": "From graphs to a condensed set of 1 % of the bytes",
                "data": name,
                "graphs": f"{len(graphs.part('train')):,}",
                "hops": made.meta["options"]["num_hops"],
                "method": method,
                "records": f"{len(made):,}",
                "bytes": f"{made.nbytes().raw:,}",
                "CPU s": f"{seconds:.2f}",
                "peak GB": f"{memory():.1f}",
                "reference s": PUBLISHED[name] if (name, made.meta["options"]["num_hops"]) == ("nci1", 2) else "–",
            }
            report(row, given.out)


class PyG(nn.Module):
    """The same network of PyG's parts: a message for every arc."""

    def __init__(self, network: GraphGNN) -> None:
        super().__init__()
        self.network, kind = network, GINEConv if len(network.arcs) else GINConv
        self.convs = nn.ModuleList(
            kind(nn.Sequential(conv.first, nn.ReLU(), conv.second), train_eps=True) for conv in network.backbone.convs
        )

    def forward(self, x: Tensor, edge_index: Tensor, edge_attr: Tensor | None, batch: Tensor, size: int) -> Tensor:
        h = self.network.nodes(x)
        for i, conv in enumerate(self.convs):
            edge = () if edge_attr is None else (self.network.arcs[i](edge_attr),)
            h = F.relu(conv(h, edge_index, *edge))
        return self.network.head(global_add_pool(h, batch, size))


def step(call: Callable[[], Any]) -> Tensor:
    answer = call()
    answer = answer if isinstance(answer, Tensor) else answer.logits
    answer.square().mean().backward()
    return answer.detach()


def step_rows(given: argparse.Namespace) -> None:
    for name in given.data:
        graphs, hops = g2m.load(name), hops_of(name, given)
        model = g2m.GraphClassifier("gin", num_layers=hops)
        programs, made = {}, {}
        for way, share in {"node by node": False, "equal trees once": True}.items():
            model.share = share
            programs[way], made[way] = cpu(model.program, graphs)
        program = programs["node by node"]
        torch.manual_seed(0)
        network = model._build(shape_of(program), graphs.num_tasks if graphs.y.dim() == 2 else graphs.num_classes)
        plain, x = PyG(network), graphs.x if graphs.x is not None else program.x[program.key]
        calls = {
            "PyG": partial(plain, x, graphs.edge_index, graphs.edge_attr, graphs.batch, len(graphs)),
            **{way: partial(network, program) for way, program in programs.items()},
        }
        seconds, logits = {}, {}
        for way, call in calls.items():
            taken = []
            for _ in range(given.rounds + 1):  # the first also makes the transposes
                network.zero_grad()
                logits[way], once = cpu(step, call)
                taken.append(once)
            seconds[way] = float(np.median(taken[1:]))
        difference = max(float((logits[way] - logits["PyG"]).abs().max()) for way in programs)
        for way in calls:
            row = {
                "table": "Forward and backward of GIN, all graphs in one step",
                "data": name,
                "layers": hops,
                "way": way,
                "rows": "–" if way == "PyG" else " → ".join(f"{n:,}" for n in programs[way].num_rows),
                "CPU s": f"{seconds[way]:.2f}",
                "of PyG's": f"{seconds[way] / seconds['PyG']:.2f}",
                "once, to prepare": "–" if way == "PyG" else f"{made[way]:.2f}",
                "largest difference of logits": f"{difference / float(logits['PyG'].abs().max()):.0e}",
            }
            report(row, given.out)


def training_rows(given: argparse.Namespace) -> None:
    for name in given.data:
        graphs, scores, seconds = g2m.load(name), {}, {}
        for share in (False, True):
            options = {"num_layers": hops_of(name, given), "max_epochs": given.epochs, "patience": given.epochs}
            model = g2m.GraphClassifier("gin", share=share, precision="float64", **options)
            _, seconds[share] = cpu(model.fit, graphs)
            model.share = False  # asked in the same way
            metric = "rocauc" if graphs.y.dim() == 2 or graphs.num_classes == 2 else "accuracy"
            scores[share] = model.evaluate(graphs, metric)["test"]
        row = {
            "table": "Training a GIN in float64, same seed: node by node, equal trees once",
            "data": name,
            "layers": hops_of(name, given),
            "epochs": given.epochs,
            "node by node": f"{100 * scores[False]:.3f}",
            "equal trees once": f"{100 * scores[True]:.3f}",
            "difference": f"{abs(scores[True] - scores[False]):.0e}",
            "CPU s": f"{seconds[False]:.1f}",
            "CPU s, once": f"{seconds[True]:.1f}",
            "factor": f"{seconds[False] / seconds[True]:.1f}×",
        }
        report(row, given.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("classes", "sets", "step", "training"))
    parser.add_argument("data", nargs="+", help="card names of sets of graphs")
    parser.add_argument("--hops", type=int, help="default: what sweeps/condense.toml says, else 2")
    parser.add_argument("--times", type=int, nargs="+", default=[1], help="classes: the graphs so many times over")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, help="results file to add rows to")
    given = parser.parse_args()
    {"classes": classes_rows, "sets": sets_rows, "step": step_rows, "training": training_rows}[given.what](given)


if __name__ == "__main__":
    with mistakes():
        main()
