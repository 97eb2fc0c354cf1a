"""What tests of OGB share: small data sets in the layout of its files, through whose real loaders they are read."""

import gzip

import numpy as np
import pandas as pd

from g2m.data import load

# -- one graph: a pair in both directions, an edge twice, a loop, three one-way edges; node 7 is isolated --------------

EDGES = [[1, 0], [0, 1], [1, 2], [1, 2], [3, 3], [4, 2], [5, 6], [6, 3]]
ARCS = [[0, 1], [1, 0], [1, 2], [2, 1], [2, 4], [3, 6], [4, 2], [5, 6], [6, 3], [6, 5]]
LABELS = [2, 0, 1, 0, 1, 2, 0, 1]
SPLIT = {"train": [6, 0, 4], "valid": [1, 5], "test": [7, 3, 2]}
FEATURES = np.arange(24).reshape(8, 3) / 8

# -- eight molecules; one of a single atom, one of none ----------------------------------------------------------------

OGB_SIZES = [2, 3, 1, 0, 2, 2, 2, 2]
OGB_EDGES = [[[0, 1]], [[0, 1], [2, 1]], [], [], [[0, 1]], [[1, 0]], [[0, 1]], [[0, 1]]]
OGB_SPLIT = {"train": [6, 0, 4, 3], "valid": [1, 5], "test": [7, 2]}


def labels(tasks):
    y = np.arange(8 * tasks).reshape(8, tasks) % 2.0
    y[:, 0] = [0, 1, 0, 1, 0, 1, 0, 1]
    if tasks > 1:
        y[2, 0] = y[5, 3] = np.nan
        y[4] = np.nan  # nothing at all is known
    return y


def lay_out(card, root, *, edges=EDGES, x=FEATURES, y=LABELS, split=SPLIT):
    """Write a small graph where the card's files are, as OGB does."""
    tables = {"edge": edges, "node-feat": x, "node-label": y}
    tables |= {"num-node-list": [len(y)], "num-edge-list": [len(edges)]}
    if card.name == "ogbn-arxiv":
        tables["node_year"] = [2017] * len(y)
    return _lay_out(card, root, tables, {"ogbn-arxiv": "time", "ogbn-products": "sales_ranking"}[card.name], split)


def lay_out_graphs(card, root, *, sizes=OGB_SIZES, edges=OGB_EDGES, y=None, split=OGB_SPLIT):
    """Write small molecules where the card's files are, as OGB does."""
    arcs = [edge for graph in edges for edge in graph]
    tables = {
        "edge": arcs,
        "edge-feat": np.arange(3 * len(arcs)).reshape(-1, 3),
        "node-feat": np.arange(9 * sum(sizes)).reshape(-1, 9) % 7,
        "num-node-list": sizes,
        "num-edge-list": [len(graph) for graph in edges],
    }
    folder = _lay_out(card, root, tables, "scaffold", split)
    y = pd.DataFrame(labels(card.counts["tasks"]) if y is None else y)
    y.astype("Int64").to_csv(folder / "raw" / "graph-label.csv.gz", header=False, index=False)
    return folder


def _lay_out(card, root, tables, kind, split):
    folder = root / card.loader["folder"]
    for name, rows in tables.items():
        write(folder / "raw" / f"{name}.csv.gz", rows)
    for part, ids in split.items():
        write(folder / "split" / kind / f"{part}.csv.gz", ids)
    (folder / "RELEASE_v1.txt").touch()
    return folder


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt") as file:
        np.savetxt(file, np.asarray(rows).reshape(len(rows), -1), fmt="%s", delimiter=",")


def contents(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*")}


def loads_from_a_read_only_folder(card, root, capfd):
    """And nothing in it changes, and nothing is printed."""
    for path in (root, *root.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = contents(root)
    try:
        first, second = load(card, root=root), load(card, root=root)
    finally:
        for path in (root, *root.rglob("*")):
            path.chmod(0o755)
    assert first.fingerprint() == second.fingerprint()
    assert contents(root) == before
    assert capfd.readouterr() == ("", "")


def refuse(prompt=""):
    """In the place of ``input``."""
    raise SystemExit(f"a question was asked: {prompt}")  # no `except Exception` swallows it
