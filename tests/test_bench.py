import json
import multiprocessing
import os
import signal
from dataclasses import replace
from functools import reduce
from pathlib import Path

import pytest
import torch
from result_cases import record as line_of

from g2m import bench, experiments
from g2m.bench import Cell, append_result, cache_folder, cells, read_results, run, run_cell
from g2m.data import load
from g2m.errors import G2MError, OutOfMemoryError
from g2m.estimators import Student, Teacher
from g2m.experiments import find
from g2m.methods import REGISTRY
from g2m.methods.mlp import PlainMLP
from g2m.outputs import TeacherOutputs
from g2m.train import resolve_device

pytestmark = pytest.mark.usefixtures("cache")

QUICK = ("data.num_nodes=300", "hidden_channels=8", "max_epochs=3", "teacher.max_epochs=3", "teacher.hidden_channels=8")


def grid(data=("sbm",), overrides=QUICK, **kwargs):
    return cells(data, overrides=overrides, **{"seeds": 2, **kwargs})


def timeless(record):
    """A record without what differs between two runs."""
    if isinstance(record, dict):
        return {key: timeless(value) for key, value in record.items() if key not in ("seconds", "ms", "threads")}
    return record


@pytest.fixture
def counted(monkeypatch):
    """The cells really run, in order."""
    ran = []

    def count(cell, **options):
        ran.append(cell.key)
        return run_cell(cell, **options)

    monkeypatch.setattr(bench, "run_cell", count)
    return ran


# -- the grid --------------------------------------------------------------------------------------------------


def test_a_method_without_a_teacher_is_there_once():
    found = grid(["sbm", "digits"], methods=["mlp", "glnn"], teachers=["sage", "gcn"], overrides=())
    names = [(c.experiment.data, c.experiment.method, c.experiment.teacher, c.setting, c.seed) for c in found]
    expected = {
        (data, method, teacher, setting, seed)
        for data in ("sbm", "digits")
        for method, teacher in (("mlp", None), ("glnn", "sage"), ("glnn", "gcn"))
        for setting in ("transductive", "inductive")
        for seed in (0, 1)
    }
    assert set(names) == expected
    assert len(names) == len(expected)
    assert len({cell.key for cell in found}) == len(found)


def test_names_given_twice_or_as_iterators_are_one_grid():
    assert grid(methods=["mlp", "mlp"]) == grid(methods=["mlp"])
    once = grid(methods=["mlp", "glnn"], teachers=["sage", "gcn"])
    assert (
        grid(iter(["sbm"]), overrides=iter(QUICK), methods=iter(["mlp", "glnn"]), teachers=iter(["sage", "gcn"]))
        == once
    )


def test_every_graph_of_the_whole_benchmark_has_a_card():
    found = cells(bench.ALL_DATA, teachers=bench.ALL_TEACHERS, seeds=1)
    assert len({cell.experiment.data for cell in found}) == len(bench.ALL_DATA) == 10
    assert len(found) == 10 * 2 * 3


def test_shipped_options_are_used_and_overridden():
    (cell,) = cells(["cora-cpf"], methods=["glnn"], settings=["inductive"], seeds=1, overrides=["dropout=0.25"])
    shipped = find("cora-cpf", "glnn", "sage")
    assert cell.experiment == replace(shipped, student_options={**shipped.student_options, "dropout": 0.25})
    teacher, student = cell.estimators()
    assert (teacher.options, teacher.seed) == ({"reference": True}, 0)
    assert (student.dropout, student.weight_decay, student.reference_schedule) == (0.25, 0.005, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": ["smb"]}, r"expected one of .*digits"),
        ({"data": ["cora-cfp"]}, r"Did you mean 'cora-cpf'\?"),
        ({"methods": ["gln"]}, r"method: .*Did you mean 'glnn'\?"),
        ({"teachers": ["sagee"]}, r"teachers: .*Did you mean 'sage'\?"),
        ({"teachers": ["sagee"], "methods": ["mlp"]}, r"teachers: .*Did you mean 'sage'\?"),
        ({"settings": ["inductiv"]}, r"settings: .*Did you mean 'inductive'\?"),
        ({"data": []}, "data: expected at least one name"),
        ({"methods": []}, "methods: expected at least one name"),
        ({"teachers": []}, "teachers: expected at least one name"),
        ({"settings": []}, "settings: expected at least one name"),
        ({"seeds": 0}, "seeds: expected a whole number from 1"),
        ({"overrides": ["hidden_chanels=3"]}, r"method .*unknown key 'hidden_chanels'"),
        ({"overrides": ["glnn.taw=2"]}, r"method 'glnn': unknown key 'taw'\. Did you mean 'tau'\?"),
        ({"overrides": ["glnn.tau=0"]}, "tau: expected a number"),
        ({"overrides": ["teacher.referense=true"]}, r"teacher 'sage': unknown key .*Did you mean 'reference'\?"),
        ({"overrides": ["data.num_nodez=300"]}, r"data 'sbm': unknown key .*Did you mean 'num_nodes'\?"),
        ({"overrides": ["techer.lr=1"]}, r"Did you mean 'teacher'\?"),
        ({"overrides": ["norm=bach"]}, r"norm: .*Did you mean 'batch'\?"),
        ({"overrides": ["teacher.norm=bach"]}, r"norm: .*Did you mean 'batch'\?"),
        ({"overrides": ["glnn.dropout=2"]}, r"dropout: expected a number in \[0, 1\]"),
        ({"overrides": ["teacher.num_layers=0"]}, "num_layers: expected a whole number from 1"),
        ({"overrides": ["seed=3"]}, "'seed' cannot be set here"),
    ],
)
def test_mistakes_are_refused_before_anything_is_trained(arguments, message):
    with pytest.raises(G2MError, match=message):
        grid(**arguments)


def test_checking_draws_no_random_numbers():
    before = torch.get_rng_state()
    grid(teachers=["gcn", "sage", "gat", "appnp", "gin"])
    assert torch.get_rng_state().equal(before)


def test_the_key_changes_with_everything_that_decides():
    overrides = [
        *((), ("dropout=0.1",), ("dropout=0.2",), ("lr=0.1",), ("glnn.tau=2",), ("tau=3",), ("norm=batch",)),
        *(("teacher.lr=0.1",), ("teacher.dropout=0.1",), ("teacher.reference=true",)),
        *(("data.num_nodes=300",), ("data.num_nodes=301",), ("data.homophily=0.1",), ("data.split=random",)),
    ]
    experiments = [find("sbm", "glnn", "sage").override(words) for words in overrides]
    experiments += [find("sbm", "glnn", "gcn"), find("sbm", "mlp"), find("digits", "glnn", "sage")]
    found = [
        bench.Cell(experiment, setting, seed).key
        for experiment in experiments
        for setting in ("transductive", "inductive")
        for seed in (0, 1)
    ]
    assert len(set(found)) == len(found) == 4 * len(experiments)
    # and with nothing else: order of the words, the published numbers, the method that is not run
    given = find("sbm", "glnn", "sage").override(["lr=0.1", "dropout=0.1"])
    same = find("sbm", "glnn", "sage").override(["dropout=0.1", "mlp.lr=5", "lr=0.1"])
    assert bench.Cell(given, "inductive", 0).key == bench.Cell(replace(same, paper={"source": ""}), "inductive", 0).key


# -- one cell --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["transductive", "inductive"])
def test_a_record_says_what_was_run_and_what_came_out(tmp_path, setting):
    (cell,) = grid(methods=["glnn"], settings=[setting], seeds=1)
    record = run_cell(cell, folder=tmp_path / "kept")
    assert json.loads(json.dumps(record)) == record
    assert record.keys() == {
        *("key", "data", "setting", "teacher", "method", "seed", "metric"),
        *("teacher_scores", "teacher_run", "scores", "run", "config"),
    }
    given = {"key": cell.key, "data": "sbm", "setting": setting, "teacher": "sage", "method": "glnn", "seed": 0}
    assert given.items() <= record.items()
    assert record["config"].pop("versions")["torch"] == torch.__version__
    assert record["config"] == cell.experiment.config()
    for trained in (record["run"], record["teacher_run"]):
        assert trained.keys() == {
            *("layers", "width", "parameters", "entries", "best_epoch", "epochs", "seconds", "threads", "device", "ms")
        }
        assert (trained["threads"], trained["device"]) == (torch.get_num_threads(), resolve_device("auto").type)
        assert (trained["layers"], trained["width"], trained["epochs"]) == (2, 8, 3)

    # Oracle: the same by hand.
    graph = load("sbm", seed=0, setting=setting, num_nodes=300)
    teacher = Teacher("sage", hidden_channels=8, max_epochs=3, seed=0).fit(graph)
    student = Student("glnn", hidden_channels=8, max_epochs=3, seed=0).fit(graph, teacher.outputs(graph))
    assert record["scores"] == student.evaluate(graph)
    assert record["teacher_scores"] == teacher.evaluate(graph)
    assert record["run"]["parameters"] == student.num_parameters()
    assert set(record["scores"]) == {"val", "test"} | ({"seen", "unseen", "cold"} if setting == "inductive" else set())

    kept = Student.load(tmp_path / "kept" / "student.safetensors")
    assert kept.predict_logits(graph.x).equal(student.predict_logits(graph.x))
    outputs = TeacherOutputs.load(tmp_path / "kept" / "outputs.safetensors")
    assert outputs.logits.equal(teacher.outputs(graph).logits)
    assert Teacher.load(tmp_path / "kept" / "teacher.safetensors").score(graph) == teacher.score(graph)


def test_latency_is_that_of_one_node_on_the_whole_graph(monkeypatch):
    asked = []

    def measured(who, p50):
        def latency(model, graph, *, sizes, seconds):
            asked.append((who, type(model), graph.num_nodes, tuple(sizes)))
            assert seconds < 0.3, "a cell is not to wait for it"
            return {1: {"p50": p50, "p99": 99.0}}

        return latency

    monkeypatch.setattr(bench, "student_latency", measured("student", 0.123456))
    monkeypatch.setattr(bench, "teacher_latency", measured("teacher", 4.5))
    (cell,) = grid(methods=["glnn"], settings=["inductive"], seeds=1)
    record = run_cell(cell)
    assert (record["run"]["ms"], record["teacher_run"]["ms"]) == (0.1235, 4.5)
    assert asked == [("teacher", Teacher, 300, (1,)), ("student", Student, 300, (1,))]


def test_without_a_teacher_a_record_has_none(tmp_path, cache):
    (cell,) = grid(methods=["mlp"], settings=["transductive"], seeds=1)
    record = run_cell(cell, folder=tmp_path / "kept")
    assert record["teacher"] is None
    assert not {"teacher_scores", "teacher_run"} & record.keys()
    assert [file.name for file in (tmp_path / "kept").iterdir()] == ["student.safetensors"]
    assert not cache.exists()


def test_a_cell_stopped_in_training_goes_on_there(tmp_path, monkeypatch):
    (cell,) = grid(methods=["glnn"], settings=["transductive"], seeds=1, overrides=[*QUICK, "glnn.max_epochs=8"])
    whole = run_cell(cell, cache=tmp_path / "other")
    fit, epochs = Student.fit, []

    def interrupted(self, *args, **kwargs):
        def on_epoch(record):
            epochs.append(record["epoch"])
            if epochs == [0, 1, 2, 3, 4]:
                raise KeyboardInterrupt

        return fit(self, *args, **kwargs, checkpoint_seconds=0, on_epoch=on_epoch)

    monkeypatch.setattr(Student, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_cell(cell, folder=tmp_path / "kept")
    resumed = run_cell(cell, folder=tmp_path / "kept")
    assert epochs[5] > 0, "it did not begin again"
    assert epochs[-1] == 7
    assert timeless(resumed) == timeless(whole)
    assert not (tmp_path / "kept" / "student.checkpoint").exists()


def test_teachers_are_trained_once(cache, monkeypatch):
    trained = []
    save = Teacher.save
    monkeypatch.setattr(Teacher, "save", lambda self, path: trained.append(path) or save(self, path))
    found = grid(methods=["glnn"], settings=["transductive"], seeds=1)
    found += grid(methods=["glnn"], settings=["transductive"], seeds=1, overrides=[*QUICK, "glnn.tau=2"])
    records = list(run(found))
    assert len(trained) == 1
    assert records[0]["teacher_scores"] == records[1]["teacher_scores"]
    assert cache_folder() == cache
    assert [cache / "teachers"] == list(cache.iterdir())


def test_cells_of_a_job_share_its_graph_and_what_its_teacher_scores(monkeypatch):
    loaded, evaluated, load_graph, evaluate = [], [], bench.load, Teacher.evaluate
    monkeypatch.setattr(bench, "load", lambda *a, **k: loaded.append(k["seed"]) or load_graph(*a, **k))
    monkeypatch.setattr(Teacher, "evaluate", lambda self, graph: evaluated.append(self.seed) or evaluate(self, graph))
    found = grid(methods=["glnn", "krd", "mlp", "hidden"], settings=["inductive"], seeds=2)
    shared = list(run(found))
    assert (loaded, evaluated) == ([0, 1], [0, 1])
    list(run(grid(methods=["mlp"], settings=["inductive"], seeds=1)))
    assert loaded == [0, 1, 0], "another run asks again: data may have changed"
    of_a_teacher = [cell for cell in found if cell.experiment.teacher]
    records = {record["key"]: record for record in shared}
    for cell in of_a_teacher[::3]:
        assert timeless(next(run([cell]))) == timeless(records[cell.key])


# -- many cells ------------------------------------------------------------------------------------------------


def test_finished_cells_are_not_run_again(tmp_path, counted):
    out = tmp_path / "new" / "r.jsonl"
    first = grid(methods=["mlp"], settings=["transductive"])
    records = list(run(first, out=out))
    assert counted == [cell.key for cell in first]
    assert read_results(out) == records
    again = list(run(first, out=out))
    assert counted == [cell.key for cell in first]
    assert again == records
    more = grid(methods=["mlp", "glnn"], settings=["transductive"])
    everything = list(run(more, out=out))
    assert sorted(counted) == sorted(cell.key for cell in more)
    assert read_results(out)[:2] == records
    assert sorted(r["key"] for r in read_results(out)) == sorted(r["key"] for r in everything) == sorted(counted)


def test_a_search_takes_over_what_other_cells_have_trained(monkeypatch):
    """Of the eight that auto tries, ff_g2m and glnn are there by then; simmlp alone and hidden alone are not."""
    options = {"settings": ["inductive"], "seeds": 1}
    found = grid(methods=["auto", "glnn", "ff_g2m"], **options)
    assert [cell.experiment.method for cell in found] == ["glnn", "ff_g2m", "auto"]
    trained, fit_method = [], Student._fit_method

    def counted(self, method, *given, **options):
        trained.append(method.name)
        return fit_method(self, method, *given, **options)

    monkeypatch.setattr(Student, "_fit_method", counted)
    *_, together = run(found)
    rest = ["auto", "propagated", "krd", "nosmog", "hidden", "simmlp"]
    assert trained == ["glnn", "ff_g2m", *rest]
    del trained[:]
    (alone,) = run(found[-1:])
    assert sorted(trained) == sorted([*rest, "glnn", "ff_g2m"]), "of another run nothing is left"
    assert timeless(together) == timeless(alone)


@pytest.mark.parametrize("method", ["glnn", "auto"])
def test_what_is_trained_and_not_yet_recorded_is_not_trained_again(method, tmp_path, monkeypatch):
    (cell,) = grid(methods=[method], settings=["inductive"], seeds=1)
    options = {"out": tmp_path / "r.jsonl", "folders": {cell.key: tmp_path / "kept"}}
    (plain,) = run([cell])
    with monkeypatch.context() as patch:
        patch.setattr(Teacher, "evaluate", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(run([cell], **options))
    monkeypatch.setattr(Student, "_fit_method", lambda *_, **__: 1 / 0)
    (record,) = run([cell], **options)
    assert timeless(record) == timeless(plain)
    (changed,) = grid(methods=[method], settings=["inductive"], seeds=1, overrides=(*QUICK, "lr=0.5"))
    with pytest.raises(ZeroDivisionError):
        list(run([changed], folders={changed.key: tmp_path / "kept"}))


def test_a_cell_whose_files_are_gone_is_run_again(tmp_path, counted):
    found = grid(methods=["mlp", "glnn"], settings=["transductive"], seeds=1)
    options = {"out": tmp_path / "r.jsonl", "folders": {cell.key: tmp_path / cell.key for cell in found}}
    records = list(run(found, **options))
    for cell, folder in zip(found, options["folders"].values(), strict=True):
        assert sorted(cell.files) == sorted(file.name for file in folder.iterdir())
        for name in cell.files:
            counted.clear()
            (folder / name).rename(tmp_path / name)
            again = list(run(found, **options))
            assert counted == [cell.key]
            assert (folder / name).is_file()
            assert [timeless(r) for r in sorted(again, key=str)] == [timeless(r) for r in sorted(records, key=str)]
    counted.clear()
    assert len(list(run(found, **options))) == 2
    assert counted == []


def test_without_a_file_all_cells_are_run(counted):
    found = grid(methods=["mlp"], settings=["transductive"])
    assert [r["key"] for r in run(found)] == counted
    assert [timeless(r) for r in run(found)] == [timeless(r) for r in run(found)]
    assert len(counted) == 6


def test_other_tables_in_the_file_are_left_alone(tmp_path, counted):
    append_result(tmp_path / "r.jsonl", {"table": "speed", "ms": 1})
    (record,) = run(grid(methods=["mlp"], settings=["transductive"], seeds=1), out=tmp_path / "r.jsonl")
    assert read_results(tmp_path / "r.jsonl") == [{"table": "speed", "ms": 1}, record]


@pytest.mark.parametrize("cut", [1, 2, 40, 400])
def test_a_line_cut_short_is_run_again_and_repaired(tmp_path, counted, cut):
    out = tmp_path / "r.jsonl"
    found = grid(methods=["mlp"], settings=["transductive"], seeds=3)
    records = list(run(found, out=out))
    whole = out.read_bytes()
    out.write_bytes(whole[:-cut])
    # Only the line's end is lost by the first cut: what can be read is kept.
    lost = 0 if cut == 1 else 1
    assert read_results(out) == records[: 3 - lost]
    del counted[:]
    again = list(run(found, out=out))
    assert counted == [cell.key for cell in found[3 - lost :]]
    assert [timeless(r) for r in again] == [timeless(r) for r in records]
    append_result(out, {"table": "x"})
    assert [timeless(r) for r in read_results(out)] == [*(timeless(r) for r in records), {"table": "x"}]
    assert out.read_bytes().count(b"\n") == 4


def _append_many(path, who):
    for number in range(60):
        append_result(path, {"table": who, "number": number, "text": "x" * 9000})


def test_several_processes_append_to_one_file(tmp_path):
    """Half of a line that another one is writing is not cut off."""
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_append_many, args=(tmp_path / "r.jsonl", who)) for who in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = [(record["table"], record["number"]) for record in read_results(tmp_path / "r.jsonl")]
    assert sorted(found) == [(who, number) for who in range(4) for number in range(60)]


def test_results_of_other_versions_are_named(tmp_path, counted, caplog):
    """A default may have another value in another version, and the key is of what is asked for."""
    first, second = grid(methods=["mlp"], settings=["transductive"], seeds=2)
    caplog.clear()  # of mlp and options of a teacher
    (record,) = run([first], out=tmp_path / "r.jsonl")
    list(run([first, second], out=tmp_path / "r.jsonl"))
    assert not caplog.records
    record["config"]["versions"]["torch"] = "1.0"
    (tmp_path / "r.jsonl").write_text(json.dumps(record) + "\n")
    list(run([first], out=tmp_path / "r.jsonl"))
    assert not caplog.records, "nothing is added to it"
    list(run([first, second], out=tmp_path / "r.jsonl"))
    assert '"torch": "1.0"' in caplog.text


@pytest.mark.parametrize("out", ["file/r.jsonl", "locked/new/r.jsonl", "locked.jsonl"])
def test_a_results_file_that_cannot_be_written_is_refused(tmp_path, counted, out, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked.jsonl").write_text("")
    monkeypatch.setattr(os, "access", lambda path, mode: "locked" not in Path(path).name)  # root may do anything
    with pytest.raises(G2MError, match=r"out: .* cannot be written"):
        list(run(grid(methods=["mlp"]), out=tmp_path / out))
    assert not counted
    assert not (tmp_path / "locked" / "new").exists()


def test_a_set_of_graphs_is_refused_before_anything_is_trained():
    with pytest.raises(G2MError, match=r"data: expected one graph .got 'atlas', a set of graphs"):
        cells(["sbm", "atlas"], methods=["mlp"])


def test_a_wrong_option_is_refused_by_the_name_of_who_was_asked():
    with pytest.raises(G2MError, match=r"members: expected 1 with a tokenizer.*Asked of 'vqgraph' on 'sbm'"):
        grid(methods=["glnn", "vqgraph"], overrides=[*QUICK, "teacher.members=2"])


def test_append_after_a_line_cut_short_at_the_very_start(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"key": "ab')
    assert read_results(tmp_path / "r.jsonl") == []
    append_result(tmp_path / "r.jsonl", {"table": "x"})
    assert (tmp_path / "r.jsonl").read_text() == '{"table": "x"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"table": 1}\n{"tab\n{"table": 1}\n', "line 2 of .* is not JSON"),
        (b'{"table": 1}\n{"tab\n', "line 2 of .* is not JSON"),
        (b'{"table": 1}\n\n{"table": 1}\n', "line 2 of .* is not JSON"),
        (b"\xff\xfe\x00\n", "line 1 of .* is not JSON"),
        (b"words without an end", "line 1 of .* is not JSON"),
        (b'3\n{"table": 1}\n', "line 1 of .* is not a result"),
        (b'{"key": 1}\n', "line 1 of .* is not a result"),
        (b'{"row": 1}\n', "line 1 of .* is not a result"),
    ],
)
def test_a_broken_file_is_refused_and_nothing_is_run(tmp_path, counted, content, message):
    out = tmp_path / "r.jsonl"
    out.write_bytes(content)
    with pytest.raises(G2MError, match=message):
        read_results(out)
    with pytest.raises(G2MError, match=message):
        list(run(grid(methods=["mlp"]), out=out))
    assert counted == []
    assert out.read_bytes() == content


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("key", 3),
        ("setting", "indctive"),
        ("data", None),
        ("teacher", 1),
        ("seed", "0"),
        ("scores", [0.5]),
        ("scores.test", "0.5"),
        ("teacher_scores.test", {}),
        ("run", None),
        ("run.parameters", "many"),
        ("run.seconds", ...),
        ("teacher_run.epochs", ...),
        ("config", "published"),
        ("config.method", ...),
        ("config.teacher_options", None),
        ("config.versions", ...),
    ],
)
def test_a_line_that_lacks_something_is_refused_by_its_name(tmp_path, path, value):
    """... stands for what is not there."""
    line = line_of(seed=1)
    append_result(tmp_path / "r.jsonl", line_of())
    *tables, name = path.split(".")
    table = reduce(dict.__getitem__, tables, line)
    table[name] = value
    if value is ...:
        del table[name]
    append_result(tmp_path / "r.jsonl", line)
    with pytest.raises(G2MError, match=rf"^path: line 2 of '.*r\.jsonl' is not a result of g2m.*'{path}'"):
        read_results(tmp_path / "r.jsonl")


def test_a_line_may_say_more_and_lack_what_older_versions_lacked(tmp_path):
    lines = [line_of(), line_of(method="mlp"), {**line_of(), "note": "mine"}]
    lines[0]["scores"]["cold"] = None
    assert "threads" not in lines[0]["run"]
    for line in lines:
        append_result(tmp_path / "r.jsonl", line)
    assert read_results(tmp_path / "r.jsonl") == lines


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(G2MError, match="no results file"):
        read_results(tmp_path / "r.jsonl")
    with pytest.raises(G2MError, match="no results file"):
        read_results(tmp_path)


class Deadly(Cell):
    """A cell that kills the process it is run in, as the kernel does where memory ends."""

    def run(self, **options):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_worker_is_a_mistake_with_a_way_out(tmp_path):
    found = [Deadly(cell.experiment, cell.setting, cell.seed) for cell in grid(methods=["mlp"], seeds=1)]
    with pytest.raises(G2MError, match=r"^workers: one was killed, .* with fewer"):
        list(run(found, out=tmp_path / "r.jsonl", workers=2))
    assert not (tmp_path / "r.jsonl").exists()
    assert multiprocessing.active_children() == []


def test_wrong_arguments_of_run(tmp_path):
    with pytest.raises(G2MError, match=r"run: unknown key 'cach'\. Did you mean 'cache'\?"):
        list(run(grid(), cach=tmp_path))
    with pytest.raises(G2MError, match="workers: expected a whole number from 1"):
        list(run(grid(), workers=0))


def test_a_method_of_ones_own_runs_by_its_name():
    try:
        type("Own", (PlainMLP,), {"name": "own"})
        own, plain = run(grid(methods=["own", "mlp"], settings=["transductive"], seeds=1))
    finally:
        REGISTRY.pop("own", None)
    assert (own["method"], own["scores"]) == ("own", plain["scores"])


def test_two_processes_give_what_one_gives(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)  # one thread a worker
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = grid(settings=["transductive"], seeds=2)
        alone = {r["key"]: timeless(r) for r in run(found, cache=tmp_path / "a")}
    finally:
        torch.set_num_threads(threads)
    folders = {cell.key: tmp_path / "kept" / cell.key for cell in found}
    records = list(run(found, out=tmp_path / "r.jsonl", workers=2, cache=tmp_path / "b", folders=folders))
    assert len(records) == len(found) == 4
    assert {r["key"]: timeless(r) for r in records} == alone
    assert read_results(tmp_path / "r.jsonl") == records
    assert all((folder / "student.safetensors").exists() for folder in folders.values())
    assert multiprocessing.active_children() == []


def broken(cells, *indices):
    """The same cells, some with options of the data that only loading refuses."""
    return [
        replace(cell, experiment=cell.experiment.override(["data.homophily=2"])) if i in indices else cell
        for i, cell in enumerate(cells)
    ]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_a_training_logs_is_logged_here(tmp_path, caplog, workers):
    caplog.set_level("INFO", logger="g2m.memory")
    list(run(grid(methods=["glnn"], seeds=1), workers=workers, cache=tmp_path))
    said = [record.getMessage() for record in caplog.records if record.name == "g2m.memory"]
    assert said
    assert all(line.startswith("teacher: about ") for line in said)
    caplog.clear()
    caplog.set_level("WARNING", logger="g2m.memory")
    list(run(grid(methods=["glnn"], seeds=1), workers=workers, cache=tmp_path / "anew"))
    assert not caplog.records


@pytest.mark.parametrize("workers", [1, 2])
def test_a_failed_cell_is_told_and_the_run_goes_on(tmp_path, workers):
    found = broken(grid(settings=["transductive"]), 0, 3)
    failed = []
    records = list(
        run(found, out=tmp_path / "r.jsonl", workers=workers, on_error=lambda cell, error: failed.append((cell, error)))
    )
    assert {r["key"] for r in records} == {found[1].key, found[2].key}
    assert read_results(tmp_path / "r.jsonl") == records
    assert {cell.key for cell, _ in failed} == {found[0].key, found[3].key}
    assert all(isinstance(error, G2MError) and "homophily: expected a number" in str(error) for _, error in failed)
    assert multiprocessing.active_children() == []


def test_what_is_no_mistake_of_the_user_ends_the_run(monkeypatch):
    for error in (RuntimeError("a bug"), KeyboardInterrupt()):

        def fail(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr(bench, "run_cell", fail)
        with pytest.raises(type(error)):
            list(run(grid(), on_error=lambda *_: None))


def test_a_failure_in_one_process_ends_the_others(tmp_path):
    # One cell cannot be loaded, the other would train for hours.
    (endless,) = grid(methods=["mlp"], settings=["transductive"], seeds=1)
    endless = replace(endless, experiment=endless.experiment.override(["max_epochs=1000000000", "patience=1000000000"]))
    (other,) = broken([replace(endless, seed=1)], 0)
    with pytest.raises(G2MError, match="homophily: expected a number"):
        list(run([endless, other], workers=2))
    assert multiprocessing.active_children() == []


# -- seeds at once ---------------------------------------------------------------------------------------------------


@pytest.fixture
def stacks(monkeypatch):
    """The seeds that were really trained at once."""
    found = []
    fit_stacked = bench.fit_stacked

    def count(students, *given, **options):
        found.append([student.seed for student in students])
        return fit_stacked(students, *given, **options)

    monkeypatch.setattr(bench, "fit_stacked", count)
    return found


def test_a_gpu_that_holds_no_stack_fails_its_cells_and_the_run_goes_on(monkeypatch):
    def full(students, *given, **options):
        raise OutOfMemoryError("device: the GPU's memory does not hold this.")

    monkeypatch.setattr(bench, "fit_stacked", full)
    failed, found = [], grid(["sbm"], QUICK, methods=["glnn"], settings=["transductive"], seeds=3)
    records = list(run(found, stack=2, on_error=lambda cell, error: failed.append(cell.seed)))
    assert (failed, [record["seed"] for record in records]) == ([0, 1], [2])


def shape(record):
    return {key: shape(value) for key, value in record.items()} if isinstance(record, dict) else type(record)


@pytest.mark.parametrize("setting", ["transductive", "inductive"])
def test_seeds_at_once_score_what_they_would_one_by_one(tmp_path, stacks, setting):
    overrides = (*QUICK, "max_epochs=12", "teacher.max_epochs=12", "lr=0.02")
    found = grid(["sbm"], overrides, settings=[setting], seeds=5)
    alone = {record["key"]: record for record in run(found, cache=tmp_path / "a")}
    assert stacks == []
    together = list(run(found, out=tmp_path / "r.jsonl", cache=tmp_path / "b", stack=3))
    assert sorted(stacks) == [[0, 1, 2], [0, 1, 2], [3, 4], [3, 4]]
    assert len(together) == len(found) == 10
    for record in together:
        other = alone[record["key"]]
        assert shape(record) == shape(other)
        assert record["scores"] == pytest.approx(other["scores"], abs=0.02)
        same = {"scores": None, "run": {key: record["run"][key] for key in ("layers", "width", "parameters", "epochs")}}
        assert timeless(record | same) == timeless(other | same)
        assert {key: other["run"][key] for key in same["run"]} == same["run"]
    assert len({record["scores"]["test"] for record in together}) > 3
    assert read_results(tmp_path / "r.jsonl") == together
    again = list(run(found, out=tmp_path / "r.jsonl", stack=2))
    assert {r["key"]: r for r in again} == {r["key"]: r for r in together}, "finished ones are not run again"
    assert len(stacks) == 4


def test_a_killed_run_of_stacks_goes_on(tmp_path, stacks):
    found = grid(methods=["mlp"], settings=["transductive"], seeds=5)
    (first, *_), whole = (list(run(found, out=tmp_path / name, stack=4)) for name in ("a.jsonl", "b.jsonl"))
    (tmp_path / "a.jsonl").write_text(json.dumps(first) + "\n")
    del stacks[:]
    again = list(run(found, out=tmp_path / "a.jsonl", stack=4))
    assert stacks == [[1, 2, 3]]
    assert {r["key"] for r in again} == {r["key"] for r in whole} == {cell.key for cell in found}


@pytest.mark.parametrize("kind", ["load", "training"])
def test_a_failed_seed_does_not_hurt_those_beside_it(tmp_path, stacks, monkeypatch, kind):
    found = grid(settings=["transductive"], seeds=4)
    if kind == "load":
        load_graph = bench.load

        def refuse(name, *, seed, **options):
            if seed == 2:
                raise G2MError("homophily: not this seed")
            return load_graph(name, seed=seed, **options)

        monkeypatch.setattr(bench, "load", refuse)
    else:
        found = grid(settings=["transductive"], seeds=4)
        prepare = Student._prepare

        def fail(self, *given, **options):
            if self.seed == 2:
                raise G2MError("homophily: not this seed")
            return prepare(self, *given, **options)

        monkeypatch.setattr(Student, "_prepare", fail)
    failed = []
    records = list(
        run(
            found,
            out=tmp_path / "r.jsonl",
            stack=4,
            on_error=lambda cell, error: failed.append((cell.seed, str(error))),
        )
    )
    assert sorted((r["method"], r["seed"]) for r in records) == [(m, s) for m in ("glnn", "mlp") for s in (0, 1, 3)]
    assert failed == [(2, "homophily: not this seed")] * 2
    assert read_results(tmp_path / "r.jsonl") == records
    assert len(stacks) == 2
    with pytest.raises(G2MError, match="homophily: not this seed"):
        list(run(found, stack=4))


def test_a_seed_that_cannot_begin_does_not_hurt_those_beside_it(tmp_path, stacks, monkeypatch):
    begin = Student._begin

    def refuse(self, *given):
        if self.seed == 2:
            raise G2MError("outputs: not this seed")
        return begin(self, *given)

    monkeypatch.setattr(Student, "_begin", refuse)
    failed = []
    found = grid(methods=["mlp"], settings=["transductive"], seeds=4)
    records = list(run(found, stack=4, on_error=lambda cell, error: failed.append((cell.seed, str(error)))))
    assert [record["seed"] for record in records] == [0, 1, 3]
    assert (failed, stacks) == ([(2, "outputs: not this seed")], [[0, 1, 3]])


def test_seeds_of_other_sizes_are_trained_apart(monkeypatch, stacks):
    load_graph = bench.load

    def varying(name, *, seed, **options):
        return load_graph(name, seed=seed, **options, num_features=16 + seed // 2)

    monkeypatch.setattr(bench, "load", varying)
    records = list(run(grid(methods=["mlp"], settings=["transductive"], seeds=3), stack=3))
    assert [record["seed"] for record in records] == [0, 1, 2]
    assert stacks == [[0, 1], [2]]
    assert len({record["run"]["parameters"] for record in records}) == 2


def test_what_searches_and_what_is_kept_goes_one_by_one(tmp_path, stacks, counted):
    auto = grid(methods=["auto"], settings=["transductive"], overrides=(*QUICK, "max_epochs=1"))
    kept = grid(methods=["mlp"], settings=["transductive"])
    plain = grid(methods=["mlp"], settings=["transductive"], overrides=(*QUICK, "lr=0.03"))
    folders = {cell.key: tmp_path / cell.key for cell in kept}
    records = list(run([*auto, *kept, *plain], stack=2, folders=folders))
    assert {r["key"] for r in records} == {cell.key for cell in (*auto, *kept, *plain)}
    assert sorted(counted) == sorted(cell.key for cell in (*auto, *kept))
    assert stacks == [[0, 1]]
    assert all((folder / "student.safetensors").exists() for folder in folders.values())


def test_cells_of_other_options_settings_and_data_are_stacks_of_their_own(stacks):
    found = grid(methods=["mlp"], seeds=2) + grid(methods=["mlp"], seeds=2, overrides=(*QUICK, "norm=batch"))
    assert len(list(run(found, stack=8))) == 8
    assert stacks == [[0, 1]] * 4


def test_a_stack_is_a_whole_number():
    with pytest.raises(G2MError, match="stack: expected a whole number from 1"):
        list(run(grid(), stack=0))


# -- tuned options ---------------------------------------------------------------------------------------------------


def test_tuned_options_are_used_where_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "TUNED", tmp_path)
    experiments.tuned.cache_clear()
    try:
        best = replace(find("sbm", "glnn", "sage"), student_options={"lr": 0.123}, tuned={"val": 0.9})
        best.write(tmp_path / "x.toml")
        (cell,) = cells(["sbm"], methods=["glnn"], settings=["inductive"], seeds=1, tuned=True, overrides=["tau=2"])
        assert cell.experiment == replace(best, student_options={"lr": 0.123, "tau": 2})
        with pytest.raises(G2MError, match="no tuned options for sbm-mlp; there are sbm-glnn-sage"):
            cells(["sbm"], methods=["glnn", "mlp"], tuned=True)
    finally:
        experiments.tuned.cache_clear()
