"""Runs by the rules of the Open Graph Benchmark: seeds, OGB's own Evaluator, and the text its leaderboard asks for."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from g2m import bench, distributed
from g2m.bench import Cell, Record
from g2m.condense import bench as of_sets
from g2m.condense.bench import CondenseCell
from g2m.data import data_root, find_card, load, ogb
from g2m.data.cards import Card
from g2m.errors import G2MError, choose
from g2m.estimators import Answer, Student, Teacher, scores
from g2m.graph_classifier import GraphClassifier
from g2m.report import markdown_table, mean_std, model_name
from g2m.storage import write_text
from g2m.train import resolve_device

#: OGB asks for so many seeds.
RUNS = 10
#: What can be run, by task.
DATA = {task: names for task, (_, _, names) in ogb.DATASETS.items()}
#: How a network comes to classify graphs: trained on all of them, or on a set condensed from them.
GRAPH_METHODS = ("full", "lossless", *of_sets.SETS)
_TOO_LARGE = "ogbn-papers100M"
_NODES, _FEATURES, _ARCS = 111_059_956, 128, 1_615_685_872  # of it, as OGB counts them
# Between a record and the Evaluator; on a GPU two passes of one network differ in their last digits.
_APART = {"cpu": 1e-6, "cuda": 1e-3}
_BLANK = "________"


@dataclass(frozen=True)
class OgbRun:
    """What runs gave.

    Attributes:
        figures: by model (``"teacher"`` and ``"student"`` of nodes, ``"network"`` of graphs) and part: mean and sample
            standard deviation of what OGB's Evaluator says, in [0, 1].
        parameters: by model; the largest, where seeds differ.
        text: for the leaderboard's submission form, Markdown.
        records: one of each run, as of :func:`g2m.bench.run`, with ``evaluator`` and ``hardware``.
        folder: has ``submission.md``, ``results.jsonl`` and, by seed, what was trained.
    """

    figures: dict[str, dict[str, tuple[float, float]]]
    parameters: dict[str, int]
    text: str
    records: list[Record]
    folder: Path


def run_ogb(
    data: str,
    *,
    method: str | None = None,
    teacher: str | None = None,
    runs: int = RUNS,
    setting: str = "transductive",
    budget: str | None = None,
    hops: int | None = None,
    overrides: Iterable[str] = (),
    folder: str | Path | None = None,
    workers: int = 1,
    root: str | Path | None = None,
    cache: str | Path | None = None,
    progress: bool = False,
) -> OgbRun:
    """Train on a data set of OGB with several seeds, score by OGB's Evaluator, and write what its leaderboard asks for.

    Killed, the same call goes on where it was.

    Args:
        data: ``"ogbn-arxiv"``, ``"ogbn-products"`` or a set of molecules, ``"ogbg-molhiv"`` …; nothing is fetched.
        method: of nodes, a method of distillation, default ``"glnn"``; of graphs, what the network is trained on:
            ``"full"`` (default: all graphs), ``"lossless"``, or a method of condensation, ``"scored"`` ….
        teacher: backbone of the teacher, default ``"sage"``; of graphs, of the network itself, default ``"gin"``.
        runs: seeds 0 … runs-1; default 10, as OGB asks.
        setting: ``"transductive"`` (default), or of nodes ``"inductive"``.
        budget: of methods of condensation, as in :func:`g2m.condense.condense`; default ``"1%"``.
        hops: of condensation, and layers of the network; default: as in :func:`g2m.condense.bench.cells`.
        overrides: ``key=value`` options, as of ``g2m train``, or of ``g2m bench-condense``.
        folder: where to keep; default ``submissions/`` and what is run.
        workers: processes; threads are divided among them. Default 1: this process.
        root: data folder, see :func:`g2m.load`.
        cache: folder of trained teachers and condensed sets.
        progress: show a bar per training; default False.

    Raises:
        G2MError: on a data set that is not there, or not one of those; on a wrong argument; and if the Evaluator does
            not give what our own metric does, which would be a defect.
    """
    card, overrides = _card(data), list(overrides)
    of_nodes = card.task == "node classification"
    method, teacher = method or ("glnn" if of_nodes else "full"), teacher or ("sage" if of_nodes else "gin")
    asked = {"setting": setting if setting != "transductive" else None}
    for name, value in ({"budget": budget, "hops": hops} if of_nodes else asked).items():
        if value is not None:
            kind = "one graph, which is not condensed" if of_nodes else "a set of graphs"
            raise G2MError(f"{name}: expected none for {data!r}, {kind} (got {value!r}). Leave it out.")
    grid: Sequence[Cell | CondenseCell]
    if of_nodes:
        names = {"methods": [method], "teachers": [teacher], "settings": [setting]}
        grid = bench.cells([data], **names, seeds=runs, overrides=overrides)
        if "split" in grid[0].experiment.data_options:
            raise G2MError("-o data.split: expected none, OGB's split is fixed. Leave it out.")
    elif distributed.size() > 1:
        raise G2MError(f"data: expected one graph where torchrun's processes train together (got {data!r}, a set).")
    else:
        choose("method", method, GRAPH_METHODS)
        if budget is not None and method not in of_sets.SETS:
            raise G2MError(
                f"budget: expected none for {method!r}, which keeps all graphs (got {budget!r}). Leave it out."
            )
        grid = of_sets.cells(
            [data],
            rows=[method],
            backbones=[teacher],
            seeds=runs,
            budget=budget or "1%",
            hops=hops,
            overrides=overrides,
        )
        if budget is not None and "min_support" in grid[0].method_options:
            raise G2MError(
                f"budget: expected none for {method!r} here, min_support decides (got {budget!r}). Leave it out."
            )
    if missing := card.missing(root):
        raise G2MError(
            f"data: {data!r} is not in {data_root(root)} (no {missing[0]}). Run `g2m data get {data}`, or set "
            "G2M_DATA_ROOT to the folder that holds it."
        )
    given = {"--method": method, "--teacher": teacher, "--runs": runs, "--setting": setting if of_nodes else None}
    given |= {"--budget": budget, "--hops": hops}
    command = ["g2m", "ogb", data, *(word for name, value in given.items() if value for word in (name, str(value)))]
    command += [word for option in overrides for word in ("-o", option)]
    name = "-".join([data, teacher, method.replace(", ", "-"), *([setting] if of_nodes else [])])
    folder = Path(folder or Path("submissions") / name)
    folders = {cell.key: folder / f"seed{cell.seed}-{cell.key}" for cell in grid}
    judged = bench.run(
        [_Judged(cell) for cell in grid],
        out=folder / "results.jsonl",
        folders=folders,
        workers=workers,
        progress=progress,
        root=root,
        cache=cache,
    )
    records = []
    for record in judged:
        if "evaluator" not in record:
            raise G2MError(
                f"folder: {str(folder / 'results.jsonl')!r} has runs that OGB's Evaluator has not scored, of another "
                "command. Take another folder (--out)."
            )
        records.append(record)
    records.sort(key=lambda record: record["seed"])
    found = _summed(records)
    text = _text(card, records, *found, shlex.join(command))
    distributed.from_first(lambda: str(write_text(folder / "submission.md", text)))
    return OgbRun(*found, text, records, folder)


def _card(data: str) -> Card:
    if data.lower() == _TOO_LARGE.lower():
        features, arcs = _NODES * _FEATURES * 4, _ARCS * 2 * 8
        raise G2MError(
            f"data: {_TOO_LARGE} is too large for g2m, which holds a graph in memory: its features take {_NODES:,} × "
            f"{_FEATURES} × 4 bytes = {features / 1e9:.0f} GB, its arcs {_ARCS:,} × 2 × 8 = {arcs / 1e9:.0f} GB, twice "
            f"that with the reversed ones, and a layer of 256 channels {_NODES * 256 * 4 / 1e9:.0f} GB"
            f"{f' (this machine has {memory / 1e9:.0f} GB)' if (memory := _memory()) else ''}. Take ogbn-products."
        )
    return find_card(choose("data", data, [name for names in DATA.values() for name in names]))


@dataclass(frozen=True)
class _Judged:
    """A cell; what it trained is read back and given to OGB's Evaluator where it was trained: with the same threads,
    to the last digit."""

    cell: Cell | CondenseCell

    @property
    def key(self) -> str:
        return self.cell.key

    @property
    def job(self) -> tuple:
        return self.cell.job

    @property
    def files(self) -> tuple[str, ...]:
        return self.cell.files

    @property
    def seed(self) -> int:
        return self.cell.seed

    def run(self, *, folder: Path, root: str | Path | None = None, **options: Any) -> Record:
        record = self.cell.run(folder=folder, root=root, **options)
        return distributed.from_first(lambda: self._judge(record, folder, root))

    def _judge(self, record: Record, folder: Path, root: str | Path | None) -> Record:
        found = {}
        evaluate = ogb.evaluator(find_card(record["data"]))
        for model, (answers, expected) in self._answers(record, folder, root).items():
            found[model] = {part: evaluate(*answer) for part, answer in answers.items()}
            _compare(model, found[model], expected, scores(answers, record["metric"]), folder)
        return record | {"evaluator": found, "hardware": hardware()}

    def _answers(
        self, record: Record, folder: Path, root: str | Path | None
    ) -> dict[str, tuple[dict[str, Answer], dict[str, float]]]:
        """Return what every model that was kept answers, and the scores on record."""
        if isinstance(self.cell, CondenseCell):
            network = GraphClassifier.load(folder / "classifier.safetensors")
            expected = {part: record["scores"][part] for part in ("val", "test")}
            return {"network": (network.answers(self.cell.graphs(root)), expected)}
        cell = self.cell.experiment
        graph = load(cell.data, seed=self.seed, setting=self.cell.setting, root=root, **cell.data_options)
        found = {}
        if cell.teacher is not None:
            teacher = Teacher.load(folder / "teacher.safetensors")
            found["teacher"] = teacher.answers(graph), record["teacher_scores"]
        student = Student.load(folder / "student.safetensors")
        return found | {"student": (student.answers(graph), record["scores"])}


def _compare(
    model: str, found: Mapping[str, float], recorded: Mapping[str, float], ours: Mapping[str, float], folder: Path
) -> None:
    """Raise :class:`G2MError` unless OGB's Evaluator says what our metric says of the same answers, and the record."""
    apart = _APART[resolve_device("auto").type]
    for expected, by, most in ((ours, "our metric", _APART["cpu"]), (recorded, "the record of the training", apart)):
        for part in expected.keys() | found.keys():
            if not abs(found.get(part, float("nan")) - expected.get(part, float("nan"))) <= most:
                raise G2MError(
                    f"evaluator: {model}, {part}: expected {expected.get(part)}, as {by} has it (got "
                    f"{found.get(part)} from OGB's Evaluator, of what is kept in {folder}). This is a defect of g2m: "
                    "please report it."
                )


# -- what the runs say -------------------------------------------------------------------------------------------------


def _summed(records: Sequence[Record]) -> tuple[dict[str, dict[str, tuple[float, float]]], dict[str, int]]:
    figures, parameters = {}, {}  # OGB counts learned tables as well: embeddings, codes
    for model in records[0]["evaluator"]:
        of_seeds = [record["evaluator"][model] for record in records]
        figures[model] = {part: mean_std([scores[part] for scores in of_seeds]) for part in of_seeds[0]}
        where = {"teacher": "teacher_run", "student": "run"}.get(model)
        sizes = [record[where] if where else record for record in records]
        parameters[model] = max(size["parameters"] + size.get("entries", 0) for size in sizes)
    return figures, parameters


def _text(
    card: Card,
    records: Sequence[Record],
    figures: Mapping[str, Mapping[str, tuple[float, float]]],
    parameters: Mapping[str, int],
    command: str,
) -> str:
    first, runs = records[0], len(records)
    names = _names(first)
    *_, answering = figures
    metric = {"accuracy": "accuracy", "rocauc": "ROC-AUC"}[first["metric"]]
    seeds = "seed 0" if runs == 1 else f"{runs} runs, seeds 0 to {runs - 1}"
    in_all = f"{sum(parameters.values()):,}"
    if len(parameters) > 1:
        in_all += f" ({' + '.join(f'{model} {count:,}' for model, count in parameters.items())})"
    form = {
        "OGB version": version("ogb"),
        "Method": names[answering],
        "External data": "no",
        "Dataset": card.name,
        "Test performance": _plus_minus(figures[answering]["test"], runs),
        "Validation performance": _plus_minus(figures[answering]["val"], runs),
        "Contact": _BLANK,
        "Code": _BLANK,
        "Paper": _BLANK,
        "#Params": in_all,
        "Hardware": "; ".join(dict.fromkeys(record["hardware"] for record in records)),
    }
    notes = [
        f"{metric} by OGB's Evaluator, {seeds}"
        + (": mean ± sample standard deviation (ddof 1)." if runs > 1 else ", no deviation."),
        "Epochs are chosen on validation.",
    ]
    if len(parameters) > 1:
        notes.append("OGB counts the parameters of all stages of training; answers take the student's alone.")
    if first.get("row") in of_sets.SETS:
        size, share = (fmean([record["bytes"] / of for record in records]) for of in (1, first["bytes_full"]))
        notes.append(f"Trained on {size:,.0f} bytes, {share:.2%} of the training graphs' {first['bytes_full']:,}.")
    if runs < RUNS:
        notes.append(f"OGB asks for {RUNS} runs.")
    if first.get("setting") == "inductive":
        notes.append(
            "Inductive: a fifth of the test nodes, and their edges, are out of training's sight (unseen); cold: and "
            "nothing is known of their edges. The leaderboard's own setting is transductive."
        )
    if card.task == "graph classification":
        notes.append(
            "Where the files are rebuilt from SMILES, not OGB's own, these are not the leaderboard's numbers: say so."
        )
    parts = list(figures[answering])
    rows = [
        [names[model], f"{parameters[model]:,}", *(_plus_minus(figures[model][part], runs) for part in parts)]
        for model in figures
    ]
    lines = [f"# {card.name}: {names[answering]}", "", *(f"- {field}: {value}" for field, value in form.items()), ""]
    table = markdown_table(["model", "parameters", *parts], rows)
    return (
        "\n".join([*lines, table, "\n".join(notes), "", f"Made with g2m {version('g2m')} by", "", f"    {command}"])
        + "\n"
    )


def _names(record: Record) -> dict[str, str]:
    """Return what every model of a record is called."""
    if "row" in record:
        trained_on = {"full": "all graphs", "lossless": "all graphs, equal trees once"}
        chosen = trained_on.get(record["row"], f"a condensed set ({record['row']})")
        return {"network": f"{record['backbone'].upper()} on {chosen}"}
    tokenizer = record["config"]["teacher_options"].get("tokenizer")
    row = {"teacher": record["teacher"], "tokenizer": tokenizer, "method": record["method"]}
    return {"teacher": model_name(row | {"method": "teacher"}), "student": model_name(row)}


def _plus_minus(figure: tuple[float, float], runs: int) -> str:
    mean, std = figure
    return f"{mean:.4f} ± {std:.4f}" if runs > 1 else f"{mean:.4f}"


def hardware() -> str:
    """Return what this machine computes with, in a line: GPU if there is one, processor, cores, memory, torch."""
    found = []
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found.append(f"{gpu.name} ({gpu.total_memory / 1e9:.0f} GB)")
    found.append(f"{_processor()}, {os.cpu_count()} cores")
    if memory := _memory():
        found.append(f"{memory / 1e9:.0f} GB of memory")
    return ", ".join([*found, f"torch {torch.__version__}"])


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    """Return the bytes of memory, if the system tells."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
