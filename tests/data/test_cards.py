import importlib
import re
import tomllib
from pathlib import Path

import pytest

import g2m
from g2m import G2MError, data, experiments
from g2m.data import find_card, read_card, sources, splits

cards_module = importlib.import_module("g2m.data.cards")  # g2m.data.cards itself is the function

TOML = """
name = "toy"
source = "gnn-benchmark"
task = "node classification"
metric = "accuracy"
licence = "MIT"
citation = "nobody"
files = ["npz/toy.npz"]
splits = ["cpf", "random"]
default_split = "cpf"
size_mb = 0.5

[counts]
nodes = 4
edges = 3
features = 2
classes = 2
"""


def written(folder, text=TOML, name="toy"):
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_every_card_is_valid_and_has_what_a_user_needs():
    cards = data.cards()
    assert set(cards) >= {
        *("cora", "citeseer", "pubmed", "photo", "computers", "cs", "physics"),
        *("cora-cpf", "citeseer-cpf", "pubmed-cpf", "photo-cpf", "computers-cpf", "cs-cpf", "physics-cpf"),
        *("roman-empire", "amazon-ratings", "minesweeper", "tolokers", "questions"),
        *("chameleon-filtered", "squirrel-filtered", "ogbn-arxiv", "ogbn-products", "digits", "sbm"),
        *("mutag", "proteins", "nci1", "enzymes", "imdb-binary", "imdb-multi", "dd", "bzr", "atlas"),
        *("ogbg-molbace", "ogbg-molbbbp", "ogbg-molhiv", "ogbg-moltox21"),
    }
    for name, card in cards.items():
        assert card.name == name
        assert card.licence
        assert card.citation
        assert card.url or not card.files
        assert card.counts["classes"] >= 2
        assert bool(card.files) == (sources.SOURCES[card.source].fetch is not None)


def test_features_are_normalised_on_the_planetoid_cards_only():
    assert {name for name, card in data.cards().items() if card.normalize_features} == {"cora", "citeseer", "pubmed"}


def test_default_splits_are_those_of_the_protocols():
    default = {name: card.default_split for name, card in data.cards().items()}
    assert {default[name] for name in ("cora", "citeseer", "pubmed", "minesweeper", "questions")} == {"public"}
    assert {default[name] for name in ("ogbn-arxiv", "ogbn-products")} == {"public"}
    assert {default[name] for name in default if name.endswith("-cpf")} == {"cpf"}
    assert {default[name] for name in ("photo", "computers", "cs", "physics")} == {"random"}
    assert {default[name] for name in ("digits", "sbm")} == {"cpf"}


def test_tasks_of_the_cards_are_those_that_load_knows():
    assert set(cards_module.TASKS) == set(data._TASKS)


def test_read_card(tmp_path):
    card = read_card(written(tmp_path))
    assert card.splits == ("cpf", "random")
    assert card.files == ("npz/toy.npz",)
    assert (card.normalize_features, card.directed, card.keep_loops, card.options) == (False, False, False, {})
    assert card.counts == {"graphs": 1, "nodes": 4, "edges": 3, "features": 2, "classes": 2, "tasks": 1}


def test_a_size_may_be_a_whole_number(tmp_path):
    assert read_card(written(tmp_path, TOML.replace("size_mb = 0.5", "size_mb = 3"))).size_mb == 3


def test_a_card_of_many_graphs_says_how_many(tmp_path):
    many = TOML.replace("node classification", "graph classification")
    with pytest.raises(G2MError, match=r"counts: expected an integer for 'graphs' \(got None\)"):
        read_card(written(tmp_path, many))
    card = read_card(written(tmp_path, many.replace("nodes = 4", "nodes = 4\ngraphs = 2\ntasks = 3")))
    assert (card.counts["graphs"], card.counts["tasks"]) == (2, 3)
    assert len({tuple(card.counts) for card in data.cards().values()}) == 1  # one table of all cards


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('licence = "MIT"', 'license = "MIT"', r"card toy\.toml: unknown key 'license'\. Did you mean 'licence'"),
        ('licence = "MIT"', "", r"card toy\.toml: key 'licence' is missing"),
        ('licence = "MIT"', "licence = 3", r"licence: expected str \(got 3\)"),
        ('["npz/toy.npz"]', '"npz/toy.npz"', r"files: expected tuple"),
        ('["npz/toy.npz"]', "[1]", "files: expected tuple"),
        ("gnn-benchmark", "gnn-bench", "source: expected one of .* Did you mean 'gnn-benchmark'"),
        ("node classification", "node clasification", "task: .* Did you mean 'node classification'"),
        ('"accuracy"', '"acc"', "metric: expected one of accuracy, rocauc"),
        ('["cpf", "random"]', '["cpf", "randm"]', "splits: .* Did you mean 'random'"),
        ('default_split = "cpf"', 'default_split = "public"', "default_split: expected one of cpf, random"),
        ('name = "toy"', 'name = "tot"', "expected name = 'toy'"),
        ("nodes = 4", "node = 4", "counts: unknown key 'node'. Did you mean 'nodes'"),
        ("nodes = 4", "", "counts: expected an integer for 'nodes'"),
        ("nodes = 4", "nodes = 4.5", "counts: expected an integer for 'nodes'"),
        ("size_mb = 0.5", 'size_mb = "small"', "size_mb: expected"),
        ('name = "toy"', "name = toy", "expected a readable TOML file"),
    ],
)
def test_a_bad_card_is_refused_with_the_reason(tmp_path, old, new, message):
    assert old in TOML
    with pytest.raises(G2MError, match=message):
        read_card(written(tmp_path, TOML.replace(old, new, 1)))


def test_a_missing_card_is_refused(tmp_path):
    with pytest.raises(G2MError, match="readable TOML"):
        read_card(tmp_path / "none.toml")


def test_unknown_names_get_the_nearest():
    with pytest.raises(G2MError, match="Did you mean 'pubmed'"):
        find_card("pubmd")


def test_cards_are_handed_out_as_a_copy():
    data.cards().clear()
    assert "cora" in data.cards()


def test_status(tmp_path):
    card = read_card(written(tmp_path))
    assert card.status(tmp_path) == "needs download"
    (tmp_path / "npz").mkdir()
    (tmp_path / "npz" / "toy.npz").touch()
    assert card.status(tmp_path) == "have"
    assert find_card("sbm").status(tmp_path) == "built in"


def test_data_root(tmp_path, monkeypatch):
    monkeypatch.setenv("G2M_DATA_ROOT", str(tmp_path))
    assert data.data_root() == tmp_path
    assert data.data_root(tmp_path / "other") == tmp_path / "other"
    monkeypatch.delenv("G2M_DATA_ROOT")
    assert data.data_root().parts[-3:] == (".cache", "g2m", "data")
    assert data.data_root("~/x").is_absolute()


@pytest.mark.parametrize("folder", ["package/_cards", "datasets"])
def test_cards_are_found_in_a_wheel_and_in_a_checkout(tmp_path, monkeypatch, folder):
    (tmp_path / folder).mkdir(parents=True)
    written(tmp_path / folder)
    monkeypatch.setattr(cards_module, "__file__", str(tmp_path / "package" / "data" / "cards.py"))
    assert list(cards_module._cards.__wrapped__()) == ["toy"]


def test_a_wheel_has_cards_and_experiments_where_they_are_looked_for():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    inside = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert inside == {"datasets": "g2m/_cards", "sweeps": "g2m/_experiments"}
    assert Path(g2m.__file__).parent / "_experiments" == experiments._INSTALLED


def test_a_package_without_cards_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(cards_module, "__file__", str(tmp_path / "package" / "data" / "cards.py"))
    with pytest.raises(G2MError, match="Install g2m again"):
        cards_module._cards.__wrapped__()


def test_every_split_of_a_card_is_known():
    assert {split for card in data.cards().values() for split in card.splits} == set(splits.SPLITS)


def test_the_card_shown_in_the_docs_is_the_one_in_use():
    page = Path(__file__).parents[2] / "docs" / "data.md"
    shown = tomllib.loads(re.search(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)[1])
    card = find_card("minesweeper")
    assert shown.pop("counts").items() <= card.counts.items()
    assert {key: getattr(card, key) for key in shown} == {
        key: tuple(value) if isinstance(value, list) else value for key, value in shown.items()
    }
