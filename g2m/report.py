"""Results files into tables and plots."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from g2m.errors import G2MError
from g2m.experiments import find
from g2m.methods import REGISTRY

Record = Mapping[str, Any]
PARTS = {"transductive": ("test",), "inductive": ("test", "seen", "unseen")}


def mean_std(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the sample standard deviation (ddof 1; 0 for a single value)."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def percent(values: Sequence[float]) -> str:
    """Return ``"80.64 ± 1.57"`` from scores in [0, 1]."""
    mean, std = mean_std([100 * value for value in values])
    return f"{mean:.2f} ± {std:.2f}"


def summary(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Return one row per data set, setting, teacher, method and options, teachers included, over seeds.

    A row has ``data``, ``setting``, ``teacher``, ``method`` (``"teacher"`` for the teacher itself), ``tokenizer``
    (where the teacher's is, if it has one), ``options`` (others that differ from the shipped experiment), ``seeds``,
    ``scores`` (part → list over seeds), ``published`` (part → [mean, std] in percent; none where a hyper-parameter of
    the method was changed), ``run`` (size of the model) and ``seconds`` (mean training time).
    """
    rows: dict[tuple, dict[str, Any]] = {}

    def add(record: Record, who: str, groups: Sequence[str], scores: Any, run: Any) -> None:
        experiment = find(record["data"], record["method"], record["teacher"])
        method = "teacher" if who == "teacher" else record["method"]
        used = json.dumps([record["config"][f"{group}_options"] for group in groups], sort_keys=True)
        key = (record["data"], record["setting"], record["teacher"], method, used)
        if key not in rows:
            rows[key] = dict(zip(("data", "setting", "teacher", "method"), key, strict=False))
            rows[key]["tokenizer"] = record["config"]["teacher_options"].get("tokenizer")
            rows[key]["options"] = _changed(experiment.config(), record["config"], groups)
            rows[key]["published"] = experiment.paper.get(record["setting"], {}).get(who, {})
            own = REGISTRY[method].options() if who == "student" and method in REGISTRY else ()
            of_method = [("student", name) for name in own] + [("teacher", "tokenizer")]
            if any(_differ(experiment.config(), record["config"], *option) for option in of_method):
                rows[key]["published"] = {}  # another method than the published one
            rows[key] |= {"run": run, "by_seed": {}, "times": {}}
        rows[key]["by_seed"][record["seed"]] = scores
        rows[key]["times"][record["seed"]] = run["seconds"]

    for record in records:
        if "teacher_scores" in record:
            add(record, "teacher", ("data", "teacher"), record["teacher_scores"], record["teacher_run"])
        add(record, "student", ("data", "teacher", "student"), record["scores"], record["run"])
    for row in rows.values():
        seeds = row.pop("by_seed")
        row["seeds"] = len(seeds)
        row["scores"] = {part: [s[part] for _, s in sorted(seeds.items())] for part in next(iter(seeds.values()))}
        row["seconds"] = statistics.fmean(row.pop("times").values())
    return sorted(rows.values(), key=_order)


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
    parts = PARTS[setting]
    rows = [row for row in rows if row["setting"] == setting]
    with_options = any(row["options"] for row in rows)
    header = ["data", "model", *(["options"] if with_options else []), "size", "seeds"]
    header += [name for part in parts for name in (part, "published")]
    header += ["train s"] if seconds else []
    table = []
    for row in rows:
        teacher = (row["teacher"] or "").upper() + (f" + codes {row['tokenizer']}" if row["tokenizer"] else "")
        name = teacher if row["method"] == "teacher" else f"{row['method']} ← {teacher}" if teacher else row["method"]
        size = f"{row['run']['layers']}×{row['run']['width']}, {thousands(row['run']['parameters'])}"
        cells = []
        for part in parts:
            published = row["published"].get(part)
            shown = " ± ".join(f"{value:.2f}" for value in published) if published else "–"
            cells += [percent(row["scores"][part]), shown]
        options = [row["options"]] if with_options else []
        time = [f"{row['seconds']:.1f}"] if seconds else []
        table.append([row["data"], name, *options, size, str(row["seeds"]), *cells, *time])
    return header, table


def thousands(count: int) -> str:
    """Return ``"184k"`` or ``"1.1M"``."""
    return f"{count / 1e6:.1f}M" if count >= 1e6 else f"{count / 1e3:.0f}k" if count >= 1e3 else str(count)


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def markdown(records: Iterable[Record], *, level: int = 2) -> str:
    """Return the tables of a results file as Markdown: scores by setting, then every other table in it.

    Args:
        records: of a results file. Those with a ``table`` key are rows of the table of that name; a column ``x_std`` is
            shown with ``x``.
        level: of the headings; default 2.
    """
    records = list(records)
    scored = [record for record in records if "table" not in record and "row" not in record]
    rows, heading = summary(scored), "#" * level
    page = []
    for setting in PARTS:
        if any(row["setting"] == setting for row in rows):
            page += [f"{heading} {setting.capitalize()}\n", markdown_table(*score_rows(rows, setting))]
    if scored:
        versions = scored[-1]["config"]["versions"]
        page.append(
            "Percent (accuracy, or ROC-AUC where the card says so), mean ± standard deviation (ddof 1) over seeds; a "
            "seed draws the split, the unseen nodes and the initial weights. Epochs are chosen on validation. `size`: "
            "layers × width, parameters. `model ← TEACHER` is a student. "
            f"{', '.join(f'{k} {v}' for k, v in versions.items())}.\n"
        )
        sources = {paper["source"] for r in scored if (paper := find(r["data"], r["method"], r["teacher"]).paper)}
        page += [f"Published: {source}.\n" for source in sorted(sources)]
    if of_sets := [record for record in records if "row" in record]:
        from g2m.condense.bench import NOTE, tables  # it needs what this module needs

        page += [f"{heading} {title}\n\n{markdown_table(header, lines)}" for title, header, lines in tables(of_sets)]
        page.append(NOTE)
    for name in dict.fromkeys(record["table"] for record in records if "table" in record):
        table = [_with_std(record) for record in records if record.get("table") == name]
        header = list(dict.fromkeys(key for row in table for key in row))
        page += [
            f"{heading} {name}\n",
            markdown_table(header, [[row.get(key, "–") for key in header] for row in table]),
        ]
    return "\n".join(page)


def _with_std(record: Record) -> dict[str, Any]:
    row = {key: value for key, value in record.items() if key != "table"}
    for key in [key for key in row if f"{key}_std" in row]:
        row[key] = f"{row[key]:.2f} ± {row.pop(f'{key}_std'):.2f}"
    return row


def insert(page: str, marker: str, text: str) -> str:
    """Return ``page`` with ``text`` in place of what stands between the line ``<!-- marker -->`` and ``<!-- end -->``.

    Raises:
        G2MError: if the page lacks either line.
    """
    begin, end = f"<!-- {marker} -->\n", "<!-- end -->"
    head, found, rest = page.partition(begin)
    _, ended, tail = rest.partition(end)
    if not found or not ended:
        raise G2MError(
            f"--into: the page lacks the lines {begin.strip()!r} and, below it, {end!r}. Put them where the tables go."
        )
    return f"{head}{begin}\n{text}\n{end}{tail}"


def quality_against_speed(rows: Sequence[Mapping[str, Any]], path: str | Path, *, title: str) -> Path:
    """Plot accuracy against milliseconds per node and save it as a PNG.

    Args:
        rows: each with ``model``, ``setting`` (panel), ``accuracy`` and ``std`` in percent, ``ms``.
        path: where to write.
        title: of the figure.
    """
    from matplotlib.figure import Figure  # no pyplot: no window system is asked for
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

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
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.margins(x=0.35, y=0.15)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("test accuracy, %")
    return _save(figure, path)


def curves(
    panels: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], path: str | Path, *, title: str, xlabel: str
) -> Path:
    """Plot lines with the spread over seeds, a panel each, and save them as a PNG.

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
    return _save(figure, path)


def _save(figure: Any, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)
    return path
