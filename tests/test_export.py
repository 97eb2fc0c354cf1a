import io
import json
import re
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import blocks, outputs_of, thin

import g2m
from g2m import export as module
from g2m.errors import G2MError
from g2m.estimators import Student
from g2m.export import OPSET, Exported, card_path
from g2m.stacked import fit_stacked

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

WIDTH, CLASSES = 10, 3
GRAPH = blocks(60)


def fitted(method="mlp", graph=GRAPH, **options):
    outputs = None if method == "mlp" else outputs_of(graph)
    return Student(method, **{"hidden_channels": 16, "max_epochs": 3, "seed": 1} | options).fit(graph, outputs)


def stacked():
    students = [Student("mlp", hidden_channels=16, max_epochs=2, seed=seed) for seed in (0, 1)]
    fit_stacked(students, GRAPH)
    return students[1]


KINDS = {
    "plain": lambda: fitted("glnn"),
    "deep, batch norm, wide": lambda: fitted(num_layers=3, norm="batch", hidden_channels=96, dropout=0.5),
    "layer norm": lambda: fitted(norm="layer"),
    "one layer": lambda: fitted(num_layers=1),
    "trained on sparse features": lambda: fitted(graph=thin(sparse=True), hidden_channels=64),
    "stacked": stacked,
}


@pytest.fixture(scope="module")
def student():
    return fitted("glnn")


@pytest.fixture(scope="module", params=["student.onnx", "student.pt2"])
def file(request, student, tmp_path_factory):
    """A file that was exported with everything there is to say."""
    return student.export(
        tmp_path_factory.mktemp("new") / "folder" / request.param,
        graph=GRAPH,
        class_names=["a", "b", "c"],
        feature_names=[f"f{i}" for i in range(WIDTH)],
        scores={"elsewhere": 0.5},
    )


def rows(count, width=WIDTH, seed=3):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


# -- answers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".onnx", ".pt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_file_answers_as_the_student(tmp_path, kind, suffix):
    student = KINDS[kind]()
    exported = Exported.load(student.export(tmp_path / f"student{suffix}"))
    for count in (0, 1, 2, 33, 10_000):
        x = rows(count, student.meta_["in_channels"])
        logits = student.predict_logits(x)
        torch.testing.assert_close(exported.predict_logits(x), logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(exported.predict_proba(x), logits.softmax(-1), atol=1e-5, rtol=0)
    assert exported.predict(x).equal(student.predict(x))
    assert not exported.meta["positions"]
    assert "alone" in exported.meta["what"]


def test_many_rows_are_answered_some_at_a_time(file, student, monkeypatch):
    monkeypatch.setattr(module, "ROWS", 7)
    exported, asked = Exported.load(file), []
    run = exported.run
    exported.run = lambda x: asked.append(len(x)) or run(x)
    torch.testing.assert_close(
        exported.predict_logits(rows(33)), student.predict_logits(rows(33)), atol=1e-5, rtol=1e-5
    )
    assert asked == [7, 7, 7, 7, 5]


def test_arrays_in_arrays_out_and_other_types_are_cast(file, student):
    exported, x = Exported.load(file), np.arange(3 * WIDTH).reshape(3, WIDTH)
    assert isinstance(exported.predict_proba(x), np.ndarray)
    np.testing.assert_array_equal(exported.predict(x), student.predict(x))
    np.testing.assert_array_equal(
        exported.predict(x.astype(np.float64)[:, ::-1].copy()), student.predict(x[:, ::-1].copy())
    )
    assert exported.predict(torch.from_numpy(x).t().contiguous().t()).equal(torch.from_numpy(student.predict(x)))


@pytest.mark.parametrize("x", [rows(3, WIDTH + 1), rows(3)[0], "abc", rows(3) / 0])
def test_features_are_checked_as_the_student_does(file, student, x):
    with pytest.raises(G2MError) as by_student:
        student.predict(x)
    with pytest.raises(G2MError, match=f"^{re.escape(str(by_student.value))}$"):
        Exported.load(file).predict(x)


def test_onnx_without_g2m(tmp_path, student):
    path = student.export(tmp_path / "student.onnx")
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(part.domain, part.version) for part in model.opset_import] == [("", OPSET)]
    (given,) = model.graph.input
    assert [dim.dim_param or dim.dim_value for dim in given.type.tensor_type.shape.dim] == ["N", WIDTH]
    assert [output.name for output in model.graph.output] == ["logits", "probabilities"]
    assert {*tmp_path.iterdir()} == {path, tmp_path / "student.md"}, "no weights in a second file"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = rows(5)
    logits, probabilities = session.run(None, {"features": x.numpy()})
    np.testing.assert_allclose(logits, student.predict_logits(x), atol=1e-5)
    np.testing.assert_allclose(probabilities, student.predict_proba(x), atol=1e-5)


def test_pt2_without_g2m_and_without_pickles(tmp_path, student):
    path = student.export(tmp_path / "student.pt2")
    logits, probabilities = torch.export.load(path).module()(rows(5))
    torch.testing.assert_close(logits, student.predict_logits(rows(5)), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(probabilities, logits.softmax(-1))
    with zipfile.ZipFile(path) as archive:
        assert not [name for name in archive.namelist() if archive.read(name)[:1] == b"\x80"]


# -- neighbours --------------------------------------------------------------------------------------------------

# Ids of known nodes have holes; features say nothing, so that neighbours count.
LINKED = replace(blocks(60, unseen=True), x=rows(60))


@pytest.fixture(scope="module", params=["nosmog", "onehop"])
def reader(request):
    return fitted(request.param, LINKED, norm="batch")


def links(num_rows, seed=4):
    """Arcs from known nodes and others, some of which there never were; some rows have none."""
    generator = torch.Generator().manual_seed(seed)
    known = torch.randint(-3, 70, (2 * num_rows,), generator=generator)
    return torch.stack([known, torch.randint(max(1, num_rows), (2 * num_rows,), generator=generator)])


@pytest.mark.parametrize("name", ["student.onnx", "student.pt2"])
def test_the_rows_of_neighbours_travel_with_the_student(tmp_path, reader, monkeypatch, name):
    exported = Exported.load(reader.export(tmp_path / name, graph=LINKED))
    for count in (0, 1, 2, 33, 5000):
        x, arcs = rows(count), links(count)
        close = {"atol": 1e-5, "rtol": 1e-5}
        torch.testing.assert_close(exported.predict_logits(x, arcs), reader.predict_logits(x, arcs), **close)
        torch.testing.assert_close(exported.predict_logits(x), reader.predict_logits(x), **close)
    assert not torch.allclose(exported.predict_logits(x, arcs), exported.predict_logits(x), atol=1e-3)
    repeated = torch.cat([arcs, arcs[:, ::3]], 1)  # a graph merges them
    torch.testing.assert_close(exported.predict_logits(x, repeated), exported.predict_logits(x, arcs), **close)
    assert isinstance(exported.predict_proba(x.numpy(), arcs.numpy()), np.ndarray)
    assert exported.predict(x, arcs).equal(reader.predict(x, arcs))
    whole, asked, run = exported.predict_logits(x, arcs), [], exported.run
    monkeypatch.setattr(module, "ROWS", 8 * 1700)
    exported.run = lambda x, arcs: asked.append((len(x), int(arcs[1].max()))) or run(x, arcs)
    torch.testing.assert_close(exported.predict_logits(x, arcs), whole, atol=1e-6, rtol=1e-5)
    assert [count for count, _ in asked] == [1700, 1700, 1600]
    assert all(row < count for count, row in asked)
    meta = exported.meta
    assert meta["scores"] == meta["exported_scores"] == reader.evaluate(LINKED)
    assert meta["scores"]["cold"] != meta["scores"]["unseen"]
    assert meta["neighbours"] == len(LINKED.observed().node_id)
    assert meta["inputs"] == ["features: float32 [N, 10]", "edge_index: int64 [2, E]"]
    assert "what is kept of their neighbours" in meta["what"]


@pytest.mark.parametrize("name", ["student.onnx", "student.pt2"])
def test_the_card_of_one_with_neighbours_runs(tmp_path, reader, monkeypatch, name):
    text = card_path(reader.export(tmp_path / name)).read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(code, namespace)
    expected = reader.predict_logits(torch.zeros(1, WIDTH), [[4, 7], [0, 0]])
    np.testing.assert_allclose(namespace["logits"], expected, atol=1e-5)
    assert "--edges edges.csv" in text
    assert f"rows of {len(LINKED.observed().node_id)} nodes are inside" in text


@pytest.mark.parametrize("name", ["student.onnx", "student.pt2"])
def test_neighbours_may_be_left_out_and_the_file_says_what_that_costs(tmp_path, reader, name):
    exported = Exported.load(reader.export(tmp_path / name, neighbours=False, graph=LINKED))
    torch.testing.assert_close(exported.predict_logits(rows(9)), reader.predict_logits(rows(9)), atol=1e-5, rtol=1e-5)
    assert exported.meta["scores"] == reader.evaluate(LINKED)
    for part, score in exported.meta["exported_scores"].items():
        ids = LINKED.part("unseen" if part == "cold" else part)
        assert score == pytest.approx((reader.predict(LINKED.x)[ids] == LINKED.y[ids]).double().mean().item())
    assert exported.meta["positions"]
    assert exported.meta["neighbours"] == 0
    assert "nothing is linked to" in exported.meta["what"]
    with pytest.raises(G2MError, match="edge_index: this file reads features alone"):
        exported.predict(rows(2), [[1], [0]])


@pytest.mark.parametrize("arcs", [[[1.5], [0]], [1, 2], [[1], [2]], [[1], [-1]], [[1, 2], [0]]])
def test_arcs_are_checked_as_the_student_does(tmp_path, reader, arcs):
    exported = Exported.load(reader.export(tmp_path / "student.pt2"))
    with pytest.raises(G2MError) as by_student:
        reader.predict(rows(2), arcs)
    with pytest.raises(G2MError, match=f"^{re.escape(str(by_student.value))}$"):
        exported.predict(rows(2), arcs)


@pytest.mark.parametrize(("precision", "name"), [("int8", "s.onnx"), ("bfloat16", "s.onnx"), ("bfloat16", "s.pt2")])
def test_a_lower_precision_counts_right(tmp_path, precision, name):
    """Many neighbours of one kind: what 16 bits lose of a row does not grow with their number."""
    reader = fitted("onehop", LINKED)
    exported = Exported.load(reader.export(tmp_path / name, precision=precision))
    known = int(reader.position_[0][0])
    x = rows(1)
    few, many = (exported.predict_proba(x, [[known] * count, [0] * count]) for count in (1, 1000))
    torch.testing.assert_close(few, many, atol=1e-3, rtol=0)
    torch.testing.assert_close(few, reader.predict_proba(x, [[known], [0]]), atol=0.2, rtol=0)


def test_an_onnx_that_would_be_too_large_is_refused_beforehand(tmp_path, reader, monkeypatch):
    monkeypatch.setattr(module, "BYTES", 1000)
    with pytest.raises(G2MError, match=r"path: an \.onnx file holds .* Name a \.pt2, or leave the rows out"):
        reader.export(tmp_path / "student.onnx")
    assert list(tmp_path.iterdir()) == []


# -- precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "suffix", "share", "near"),
    [("int8", ".onnx", 0.4, 0.3), ("bfloat16", ".onnx", 0.6, 0.05), ("bfloat16", ".pt2", 0.7, 0.05)],
)
def test_a_lower_precision_is_smaller_and_says_what_it_costs(tmp_path, precision, suffix, share, near):
    student = fitted(hidden_channels=256, num_layers=3, max_epochs=20)
    whole = student.export(tmp_path / f"whole{suffix}")
    path = student.export(tmp_path / f"less{suffix}", precision=precision, graph=GRAPH)
    assert path.stat().st_size < share * whole.stat().st_size
    exported = Exported.load(path)
    probabilities, given = student.predict_proba(GRAPH.x), exported.predict_proba(GRAPH.x)
    assert 0 < (probabilities - given).abs().max() < near
    meta = exported.meta
    assert meta["precision"] == precision
    same = (given.argmax(1) == probabilities.argmax(1)).double().mean().item()
    assert meta["compared"]["real"]["same_class"] == pytest.approx(same)
    assert meta["compared"]["real"]["difference"] > module.TOLERANCE
    assert meta["scores"] == student.evaluate(GRAPH)
    for part, score in meta["exported_scores"].items():
        ids = GRAPH.part(part)
        assert score == pytest.approx((given.argmax(1)[ids] == GRAPH.y[ids]).double().mean().item())
    card = card_path(path).read_text()
    assert f"| test | {meta['scores']['test']:.4f} | {meta['exported_scores']['test']:.4f} |" in card


# -- what the file says ------------------------------------------------------------------------------------------


def test_metadata_come_back(file, student):
    meta = Exported.load(file).meta
    for name in ("graph", "setting", "fingerprint", "metric", "in_channels", "num_classes", "teacher"):
        assert meta[name] == student.meta_[name]
    assert meta["method"] == "glnn"
    assert meta["class_names"] == ["a", "b", "c"]
    assert meta["feature_names"][-1] == "f9"
    assert meta["scores"] == {"elsewhere": 0.5, **student.evaluate(GRAPH)}
    assert meta["exported_scores"] == student.evaluate(GRAPH)
    assert meta["versions"]["torch"] == torch.__version__
    assert meta["trained_with"] == student.meta_["versions"]
    assert meta["precision"] == "float32"
    assert meta.get("opset") == (OPSET if file.suffix == ".onnx" else None)
    assert ("onnxruntime" in meta["versions"]) == (file.suffix == ".onnx")
    assert meta["compared"].keys() == {"random", "real"}
    assert all(found["difference"] <= module.TOLERANCE for found in meta["compared"].values())


def test_metadata_are_there_for_whoever_has_no_g2m(file):
    if file.suffix == ".onnx":
        found = onnxruntime.InferenceSession(file).get_modelmeta()
        meta = {key: json.loads(value) for key, value in found.custom_metadata_map.items()}
        assert meta["g2m.class_names"] == ["a", "b", "c"]
        assert found.description == meta["g2m.what"]
    else:
        entries = {"g2m.json": ""}
        torch.export.load(file, extra_files=entries)
        assert json.loads(entries["g2m.json"])["class_names"] == ["a", "b", "c"]


def test_without_a_graph_the_score_is_that_of_validation(tmp_path, student):
    meta = Exported.load(student.export(tmp_path / "student.pt2")).meta
    assert meta["scores"] == {"val": student.meta_["val"]}
    assert "exported_scores" not in meta
    assert meta["compared"].keys() == {"random"}
    path = student.export(tmp_path / "student.pt2", calibration=GRAPH.x.numpy()[:4])
    assert Exported.load(path).meta["compared"]["real"]["rows"] == 4


def test_the_card_says_it_and_its_code_runs(file, monkeypatch):
    card = card_path(file)
    text = card.read_text(encoding="utf-8")
    assert card == file.with_suffix(".md")
    meta = Exported.load(file).meta
    for said in (meta["what"], meta["fingerprint"], "`features: float32 [N, 10]`, any N", "1. b", "9. f9", "elsewhere"):
        assert said in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    monkeypatch.chdir(file.parent)
    namespace = {}
    exec(code, namespace)
    assert namespace["logits"].shape == (1, CLASSES)


def test_two_files_of_one_name_have_a_card_each(tmp_path, student):
    for name in ("student.pt2", "student.onnx", "student.pt2"):
        student.export(tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {
        "student.pt2",
        "student.onnx",
        "student.md",
        "student.onnx.md",
    }
    for name in ("student.pt2", "student.onnx"):
        assert f"# {name}\n" in card_path(tmp_path / name).read_text()


def test_a_page_that_is_no_card_is_left_alone(tmp_path, student):
    for name in ("README.md", "README.pt2.md"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(G2MError, match=r"path: .*README\.pt2\.md.* is not its model card"):
        student.export(tmp_path / "README.pt2")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "README.md": "mine",
        "README.pt2.md": "mine",
    }


# -- nothing wrong is kept ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["student.onnx", "student.pt2"])
@pytest.mark.parametrize(("wrong", "only"), [(1e-4, 1), (float("nan"), None)])
def test_answers_that_differ_leave_no_file(tmp_path, student, monkeypatch, name, wrong, only):
    answers = Exported._answers

    def broken(self, x, edge_index, output):
        found = answers(self, x, edge_index, output)
        return found + wrong if only in (None, len(x)) else found

    (tmp_path / name).write_text("old")
    monkeypatch.setattr(Exported, "_answers", broken)
    with pytest.raises(G2MError, match=r"export: the file's answers to 1 rows of random .* Nothing was written"):
        student.export(tmp_path / name)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_answers_that_differ_on_real_features_alone_leave_no_file(tmp_path, student, monkeypatch):
    answers = Exported._answers
    monkeypatch.setattr(Exported, "_answers", lambda self, x, *o: answers(self, x, *o) + 1e-3 * (x.abs().max() > 100))
    with pytest.raises(G2MError, match="rows of real features"):
        student.export(tmp_path / "student.pt2", calibration=1000 * GRAPH.x)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file(tmp_path, student, monkeypatch):
    path = student.export(tmp_path / "student.pt2")
    before = path.read_bytes()

    def full(self, *args):
        raise OSError("disk full")

    monkeypatch.setattr(type(path), "replace", full)
    with pytest.raises(OSError, match="disk full"):
        student.export(path)
    assert path.read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {"student.pt2", "student.md"}


def test_a_card_is_of_the_file_that_is_there(tmp_path, student, monkeypatch):
    path = student.export(tmp_path / "student.pt2")
    before = [file.read_bytes() for file in (path, path.with_suffix(".md"))]

    def full(*args):
        raise OSError("disk full")

    monkeypatch.setattr(module, "write_bytes", full)
    with pytest.raises(OSError, match="disk full"):
        student.export(path, graph=GRAPH)
    assert [file.read_bytes() for file in (path, path.with_suffix(".md"))] == before


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("student.onx", {}, r"path: expected a name that ends in \.onnx or \.pt2 .*Did you mean '\.onnx'\?"),
        ("student", {}, "path: expected a name that ends in"),
        ("student.onnx", {"precision": "int9"}, r"precision: .* Did you mean 'int8'\?"),
        ("student.pt2", {"precision": "int8"}, r"precision: .* Name it student\.onnx"),
        ("student.pt2", {"neighbours": False}, "neighbours: .* reads features alone"),
        ("student.pt2", {"class_names": ["a"]}, r"class_names: expected 3 strings, .*\(got 1, such as 'a'\)"),
        ("student.pt2", {"class_names": "abc"}, r"class_names: expected 3 strings"),
        ("student.pt2", {"feature_names": []}, r"feature_names: expected 10 strings, .*\(got none\)"),
        ("student.pt2", {"scores": {"test": "good"}}, "scores: expected numbers by name"),
        ("student.pt2", {"scores": [0.5]}, "scores: expected numbers by name"),
        ("student.pt2", {"calibration": rows(3, 4)}, r"calibration: expected features of shape \[N, 10\]"),
        ("student.pt2", {"calibration": rows(0)}, "calibration: expected at least one row"),
        ("student.pt2", {"graph": blocks(60, seed=1)}, "graph: expected 'blocks' with the seed"),
        ("student.pt2", {"graph": replace(GRAPH, split=GRAPH.split | {"train": torch.arange(5)})}, "graph: expected"),
        ("student.pt2", {"graph": rows(3)}, r"graph: expected a g2m\.Graph"),
    ],
)
def test_mistakes_write_nothing(tmp_path, student, name, options, message):
    with pytest.raises(G2MError, match=message):
        student.export(tmp_path / "new" / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_student_that_is_not_fitted(tmp_path):
    with pytest.raises(G2MError, match="student: not fitted yet"):
        Student("mlp").export(tmp_path / "student.onnx")


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_missing_packages_say_what_to_install(tmp_path, student, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(G2MError, match=r"pip install 'g2m\[export\]', or name a \.pt2"):
        student.export(tmp_path / "student.onnx")
    assert Exported.load(student.export(tmp_path / "student.pt2")).predict(rows(2)).shape == (2,)


def test_a_file_of_onnx_needs_only_onnxruntime(tmp_path, student, monkeypatch):
    path = student.export(tmp_path / "student.onnx")
    with monkeypatch.context() as without:
        for name in ("onnx", "onnxscript"):
            without.setitem(sys.modules, name, None)
        assert Exported.load(path).predict(rows(2)).equal(student.predict(rows(2)))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(G2MError, match=r"run by onnxruntime\. Run pip install 'g2m\[export\]'"):
        Exported.load(path)


def test_a_pt2_says_which_torch_it_needs(tmp_path, student, monkeypatch):
    path = student.export(tmp_path / "student.pt2")
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.8.0"))
    before = {*tmp_path.iterdir()}
    for call in (lambda: student.export(tmp_path / "other.pt2"), lambda: Exported.load(path)):
        with pytest.raises(G2MError, match=r"path: \.pt2 files .* torch from 2\.9 \(got 2\.8\.0\)\. .* take an \.onnx"):
            call()
    assert {*tmp_path.iterdir()} == before


# -- files that are not what they say ----------------------------------------------------------------------------


def flipped(data, at):
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize("damage", ["empty", "text", "cut", "half", "weight", "score"])
def test_broken_files_are_refused(tmp_path, file, student, damage):
    data = file.read_bytes()
    weight = student.model_.layers[1].bias.detach().numpy().tobytes()
    assert data.count(weight) == 1
    data = {
        "empty": b"",
        "text": b"I am a text file",
        "cut": data[:-3],
        "half": data[: len(data) // 2],
        "weight": flipped(data, data.index(weight)),
        "score": flipped(data, data.index(b"elsewhere") + 3),
    }[damage]
    path = tmp_path / file.name
    path.write_bytes(data)
    with pytest.raises(
        G2MError, match=r"^path: .* is truncated, changed or not \.(onnx|pt2) \(.*\)\. Export it again\.$"
    ):
        Exported.load(path)


def test_files_of_others_are_refused(tmp_path):
    linear = torch.nn.Linear(3, 2)
    torch.export.save(torch.export.export(linear, (rows(2, 3),)), tmp_path / "other.pt2")
    helper = onnx.helper
    x, y = (helper.make_tensor_value_info(name, 1, ["N", 3]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "other", [x], [y])
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "other.onnx"
    )
    for name in ("other.pt2", "other.onnx"):
        with pytest.raises(G2MError, match=r"is no student of g2m\. Make one with Student\.export"):
            Exported.load(tmp_path / name)


class Trap:
    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


@pytest.mark.parametrize(
    "place", ["data/sample_inputs/model.pt", "data/constants/opaque_obj_0", "data/weights/model.pt"]
)
def test_pickles_in_a_pt2_are_not_opened(tmp_path, student, place):
    data, file = student.export(tmp_path / "student.pt2").read_bytes(), io.BytesIO()
    trap = io.BytesIO()
    torch.save(Trap(), trap)
    with zipfile.ZipFile(io.BytesIO(data)) as given, zipfile.ZipFile(file, "w") as made:
        for name in given.namelist():
            if not name.endswith(place):
                made.writestr(name, given.read(name))
        made.writestr(f"archive/{place}", trap.getvalue())
    (tmp_path / "student.pt2").write_bytes(file.getvalue())
    with pytest.raises(G2MError, match="it holds what g2m does not write"):
        Exported.load(tmp_path / "student.pt2")
    assert not Trap.sprung


def test_wrong_names_and_threads(tmp_path, file):
    with pytest.raises(G2MError, match="no file"):
        Exported.load(tmp_path / "missing.onnx")
    with pytest.raises(G2MError, match=r"Did you mean '\.pt2'\?"):
        Exported.load(tmp_path / "missing.pt")
    with pytest.raises(G2MError, match="threads: expected a whole number from 1"):
        Exported.load(file, threads=0)


def test_threads_are_those_asked_for_if_there_are_so_many(file, monkeypatch):
    before, asked = torch.get_num_threads(), []
    session = onnxruntime.InferenceSession

    def made(data, options, **more):
        asked.append(options.intra_op_num_threads)
        return session(data, options, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", made)
    monkeypatch.setattr(module.os, "cpu_count", lambda: before + 2)
    try:
        Exported.load(file)
        assert asked in ([], [before])
        for threads, taken in {before + 1: before + 1, 100_000: before + 2}.items():
            Exported.load(file, threads=threads)
            assert asked[-1] == taken if file.suffix == ".onnx" else torch.get_num_threads() == taken
    finally:
        torch.set_num_threads(before)


def test_the_class_is_public_and_says_what_it_is(file):
    assert g2m.Exported is Exported
    assert repr(Exported.load(file)).startswith(
        f"<Exported {file.suffix[1:]}, float32: A multi-layer perceptron (2 × 16)"
    )
