"""Feature tables in, predictions out: .npy, .csv and .parquet, of any length, a chunk of rows at a time; and edges."""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from g2m.errors import G2MError, nearest
from g2m.storage import replacing

log = logging.getLogger(__name__)

SUFFIXES = (".npy", ".csv", ".parquet")
VALUES = 2**22  # features held at a time; as rows, so many as are as wide

Part = tuple[np.ndarray, np.ndarray]  # classes [n] and probabilities [n, C] of some rows


def _suffix(argument: str, path: Path) -> str:
    if path.suffix not in SUFFIXES:
        raise G2MError(f"{argument}: expected a {', '.join(SUFFIXES)} file (got {str(path)!r}).")
    return path.suffix


def _existing(argument: str, path: str | Path) -> Path:
    path = Path(path)
    _suffix(argument, path)
    if not path.is_file():
        raise G2MError(f"{argument}: no file {str(path)!r}.")
    return path


@contextmanager
def _reading(argument: str, path: Path) -> Iterator[None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header are not cut
            yield
    except G2MError:
        raise
    except ImportError:
        raise G2MError(f"{argument}: .parquet files need pyarrow. Run pip install 'g2m[export]'.") from None
    except (ValueError, OSError, pd.errors.ParserWarning) as error:
        raise G2MError(f"{argument}: {str(path)!r} cannot be read ({error}).") from None


# -- features in -----------------------------------------------------------------------------------------------


class Features:
    """Features ``[N, F]`` of a file: iterate over their float32 chunks ``[n, F]``, at least one.

    ``num_rows`` is N, or ``None`` where the file does not say (.csv).
    """

    def __init__(self, path: Path, in_channels: int, rows: int, names: Sequence[str] | None = None) -> None:
        self.path, self.in_channels, self.names = path, in_channels, names
        with _reading("features", path):
            self.num_rows, self._chunks = _OPEN_FEATURES[path.suffix](path, rows)

    def __iter__(self) -> Iterator[np.ndarray]:
        chunks = self._chunks()
        while True:
            with _reading("features", self.path):
                chunk = next(chunks, None)
                if chunk is None:
                    return
                chunk = self._checked(_array("features", self._by_name(chunk)))
            yield chunk

    def _by_name(self, chunk: np.ndarray | pd.DataFrame) -> np.ndarray | pd.DataFrame:
        """Put columns that have names into the order of those trained on, where those are known."""
        if self.names is None or isinstance(chunk, np.ndarray) or not all(isinstance(c, str) for c in chunk.columns):
            return chunk
        if sorted(chunk.columns) != sorted(self.names):
            wrong = next((c for c in chunk.columns if c not in self.names), None)
            got = ", ".join(chunk.columns) if wrong is None else repr(wrong)
            hint = "" if wrong is None else nearest(wrong, self.names)
            raise G2MError(f"features: expected the columns {', '.join(self.names)}, in any order (got {got}).{hint}")
        return chunk[list(self.names)]

    def _checked(self, array: np.ndarray) -> np.ndarray:
        if array.dtype.kind not in "fiub" or array.ndim != 2 or array.shape[1] != self.in_channels:
            shape = [self.num_rows or len(array), *array.shape[1:]]
            raise G2MError(
                f"features: expected numbers of shape [N, {self.in_channels}], as the student was trained on "
                f"(got {array.dtype} {shape})."
            )
        return array.astype(np.float32)


def read_features(
    path: str | Path, in_channels: int, *, rows: int | None = None, names: Sequence[str] | None = None
) -> Features:
    """Open features ``[N, F]`` and read them as float32, chunk by chunk, when iterated over.

    A CSV may have a header line or none: a first line of numbers is data, unless it counts several columns, ``0,1,…``,
    as pandas' default header does, which is logged.

    Args:
        path: ``.npy`` (mapped into memory, not read into it), ``.csv`` or ``.parquet``.
        in_channels: F, the number of columns expected.
        rows: of a chunk, from 1; default: as many as hold four million numbers.
        names: of the columns trained on; a table that names its columns is put into their order. Default ``None``: not
            known, columns are taken as they come.

    Raises:
        G2MError: if the file is missing or unreadable, a column is not numeric, the width is not F or the names are
            others; what is wrong further down, when that is reached.
    """
    path = _existing("features", path)
    return Features(path, in_channels, rows or max(1, VALUES // in_channels), names)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.lower() in ("true", "false")
    return True


def _array(argument: str, chunk: np.ndarray | pd.DataFrame, *, whole: bool = False) -> np.ndarray:
    """Return a chunk as an array, of columns of different types as one of float32, or of whole numbers if they are."""
    if isinstance(chunk, np.ndarray):
        return chunk
    for column, dtype in chunk.dtypes.items() if len(chunk) else ():  # of no rows, a CSV does not say
        if dtype.kind not in "fiub":
            raise G2MError(f"{argument}: expected numbers in every column (got {dtype} in column {column!r}).")
    if not whole:
        return chunk.to_numpy(np.float32, na_value=np.nan)
    return chunk.to_numpy(np.int64 if all(dtype.kind in "iu" for dtype in chunk.dtypes) else None)


Opened = tuple[int | None, Callable[[], Iterator[Any]]]


def _open_npy(path: Path, rows: int) -> Opened:
    array = np.lib.format.open_memmap(path, mode="r")  # of pickled objects it opens none
    if array.ndim != 2:
        return None, lambda: iter([np.atleast_1d(array)])
    return len(array), lambda: (array[start : start + rows] for start in range(0, max(1, len(array)), rows))


def _open_csv(path: Path, rows: int, *, columns_count: bool = False) -> Opened:
    # A missing number reads as "nan": a first line with a hole in it is data, and refused later as such.
    first = pd.read_csv(path, header=None, nrows=1, dtype=str).iloc[0]
    counts = columns_count and len(first) > 1 and [*first] == [*map(str, range(len(first)))]
    if counts:
        log.warning("%s: its first line, 0 to %d, is taken for a header", path, len(first) - 1)
    header = None if all(map(_is_number, first)) and not counts else "infer"

    def chunks() -> Iterator[pd.DataFrame]:
        with pd.read_csv(path, header=header, index_col=False, chunksize=rows) as reader:
            yield from reader

    return None, chunks


def _open_parquet(path: Path, rows: int) -> Opened:
    from pyarrow import parquet

    def chunks() -> Iterator[pd.DataFrame]:
        with parquet.ParquetFile(path) as file:
            if not file.metadata.num_rows:
                yield file.schema_arrow.empty_table().to_pandas()
            for group in range(file.num_row_groups):  # by itself: no more than one is held
                for batch in file.iter_batches(batch_size=rows, row_groups=[group]):
                    yield batch.to_pandas()

    with parquet.ParquetFile(path) as file:
        return file.metadata.num_rows, chunks


_OPEN = {".npy": _open_npy, ".csv": _open_csv, ".parquet": _open_parquet}
_OPEN_FEATURES = _OPEN | {".csv": partial(_open_csv, columns_count=True)}  # of edges, 0,1 is an arc


def read_edges(path: str | Path, num_rows: int | None = None) -> np.ndarray:
    """Read arcs ``[2, E]`` from ids of known nodes to rows of a table, and return them sorted by row.

    Args:
        path: ``.npy`` of shape ``[2, E]``, or ``.csv`` or ``.parquet`` of two columns, id and row, with a header line
            or none.
        num_rows: of the table; default ``None``: not known yet, for :func:`check_rows` to tell later.

    Raises:
        G2MError: if the file is missing or unreadable, or holds anything else.
    """
    path = _existing("--edges", path)
    with _reading("--edges", path):
        chunks = [_array("--edges", chunk, whole=True) for chunk in _OPEN[path.suffix](path, VALUES)[1]() if len(chunk)]
    arcs = np.concatenate(chunks) if chunks else np.empty((0, 2), dtype=np.int64)
    if path.suffix != ".npy" or not chunks:
        arcs = arcs.T
    if arcs.dtype.kind not in "iu" or arcs.ndim != 2 or len(arcs) != 2:
        raise G2MError(
            "--edges: expected whole numbers in two columns, ids of known nodes and rows of the table from 0 "
            f"(got {arcs.dtype}, {list(arcs.shape)})."
        )
    arcs = arcs[:, arcs[1].argsort(kind="stable")].astype(np.int64)
    check_rows(arcs, num_rows)
    return arcs


def check_rows(arcs: np.ndarray, num_rows: int | None) -> None:
    """Raise :class:`G2MError` unless all arcs, sorted, lead to one of ``num_rows`` rows; ``None``: of any number."""
    for row in arcs[1, [0, -1]] if arcs.size else ():
        if row < 0 or (num_rows is not None and row >= num_rows):
            last = "on" if num_rows is None else f"to {num_rows - 1}"
            raise G2MError(f"--edges: expected rows of the table in the second column, from 0 {last} (got {row}).")


# -- predictions out -------------------------------------------------------------------------------------------


def write_predictions(target: str | Path | IO[str], parts: Iterable[Part], names: Sequence[str] | None = None) -> int:
    """Write predictions as columns ``class``, ``p0`` … (.npy: one ``[N, 1 + C]``), and return the number of rows.

    Nothing is seen of them before the last part is written.

    Args:
        target: ``.npy``, ``.csv`` or ``.parquet``, or a stream for CSV.
        parts: classes ``[n]`` and probabilities ``[n, C]``, in the order of rows; at least one.
        names: C names, written in place of the numbers of classes, but for .npy; default ``None``.

    Raises:
        G2MError: on another kind of file, or if a package is missing.
    """
    if not isinstance(target, (str, Path)):
        with tempfile.TemporaryFile("w+", encoding="utf-8", newline="") as file:
            count = _write_csv(file, _frames(parts, names))
            file.seek(0)
            shutil.copyfileobj(file, target)
        return count
    path = Path(target)
    suffix, parts = _suffix("--out", path), iter(parts)
    names = None if suffix == ".npy" else names
    frames = _frames(chain([next(parts)], parts), names)  # what is wrong from the start leaves no folder behind
    try:
        with replacing(path) as temporary:
            return _WRITE[suffix](temporary, frames)
    except ImportError:
        raise G2MError("--out: .parquet files need pyarrow. Run pip install 'g2m[export]'.") from None


def _frames(parts: Iterable[Part], names: Sequence[str] | None) -> Iterator[pd.DataFrame]:
    for classes, probabilities in parts:
        columns = [f"p{c}" for c in range(probabilities.shape[1])]
        shown = classes if names is None else np.asarray(names, dtype=object)[classes]
        yield pd.DataFrame({"class": shown} | dict(zip(columns, probabilities.T, strict=True)))


def _write_csv(target: Path | IO[str], frames: Iterator[pd.DataFrame]) -> int:
    if isinstance(target, Path):
        with target.open("w", encoding="utf-8", newline="") as file:
            return _write_csv(file, frames)
    count = 0
    for number, frame in enumerate(frames):
        frame.to_csv(target, index=False, header=not number, lineterminator="\n")
        count += len(frame)
    return count


def _write_parquet(path: Path, frames: Iterator[pd.DataFrame]) -> int:
    from pyarrow import Table, parquet

    first = Table.from_pandas(next(frames), preserve_index=False)
    with parquet.ParquetWriter(path, first.schema) as writer:
        count = 0
        for table in chain([first], (Table.from_pandas(frame, preserve_index=False) for frame in frames)):
            writer.write_table(table)
            count += len(table)
    return count


def _write_npy(path: Path, frames: Iterator[pd.DataFrame]) -> int:
    first = next(frames)
    header = {"descr": "<f8", "fortran_order": False, "shape": (0, first.shape[1])}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        begin, count = file.tell(), 0
        for frame in chain([first], frames):
            file.write(frame.to_numpy("<f8").tobytes())
            count += len(frame)
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header | {"shape": (count, first.shape[1])})
        if file.tell() != begin:  # numpy leaves room for any number of rows
            raise OSError(f"{path}: the header of the .npy file outgrew its place.")
    return count


_WRITE = {".csv": _write_csv, ".npy": _write_npy, ".parquet": _write_parquet}
