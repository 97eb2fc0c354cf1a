"""Data sets by name: a card says where graphs come from, :func:`load` reads them, checks them and splits them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from g2m.data import splits
from g2m.data.cards import Card, cards, data_root, find_card, read_card
from g2m.data.sources import SOURCES, knn_graph, sbm
from g2m.errors import G2MError, check_flag, check_keys, choose
from g2m.graph import SETTINGS, Graph
from g2m.graphs import Graphs

if TYPE_CHECKING:
    from torch_geometric.data import Data

__all__ = ["Card", "cards", "data_root", "download", "find_card", "knn_graph", "load", "read_card", "sbm", "splits"]


def load(
    name: str | Card,
    *,
    split: str | Mapping[str, Any] | None = None,
    seed: int = 0,
    setting: str = "transductive",
    root: str | Path | None = None,
    download: bool = False,
    **options: Any,
) -> Graph | Graphs:
    """Load a data set by the name of its card: a graph, or many where the task is graph classification.

    Args:
        name: a key of :func:`cards`, or a :class:`Card` of your own.
        split: ``"public"``, ``"cpf"`` or ``"random"``, of graphs ``"scaffold"`` or ``"stratified"`` (see
            :mod:`g2m.data.splits`), or ids or masks as in :class:`~g2m.Graph`; default: the card's ``default_split``.
        seed: of the split and of the inductive view, default 0. Of several public splits, number ``seed`` modulo how
            many there are.
        setting: ``"transductive"`` (default), or ``"inductive"``: ``graph.inductive(seed=seed)``. Not of many graphs.
        root: folder of the data; default ``$G2M_DATA_ROOT``, else ``~/.cache/g2m/data``. It may be read-only.
        download: fetch the files if they are not there, default ``False``: nothing is ever fetched unasked.
        options: what the card lists under ``[options]``, such as ``num_nodes`` for ``"sbm"``.

    Raises:
        G2MError: on an unknown name, split or option, or a setting that does not apply; if files are missing (the
            message says what to run and where was looked) or cannot be read; if the counts are not the card's.
    """
    card = find_card(name)
    choose("setting", setting, SETTINGS)
    if card.task == "graph classification" and setting == "inductive":
        raise G2MError(
            f"setting: expected none for {card.name!r}, a set of graphs: those of the test are never seen in training "
            f"(got {setting!r}). Leave it out."
        )
    check_keys(f"load({card.name!r})", options, [*card.options, "split", "seed", "setting", "root", "download"])
    check_flag("download", download)
    for option, value in options.items():
        if isinstance(card.options.get(option), bool):
            check_flag(option, value)
    split = card.default_split if split is None else split
    if isinstance(split, str):
        choose("split", split, card.splits)
    folder = data_root(root)
    if download:
        _fetch(card, folder)
    if missing := card.missing(folder):
        raise G2MError(
            f"name: data set {card.name!r} is not in {folder} (no {missing[0]}). "
            f"Run `g2m data get {card.name}`, or set G2M_DATA_ROOT to the folder that holds it."
        )
    data = _read(card, folder, options)
    if card.normalize_features:
        from torch.nn.functional import normalize

        data.x = normalize(data.x, p=1, dim=1)
    parts = splits.SPLITS[split](data, seed) if isinstance(split, str) else split
    graph = _TASKS[card.task](card, data, parts)
    if card.files or not options:  # a generated graph has the card's counts only as the card generates it
        _check_counts(card, graph, options)
    return graph if setting == "transductive" else graph.inductive(seed=seed)


def download(name: str | Card, root: str | Path | None = None) -> None:
    """Fetch the files of a data set, unless they are there or it is built in, and check that they load.

    Args:
        name: a key of :func:`cards`, or a :class:`Card`.
        root: folder of the data; default ``$G2M_DATA_ROOT``, else ``~/.cache/g2m/data``.

    Raises:
        G2MError: if they cannot be had, or are not what the card says.
    """
    card = find_card(name)
    status = card.status(root)
    if status != "built in":
        load(card, root=root, download=status == "needs download")


def _fetch(card: Card, folder: Path) -> None:
    fetch = SOURCES[card.source].fetch
    if fetch is None or not card.missing(folder):
        return
    try:
        fetch(card, folder)
    except Exception as error:
        raise G2MError(
            f"download: {card.name!r} could not be fetched into {folder} ({error}). Check the connection and that the "
            f"folder can be written, or put {', '.join(card.files)} there by hand; see {card.url}."
        ) from error


def _read(card: Card, folder: Path, options: Mapping[str, Any]) -> Data:
    try:
        return SOURCES[card.source].read(card, folder, **{**card.options, **options})
    except G2MError:
        raise
    except Exception as error:
        if not card.files:
            raise
        raise G2MError(
            f"name: the files of {card.name!r} in {folder} cannot be read ({type(error).__name__}: {error}). "
            f"Delete {', '.join(card.files)} and run `g2m data get {card.name}`."
        ) from error


def _graph(card: Card, data: Data, parts: Mapping[str, Any]) -> Graph:
    return Graph.from_pyg(data, split=parts, name=card.name, metric=card.metric, keep_loops=card.keep_loops)


def _graphs(card: Card, data: Data, parts: Mapping[str, Any]) -> Graphs:
    flat = {key: data.get(key) for key in ("x", "edge_index", "edge_attr", "y", "ptr")}
    return Graphs(**flat, split=parts, name=card.name, metric=card.metric, keep_loops=card.keep_loops)


#: Task of a card -> what makes of its data the object that ``load`` returns.
_TASKS = {"node classification": _graph, "graph classification": _graphs}


def _check_counts(card: Card, data: Graph | Graphs, options: Mapping[str, Any]) -> None:
    loops = int((data.edge_index[0] == data.edge_index[1]).sum())
    many = isinstance(data, Graphs)
    found = {
        "graphs": len(data) if many else 1,
        "nodes": data.num_nodes,
        "edges": data.num_edges if card.directed else (data.num_edges - loops) // 2 + loops,
        "features": data.num_features,
        "classes": data.num_classes,
        "tasks": data.num_tasks if many else 1,
    }
    if many and options:  # which may ask for other features
        del found["features"]
    # a card made in code may leave out what goes without saying
    if wrong := {key: count for key, count in found.items() if count != card.counts.get(key, 1)}:
        expected = {key: card.counts.get(key, 1) for key in wrong}
        raise G2MError(
            f"name: data set {card.name!r} is not the one its card describes: expected {expected} (got {wrong}). "
            f"Delete its files and run `g2m data get {card.name}`."
        )
