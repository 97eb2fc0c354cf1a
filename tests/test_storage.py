"""Files: what goes in comes out, what was touched is refused, and nothing is ever half-written."""

import json
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from g2m import storage
from g2m.errors import G2MError

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor([True, False]), "c": torch.tensor(7)}
META = {"name": "x", "list": [1, 2.5, None], "nested": {"é": True}}


@pytest.fixture
def file(tmp_path):
    return storage.write(tmp_path / "f.safetensors", "thing", TENSORS, META)


def header_of(path):
    with safe_open(path, framework="pt") as opened:
        return dict(opened.metadata())


def same(first, second):
    return first.keys() == second.keys() and all(
        first[k].dtype == second[k].dtype and torch.equal(first[k], second[k]) for k in first
    )


def test_round_trip(file):
    tensors, meta = storage.read(file, "thing")
    assert same(tensors, TENSORS)
    assert meta == META


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=25)
@given(meta=st.dictionaries(st.text(max_size=5), json_values, max_size=4))
def test_metadata_round_trip(tmp_path_factory, meta):
    path = tmp_path_factory.mktemp("meta") / "f"
    assert storage.read(storage.write(path, "thing", TENSORS, meta), "thing")[1] == meta


@pytest.mark.parametrize(
    "tensor",
    [
        torch.empty(0),
        torch.empty(0, 3),
        torch.randn(3, 4).t(),
        torch.randn(4, 4)[::2, 1:],
        torch.randn(3).to(torch.bfloat16),
        torch.randn(3, dtype=torch.float64).requires_grad_(),
        torch.tensor([float("inf"), float("nan")]),
        torch.arange(5, dtype=torch.int32),
    ],
    ids=lambda t: f"{t.dtype}{tuple(t.shape)}".removeprefix("torch."),
)
def test_tensors_of_every_kind(tensor, tmp_path):
    (back,) = storage.read(storage.write(tmp_path / "f", "thing", {"t": tensor}, {}), "thing")[0].values()
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    torch.testing.assert_close(back, tensor.detach(), rtol=0, atol=0, equal_nan=True)


def test_tensors_that_share_memory(tmp_path):
    whole = torch.arange(6.0)
    tensors = {"whole": whole, "same": whole, "part": whole[2:4], "view": whole.view(2, 3)}
    assert same(storage.read(storage.write(tmp_path / "f", "thing", tensors, {}), "thing")[0], tensors)


def test_folders_are_made(tmp_path):
    assert storage.write(tmp_path / "a" / "b" / "f", "thing", TENSORS, META).is_file()


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 4, 40, 0.5, -1])
def test_truncated(file, keep):
    raw = file.read_bytes()
    file.write_bytes(raw[: int(len(raw) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(G2MError, match="truncated or not a safetensors"):
        storage.read(file, "thing")


def test_not_safetensors_at_all(tmp_path):
    path = tmp_path / "f"
    path.write_text("hello, I am a text file")
    with pytest.raises(G2MError, match="truncated or not a safetensors"):
        storage.read(path, "thing")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_of_another_program(tmp_path, metadata):
    path = tmp_path / "f"
    save_file(TENSORS, path, metadata)
    with pytest.raises(G2MError, match="expected a file of format 'g2m/1'"):
        storage.read(path, "thing")


def test_of_another_kind(file):
    with pytest.raises(G2MError, match=r"expected a teacher file \(got a thing file"):
        storage.read(file, "teacher")


@pytest.mark.parametrize("path", ["none", "."])
def test_missing(tmp_path, path):
    with pytest.raises(G2MError, match="no file"):
        storage.read(tmp_path / path, "thing")


def touched(file, tensors=None, **header):
    save_file({**TENSORS, **(tensors or {})}, file, header_of(file) | header)


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": TENSORS["a"] + torch.tensor([[0, 0, 0], [0, 0, 1e-6]])},
        {"a": TENSORS["a"].double()},
        {"a": TENSORS["a"].view(torch.int32)},
        {"a": TENSORS["a"].view(3, 2)},
        {"d": torch.zeros(1)},
        {"b": ~TENSORS["b"]},
    ],
    ids=["value", "dtype", "dtype of the same bytes", "shape", "added", "flag"],
)
def test_a_tensor_edited_by_hand(file, tensors):
    touched(file, tensors)
    with pytest.raises(G2MError, match="changed after it was written"):
        storage.read(file, "thing")


def test_metadata_edited_by_hand(file):
    touched(file, meta=json.dumps(META | {"name": "y"}, sort_keys=True))
    with pytest.raises(G2MError, match="changed after it was written"):
        storage.read(file, "thing")


def test_kind_edited_by_hand(file):
    touched(file, kind="teacher")
    with pytest.raises(G2MError, match="changed after it was written"):
        storage.read(file, "teacher")


def test_every_flipped_byte_is_noticed(file):
    raw = file.read_bytes()
    for position in range(0, len(raw), 7):
        file.write_bytes(raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :])
        try:
            tensors, meta = storage.read(file, "thing")
        except G2MError:
            continue
        assert same(tensors, TENSORS), position  # the flip fell on nothing that is read
        assert meta == META


def test_untouched_copy_is_read(file):
    touched(file)
    assert same(storage.read(file, "thing")[0], TENSORS)


# -- whole or not at all ---------------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(file, monkeypatch):
    def broken(tensors, path, header):
        path.write_bytes(b"half")
        raise OSError("no space left")

    before = file.read_bytes()
    monkeypatch.setattr(storage, "save_file", broken)
    with pytest.raises(OSError, match="no space left"):
        storage.write(file, "thing", {"a": torch.zeros(1)}, {})
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_metadata_that_is_no_json_leaves_the_old_file_and_nothing_else(file):
    before = file.read_bytes()
    with pytest.raises(TypeError):
        storage.write(file, "thing", TENSORS, {"a": object()})
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


def test_text_is_written_whole_or_not_at_all(tmp_path):
    path = storage.write_text(tmp_path / "new" / "t.txt", "é 1\n")
    assert path.read_text(encoding="utf-8") == "é 1\n"
    with pytest.raises(UnicodeEncodeError):
        storage.write_text(path, "x" * 100_000 + "\ud800")
    assert path.read_text(encoding="utf-8") == "é 1\n"
    assert os.listdir(path.parent) == [path.name]
