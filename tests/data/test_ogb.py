import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from ogb_cases import ARCS, FEATURES, LABELS, contents, lay_out, loads_from_a_read_only_folder, refuse
from tqdm import tqdm

from g2m import G2MError
from g2m.data import download, find_card, load, splits
from g2m.data.sources import SOURCES

NAMES = ("ogbn-arxiv", "ogbn-products")


@pytest.fixture(autouse=True)
def _no_questions(monkeypatch):
    monkeypatch.setattr("builtins.input", refuse)


@pytest.fixture(params=NAMES)
def card(request):
    return dataclasses.replace(find_card(request.param), counts={"nodes": 8, "edges": 5, "features": 3, "classes": 3})


@pytest.fixture
def root(card, tmp_path):
    root = tmp_path / "data"
    lay_out(card, root)
    return root


def test_the_small_data_set_is_all_that_the_card_lists(card, root):
    assert sorted(card.files) == sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    assert card.status(root) == "have"


def test_graph_labels_and_split(card, root):
    graph = load(card, root=root)
    assert graph.edge_index.t().tolist() == ARCS
    assert torch.equal(graph.x, torch.from_numpy(FEATURES).float())
    assert graph.y.tolist() == LABELS
    assert {part: ids.tolist() for part, ids in graph.split.items()} == {
        "train": [0, 4, 6],
        "val": [1, 5],
        "test": [2, 3, 7],
    }
    assert (graph.name, graph.metric) == (card.name, "accuracy")
    drawn = splits.random(SOURCES["ogb"].read(card, root).y, train_per_class=1, num_val=1, num_test=None)
    assert [len(ids) for ids in drawn.values()] == [3, 1, 4]


def test_a_read_only_folder_stays_as_it_is_and_nothing_is_printed(card, root, capfd):
    loads_from_a_read_only_folder(card, root, capfd)


def test_nothing_is_left_behind_in_the_process(card, root, tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    interval = tqdm.monitor_interval
    load(card, root=root)
    assert list((tmp_path / "scratch").iterdir()) == []
    assert tqdm.monitor_interval == interval > 0


ALONE = """if True:
    import builtins, dataclasses, socket, sys, threading, warnings

    def refuse(*args, **kwargs):
        raise SystemExit("reached for the network or the keyboard")

    socket.socket.connect = socket.getaddrinfo = socket.create_connection = builtins.input = refuse
    started, start = [], threading.Thread.start
    threading.Thread.start = lambda self: (started.append(self), start(self))
    import g2m, g2m.cli
    from g2m.data import cards, find_card, load

    cards()
    assert not {"ogb", "outdated"} & sys.modules.keys(), "imported before a data set of OGB was asked for"
    card = dataclasses.replace(find_card(sys.argv[1]), counts={"nodes": 8, "edges": 5, "features": 3, "classes": 3})
    warnings.simplefilter("error", UserWarning)
    first, second = (load(card, root=sys.argv[2]) for _ in range(2))
    assert "ogb" in sys.modules
    assert first.fingerprint() == second.fingerprint()
    assert started == [], started
    assert threading.active_count() == 1, threading.enumerate()
    from torch.serialization import get_safe_globals
    from torch_geometric.data.storage import GlobalStorage
    assert GlobalStorage not in get_safe_globals(), "still let through after loading"
"""


def test_loading_starts_no_thread_warns_of_nothing_and_asks_nobody(card, root):
    """In a process of its own: the first import of ogb is what starts its update check."""
    command = [sys.executable, "-c", ALONE, card.name, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize(("name", "file"), [(name, file) for name in NAMES for file in find_card(name).files])
def test_a_missing_file_names_the_command(name, file, tmp_path):
    lay_out(find_card(name), tmp_path)
    (tmp_path / file).unlink()
    before = contents(tmp_path)
    with pytest.raises(G2MError, match=rf"'{name}' is not in {tmp_path} \(no {file}\).*`g2m data get {name}`"):
        load(name, root=tmp_path)
    assert find_card(name).status(tmp_path) == "needs download"
    assert contents(tmp_path) == before


@pytest.mark.parametrize("file", ["RELEASE_v1.txt", "raw/edge.csv.gz", "raw/node-feat.csv.gz"])
def test_a_card_that_lists_too_few_files_asks_and_fetches_nothing_either(card, root, file):
    folder = root / card.loader["folder"]
    (folder / file).unlink()
    before = contents(root)
    with pytest.raises(G2MError, match=rf"files: expected {folder / file}, .*`g2m data get {card.name}`"):
        load(dataclasses.replace(card, files=()), root=root)
    assert contents(root) == before


def test_a_folder_of_an_older_ogb_beside_it_is_not_looked_at(card, root):
    folder = root / card.loader["folder"]
    folder.with_name(f"{folder.name}_pyg").mkdir()
    assert load(card, root=root).num_nodes == 8


def test_a_link_to_a_folder_had_elsewhere_will_do(card, root, tmp_path):
    folder = tmp_path / "other" / card.loader["folder"]
    folder.parent.mkdir(parents=True)
    folder.symlink_to(root / card.loader["folder"])
    assert load(card, root=tmp_path / "other").fingerprint() == load(card, root=root).fingerprint()


@pytest.mark.parametrize("file", ["raw/edge.csv.gz", "raw/node-label.csv.gz", "split/*/valid.csv.gz"])
def test_a_broken_file_says_what_to_do(card, root, file):
    (path,) = (root / card.loader["folder"]).glob(file)
    path.write_bytes(b"half a file")
    with pytest.raises(G2MError, match=rf"files of '{card.name}' .* cannot be read .*`g2m data get {card.name}`"):
        load(card, root=root)


def test_a_data_set_of_another_kind_is_refused(card, root):
    with pytest.raises(
        G2MError, match=r"loader\.dataset: expected one of ogbn-arxiv, ogbn-products \(got 'ogbn-mag'\)"
    ):
        load(dataclasses.replace(card, loader={**card.loader, "dataset": "ogbn-mag"}), root=root)


# -- downloads ---------------------------------------------------------------------------------------------------------


def test_download_unpacks_the_archive_into_place(card, root, tmp_path, monkeypatch, capfd):
    archive = shutil.make_archive(
        str(tmp_path / "archive"), "zip", shutil.copytree(root / card.loader["folder"], tmp_path / "zip" / "x").parent
    )
    asked = []

    def fake(url, folder, log):
        asked.append((url, log))
        return shutil.copy(archive, f"{folder}/x.zip")

    monkeypatch.setattr("torch_geometric.data.download_url", fake)
    new = tmp_path / "new"
    lay_out(card, new)
    (new / card.files[0]).unlink()
    (new / card.files[1]).write_bytes(b"half a file")
    download(card, new)
    download(card, new)
    assert load(card, root=new).fingerprint() == load(card, root=root).fingerprint()
    assert contents(new).keys() == contents(root).keys()
    assert asked == [(card.url, False)]
    assert card.url.startswith("http://snap.stanford.edu/ogb/")
    assert capfd.readouterr() == ("", "")


def test_the_archive_is_the_one_that_ogb_fetches(card, root):
    load(card, root=root)  # imports ogb, without its update check
    from ogb import nodeproppred

    table = pd.read_csv(Path(nodeproppred.__file__).with_name("master.csv"), index_col=0)[card.name]
    assert (table["url"], table["version"]) == (card.url, "1")
    assert card.url.endswith(f"/{table['download_name']}.zip")  # and the folder in it
