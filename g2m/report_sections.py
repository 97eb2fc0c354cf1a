"""Comparisons of models as tables, notes and plots of a report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from g2m.comparisons import COMPARED, REFERENCE, TEACHER, Comparisons, Cost, Difference, Overall, Ranks, Speed
from g2m.report import Section, log_ticks

INK = "#1f2428"  # of axes and words in a plot; a page may put its own colour in the place of it


def comparison_sections(compared: Comparisons) -> list[Section]:
    """Return differences, ranks, latency and cost as tables, with what they mean; none where nothing was trained."""
    if not compared.costs:
        return []
    return [
        *_difference_sections(compared.against, compared.differences),
        *_overall_sections(compared.against, compared.overall),
        _rank_section(compared.ranks),
        _speed_section(compared.speeds, compared.differences),
        _cost_section(compared.costs, compared.total),
    ]


def comparison_figures(compared: Comparisons) -> dict[str, Any]:
    """Return the plots of :func:`comparison_sections` as matplotlib figures, by name."""
    figures = {"ranks": rank_plot(compared.ranks)} if compared.ranks else {}
    return figures | ({"latency": speed_plot(compared.speeds)} if compared.speeds else {})


def _difference_sections(against: str | None, gains: Sequence[Difference]) -> list[Section]:
    others, found = [*([against] if against else []), TEACHER], []
    for case in COMPARED:
        of_rows: dict[tuple, dict[str, Difference]] = {}
        for each in gains:
            if (each.setting, each.part) == case:
                of_rows.setdefault((each.data, each.teacher, each.model), {})[each.against] = each
        table = []
        for data, teacher, model in sorted(of_rows, key=lambda row: (row[0], row[1] or "")):
            of = of_rows[data, teacher, model]
            shown, most = [], max(d.seeds for d in of.values())
            for each in map(of.get, others):
                shown += [_gain(each) + (_few(each.seeds, most) if each else ""), _p(each)]
            table.append([data, (teacher or "–").upper(), model, str(most), *shown])
        if table:
            header = ["data", "teacher", "model", "seeds", *_over(others, "p")]
            found.append(Section(f"Differences: {', '.join(case)}", header, table))
    note = (
        "Mean difference in points over the seeds both have, ± its standard error. `*`: chance alone would rarely give "
        "such a difference (two-sided paired t-test over seeds, below 5 % after Holm's correction for all rows of the "
        "column; `p` is the corrected value, – below three seeds). Seeds draw splits of one graph, which overlap: p is "
        "somewhat too small. "
    )
    if against is None:
        note += f"No student of {REFERENCE} is here; `--against` names another method to compare with."
    else:
        note += f"Of several students of {against}, the one of the same teacher counts, else the one as shipped."
    return [*found[:-1], replace(found[-1], notes=[note])] if found else []


def _overall_sections(against: str | None, totals: Sequence[Overall]) -> list[Section]:
    others, found = [*([against] if against else []), TEACHER], []
    for case in COMPARED:
        of_rows: dict[str, dict[str, Overall]] = {}
        for each in totals:
            if (each.setting, each.part) == case:
                of_rows.setdefault(each.model, {})[each.against] = each
        table = []
        for model, of in of_rows.items():
            shown, most = [], max(total.pairs for total in of.values())
            for total in map(of.get, others):
                counts = f"{total.better} / {total.same} / {total.worse}" if total else "–"
                shown += [_gain(total) + (_few(total.pairs, most) if total else ""), counts, _p(total)]
            table.append([model, str(most), *shown])
        if table:
            header = ["model", "pairs", *_over(others, "+ / = / −", "p")]
            found.append(Section(f"Over all data sets: {', '.join(case)}", header, table))
    note = (
        "Means over pairs of a data set and a teacher's backbone, of two models without a teacher over data sets. "
        "`+ / = / −`: of the pairs with three seeds, those with a significant gain, neither, a significant loss. `*` "
        "and `p`: Wilcoxon's signed-rank test over the means of pairs, from six pairs, after Holm's correction for the "
        "column; pairs of one data set are not independent."
    )
    return [*found[:-1], replace(found[-1], notes=[note])] if found else []


def _over(others: Iterable[str], *after: str) -> list[str]:
    return [word for other in others for word in (f"over {'its teacher' if other == TEACHER else other}", *after)]


def _few(count: int, most: int) -> str:
    return f" (of {count})" if count < most else ""


def _gain(each: Difference | Overall | None) -> str:
    if each is None:
        return "–"
    error = getattr(each, "error", None)
    return f"{each.mean:+.2f}" + (f" ± {error:.2f}" if error is not None else "") + " *" * each.significant


def _p(each: Difference | Overall | None) -> str:
    return _probability(None if each is None else each.p_holm)


def _probability(p: float | None) -> str:
    return "–" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _rank_section(ranked: Sequence[Ranks]) -> Section:
    title = "Mean ranks"
    if not ranked:
        return Section(title, (), (), ["No ranks: they need two models that share two pairs of data set and teacher."])
    models = dict.fromkeys(model for each in ranked for model in each.mean)
    table = [[m, *(f"{each.mean[m]:.2f}" if m in each.mean else "–" for each in ranked)] for m in models]
    notes = [
        "1 is the best. Students are ranked in every pair of a data set and a teacher's backbone, by their means over "
        "the seeds all have. In the plot, models differ whose bars do not overlap; blue: not different from the best."
    ]
    for each in ranked:
        note = (
            f"{each.setting.capitalize()}, {each.part}: {each.pairs} pairs. Models differ that are further apart than "
        )
        note += f"{each.critical:.2f} (Nemenyi's test, 5 %)."
        if each.p is not None:
            note += f" Friedman's test that all are alike: p {_probability(each.p)}."
        if each.missing:
            note += f" Left out, as more than half of the pairs lack them: {', '.join(each.missing)}."
        notes.append(note)
    return Section(title, ["model", *(f"{each.setting}, {each.part}" for each in ranked)], table, notes, "ranks")


def _speed_section(fast: Sequence[Speed], gains: Sequence[Difference]) -> Section:
    title = "Quality against latency"
    if not fast:
        why = "No plot: no teacher and its students have `ms` in their records; older versions did not measure it."
        return Section(title, (), (), [why])
    header = ["setting", "part", "model", "pairs", "ms", "faster", "over teacher"]
    table = [
        [
            s.setting,
            s.part,
            s.model,
            f"{s.pairs} of {s.of}",
            f"{s.ms:.4f}",
            f"{s.faster:.1f}×",
            f"{s.over_teacher:+.2f}",
        ]
        for s in fast
    ]
    note = (
        "`ms`: for the answer on one node, median of repeated calls, then the geometric mean over seeds and pairs; a "
        "teacher fetches the node's neighbourhood, a student is given its features. `faster`: times, than the teacher. "
        "`over teacher`: points, mean over pairs. The times were taken while other trainings ran: only ratios count."
    )
    known, left = {(s.setting, s.part, s.model) for s in fast}, []
    for case in dict.fromkeys((s.setting, s.part) for s in fast):
        if missing := sorted({d.model for d in gains if (d.setting, d.part) == case and (*case, d.model) not in known}):
            left.append(f"{case[0].capitalize()}, {case[1]}: left out, without a time in them, {', '.join(missing)}.")
    return Section(title, header, table, [note, *left], "latency")


def _cost_section(spent: Sequence[Cost], total: Mapping[str, tuple[int, float]]) -> Section:
    header = ["data", "teacher", "model", "trainings", "s", "epochs", "teacher's s", "teacher's epochs"]
    table = []
    for c in spent:
        numbers = [c.seconds, c.epochs, c.teacher_seconds, c.teacher_epochs]
        shown = ["–" if n is None else f"{n:.{digits}f}" for n, digits in zip(numbers, (1, 0, 1, 0), strict=True)]
        table.append([c.data, (c.teacher or "–").upper(), c.model, str(c.trainings), *shown])
    parts = [f"{count:,} {who}, {_duration(seconds)}" for who, (count, seconds) in total.items() if count]
    note = (
        "Means over settings and seeds. In all: "
        f"{'; '.join(parts)}; together {_duration(sum(seconds for _, seconds in total.values()))}. A teacher that "
        "several students share is counted once; a student that a search took over, and a network with codes beside "
        "it, in either row. Processes side by side take less by the clock."
    )
    return Section("Cost of training", header, table, [note])


def _duration(seconds: float) -> str:
    unit, name = (3600, "h") if seconds >= 3600 else (60, "min") if seconds >= 60 else (1, "s")
    return f"{seconds / unit:.1f} {name}"


# -- plots -----------------------------------------------------------------------------------------------------


def rank_plot(ranked: Sequence[Ranks]) -> Any:
    """Return a figure of mean ranks, a panel per setting and part: two models differ whose bars do not overlap."""
    from matplotlib.figure import Figure  # no pyplot: no window system is asked for

    height = 1.6 + 0.3 * max(len(each.mean) for each in ranked)
    figure = Figure(figsize=(4.4 * len(ranked), height), layout="constrained")
    for panel, each in zip(figure.subplots(1, len(ranked), squeeze=False)[0], ranked, strict=True):
        best, half = min(each.mean.values()), each.critical / 2
        for place, (_, rank) in enumerate(each.mean.items()):
            alike = rank - best <= each.critical
            panel.plot([rank - half, rank + half], [place] * 2, color="C0" if alike else "C7", linewidth=5, alpha=0.35)
            panel.plot([rank], [place], "o", color="C0" if alike else "C7")
        panel.errorbar(best, -1.1, xerr=[[0], [each.critical]], color=INK, capsize=3)
        panel.text(best, -1.3, f"critical difference {each.critical:.2f}", color=INK, fontsize=8, va="bottom")
        panel.set_yticks(range(len(each.mean)), list(each.mean))
        panel.set_ylim(len(each.mean) - 0.5, -2.1)
        friedman = "" if each.p is None else f", Friedman p {_probability(each.p)}"
        panel.set_title(f"{each.setting}, {each.part}: {each.pairs} pairs{friedman}")
        panel.set_xlabel("mean rank (left is better)")
        _style(panel)
    return figure


def speed_plot(fast: Sequence[Speed]) -> Any:
    """Return a figure of points above the teacher against milliseconds for one node, a panel per setting."""
    from matplotlib.figure import Figure  # no pyplot: no window system is asked for

    models = [speed.model for speed in sorted(fast, key=lambda speed: -speed.over_teacher)]
    looks = {model: (f"C{i % 10}", "osD^vPX<>p"[i // 10 % 10]) for i, model in enumerate(dict.fromkeys(models))}
    settings = list(dict.fromkeys(speed.setting for speed in fast))
    figure = Figure(figsize=(4.4 * len(settings) + 1.8, 3.8), layout="constrained")
    panels = figure.subplots(1, len(settings), squeeze=False)[0]
    handles: dict[str, Any] = {}
    for panel, setting in zip(panels, settings, strict=True):
        of_panel = [speed for speed in fast if speed.setting == setting]
        for speed in of_panel:
            color, marker = looks[speed.model]
            handles[speed.model] = panel.plot([speed.ms], [speed.over_teacher], marker, color=color)[0]
        panel.axhline(0, color=INK, linewidth=0.8)
        panel.set_title(f"{setting}, {of_panel[0].part}")
        panel.set_xscale("log")
        panel.set_xlabel("milliseconds for one node (left is faster)")
        panel.margins(x=0.25, y=0.12)
        _style(panel)
    panels[0].set_ylabel("points above the teacher")
    legend = {model: handles[model] for model in looks}
    figure.legend(legend.values(), legend.keys(), loc="outside right upper", frameon=False, fontsize=8, labelcolor=INK)
    return figure


def _style(panel: Any) -> None:
    if panel.get_xscale() == "log":
        log_ticks(panel)
    panel.tick_params(colors=INK, labelsize=8)
    panel.grid(alpha=0.3)
    for spine in panel.spines.values():
        spine.set_color(INK)
    for text in (panel.title, panel.xaxis.label, panel.yaxis.label):
        text.set(color=INK, fontsize=9)
