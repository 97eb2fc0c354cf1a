"""Sweeps over condensed sets: what they search, and that no test graph is loaded into a trial."""

from dataclasses import replace

import optuna
import pytest
import torch
from optuna.trial import TrialState

import g2m
from g2m.bench import read_results
from g2m.condense import experiment as module
from g2m.condense.bench import scored
from g2m.condense.experiment import CondenseExperiment, CondenseTrials
from g2m.errors import G2MError
from g2m.experiments import open_experiment
from g2m.spaces import check_space, suggest
from g2m.sweep import Sweep
from g2m.sweep_report import best_rows

optuna.logging.set_verbosity(optuna.logging.WARNING)

pytestmark = pytest.mark.usefixtures("cache")

QUICK = {"max_epochs": 4, "hidden_channels": 8}
SPACE = {"lr": {"low": 1e-3, "high": 0.3, "log": True}, "norm": ["none", "batch"]}
ATLAS = CondenseExperiment("atlas", "scored", budget="20%", options=QUICK, space=SPACE)


def journal(study):
    return [(trial.params, trial.values, trial.state) for trial in study.get_trials()]


def by_hand(search, trial, seed):
    """The network of a trial, trained on the whole set, its test graphs among it."""
    options = suggest(optuna.trial.FixedTrial(trial.params), search.experiment.space)
    cell = search.experiment.changed(options).cell("transductive", seed)
    graphs = scored(g2m.load("atlas", seed=seed))
    condensed = cell.condensed(graphs)
    return cell.network().fit(graphs, condensed), condensed


def test_a_trial_scores_the_mean_of_its_seeds_on_validation(tmp_path):
    search = Sweep(ATLAS, seeds=2)
    study = search.run(tmp_path / "j.log", trials=3, stack=2)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 3
    for trial in study.trials:
        scores = [by_hand(search, trial, seed)[0].history_.best_score for seed in range(2)]
        assert trial.user_attrs["val"] == pytest.approx(scores)
        assert trial.value == pytest.approx(sum(scores) / 2)
    assert len({trial.value for trial in study.trials}) > 1


def other_tests(*given, **options):
    """Graphs whose test part has other labels, other edges and no attributes."""
    graphs = g2m.load(*given, **options)
    test = torch.zeros(len(graphs), dtype=torch.bool)
    test[graphs.part("test")] = True
    kept = ~test[graphs.batch[graphs.edge_index[0]]]
    edge_attr = None if graphs.edge_attr is None else graphs.edge_attr[kept]
    y = torch.where(test, 1 - graphs.y, graphs.y)
    return replace(graphs, y=y, edge_index=graphs.edge_index[:, kept], edge_attr=edge_attr)


def other_validation(*given, **options):
    graphs = g2m.load(*given, **options)
    y = graphs.y.clone()
    y[graphs.part("val")] = 1 - y[graphs.part("val")]
    return replace(graphs, y=y)


def test_what_is_tested_on_reaches_no_trial(tmp_path, monkeypatch):
    search = Sweep(ATLAS)
    plain = search.run(tmp_path / "a.log", trials=3, cache=tmp_path / "a")
    monkeypatch.setattr(module, "load", other_tests)
    assert other_tests("atlas").fingerprint() != g2m.load("atlas").fingerprint()
    assert journal(search.run(tmp_path / "b.log", trials=3, cache=tmp_path / "b")) == journal(plain)
    monkeypatch.setattr(module, "load", other_validation)  # so that the test could fail
    assert journal(search.run(tmp_path / "c.log", trials=3, cache=tmp_path / "c")) != journal(plain)


def test_a_trial_has_no_test_graphs():
    graphs = CondenseTrials().graphs(ATLAS, 0)
    whole = g2m.load("atlas", seed=0)
    assert graphs.split.keys() == {"train", "val"}
    assert len(graphs) == len(whole.part("train")) + len(whole.part("val"))
    assert not torch.isin(graphs.graph_id, whole.part("test")).any()
    assert graphs.metric == "rocauc"
    with pytest.raises(G2MError, match="test"):
        graphs.part("test")


def test_budgets_give_a_front_of_bytes(tmp_path):
    space = {"budget": ["2%", "5%", "10%", "50%"], "condense.degrees": [False, True], "lr": [0.01, 0.1]}
    search = Sweep(replace(ATLAS, space=space), also="bytes")
    study = search.run(tmp_path / "j.log", trials=8)
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE] * 8
    for trial in study.trials[:2]:
        model, condensed = by_hand(search, trial, 0)
        assert trial.values == pytest.approx([model.history_.best_score, condensed.nbytes().raw])
    header, rows = best_rows(study)
    assert header[:3] == ["trial", "val", "bytes"]
    assert {int(row[0]) for row in rows} == {trial.number for trial in study.best_trials}
    best = search.best(study)
    assert best.budget in space["budget"]
    assert best.condense_options["degrees"] in (False, True)
    assert open_experiment(best.write(tmp_path / "best.toml")) == best


def test_the_best_is_replicated_on_fresh_seeds(tmp_path):
    search = Sweep(ATLAS)
    best = search.best(search.run(tmp_path / "j.log", trials=2))
    again, records = search.replicate(best, 2, out=tmp_path / "r.jsonl")
    assert [record["seed"] for record in records] == [1, 2]
    assert again.tuned["scores"].keys() == {"val", "test", "test_accuracy"}
    assert read_results(tmp_path / "r.jsonl") == records
    assert {key: records[0]["options"][key] for key in best.options} == best.options
    assert search.replicate(best, 2, out=tmp_path / "r.jsonl")[0] == again


def test_a_mistake_in_a_training_fails_its_trial_alone(tmp_path):
    search = Sweep(replace(ATLAS, space={"budget": ["1", "20%"], "lr": [0.01, 0.1]}))
    study = search.run(tmp_path / "j.log", trials=8)
    for trial in study.trials:
        assert (trial.state == TrialState.FAIL) == (trial.params["budget"] == "1") == ("error" in trial.user_attrs)
    assert len({trial.state for trial in study.trials}) == 2


def test_data_that_is_not_there_is_no_trials_mistake(tmp_path):
    search = Sweep(replace(ATLAS, data="nci1"))
    with pytest.raises(G2MError, match="g2m data get nci1"):
        search.run(tmp_path / "j.log", trials=9, root=tmp_path)
    assert journal(search.study(tmp_path / "j.log")) == []


def test_options_go_where_they_belong():
    experiment = replace(ATLAS, space={**SPACE, "hops": [1, 2], "budget": ["1%"], "condense.min_size": [2, 3]})
    given = {"hops": 3, "budget": "5%", "lr": 0.1, "condense.min_size": 4}
    changed = experiment.changed(given)
    assert (changed.hops, changed.budget) == (3, "5%")
    assert changed.options == {**QUICK, "lr": 0.1}
    assert changed.condense_options == {"min_size": 4}
    assert changed.space == {"norm": ["none", "batch"]}
    assert experiment.override(f"{name}={value}" for name, value in given.items()) == changed
    cell = changed.cell("transductive", 5)
    assert (cell.hops, cell.budget, cell.seed, cell.method_options) == (3, "5%", 5, {"min_size": 4})
    assert cell.network().num_layers == 3


def test_by_default_the_networks_options_are_searched():
    plain = replace(ATLAS, space={})
    assert plain.searched().space.keys() == {"lr", "weight_decay", "dropout", "norm"}
    assert plain.searched(sizes=True).space.keys() - plain.searched().space.keys() == {"hidden_channels", "budget"}
    check_space(plain.searched(sizes=True).space)
    assert ATLAS.searched(sizes=True) == ATLAS
    by_support = replace(plain, condense="mirage", condense_options={"min_support": 3})
    assert by_support.searched(sizes=True).space.keys() - plain.searched().space.keys() == {"hidden_channels"}
    assert by_support.cell("transductive", 0).budget is None
    assert Sweep(plain, also="bytes").name == "atlas-scored-gin"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "digits"}, "data: expected a set of graphs"),
        ({"data": "atals"}, r"Did you mean 'atlas'\?"),
        ({"condense": "scord"}, r"condense: .*Did you mean 'scored'\?"),
        ({"condense": "lossless"}, "condense: expected one of"),
        ({"backbone": "gni"}, r"backbone: .*Did you mean 'gin'\?"),
        ({"hops": 0}, "hops: expected a whole number from 1"),
        ({"space": {"lr": {"low": 2, "high": 1}}}, "space: lr: expected low"),
        ({"space": {"seed": [1, 2]}}, "'seed' cannot be set here"),
        ({"space": {"condense.seed": [1, 2]}}, "'seed' cannot be set here"),
        ({"space": {"lrr": [0.1]}}, r"Did you mean 'lr'\?"),
        ({"space": {"condens.min_size": [2]}}, r"Did you mean 'condense'\?"),
        ({"space": {"condense.degres": [True]}}, r"unknown key 'degres'\. Did you mean 'degrees'\?"),
        ({"options": {"num_layers": 3}}, "'num_layers' cannot be set here"),
        ({"options": {"lrr": 3}}, r"Did you mean 'lr'\?"),
        ({"condense_options": {"num_hops": 3}}, "'num_hops' cannot be set here"),
        (
            {"condense": "mirage", "condense_options": {"min_support": 3}, "space": {"budget": ["1%", "3%"]}},
            "^space: budget and min_support, one in place of the other",
        ),
    ],
)
def test_a_wrong_experiment_is_refused(changes, message):
    with pytest.raises(G2MError, match=message):
        Sweep(replace(ATLAS, **changes))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"setting": "inductive"}, "setting: expected 'transductive'"), ({"also": "latency"}, "also: expected one of")],
)
def test_a_wrong_sweep_is_refused(options, message):
    with pytest.raises(G2MError, match=message):
        Sweep(ATLAS, **options)


@pytest.mark.parametrize("table", ["options", "condense_options", "space"])
def test_a_table_that_is_none_is_refused(table):
    with pytest.raises(G2MError, match=f"^{table}: expected a table of key = value"):
        CondenseExperiment("atlas", "scored", **{table: 5})
