"""Feature tables in, predictions out: .npy, .csv and .parquet."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import IO

import numpy as np
import pandas as pd

from g2m.errors import G2MError

SUFFIXES = (".npy", ".csv", ".parquet")


def _suffix(argument: str, path: Path) -> str:
    if path.suffix not in SUFFIXES:
        raise G2MError(f"{argument}: expected a {', '.join(SUFFIXES)} file (got {str(path)!r}).")
    return path.suffix


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text.lower() in ("true", "false")
    return True


def read_features(path: str | Path, in_channels: int) -> np.ndarray:
    """Read features ``[N, F]`` as float32.

    A CSV may have a header line or none: a first line of numbers is data.

    Args:
        path: ``.npy``, ``.csv`` or ``.parquet``.
        in_channels: F, the number of columns expected.

    Raises:
        G2MError: if the file is missing or unreadable, a column is not numeric, or the width is not F.
    """
    path = Path(path)
    suffix = _suffix("features", path)
    if not path.is_file():
        raise G2MError(f"features: no file {str(path)!r}.")
    try:
        if suffix == ".npy":
            with path.open("rb") as file:
                array = np.lib.format.read_array(file, allow_pickle=False)
        elif suffix == ".parquet":
            array = _numbers(pd.read_parquet(path))
        else:
            # A missing number reads as "nan": a first line with a hole in it is data, and refused later as such.
            first = pd.read_csv(path, header=None, nrows=1, dtype=str).iloc[0]
            header = None if all(map(_is_number, first)) else "infer"
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header are not cut
                array = _numbers(pd.read_csv(path, header=header, index_col=False))
    except ImportError:
        raise G2MError("features: .parquet files need pyarrow. Run pip install 'g2m[export]'.") from None
    except (ValueError, OSError, pd.errors.ParserWarning) as error:
        if isinstance(error, G2MError):
            raise
        raise G2MError(f"features: {str(path)!r} cannot be read ({error}).") from None
    if array.dtype.kind not in "fiub" or array.ndim != 2 or array.shape[1] != in_channels:
        raise G2MError(
            f"features: expected numbers of shape [N, {in_channels}], as the student was trained on "
            f"(got {array.dtype} {list(array.shape)})."
        )
    return array.astype(np.float32)


def _numbers(frame: pd.DataFrame) -> np.ndarray:
    for column, dtype in frame.dtypes.items():
        if dtype.kind not in "fiub":
            raise G2MError(f"features: expected numbers in every column (got {dtype} in column {column!r}).")
    return frame.to_numpy()


def write_predictions(target: str | Path | IO[str], classes: np.ndarray, probabilities: np.ndarray) -> None:
    """Write classes ``[N]`` and probabilities ``[N, C]`` as columns ``class``, ``p0`` … (.npy: one ``[N, 1 + C]``)."""
    columns = {"class": classes} | {f"p{c}": probabilities[:, c] for c in range(probabilities.shape[1])}
    frame = pd.DataFrame(columns)
    if not isinstance(target, (str, Path)):
        frame.to_csv(target, index=False)
        return
    path = Path(target)
    suffix = _suffix("--out", path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{suffix}")
    try:
        if suffix == ".npy":
            np.save(temporary, frame.to_numpy())
        elif suffix == ".csv":
            frame.to_csv(temporary, index=False)
        else:
            frame.to_parquet(temporary, index=False)
        temporary.replace(path)
    except ImportError:
        raise G2MError("--out: .parquet files need pyarrow. Run pip install 'g2m[export]'.") from None
    finally:
        temporary.unlink(missing_ok=True)
