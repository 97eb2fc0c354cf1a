"""Data-set cards: one TOML file says where a data set comes from, what it holds and how it is used."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import get_origin

from g2m.data.sources import SOURCES
from g2m.data.splits import SPLITS
from g2m.errors import G2MError, check_keys, choose
from g2m.graph import METRICS

COUNTS = ("graphs", "nodes", "edges", "features", "classes", "tasks")
#: Task -> the counts that its cards need not give.
TASKS = {"node classification": {"graphs": 1, "tasks": 1}, "graph classification": {"tasks": 1}}


@dataclass(frozen=True)
class Card:
    """What is known about a data set; read from ``datasets/NAME.toml``, checked when read.

    Args:
        name: what :func:`g2m.data.load` calls it; the file's stem.
        source: key of :data:`g2m.data.sources.SOURCES`, which reads it.
        task: what is predicted, ``"node classification"`` or ``"graph classification"``.
        metric: ``"accuracy"`` or ``"rocauc"``.
        licence: of the data, as its publisher states it.
        citation: the paper or page to cite.
        counts: ``graphs`` (1 on a node-classification card), ``nodes``, ``edges``, ``features``, ``classes`` and
            ``tasks`` (default 1); of all graphs together; compared on every load. Without ``directed``, an edge is an
            unordered pair.
        splits: names of the splits that apply.
        default_split: the one used when none is asked for.
        url: home page, or the file or archive itself where that is what is fetched.
        files: what must lie under the data root, as relative paths; empty for built-in data.
        size_mb: size of those files, if known.
        loader: fixed arguments of the source.
        options: arguments of the source that ``load(name, option=…)`` may change, with their defaults.
        normalize_features: divide every row of ``x`` by its sum; zero rows stay zero. Default ``False``.
        directed: whether an edge may lack its reverse, default ``False``.
        keep_loops: whether self-loops in the files are kept, default ``False``: models add their own.
        notes: what a user should know before comparing numbers.
    """

    name: str
    source: str
    task: str
    metric: str
    licence: str
    citation: str
    counts: dict[str, int]
    splits: tuple[str, ...]
    default_split: str
    url: str = ""
    files: tuple[str, ...] = ()
    size_mb: int | float | None = None
    loader: dict[str, object] = field(default_factory=dict)
    options: dict[str, object] = field(default_factory=dict)
    normalize_features: bool = False
    directed: bool = False
    keep_loops: bool = False
    notes: str = ""

    def missing(self, root: str | Path | None = None) -> list[str]:
        """Return the files that are not under the data root."""
        folder = data_root(root)
        return [file for file in self.files if not (folder / file).is_file()]

    def status(self, root: str | Path | None = None) -> str:
        """Return ``"built in"``, ``"have"`` or ``"needs download"``.

        Args:
            root: data root, see :func:`data_root`.
        """
        if not self.files:
            return "built in"
        return "needs download" if self.missing(root) else "have"


def data_root(root: str | Path | None = None) -> Path:
    """Return the folder that holds the data: ``root``, else ``$G2M_DATA_ROOT``, else ``~/.cache/g2m/data``."""
    return Path(root or os.environ.get("G2M_DATA_ROOT") or "~/.cache/g2m/data").expanduser()


def read_card(path: str | Path) -> Card:
    """Read and check a card.

    Args:
        path: a TOML file whose stem is the card's name.

    Raises:
        G2MError: on invalid TOML, an unknown or missing key, or a value of the wrong type; the message names the file.
    """
    path = Path(path)
    where = f"card {path.name}"
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise G2MError(f"{where}: expected a readable TOML file (got {error}).") from error
    known = {f.name: f for f in fields(Card)}
    check_keys(where, table, known)
    for key, f in known.items():
        if key not in table:
            if f.default is MISSING and f.default_factory is MISSING:
                raise G2MError(f"{where}: key {key!r} is missing.")
            continue
        table[key] = _typed(where, key, table[key], f.type)
    if table["name"] != path.stem:
        raise G2MError(f"{where}: expected name = {path.stem!r}, the file's stem (got {table['name']!r}).")
    choose(f"{where}: source", table["source"], SOURCES)
    choose(f"{where}: task", table["task"], TASKS)
    choose(f"{where}: metric", table["metric"], METRICS)
    for split in table["splits"]:
        choose(f"{where}: splits", split, SPLITS)
    choose(f"{where}: default_split", table["default_split"], table["splits"])
    counts = TASKS[table["task"]] | table["counts"]
    check_keys(f"{where}: counts", counts, COUNTS)
    for key in COUNTS:
        if not isinstance(counts.get(key), int):
            raise G2MError(f"{where}: counts: expected an integer for {key!r} (got {counts.get(key)!r}).")
    table["counts"] = {key: counts[key] for key in COUNTS}
    return Card(**table)


@cache
def _cards() -> dict[str, Card]:
    package = Path(__file__).parents[1]
    # A wheel carries the cards inside the package; a checkout has them beside it.
    folder = next((f for f in (package / "_cards", package.parent / "datasets") if f.is_dir()), None)
    if folder is None:
        raise G2MError("cards: expected a folder of cards next to the package (got none). Install g2m again.")
    return {path.stem: read_card(path) for path in sorted(folder.glob("*.toml"))}


def cards() -> dict[str, Card]:
    """Return every card by name.

    Raises:
        G2MError: if one of them is not valid.
    """
    return dict(_cards())


def find_card(name: str | Card) -> Card:
    """Return the card called ``name``; a :class:`Card` is returned as it is.

    Raises:
        G2MError: if there is none; the message names the nearest.
    """
    if isinstance(name, str) and name not in _cards() and Path(name).suffix:
        raise G2MError(
            f"name: expected a card's name, as `g2m data` lists them (got {name!r}). A graph of your own is used from "
            "Python: docs/data.md."
        )
    return name if isinstance(name, Card) else _cards()[choose("name", name, _cards())]


def _typed(where: str, key: str, value: object, expected: type) -> object:
    kind = {tuple: list, dict: Mapping, None: expected}.get(get_origin(expected), expected)
    if not isinstance(value, kind) or (kind is list and not all(isinstance(v, str) for v in value)):
        raise G2MError(f"{where}: {key}: expected {getattr(expected, '__name__', expected)} (got {value!r}).")
    return tuple(value) if kind is list else value
