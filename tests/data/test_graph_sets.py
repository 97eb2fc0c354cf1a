"""Sets of graphs by name: small ones in the layouts of TU and OGB, through the real loaders, and the built-in one."""

import dataclasses
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from ogb_cases import (
    OGB_EDGES,
    OGB_SIZES,
    contents,
    labels,
    lay_out_graphs,
    loads_from_a_read_only_folder,
    refuse,
)
from torch_geometric.datasets import TUDataset
from torch_geometric.utils import to_networkx

from g2m import G2MError
from g2m.data import cards, download, find_card, load, splits
from g2m.metrics import rocauc

TU = ("mutag", "proteins", "nci1", "enzymes", "imdb-binary", "imdb-multi", "dd", "bzr")
OGB = ("ogbg-molbace", "ogbg-molbbbp", "ogbg-molhiv", "ogbg-moltox21")

# -- TU: seven graphs; a loop, an edge twice, one without an edge in the middle and one at the end ---------------------

TU_SIZES = [2, 3, 1, 2, 2, 2, 2]
TU_ARCS = [[2, 1], [1, 2], [3, 4], [4, 3], [3, 4], [5, 5], [7, 8], [8, 7], [9, 10], [10, 9], [11, 12], [12, 11]]
TU_CLASSES = [1, -1, 1, -1, 1, -1, -1]
TU_EDGES = [[[0, 1], [1, 0]], [[0, 1], [1, 0]], [], *[[[0, 1], [1, 0]]] * 3, []]


def lay_out_tu(card, root):
    """Write the small data set where the card's files are, as TU's archives are."""
    nodes = sum(TU_SIZES)
    tables = {
        "A": TU_ARCS,
        "graph_indicator": np.repeat(np.arange(1, 8), TU_SIZES),
        "graph_labels": TU_CLASSES,
        "node_labels": 3 + np.arange(nodes) % 3,
        "node_attributes": np.arange(2 * nodes).reshape(nodes, 2) / 8,
    }
    for file in card.files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savetxt(path, tables[path.stem.partition("_")[2]], fmt="%s", delimiter=", ")
    return path.parent


def small_tu(name, root, **counts):
    card = find_card(name)
    features = 3 if "_node_labels" in " ".join(card.files) else 0
    counts = {"graphs": 7, "nodes": 14, "edges": 5, "features": features, "classes": 2, **counts}
    card = dataclasses.replace(card, counts=counts)
    lay_out_tu(card, root)
    return card


@pytest.mark.parametrize("name", ["mutag", "imdb-binary", "bzr"])
def test_tu_graphs_and_labels(name, tmp_path):
    card = small_tu(name, tmp_path)
    graphs = load(card, root=tmp_path)
    assert [graph.num_nodes for graph in graphs] == TU_SIZES
    assert [graph.edge_index.t().tolist() for graph in graphs] == TU_EDGES
    assert graphs.y.tolist() == [int(label > 0) for label in TU_CLASSES]
    assert (graphs.name, graphs.metric, graphs.num_classes) == (name, "accuracy", 2)
    if name == "imdb-binary":
        assert graphs.x is None
    else:
        assert torch.equal(graphs.x, torch.eye(3)[torch.arange(14) % 3])


def test_tu_is_what_pyg_makes_of_it_where_it_forgets_no_graph(tmp_path):
    card = small_tu("bzr", tmp_path)
    graphs = load(card, root=tmp_path, use_node_attr=True)
    shutil.copytree(tmp_path, tmp_path / "copy")
    dataset = TUDataset(str(tmp_path / "copy" / "tu"), "BZR", use_node_attr=True)
    assert len(dataset) <= len(graphs)
    for graph, expected in zip(graphs, dataset, strict=False):
        assert torch.equal(graph.x, expected.x)
        assert torch.equal(graph.edge_index, expected.edge_index)
        assert torch.equal(graph.y, expected.y)
    assert graphs.num_features == 5
    assert load(card, root=tmp_path).num_features == 3


def test_half_a_file_of_labels_is_refused(tmp_path):
    card = small_tu("mutag", tmp_path)
    path = tmp_path / next(file for file in card.files if "graph_labels" in file)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:5]))
    with pytest.raises(G2MError, match=r"files of 'mutag' .* cannot be read .*5 labels for 7 graphs"):
        load(card, root=tmp_path)


def test_tu_edge_labels_come_with_an_archive_that_has_them(tmp_path):
    card = small_tu("mutag", tmp_path)
    folder = (tmp_path / card.files[0]).parent
    np.savetxt(folder / "MUTAG_edge_labels.txt", [7 + (u + v) % 2 for u, v in TU_ARCS], fmt="%d")
    graphs = load(card, root=tmp_path)
    assert graphs.num_edge_features == 2
    assert graphs[0].edge_attr.tolist() == [[0, 1], [0, 1]]


# -- OGB, see ogb_cases -----------------------------------------------------------------------------------------------


def small_ogb(name, root):
    card = find_card(name)
    counts = {**card.counts, "graphs": 8, "nodes": 14, "edges": 7, "features": 9, "classes": 2}
    card = dataclasses.replace(card, counts=counts)
    lay_out_graphs(card, root)
    return card


@pytest.mark.parametrize("name", OGB)
def test_ogb_graphs_labels_and_split(name, tmp_path):
    card = small_ogb(name, tmp_path)
    assert sorted(card.files) == sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    graphs = load(card, root=tmp_path)
    assert [graph.num_nodes for graph in graphs] == OGB_SIZES
    both_ways = [sorted(edge[::way] for edge in graph for way in (1, -1)) for graph in OGB_EDGES]
    assert [graph.edge_index.t().tolist() for graph in graphs] == both_ways
    assert graphs[1].edge_attr.tolist() == [[3, 4, 5], [3, 4, 5], [6, 7, 8], [6, 7, 8]]
    assert torch.equal(graphs.x, torch.arange(9 * 14).reshape(-1, 9) % 7)
    assert {part: ids.tolist() for part, ids in graphs.split.items()} == {
        "train": [0, 3, 4, 6],
        "val": [1, 5],
        "test": [2, 7],
    }
    assert (graphs.metric, graphs.num_tasks) == ("rocauc", card.counts["tasks"])
    expected = torch.from_numpy(labels(card.counts["tasks"])).float().squeeze(1)
    torch.testing.assert_close(graphs.y.float(), expected, equal_nan=True)


@pytest.mark.parametrize("file", ["RELEASE_v1.txt", "raw/edge.csv.gz", "raw/node-feat.csv.gz", "raw/edge-feat.csv.gz"])
def test_a_card_that_lists_too_few_files_asks_and_fetches_nothing(file, tmp_path):
    card = small_ogb("ogbg-molbace", tmp_path)
    folder = tmp_path / card.loader["folder"]
    (folder / file).unlink()
    before = contents(tmp_path)
    with pytest.raises(G2MError, match=rf"files: expected {folder / file}, .*`g2m data get ogbg-molbace`"):
        load(dataclasses.replace(card, files=()), root=tmp_path)
    assert contents(tmp_path) == before


def test_a_data_set_of_ogb_of_another_kind_is_refused(tmp_path):
    card = small_ogb("ogbg-molbace", tmp_path)
    with pytest.raises(G2MError, match=r"loader\.dataset: expected one of ogbg-molbace, .* \(got 'ogbg-ppa'\)"):
        load(dataclasses.replace(card, loader={**card.loader, "dataset": "ogbg-ppa"}), root=tmp_path)


# -- both --------------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _no_questions(monkeypatch):
    monkeypatch.setattr("builtins.input", refuse)


@pytest.fixture(params=["mutag", "imdb-multi", "ogbg-molhiv", "ogbg-moltox21"])
def card(request, tmp_path):
    """A card whose small data set is under ``tmp_path / "data"``."""
    return (small_ogb if request.param in OGB else small_tu)(request.param, tmp_path / "data")


def test_a_read_only_folder_stays_as_it_is_and_nothing_is_printed(card, tmp_path, capfd):
    loads_from_a_read_only_folder(card, tmp_path / "data", capfd)


def test_no_scratch_is_left_behind(card, tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    load(card, root=tmp_path / "data")
    assert list((tmp_path / "scratch").iterdir()) == []


ALONE = """if True:
    import builtins, dataclasses, socket, sys, threading, warnings

    def refuse(*args, **kwargs):
        raise SystemExit("reached for the network or the keyboard")

    socket.socket.connect = socket.getaddrinfo = socket.create_connection = builtins.input = refuse
    started, start = [], threading.Thread.start
    threading.Thread.start = lambda self: (started.append(self), start(self))
    import g2m, g2m.cli
    from g2m.data import find_card, load

    assert not {"ogb", "outdated", "networkx"} & sys.modules.keys(), "imported before it was asked for"
    warnings.simplefilter("error", UserWarning)
    for name, counts in eval(sys.argv[2]).items():
        card = dataclasses.replace(find_card(name), counts=counts)
        assert "ogb" not in sys.modules or card.source == "ogb"
        first, second = (load(card, root=sys.argv[1]) for _ in range(2))
        assert first.fingerprint() == second.fingerprint()
    assert started == [], started
    assert threading.active_count() == 1, threading.enumerate()
"""


def test_loading_starts_no_thread_warns_of_nothing_and_asks_nobody(tmp_path):
    found = [find_card("atlas"), small_tu("enzymes", tmp_path), small_ogb("ogbg-molbbbp", tmp_path)]
    counts = {card.name: card.counts for card in found}
    command = [sys.executable, "-c", ALONE, str(tmp_path), repr(counts)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_counts_are_compared_on_every_load(card, tmp_path):
    for key in ("graphs", "nodes", "edges", "features", "classes", "tasks"):
        wrong = dataclasses.replace(card, counts={**card.counts, key: 99})
        with pytest.raises(G2MError, match=rf"is not the one its card describes: expected \{{'{key}': 99\}}"):
            load(wrong, root=tmp_path / "data")


def test_a_broken_file_says_what_to_do(card, tmp_path):
    path = tmp_path / "data" / next(file for file in card.files if "label" in file)
    path.write_bytes(b"half a file")
    with pytest.raises(G2MError, match=rf"files of '{card.name}' .* cannot be read .*`g2m data get {card.name}`"):
        load(card, root=tmp_path / "data")


def test_the_inductive_setting_does_not_apply(card, tmp_path):
    with pytest.raises(G2MError, match=r"setting: .* are never seen in training \(got 'inductive'\)\. Leave it out"):
        load(card, root=tmp_path / "data", setting="inductive")


def test_splits_by_name_by_hand_and_none(card, tmp_path):
    root = tmp_path / "data"
    drawn = load(card, root=root)
    assert not load(card, root=root, split={}).split
    own = load(card, root=root, split={"train": [5, 1], "test": [0]})
    assert own.part("train").tolist() == [1, 5]
    with pytest.raises(G2MError, match="split: expected one of"):
        load(card, root=root, split="cpf")
    if "stratified" in card.splits:
        assert set(drawn.split) == {"train", "val", "test"}
        again = load(card, root=root, split="stratified", seed=3)
        assert again.split["test"].equal(splits.stratified(drawn.y, 3)["test"])


# -- downloads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mutag", "ogbg-molbace"])
def test_download_unpacks_the_archive_into_place(name, tmp_path, monkeypatch, capfd):
    card = (small_ogb if name in OGB else small_tu)(name, tmp_path / "had")
    top = Path(card.url).stem
    folder = tmp_path / "had" / card.loader["folder"]
    shutil.copytree(folder if name in OGB else folder / "MUTAG" / "raw", tmp_path / "zip" / top)
    archive = shutil.make_archive(str(tmp_path / top), "zip", tmp_path / "zip")
    asked = []

    def fake(url, folder, log):
        asked.append((url, log))
        return shutil.copy(archive, folder)

    monkeypatch.setattr("torch_geometric.data.download_url", fake)
    download(card, tmp_path / "new")
    download(card, tmp_path / "new")
    assert asked == [(card.url, False)]
    assert contents(tmp_path / "new").keys() == contents(tmp_path / "had").keys()
    assert load(card, root=tmp_path / "new").fingerprint() == load(card, root=tmp_path / "had").fingerprint()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", OGB)
def test_the_archive_is_the_one_that_ogb_fetches(name):
    sys.modules.setdefault("outdated", None)  # else the first import of ogb looks for a newer one
    from ogb import graphproppred

    table = pd.read_csv(Path(graphproppred.__file__).with_name("master.csv"), index_col=0)[name]
    card = find_card(name)
    assert (table["url"], table["version"], table["split"]) == (card.url, "1", card.default_split)
    assert (int(table["num tasks"]), table["eval metric"]) == (card.counts["tasks"], card.metric)
    assert card.url.endswith(f"/{table['download_name']}.zip")  # and the folder in it


@pytest.mark.parametrize("name", TU)
def test_the_archive_is_the_one_that_pyg_fetches(name):
    card = find_card(name)
    assert card.url == f"{TUDataset.url}/{card.loader['name']}.zip"


# -- the built-in set --------------------------------------------------------------------------------------------------


def test_atlas_is_as_its_card_says():
    graphs = load("atlas")
    assert graphs.x is None
    assert graphs.metric == "accuracy"
    found = [to_networkx(graph, to_undirected=True) for graph in graphs]
    assert all(nx.is_connected(graph) for graph in found)
    assert [int(not nx.is_biconnected(graph)) for graph in found] == graphs.y.tolist()
    assert len({str(graph.edges) for graph in found}) == len(found)  # no graph of the atlas twice


def test_size_says_nothing_of_the_classes_of_the_atlas():
    graphs = load("atlas")
    arcs, nodes = graphs.edge_ptr.diff(), graphs.ptr.diff()
    by_class = [Counter(zip(*(s[graphs.y == c].tolist() for s in (nodes, arcs)), strict=True)) for c in (0, 1)]
    assert by_class[0] == by_class[1]
    for size in (nodes, arcs, arcs / nodes):
        assert rocauc(torch.stack([-size, size], 1).float(), graphs.y) == 0.5


# -- real data ---------------------------------------------------------------------------------------------------------


CLASSES = {  # graphs of each class, and nodes a graph, as published
    "mutag": ([63, 125], 17.93),
    "proteins": ([663, 450], 39.06),
    "nci1": ([2053, 2057], 29.87),
    "enzymes": ([100] * 6, 32.63),
    "imdb-binary": ([500, 500], 19.77),
    "imdb-multi": ([500] * 3, 13.00),
    "dd": ([691, 487], 284.32),
    "bzr": ([319, 86], 35.75),
}


@pytest.mark.parametrize("name", TU)
def test_tu_sets_are_those_published(name, real):
    graphs = real(name)
    assert (graphs.y.bincount().tolist(), round(graphs.num_nodes / len(graphs), 2)) == CLASSES[name]
    share = [len(graphs.part(part)) / len(graphs) for part in ("train", "val", "test")]
    assert share == pytest.approx([0.8, 0.1, 0.1], abs=0.01)


SCAFFOLD = {  # sizes of the parts, and positives of the first task in each
    "ogbg-molbace": ([1210, 151, 152], [515, 84, 92]),
    "ogbg-molbbbp": ([1631, 204, 204], [1341, 112, 107]),
    "ogbg-molhiv": ([32901, 4113, 4113], [1232, 81, 130]),
    "ogbg-moltox21": ([6264, 783, 784], [251, 31, 27]),
}


@pytest.mark.parametrize("name", OGB)
def test_ogb_sets_have_the_parts_of_their_split(name, real):
    graphs = real(name)
    parts = [graphs.subset(graphs.part(part)) for part in ("train", "val", "test")]
    first = [part.y.reshape(len(part), -1)[:, 0] for part in parts]
    assert ([len(part) for part in parts], [int((y == 1).sum()) for y in first]) == SCAFFOLD[name]
    if name == "ogbg-moltox21":
        assert int(graphs.y.isnan().sum()) == 16026


@pytest.mark.parametrize("name", [name for name, card in cards().items() if card.task == "graph classification"])
def test_every_card_has_a_split_that_is_drawn(name):
    card = find_card(name)
    assert card.counts["graphs"] > 1
    assert card.default_split == ("scaffold" if name in OGB else "stratified")
