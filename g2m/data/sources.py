"""Sources: how a card becomes a PyG ``Data``. One entry of :data:`SOURCES` each, nothing else to touch."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from g2m.data import ogb
from g2m.errors import G2MError, check_range, check_seed, check_whole, choose
from g2m.graph import Graph, check_features
from g2m.graphs import flat

if TYPE_CHECKING:
    from torch_geometric.data import Data

    from g2m.data.cards import Card


class Source(NamedTuple):
    """``read(card, root, **options)`` returns a ``Data``, offline; ``fetch(card, root)`` downloads its files.

    The ``Data`` of a set of graphs holds what :func:`g2m.graphs.flat` returns, and masks ``[G]`` if it has a split.
    """

    read: Callable[..., Data]
    fetch: Callable[[Card, Path], Any] | None = None


# -- graphs out of anything ------------------------------------------------------------------------------------


def knn_graph(
    X: Any,
    y: Any,
    *,
    n_neighbors: int = 10,
    metric: str = "euclidean",
    algorithm: str = "auto",
    name: str = "knn",
) -> Graph:
    """Build the nearest-neighbour graph of a table: rows become nodes, joined if either is near the other.

    Args:
        X: features ``[N, F]``, an array, a tensor or a SciPy sparse matrix.
        y: labels ``[N]``, integers from 0; -1: unlabelled.
        n_neighbors: neighbours looked up for each row, itself excluded; from 1 to N - 1, default 10.
        metric: any metric of :class:`sklearn.neighbors.NearestNeighbors`, default ``"euclidean"``.
        algorithm: likewise, default ``"auto"``. Between equally near rows, ``"kd_tree"`` and ``"ball_tree"`` always
            choose the same; ``"brute"``, which ``"auto"`` takes above 15 features, may choose differently under another
            number of threads.
        name: what reports call the graph.

    Raises:
        G2MError: on too few rows, a metric that scikit-learn or the algorithm does not know, or what
            :class:`~g2m.Graph` refuses.
    """
    from scipy.sparse import issparse
    from sklearn.neighbors import NearestNeighbors

    x = check_features(X.toarray() if issparse(X) else X)
    check_whole("n_neighbors", n_neighbors)
    check_range("n_neighbors", n_neighbors, 1, len(x) - 1)
    try:
        search = NearestNeighbors(n_neighbors=n_neighbors, metric=metric, algorithm=algorithm).fit(x.numpy())
        near = search.kneighbors_graph()
    except ValueError as error:
        raise G2MError(f"knn_graph: scikit-learn refuses these arguments ({error})") from error
    near = near.maximum(near.T).tocoo()
    return Graph(x, torch.from_numpy(np.stack([near.row, near.col])), y, name=name)


def sbm(
    *,
    num_nodes: int = 2000,
    num_classes: int = 4,
    num_features: int = 32,
    avg_degree: float = 10.0,
    homophily: float = 0.8,
    feature_signal: float = 1.5,
    degree_spread: float = 0.0,
    seed: int = 0,
    name: str = "sbm",
) -> Graph:
    """Draw a contextual stochastic block model (Deshpande et al., NeurIPS 2018), in time linear in its edges.

    Classes are of equal size. The number of edges within and between classes is fixed, not random; given it, every
    graph is equally likely, or, with ``degree_spread``, each pair in proportion to the two nodes' weights (the
    degree-corrected model of Karrer & Newman, Physical Review E 83, 2011; pairs that come up twice count once).
    Features are Gaussian of unit variance around a random direction for each class.

    Args:
        num_nodes: default 2000.
        num_classes: at least 2, default 4.
        num_features: default 32.
        avg_degree: average number of neighbours, default 10.
        homophily: share of edges within a class, in [0, 1], default 0.8.
        feature_signal: length of the class means, default 1.5; at 0 features say nothing.
        degree_spread: standard deviation of the logarithm of a node's weight, from 0; default 0: all have the same.
            Around 1.2, degrees are spread as those of citations and co-purchases are.
        seed: default 0.
        name: what reports call the graph.

    Raises:
        G2MError: if an argument is out of range, or the classes have too few pairs for that many edges.
    """
    check_whole("num_classes", num_classes, 2)
    check_whole("num_nodes", num_nodes, num_classes)
    check_whole("num_features", num_features, 1)
    check_seed(seed)
    check_range("avg_degree", avg_degree, 0)
    check_range("homophily", homophily, 0, 1)
    check_range("feature_signal", feature_signal, 0)
    check_range("degree_spread", degree_spread, 0)
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(num_nodes) % num_classes)
    size = np.bincount(y)
    start, by_class = np.cumsum(size) - size, np.argsort(y, kind="stable")
    pairs_within = size * (size - 1) // 2
    available = int(pairs_within.sum())

    def keys(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.minimum(u, v) * num_nodes + np.maximum(u, v)

    def within(count: int) -> np.ndarray:
        c = rng.choice(num_classes, count, p=pairs_within / available)
        u, v = rng.integers(size[c]), rng.integers(size[c] - 1)
        return keys(by_class[start[c] + u], by_class[start[c] + v + (v >= u)])

    def between(count: int) -> np.ndarray:
        u, v = rng.integers(num_nodes, size=(2, 2 * count))  # at least half of them differ in class
        return keys(u, v)[y[u] != y[v]]

    if degree_spread:
        weight = np.exp(degree_spread * rng.standard_normal(num_nodes))[by_class]
        within, between = _weighted(rng, weight, by_class, start + size, y, keys)

    num_edges = round(num_nodes * avg_degree / 2)
    num_within = round(num_edges * homophily)
    edges = np.concatenate(
        [
            _distinct(rng, within, num_within, available, "within"),
            _distinct(rng, between, num_edges - num_within, num_nodes * (num_nodes - 1) // 2 - available, "between"),
        ]
    )
    u, v = np.divmod(edges, num_nodes)
    means = rng.standard_normal((num_classes, num_features), dtype=np.float32)
    means *= feature_signal / np.linalg.norm(means, axis=1, keepdims=True)
    x = rng.standard_normal((num_nodes, num_features), dtype=np.float32)
    x += means[y]
    return Graph(x, np.stack([np.concatenate([u, v]), np.concatenate([v, u])]), y, name=name)


def _weighted(
    rng: np.random.Generator, weight: np.ndarray, by_class: np.ndarray, end: np.ndarray, y: np.ndarray, keys: Callable
) -> tuple[Callable, Callable]:
    """Return what draws pairs within and between classes in proportion to weights, in order of ``by_class``."""
    # As many tickets as a node weighs, in whole numbers: a draw is one look-up, where a search takes twenty.
    count = np.maximum(np.rint(8 * weight / weight.mean()), 1).astype(np.int64)
    tickets, last = np.repeat(by_class.astype(np.int32), count), np.cumsum(count)[end - 1]
    first = np.concatenate([[0], last[:-1]])
    of_class = (last - first).astype(float) ** 2

    def nodes(first: np.ndarray | int, last: np.ndarray | int, count: int) -> np.ndarray:
        return tickets[(first + rng.random(count) * (last - first)).astype(np.int64)].astype(np.int64)

    def within(count: int) -> np.ndarray:
        c = rng.choice(len(end), count, p=of_class / of_class.sum())
        u, v = (nodes(first[c], last[c], count) for _ in range(2))
        return keys(u, v)[u != v]

    def between(count: int) -> np.ndarray:
        u, v = (nodes(0, len(tickets), 2 * count) for _ in range(2))
        return keys(u, v)[y[u] != y[v]]

    return within, between


def _distinct(rng: np.random.Generator, draw: Callable, count: int, available: int, where: str) -> np.ndarray:
    """Return ``count`` different keys, every set of that size equally likely."""
    if count > available:
        raise G2MError(
            f"avg_degree: expected at most {available} edges {where} classes, the number of such pairs (got {count}). "
            "Lower avg_degree, or change homophily."
        )
    found = np.empty(0, dtype=np.int64)
    while len(found) < count:
        new = 1 - len(found) / available  # chance that a drawn key is new
        found = np.sort(np.concatenate([found, draw(int(1.1 * (count - len(found)) / new) + 16)]))
        found = found[np.diff(found, prepend=-1) > 0]  # np.unique hashes, ten times slower here
    return rng.permutation(found)[:count]


# -- sources ---------------------------------------------------------------------------------------------------


def _pyg(card: Card, root: Path, **options: Any) -> Data:
    """Any data set of :mod:`torch_geometric.datasets` in memory; ``loader``: ``dataset``, ``folder``, its arguments.

    PyG downloads what is missing: call it for that, or with all files there.
    """
    import torch_geometric.datasets as pyg
    from torch_geometric.data import Data

    loader = dict(card.loader)
    dataset = getattr(pyg, choose(f"card {card.name}.toml: loader.dataset", loader.pop("dataset"), pyg.__all__))
    folder = str(root / loader.pop("folder"))
    # A processed copy of its own: no race between processes, nothing stale, and a read-only root will do.
    with TemporaryDirectory() as processed, redirect_stderr(io.StringIO()):
        dataset = type(dataset.__name__, (dataset,), {"processed_dir": processed})(folder, **loader, **options)
    if card.task == "node classification":
        return dataset[0]
    data = Data(**flat(dataset))
    if len(data.y) != len(data.ptr) - 1:  # PyG takes half a file of labels for a whole one
        raise ValueError(f"{len(data.y)} labels for {len(data.ptr) - 1} graphs")
    return data


def _gnn_benchmark(card: Card, root: Path, *, binarize: bool = False) -> Data:
    """A graph of CPF: symmetric, no weights, no loops, largest connected component, nodes in ascending id."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components
    from torch_geometric.data import Data

    with np.load(root / card.files[0]) as file:
        parts = ("data", "indices", "indptr", "shape")
        adjacency, attributes = (
            csr_matrix(tuple(file[f"{key}_{part}"] for part in parts[:3]), shape=file[f"{key}_shape"])
            for key in ("adj", "attr")
        )
        y = file["labels"].astype(np.int64)
    adjacency.data = np.ones_like(adjacency.data)
    adjacency = adjacency.maximum(adjacency.T)
    _, component = connected_components(adjacency, directed=False)
    keep = np.flatnonzero(component == np.bincount(component).argmax())
    edges = adjacency[keep][:, keep].tocoo()
    x = attributes[keep].astype(np.float32)
    if binarize:
        x.data = (x.data > 0).astype(np.float32)
    return Data(
        x=torch.from_numpy(x.toarray()),
        edge_index=torch.from_numpy(np.stack([edges.row, edges.col]).astype(np.int64)),
        y=torch.from_numpy(y[keep]),
    )


def _heterophilous_npz(card: Card, root: Path) -> Data:
    """A file of yandex-research/heterophilous-graphs that PyG has no loader for; masks are ``[S, N]`` in the file."""
    from torch_geometric.data import Data
    from torch_geometric.utils import to_undirected

    with np.load(root / card.files[0]) as file:
        tensors = {key: torch.from_numpy(file[key]) for key in file.files}
    return Data(
        x=tensors["node_features"],
        edge_index=to_undirected(tensors["edges"].t(), num_nodes=len(tensors["node_labels"])),
        y=tensors["node_labels"],
        **{f"{part}_mask": tensors[f"{part}_masks"].t() for part in ("train", "val", "test")},
    )


def _scikit_learn(card: Card, root: Path, **options: Any) -> Data:
    """The nearest-neighbour graph of a table of :mod:`sklearn.datasets`, features as they are."""
    import sklearn.datasets

    X, y = getattr(sklearn.datasets, str(card.loader["dataset"]))(return_X_y=True)
    return _data(knn_graph(X, y, **options))


def _sbm(card: Card, root: Path, *, graph_seed: int = 0, **options: Any) -> Data:
    """``loader``: ``train`` and ``val``, numbers of nodes; with them there is a public split, at random."""
    from torch_geometric.utils import index_to_mask

    data = _data(sbm(seed=graph_seed, **options))
    if card.loader:
        order = torch.from_numpy(np.random.default_rng(graph_seed).permutation(data.num_nodes))
        sizes = [int(data.num_nodes * card.loader[part] / card.counts["nodes"]) for part in ("train", "val")]
        for part, ids in zip(ogb.PARTS, order.split([*sizes, data.num_nodes - sum(sizes)]), strict=True):
            data[f"{part}_mask"] = index_to_mask(ids, data.num_nodes)
    return data


def _atlas(card: Card, root: Path) -> Data:
    """Connected graphs of up to seven nodes; class 1: some node, taken away, would leave the rest in pieces.

    Among the graphs of one number of nodes and edges, as many have such a node as have none: size says nothing.
    """
    import networkx as nx
    from torch_geometric.data import Data
    from torch_geometric.utils import from_networkx

    cells: dict[tuple[int, int], tuple[list, list]] = {}
    for graph in nx.graph_atlas_g()[1:]:  # the first has no nodes
        if nx.is_connected(graph):
            cell = cells.setdefault((graph.number_of_nodes(), graph.number_of_edges()), ([], []))
            cell[next(nx.articulation_points(graph), None) is not None].append(graph)
    graphs = []
    for cell in cells.values():
        size = min(map(len, cell))
        for y, found in enumerate(cell):
            for i in range(size):  # at even distances: the atlas is in order of degrees
                data = from_networkx(found[(2 * i + 1) * len(found) // (2 * size)])
                data.y = torch.tensor([y])
                graphs.append(data)
    return Data(**flat(graphs))


def _data(graph: Graph) -> Data:
    from torch_geometric.data import Data

    return Data(x=graph.x, edge_index=graph.edge_index, y=graph.y)


def _fetch_file(card: Card, root: Path) -> None:
    from torch_geometric.data import download_url

    target = root / card.files[0]
    target.parent.mkdir(parents=True, exist_ok=True)
    # Moved into place when whole: an interrupted download leaves nothing behind.
    with TemporaryDirectory(dir=target.parent) as part:
        os.replace(download_url(card.url, part, log=False, filename=target.name), target)


def _fetch_tu(card: Card, root: Path) -> None:
    # Not by PyG: it leaves what an interrupted download had fetched.
    ogb.unpack(card.url, (root / card.files[0]).parent)


#: Source name, as in a card -> how to read it and how to fetch it.
SOURCES: dict[str, Source] = {
    "pyg": Source(_pyg, _pyg),
    "gnn-benchmark": Source(_gnn_benchmark, _fetch_file),
    "heterophilous-npz": Source(_heterophilous_npz, _fetch_file),
    "ogb": Source(ogb.read, ogb.fetch),
    "tu": Source(_pyg, _fetch_tu),
    "scikit-learn": Source(_scikit_learn),
    "sbm": Source(_sbm),
    "atlas": Source(_atlas),
}
