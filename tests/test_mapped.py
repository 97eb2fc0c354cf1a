"""Features in a file give what features in memory give, to the bit, and are never held."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import blocks
from torch import Generator
from torch_geometric.data import Data

from g2m import mapped
from g2m.batches import NodeBatches
from g2m.errors import G2MError
from g2m.estimators import Student, Teacher
from g2m.graph import Graph
from g2m.mapped import beside, from_array, is_mapped, noisy, not_finite, rows_of, written
from g2m.memory import teacher_memory
from g2m.outputs import TeacherOutputs
from g2m.sparse import CSR, features

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells on Linux")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(mapped, "_VALUES", 160)


def in_file(graph: Graph, folder) -> Graph:
    """The same graph, its features in a file."""
    np.save(folder / "x.npy", graph.x.numpy())
    return replace(graph, x=np.load(folder / "x.npy", mmap_mode="r"))


def weights(estimator) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in estimator.model_.parameters()])


# -- what is mapped ----------------------------------------------------------------------------------------------


def test_files_are_told_from_memory(tmp_path):
    x = torch.randn(40, 10)
    np.save(tmp_path / "x.npy", x.numpy())
    torch.save({"x": x}, tmp_path / "x.pt")
    array = np.load(tmp_path / "x.npy", mmap_mode="r")
    for held in (array, np.asarray(array), array[3:]):
        assert is_mapped(from_array(held))
    assert is_mapped(torch.load(tmp_path / "x.pt", mmap=True)["x"][5:])
    assert is_mapped(torch.from_file(str(tmp_path / "x.npy"), size=10))
    for free in (x, x[3:], torch.zeros(2**22), torch.zeros(9).share_memory_(), x.to_sparse_csr(), CSR.from_dense(x), 3):
        assert not is_mapped(free)


@pytest.mark.parametrize("way", ["load", "view", "torch", "pyg", "writable"])
def test_a_graph_leaves_features_in_their_file(way, tmp_path, recwarn):
    graph = blocks(unseen=True)
    np.save(tmp_path / "x.npy", graph.x.numpy())
    array = np.load(tmp_path / "x.npy", mmap_mode="r+" if way == "writable" else "r")
    x = {"view": np.asarray, "torch": from_array}.get(way, lambda given: given)(array)
    if way == "pyg":
        found = Graph.from_pyg(Data(x=x, edge_index=graph.edge_index, y=graph.y), split=graph.split)
    else:
        found = replace(graph, x=x)
    assert found.x.data_ptr() == array.ctypes.data
    assert found.fingerprint() == graph.fingerprint()
    assert found.features is found.x
    for other in (found.with_split(graph.split), found.without_edges(), found.observed(), found.for_selection()):
        assert is_mapped(other.x)
    assert torch.equal(found.observed().x, graph.observed().x)
    assert not recwarn.list or way == "writable"


@pytest.mark.parametrize("other", [lambda x: x.astype(np.float64), np.asfortranarray])
def test_what_would_have_to_be_converted_is_refused(other, tmp_path):
    graph = blocks()
    np.save(tmp_path / "x.npy", other(graph.x.numpy()))
    array = np.load(tmp_path / "x.npy", mmap_mode="r")
    with pytest.raises(G2MError, match=r"x: expected float32, row by row.*x=numpy\.array\(x\)"):
        replace(graph, x=array)
    assert torch.equal(replace(graph, x=np.array(array)).x, graph.x)


def test_what_is_not_finite_is_found_in_any_chunk(tmp_path):
    graph = blocks()
    graph.x[20, 3] = torch.nan
    graph.x[35, 1:3] = torch.inf
    assert not_finite(graph.x) == (3, 20)
    with pytest.raises(G2MError, match="got 3 NaN or infinite values, the first on node 20"):
        in_file(graph, tmp_path)


# -- pieces: as in memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_features", [1, 7, 10, 400])
def test_pieces_give_the_same_bits(num_features, tmp_path):
    x = torch.randn(103, num_features, generator=Generator().manual_seed(1))
    mapped_x = written(x.split(10), x.shape)
    index, more = torch.randperm(103)[:60], torch.randn(103, 3)
    assert torch.equal(mapped_x, x)
    for of in (lambda x: rows_of(x, index), lambda x: beside(x, more)):
        assert torch.equal(of(mapped_x), of(x))
        assert is_mapped(of(mapped_x))
        assert not is_mapped(of(x))
    if num_features > 1:  # seven values left over are drawn another way
        spread = x.std(0)
        moved = [noisy(given, spread, Generator().manual_seed(2)) for given in (mapped_x, x)]
        assert is_mapped(moved[0])
        assert torch.equal(*moved)


def test_features_in_a_file_are_sparse_where_they_are():
    x = torch.randn(103, 40) * (torch.rand(103, 40) < 0.05)
    found = features(written([x], x.shape))
    assert isinstance(found, CSR)
    assert torch.equal(found.to_dense(), x)


def test_what_is_written_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(mapped.tempfile, "tempdir", str(tmp_path))
    x = written([torch.ones(2, 3)], (2, 3))
    assert [*tmp_path.iterdir()] == []
    assert torch.equal(x, torch.ones(2, 3))


# -- training: as in memory --------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"partitions": 3}, {"fan_out": [2, 2], "batch_size": 8}, {"norm": "batch"}])
@pytest.mark.parametrize("unseen", [False, True])
def test_a_teacher_trains_to_the_same_bits(options, unseen, tmp_path):
    held = blocks(unseen=unseen)
    graphs = held, in_file(held, tmp_path)
    teachers = [Teacher(max_epochs=3, dropout=0.2, device="cpu", **options).fit(graph) for graph in graphs]
    assert torch.equal(*map(weights, teachers))
    of_held, of_mapped = (teacher.outputs(graph) for teacher, graph in zip(teachers, graphs, strict=True))
    assert torch.equal(of_held.entropy_change, of_mapped.entropy_change)
    assert of_held.fingerprint() == of_mapped.fingerprint()


@pytest.mark.parametrize("method", ["mlp", "glnn", "ff_g2m", "krd", "nosmog", "onehop", "simmlp"])
@pytest.mark.parametrize("unseen", [False, True])
def test_a_student_trains_to_the_same_bits(method, unseen, tmp_path):
    held = blocks(unseen=unseen)
    graphs = held, in_file(held, tmp_path)
    Teacher(max_epochs=3, device="cpu").fit(held).outputs(held).save(tmp_path / "outputs.safetensors")
    outputs = TeacherOutputs.load(tmp_path / "outputs.safetensors")
    assert is_mapped(outputs.logits)
    students = [
        Student(method, max_epochs=3, batch_size=8, dropout=0.2, device="cpu").fit(graph, outputs) for graph in graphs
    ]
    assert torch.equal(*map(weights, students))
    assert students[0].evaluate(graphs[0]) == students[1].evaluate(graphs[1])


def test_batches_go_to_a_device_without_what_is_mapped(tmp_path):
    graph = in_file(blocks(), tmp_path)
    targets = {"free": torch.ones(36, 3), "mapped": written([torch.ones(36, 3)], (36, 3))}
    batches = NodeBatches(graph.x, graph.y, graph.part("train"), targets, batch_size=8).to("meta")
    assert batches.x is graph.x
    assert batches.targets["mapped"] is targets["mapped"]
    assert {batches.y.device.type, batches.targets["free"].device.type} == {"meta"}


def test_features_in_a_file_do_not_count_as_memory(tmp_path):
    graph = blocks()
    held, free = (teacher_memory(Teacher(), given)["graph"] for given in (graph, in_file(graph, tmp_path)))
    assert held - free == graph.x.nbytes


TRAIN = """
import sys, threading, time
import numpy as np, torch
from g2m import Graph, Student, TeacherOutputs

NODES = 40_000  # of 512 features: 82 MB, and 74 of those observed

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) // 1000 for line in status if line.startswith("RssAnon"))

peak, done = [0], threading.Event()
def watch():
    while not done.wait(0.001):
        peak[0] = max(peak[0], anonymous())

ids, y = torch.arange(NODES), torch.arange(NODES) % 4
split = {"train": ids[:2000], "val": ids[2000:3000], "test": ids[3000:], "unseen": ids[36_000:]}
Student("mlp", max_epochs=1).fit(Graph(torch.randn(8, 4), [[0, 1], [1, 0]], y[:8], {"train": ids[:4], "val": ids[4:8]}))
before = anonymous()
threading.Thread(target=watch, daemon=True).start()
graph = Graph(np.load(sys.argv[1], mmap_mode="r"), [[0, 1], [1, 0]], y, split)
observed = graph.observed()
logits = torch.zeros(len(observed.node_id), 4)
outputs = TeacherOutputs(observed.node_id, logits, meta={"fingerprint": observed.fingerprint()})
student = Student("glnn", max_epochs=1, batch_size=4096, device="cpu").fit(graph, outputs)
student.predict(graph)
done.set()
print(peak[0] - before)
"""


def test_not_even_what_is_observed_is_held(tmp_path):
    x = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float32, shape=(40_000, 512))
    for rows in range(0, len(x), 10_000):
        x[rows : rows + 10_000] = np.random.default_rng(rows).standard_normal((10_000, 512), np.float32)
    x.flush()
    command = [sys.executable, "-c", TRAIN, tmp_path / "x.npy"]
    assert int(subprocess.run(command, capture_output=True, check=True).stdout) < 74, "held, it would be 230"
