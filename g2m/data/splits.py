"""Splits: pure functions from labels and a seed to ``{part: ids}``, of nodes or of graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from g2m.errors import G2MError, check_range, check_whole

if TYPE_CHECKING:
    from torch_geometric.data import Data


def public(data: Data, seed: int = 0) -> dict[str, Tensor]:
    """Return the split that the data set comes with.

    Args:
        data: has ``train_mask``, ``val_mask`` and ``test_mask``, boolean, ``[N]`` or ``[N, S]`` for S splits.
        seed: which of the S splits, modulo S; default 0.

    Raises:
        G2MError: if the data set has no masks.
    """
    masks = {part: data.get(f"{part}_mask") for part in ("train", "val", "test")}
    if any(mask is None for mask in masks.values()):
        raise G2MError("split: the data set has no split of its own (got 'public'). Use 'cpf' or 'random'.")
    masks = {part: mask.reshape(len(mask), -1) for part, mask in masks.items()}
    return {part: mask[:, seed % mask.size(1)].nonzero().flatten() for part, mask in masks.items()}


def cpf(y: Tensor, seed: int = 0, *, train_per_class: int = 20, val_per_class: int = 30) -> dict[str, Tensor]:
    """Draw the split of CPF (Yang et al., WWW 2021), used by GLNN, NOSMOG and VQGraph: all the rest is test.

    Draws are those of the reference code, number for number: first the training nodes class by class, then the
    validation nodes class by class.

    Args:
        y: labels ``[N]``; -1, unlabelled, is in no part.
        seed: of the draw, default 0.
        train_per_class: training nodes a class, default 20.
        val_per_class: validation nodes a class, default 30.

    Raises:
        G2MError: if a class has too few nodes, or nothing is left for the test.
    """
    y, classes = _known(
        y, check_whole("train_per_class", train_per_class) + check_whole("val_per_class", val_per_class)
    )
    rng = _generator(seed)
    train = _per_class(rng, y, classes, train_per_class)
    val = _per_class(rng, np.where(np.isin(np.arange(len(y)), train), -1, y), classes, val_per_class)
    return _parts(train=train, val=val, test=np.setdiff1d(np.flatnonzero(y >= 0), np.union1d(train, val)))


def random(
    y: Tensor,
    seed: int = 0,
    *,
    train_per_class: int = 20,
    train: float | None = None,
    num_val: float | None = 500,
    num_test: float | None = 1000,
) -> dict[str, Tensor]:
    """Draw a random split; the defaults are those of FF-G2M (AAAI 2023) for Photo, CS and Physics.

    Training nodes are drawn class by class, the others from what is left over; the remainder is in no part.

    Args:
        y: labels ``[N]``; -1, unlabelled, is in no part.
        seed: of the draw, default 0.
        train_per_class: training nodes a class, default 20.
        train: if given, training nodes in all, drawn without regard to class: a number of nodes, or a share of the
            labelled nodes in (0, 1). Takes the place of ``train_per_class``.
        num_val: validation nodes, a number or a share; ``None``: all the rest. Default 500.
        num_test: test nodes, likewise; default 1000. At most one of the two may be ``None``.

    Raises:
        G2MError: if a class, or the whole graph, has too few nodes.
    """
    if num_val is None and num_test is None:
        raise G2MError("num_val, num_test: expected at most one of them to be None, the rest (got both).")
    rng = _generator(seed)
    y, classes = _known(y, 1 if train is not None else check_whole("train_per_class", train_per_class))
    labelled = np.flatnonzero(y >= 0)
    if train is None:
        picked = _per_class(rng, y, classes, train_per_class)
    else:
        picked = rng.permutation(labelled)[: _size("train", train, len(labelled))]
    rest = rng.permutation(np.setdiff1d(labelled, picked))
    sizes = {"num_val": num_val, "num_test": num_test}
    wanted = {key: _size(key, size, len(labelled)) for key, size in sizes.items() if size is not None}
    filled = len(rest) - sum(wanted.values())
    if filled < (len(wanted) < 2):
        raise G2MError(
            f"num_val, num_test: expected at most {len(rest)} nodes together, what {len(picked)} training nodes leave "
            f"over (got {wanted}). Lower them, or give shares such as num_val=0.2."
        )
    wanted = {key: wanted.get(key, filled) for key in sizes}
    val, test, _ = np.split(rest, np.cumsum(list(wanted.values())))
    return _parts(train=picked, val=val, test=test)


def stratified(y: Tensor, seed: int = 0, *, num_val: float = 0.1, num_test: float = 0.1) -> dict[str, Tensor]:
    """Draw the same share of every class for validation and for the test; all the rest is for training.

    Args:
        y: classes ``[G]`` of graphs; -1, unlabelled, is in no part.
        seed: of the draw, default 0.
        num_val: share of the validation graphs, in (0, 1), default 0.1; of a class, rounded, but at least one.
        num_test: share of the test graphs, likewise.

    Raises:
        G2MError: if a share leaves a class without training graphs.
    """
    for name, share in (("num_val", num_val), ("num_test", num_test)):
        if not 0 < share < 1:
            raise G2MError(f"{name}: expected a share in (0, 1) (got {share!r}).")
    y, classes = _known(y, 3, "graphs")
    rng = _generator(seed)
    parts = {"train": [], "val": [], "test": []}
    for c in classes:
        ids = rng.permutation(np.flatnonzero(y == c))
        val, test = (max(1, round(share * len(ids))) for share in (num_val, num_test))
        if val + test >= len(ids):
            raise G2MError(
                f"num_val, num_test: expected shares that leave a training graph in every class (got {num_val} and "
                f"{num_test}, all {len(ids)} of class {c}). Lower them."
            )
        for part, some in zip(parts, np.split(ids, [len(ids) - val - test, len(ids) - test]), strict=True):
            parts[part].append(some)
    return _parts(**{part: np.concatenate(ids) for part, ids in parts.items()})


#: Split name -> function of the data and the seed, what ``load(name, split=…)`` looks up.
SPLITS: dict[str, Callable[[Data, int], dict[str, Tensor]]] = {
    "public": public,
    "cpf": lambda data, seed: cpf(data.y, seed),
    "random": lambda data, seed: random(data.y, seed),
    "stratified": lambda data, seed: stratified(data.y, seed),
    "scaffold": public,
}


def _generator(seed: int) -> np.random.RandomState:
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise G2MError(f"seed: expected an integer in [0, 2**32 - 1] (got {seed!r}).")
    return np.random.RandomState(seed)  # the reference's generator


def _known(y: Any, needed: int, what: str = "nodes") -> tuple[np.ndarray, np.ndarray]:
    y = np.asarray(y)
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise G2MError(f"y: expected integer labels of shape [N] (got {y.dtype}, shape {y.shape}).")
    classes, found = np.unique(y[y >= 0], return_counts=True)
    if len(classes) == 0:
        raise G2MError(f"y: expected labelled {what} (got none).")
    if found.min() < needed:
        least = int(found.argmin())
        raise G2MError(
            f"y: expected at least {needed} labelled {what} in every class for this split "
            f"(got {int(found[least])} in class {int(classes[least])}). "
            f"Load with split={{}}, then .with_split(...) with a split of fewer {what} a class from g2m.data.splits."
        )
    return y, classes


def _per_class(rng: np.random.RandomState, y: np.ndarray, classes: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([rng.choice(np.flatnonzero(y == c), size, replace=False) for c in classes])


def _size(name: str, size: float, total: int) -> int:
    """A share in (0, 1) becomes a number of nodes, at least one; a number stays."""
    check_range(name, size, 0, open_low=True)
    if size >= 1 and size != int(size):
        raise G2MError(f"{name}: expected a number of nodes or a share in (0, 1) (got {size!r}).")
    return max(1, int(size * total)) if size < 1 else int(size)


def _parts(**parts: np.ndarray) -> dict[str, Tensor]:
    for part, ids in parts.items():
        if len(ids) == 0:
            raise G2MError(f"split: expected at least one node in {part!r} (got none). Ask for fewer in the others.")
    return {part: torch.from_numpy(np.sort(ids)).long() for part, ids in parts.items()}
