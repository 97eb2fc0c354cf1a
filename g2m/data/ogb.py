"""The Open Graph Benchmark, by its own loaders: no question asked, no thread, nothing printed."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from zipfile import ZipFile

import torch

from g2m.errors import G2MError, choose
from g2m.graphs import flat

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor
    from torch_geometric.data import Data, InMemoryDataset

    from g2m.data.cards import Card

#: Task of a card -> package and loader of OGB, and its data sets that are read here: one kind of node, classes for
#: labels, small enough to be read from text.
DATASETS = {
    "node classification": ("nodeproppred", "PygNodePropPredDataset", ("ogbn-arxiv", "ogbn-products")),
    "graph classification": (
        "graphproppred",
        "PygGraphPropPredDataset",
        ("ogbg-molbace", "ogbg-molbbbp", "ogbg-molhiv", "ogbg-moltox21"),
    ),
}
#: Our name of a part -> OGB's.
PARTS = {"train": "train", "val": "valid", "test": "test"}


def read(card: Card, root: Path) -> Data:
    """Return what the card's task needs, and OGB's split as masks; ``loader``: ``dataset`` and ``folder``.

    A graph has both arcs of every edge; a set of graphs is laid end to end, see :func:`g2m.graphs.flat`.
    """
    from torch_geometric.data import Data
    from torch_geometric.utils import index_to_mask, to_undirected

    dataset, about, parts = _open(card, root)
    if card.task == "graph classification":
        data = Data(**flat(dataset))
        size = len(data.y)
    else:
        data, size = dataset[0], dataset[0].num_nodes
        edge_index = data.edge_index
        if about["add_inverse_edge"] != "True":
            edge_index = to_undirected(edge_index, num_nodes=size)
        data = Data(x=data.x, edge_index=edge_index, y=data.y.flatten())
    for part, key in PARTS.items():
        data[f"{part}_mask"] = index_to_mask(parts[key], size)
    return data


def _open(card: Card, root: Path) -> tuple[InMemoryDataset, dict[str, str], dict[str, Tensor]]:
    """Return OGB's own data set, what it knows of it, and its split; nothing is left under the root."""
    import pandas as pd
    from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
    from torch_geometric.data.storage import GlobalStorage

    package, name = _package(card)
    loader, folder = DATASETS[card.task][1], root / str(card.loader["folder"])
    master = Path(package.__file__).with_name("master.csv")
    about = pd.read_csv(master, index_col=0, keep_default_na=False)[name].to_dict()
    attributes = [f"{kind}-feat" for kind in ("node", "edge") if about[f"has_{kind}_attr"] == "True"]
    for file in (f"RELEASE_v{about['version']}.txt", *(f"raw/{stem}.csv.gz" for stem in ("edge", *attributes))):
        # Without the first, ogb asks at the keyboard whether to delete the folder; without the others, it downloads.
        if not (folder / file).is_file():
            raise G2MError(
                f"files: expected {folder / file}, which ogb looks for (got no such file). "
                f"Name it in the card's files, then run `g2m data get {card.name}`."
            )
    with TemporaryDirectory() as processed, _quiet():
        loader = type(name, (getattr(package, loader),), {"processed_dir": processed})
        # ogb's own torch.load takes weights only; these are what a processed graph holds besides.
        with torch.serialization.safe_globals([DataEdgeAttr, DataTensorAttr, GlobalStorage]):
            # Told the folder, ogb takes that one; told its parent, it prefers one that older releases left beside it.
            dataset = loader(name, meta_dict=about | {"dir_path": str(folder)})
        return dataset, about, dataset.get_idx_split()


def _package(card: Card) -> tuple[ModuleType, str]:
    """Return the package of OGB that a card's data set is in, and OGB's name of it."""
    package, _, names = DATASETS[card.task]
    name = choose(f"card {card.name}.toml: loader.dataset", str(card.loader["dataset"]), names)
    # With the package outdated, ogb looks for a newer ogb on the network, in a thread.
    had = {key: sys.modules[key] for key in ["outdated"] if key in sys.modules}
    sys.modules["outdated"] = None
    try:
        return import_module(f"ogb.{package}"), name
    finally:
        del sys.modules["outdated"]
        sys.modules.update(had)


def evaluator(card: Card) -> Callable[[Tensor, Tensor], float]:
    """Return OGB's own Evaluator of a card's data set, as a function like :func:`g2m.metrics.score`.

    It takes logits ``[N, C]`` and classes ``[N]``, or ``[N, T]`` of binary tasks, NaN for a missing label.
    """
    package, name = _package(card)
    judge = package.Evaluator(name)

    def score(logits: Tensor, y: Tensor) -> float:
        if judge.eval_metric == "acc":
            predicted = logits.argmax(-1)
        else:
            predicted = logits[:, 1] - logits[:, 0] if y.dim() == 1 else logits
        given = {"y_true": y.reshape(len(y), -1), "y_pred": predicted.reshape(len(y), -1)}
        return float(judge.eval(given)[judge.eval_metric])

    return score


def fetch(card: Card, root: Path) -> None:
    """Download the archive and put its files where :func:`read` looks; ogb's own way asks first if it is large."""
    unpack(card.url, root / str(card.loader["folder"]))


def unpack(url: str, folder: Path) -> None:
    """Download a zip archive, named after the one folder in it, and put that folder's files into ``folder``."""
    from torch_geometric.data import download_url

    folder.parent.mkdir(parents=True, exist_ok=True)
    # Moved into place when whole: an interrupted download leaves nothing behind.
    with TemporaryDirectory(dir=folder.parent) as part:
        archive = Path(download_url(url, part, log=False))
        with ZipFile(archive) as file:
            file.extractall(part)
        top = archive.with_suffix("")
        for path in [path for path in top.rglob("*") if path.is_file()]:
            target = folder / path.relative_to(top)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep ogb from printing, and its progress bars from starting the thread that watches them."""
    from tqdm import tqdm

    interval, tqdm.monitor_interval = tqdm.monitor_interval, 0
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            # What pandas hands over may be read-only; nothing here writes to it.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)
            yield
    finally:
        tqdm.monitor_interval = interval
