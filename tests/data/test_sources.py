import dataclasses
import os
import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.datasets import load_digits
from test_splits import cpf_restated
from torch_geometric.data import Data
from torch_geometric.transforms import NormalizeFeatures
from torch_geometric.utils import degree, is_undirected

from g2m import G2MError
from g2m.data import cards, download, find_card, knn_graph, load, sbm, sources


def files_under(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def variant(name, /, **changes):
    return dataclasses.replace(find_card(name), **changes)


def edge_homophily(graph):
    u, v = graph.edge_index
    return float((graph.y[u] == graph.y[v]).float().mean())


# -- small files, made here --------------------------------------------------------------------------------------------

SPLIT = {"train": [0, 3], "val": [1], "test": [4]}


@pytest.fixture
def toy(tmp_path):
    """A gnn-benchmark file: two components, a one-way and a two-way edge, a weight of 3, a loop, raw counts."""
    rows, columns, weights = [1, 2, 3, 3, 4, 4, 0], [2, 1, 2, 4, 4, 3, 5], [1, 1, 3, 1, 1, 1, 1]
    adjacency = csr_matrix((np.array(weights, np.float32), (rows, columns)), shape=(6, 6))
    attributes = csr_matrix(np.array([[9, 9], [0, 2], [1, 0], [0, 0], [7, 0.5], [9, 9]], np.float32))
    parts = {}
    for key, matrix in (("adj", adjacency), ("attr", attributes)):
        parts |= {f"{key}_{part}": getattr(matrix, part) for part in ("data", "indices", "indptr", "shape")}
    (tmp_path / "cpf").mkdir()
    np.savez(tmp_path / "cpf" / "toy.npz", **parts, labels=np.array([1, 0, 1, 0, 1, 1], np.int8))
    return variant(
        "cora-cpf",
        name="toy",
        files=("cpf/toy.npz",),
        counts={"nodes": 4, "edges": 3, "features": 2, "classes": 2},
    )


@pytest.fixture
def masked(tmp_path):
    """A file in the layout of heterophilous-graphs, two splits, where PyG's loader looks for Minesweeper."""
    folder = tmp_path / "heterophilous" / "minesweeper" / "raw"
    folder.mkdir(parents=True)
    mask = {part: np.isin(np.arange(6), ids) for part, ids in SPLIT.items()}
    np.savez(
        folder / "minesweeper.npz",
        node_features=np.eye(6, 3, dtype=np.float32),
        node_labels=np.arange(6) % 2,
        edges=np.array([[0, 1], [2, 1], [4, 5], [5, 5]]),
        **{f"{part}_masks": np.stack([m, m[::-1]]) for part, m in mask.items()},
    )
    counts = {"nodes": 6, "edges": 3, "features": 3, "classes": 2}
    return variant("minesweeper", counts=counts, splits=("public",))


def test_cpf_graph_is_built_as_specified(toy, tmp_path):
    graph = load(toy, root=tmp_path, split={"train": [0], "val": [1], "test": [2, 3]})
    # nodes 1, 2, 3, 4 of the file, in that order
    assert graph.edge_index.t().tolist() == [[0, 1], [1, 0], [1, 2], [2, 1], [2, 3], [3, 2]]
    assert graph.x.tolist() == [[0, 2], [1, 0], [0, 0], [7, 0.5]]
    assert graph.y.tolist() == [0, 1, 0, 1]
    assert graph.split["test"].tolist() == [2, 3]


def test_cpf_features_are_binarised_on_request_only(toy, tmp_path):
    graph = load(toy, root=tmp_path, split={"train": [0]}, binarize=True)
    assert graph.x.tolist() == [[0, 1], [1, 0], [0, 0], [1, 1]]


def test_rows_are_divided_by_their_sum_if_the_card_says_so(toy, tmp_path):
    card = dataclasses.replace(toy, normalize_features=True)
    x = load(card, root=tmp_path, split={"train": [0]}).x
    assert torch.allclose(x, torch.tensor([[0, 1], [1, 0], [0, 0], [14 / 15, 1 / 15]]))


@pytest.mark.parametrize("source", ["pyg", "heterophilous-npz"])
def test_masked_sources(masked, tmp_path, source):
    card = dataclasses.replace(masked, source=source)
    for seed, column in ((0, SPLIT), (1, {part: sorted(5 - i for i in ids) for part, ids in SPLIT.items()})):
        graph = load(card, root=tmp_path, seed=seed)
        assert {part: ids.tolist() for part, ids in graph.split.items()} == column
        assert graph.edge_index.t().tolist() == [[0, 1], [1, 0], [1, 2], [2, 1], [4, 5], [5, 4]]
        assert graph.metric == "rocauc"
    assert load(card, root=tmp_path, seed=2).fingerprint() == load(card, root=tmp_path).fingerprint()


def test_loops_are_kept_and_counted_if_the_card_says_so(masked, tmp_path):
    graph = load(dataclasses.replace(masked, keep_loops=True, counts={**masked.counts, "edges": 4}), root=tmp_path)
    assert [5, 5] in graph.edge_index.t().tolist()


def test_loading_writes_nothing_under_the_root(masked, tmp_path, capfd):
    before = files_under(tmp_path)
    load(masked, root=tmp_path)
    assert files_under(tmp_path) == before
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("key", ["nodes", "edges", "features", "classes"])
def test_counts_are_compared_on_every_load(toy, tmp_path, key):
    card = dataclasses.replace(toy, counts={**toy.counts, key: 99})
    with pytest.raises(G2MError, match=rf"'toy' is not the one its card describes: expected \{{'{key}': 99\}}"):
        load(card, root=tmp_path, split={"train": [0]}, binarize=True)


@pytest.mark.parametrize("name", ["toy", "masked"])
def test_a_broken_file_says_what_to_do(name, request, tmp_path):
    card = request.getfixturevalue(name)
    (tmp_path / card.files[0]).write_bytes(b"half a file")
    with pytest.raises(G2MError, match=rf"files of '{card.name}' .* cannot be read .*`g2m data get {card.name}`"):
        load(card, root=tmp_path)


def test_a_card_with_a_wrong_pyg_class_gets_the_nearest(masked, tmp_path):
    card = dataclasses.replace(masked, loader={**masked.loader, "dataset": "HeterophilousDataset"})
    with pytest.raises(G2MError, match="Did you mean 'HeterophilousGraphDataset'"):
        load(card, root=tmp_path)


# -- arguments of load -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("coar", {}, "Did you mean 'cora'"),
        ("sbm", {"split": "cfp"}, "split: expected one of cpf, random .* Did you mean 'cpf'"),
        ("sbm", {"split": "public"}, "split: expected one of cpf, random"),
        ("sbm", {"setting": "inductiv"}, "Did you mean 'inductive'"),
        ("sbm", {"homofily": 0.2}, r"load\('sbm'\): unknown key 'homofily'\. Did you mean 'homophily'"),
        ("cora", {"sede": 1}, "Did you mean 'seed'"),
        ("sbm", {"num_nodes": 100}, r"at least 50 labelled nodes in every class .* \(got 25 in class 0\)"),
        ("sbm", {"seed": -1}, "seed: expected an integer"),
    ],
)
def test_wrong_arguments(name, options, message):
    with pytest.raises(G2MError, match=message):
        load(name, **options)


def test_an_empty_split_draws_none():
    graph = load("sbm", num_nodes=100, split={})
    assert not graph.split


def test_inductive_setting_uses_the_seed():
    graph = load("sbm", setting="inductive", seed=4)
    assert graph.fingerprint() == load("sbm", seed=4).inductive(seed=4).fingerprint()
    assert graph.setting == "inductive"


# -- downloads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name, card in cards().items() if card.files])
def test_missing_data_names_the_command_and_the_folder_and_fetches_nothing(name, tmp_path):
    with pytest.raises(G2MError, match=rf"{name}' is not in {tmp_path} .*`g2m data get {name}`"):
        load(name, root=tmp_path)
    assert files_under(tmp_path) == []


def test_download_fetches_one_file_into_place(toy, tmp_path, monkeypatch):
    asked = []

    def fake(url, folder, log, filename):
        asked.append(url)
        return shutil.copy(tmp_path / "cpf" / "toy.npz", os.path.join(folder, filename))

    monkeypatch.setattr("torch_geometric.data.download_url", fake)
    card, root = dataclasses.replace(toy, default_split="random"), tmp_path / "new"
    with pytest.raises(G2MError, match="at least 20 labelled nodes"):  # fetched, then too small to split
        download(card, root)
    assert files_under(root) == ["cpf", "cpf/toy.npz"]
    load(card, root=root, download=True, split={"train": [0]})
    assert asked == [card.url]


def test_what_is_there_already_is_checked_as_well(toy, tmp_path):
    path = tmp_path / toy.files[0]
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(G2MError):
        download(toy, tmp_path)


def test_download_uses_the_loader_of_pyg(masked, tmp_path, monkeypatch):
    def fake(url, folder):
        shutil.copy(tmp_path / masked.files[0], folder)

    monkeypatch.setattr("torch_geometric.datasets.heterophilous_graph_dataset.download_url", fake)
    download(masked, tmp_path / "new")
    assert load(masked, root=tmp_path / "new").fingerprint() == load(masked, root=tmp_path).fingerprint()
    download(masked, tmp_path / "new")
    download("sbm", tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("name", ["cora-cpf", "minesweeper", "mutag", "ogbg-molbace", "ogbn-arxiv"])
def test_a_failed_download_says_what_to_do_and_leaves_no_file(name, tmp_path, monkeypatch):
    def offline(*arguments, **options):
        raise OSError("no route to host")

    monkeypatch.setattr("torch_geometric.data.download_url", offline)
    monkeypatch.setattr("torch_geometric.datasets.heterophilous_graph_dataset.download_url", offline)
    with pytest.raises(G2MError, match=rf"'{name}' could not be fetched into .*no route to host.* by hand"):
        download(name, tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


# -- generated graphs --------------------------------------------------------------------------------------------------


def test_digits_is_a_neighbour_graph_with_twenty_labels_a_class():
    graph = load("digits")
    assert graph.y[graph.part("train")].bincount().tolist() == [20] * 10
    assert is_undirected(graph.edge_index)
    assert graph.edge_index[0].bincount().min() >= 10
    assert torch.equal(graph.x, torch.from_numpy(load_digits().data).float())
    assert edge_homophily(graph) > 0.9
    assert load("digits", n_neighbors=3).num_edges < graph.num_edges
    assert load("digits", metric="cosine", algorithm="auto").num_edges != graph.num_edges


def test_knn_graph_joins_the_nearest():
    X = np.array([[0.0], [1], [2.5], [10], [11]])
    graph = knn_graph(X, [0, 0, 1, 1, 1], n_neighbors=1, name="line")
    assert graph.edge_index.t().tolist() == [[0, 1], [1, 0], [1, 2], [2, 1], [3, 4], [4, 3]]
    assert graph.name == "line"
    assert knn_graph(csr_matrix(X), torch.tensor([0, 0, 1, 1, 1]), n_neighbors=1).fingerprint() == graph.fingerprint()


@pytest.mark.parametrize(
    ("X", "options", "message"),
    [
        (np.array([[0.0], [np.nan]]), {}, r"x: expected finite features \(got 1"),
        (np.zeros((3, 1)), {"n_neighbors": 3}, r"n_neighbors: expected a number in \[1, 2\]"),
        (np.zeros((3, 1)), {"n_neighbors": 1, "metric": "euclid"}, "scikit-learn refuses"),
        (np.zeros((3, 1)), {"n_neighbors": 1, "metric": "cosine", "algorithm": "kd_tree"}, "scikit-learn refuses"),
        (np.zeros((3, 1)), {"n_neighbors": 1.5}, "n_neighbors: expected a whole number"),
    ],
)
def test_knn_graph_refuses(X, options, message):
    with pytest.raises(G2MError, match=message):
        knn_graph(X, [0] * (len(X) - 1) + [1], **options)


@pytest.mark.parametrize("homophily", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("num_classes", [2, 5])
@pytest.mark.parametrize("degree_spread", [0.0, 1.2])
def test_sbm_has_the_size_degree_and_homophily_asked_for(homophily, num_classes, degree_spread):
    options = {"homophily": homophily, "degree_spread": degree_spread, "seed": 2}
    graph = sbm(num_nodes=1003, num_classes=num_classes, num_features=7, avg_degree=6, **options)
    assert (graph.num_nodes, graph.num_edges, graph.num_features) == (1003, 6018, 7)
    assert edge_homophily(graph) == pytest.approx(homophily, abs=1e-3)
    assert is_undirected(graph.edge_index)
    assert graph.y.bincount().max() - graph.y.bincount().min() <= 1


def test_sbm_depends_on_the_seed_alone():
    assert sbm(num_nodes=200, seed=3).fingerprint() == sbm(num_nodes=200, seed=3).fingerprint()
    assert sbm(num_nodes=200, seed=3).fingerprint() != sbm(num_nodes=200, seed=4).fingerprint()
    first, second = load("sbm", seed=1), load("sbm", seed=2)
    assert torch.equal(first.edge_index, second.edge_index)
    assert not torch.equal(first.part("train"), second.part("train"))
    assert not torch.equal(load("sbm", graph_seed=1).edge_index, first.edge_index)


def test_sbm_edges_are_uniform_over_pairs():
    drawn = torch.zeros(12, 12)
    for seed in range(600):
        u, v = sbm(num_nodes=12, num_classes=2, num_features=1, avg_degree=3, homophily=0.5, seed=seed).edge_index
        drawn[u, v] += 1
    degree = drawn.sum(1) / 600
    assert degree.min() > 2.8
    assert degree.max() < 3.2


def test_sbm_degrees_are_spread_as_asked_for():
    """Log-normal: the median is below the mean by half the variance of the logarithm."""
    for spread in (0.0, 0.6, 1.2):
        graph = sbm(num_nodes=20_000, avg_degree=60, degree_spread=spread)
        degrees = degree(graph.edge_index[1], graph.num_nodes)
        assert float((degrees.mean() / degrees.median()).log()) == pytest.approx(spread**2 / 2, abs=0.05)


def test_a_stand_in_has_a_public_split_in_the_real_proportions():
    graph = load("sbm-arxiv", num_nodes=4000)
    sizes = torch.tensor([len(graph.part(part)) for part in ("train", "val", "test")])
    assert int(sizes.sum()) == 4000
    assert (sizes / 4000).tolist() == pytest.approx([0.537, 0.176, 0.287], abs=1e-3)
    assert load("sbm-arxiv", num_nodes=4000, seed=3).fingerprint() == graph.fingerprint(), "there is one"


def test_sbm_features_are_gaussian_about_the_class_mean():
    graph = sbm(num_nodes=6000, num_classes=3, num_features=8, feature_signal=2.0)
    for c in range(3):
        x = graph.x[graph.y == c]
        assert float(x.mean(0).norm()) == pytest.approx(2, abs=0.1)
        assert float(x.std(0).mean()) == pytest.approx(1, abs=0.05)


def test_sbm_may_be_complete():
    assert sbm(num_nodes=10, num_classes=2, avg_degree=4, homophily=1).num_edges == 40
    assert sbm(num_nodes=10, num_classes=2, avg_degree=5, homophily=0).num_edges == 50


def test_sbm_is_linear_in_its_edges():
    tracemalloc.start()
    try:
        graph = load("sbm", num_nodes=200_000, homophily=0.2, num_features=4)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert graph.num_edges == 2_000_000
    assert most < 10 * graph.edge_index.nbytes  # an N×N matrix would be 40 GB


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 1}, "num_classes"),
        ({"num_nodes": 3}, "num_nodes"),
        ({"num_nodes": 100.5}, "num_nodes: expected a whole number"),
        ({"num_features": 0}, "num_features"),
        ({"homophily": 1.2}, "homophily"),
        ({"avg_degree": -1}, "avg_degree"),
        ({"feature_signal": -1}, "feature_signal"),
        ({"num_nodes": 20, "num_classes": 4, "avg_degree": 5, "homophily": 1}, "at most 40 edges within classes"),
        ({"num_nodes": 20, "num_classes": 4, "avg_degree": 16, "homophily": 0}, "at most 150 edges between classes"),
    ],
)
def test_sbm_refuses(options, message):
    with pytest.raises(G2MError, match=message):
        sbm(**options)


# -- real data ---------------------------------------------------------------------------------------------------------


#: Each large file once, by one of its two loaders.
LARGE = {"cs": "cs-cpf", "physics-cpf": "physics"}
SINGLE = [name for name, card in cards().items() if card.task == "node classification"]


@pytest.mark.parametrize("name", [name for name in SINGLE if find_card(name).files and name not in LARGE])
def test_real_data_has_the_counts_of_its_card(name, data_root):
    card = find_card(name)
    if card.status(data_root) == "needs download":
        pytest.skip(f"{name} is not in {data_root}")
    graph = load(card, root=data_root)
    assert graph.num_edges == 2 * card.counts["edges"]
    assert (graph.edge_index[0] != graph.edge_index[1]).all()
    if name == "cs-cpf":
        assert float(graph.x.max()) == 105
    if name == "physics":
        assert float(graph.x.max()) == 1


CPF = {  # nodes, edges, features, classes, train, val, test, unseen: the protocol's own table
    "cora-cpf": (2485, 5069, 1433, 7, 140, 210, 2135, 427),
    "citeseer-cpf": (2110, 3668, 3703, 6, 120, 180, 1810, 362),
    "pubmed-cpf": (19717, 44324, 500, 3, 60, 90, 19567, 3913),
    "computers-cpf": (13381, 245778, 767, 10, 200, 300, 12881, 2576),
    "photo-cpf": (7487, 119043, 745, 8, 160, 240, 7087, 1417),
}


@pytest.mark.parametrize("name", CPF)
def test_cpf_graphs(name, real):
    graph = real(name)
    found = (graph.num_nodes, graph.num_edges // 2, graph.num_features, graph.num_classes)
    sizes = tuple(len(graph.part(part)) for part in ("train", "val", "test"))
    assert (*found, *sizes, len(graph.inductive().part("unseen"))) == CPF[name]
    adjacency = csr_matrix((np.ones(graph.num_edges), graph.edge_index.numpy()), shape=[graph.num_nodes] * 2)
    assert connected_components(adjacency)[0] == 1
    assert (adjacency != adjacency.T).nnz == 0


@pytest.mark.parametrize("name", ["cora-cpf", "citeseer-cpf"])
def test_cpf_split_of_real_labels(name, real, data_root):
    for seed, graph in ((0, real(name)), (3, load(name, root=data_root, seed=3))):
        parts = {part: ids.tolist() for part, ids in graph.split.items()}
        assert parts == cpf_restated(graph.y.tolist(), seed)


@pytest.mark.parametrize(("name", "sizes"), [("cora", (140, 500, 1000)), ("citeseer", (120, 500, 1000))])
def test_planetoid_is_the_graph_of_pyg_with_rows_that_sum_to_one(name, sizes, real, data_root):
    graph, card = real(name), find_card(name)
    assert tuple(len(graph.part(part)) for part in ("train", "val", "test")) == sizes
    raw = sources.SOURCES["pyg"].read(card, data_root)
    assert torch.equal(graph.x, NormalizeFeatures()(Data(x=raw.x)).x)
    assert torch.equal(graph.part("test"), raw.test_mask.nonzero().flatten())
    total = graph.x.sum(1)
    assert torch.allclose(total[total > 0], torch.ones(1))


def test_citeseer_keeps_its_isolated_nodes(real):
    graph = real("citeseer")
    assert graph.num_nodes - len(graph.edge_index.unique()) == 48


def test_photo_split_of_ff(real):
    parts = real("photo").split
    assert {part: len(ids) for part, ids in parts.items()} == {"train": 160, "val": 500, "test": 1000}


def test_heterophilous_data_sets_bring_ten_splits(real, data_root):
    minesweeper = real("minesweeper")
    assert minesweeper.metric == "rocauc"
    prints = {load("minesweeper", root=data_root, seed=seed).fingerprint() for seed in range(11)}
    assert len(prints) == 10
    assert [len(real("tolokers").part(part)) for part in ("train", "val", "test")] == [5879, 2939, 2940]
