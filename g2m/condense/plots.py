"""Plots of condensation: how often trees repeat, which do most, and what networks score for the bytes of a set."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from g2m.condense.bench import SETS
from g2m.condense.condensed import Trees
from g2m.condense.mirage import TreeTable
from g2m.condense.trees import ClassDAG, TreeClasses, _numpy
from g2m.errors import G2MError, check_whole
from g2m.graph_gnn import GRAPH_BACKBONES
from g2m.report import mean_std, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch_geometric.data import Data

Record = Mapping[str, Any]


def _many(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def _share(value: float) -> str:
    return f"{100 * value:.3g}%"


# -- how often trees repeat --------------------------------------------------------------------------------------------


def plot_skew(classes: TreeClasses, path: str | Path) -> Path:
    """Plot the share of the nodes that the k most frequent trees hold against k: PNG, SVG or PDF.

    A line for every number of hops from 1; a dot where trees of one node only begin.

    Args:
        classes: of the nodes of all graphs.
        path: where to write.

    Raises:
        G2MError: if there are no nodes.
    """
    return save_figure(_skew(classes), path)


def _skew(classes: TreeClasses) -> Figure:
    from matplotlib.figure import Figure  # no pyplot: no window system is asked for
    from matplotlib.ticker import PercentFormatter, StrMethodFormatter

    if not classes.num_nodes:
        raise G2MError("classes: expected those of at least one node (got none). There are no trees to count.")
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(50, color="0.6", linestyle=":", linewidth=1)
    last = classes.num_hops
    for num_hops in range(min(1, last), last + 1):
        counts = np.sort(np.bincount(_numpy(classes.levels[num_hops])))[::-1]
        held, known, alone = counts.cumsum(), len(counts), int((counts == 1).sum())
        label = f"{_many(num_hops, 'hop')}: {_many(known, 'tree')}, {_share(alone / classes.num_nodes)} of the nodes"
        # Where more hops tell nothing more apart lines are one: the deeper one is thinner, on top.
        width = 1.5 + 2 * classes.num_classes[num_hops + 1 :].count(known)
        mark = [known - alone - 1] if 0 < alone < known else []
        style = {"color": f"C{(num_hops - 1) % 10}", "linewidth": width, "marker": "o", "markevery": mark}
        axes.plot(np.arange(1, known + 1), 100 * held / classes.num_nodes, label=label, **style)
    half = int(np.searchsorted(held, classes.num_nodes / 2)) + 1
    which = "most frequent one holds" if half == 1 else f"{half:,} most frequent hold"
    axes.set_title(f"Of {_many(known, 'tree')} of {_many(last, 'hop')}, the {which} half of the nodes")
    axes.set(xlabel="k", ylabel="nodes with one of the k most frequent trees", xscale="log", ylim=(0, 103))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_formatter(PercentFormatter())
    axes.grid(alpha=0.3)
    title = "trees, and nodes whose tree no other node has (from the dot on)"
    figure.legend(loc="outside lower center", ncols=1 + (last > 3), title=title, frameon=False, fontsize=9)
    return figure


# -- the most frequent trees -------------------------------------------------------------------------------------------

_MOST = 60  # nodes of a tree drawn
_COLUMNS, _LISTED = 12, 16  # of attributes, and rows of them, that a caption lists
_LEAF, _LEVEL, _EDGE, _LINE = 0.34, 0.8, 0.2, 0.17  # inches: between leaves, levels, to the edge, a line of text
_NARROW, _WIDE = 1.7, 13.0  # inches: least width of a tree, most of a row of trees


def draw_trees(table: TreeTable, path: str | Path, *, num_trees: int = 6) -> Path:
    """Draw the most frequent trees side by side, their roots on top: PNG, SVG or PDF.

    Each is titled with the share of the nodes that have it, and of the graphs that have such a node. A tree of more
    than 60 nodes is cut to fewer hops, and says so; its shares are those of the whole tree. Where trees do not fit side
    by side they go on below.

    Args:
        table: of the training graphs.
        path: where to write.
        num_trees: how many, default 6; all where there are fewer.

    Raises:
        G2MError: if ``num_trees`` is not a whole number from 1.
    """
    return save_figure(_trees(table, num_trees), path)


def _trees(table: TreeTable, num_trees: int) -> Figure:
    counts = table.dag.counts[-1]
    chosen = np.argsort(-counts, kind="stable")[: check_whole("num_trees", num_trees)]
    support = np.bincount(table.counts.indices, minlength=len(counts)) / len(table.graphs)
    part, kept = table.dag.restrict(chosen)
    places = np.searchsorted(kept[-1], chosen)
    titles = [
        f"{_share(counts[tree] / table.classes.num_nodes)} of nodes\n{_share(support[tree])} of graphs"
        for tree in chosen
    ]
    which = "All" if len(chosen) == len(counts) else f"The {len(chosen)} most frequent of"
    known, share = _many(len(counts), "tree"), _share(counts[chosen].sum() / table.classes.num_nodes)
    heading = f"{which} {known} of {_many(table.num_hops, 'hop')}: {share} of the nodes"
    return _side_by_side(part, places, titles, table.attributes, heading)


def draw_bag(content: Trees, record: int, heading: str, max_trees: int) -> Figure:
    """Draw the trees of a bag, those that count most first."""
    start, end = content.bags.indptr[record : record + 2]
    items, times = content.bags.indices[start:end], content.bags.data[start:end]
    order = np.argsort(-times, kind="stable")[:max_trees]
    attributes = {name: getattr(content, name) for name in ("x", "edge_attr", "node_degree")}
    return _side_by_side(content.dag, items[order], [f"× {n:g}" for n in times[order]], attributes, heading)


def draw_graph(data: Data, heading: str) -> Figure:
    """Draw a graph, with the attributes of its nodes where it has some."""
    import networkx as nx
    from matplotlib.figure import Figure  # no pyplot: no window system is asked for
    from torch_geometric.utils import to_networkx

    figure, labels = Figure(layout="constrained"), None
    figure.suptitle(heading)
    axes = figure.add_subplot(frame_on=False)
    if data.x is not None:
        rows, key = data.x.unique(dim=0, return_inverse=True)
        names, caption = _names(rows, np.arange(len(rows)), "node")
        labels = {node: names[k] for node, k in enumerate(key.tolist())}
        figure.supxlabel("\n".join(textwrap.wrap(caption, 90)), fontsize=8.5, color="0.3")
    graph = to_networkx(data, to_undirected=True)
    nx.draw_networkx(
        graph,
        nx.spring_layout(graph, seed=0),
        ax=axes,
        labels=labels,
        with_labels=labels is not None,
        node_size=150,
        node_color="0.85",
        edge_color="0.6",
        font_size=8,
    )
    return figure


def _side_by_side(
    dag: ClassDAG, trees: Sequence[int], titles: Sequence[str], attributes: Mapping[str, Tensor | None], heading: str
) -> Figure:
    from matplotlib.figure import Figure  # no pyplot: no window system is asked for

    cuts = [_cut(dag, tree) for tree in trees]
    forests = [part.unroll([tree]) for part, tree in cuts]
    nodes, arcs = (np.unique(np.concatenate([getattr(f, name) for f in forests])) for name in ("key", "edge_key"))
    label, edge_label, caption = _labels(attributes, nodes, arcs)
    figure, drawn = Figure(), []
    for whole, title, forest, (part, tree) in zip(trees, titles, forests, cuts, strict=True):
        axes = figure.add_subplot(frame_on=False)
        if part.num_hops < dag.num_hops:
            title += f"\ncut to {_many(part.num_hops, 'hop')}:\n{len(forest.key)} of {dag.sizes[-1][whole]:,.0f} nodes"
        axes.set_title(title, fontsize=9)
        drawn.append((axes, *part.draw_on(axes, tree, label=label, edge_label=edge_label, number=nodes.tolist().index)))
    _arrange(figure, drawn, heading, caption)
    return figure


def _cut(dag: ClassDAG, tree: int) -> tuple[ClassDAG, int]:
    """Return a tree of the top level cut to the most hops that leave it no more than 60 nodes."""
    cut = {hops: int(dag.below([tree], hops)[0]) for hops in range(dag.num_hops + 1)}
    hops = max(hops for hops, place in cut.items() if dag.sizes[hops][place] <= _MOST)
    return dag.truncate(hops), cut[hops]


def _labels(
    attributes: Mapping[str, Tensor | None], nodes: np.ndarray, arcs: np.ndarray
) -> tuple[Callable[[int], str], Callable[[int], str] | None, str]:
    """Return the text of a node's key and of an arc's, and what they say; arcs have none where all drawn are alike."""
    rows, attr, degree = (attributes[name] for name in ("x", "edge_attr", "node_degree"))
    names, caption = _names(rows, nodes, "node")
    if degree is not None and rows.size(1) == 1 and bool((rows[:, 0] == degree).all()):
        caption = "In the circles: degree of the node."
    elif degree is not None:
        names = [f"{name}:{d}" for name, d in zip(names, degree.tolist(), strict=True)]
        caption += " After the colon: degree of the node."
    edge_label = None
    if attr is not None and len(arcs) > 1:
        of_arcs, more = _names(attr, arcs, "arc")
        edge_label, caption = of_arcs.__getitem__, f"{caption}\n{more}"
    return names.__getitem__, edge_label, caption


def _names(rows: Tensor, drawn: np.ndarray, what: str) -> tuple[list[str], str]:
    """Return a name for each row of attributes, and what it is: its category if it is one, else its number, the key."""
    where, x = {"node": "In the circles", "arc": "On the lines"}[what], rows.numpy().astype(np.float64)
    if x.shape[1] == 1 and (x == np.rint(x)).all():
        return [f"{value:.0f}" for value in x[:, 0]], f"{where}: attribute of the {what}."
    if x.shape[1] > 1 and ((x == 0) | (x == 1)).all() and (x.sum(1) == 1).all():
        return [str(place) for place in x.argmax(1)], f"{where}: which attribute of the {what} is 1, counted from 0."
    caption = f"{where}: number of the {what}'s row of attributes"
    if x.shape[1] <= _COLUMNS and len(drawn) <= _LISTED:
        listed = (f"{key} = {' '.join(f'{value:.3g}' for value in x[key])}" for key in drawn)
        caption += ": " + "; ".join(text.replace(" ", "\xa0") for text in listed)  # not to be broken
    return [str(key) for key in range(len(x))], f"{caption}."


def _arrange(figure: Figure, drawn: Sequence[tuple[Axes, int, int]], title: str, caption: str) -> None:
    """Put trees side by side in rows, all at one scale, below the title and above the caption."""
    rows: list[list[tuple[Axes, float, int, int]]] = [[]]
    for axes, across, down in drawn:
        width = max(_NARROW, _LEAF * (across + 1))
        if rows[-1] and sum(w for _, w, _, _ in rows[-1]) + width > _WIDE:
            rows.append([])
        rows[-1].append((axes, width, across, down))
    widths = [sum(width for _, width, _, _ in row) for row in rows]
    heads = [_LINE * max(axes.get_title().count("\n") + 1 for axes, *_ in row) + 0.1 for row in rows]
    heights = [_LEVEL * (max(down for *_, down in row) - 1) + 2 * _EDGE for row in rows]
    full = max(7.0, *widths) + 0.2
    fits = {"width": int(14 * full), "break_on_hyphens": False}
    lines = [text for line in caption.split("\n") for text in textwrap.wrap(line, **fits)]
    below = _LINE * len(lines) + 0.15
    tall = 0.45 + sum(heads) + sum(heights) + 0.1 * len(rows) + below
    figure.set_size_inches(full, tall)
    top = tall - 0.45
    for row, width, head, height in zip(rows, widths, heads, heights, strict=True):
        left, top = (full - width) / 2, top - head
        for axes, wide, across, down in row:
            high = _LEVEL * (down - 1) + 2 * _EDGE
            axes.set_position([left / full, (top - high) / tall, wide / full, high / tall])
            middle, half = (across - 1) / 2, wide / _LEAF / 2
            axes.set(xlim=(middle - half, middle + half), ylim=(1 - down - _EDGE / _LEVEL, _EDGE / _LEVEL))
            left += wide
        top -= height + 0.1
    figure.text(0.5, 1 - 0.12 / tall, title, ha="center", va="top", fontsize=12)
    figure.text(0.5, 0.08 / tall, "\n".join(lines), ha="center", va="bottom", fontsize=8.5, color="0.3")


# -- quality against bytes ---------------------------------------------------------------------------------------------

_LINES = {
    "full": ("full: all training graphs", "black", (0, (6, 2))),
    "wl": ("wl: linear in counts of trees", "tab:brown", (0, (3, 1.5))),
    "untrained": ("untrained: best of random networks", "0.45", (0, (3, 1.5, 1, 1.5))),
    "size": ("size: number of nodes alone", "0.6", (0, (1.5, 1.5))),
}
DRAWN = (*SETS, *_LINES)  # rows
_PANELS = 3  # side by side, at most
_MARKERS = "osD^vP*Xp"
_APART = 3.0  # points by which rows are moved apart


def plot_against_bytes(records: Iterable[Record], path: str | Path) -> Path:
    """Plot the metric on the test part against the bytes that networks were trained on: PNG, SVG or PDF.

    A point is the mean over seeds of a row of :data:`g2m.condense.bench.SETS` at one budget, with the standard
    deviation; lines join the budgets. Dashed lines: the mean of all training graphs, and of the controls that take no
    bytes. Other rows are not drawn. With two or three networks every data set is a row of panels, one a network; with
    more, scores are means over networks. Points are moved by a few pixels, as rows of one budget have nearly the same
    bytes.

    Args:
        records: of :meth:`g2m.condense.bench.CondenseCell.run`.
        path: where to write.

    Raises:
        G2MError: if there is nothing to draw in ``records``.
    """
    return save_figure(_against_bytes(records), path)


def _against_bytes(records: Iterable[Record]) -> Figure:
    from matplotlib.figure import Figure  # no pyplot: no window system is asked for

    records = [record for record in records if record.get("row") in DRAWN]
    if not records:
        raise G2MError(
            f"records: expected some of the rows {', '.join(DRAWN)} (got none). `g2m bench-condense` makes them."
        )
    sets = list(dict.fromkeys((record["data"], record["hops"]) for record in records))
    backbones = [name for name in GRAPH_BACKBONES if any(record["backbone"] == name for record in records)]
    apart = 1 < len(backbones) <= _PANELS
    shown = [[name] for name in backbones] if apart else [backbones]
    columns = len(shown) if apart else ceil(len(sets) / ceil(len(sets) / _PANELS))
    lines = ceil(len(sets) * len(shown) / columns)
    figure = Figure(layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel().tolist()
    panels, empty = panels[: len(sets) * len(shown)], panels[len(sets) * len(shown) :]
    for panel in empty:
        panel.remove()
    for i, (data, hops) in enumerate(sets):
        of_data = [record for record in records if (record["data"], record["hops"]) == (data, hops)]
        own = panels[i * len(shown) : (i + 1) * len(shown)]
        x, y = [], []
        for panel, names in zip(own, shown, strict=True):
            more_x, more_y = _panel(panel, [record for record in of_data if record["backbone"] in (None, *names)])
            x, y = x + more_x, y + more_y
            title = f"{data}, {_many(hops, 'hop')}" + (f", {names[0].upper()}" if len(names) == 1 else "")
            panel.set_title(title, fontsize=10)
            panel.tick_params(labelsize=9)
        _limits(own, x, y)
        metric = {"rocauc": "ROC-AUC"}.get(of_data[0]["metric"], of_data[0]["metric"])
        own[0].set_ylabel(f"test {metric}, %")
    over = f"\nmean over {', '.join(map(str.upper, backbones))}" if len(backbones) > _PANELS else ""
    title = f"Networks trained on condensed sets: score (± std over seeds) against bytes{over}"
    figure.suptitle(title, fontsize=11)
    for panel in panels[-columns:]:
        panel.set_xlabel("bytes of the set")
    found = {}
    for panel in panels:
        found |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    labels = [label for label in (*SETS, *(line[0] for line in _LINES.values())) if label in found]
    style = {"loc": "outside lower center", "ncols": columns + 1, "frameon": False, "fontsize": 9}
    figure.legend([found[label] for label in labels], labels, **style)
    figure.set_size_inches(max(3.6 * columns, 6.5), 3 * lines + 0.8 + 0.2 * ceil(len(labels) / (columns + 1)))
    return figure


def _panel(panel: Axes, records: Sequence[Record]) -> tuple[list[float], list[float]]:
    """Draw what the records of one data set say; return all bytes and all scores that limits must hold."""
    from matplotlib.transforms import ScaledTranslation

    all_x, all_y = [], []
    for row, (label, color, style) in _LINES.items():
        if own := [record for record in records if record["row"] == row]:
            all_y.append(_score(own)[0])
            panel.axhline(all_y[-1], color=color, linestyle=style, linewidth=1.4, label=label, zorder=1)
    present = [row for row in SETS if any(record["row"] == row for record in records)]
    for i, row in enumerate(present):
        by_budget: dict[str, list[Record]] = {}
        for record in records:
            if record["row"] == row:
                by_budget.setdefault(record["budget"], []).append(record)
        points = sorted((fmean(r["bytes"] for r in own), *_score(own)) for own in by_budget.values())
        x, mean, std = map(list, zip(*points, strict=True))
        all_x, all_y = all_x + x, all_y + [m + sign * s for _, m, s in points for sign in (-1, 1)]
        index = list(SETS).index(row)
        moved = ScaledTranslation(_APART * (i - (len(present) - 1) / 2) / 72, 0, panel.figure.dpi_scale_trans)
        style = {"marker": _MARKERS[index % len(_MARKERS)], "color": f"C{index}", "markersize": 5, "linewidth": 1.2}
        panel.errorbar(x, mean, std, label=row, capsize=2, transform=panel.transData + moved, **style)
    panel.set_xscale("log")
    panel.grid(alpha=0.3)
    return all_x, all_y


def _score(records: Sequence[Record]) -> tuple[float, float]:
    """Return mean and standard deviation over seeds, in percent, of the mean over networks.

    Seeds that lack a network are left out, of a run that is not done, if others do not.
    """
    seeds: dict[int, dict[str | None, list[float]]] = {}
    for record in records:
        by_network = seeds.setdefault(record["seed"], {})
        by_network.setdefault(record["backbone"], []).append(100 * record["scores"]["test"])
    most = max(map(len, seeds.values()))
    return mean_std([fmean(map(fmean, found.values())) for found in seeds.values() if len(found) == most])


def _limits(panels: Sequence[Axes], x: Sequence[float], y: Sequence[float]) -> None:
    """Give panels of one data set limits that hold all that is drawn in them, and ticks that can be read."""
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

    wide = max(x, default=1) / min(x, default=1)
    margin, pad = max(1.6, wide**0.12), max(0.06 * (max(y) - min(y)), 0.5)
    for panel in panels:
        panel.set_ylim(min(y) - pad, max(y) + pad)
        panel.yaxis.set_major_locator(MaxNLocator(6))
        if x:
            panel.set_xlim(min(x) / margin, max(x) * margin)
            panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if wide < 20 else (1,)))
            panel.xaxis.set_major_formatter(EngFormatter("B"))
            panel.xaxis.set_minor_formatter(NullFormatter())
        else:  # lines alone
            panel.xaxis.set_major_locator(NullLocator())
            panel.xaxis.set_minor_locator(NullLocator())
