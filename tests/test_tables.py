import io
import pickle
import sys
import tracemalloc
from itertools import islice

import numpy as np
import pandas as pd
import pytest

from g2m.errors import G2MError
from g2m.tables import check_rows, read_edges, read_features, write_predictions

ROWS, COLUMNS = 7, 3


@pytest.fixture
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ROWS, COLUMNS)).astype(np.float32)


def read(*words):
    return np.concatenate(list(read_features(*words)))


def save(path, x, header=None):
    if path.suffix == ".npy":
        np.save(path, x)
    elif path.suffix == ".csv":
        pd.DataFrame(x).to_csv(path, index=False, header=header or False)
    else:
        pytest.importorskip("pyarrow")
        pd.DataFrame(x, columns=header or [f"f{c}" for c in range(x.shape[1])]).to_parquet(path)
    return path


@pytest.mark.parametrize("header", [None, ["a", "b", "c"]])
@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, bool])
def test_features_come_back(tmp_path, x, suffix, header, dtype):
    x = (10 * np.abs(x)).astype(dtype)
    found = read(save(tmp_path / f"x{suffix}", x, header), COLUMNS)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, x.astype(np.float32), rtol=1e-6)


def test_a_first_line_of_numbers_is_data_even_if_they_repeat(tmp_path):
    (tmp_path / "x.csv").write_text("0,0,0\n1,2,3\n")
    np.testing.assert_array_equal(read(tmp_path / "x.csv", 3), [[0, 0, 0], [1, 2, 3]])


@pytest.mark.parametrize("width", [1, 2, 12])
def test_a_first_line_that_counts_the_columns_is_the_header_that_pandas_writes(tmp_path, width, caplog):
    x = np.random.default_rng(0).integers(5, size=(ROWS, width))
    pd.DataFrame(x).to_csv(tmp_path / "x.csv", index=False)
    found = read(tmp_path / "x.csv", width)
    np.testing.assert_array_equal(found, x if width > 1 else [[0], *x])  # a column of its own counts nothing
    assert ("is taken for a header" in caplog.text) == (width > 1)
    (tmp_path / "x.csv").write_text(",".join(f"{column}.0" for column in range(width)))
    assert read(tmp_path / "x.csv", width).tolist() == [[*range(width)]]


def test_a_first_line_with_a_hole_is_no_header(tmp_path):
    (tmp_path / "x.csv").write_text("0.5,,1.5\n1,2,3\n")
    found = read(tmp_path / "x.csv", 3)
    np.testing.assert_array_equal(found, [[0.5, np.nan, 1.5], [1, 2, 3]])


def test_one_column_and_one_row(tmp_path):
    (tmp_path / "x.csv").write_text("0.5\n")
    assert read(tmp_path / "x.csv", 1).tolist() == [[0.5]]


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
def test_wrong_width_names_both(tmp_path, x, suffix):
    with pytest.raises(G2MError, match=r"shape \[N, 4\].*\[7, 3\]"):
        read(save(tmp_path / f"x{suffix}", x), 4)


def test_a_vector_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.ones(3))
    with pytest.raises(G2MError, match=r"shape \[N, 3\]"):
        read(tmp_path / "x.npy", 3)


def test_complex_numbers_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((2, 3), dtype=complex))
    with pytest.raises(G2MError, match="complex128"):
        read(tmp_path / "x.npy", 3)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_column_of_words_is_named(tmp_path, x, suffix):
    frame = pd.DataFrame(x, columns=["a", "b", "c"]).assign(b="word")
    if suffix == ".csv":
        frame.to_csv(tmp_path / "x.csv", index=False)
    else:
        pytest.importorskip("pyarrow")
        frame.to_parquet(tmp_path / "x.parquet")
    with pytest.raises(G2MError, match=r"numbers in every column .*in column 'b'"):
        read(tmp_path / f"x{suffix}", COLUMNS)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_of_different_types(tmp_path, suffix):
    frame = pd.DataFrame({"a": [True, False], "b": [0.5, 2.0], "c": np.array([3, 250], dtype=np.uint8)})
    if suffix == ".csv":
        frame.to_csv(tmp_path / "x.csv", index=False)
    else:
        pytest.importorskip("pyarrow")
        frame.to_parquet(tmp_path / "x.parquet")
    assert read(tmp_path / f"x{suffix}", 3).tolist() == [[1, 0.5, 3], [0, 2, 250]]


def test_columns_of_pandas_own_types_and_a_missing_number_is_none(tmp_path):
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame({"a": [True, False], "b": [0.5, None], "c": [3, None]})
    frame.convert_dtypes().to_parquet(tmp_path / "x.parquet")
    np.testing.assert_array_equal(read(tmp_path / "x.parquet", 3), [[1, 0.5, 3], [0, np.nan, np.nan]])


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_are_found_by_their_names(tmp_path, x, suffix):
    names = ["age", "size", "price"]
    other = save(tmp_path / f"other{suffix}", x[:, [2, 0, 1]], ["price", "age", "size"])
    for path in (save(tmp_path / f"x{suffix}", x, names), other):
        found = np.concatenate(list(read_features(path, COLUMNS, names=names, rows=2)))
        np.testing.assert_allclose(found, x, rtol=1e-6)
    np.testing.assert_allclose(read(other, COLUMNS), x[:, [2, 0, 1]], rtol=1e-6)
    wrong = save(tmp_path / f"wrong{suffix}", x, ["age", "size", "prize"])
    with pytest.raises(
        G2MError, match=r"columns age, size, price, in any order \(got 'prize'\)\. Did you mean 'price'"
    ):
        list(read_features(wrong, COLUMNS, names=names))


@pytest.mark.parametrize("name", ["x.npy", "x.csv"])
def test_columns_without_names_are_taken_as_they_come(tmp_path, x, name):
    found = list(read_features(save(tmp_path / name, x), COLUMNS, names=["age", "size", "price"]))
    np.testing.assert_allclose(np.concatenate(found), x, rtol=1e-6)


def test_more_columns_than_names_are_refused(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2,3\n4,5,6\n")
    with pytest.raises(G2MError, match="Length of header"):
        read(tmp_path / "x.csv", 2)


class Trap:
    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


def test_pickles_are_not_opened(tmp_path):
    np.save(tmp_path / "x.npy", np.array([[Trap()]], dtype=object), allow_pickle=True)
    with pytest.raises(G2MError, match="cannot be read"):
        read_features(tmp_path / "x.npy", 1)
    (tmp_path / "x.npy").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(G2MError, match="cannot be read"):
        read_features(tmp_path / "x.npy", 1)
    assert not Trap.sprung
    pickle.loads((tmp_path / "x.npy").read_bytes())
    assert Trap.sprung, "the trap does spring where pickles are opened"
    Trap.sprung = False


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
@pytest.mark.parametrize("content", [b"", b"\x93NUM", b"PK\x03\x04\xff\xfe\x00", b'a,"b\n1'], ids=range(4))
def test_files_that_are_not_tables_are_refused(tmp_path, suffix, content):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    (tmp_path / f"x{suffix}").write_bytes(content)
    with pytest.raises(G2MError, match="features"):
        read(tmp_path / f"x{suffix}", COLUMNS)


def test_an_archive_of_arrays_is_refused(tmp_path, x):
    with (tmp_path / "x.npy").open("wb") as file:
        np.savez(file, x=x)
    with pytest.raises(G2MError, match="cannot be read"):
        read_features(tmp_path / "x.npy", COLUMNS)


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
def test_chunks_are_as_long_as_asked_for_and_are_all_of_it(tmp_path, x, suffix, rows):
    path = tmp_path / f"x{suffix}"
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
        pd.DataFrame(x, columns=list("abc")).to_parquet(path, row_group_size=4)
    else:
        save(path, x)
    table = read_features(path, COLUMNS, rows=rows)
    assert table.num_rows == (None if suffix == ".csv" else ROWS)
    for _ in range(2):  # it can be read again
        chunks = list(table)
        assert max(map(len, chunks)) == min(rows, ROWS, 4 if suffix == ".parquet" else ROWS)
        np.testing.assert_allclose(np.concatenate(chunks), x, rtol=1e-6)


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
def test_a_table_of_no_rows_is_one_empty_chunk(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = save(tmp_path / f"x{suffix}", np.empty((0, COLUMNS), np.float32), ["a", "b", "c"])
    (chunk,) = read_features(path, COLUMNS)
    assert chunk.shape == (0, COLUMNS)


def test_an_index_kept_in_parquet_is_no_feature(tmp_path, x):
    pytest.importorskip("pyarrow")
    pd.DataFrame(x, columns=list("abc"), index=list("ABCDEFG")).to_parquet(tmp_path / "x.parquet")
    np.testing.assert_array_equal(read(tmp_path / "x.parquet", COLUMNS), x)


@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_any_order_and_byte_order(tmp_path, x, order):
    np.save(tmp_path / "x.npy", np.asarray(x, dtype=">f4", order=order))
    np.testing.assert_array_equal(read(tmp_path / "x.npy", COLUMNS), x)


def test_a_cut_array_is_refused(tmp_path, x):
    path = save(tmp_path / "x.npy", x)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(G2MError, match="cannot be read"):
        read(path, COLUMNS)


def test_what_is_wrong_further_down_is_found_there(tmp_path):
    (tmp_path / "x.csv").write_text("1,2\n3,4\n5,six\n")
    chunks = iter(read_features(tmp_path / "x.csv", 2, rows=1))
    assert [next(chunks).tolist() for _ in range(2)] == [[[1, 2]], [[3, 4]]]
    with pytest.raises(G2MError, match="numbers in every column"):
        next(chunks)
    (tmp_path / "x.csv").write_text("1,2\n3,4\n5,6,7\n")
    with pytest.raises(G2MError, match="cannot be read"):
        list(read_features(tmp_path / "x.csv", 2, rows=1))


@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
def test_memory_does_not_grow_with_the_table(tmp_path, suffix):
    """Sixteen times the rows: the peak of what Python, numpy and Arrow hold stays below that of the whole table."""
    arrow = pytest.importorskip("pyarrow") if suffix == ".parquet" else None
    peaks, width = [], 16
    for rows in (1_000, 16_000):
        x = np.random.default_rng(0).random((rows, width))
        path = tmp_path / f"x{rows}{suffix}"
        if suffix == ".parquet":
            pd.DataFrame(x, columns=list("abcdefghijklmnop")).to_parquet(path, row_group_size=1000)
        else:
            save(path, x)
        del x
        tracemalloc.start()
        held = [0]

        def scores(chunks, held=held):
            for chunk in chunks:
                held.append(arrow.total_allocated_bytes() if arrow else 0)  # which is not traced
                yield chunk[:, :4].argmax(1), chunk[:, :4]

        try:
            chunks = read_features(path, width, rows=500)
            assert write_predictions(tmp_path / f"p{suffix}", scores(chunks)) == rows
            peaks.append(tracemalloc.get_traced_memory()[1] + max(held))
        finally:
            tracemalloc.stop()
    assert peaks[1] < min(2 * peaks[0], 16_000 * width * 4)


def test_missing_file_and_unknown_suffix(tmp_path):
    with pytest.raises(G2MError, match="no file"):
        read_features(tmp_path / "x.npy", 3)
    (tmp_path / "x.txt").write_text("1,2,3")
    with pytest.raises(G2MError, match=r"features: expected a \.npy, \.csv, \.parquet file"):
        read_features(tmp_path / "x.txt", 3)


# -- predictions -------------------------------------------------------------------------------------------------


def halves(predictions):
    """The predictions in two parts, of different length."""
    yield tuple(value[: ROWS // 2] for value in predictions)
    yield tuple(value[ROWS // 2 :] for value in predictions)


@pytest.fixture
def predictions() -> tuple[np.ndarray, np.ndarray]:
    scores = np.random.default_rng(1).random((ROWS, 4)).astype(np.float32)
    probabilities = scores / scores.sum(1, keepdims=True)
    return probabilities.argmax(1), probabilities


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npy"])
def test_predictions_come_back(tmp_path, predictions, suffix):
    classes, probabilities = predictions
    path = tmp_path / "new" / f"p{suffix}"
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    assert write_predictions(path, halves(predictions)) == ROWS
    if suffix == ".npy":
        table = np.load(path)
    else:
        frame = pd.read_csv(path) if suffix == ".csv" else pd.read_parquet(path)
        assert list(frame.columns) == ["class", "p0", "p1", "p2", "p3"]
        assert frame["class"].dtype.kind == "i"
        table = frame.to_numpy()
    np.testing.assert_array_equal(table[:, 0], classes)
    np.testing.assert_allclose(table[:, 1:], probabilities, rtol=1e-6)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_predictions_to_a_stream(predictions):
    stream = io.StringIO()
    assert write_predictions(stream, halves(predictions)) == ROWS
    frame = pd.read_csv(io.StringIO(stream.getvalue()))
    np.testing.assert_array_equal(frame["class"], predictions[0])


def test_unknown_suffix_writes_nothing(tmp_path, predictions):
    with pytest.raises(G2MError, match="--out: expected a"):
        write_predictions(tmp_path / "new" / "p.txt", halves(predictions))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".npy"])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, predictions, suffix, after):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / f"p{suffix}"
    path.write_text("old")

    def broken():
        yield from islice(halves(predictions), after)
        assert len(list(tmp_path.iterdir())) == 1 + after, "the part before is under another name"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_predictions(path, broken())
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_what_fails_at_once_makes_no_folder_and_prints_nothing(tmp_path):
    def broken():
        raise G2MError("x: wrong")
        yield

    stream = io.StringIO()
    for target in (tmp_path / "new" / "p.csv", stream):
        with pytest.raises(G2MError, match="x: wrong"):
            write_predictions(target, broken())
    assert list(tmp_path.iterdir()) == []
    assert stream.getvalue() == ""


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, x, predictions, monkeypatch):
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    for engine in ("pyarrow", "pyarrow.parquet", "fastparquet"):
        monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(G2MError, match=r"pip install 'g2m\[export\]'"):
        read_features(tmp_path / "x.parquet", 3)
    with pytest.raises(G2MError, match=r"pip install 'g2m\[export\]'"):
        write_predictions(tmp_path / "p.parquet", halves(predictions))
    assert [file.name for file in tmp_path.iterdir()] == ["x.parquet"]


# -- edges ---------------------------------------------------------------------------------------------------------

ARCS = np.array([[40, 7, 7, 3], [2, 0, 6, 0]])


def save_edges(path, arcs, header=None):
    return save(path, arcs if path.suffix == ".npy" else arcs.T, header)


@pytest.mark.parametrize("header", [None, ["id", "row"]])
@pytest.mark.parametrize("suffix", [".npy", ".csv", ".parquet"])
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_edges_come_back_sorted_by_row(tmp_path, suffix, header, dtype):
    found = read_edges(save_edges(tmp_path / f"e{suffix}", ARCS.astype(dtype), header), ROWS)
    assert found.dtype == np.int64
    assert found.tolist() == [[7, 3, 40, 7], [0, 0, 2, 6]]


def test_edges_of_pandas_own_types(tmp_path):
    pytest.importorskip("pyarrow")
    pd.DataFrame(ARCS.T, columns=["id", "row"]).convert_dtypes().to_parquet(tmp_path / "e.parquet")
    assert read_edges(tmp_path / "e.parquet").tolist() == [[7, 3, 40, 7], [0, 0, 2, 6]]


def test_an_arc_from_0_to_1_is_no_header(tmp_path):
    (tmp_path / "e.csv").write_text("0,1\n4,2\n")
    assert read_edges(tmp_path / "e.csv").tolist() == [[0, 4], [1, 2]]


@pytest.mark.parametrize("name", ["e.npy", "e.csv", "e.parquet"])
def test_there_may_be_no_edges(tmp_path, name):
    path = save_edges(tmp_path / name, np.empty((2, 0), dtype=np.int64), ["id", "row"])
    assert read_edges(path).shape == (2, 0)


@pytest.mark.parametrize("suffix", [".npy", ".csv"])
@pytest.mark.parametrize(
    ("arcs", "message"),
    [
        (ARCS + 0.5, r"whole numbers in two columns, .*\(got float64, \[2, 4\]\)"),
        (np.tile(ARCS, (2, 1))[:3], r"whole numbers in two columns, .*\[3, 4\]"),
        (ARCS - 1, r"from 0 to 6 \(got -1\)"),
        (ARCS + 1, r"from 0 to 6 \(got 7\)"),
    ],
)
def test_edges_that_are_none(tmp_path, suffix, arcs, message):
    with pytest.raises(G2MError, match=f"^--edges: expected .*{message}"):
        read_edges(save_edges(tmp_path / f"e{suffix}", arcs), ROWS)


def test_files_of_edges_that_cannot_be_read(tmp_path):
    (tmp_path / "text.csv").write_text("id,row\na,b\n")
    (tmp_path / "broken.npy").write_text("nothing")
    np.save(tmp_path / "number.npy", 4)
    for name, message in {
        "text.csv": "expected numbers in every column",
        "broken.npy": "cannot be read",
        "number.npy": r"whole numbers in two columns, .*\(got int64, \[1\]\)",
        "none.npy": "no file",
        "e.txt": r"expected a \.npy, \.csv, \.parquet file",
    }.items():
        with pytest.raises(G2MError, match=f"^--edges: .*{message}"):
            read_edges(tmp_path / name)


def test_rows_may_be_checked_when_their_number_is_known(tmp_path):
    arcs = read_edges(save_edges(tmp_path / "e.npy", ARCS))
    check_rows(arcs, 7)
    with pytest.raises(G2MError, match=r"from 0 to 5 \(got 6\)"):
        check_rows(arcs, 6)
    with pytest.raises(G2MError, match=r"from 0 on \(got -1\)"):
        read_edges(save_edges(tmp_path / "e.npy", ARCS - 1))
