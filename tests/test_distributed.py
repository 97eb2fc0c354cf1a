"""Two processes, joined as ``torchrun`` joins them, train what one does."""

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from cases import blocks, teacher_for
from safetensors.torch import load_file

from g2m import distributed
from g2m.bench import run
from g2m.errors import FileError, G2MError
from g2m.estimators import Student, Teacher
from g2m.methods import REGISTRY

# Every method; without dropout, for that each process draws by itself.
OF_EVERY_METHOD = {"hidden_channels": 8, "max_epochs": 4, "batch_size": 7, "seed": 1}
STUDENTS = {
    **{name: {"method": name} for name in sorted(REGISTRY)},
    "batch norm": {"method": "glnn", "norm": "batch"},
    "layer norm, three layers": {"method": "vqgraph", "norm": "layer", "num_layers": 3},
    "reference schedule": {"method": "glnn", "reference_schedule": True},
    "edges at random": {"method": "ff_g2m", "edge_batch_size": 5},
    "one step": {"method": "ff_g2m", "batch_size": "all", "norm": "batch"},
    "a row for one of them": {"method": "mlp", "batch_size": 1},
}


def fitted(options):
    graph = blocks(unseen=True)
    teacher = Teacher("sage", hidden_channels=8, max_epochs=5, tokenizer="beside", num_codes=6).fit(graph)
    return Student(**OF_EVERY_METHOD | options).fit(graph, teacher.outputs(graph))


def main(folder: Path) -> None:
    """What each of the processes does."""
    torch.set_num_threads(1)
    with distributed.joined():
        for name, options in STUDENTS.items():
            student = fitted(options)
            student.save(folder / f"{name}.{distributed.rank()}.safetensors")
        dropped = fitted({"method": "glnn", "dropout": 0.5})
        dropped.save(folder / f"dropout.{distributed.rank()}.safetensors")
        said = distributed.from_first(lambda: {"rank": distributed.rank(), "size": distributed.size()})
        try:
            distributed.from_first(_mistake)
        except G2MError as error:
            said["mistake"] = str(error)
        own = folder / f"apart.{distributed.rank()}"
        own.mkdir()
        said["apart"] = _apart("mlp", own / "epochs")
        said["searched apart"] = _apart("auto", own / "search", epochs=5, budget=2)
        refused = own / "refused"
        if distributed.rank():
            refused.write_bytes(b"no checkpoint")
        said["refused"] = _tried(Student("mlp", **OF_EVERY_METHOD), checkpoint=refused)
    (folder / f"said.{said['size']}.{os.environ['RANK']}.json").write_text(json.dumps(said))


def _apart(method: str, checkpoint: Path, epochs: int = 1, **options) -> str:
    """Of a checkpoint in no folder of all: the first process alone could go on from it, after so many epochs."""
    student = Student(**OF_EVERY_METHOD | {"method": method, **options})
    left = iter(range(epochs - 1))

    def stop(record) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    with suppress(KeyboardInterrupt):
        _tried(student, checkpoint=checkpoint, checkpoint_seconds=0, on_epoch=stop)
    return _tried(student, checkpoint=checkpoint)


def _tried(student: Student, **options) -> str:
    graph = blocks()
    try:
        student.fit(graph, teacher_for(student.method, graph), **options)
    except FileError as error:
        return str(error)
    return "trained"


def _mistake() -> None:
    raise G2MError("seed: expected another.")


def torchrun(*command: str, folder: Path, processes: int = 2) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", *command]
    return subprocess.run(start, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    done = torchrun(__file__, str(folder), folder=folder)
    assert done.returncode == 0, done.stderr
    return folder


def same(a, b, **tolerance):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], **tolerance)


@pytest.mark.parametrize("name", STUDENTS)
def test_two_processes_train_what_one_does(together, name):
    first, second = (load_file(together / f"{name}.{rank}.safetensors") for rank in (0, 1))
    same(first, second, rtol=0, atol=0)
    alone, shared = fitted(STUDENTS[name]), Student.load(together / f"{name}.0.safetensors")
    graph = blocks(unseen=True)
    # Not weights: before batch norm a bias counts for nothing, and Adam makes steps of what rounding leaves of it.
    torch.testing.assert_close(shared.predict_logits(graph), alone.predict_logits(graph), rtol=1e-4, atol=1e-4)
    for one, other in zip(shared.history_.epochs, alone.history_.epochs, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


def test_with_dropout_they_still_agree_on_one_student(together):
    first, second = (load_file(together / f"dropout.{rank}.safetensors") for rank in (0, 1))
    same(first, second, rtol=0, atol=0)
    alone = fitted({"method": "glnn", "dropout": 0.5}).model_.state_dict()
    assert any(not torch.allclose(first[key], alone[key]) for key in alone)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_the_first_says_is_known_to_all_mistakes_too(together, rank):
    said = json.loads((together / f"said.2.{rank}.json").read_text())
    apart = [said.pop(name) for name in ("apart", "searched apart", "refused")]
    assert said == {"rank": 0, "size": 2, "mistake": "seed: expected another."}
    found = ["[1, 0] by process", "[1, 0] by process", "[0, -1] by process"]
    for text, reached in zip(apart[: 3 - rank], found, strict=False):
        assert text.startswith("checkpoint: expected a file that all joined processes read")
        assert reached in text
    assert rank == 0 or "refused" in apart[2]


def test_alone_nothing_is_joined():
    with distributed.joined():
        assert (distributed.rank(), distributed.size()) == (0, 1)
        assert distributed.from_first(lambda: 3) == 3
    assert not torch.distributed.is_initialized()


def test_a_group_of_gpus_alone_is_refused(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_backend_config", lambda: "cuda:nccl")
    with pytest.raises(G2MError, match=r"backend: .*got 'cuda:nccl'.*cpu:gloo,cuda:nccl"), distributed.joined():
        pass


def test_rows_are_shared_out_evenly(monkeypatch):
    monkeypatch.setattr(distributed, "size", lambda: 3)
    assert distributed.shares(8) == [3, 3, 2]
    assert distributed.shares(1) == [1, 0, 0]


def test_the_command_is_the_same_and_one_of_them_speaks(tmp_path):
    command = ["-m", "g2m", "train", "sbm", "--seeds", "2", "--json", "-o", "data.num_nodes=400"]
    command += [word for key in ("max_epochs=3", "teacher.max_epochs=3", "norm=batch") for word in ("-o", key)]
    command += ["--cache", str(tmp_path / "cache")]
    done = torchrun(*command, "--out", "together", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True, "check": True}
    alone = json.loads(subprocess.run([sys.executable, *command, "--out", "alone"], **options).stdout)
    for one, other in zip(records, alone, strict=True):
        assert one["key"] == other["key"]
        assert one["scores"] == pytest.approx(other["scores"], abs=0.03)  # a node or two on the edge of two classes
    lines = (tmp_path / "together" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["key"] for line in lines] == [record["key"] for record in records]


@pytest.mark.parametrize("options", [{"workers": 2}, {"stack": 2}])
def test_either_several_processes_a_student_or_several_students(monkeypatch, options):
    monkeypatch.setattr(distributed, "size", lambda: 2)
    with pytest.raises(G2MError, match="torchrun"):
        next(run([], **options))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
