"""Results files into tables and plots."""

from __future__ import annotations

import json
import logging
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

from g2m.errors import G2MError
from g2m.experiments import Experiment, find, nearest
from g2m.methods import REGISTRY
from g2m.storage import write_bytes
from g2m.tokenizer import tokenizer_options

log = logging.getLogger(__name__)
Record = Mapping[str, Any]
COMMON = "common"  # options of :func:`g2m.experiments.alike`, where a method's published ones are there as well
PLOTS = (".png", ".svg", ".pdf")
PARTS = {"transductive": ("test",), "inductive": ("test", "seen", "unseen", "cold")}


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation (ddof 1; 0 for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def percent(values: Sequence[float]) -> str:
    """Return ``"80.64 ± 1.57"`` from scores in [0, 1]; of a single one, which deviates from nothing, ``"80.64"``."""
    mean, std = mean_std([100 * value for value in values])
    return f"{mean:.2f} ± {std:.2f}" if len(values) > 1 else f"{mean:.2f}"


def summary(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Return one row per data set, setting, teacher, method and options, teachers included, over seeds.

    A row has ``data``, ``setting``, ``teacher``, ``method`` (``"teacher"`` for the teacher itself), ``tokenizer``
    (where the teacher's is, if it has one), ``options`` (others that differ from the shipped experiment, or from that
    of :func:`g2m.experiments.alike` where it is nearer; this one is called ``common`` where rows of a method would
    else read the same), ``seeds``, ``scores`` (part → list over the seeds that have it), ``published`` (part → [mean,
    std] in percent; none where a hyper-parameter of the method was changed, or of a teacher its network), ``run`` (size
    of the model) and ``seconds`` (mean training time).
    """
    rows = []
    for row in grouped(records):
        of_seeds, runs = row["by_seed"].values(), row["runs"].values()
        parts = dict.fromkeys(part for scores in of_seeds for part in scores)
        kept = ("data", "setting", "teacher", "method", "tokenizer", "options", "published", "run")
        rows.append({name: row[name] for name in kept} | {"seeds": len(of_seeds)})
        rows[-1]["scores"] = {part: [scores[part] for scores in of_seeds if part in scores] for part in parts}
        rows[-1]["seconds"] = statistics.fmean(run["seconds"] for run in runs)
    return rows


def grouped(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Return the rows of :func:`summary` with what each seed gave, to compare rows with each other.

    In place of ``seeds``, ``scores`` and ``seconds`` a row has ``by_seed`` (seed → part → score), ``runs`` (seed →
    ``run``), ``teacher_by_seed`` (the same scores of the student's own teacher, if it has one), ``of_data`` and
    ``of_teacher`` (options, to tell which rows share them), and ``name``: the method, with codes and options where a
    teacher has several students of that method.
    """
    rows: dict[tuple, dict[str, Any]] = {}
    nearest_to: dict[tuple, tuple[Experiment, Mapping[str, Any]]] = {}  # and the configuration

    def add(record: Record, who: str, groups: Sequence[str], scores: Any, run: Any) -> None:
        experiment = nearest(record["config"])
        method = "teacher" if who == "teacher" else record["method"]
        used = json.dumps([record["config"][f"{group}_options"] for group in groups], sort_keys=True)
        key = (record["data"], record["setting"], record["teacher"], method, used)
        if key not in rows:
            rows[key] = dict(zip(("data", "setting", "teacher", "method"), key, strict=False))
            nearest_to[key] = experiment, record["config"]
            rows[key]["tokenizer"] = record["config"]["teacher_options"].get("tokenizer")
            rows[key]["options"] = _changed(experiment.config(), record["config"], groups)
            rows[key]["published"] = experiment.paper.get(record["setting"], {}).get(who, {})
            own = REGISTRY[method].options() if who == "student" and method in REGISTRY else ()
            of_method = [("student", name) for name in own]
            of_method += [("teacher", name) for name in ("members", "tokenizer", *tokenizer_options())]
            if who == "teacher":
                of_method += [("teacher", "num_layers"), ("teacher", "hidden_channels")]
            of_paper = find(experiment.data, experiment.method, experiment.teacher).config()
            of_data = of_paper["data_options"].keys() | record["config"]["data_options"].keys()
            of_method += [("data", name) for name in of_data - {"download"}]
            if any(_differ(of_paper, record["config"], *option) for option in of_method):
                rows[key]["published"] = {}  # another method, size of teacher or split than the published one
            of = {f"of_{group}": json.dumps(record["config"][f"{group}_options"], sort_keys=True) for group in groups}
            rows[key] |= {"run": run, "by_seed": {}, "runs": {}, "teacher_by_seed": {}, **of}
        known, before = _known(scores), rows[key]["by_seed"].get(record["seed"], {})
        if any(known[part] != before[part] for part in known.keys() & before.keys()):
            log.warning(
                "%s: seed %s of %s twice, with other scores, perhaps by another version: %s counts",
                *(record["data"], record["seed"], method if who == "student" else f"teacher {record['teacher']}"),
                "the later in the files" if who == "student" else f"the later of those beside {record['method']}",
            )
            before = {}
        rows[key]["by_seed"][record["seed"]] = before | known  # older records lack some parts
        rows[key]["runs"][record["seed"]] = run
        if who == "student" and "teacher_scores" in record:
            rows[key]["teacher_by_seed"][record["seed"]] = _known(record["teacher_scores"])

    def who_says_most(record: Record) -> tuple[bool, str]:  # of a teacher that several methods' experiments have
        return "teacher" not in nearest(record["config"]).paper.get(record["setting"], {}), record["method"]

    for record in sorted(records, key=who_says_most):
        if "teacher_scores" in record:
            add(record, "teacher", ("data", "teacher"), record["teacher_scores"], record["teacher_run"])
        add(record, "student", ("data", "teacher", "student"), record["scores"], record["run"])
    shown = Counter(map(_shown, rows.values()))
    same = [row for row in rows.values() if shown[_shown(row)] > 1]
    methods = {row["method"] for row in same} - {"teacher"}
    blocks = {_block(row) for row in same if row["method"] == "teacher"}
    for key, row in rows.items():
        experiment, config = nearest_to[key]
        if row["method"] in methods and experiment != find(experiment.data, experiment.method, experiment.teacher):
            row["options"] = f"{COMMON} {row['options']}".strip()
        elif row["method"] == "teacher" and _block(row) in blocks:  # as different methods' experiments have them
            plain = find(row["data"], "glnn", row["teacher"])
            row["options"] = _changed(plain.config(), config, ("data", "teacher"))
    students_of = Counter((*_block(row), row["method"]) for row in rows.values())
    several = methods | {method for (*_, method), count in students_of.items() if count > 1}
    for row in rows.values():
        row["by_seed"] = dict(sorted(row["by_seed"].items()))
        more = [f"+ codes {row['tokenizer']}" if row["tokenizer"] else "", row["options"]]
        row["name"] = " ".join(filter(None, [row["method"], *(more if row["method"] in several else ())]))
    return sorted(rows.values(), key=_order)


def _known(scores: Mapping[str, float | None]) -> dict[str, float]:
    """Leave out what could not be scored: ``None``, or NaN."""
    return {part: score for part, score in scores.items() if score is not None and score == score}


def _block(row: Mapping[str, Any]) -> tuple[str, str, str, str | None]:
    """Rows of one block are compared with each other: same data and setting, teachers of one backbone."""
    return row["data"], row["of_data"], row["setting"], row["teacher"]


def _shown(row: Mapping[str, Any]) -> tuple[str | None, ...]:
    """What tells a row from others where tables show it."""
    return tuple(row[name] for name in ("data", "setting", "teacher", "method", "tokenizer", "options"))


def _differ(shipped: Mapping[str, Any], used: Mapping[str, Any], group: str, name: str) -> bool:
    before, now = (config[f"{group}_options"] for config in (shipped, used))
    return before.get(name) != now.get(name)


def _order(row: Mapping[str, Any]) -> tuple:
    """By data and setting; each teacher before its students, what has no teacher last."""
    whose = (row["teacher"] is None, row["teacher"] or "", row["method"] != "teacher", row["method"])
    whose += (row["tokenizer"] or "", row["options"])
    return (row["data"], list(PARTS).index(row["setting"]), *whose)


def _changed(shipped: Mapping[str, Any], used: Mapping[str, Any], groups: Iterable[str]) -> str:
    """Return the options of a run that are not those of the shipped experiment, as ``key=value`` words."""
    words = []
    for group in groups:
        before, now = shipped[f"{group}_options"], used[f"{group}_options"]
        prefix = "" if group == "student" else f"{group}."
        words += [
            f"{prefix}{key}={now.get(key, 'default')}"
            for key in sorted(before | now)
            if _differ(shipped, used, group, key) and (group, key) != ("teacher", "tokenizer")
        ]
    return " ".join(words)


def score_rows(
    rows: Iterable[Mapping[str, Any]], setting: str, *, seconds: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Return header and cells of one setting's table: measured scores, each with the published one beside it.

    ``seconds`` adds the mean training time: of this machine, at that moment.
    """
    rows = [row for row in rows if row["setting"] == setting]
    parts = [part for part in PARTS[setting] if any(part in row["scores"] for row in rows)]
    with_options = any(row["options"] for row in rows)
    header = ["data", "model", *(["options"] if with_options else []), "size", "seeds"]
    header += [name for part in parts for name in (part, "published")]
    header += ["train s"] if seconds else []
    table = []
    for row in rows:
        size = f"{row['run']['layers']}×{row['run']['width']}, {thousands(row['run']['parameters'])}"
        cells = []
        for part in parts:
            published = row["published"].get(part)
            shown = " ± ".join(f"{value:.2f}" for value in published) if published else "–"
            values = row["scores"].get(part, [])
            of = f" (of {len(values)})" if 0 < len(values) < row["seeds"] else ""  # older cells lack some parts
            cells += [percent(values) + of if values else "–", shown]
        options = [row["options"]] if with_options else []
        time = [f"{row['seconds']:.1f}"] if seconds else []
        table.append([row["data"], model_name(row), *options, size, str(row["seeds"]), *cells, *time])
    return header, table


def model_name(row: Mapping[str, Any]) -> str:
    """Return ``"SAGE"`` for a teacher, ``"glnn ← SAGE"`` for a student, ``"mlp"`` for one without a teacher."""
    teacher = (row["teacher"] or "").upper() + (f" + codes {row['tokenizer']}" if row["tokenizer"] else "")
    return teacher if row["method"] == "teacher" else f"{row['method']} ← {teacher}" if teacher else row["method"]


def thousands(count: int) -> str:
    """Return ``"184k"`` or ``"1.1M"``."""
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.0f}k" if count >= 1e3 else str(count)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


@dataclass(frozen=True)
class Section:
    """One table of a report under a title, with paragraphs after it and, by its name, a plot before it."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    plot: str = ""


def sections(records: Iterable[Record]) -> list[Section]:
    """Return the tables of a results file: scores by setting, then every other table in it.

    Args:
        records: of a results file. Those with a ``table`` key are rows of the table of that name; a column ``x_std`` is
            shown with ``x``.
    """
    records = list(records)
    scored = of_trainings(records)
    rows, found = summary(scored), []
    for setting in PARTS:
        if any(row["setting"] == setting for row in rows):
            found.append(Section(setting.capitalize(), *score_rows(rows, setting)))
    if scored:
        made_by = [", ".join(f"{k} {v}" for k, v in r["config"]["versions"].items()) for r in scored]
        sources = {paper["source"] for r in scored if (paper := nearest(r["config"]).paper)}
        note = (
            "Percent (accuracy, or ROC-AUC where the card says so), mean ± standard deviation (ddof 1) over seeds; a "
            "seed draws the split, the unseen nodes and the initial weights. Epochs are chosen on validation. `size`: "
            "layers × width, parameters. `model ← TEACHER` is a student. "
            f"{'; '.join(dict.fromkeys(made_by))}."
        )
        if any(COMMON in row["options"].split() for row in rows):
            note += f" `{COMMON}`: with the teacher and the student that every method has on the data set (`--all`)."
        found[-1] = replace(found[-1], notes=[note, *(f"Published: {source}." for source in sorted(sources))])
    if of_sets := [record for record in records if "row" in record]:
        from g2m.condense.bench import NOTE, tables  # it needs what this module needs

        found += [Section(*table) for table in tables(of_sets)]
        found[-1] = replace(found[-1], notes=[NOTE.strip()])
    for name in dict.fromkeys(record["table"] for record in records if "table" in record):
        table = [_with_std(record) for record in records if record.get("table") == name]
        header = list(dict.fromkeys(key for row in table for key in row))
        found.append(Section(name, header, [[row.get(key, "–") for key in header] for row in table]))
    return found


def of_trainings(records: Iterable[Record]) -> list[Record]:
    """Return the records of teachers and students, without those of condensed sets and of other tables."""
    return [record for record in records if "table" not in record and "row" not in record]


def markdown(records: Iterable[Record], *, level: int = 2) -> str:
    """Return the tables of a results file, see :func:`sections`, as Markdown.

    Args:
        records: of a results file.
        level: of the headings; default 2.
    """
    return markdown_sections(sections(records), level=level)


def markdown_sections(found: Iterable[Section], *, level: int = 2, plots: bool = False) -> str:
    """Return sections as Markdown, with headings of that level; ``plots`` refers to their plots, ``NAME.png``."""
    pieces = []
    for section in found:
        pieces.append(f"{'#' * level} {section.title}\n")
        pieces += [f"![{section.title}]({section.plot}.png)\n"] if plots and section.plot else []
        pieces += [markdown_table(section.header, section.rows)] if section.header else []
        pieces += [f"{note}\n" for note in section.notes]
    return "\n".join(pieces)


def _with_std(record: Record) -> dict[str, Any]:
    row = {key: value for key, value in record.items() if key != "table"}
    for key in [key for key in row if isinstance(row.get(f"{key}_std"), float)]:
        row[key] = f"{row[key]:.2f} ± {row.pop(f'{key}_std'):.2f}"
    return row


def insert(page: str, marker: str, text: str) -> str:
    """Return ``page`` with ``text`` in place of what stands between the line ``<!-- marker -->`` and ``<!-- end -->``.

    Raises:
        G2MError: if the page lacks either line, or another such block begins in between.
    """
    begin, end = f"<!-- {marker} -->\n", "<!-- end -->"
    head, found, rest = page.partition(begin)
    old, ended, tail = rest.partition(end)
    if not found or not ended or "<!-- g2m report " in old:
        raise G2MError(
            f"--into: the page lacks the lines {begin.strip()!r} and, below it, {end!r}. Put them where the tables go."
        )
    return f"{head}{begin}\n{text}\n{end}{tail}"


def quality_against_speed(rows: Sequence[Mapping[str, Any]], path: str | Path, *, title: str) -> Path:
    """Plot accuracy against milliseconds per node and save it, as its name ends: PNG, SVG or PDF.

    Args:
        rows: each with ``model``, ``setting`` (panel), ``accuracy`` and ``std`` in percent, ``ms``.
        path: where to write.
        title: of the figure.
    """
    from matplotlib.figure import Figure  # no pyplot: no window system is asked for

    settings = list(dict.fromkeys(row["setting"] for row in rows))
    figure = Figure(figsize=(4.6 * len(settings), 3.8), layout="constrained")
    figure.suptitle(title)
    panels = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
    for panel, setting in zip(panels, settings, strict=True):
        for index, row in enumerate(r for r in rows if r["setting"] == setting):
            color = f"C{index}"
            panel.errorbar(row["ms"], row["accuracy"], yerr=row["std"], fmt="o", color=color, capsize=3)
            panel.annotate(
                row["model"], (row["ms"], row["accuracy"]), xytext=(7, 5), textcoords="offset points", color=color
            )
        panel.set(title=setting, xlabel="milliseconds for one node (left is faster)", xscale="log")
        log_ticks(panel)
        panel.margins(x=0.35, y=0.15)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy, %")
    return save_figure(figure, path)


def log_ticks(panel: Any) -> None:
    """Mark a logarithmic axis of x at 1, 2, 5 and their multiples by ten, as plain numbers."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    panel.xaxis.set_minor_formatter(NullFormatter())


def time_against_size(rows: Sequence[Mapping[str, Any]], path: str | Path, *, title: str) -> Path:
    """Plot milliseconds against the number of nodes asked about, medians with a bar up to p99, and save it.

    Args:
        rows: as of :func:`g2m.latency.compare`.
        path: where to write; ends in ``.png``, ``.svg``, ``.pdf``.
        title: of the figure.
    """
    from matplotlib.figure import Figure  # no pyplot: no window system is asked for

    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    panel = figure.subplots()
    lines: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        lines.setdefault((row["model"], row["device"]), []).append(row)
    several = len({device for _, device in lines}) > 1
    for (model, device), line in lines.items():
        nodes, p50, p99 = ([row[key] for row in line] for key in ("nodes", "p50", "p99"))
        above = [high - middle for high, middle in zip(p99, p50, strict=True)]
        label = f"{model}, {device}" if several else model
        panel.errorbar(nodes, p50, yerr=[[0] * len(line), above], fmt="o-", capsize=3, label=label)
    panel.set(title=title, xlabel="nodes asked about at once", ylabel="milliseconds: p50, bar up to p99")
    panel.set(xscale="log", yscale="log")
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    return save_figure(figure, path)


def curves(
    panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], path: str | Path, *, title: str, xlabel: str
) -> Path:
    """Plot lines with the spread over seeds, a panel each, and save them: PNG, SVG or PDF.

    Args:
        panels: by title of the panel, by name of the line: a sequence of values per seed, all of one length.
        path: where to write.
        title: of the figure.
        xlabel: of every panel; values are counted from 1.
    """
    from matplotlib.figure import Figure  # no pyplot: no window system is asked for

    figure = Figure(figsize=(4.2 * len(panels), 3.8), layout="constrained")
    figure.suptitle(title)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, (name, lines) in zip(axes, panels.items(), strict=True):
        for index, (label, seeds) in enumerate(lines.items()):
            mean, std = zip(*(mean_std(values) for values in zip(*seeds, strict=True)), strict=True)
            x = range(1, len(mean) + 1)
            panel.plot(x, mean, color=f"C{index}", label=label)
            low, high = ([m + sign * s for m, s in zip(mean, std, strict=True)] for sign in (-1, 1))
            panel.fill_between(x, low, high, color=f"C{index}", alpha=0.2, linewidth=0)
        panel.set(title=name, xlabel=xlabel)
        panel.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    columns = min(len(labels), 2 * len(panels))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    return save_figure(figure, path)


def check_plot(argument: str, path: str | Path) -> Path:
    """Return the path of a plot; :class:`G2MError` if it ends in none of :data:`PLOTS`."""
    if Path(path).suffix.lower() not in PLOTS:
        raise G2MError(f"{argument}: expected a name that ends in {', '.join(PLOTS)} (got {str(path)!r}).")
    return Path(path)


def save_figure(figure: Any, path: str | Path) -> Path:
    """Write a figure to a temporary name and rename it."""
    path, drawn = check_plot("path", path), BytesIO()
    figure.savefig(drawn, dpi=120, format=path.suffix[1:].lower())
    return write_bytes(path, drawn.getvalue())
