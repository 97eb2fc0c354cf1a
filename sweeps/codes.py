"""What a tokenizer's codes are: how many stay in use, and what they stand for.

``usage``: teachers with a tokenizer at K = N/8, the published settings beside ours; a row per data set and place, and a
plot of the codes in use by epoch for the first data set.

    python sweeps/codes.py usage cora-cpf citeseer-cpf --out docs/results/codes.jsonl --plot docs/methods/usage.png

``picture``: the nodes of one graph by their hidden states, their codes among them (two principal components), and, of
three codes, the neighbourhoods of some of their nodes.

    python sweeps/codes.py picture cora-cpf --plot docs/methods/codes.png --subgraphs docs/methods/subgraphs.png
"""

from __future__ import annotations

import argparse
import statistics
import sys
import warnings
from pathlib import Path

import networkx as nx
import torch
from matplotlib.figure import Figure
from sklearn.decomposition import PCA
from torch_geometric.utils import k_hop_subgraph

import g2m
from g2m.bench import append_result, cache_folder
from g2m.cli import mistakes
from g2m.estimators import Teacher
from g2m.experiments import find
from g2m.report import check_plot, curves, mean_std

PUBLISHED = "published (5 000 codes)"
AT_OUR_SIZE = "published, K = N/8"
PLACES = {
    "inside, ours": {"tokenizer": "inside"},
    "beside, ours": {"tokenizer": "beside"},
    AT_OUR_SIZE: {"tokenizer": "reference"},
    PUBLISHED: {"tokenizer": "reference", "num_codes": 5000},
}
DENSE_PASS = 1e11  # multiplications of one published layer, F × F for every node: beyond, an epoch takes minutes


def usage(given: argparse.Namespace) -> None:
    lines: dict[str, list[list[float]]] = {}
    schedule = {"lr": 1e-4, "max_epochs": given.published_epochs}  # of the published command
    for data in given.data:
        for name in given.places:
            rows, options = [], PLACES[name]
            reference = options["tokenizer"] == "reference"
            for seed in range(given.published_seeds if reference else given.seeds):
                graph = g2m.load(data, seed=seed)
                if reference and graph.num_nodes * graph.num_features**2 > DENSE_PASS:
                    print(f"{data}, {name}: left out, its layers are {graph.num_features} × {graph.num_features}")
                    break
                backbone = "gcn" if reference else given.teacher
                published = find(data, "glnn", backbone).teacher_options | (schedule if reference else {})
                epochs: list[dict[str, float]] = []
                teacher = Teacher(
                    backbone, seed=seed, **{**published, "num_codes": graph.num_nodes // 8, **options}
                ).fit(graph, on_epoch=epochs.append)
                if data == given.data[0] and seed == 0:
                    shown = [100 * epoch["usage"] for epoch in epochs if "usage" in epoch]
                    lines[name] = [shown]
                scores, figures = teacher.evaluate(graph), teacher.meta_["figures"]
                codes = len(teacher.model_.tokenizer.codebook.codes[0])
                rows.append({"codes": codes, **figures, "val": scores["val"], "test": scores["test"]})
                print(f"{data}, {name}, seed {seed}: {rows[-1]}", flush=True)
            if not rows:
                continue
            row = {"table": "Codes in use", "data": data, "tokenizer": name, "seeds": str(len(rows))}
            row |= {"epochs": str(sum("usage" in epoch for epoch in epochs)), "codes": f"{rows[0]['codes']:,}"}
            for key, title, scale in (("usage", "in use %", 100), ("test", "teacher's test %", 100)):
                row |= {title: _mean_std([scale * of[key] for of in rows])}
            row |= {"perplexity": f"{statistics.fmean(of['perplexity'] for of in rows):.1f}"}
            print("  ".join(f"{key}: {value}" for key, value in row.items() if key != "table"), flush=True)
            if given.out:
                append_result(given.out, row)
    if not lines:
        sys.exit(f"error: --places: nothing was trained on {given.data[0]}, its plot is of that. Leave --places out.")
    shortest = min(len(run) for runs in lines.values() for run in runs)
    panel = {name: [run[:shortest] for run in runs] for name, runs in lines.items()}
    title = f"{given.data[0]}: share of the codes in use, %"
    curves({f"the first {shortest} epochs": panel}, given.plot, title=title, xlabel="epoch")
    print(f"plot: {given.plot}")


def picture(given: argparse.Namespace) -> None:
    (data,) = given.data
    graph = g2m.load(data, seed=0)
    options = find(data, "vqgraph", given.teacher).teacher_options | {"tokenizer": "beside"}
    outputs = Teacher(given.teacher, seed=0, **options).fit(graph, cache=cache_folder()).outputs(graph)
    codes = outputs.codes()
    members = torch.bincount(codes, minlength=len(outputs.codebook))

    pca = PCA(2).fit(outputs.code_input.numpy())
    nodes, centres = pca.transform(outputs.code_input.numpy()), pca.transform(outputs.codebook.numpy())
    figure = Figure(figsize=(7, 6), layout="constrained")
    axis = figure.subplots()
    axis.scatter(*nodes.T, c=graph.y.numpy(), cmap="tab10", vmin=0, vmax=9, s=7, alpha=0.5)
    used = (members > 0).numpy()
    axis.scatter(*centres[used].T, s=4 * members[used].numpy(), facecolors="none", edgecolors="black", linewidths=0.8)
    axis.set(title=f"{data}: nodes by class, and their codes (area: members)", xticks=[], yticks=[])
    _save(figure, given.plot)

    figure = Figure(figsize=(9, 8), layout="constrained")
    rows = figure.subplots(3, 4)
    chosen = [code for code in members.argsort(descending=True).tolist() if members[code] >= 4]
    chosen = [chosen[0], chosen[len(chosen) // 2], chosen[-1]]  # a large code, a middling one, a small one
    for code, axes in zip(chosen, rows, strict=True):
        of_code = (codes == code).nonzero().flatten()
        near = (outputs.code_input[of_code] - outputs.codebook[code]).square().sum(1).argsort()
        for node, axis in zip(of_code[near].tolist(), axes, strict=False):
            ids, edges, *_ = k_hop_subgraph(node, 1, graph.edge_index, num_nodes=graph.num_nodes)
            drawn = nx.Graph(edges.T.tolist())
            drawn.add_nodes_from(ids.tolist())
            colours = graph.y[list(drawn)].tolist()
            sizes = [140 if other == node else 45 for other in drawn]
            place = nx.spring_layout(drawn, seed=0)
            style = {"node_size": sizes, "node_color": colours, "cmap": "tab10", "vmin": 0, "vmax": 9}
            nx.draw_networkx(drawn, place, ax=axis, with_labels=False, edge_color="0.7", **style)
            axis.set_axis_off()
        axes[0].set_title(f"code {code}: {int(members[code])} nodes", fontsize=10)
    figure.suptitle(f"{data}: four nodes of each of three codes, with their neighbours; colour: class")
    _save(figure, given.subgraphs)


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"plot: {path}")


def _mean_std(values: list[float]) -> str:
    mean, std = mean_std(values)
    return f"{mean:.1f} ± {std:.1f}" if len(values) > 1 else f"{mean:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["usage", "picture"])
    parser.add_argument("data", nargs="+", help="card names")
    parser.add_argument("--places", nargs="+", choices=PLACES, default=[*PLACES], help="rows of usage; default all")
    parser.add_argument("--teacher", default="sage")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--published-seeds", type=int, default=1, help="of the published settings, which are slow")
    parser.add_argument("--published-epochs", type=int, default=100)
    parser.add_argument("--out", type=Path, help="results file to append to")
    parser.add_argument("--plot", type=Path, default=Path("codes.png"))
    parser.add_argument("--subgraphs", type=Path, default=Path("subgraphs.png"))
    given = parser.parse_args()
    check_plot("--plot", given.plot)
    check_plot("--subgraphs", given.subgraphs)
    warnings.filterwarnings("ignore")
    {"usage": usage, "picture": picture}[given.what](given)


if __name__ == "__main__":
    with mistakes():
        main()
