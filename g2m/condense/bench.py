"""Condensation measured: methods, controls and the graphs themselves, on every network, in one table."""

from __future__ import annotations

import hashlib
import inspect
import json
import statistics
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from g2m import metrics
from g2m.comparisons import paired
from g2m.condense.condensed import Bytes, CondensedSet
from g2m.condense.methods import METHODS, check_budget, check_options, condense, everything
from g2m.condense.scored import CountModel
from g2m.condense.trees import TreeKeys, graph_sets, tree_classes
from g2m.data import find_card, load
from g2m.errors import G2MError, check_names, check_whole, choose
from g2m.estimators import versions
from g2m.experiments import FOLDER, key_values
from g2m.graph_classifier import GraphClassifier
from g2m.graph_gnn import GRAPH_BACKBONES, divides_by_degrees, shape_of
from g2m.graphs import Graphs
from g2m.train import seeded

Record = dict[str, Any]

#: Rows that train a network on a condensed set: the method, and its options.
SETS = {
    "mirage, faithful": ("mirage", {"faithful": True}),
    **{name: (name, {}) for name in METHODS if name != "lossless"},
}
#: Rows that a method has to beat. A label of ``shuffled`` belongs to another record of the same set.
CONTROLS = ("size", "wl, equal bytes", "wl", "untrained", "random", "shuffled")
WITHOUT_NETWORK = ("size", "wl", "wl, equal bytes")
_OF_ONE_CLASS = ("mirage, faithful", *WITHOUT_NETWORK)  # a graph, not of several tasks
ROWS = (
    "full",
    "lossless",
    *SETS,
    *(f"shuffled {name}" for name in ("mirage", "scored")),
    "untrained",
    *WITHOUT_NETWORK,
)
_DRAWS = 30  # untrained networks, of which validation chooses one
#: Options of the classifier by what it is trained on: all graphs, a condensed set.
_FULL = {"lr": 0.001, "batch_size": 128, "max_epochs": 50, "patience": 20}
SET_OPTIONS = {"lr": 0.01, "batch_size": "all", "max_epochs": 500, "patience": 500}


@cache
def shipped() -> Mapping[str, Mapping[str, Any]]:
    """Return what ``sweeps/condense.toml`` says of each data set."""
    return tomllib.loads((FOLDER / "condense.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class CondenseCell:
    """One training on a condensed set, on the graphs themselves, or one control.

    Args:
        data: card name.
        row: one of :data:`ROWS`.
        backbone: of the network; ``None`` for rows without one.
        seed: of the split, where the card draws one, of the set and of the network.
        hops: of the trees, and layers of the network.
        budget: as in :func:`g2m.condense.condense`; ``None`` where ``min_support`` is among ``method_options``.
        options: of :class:`~g2m.GraphClassifier`.
        method_options: of the method.
    """

    data: str
    row: str
    backbone: str | None
    seed: int
    hops: int
    budget: str | None
    options: dict[str, Any] = field(default_factory=dict)
    method_options: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """A hash of everything that decides the result."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]

    @property
    def job(self) -> tuple:
        """Cells of one job run one after the other: they share a condensed set."""
        return self.data, self.row.removeprefix("shuffled "), self.seed

    @property
    def stacks(self) -> bool:
        """Whether cells of several seeds are trained at once: of students alone."""
        return False

    @property
    def files(self) -> tuple[str, ...]:
        """What is in its folder once it is run."""
        if self.row in (*WITHOUT_NETWORK, "untrained"):
            return ()
        return ("classifier.safetensors", *(() if self.row == "full" else ("condensed.safetensors",)))

    def run(
        self,
        *,
        root: str | Path | None = None,
        cache: str | Path | None = None,
        folder: str | Path | None = None,
        progress: bool = False,
    ) -> Record:
        """Train and score the cell; its condensed set is read from the cache if it is there.

        With a ``folder``, a trained network and its set are kept there, with a checkpoint to resume from.
        """
        graphs, whole = _loaded(self.data, self.seed, root)
        record: Record = {**asdict(self), "key": self.key, "metric": graphs.metric, "bytes_full": whole.raw}
        if self.row in WITHOUT_NETWORK:
            scores, more = _without_network(self, graphs)
        elif self.row == "untrained":
            scores, more = _untrained(self, graphs)
        else:
            scores, more = self._trained(graphs, cache, folder, progress)
            more = {"bytes": whole.raw, "compressed": whole.compressed} | more
        return {**record, "scores": scores, **more}

    def graphs(self, root: str | Path | None = None) -> Graphs:
        """Return the graphs, with the metric that the cell is scored by."""
        return _loaded(self.data, self.seed, root)[0]

    def condensed(self, graphs: Graphs, cache: str | Path | None = None) -> CondensedSet:
        """Return the condensed set of the cell, made, or read from the cache."""
        from g2m.bench import cache_folder

        method, options = self._method
        options = options | self.method_options | ({"degrees": True} if self._degrees else {})
        given = {"method": method, "num_hops": self.hops, "budget": self.budget, "seed": self.seed, **options}
        if "min_support" in options or method == "lossless":
            given["budget"] = None
        identity = {**given, "fingerprint": graphs.fingerprint(), "versions": versions()}
        identity = json.dumps(identity, sort_keys=True, default=str)
        name = hashlib.sha256(identity.encode()).hexdigest()[:24]
        path = Path(cache_folder() if cache is None else cache) / "condensed" / f"{name}.safetensors"
        if path.exists():
            return CondensedSet.load(path)
        made = condense(graphs, **given)
        made.save(path)
        return made

    def network(self) -> GraphClassifier:
        """Return the unfitted network of the cell; wrong options are refused."""
        options = {"num_layers": self.hops, "share": self.row != "full", **self.options}
        return GraphClassifier(self.backbone, seed=self.seed, **options)

    def check(self) -> None:
        """Refuse a wrong option before anything is trained."""
        check_whole("hops", self.hops)
        if self.budget is not None:
            check_budget(self.budget)
        if self.backbone is not None:
            self.network()
        method, own = self._method
        if twice := own.keys() & self.method_options:
            raise G2MError(f"-o: {method}.{min(twice)} is what the row {self.row!r} says. Leave it out.")
        if method in METHODS:
            check_options(method, own | self.method_options)

    @property
    def _method(self) -> tuple[str, Mapping[str, Any]]:
        """The method and its options that the row is of; for a row of no set, its own name."""
        return SETS.get(self.row.removeprefix("shuffled "), (self.row, {}))

    @property
    def _degrees(self) -> bool:
        """Whether trees must tell degrees apart; methods that keep graphs have them anyway, and no such option."""
        method, _ = self._method
        return divides_by_degrees(self.backbone) and "degrees" in inspect.signature(METHODS[method]).parameters

    def _trained(
        self, graphs: Graphs, cache: str | Path | None, folder: str | Path | None, progress: bool
    ) -> tuple[dict[str, float], Record]:
        condensed = None if self.row == "full" else self.condensed(graphs, cache)
        more: Record = {"seconds_condense": 0.0}
        if condensed is not None:
            size = condensed.nbytes()
            more = {"bytes": size.raw, "compressed": size.compressed, "records": len(condensed)}
            more["seconds_condense"] = condensed.meta["seconds"]
            if self.row.startswith("shuffled"):
                order = torch.randperm(len(condensed), generator=torch.Generator().manual_seed(self.seed))
                condensed = replace(condensed, y=condensed.y[order])
        checkpoint = None if folder is None else Path(folder) / "classifier.checkpoint"
        model = self.network().fit(graphs, condensed, checkpoint=checkpoint, progress=progress)
        if folder is not None:
            model.save(Path(folder) / "classifier.safetensors")
            if condensed is not None:
                condensed.save(Path(folder) / "condensed.safetensors")
        run = {"parameters": model.num_parameters(), "width": model.hidden_channels, "layers": model.num_layers}
        run |= {"epochs": len(model.history_), "best_epoch": model.history_.best_epoch}
        return _scores(graphs, model.predict_logits), more | run | {"seconds_train": round(model.history_.seconds, 2)}


def scored(graphs: Graphs) -> Graphs:
    """Return graphs with the metric of the tables: of two classes ROC-AUC, as in the paper."""
    return replace(graphs, metric="rocauc") if graphs.y.dim() == 1 and graphs.num_classes == 2 else graphs


@lru_cache(maxsize=2)
def _loaded(data: str, seed: int, root: str | Path | None) -> tuple[Graphs, Bytes]:
    """Return the graphs and what those of the training take."""
    graphs = scored(load(data, seed=seed, root=root))
    return graphs, everything(graphs.subset(graphs.part("train"))).nbytes()


def cells(
    data: Iterable[str],
    *,
    rows: Iterable[str] | None = None,
    backbones: Iterable[str] = ("gcn", "gat", "gin"),
    seeds: int = 5,
    budget: str = "1%",
    hops: int | None = None,
    overrides: Iterable[str] = (),
) -> list[CondenseCell]:
    """Return the cells of a grid; a row without a network is there once, not once per backbone.

    Args:
        data: card names of sets of graphs.
        rows: of :data:`ROWS`; default: all, of several tasks those that take them.
        backbones: ``"gcn"``, ``"gat"``, ``"gin"``, ``"sage"``.
        seeds: seeds 0 … seeds-1.
        budget: bytes of the condensed sets, as in :func:`g2m.condense.condense`; ``"mirage, faithful"`` has none where
            ``sweeps/condense.toml`` has the thresholds of its trees.
        hops: of the trees and layers of the networks; default: what ``sweeps/condense.toml`` says, else 2.
        overrides: ``key=value`` options of the classifier, ``METHOD.key=value`` of a method.
    """
    data, chosen, backbones = list(data), list(ROWS if rows is None else rows), list(backbones)
    check_names(data=data, rows=chosen, backbones=backbones)
    for name in data:
        if find_card(name).task != "graph classification":
            raise G2MError(f"data: expected sets of graphs (got {name!r}, one graph). `g2m data` lists them.")
    for row in chosen:
        choose("rows", row, ROWS)
    for backbone in backbones:
        choose("backbones", backbone, GRAPH_BACKBONES)
    check_whole("seeds", seeds)
    options, of_method = _options(overrides)
    asked = {SETS.get(row.removeprefix("shuffled "), (row,))[0] for row in chosen}
    if unused := of_method.keys() - asked:
        raise G2MError(f"-o: {min(unused)!r} is in none of the rows (got {', '.join(chosen)}). Leave its options out.")
    made: dict[str, CondenseCell] = {}
    for name in data:
        known = shipped().get(name, {})
        depth = known.get("hops", 2) if hops is None else check_whole("hops", hops)
        not_here = _OF_ONE_CLASS if find_card(name).counts["tasks"] > 1 else ()
        if rows is not None and (wrong := [row for row in chosen if row in not_here]):
            raise G2MError(f"rows: {wrong[0]!r} is for one class a graph ({name!r} has several tasks). Leave it out.")
        for seed in range(seeds):
            for row in (row for row in chosen if row not in not_here):
                own_options = of_method.get(SETS.get(row.removeprefix("shuffled "), (row,))[0], {})
                for backbone in (None,) if row in WITHOUT_NETWORK else backbones:
                    own, size = own_options, None if "min_support" in own_options else str(budget)
                    if row == "mirage, faithful" and depth == known.get("hops") and not divides_by_degrees(backbone):
                        # Of trees that tell degrees apart fewer repeat: the budget decides there.
                        own = {"min_support": dict(enumerate(known["min_support"])), **own}
                    given: dict[str, Any] = {}
                    if backbone is not None:
                        given = dict(options)
                        if row != "untrained":
                            kind, defaults = ("graphs", _FULL) if row in ("full", "lossless") else ("sets", SET_OPTIONS)
                            epochs = known.get("max_epochs", {}).get(kind, defaults["max_epochs"])
                            given = defaults | {"max_epochs": epochs} | options
                    cell = CondenseCell(name, row, backbone, seed, depth, size, given, own)
                    cell.check()
                    made.setdefault(cell.key, cell)
    return list(made.values())


def _options(overrides: Iterable[str]) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    options: dict[str, Any] = {}
    of_method: dict[str, dict[str, Any]] = {}
    for key, value in key_values(overrides, "lr=0.01 or mirage.min_size=2").items():
        group, dot, name = key.rpartition(".")
        table = of_method.setdefault(choose("-o: the part before the dot", group, METHODS), {}) if dot else options
        table[name] = value
    for name in ("num_layers", "seed", "share"):
        if name in options:
            raise G2MError(f"-o: {name!r} cannot be set here, the run sets it. --hops sets the number of layers.")
    return options, of_method


# -- controls ----------------------------------------------------------------------------------------------------------


def _scores(graphs: Graphs, logits_of: Any) -> dict[str, float]:
    """Return scores on val and test by the graphs' metric, and the accuracy, of two classes at val's best threshold."""
    scores: dict[str, float] = {}
    logits = {part: logits_of(graphs.subset(graphs.part(part))) for part in ("val", "test")}
    y = {part: graphs.y[graphs.part(part)] for part in logits}
    for part in logits:
        scores[part] = metrics.score(graphs.metric, logits[part], y[part])
    if graphs.y.dim() == 1 and graphs.num_classes == 2:
        margin = {part: (found[:, 1] - found[:, 0]).double() for part, found in logits.items()}
        scores["test_accuracy"] = _accuracy_at(_threshold(margin["val"], y["val"]), margin["test"], y["test"])
    else:
        scores["test_accuracy"] = metrics.accuracy(logits["test"], y["test"])
    return scores


def _threshold(margin: Tensor, y: Tensor) -> float:
    values = margin.unique()
    between = torch.cat([values[:1] - 1, (values[1:] + values[:-1]) / 2, values[-1:] + 1])
    right = ((margin[None] > between[:, None]) == (y[None] == 1)).sum(1)
    return float(between[right.argmax()])


def _accuracy_at(threshold: float, margin: Tensor, y: Tensor) -> float:
    return float(((margin > threshold) == (y == 1)).double().mean())


def _without_network(cell: CondenseCell, graphs: Graphs) -> tuple[dict[str, float], Record]:
    """Score the number of nodes, or a linear model of tree counts, of the training graphs or of some at equal bytes."""
    train, more = graphs.part("train"), {}
    if len(graphs.y[train].unique()) < 2:
        raise G2MError(f"rows: {cell.row!r} needs two classes among training graphs (got one). Leave it out.")
    if cell.row == "size":
        levels = [csr_array(graphs.ptr.diff().numpy()[:, None].astype(float))]
    else:
        keys = TreeKeys().fit(graphs, train)
        classes = tree_classes(graphs.edge_index, *keys.transform(graphs), num_hops=cell.hops)
        levels = [graph_sets(classes, graphs.batch, len(graphs), num_hops=h) for h in range(cell.hops + 1)]
    if cell.row == "wl, equal bytes":
        some = condense(graphs, "random", num_hops=cell.hops, budget=cell.budget, seed=cell.seed)
        train = some.content.graph_id
        more = {"bytes": some.nbytes().raw, "compressed": some.nbytes().compressed}
    rows = train.numpy()
    model = CountModel([level[rows] for level in levels], graphs.y[train].numpy(), cell.seed)
    found = torch.from_numpy(np.asarray(model.logits(levels)))
    if found.dim() == 1:
        found = torch.stack([-found / 2, found / 2], 1)
    logits = torch.full((len(graphs), graphs.num_classes), -1e9, dtype=torch.float64)
    logits[:, torch.from_numpy(model.model.classes_)] = found
    by_id = dict(zip(graphs.graph_id.tolist(), logits, strict=True))
    return _scores(graphs, lambda part: torch.stack([by_id[i] for i in part.graph_id.tolist()])), more


def _untrained(cell: CondenseCell, graphs: Graphs) -> tuple[dict[str, float], Record]:
    """Score the best on validation of several networks that were never trained."""
    tasks = graphs.y.dim() == 2
    model = GraphClassifier(cell.backbone, num_layers=cell.hops, **cell.options)
    shape = shape_of(model.program(graphs.subset(graphs.part("train"))))
    parts = {part: model.program(graphs.subset(graphs.part(part))) for part in ("val", "test")}
    best, kept = -1.0, None
    with seeded(cell.seed, torch.device("cpu")), torch.no_grad():
        for _ in range(_DRAWS):
            network = model._build(shape, graphs.num_tasks if tasks else graphs.num_classes).eval()
            found = network(parts["val"]).logits
            score = metrics.score(graphs.metric, found, graphs.y[graphs.part("val")])
            if kept is None or score > best:  # of one class in val, ROC-AUC is none
                best, kept = score, {"val": found, "test": network(parts["test"]).logits}
    answers = iter((kept["val"], kept["test"]))
    return _scores(graphs, lambda _: next(answers)), {}


NOTE = (
    "ROC-AUC of two classes, else accuracy, in percent, on the test part: mean ± standard deviation (ddof 1) over all "
    "seeds; a seed draws the split of TU's sets, what is drawn of a set, and the initial weights. Epochs are chosen on "
    "validation; accuracy of two classes at the threshold that is best there. Bytes: of all stored arrays at their "
    "narrowest types, by one rule for every row. `not above`: controls that the row does not beat by two standard "
    "errors of the difference over seeds, with how many of the networks where not all. `untrained`: the best on "
    f"validation of {_DRAWS} networks. `wl`: logistic regression on the counts of tree classes, no network; at equal "
    "bytes: on the graphs of `random`.\n"
)


# -- the table ---------------------------------------------------------------------------------------------------------


def tables(records: Iterable[Mapping[str, Any]]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return a title, header and rows for every data set, and for the gains over the controls at the commonest budget.

    The last column names the controls that a row is not above by two standard errors of the difference. Runs of one row
    and network with other options have lines of their own, which name what differs.
    """
    records = list({record["key"]: record for record in records}.values())
    made, gains, budgets = [], {}, Counter(record["budget"] for record in records if record["budget"] is not None)
    commonest = max(budgets, key=budgets.get, default=None)
    for data in dict.fromkeys(record["data"] for record in records):
        some = [record for record in records if record["data"] == data]
        for budget, hops in dict.fromkeys((record["budget"], record["hops"]) for record in some):
            part = [record for record in some if (record["budget"], record["hops"]) == (budget, hops)]
            header, rows = _table(part, gains if budget is not None and budget == commonest else {})
            full = next(iter(part))["bytes_full"]
            size = "min_support in place of a budget," if budget is None else f"budget {budget} of"
            title = f"{data}: {size} {full:,} bytes, {hops} hop{'s' * (hops != 1)}"
            made.append((title, header, rows))
    if gains:
        controls = [c for c in CONTROLS if any(c in of for of in gains.values())]
        rows = [
            [row, *(_gain(of.get(control)) for control in controls), f"{min(len(v) for v in of.values())}"]
            for row, of in gains.items()
        ]
        header = ["row", *(f"over {control}" for control in controls), "data sets × networks"]
        title = f"Gains over the controls, in points of the metric, at a budget of {commonest}"
        made.append((title, header, rows))
    return made


def _gain(values: Sequence[float] | None) -> str:
    return "–" if not values else f"{100 * statistics.fmean(values):+.1f}"


def _table(records: Sequence[Mapping[str, Any]], gains: dict) -> tuple[list[str], list[list[str]]]:
    from g2m.report import percent

    backbones = [b for b in GRAPH_BACKBONES if any(r["backbone"] == b for r in records)] or [None]
    groups: dict[tuple[str, str, str | None], list[Mapping[str, Any]]] = {}
    for record, differing in zip(records, _differing(records), strict=True):
        groups.setdefault((record["row"], differing, record["backbone"]), []).append(record)
    metric = {"rocauc": "AUC", "accuracy": "accuracy"}[records[0]["metric"]]
    known = shipped().get(records[0]["data"], {})
    published = known.get("published", {}) if known.get("hops") == records[0]["hops"] else {}
    header = ["row", "bytes", "% of full", "s to condense", "s to train", "seeds"]
    header += [" ".join(filter(None, (part, b and b.upper()))) for part in (metric, "acc.") for b in backbones]
    header.append("not above")
    rows = []
    for row, differing in sorted({group[:2]: None for group in groups}, key=lambda line: _place(line[0])):
        own = [record for group, found in groups.items() if group[:2] == (row, differing) for record in found]
        sizes, times = [r["bytes"] for r in own if "bytes" in r], [r for r in own if "seconds_train" in r]
        shares = [r["bytes"] / r["bytes_full"] for r in own if "bytes" in r]
        line = [f"{row} ({differing})" if differing else row]
        line += [f"{statistics.fmean(sizes):,.0f}", f"{100 * statistics.fmean(shares):.1f}"] if sizes else ["–"] * 2
        for name in ("seconds_condense", "seconds_train"):
            found = [r[name] for r in times if name in r]
            line.append(f"{statistics.fmean(found):.1f}" if found else "–")
        line.append(str(len({r["seed"] for r in own})))
        below: dict[str, int] = {}
        for part in ("test", "test_accuracy"):
            for backbone in backbones:
                found = groups.get((row, differing, backbone if row not in WITHOUT_NETWORK else None), [])
                line.append(percent([r["scores"][part] for r in found]) if found else "–")
        if row in SETS:
            for backbone in backbones:
                found = groups.get((row, differing, backbone), [])
                for control, of in _controls(found, groups) if found else ():
                    mine, theirs = ({r["seed"]: r["scores"]["test"] for r in some} for some in (found, of))
                    if mine.keys() & theirs.keys():
                        _, gain, error, _ = paired(mine, theirs)
                        gains.setdefault(line[0], {}).setdefault(control, []).append(gain)
                        beaten = error is not None and gain > 2 * error  # one seed shows nothing
                        below[control] = below.get(control, 0) + (not beaten)
        flags = [f"{control} ({n})" if n < len(backbones) else control for control, n in below.items() if n]
        rows.append([*line, ", ".join(flags) or "–"])
    if published:
        shown = [published.get(b, "–") for b in backbones]
        rows.append(["logs of the reference", *["–"] * 5, *shown, *["–"] * len(backbones), "–"])
    return header, rows


def _place(row: str) -> int:
    """Return where a row stands in a table; one that is not known here comes last."""
    return ROWS.index(row) if row in ROWS else len(ROWS)


def _differing(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return for each record the options, as words, in which runs of its row differ on one network."""
    options: list[dict[str, str]] = []
    of: dict[tuple[str, str | None], list[dict[str, str]]] = {}
    for record in records:
        method = SETS.get(record["row"].removeprefix("shuffled "), (record["row"],))[0]
        given = record["options"] | {f"{method}.{name}": value for name, value in record["method_options"].items()}
        options.append({name: v if isinstance(v, str) else json.dumps(v, sort_keys=True) for name, v in given.items()})
        of.setdefault((record["row"], record["backbone"]), []).append(options[-1])
    names: dict[str, set[str]] = {}
    for (row, _), some in of.items():
        several = {name for name in set().union(*some) if len({given.get(name) for given in some}) > 1}
        names.setdefault(row, set()).update(several)
    return [
        " ".join(f"{name}={given.get(name, 'default')}" for name in sorted(names[record["row"]]))
        for record, given in zip(records, options, strict=True)
    ]


def _controls(own: Sequence[Mapping[str, Any]], groups: Mapping) -> Iterator[tuple[str, Sequence[Mapping[str, Any]]]]:
    """Yield the controls of a line: of the same network, and trained as it is if they are, unless several are."""
    first = own[0]
    for control in CONTROLS:
        if control == first["row"]:
            continue
        name = f"shuffled {first['row']}" if control == "shuffled" else control
        whose = None if name in WITHOUT_NETWORK else first["backbone"]
        known = [group for (other, _, network), group in groups.items() if (other, network) == (name, whose)]
        if whose is not None:
            known = [group for group in known if _network(group[0], control) == _network(first, control)]
        if len(known) == 1 or (known and control == "untrained"):  # which by any optimiser is the same
            yield control, known[0]


def _network(record: Mapping[str, Any], control: str) -> dict[str, Any]:
    """Return what a control has to have in common with a line."""
    of_set = record["method_options"] if control == "shuffled" else {}
    untrained = control == "untrained"
    return {k: v for k, v in record["options"].items() if not (untrained and k in SET_OPTIONS)} | {"": of_set}
