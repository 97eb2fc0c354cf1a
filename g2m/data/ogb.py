"""Node classification of the Open Graph Benchmark, by its own loader: no question asked, no thread, nothing printed."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from zipfile import ZipFile

import torch

from g2m.errors import G2MError, choose

if TYPE_CHECKING:
    from torch_geometric.data import Data

    from g2m.data.cards import Card

#: Those with one kind of node, features and one label a node, small enough to be read from text.
DATASETS = ("ogbn-arxiv", "ogbn-products")
#: Our name of a part -> OGB's.
PARTS = {"train": "train", "val": "valid", "test": "test"}


def read(card: Card, root: Path) -> Data:
    """Return the graph, both arcs of every edge, and OGB's split as masks; ``loader``: ``dataset`` and ``folder``."""
    name = choose(f"card {card.name}.toml: loader.dataset", str(card.loader["dataset"]), DATASETS)
    folder = root / str(card.loader["folder"])
    # Else ogb looks for a newer ogb on the network, in a thread.
    sys.modules.setdefault("outdated", None)
    import pandas as pd
    from ogb import nodeproppred
    from torch_geometric.data import Data
    from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
    from torch_geometric.data.storage import GlobalStorage
    from torch_geometric.utils import index_to_mask, to_undirected

    master = Path(nodeproppred.__file__).with_name("master.csv")
    about = pd.read_csv(master, index_col=0, keep_default_na=False)[name].to_dict()
    for file in (f"RELEASE_v{about['version']}.txt", "raw/edge.csv.gz", "raw/node-feat.csv.gz"):
        # Without the first, ogb asks at the keyboard whether to delete the folder; without the others, it downloads.
        if not (folder / file).is_file():
            raise G2MError(
                f"files: expected {folder / file}, which ogb looks for (got no such file). "
                f"Name it in the card's files, then run `g2m data get {card.name}`."
            )
    with TemporaryDirectory() as processed, _quiet():
        loader = type(name, (nodeproppred.PygNodePropPredDataset,), {"processed_dir": processed})
        # ogb's own torch.load takes weights only; these are what a processed graph holds besides.
        with torch.serialization.safe_globals([DataEdgeAttr, DataTensorAttr, GlobalStorage]):
            # Told the folder, ogb takes that one; told its parent, it prefers one that older releases left beside it.
            dataset = loader(name, meta_dict=about | {"dir_path": str(folder)})
        data, parts = dataset[0], dataset.get_idx_split()
    edge_index = data.edge_index
    if about["add_inverse_edge"] != "True":
        edge_index = to_undirected(edge_index, num_nodes=len(data.x))
    masks = {f"{part}_mask": index_to_mask(parts[key], len(data.x)) for part, key in PARTS.items()}
    return Data(x=data.x, edge_index=edge_index, y=data.y.flatten(), **masks)


def fetch(card: Card, root: Path) -> None:
    """Download the archive and put its files where :func:`read` looks; ogb's own way asks first if it is large."""
    from torch_geometric.data import download_url

    folder = root / str(card.loader["folder"])
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Moved into place when whole: an interrupted download leaves nothing behind.
    with TemporaryDirectory(dir=folder.parent) as part:
        archive = Path(download_url(card.url, part, log=False))
        with ZipFile(archive) as file:
            file.extractall(part)
        top = archive.with_suffix("")  # OGB names the archive after the one folder in it
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
