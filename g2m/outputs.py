"""TeacherOutputs: the one artifact between a teacher and a student."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from operator import is_
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from g2m import storage
from g2m.codebook import CODE_METRICS, SCORES, log_assignments, nearest_code
from g2m.errors import G2MError, check_range, choose
from g2m.graph import Graph, check_edge_index
from g2m.losses import centred
from g2m.mapped import not_finite

_OPTIONAL = ("hidden", "low_target", "entropy_change", "codebook", "code_input")


@dataclass(frozen=True, eq=False, repr=False)
class TeacherOutputs:
    """What a trained teacher says of every node that training may see; checked when built and when loaded.

    There are rows for observed nodes only: in the inductive setting there is nothing of an unseen node to leak. Tensors
    are detached: no gradient reaches a teacher.

    Args:
        node_id: ids ``[M]`` of the rows in the graph that was given to the teacher, strictly ascending.
        logits: ``[M, C]``.
        hidden: the input of the teacher's last layer ``[M, H]``; where codes come between, the state they are of; or
            ``None``.
        low_target: teacher probabilities summed over each node and its neighbours ``[M, C]``, or ``None``.
        entropy_change: how far the entropy of a node's probabilities moves when features are noisy ``[M, 1]``, from 0,
            or ``None``: a small one is reliable.
        codebook: code vectors ``[K, D]``, or ``[L, K, D]`` with L codes per node, or ``None``.
        code_input: what the codes are looked up with ``[M, D]``, or ``None``; goes with ``codebook``.
        code_metric: how: ``"cosine"`` (default) or ``"euclidean"``.
        transforms: weights ``[out, in]`` of the teacher's linear maps, first layer first, or none.
        meta: ``fingerprint`` and ``fingerprint_without_edges`` of the observed graph, ``setting``, teacher
            configuration, seed, versions, scores.

    Raises:
        G2MError: if shapes do not match or a value is not finite.
    """

    node_id: Tensor
    logits: Tensor
    hidden: Tensor | None = None
    low_target: Tensor | None = None
    entropy_change: Tensor | None = None
    codebook: Tensor | None = None
    code_input: Tensor | None = None
    code_metric: str = "cosine"
    transforms: tuple[Tensor, ...] | None = None
    meta: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = ["node_id", "logits", *(name for name in _OPTIONAL if getattr(self, name) is not None)]
        given = [(name, getattr(self, name)) for name in names]
        for name, value in [*given, *(("transforms", weight) for weight in self.transforms or ())]:
            if not isinstance(value, Tensor):
                raise G2MError(f"{name}: expected a tensor (got {type(value).__name__}). torch.as_tensor makes one.")
        for name, value in list(vars(self).items()):  # a teacher is a constant
            if isinstance(value, Tensor):
                object.__setattr__(self, name, value.detach())
        if self.transforms is not None:
            object.__setattr__(self, "transforms", tuple(weight.detach() for weight in self.transforms))
        self.validate()

    def validate(self) -> None:
        """Raise :class:`G2MError` unless every field has its shape, finite values and ascending ids."""
        rows = len(self.node_id)
        if self.node_id.dtype != torch.int64 or self.node_id.dim() != 1 or rows == 0:
            raise G2MError(
                f"node_id: expected int64 ids [M], M at least 1 (got {self.node_id.dtype} {tuple(self.node_id.shape)})."
            )
        if self.node_id[0] < 0 or (self.node_id.diff() <= 0).any():
            raise G2MError("node_id: expected ids from 0 in strictly ascending order.")
        if self.logits.dim() != 2 or self.logits.size(1) < 2:
            raise G2MError(f"logits: expected [M, C] with C at least 2 (got {tuple(self.logits.shape)}).")
        for name in ("logits", *_OPTIONAL):
            tensor = getattr(self, name)
            if tensor is None:
                continue
            if not tensor.is_floating_point() or tensor.dim() not in ((2, 3) if name == "codebook" else (2,)):
                raise G2MError(f"{name}: expected a floating-point matrix (got {tensor.dtype} {tuple(tensor.shape)}).")
            if name != "codebook" and len(tensor) != rows:
                raise G2MError(f"{name}: expected {rows} rows, one per node_id (got {len(tensor)}).")
            _, row = not_finite(tensor)
            if row is not None:
                raise G2MError(f"{name}: expected finite values (got NaN or infinity, the first in row {row}).")
        if self.low_target is not None and self.low_target.shape != self.logits.shape:
            raise G2MError(f"low_target: expected {tuple(self.logits.shape)} (got {tuple(self.low_target.shape)}).")
        if self.low_target is not None:
            _check_low_target(self.low_target)
        if self.entropy_change is not None and (self.entropy_change.size(1) != 1 or (self.entropy_change < 0).any()):
            raise G2MError(f"entropy_change: expected [M, 1] from 0 (got {tuple(self.entropy_change.shape)}).")
        for i, weight in enumerate(self.transforms or ()):
            if weight.dim() != 2 or not weight.is_floating_point() or not torch.isfinite(weight).all():
                raise G2MError(f"transforms: expected finite floating-point matrices (got another as number {i}).")
        if (self.codebook is None) != (self.code_input is None):
            raise G2MError("codebook, code_input: expected both or neither.")
        if self.codebook is not None and self.codebook.size(-1) != self.code_input.size(1):
            raise G2MError(
                f"code_input: expected {self.codebook.size(-1)} columns as in codebook (got {self.code_input.size(1)})."
            )
        choose("code_metric", self.code_metric, CODE_METRICS)

    # -- derived knowledge -------------------------------------------------------------------------------------

    def log_soft_labels(self, tau: float = 1.0) -> Tensor:
        """Return log-probabilities ``[M, C]`` at temperature ``tau`` > 0, default 1."""
        return F.log_softmax(self.logits / check_range("tau", tau, 0, open_low=True), -1)

    def soft_labels(self, tau: float = 1.0) -> Tensor:
        """Return probabilities ``[M, C]`` at temperature ``tau`` > 0, default 1."""
        return self.log_soft_labels(tau).exp()

    def low_pass(self) -> Tensor:
        """Return the low-frequency part ``[M, C]``: the mean of the probabilities of a node and its neighbours."""
        if self.low_target is None:
            raise G2MError("low_target: not in these outputs. Make them with teacher.outputs(graph).")
        return self.low_target / self.low_target.sum(1, keepdim=True)

    def high_pass(self, edge_index: Tensor) -> Tensor:
        """Return the high-frequency part ``[E, C]`` on edges: how the logits of their two ends differ, as an absolute.

        A node's logits are known up to a constant; it is taken out by their mean over classes.

        Args:
            edge_index: rows of these outputs ``[2, E]``, from 0; give large graphs in parts.

        Raises:
            G2MError: if a shape or a type does not fit, or a row is out of range.
        """
        hint = " Take graph.observed().edge_index."
        check_edge_index(edge_index, len(self.logits), of=", rows of these outputs", hint=hint)
        logits = centred(self.logits)
        return (logits[edge_index[0]] - logits[edge_index[1]]).abs()

    @property
    def code_levels(self) -> Tensor:
        """The codebook as ``[L, K, D]``."""
        if self.codebook is None:
            raise G2MError(
                "codebook: not in these outputs. Make them by a teacher with tokenizer='beside' or 'inside'."
            )
        return self.codebook if self.codebook.dim() == 3 else self.codebook[None]

    def codes(self) -> Tensor:
        """Return each node's nearest code ``[M]``; ``[M, L]`` where there are levels."""
        index, rest = [], self.code_input
        for codes in self.code_levels:
            index.append(nearest_code(rest, codes, self.code_metric))
            rest = rest - codes[index[-1]]
        return index[0] if self.codebook.dim() == 2 else torch.stack(index, 1)

    def code_assignments(self, tau: float, rows: Tensor | None = None) -> Tensor:
        """Return probabilities over codes ``[B, K]`` (``[B, L, K]`` where there are levels): derived on a batch.

        Args:
            tau: temperature of the similarities, above 0. Cosines differ by little: from 0.05 to 0.1 tells most.
            rows: of these outputs ``[B]``; default all, which for many nodes and codes is a large matrix.
        """
        check_range("tau", tau, 0, open_low=True)
        x = self.code_input if rows is None else self.code_input[rows]
        log_p = log_assignments(x, self.code_levels, tau, self.code_metric)
        return (log_p if self.codebook.dim() == 3 else log_p[:, 0]).exp()

    def code_perplexity(self, tau: float, *, most: int = 2**14) -> float:
        """Return over how many codes an assignment spreads: exp of the mean entropy, from 1 to K.

        Args:
            tau: temperature, above 0.
            most: of so many nodes at most, evenly spaced; default 16 384.
        """
        levels = self.code_levels
        rows = torch.arange(0, len(self.node_id), -(-len(self.node_id) // most))
        entropy = 0.0
        for part in rows.split(max(1, SCORES // levels.shape[:2].numel())):
            p = self.code_assignments(tau, part)
            entropy -= float(torch.xlogy(p, p).sum(dtype=torch.float64))
        return float(torch.tensor(entropy / (len(rows) * len(levels))).exp())

    def single(self) -> TeacherOutputs:
        """Return these outputs in float32, which students are trained in: themselves, if they are."""
        tensors = {name: getattr(self, name) for name in ("logits", *_OPTIONAL)}
        other = {name: value.float() for name, value in tensors.items() if value is not None}
        weights = None if self.transforms is None else tuple(weight.float() for weight in self.transforms)
        if all(other[name] is tensors[name] for name in other) and all(map(is_, weights or (), self.transforms or ())):
            return self
        return replace(self, **other, transforms=weights)

    # -- belonging ---------------------------------------------------------------------------------------------

    def fingerprint(self, fields: Iterable[str] | None = None) -> str:
        """Return a hash of ids, of the tensors of these fields, by default of all, and of the metric of the codes."""
        read = None if fields is None else {"node_id", *fields}
        tensors = {k: v for k, v in self._tensors().items() if read is None or k.partition(".")[0] in read}
        return storage.checksum(tensors, meta=self.code_metric)[:32]

    def check(self, graph: Graph, *, edges: bool = True) -> None:
        """Raise :class:`G2MError` unless these outputs were made on the observed part of ``graph``.

        With ``edges=False``, ``graph.without_edges()`` will do.
        """
        observed = graph.observed()
        given, expected = self.meta.get("fingerprint"), observed.fingerprint()
        if given != expected:
            without = None if observed.num_edges else observed.fingerprint(edges=False)
            if without is None or self.meta.get("fingerprint_without_edges") != without:
                raise G2MError(
                    f"outputs: made on another graph, split or setting (fingerprint {given}, expected {expected} of "
                    f"{graph.name!r}, {graph.setting}). Take teacher.outputs(graph) of a teacher fitted on it."
                )
            if edges:
                raise G2MError("graph: this method takes edges (got a graph without). Pass the whole graph.")
        if self.logits.size(1) != graph.num_classes:
            raise G2MError(
                f"outputs: expected a column for each of the {graph.num_classes} classes of {graph.name!r} (got "
                f"{self.logits.size(1)})."
            )

    # -- file --------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write to a safetensors file, whole or not at all."""
        return storage.write(path, "outputs", self._tensors(), {**self.meta, "code_metric": self.code_metric})

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {name: getattr(self, name) for name in ("node_id", "logits", *_OPTIONAL)}
        tensors |= {f"transforms.{i}": weight for i, weight in enumerate(self.transforms or ())}
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    @classmethod
    def load(cls, path: str | Path) -> TeacherOutputs:
        """Map a saved file, and check it: its tensors are read where they are needed.

        Raises:
            G2MError: if it is missing, truncated, foreign, edited, or inconsistent.
        """
        tensors, meta = storage.read(path, "outputs")
        names = [f"transforms.{i}" for i in range(sum(name.startswith("transforms.") for name in tensors))]
        transforms = [tensors.pop(name) for name in names if name in tensors]
        unknown = set(tensors) - {"node_id", "logits", *_OPTIONAL}
        if unknown or not {"node_id", "logits"} <= set(tensors):
            raise G2MError(f"path: {str(path)!r} does not hold teacher outputs (it holds {sorted(tensors)}).")
        code_metric = meta.pop("code_metric", "cosine")
        return cls(**tensors, code_metric=code_metric, transforms=tuple(transforms) or None, meta=meta)

    def __repr__(self) -> str:
        shapes = {k: tuple(v.shape) for k in ("logits", *_OPTIONAL) if (v := getattr(self, k)) is not None}
        return f"TeacherOutputs(rows={len(self.node_id)}, {', '.join(f'{k}={v}' for k, v in shapes.items())})"


def _check_low_target(low_target: Tensor) -> None:
    """Raise unless ``[M, C]`` can be sums of probabilities over neighbourhoods: a node's own sum to 1."""
    total, rounding = low_target.sum(1, dtype=torch.float64), low_target.size(1) * torch.finfo(low_target.dtype).eps
    wrong = (low_target < 0).any(1) | (total < 1 - min(rounding, 0.5))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise G2MError(
            "low_target: expected probabilities summed over a node and its neighbours, none below 0 and at least 1 a "
            f"row (got {low_target[row].tolist()[:8]} in row {row}, sum {total[row]:.6g}). Take that of "
            "teacher.outputs(graph)."
        )
