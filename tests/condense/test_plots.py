"""What plots of condensation draw, against values worked out by hand; and that nothing in them hides anything else."""

import math
import random

import numpy as np
import pytest
import torch
from graph_cases import random_graphs
from matplotlib.colors import to_rgba
from matplotlib.image import imread

from g2m import G2MError, Graphs
from g2m.condense import TreeTable, inspect, tree_classes
from g2m.condense.bench import SETS
from g2m.condense.plots import _against_bytes, _skew, _trees, draw_trees, plot_against_bytes, plot_skew


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def texts(axes):
    return [text.get_text() for text in axes.texts]


def check_nothing_hidden(figure):
    """Axes with all their labels, titles and legends lie inside the figure, none over another."""
    figure.draw_without_rendering()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    boxes += [box.get_window_extent() for box in (*figure.texts, *figure.legends)]
    for i, box in enumerate(boxes):
        assert min(box.x0, box.y0, figure.bbox.x1 - box.x1, figure.bbox.y1 - box.y1) > -1
        for other in boxes[:i]:
            over = [min(getattr(box, d + "1"), getattr(other, d + "1")) for d in "xy"]
            over = [
                end - max(getattr(box, d + "0"), getattr(other, d + "0")) for end, d in zip(over, "xy", strict=True)
            ]
            assert min(over) < 1


def check_png(path):
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    image = imread(path)
    assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 2, "something is drawn, in colours"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


# -- how often trees repeat --------------------------------------------------------------------------------------------


def test_skew_is_the_share_of_nodes_that_the_most_frequent_trees_hold():
    """Keys 5 5 5 7 7 9; with a hop, one of the 7s has a child, and all but the 5s stand alone."""
    key, arc = np.array([7, 5, 7, 5, 9, 5]), np.array([[1], [0]])
    figure = _skew(tree_classes(arc, key, num_hops=1))
    half, line = figure.axes[0].lines
    assert set(half.get_ydata()) == {50}
    assert line.get_xdata().tolist() == [1, 2, 3, 4]
    assert line.get_ydata() == pytest.approx([50, 200 / 3, 250 / 3, 100])
    assert line.get_markevery() == [0], "trees of one node begin after the first"
    assert legend(figure) == ["1 hop: 4 trees, 50% of the nodes"]
    assert figure.axes[0].get_title() == "Of 4 trees of 1 hop, the most frequent one holds half of the nodes"
    assert figure.axes[0].get_xscale() == "log"
    check_nothing_hidden(figure)

    figure = _skew(tree_classes(arc[:, :0], torch.from_numpy(key), num_hops=3))  # no hop tells more apart
    lines = figure.axes[0].lines[1:]
    assert [line.get_ydata().tolist() for line in lines] == [pytest.approx([50, 500 / 6, 100])] * 3
    assert lines[0].get_linewidth() > lines[1].get_linewidth() > lines[2].get_linewidth()
    assert legend(figure)[2] == "3 hops: 3 trees, 16.7% of the nodes"


def test_skew_says_what_inspection_says():
    graphs = random_graphs([9] * 12, edges="none")
    table = TreeTable(graphs, 3)
    figure = _skew(table.classes)
    for line, level, label in zip(
        figure.axes[0].lines[1:], inspect(table.classes).levels[1:], legend(figure), strict=True
    ):
        held = line.get_ydata()
        assert len(held) == level.num_classes
        assert tuple(int((held < 100 * share - 1e-9).sum()) + 1 for share in (0.5, 0.8, 0.9)) == level.cover
        assert label.endswith(f"{level.num_classes} trees, {100 - 100 * level.repeated:.3g}% of the nodes")
    assert f"the {level.cover[0]} most frequent hold half" in figure.axes[0].get_title()


def test_skew_of_trees_of_no_hops_and_of_no_nodes(tmp_path):
    none = np.empty((2, 0), np.int64)
    figure = _skew(tree_classes(none, np.zeros(3, np.int64), num_hops=0))
    assert legend(figure) == ["0 hops: 1 tree, 0% of the nodes"]
    assert figure.axes[0].lines[1].get_ydata().tolist() == [100]
    with pytest.raises(G2MError, match="classes: expected those of at least one node"):
        plot_skew(tree_classes(none, none[0], num_hops=1), tmp_path / "plot.png")
    assert not any(tmp_path.iterdir())


# -- the most frequent trees -------------------------------------------------------------------------------------------


def stars(*leaves, x=None, edge_attr=None, **options):
    """Graphs of a node, its hub, with arcs from and to so many others each."""
    ptr = torch.tensor([0, *(n + 1 for n in leaves)]).cumsum(0)
    out = [torch.stack([hub.expand(n), hub + 1 + torch.arange(n)]) for hub, n in zip(ptr[:-1], leaves, strict=True)]
    out = torch.cat(out, 1)
    attr = None if edge_attr is None else torch.cat([edge_attr, edge_attr])
    y = torch.zeros(len(leaves), dtype=torch.long)
    return Graphs(x, torch.cat([out, out.flip(0)], 1), y, ptr, num_classes=2, edge_attr=attr, **options)


def test_the_most_frequent_trees_are_drawn_with_their_shares():
    """Hubs 0 with two leaves 2 in two graphs, a node 0 alone: six leaves' trees, as four are of one kind."""
    x = torch.eye(3)[[0, 2, 2, 0, 2, 2, 0]]
    figure = _trees(TreeTable(stars(2, 2, 0, x=x), 1), 2)
    first, second = figure.axes
    assert first.get_title() == "57.1% of nodes\n66.7% of graphs"  # 4 of 7 nodes, in 2 of 3 graphs
    assert second.get_title() == "28.6% of nodes\n66.7% of graphs"
    assert texts(first) == ["2", "0"], "the place of the 1"
    assert texts(second) == ["0", "2", "2"]
    (root, child) = (text.get_position() for text in first.texts)
    assert root[1] > child[1]
    heading, caption = (text.get_text() for text in figure.texts)
    assert heading == "The 2 most frequent of 3 trees of 1 hop: 85.7% of the nodes"
    assert caption == "In the circles: which attribute of the node is 1, counted from 0."
    colours = [axes.collections[-1].get_facecolors().tolist() for axes in (first, second)]
    assert colours[0][0] == colours[1][1] == colours[1][2]
    assert colours[0][1] == colours[1][0] != colours[0][0]
    far = _trees(TreeTable(stars(*[0] * 42, x=torch.tensor([*range(21), *[0, 20] * 10, 20])[:, None]), 1), 2)
    assert [texts(axes) for axes in far.axes] == [["20"], ["0"]]
    colours = [axes.collections[-1].get_facecolors().tolist() for axes in far.axes]
    assert colours[0] != colours[1], "though 20 is the number of colours"
    every = _trees(TreeTable(stars(2, 2, 0, x=x), 1), 9)
    assert every.texts[0].get_text() == "All 3 trees of 1 hop: 100% of the nodes"
    assert texts(every.axes[2]) == ["0"]


@pytest.mark.parametrize(
    ("x", "degrees", "labels", "caption"),
    [
        (None, False, ["1", "2"], "In the circles: degree of the node."),
        (None, True, ["1", "2"], "In the circles: degree of the node."),
        ([[30], [7], [7]], False, ["7", "30"], "In the circles: attribute of the node."),
        ([[30], [7], [7]], True, ["7:1", "30:2"], "In the circles: attribute of the node. After the colon: degree"),
        ([[0.5], [7], [7]], False, ["1", "0"], "number of the node's row of attributes: 0\xa0=\xa00.5; 1\xa0=\xa07."),
        ([[1, 1], [0, 1], [0, 1]], False, ["1", "0"], "of attributes: 0\xa0=\xa01\xa01; 1\xa0=\xa00\xa01."),
        ([[0, 0], [0, 1], [0, 1]], False, ["1", "0"], "of attributes: 0\xa0=\xa00\xa00; 1\xa0=\xa00\xa01."),
        ([[1, 0], [0, 1], [0, 1]], True, ["1:1", "0:2"], "is 1, counted from 0. After the colon: degree of the node."),
        ([[1] * 13, [2] * 13, [2] * 13], False, ["1", "0"], "In the circles: number of the node's row of attributes."),
    ],
)
def test_labels_are_what_the_caption_says(x, degrees, labels, caption):
    figure = _trees(TreeTable(stars(2, x=None if x is None else torch.tensor(x)), 1, degrees), 1)
    assert texts(figure.axes[0]) == labels
    assert caption in figure.texts[1].get_text().replace("\n", " ")
    check_nothing_hidden(figure)


def test_arcs_are_labelled_where_they_differ():
    attr = torch.tensor([[4], [6]])
    figure = _trees(TreeTable(stars(2, x=torch.ones(3, 1).long(), edge_attr=attr), 1), 3)
    assert {text for axes in figure.axes for text in texts(axes)} == {"1", "4", "6"}
    assert figure.texts[1].get_text() == "In the circles: attribute of the node.\nOn the lines: attribute of the arc."
    figure = _trees(TreeTable(stars(2, x=torch.ones(3, 1).long(), edge_attr=attr * 0), 1), 3)
    assert {text for axes in figure.axes for text in texts(axes)} == {"1"}
    assert "lines" not in figure.texts[1].get_text()


def test_trees_of_more_than_60_nodes_are_cut():
    def titles(*leaves, num_hops):
        graphs = stars(*leaves, x=torch.ones(sum(leaves) + len(leaves), 1).long())
        figure = _trees(TreeTable(graphs, num_hops), 3)
        sizes = [len(texts(axes)) for axes in figure.axes]
        return [axes.get_title().split("\n", 2)[2:] for axes in figure.axes], sizes

    assert titles(59, num_hops=1) == ([[], []], [2, 60])
    assert titles(60, num_hops=1) == ([[], ["cut to 0 hops:\n1 of 61 nodes"]], [2, 1])
    assert titles(70, 60, num_hops=1)[0] == [[], *([f"cut to 0 hops:\n1 of {n} nodes"] for n in (71, 61))]
    assert titles(58, num_hops=2)[1] == [60, 59], (
        "a leaf sees the hub and all leaves; the hub's tree has 1 + 58 + 58 nodes"
    )
    assert titles(58, num_hops=2)[0] == [[], ["cut to 1 hop:\n59 of 117 nodes"]]
    assert titles(1000, num_hops=3)[0] == [
        ["cut to 1 hop:\n2 of 2,002 nodes"],
        ["cut to 0 hops:\n1 of 1,002,001 nodes"],
    ]


@pytest.mark.parametrize("num_trees", [1, 6, 25])
def test_many_trees_go_on_below_at_one_scale(num_trees):
    table = TreeTable(random_graphs([8] * 12, directed=False), 2)
    figure = _trees(table, num_trees)
    assert len(figure.axes) == num_trees
    check_nothing_hidden(figure)
    figure.draw_without_rendering()
    shares = [float(axes.get_title().split("%")[0]) for axes in figure.axes]
    assert shares == sorted(shares, reverse=True)
    assert len({round(axes.get_position().y1, 6) for axes in figure.axes}) > (num_trees == 25), "more than one row"
    for axes in figure.axes:
        origin, leaf, level = axes.transData.transform([(0, 0), (1, 0), (0, -1)])
        assert (leaf - origin)[0] / figure.dpi == pytest.approx(0.34)
        assert (origin - level)[1] / figure.dpi == pytest.approx(0.8)


@pytest.mark.parametrize("number", [0, 2.5, True])
def test_trees_are_at_least_one(tmp_path, number):
    with pytest.raises(G2MError, match="num_trees: expected a whole number from 1"):
        draw_trees(TreeTable(stars(2), 1), tmp_path / "plot.png", num_trees=number)
    assert not any(tmp_path.iterdir())


# -- quality against bytes ---------------------------------------------------------------------------------------------


def record(row, score, *, backbone="gin", seed=0, budget="1%", size=None, data="a", hops=2, metric="rocauc"):
    line = {"data": data, "row": row, "backbone": backbone, "seed": seed, "hops": hops, "budget": budget}
    line |= {"metric": metric, "bytes_full": 5000, "scores": {"val": 0.1, "test": score, "test_accuracy": 0.2}}
    return line if size is None else {**line, "bytes": size}


def points(panel):
    """Of every row: bytes, mean, and the ends of the bars."""
    found = {}
    for bars in panel.containers:
        line, _, (ends,) = bars
        ends = [segment[:, 1].tolist() for segment in ends.get_segments()]
        found[bars.get_label()] = (line.get_xdata().tolist(), line.get_ydata().tolist(), ends)
    return found


def levels(panel):
    return {line.get_label().split(":")[0]: line.get_ydata()[0] for line in panel.lines if ":" in line.get_label()}


def test_points_are_means_over_seeds_and_lines_join_budgets():
    records = [
        record("scored", 0.9, budget="4%", size=4000),
        record("scored", 0.7, size=1000),
        record("scored", 0.8, size=1100, seed=1),
        record("mirage", 0.5, size=900),
        record("full", 0.8, size=5000),
        record("full", 0.9, size=5000, seed=1),
        record("untrained", 0.65),
        *(record("size", 0.55, backbone=None, budget=budget) for budget in ("1%", "4%")),
        record("wl", 0.6, backbone=None),
        record("wl, equal bytes", 0.1, backbone=None, size=1),
        record("lossless", 0.1, size=1),
        record("shuffled scored", 0.1, size=1000),
    ]
    figure = _against_bytes(iter(records))
    (panel,) = figure.axes
    drawn = points(panel)
    assert list(drawn) == ["mirage", "scored"]
    assert drawn["mirage"] == ([900], [50], [[50, 50]]), "a single seed has no deviation"
    x, mean, bars = drawn["scored"]
    assert (x, mean) == ([1050, 4000], pytest.approx([75, 90]))
    deviation = 100 * np.std([0.7, 0.8], ddof=1)
    assert bars == [pytest.approx([75 - deviation, 75 + deviation]), pytest.approx([90, 90])]
    assert levels(panel) == pytest.approx({"full": 85, "wl": 60, "untrained": 65, "size": 55})
    assert all(line.get_linestyle() == "--" for line in panel.lines if ":" in line.get_label()), "dashed"
    assert [label.split(":")[0] for label in legend(figure)] == ["mirage", "scored", "full", "wl", "untrained", "size"]
    assert (panel.get_title(), panel.get_ylabel()) == ("a, 2 hops, GIN", "test ROC-AUC, %")
    assert panel.get_xscale() == "log"
    low, high = panel.get_xlim()
    assert low < 900 < 4000 < high
    low, high = panel.get_ylim()
    assert low < 50 < 90 < high
    figure.draw_without_rendering()
    assert [label.get_text() for label in panel.get_xticklabels() if label.get_text()].count("1 kB") == 1


def test_a_panel_for_every_data_set_and_network():
    records = [
        record("scored", 0.1 * i, backbone=backbone, data=data, hops=hops, size=1000, metric=metric)
        for i, (data, hops, metric, backbone) in enumerate(
            (*of, backbone)
            for of in (("a", 2, "rocauc"), ("a", 1, "rocauc"), ("b", 2, "accuracy"))
            for backbone in ("gin", "gcn")
        )
    ]
    records += [record("wl", 0.99, backbone=None), record("size", 0.4, backbone=None, data="c")]
    figure = _against_bytes(records)
    title = ["a, 2 hops", "a, 1 hop", "b, 2 hops", "c, 2 hops"]
    assert [panel.get_title() for panel in figure.axes] == [f"{t}, {b}" for t in title for b in ("GCN", "GIN")]
    shown = [points(panel).get("scored") for panel in figure.axes]
    assert [found and found[1] for found in shown] == [
        [pytest.approx(y)] if y is not None else None for y in (10, 0, 30, 20, 50, 40, None, None)
    ]
    assert [levels(panel) for panel in figure.axes] == [{"wl": 99}] * 2 + [{}] * 4 + [{"size": 40}] * 2
    assert [panel.get_ylabel() for panel in figure.axes[4:6]] == ["test accuracy, %", ""]
    assert figure.axes[0].get_ylim() == figure.axes[1].get_ylim(), "panels of a data set can be compared"
    assert len(figure.axes[-1].get_xticks()) == 0, "no bytes in it"


def test_of_many_networks_the_mean():
    score = {"gcn": 0.5, "gat": 0.6, "gin": 0.7, "sage": 0.8}
    records = [
        record(row, value + seed / 10, backbone=backbone, seed=seed, size=1000)
        for row in ("scored", "full")
        for backbone, value in score.items()
        for seed in (0, 1)
    ]
    records.append(record("scored", 0.0, backbone="gcn", seed=2, size=1000))  # the others are not yet done
    records.append(record("size", 0.4, backbone=None))
    (panel,) = _against_bytes(records).axes
    x, mean, (bar,) = points(panel)["scored"]
    assert (x, mean) == ([1000], pytest.approx([70]))
    assert (bar[1] - bar[0]) / 2 == pytest.approx(10 / math.sqrt(2))
    assert levels(panel) == pytest.approx({"full": 70, "size": 40})


def test_rows_of_the_same_bytes_are_drawn_apart_and_look_the_same_in_every_panel():
    records = [record(row, 0.5, size=1000, data="a") for row in SETS]
    records += [record(row, 0.5, size=1000, data="b") for row in list(SETS)[::2]]
    figure = _against_bytes(records)
    figure.draw_without_rendering()
    looks = []
    for panel in figure.axes:
        lines = {bars.get_label(): bars.lines[0] for bars in panel.containers}
        looks.append({row: (line.get_color(), line.get_marker()) for row, line in lines.items()})
        places = sorted(line.get_transform().transform([(1000, 50)])[0, 0] for line in lines.values())
        assert min(np.diff(places)) > 2, "pixels"
        assert np.mean(places) == pytest.approx(panel.transData.transform([(1000, 50)])[0, 0])
    assert (
        len({to_rgba(color) for color, _ in looks[0].values()}) == len({m for _, m in looks[0].values()}) == len(SETS)
    )
    assert looks[1].items() <= looks[0].items()


@pytest.mark.parametrize("backbones", [["gin"], ["gcn", "gat", "gin"], ["gcn", "gat", "gin", "sage"]])
@pytest.mark.parametrize("sets", [1, 2, 4])
def test_labels_do_not_collide(sets, backbones):
    draw = random.Random(0).random
    records = [
        record(row, draw(), backbone=backbone, data=f"ogbg-molecules{i}", budget=budget, size=int(budget))
        for i in range(sets)
        for row in (*SETS, "full", "wl", "size", "untrained")
        for backbone in ([None] if row in ("wl", "size") else backbones)
        for budget in ("80", "3000")
    ]
    figure = _against_bytes(records)
    assert len(figure.axes) == sets * (3 if len(backbones) == 3 else 1)
    check_nothing_hidden(figure)


def test_nothing_to_draw_is_refused(tmp_path):
    for records in ([], [record("lossless", 0.5, size=9)], [{"table": "digits"}]):
        with pytest.raises(G2MError, match="records: expected some of the rows mirage, faithful"):
            plot_against_bytes(records, tmp_path / "plot.png")
    assert not any(tmp_path.iterdir())


# -- files -------------------------------------------------------------------------------------------------------------


def test_plots_are_png_files_and_nothing_else_is_left(tmp_path):
    table = TreeTable(random_graphs(), 2)
    for name, draw in {
        "skew": lambda path: plot_skew(table.classes, path),
        "trees": lambda path: draw_trees(table, path, num_trees=3),
        "bytes": lambda path: plot_against_bytes([record("scored", 0.5, size=100)], str(path)),
    }.items():
        path = tmp_path / name / "new" / "plot.png"
        for _ in range(2):  # over the first
            assert draw(path) == path
        check_png(path)
