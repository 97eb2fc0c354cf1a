import json
from dataclasses import asdict, replace

import pytest
import torch
from sklearn.metrics import roc_auc_score

import g2m
from g2m import G2MError
from g2m.bench import read_results, run
from g2m.condense import bench
from g2m.condense.bench import CONTROLS, ROWS, SETS, cells, tables
from g2m.report import markdown

pytestmark = pytest.mark.usefixtures("cache")

QUICK = ("max_epochs=3", "hidden_channels=8")


def grid(rows, **options):
    given = {"backbones": ["gin"], "seeds": 1, "budget": "20%", "overrides": QUICK} | options
    return cells(["atlas"], rows=rows, **given)


def timeless(record):
    return {key: value for key, value in record.items() if not key.startswith("seconds")}


def test_rows_without_a_network_are_there_once():
    found = grid(["full", "size", "wl"], backbones=["gin", "gcn"], seeds=2)
    assert len(found) == 2 * (2 + 1 + 1)
    assert {cell.backbone for cell in found if cell.row in bench.WITHOUT_NETWORK} == {None}
    assert len({cell.key for cell in found}) == len(found)


@pytest.mark.parametrize("backbone", ["gin", "gcn"])
def test_shipped_thresholds_are_those_of_shipped_hops_said_or_not(backbone):
    options = {"rows": ["mirage, faithful"], "backbones": [backbone], "seeds": 1}
    unsaid, said, other = (cells(["nci1"], hops=hops, **options)[0] for hops in (None, 2, 3))
    assert unsaid == said
    assert unsaid.method_options == ({"min_support": {0: 440, 1: 570}} if backbone == "gin" else {})
    assert other.method_options == {}
    assert cells(["atlas"], **options)[0].method_options == {}


def test_every_row_gives_a_record_and_a_line(tmp_path):
    found = grid(ROWS, backbones=["gcn"], overrides=("max_epochs=2", "hidden_channels=8", "doscond.steps=2"))
    records = list(run(found, out=tmp_path / "results.jsonl"))
    assert sorted(record["row"] for record in records) == sorted(ROWS)
    for record in records:
        assert {"val", "test", "test_accuracy"} <= record["scores"].keys()
        assert all(0 <= score <= 1 for score in record["scores"].values())
        if record["row"] in SETS:
            assert record["bytes"] <= 0.2 * record["bytes_full"]
    assert read_results(tmp_path / "results.jsonl") == records
    ((title, header, lines), gains) = tables(records)
    assert title.startswith("atlas: budget 20%")
    assert [line[0] for line in lines] == list(ROWS)
    assert {len(line) for line in lines} == {len(header)}
    assert {line[0] for line in gains[2]} == set(SETS)
    page = markdown(records)
    assert all(f"| {row} |" in page for row in ROWS)


def test_the_lossless_row_is_the_full_one():
    options = {"overrides": (*QUICK, "precision=float64", "batch_size=32", "lr=0.01")}
    full, lossless = (cell.run() for cell in grid(["full", "lossless"], **options))
    assert full["scores"] == pytest.approx(lossless["scores"], abs=1e-9)


def test_a_killed_run_goes_on_and_the_same_again_gives_the_same(tmp_path):
    found = grid(["random", "scored"], seeds=2)
    once = list(run(found[:1], out=tmp_path / "a.jsonl"))
    again = list(run(found, out=tmp_path / "a.jsonl"))
    assert again[0] == once[0]
    other = list(run(found, out=tmp_path / "b.jsonl", cache=tmp_path / "other"))
    assert [timeless(record) for record in again] == [timeless(record) for record in other]


@pytest.mark.parametrize("row", ["full", "scored", "shuffled scored", "size"])
def test_what_was_trained_is_kept_and_scores_as_recorded(tmp_path, row):
    (cell,) = grid([row])
    record = cell.run(folder=tmp_path / "kept")
    assert {*cell.files} == {path.name for path in (tmp_path / "kept").glob("*")}
    if row == "size":
        assert not (tmp_path / "kept").exists(), "nothing was trained"
        return
    network = g2m.GraphClassifier.load(tmp_path / "kept" / "classifier.safetensors")
    expected = {part: record["scores"][part] for part in ("val", "test")}
    assert network.evaluate(cell.graphs()) == expected
    if row != "full":
        assert (
            g2m.condense.CondensedSet.load(tmp_path / "kept" / "condensed.safetensors").nbytes().raw == record["bytes"]
        )
    assert timeless(cell.run()) == timeless(record)


def test_a_training_with_a_folder_has_its_checkpoint_there(tmp_path, monkeypatch):
    (cell,), fit, asked = grid(["full"]), g2m.GraphClassifier.fit, []
    watched = lambda self, *given, **options: asked.append(options["checkpoint"]) or fit(self, *given, **options)  # noqa: E731
    monkeypatch.setattr(g2m.GraphClassifier, "fit", watched)
    cell.run()
    cell.run(folder=tmp_path)
    assert asked == [None, tmp_path / "classifier.checkpoint"]


def test_a_set_is_made_once_for_all_networks(monkeypatch):
    made = []
    monkeypatch.setattr(bench, "condense", lambda *a, **k: made.append(k) or g2m.condense.condense(*a, **k))
    for cell in grid(["scored", "shuffled scored"], backbones=["gin", "sage"]):
        cell.run()
    assert len(made) == 1


def test_a_set_made_by_another_version_is_not_taken(monkeypatch, cache):
    (cell,) = grid(["scored"])
    for version in ("1", "1", "2"):
        monkeypatch.setattr(g2m, "__version__", version)
        cell.condensed(cell.graphs())
    assert len(list((cache / "condensed").iterdir())) == 2


def test_labels_are_shuffled_and_nothing_else(monkeypatch):
    seen = {}
    fit = g2m.GraphClassifier.fit

    def watched(self, graphs, condensed=None, **options):
        seen[len(seen)] = condensed
        return fit(self, graphs, condensed, **options)

    monkeypatch.setattr(g2m.GraphClassifier, "fit", watched)
    for cell in grid(["scored", "shuffled scored"]):
        cell.run()
    plain, shuffled = seen[0], seen[1]
    assert not torch.equal(plain.y, shuffled.y)
    assert torch.equal(plain.y.sort(0).values, shuffled.y.sort(0).values)
    assert torch.equal(plain.weight, shuffled.weight)


def test_size_is_the_number_of_nodes():
    (cell,) = grid(["size"])
    graphs = g2m.load("atlas", seed=0)
    test = graphs.part("test")
    by_hand = roc_auc_score(graphs.y[test], graphs.ptr.diff()[test])
    assert cell.run()["scores"]["test"] == pytest.approx(max(by_hand, 1 - by_hand))


def test_a_linear_model_at_equal_bytes_knows_the_graphs_of_random_alone(monkeypatch):
    model, seen = bench.CountModel, {}

    def watched(levels, y, seed):
        seen[len(seen)] = (levels[0].sum(1), y)
        return model(levels, y, seed)

    monkeypatch.setattr(bench, "CountModel", watched)
    few, every = grid(["wl, equal bytes", "wl"])
    graphs, sizes = few.graphs(), few.graphs().ptr.diff().numpy()
    chosen = g2m.condense.condense(graphs, "random", num_hops=few.hops, budget=few.budget, seed=0).content.graph_id
    assert 1 < len(chosen) < len(graphs.part("train"))
    for cell, ids in ((few, chosen), (every, graphs.part("train"))):
        cell.run()
        counted, y = seen[len(seen) - 1]
        assert counted.tolist() == sizes[ids].tolist()  # of trees of no hops a graph has as many as nodes
        assert y.tolist() == graphs.y[ids].tolist()


@pytest.mark.parametrize("row", ["scored", "mirage", "lossless", "random"])
@pytest.mark.parametrize("backbone", ["gin", "gcn"])
def test_trees_tell_degrees_apart_for_networks_that_divide_by_them(row, backbone):
    (cell,) = grid([row], backbones=[backbone])
    options = cell.condensed(cell.graphs()).meta["options"]
    assert options.get("degrees", False) is (backbone == "gcn" and row != "random")


def test_the_threshold_is_that_of_validation():
    margin, y = torch.tensor([-2.0, -1.0, 0.5, 3.0]), torch.tensor([0, 0, 0, 1])
    assert bench._threshold(margin, y) == 1.75
    assert bench._accuracy_at(1.75, margin, y) == 1.0


def test_test_labels_reach_no_choice(monkeypatch):
    """With the labels of the test part turned round, answers and the threshold between them are as they were."""
    rows = [row for row in ROWS if row not in ("doscond", "herding", "kcenter")]
    plain = [cell.run()["scores"] for cell in grid(rows)]
    bench._loaded.cache_clear()

    def perturbed(*given, **options):
        graphs = g2m.load(*given, **options)
        y = graphs.y.clone()
        y[graphs.part("test")] = 1 - y[graphs.part("test")]
        return replace(graphs, y=y)

    monkeypatch.setattr(bench, "load", perturbed)
    turned = [{**scores, **{part: 1 - scores[part] for part in ("test", "test_accuracy")}} for scores in plain]
    for cell, expected in zip(grid(rows), turned, strict=True):
        assert cell.run()["scores"] == pytest.approx(expected)
    bench._loaded.cache_clear()


def test_what_is_named_twice_runs_once_and_nothing_is_trained_at_once(tmp_path):
    found = grid(["size", "size"], backbones=["gin", "gin"])
    assert len(found) == 1
    assert len(list(run(found, stack=2))) == 1


def test_rows_without_a_network_have_their_scores_in_a_table_of_their_own():
    records = list(run(grid(["size", "wl"])))
    ((_, header, rows), *_) = tables(records)
    assert header[6:8] == ["AUC", "acc."]
    assert all(float(cell) for row in rows for cell in row[6:8])


def test_rows_by_support_are_in_no_table_of_a_budget():
    found = cells(["atlas"], rows=["mirage", "size"], backbones=["gin"], seeds=1, overrides=["mirage.min_support=8"])
    assert [cell.budget for cell in found] == [None, "1%"]
    again = cells(
        ["atlas"], rows=["mirage"], backbones=["gin"], seeds=1, budget="3%", overrides=["mirage.min_support=8"]
    )
    assert again == found[:1]
    common = {"metric": "rocauc", "bytes_full": 1000, "bytes": 10, "scores": {"test": 0.5, "test_accuracy": 0.5}}
    titles = [title for title, *_ in tables([{**asdict(cell), "key": cell.key, **common} for cell in found])]
    assert titles[:2] == [
        "atlas: min_support in place of a budget, 1,000 bytes, 2 hops",
        "atlas: budget 1% of 1,000 bytes, 2 hops",
    ]


def test_the_references_scores_are_of_its_hops():
    for hops, there in ((3, True), (2, False)):
        (record,) = run(grid(["size"]))
        ((_, _, rows), *_) = tables([{**record, "data": "ogbg-molhiv", "hops": hops}])
        assert (rows[-1][0] == "logs of the reference") is there


def test_rows_of_another_version_come_last():
    (record,) = run(grid(["size"]))
    other = {**record, "row": "gone", "key": "other"}
    ((_, _, rows), *_) = tables([other, record])
    assert [row[0] for row in rows] == ["size", "gone"]


def test_of_several_tasks_rows_for_one_class_are_left_out_or_refused():
    assert {cell.row for cell in cells(["ogbg-moltox21"], seeds=1)} == {*ROWS} - {*bench._OF_ONE_CLASS}
    with pytest.raises(G2MError, match=r"^rows: 'size' is for one class a graph"):
        cells(["ogbg-moltox21"], rows=["full", "size"])


def test_runs_of_other_options_have_lines_of_their_own():
    def record(cell, test):
        common = {"key": cell.key, "metric": "rocauc", "bytes_full": 1000, "bytes": 10}
        return {**asdict(cell), **common, "scores": {"test": test, "test_accuracy": 0}}

    def ran(test, overrides=(), rows=("scored", "shuffled scored", "wl"), backbones=("gin", "gcn")):
        found = cells(["atlas"], rows=rows, backbones=backbones, seeds=2, overrides=overrides)
        return [record(cell, test + 0.1 * ("shuffled" in cell.row)) for cell in found]

    def lines(records):
        (_, header, found), *_ = tables(records)
        return {line[0]: dict(zip(header, line, strict=True)) for line in found}

    plain, more = ran(0.5), ran(0.8, ["lr=0.1", "scored.degrees=true"], backbones=["gin"])
    assert lines(plain + plain) == lines(plain)
    assert lines(plain).keys() == {"scored", "shuffled scored", "wl"}
    both = lines([*plain, *more, *json.loads(json.dumps(plain))])
    before, now = "lr=0.01 scored.degrees=default", "lr=0.1 scored.degrees=true"
    assert both.keys() == {f"{row} ({words})" for row in ("scored", "shuffled scored") for words in (before, now)} | {
        "wl"
    }
    assert both[f"scored ({before})"] | {"row": "scored"} == lines(plain)["scored"]
    assert both[f"scored ({now})"]["AUC GCN"] == "–"
    assert both[f"scored ({now})"]["AUC GIN"] == "80.00 ± 0.00"
    assert both["wl"]["seeds"] == "2"


def test_flags_name_the_controls_that_are_not_beaten():
    def record(row, backbone, seed, test):
        common = {"data": "atlas", "budget": "1%", "hops": 2, "metric": "rocauc", "bytes_full": 1000, "bytes": 10}
        common |= {"key": f"{row} {backbone} {seed}", "options": {}, "method_options": {}}
        return {**common, "row": row, "backbone": backbone, "seed": seed, "scores": {"test": test, "test_accuracy": 0}}

    records = [
        record(row, backbone, seed, test + 0.001 * seed)
        for row, backbone, test in [
            ("scored", "gin", 0.8),
            ("scored", "gcn", 0.6),
            ("size", None, 0.7),
            ("wl", None, 0.9),
            ("random", "gin", 0.5),
            ("random", "gcn", 0.5),
        ]
        for seed in range(3)
    ]
    (_, header, lines), (_, of, gains) = tables(records)
    by_row = {line[0]: dict(zip(header, line, strict=True)) for line in lines}
    assert by_row["scored"]["not above"] == "size (1), wl"
    assert by_row["random"]["not above"] == "size, wl"
    assert dict(zip(of, next(line for line in gains if line[0] == "scored"), strict=True))["over random"] == "+20.0"
    assert set(CONTROLS) >= {name.removeprefix("over ") for name in of[1:-1]}


@pytest.mark.parametrize(("gain", "beaten"), [(0.0115, False), (0.0117, True)])
def test_a_control_is_beaten_from_two_standard_errors_on(gain, beaten):
    """Gains of 1 and -1 hundredth about a mean over three seeds: their standard error is 1 / √3 hundredths."""
    common = {"data": "atlas", "budget": "1%", "hops": 2, "metric": "rocauc", "bytes_full": 1000, "bytes": 10}
    common |= {"options": {}, "method_options": {}}
    records = [
        {**common, "key": f"{row} {seed}", "row": row, "backbone": backbone, "seed": seed, "scores": scores}
        for row, backbone, mean in (("scored", "gin", 0.5 + gain), ("size", None, 0.5))
        for seed, moved in enumerate((-0.01, 0, 0.01))
        for scores in [{"test": mean + moved * (row == "scored"), "test_accuracy": 0}]
    ]
    ((_, header, (line, _)), *_) = tables(records)
    assert dict(zip(header, line, strict=True))["not above"] == ("–" if beaten else "size")


@pytest.mark.parametrize("turned", [False, True])
def test_a_line_is_compared_with_controls_of_its_networks_options(turned):
    def record(row, lr, test, seed, **method_options):
        size = {"hidden_channels": method_options.pop("of")} if "of" in method_options else {}
        common = {"data": "atlas", "budget": "1%", "hops": 2, "metric": "rocauc", "bytes_full": 1000, "bytes": 10}
        common |= {"key": f"{row} {lr} {size} {method_options} {seed}", "backbone": "gin", "row": row, "seed": seed}
        common |= {"options": {"lr": lr} | size, "method_options": method_options}
        return {**common, "scores": {"test": test + 0.001 * seed, "test_accuracy": 0}}

    given = [("mirage", 0.01, 0.6, {}), ("random", 0.01, 0.5, {}), ("mirage", 0.1, 0.9, {"min_size": 2})]
    given += [("random", 0.1, 0.9, {}), ("shuffled mirage", 0.1, 0.7, {})]
    given += [("random", 0.01, 0.3, {"of": 64}), ("untrained", 0.5, 0.1, {}), ("untrained", 0.01, 0.2, {"of": 64})]
    records = [record(row, lr, test, seed, **own) for row, lr, test, own in given for seed in range(3)]
    _, (_, header, gains) = tables(records[::-1] if turned else records)
    found = {line[0]: dict(zip(header[1:], line[1:], strict=True)) for line in gains}
    first, second = found["mirage (lr=0.01 mirage.min_size=default)"], found["mirage (lr=0.1 mirage.min_size=2)"]
    assert (first["over random"], second["over random"]) == ("+10.0", "+0.0")
    assert (first["over untrained"], second["over untrained"]) == ("+50.0", "+80.0")
    assert {of.get("over shuffled", "–") for of in found.values()} == {"–"}  # it was made with other options


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rows": ["scord"]}, "Did you mean 'scored'"),
        ({"rows": []}, "rows: expected at least one"),
        ({"rows": ["full"], "backbones": ["gni"]}, "Did you mean 'gin'"),
        ({"rows": ["full"], "overrides": ("hiden_channels=3",)}, "hidden_channels"),
        ({"rows": ["full"], "overrides": ("mirag.min_size=3",)}, "Did you mean 'mirage'"),
        ({"rows": ["full"], "overrides": ("num_layers=3",)}, "num_layers.*--hops"),
        ({"rows": ["full", "random"], "overrides": ("mirage.min_size=3",)}, "'mirage' is in none of the rows"),
        ({"rows": ["mirage"], "overrides": ("mirage.min_sise=3",)}, "Did you mean 'min_size'"),
        ({"rows": ["mirage"], "overrides": ("mirage.budget=300",)}, "method 'mirage': unknown key 'budget'"),
        ({"rows": ["mirage"], "overrides": ("mirage.method=random",)}, "method 'mirage': unknown key 'method'"),
        (
            {"rows": ["mirage, faithful"], "overrides": ("mirage.faithful=false",)},
            "what the row 'mirage, faithful' says",
        ),
        ({"rows": ["mirage"], "overrides": ("mirage.shared=drop",)}, "shared: expected 'keep' without faithful"),
        ({"rows": ["doscond"], "overrides": ("doscond.steps=0",)}, "steps: expected a whole number from 1"),
        ({"rows": ["mirage"], "budget": "nope"}, "budget: expected bytes"),
        ({"rows": ["full"], "hops": 0}, "hops: expected a whole number from 1"),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_runs(given, message):
    with pytest.raises(G2MError, match=message):
        grid(**given)


def test_a_data_set_of_one_graph_is_refused():
    with pytest.raises(G2MError, match="expected sets of graphs"):
        cells(["digits"], rows=["full"])


def test_shipped_settings_are_of_known_data_and_rows():
    for name, known in bench.shipped().items():
        assert g2m.data.find_card(name).task == "graph classification"
        assert known.keys() <= {"hops", "min_support", "max_epochs", "published"}
        assert len(known["min_support"]) == 2


def test_records_are_plain_json():
    (cell,) = grid(["mirage"])
    record = cell.run()
    assert json.loads(json.dumps(record)) == record
