"""A student as one file that runs without g2m: ``.onnx`` (onnxruntime) or ``.pt2`` (torch alone, from 2.9).

A file is written once its answers are those of the student, and says itself what it is: :attr:`Exported.meta`.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import logging
import os
import re
import shlex
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from g2m import metrics
from g2m.errors import G2MError, check_flag, check_whole, choose, nearest
from g2m.estimators import (
    Student,
    _answers,
    _check_graph,
    checked_arcs,
    checked_features,
    like,
    reads_no_edge,
    versions,
)
from g2m.graph import Graph
from g2m.positions import arcs_to
from g2m.storage import write_bytes, write_text

SUFFIXES = (".onnx", ".pt2")
PRECISIONS = ("float32", "bfloat16", "int8")
OPSET = 18
TOLERANCE = 1e-5  # of float32: for probabilities, and for logits as a share of the largest (of 1, if that is less)
ROWS = 16384  # answered at once: bounds memory, not results
BYTES = 2**31 - 2**20  # of an .onnx: what protobuf allows, less what is not weights

_INPUTS, _OUTPUTS = ("features", "edge_index"), ("logits", "probabilities")
_PREFIX, _ENTRY, _CHECKSUM = "g2m.", "g2m.json", "checksum"
_UNSIGNED = "0" * 64  # in the place of the checksum while it is taken
_PT2_PARTS = re.compile(  # what a file of ours consists of; nothing in it is a pickle
    r"data/weights/weight_\d+|data/(weights|constants)/model_\w+_config\.json|models/model\.json|extra/g2m\.json"
    r"|data/sample_inputs/model\.pt|archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
)

Run = Callable[..., tuple[Tensor, Tensor]]  # features [n, F] (and arcs [2, e]) to logits and probabilities [n, C]
Writer = Callable[[Mapping[str, Any]], bytes]  # metadata to the whole file


# -- what is written -------------------------------------------------------------------------------------------


class _Served(nn.Module):
    """Features ``[N, F]`` to logits and probabilities ``[N, C]``, with all that a student does before its MLP.

    Of one that reads of neighbours, their rows are inside; beside features it takes arcs ``[2, E]``.
    """

    def __init__(self, student: Student, *, neighbours: bool, precision: str) -> None:
        super().__init__()
        self.model = copy.deepcopy(student.model_).eval().requires_grad_(False)
        self.position_channels = student.meta_.get("position_channels", 0)
        for weight in self.model.parameters():
            weight.data = weight.data.contiguous()
            if precision == "bfloat16" and weight.dim() == 2:
                weight.data = weight.data.bfloat16()
        if neighbours:
            known, position = student.position_
            rows = torch.zeros(int(known[-1]) + 2, position.size(1) + 1)
            rows[known] = F.pad(position, (0, 1), value=1.0)  # what is counted; of an id without a row, nothing
            self.register_buffer("rows", rows if precision == "float32" else rows.bfloat16())
        self.eval()

    def forward(self, features: Tensor, edge_index: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x = features.float()
        if edge_index is not None:
            (known, row), last = edge_index, self.rows.shape[0] - 1
            rows = self.rows[torch.where((known >= 0) & (known < last), known, last)].float()
            total = x.new_zeros(x.shape[0], rows.shape[1]).index_add(0, row, rows)
            x = torch.cat([x, total[:, :-1] / total[:, -1:].clamp(min=1)], 1)
        elif self.position_channels:  # of a node that nothing is linked to
            x = torch.cat([x, x.new_zeros(x.shape[0], self.position_channels)], 1)
        weights = {name: weight.float() for name, weight in self.model.named_parameters()}
        logits = functional_call(self.model, weights, (x,)).logits
        return logits, logits.softmax(-1)

    @property
    def example(self) -> tuple[Tensor, ...]:
        """Inputs to trace it by: two of all, one would be taken for a constant."""
        features = torch.zeros(2, self.model.layers[0].in_features - self.position_channels)
        return (features, torch.zeros(2, 2, dtype=torch.long)) if hasattr(self, "rows") else (features,)

    @property
    def dynamic_shapes(self) -> dict[str, Any]:
        shapes = {0: torch.export.Dim("N")}, {1: torch.export.Dim("E")}
        return dict(zip(_INPUTS, shapes[: len(self.example)], strict=False))


def export(
    student: Student,
    path: str | Path,
    *,
    precision: str = "float32",
    neighbours: bool = True,
    calibration: Tensor | np.ndarray | None = None,
    graph: Graph | None = None,
    class_names: Sequence[str] | None = None,
    feature_names: Sequence[str] | None = None,
    scores: Mapping[str, float] | None = None,
) -> Path:
    """Write a student as ``.onnx`` or ``.pt2``, and a model card beside it (:func:`card_path`).

    The file takes ``features`` ``[N, F]``, float32, any N, and gives ``logits`` and ``probabilities`` ``[N, C]``. All
    the student does to features is inside. Of one that reads of neighbours (``"nosmog"``, ``"onehop"``, ``"auto"`` with
    ``neighbours=True``) the rows that it keeps of them are as well, and beside features the file takes ``edge_index``
    ``[2, E]``, int64, any E, as :meth:`Student.predict_logits` does. Before anything is written, its answers are
    compared with the student's.

    Args:
        student: fitted.
        path: ends in ``.onnx`` (opset 18; made with onnx and onnxscript, run by onnxruntime) or ``.pt2`` (torch alone,
            from 2.9).
        precision: ``"float32"`` (default): the same answers, to 1e-5. ``"bfloat16"``: weight matrices are stored so, in
            half the bytes, and computed with in float32. ``"int8"``: of ``.onnx``, weights and products in whole
            numbers of 8 bits (onnxruntime's dynamic quantisation), a quarter of the bytes; the rows of a batch share
            one scale, so that an answer depends on the rows beside it. With either, rows of neighbours are stored in
            half the bytes.
        neighbours: of a student that reads of neighbours, whether their rows go with it; default True. Without, the
            file takes features alone and answers as for nodes that nothing is linked to.
        calibration: real features ``[M, F]`` to compare on, beside random ones; default: those of ``graph``, if given.
        graph: the graph trained on; its scores by the student and by the file are kept in the file. Default ``None``.
        class_names, feature_names: C and F names to keep in the file; default ``None``.
        scores: more of them to keep, by name, such as a ``"test"`` measured before; default ``None``.

    Returns:
        The path.

    Raises:
        G2MError: on any of the above not holding, if a package is missing, if ``graph`` or its split is another one,
            or if the answers differ: then nothing is written.
    """
    student._check_fitted()
    if graph is not None:
        _check_graph(graph)
    path = Path(path)
    suffix, card = _suffix(path), card_path(path)
    choose("precision", precision, PRECISIONS)
    if precision == "int8" and suffix != ".onnx":
        raise G2MError(
            f"precision: 'int8' is of .onnx files (got {path.name!r}). Name it {path.stem}.onnx, or take 'bfloat16'."
        )
    if graph is not None and graph.observed().fingerprint() != student.meta_["fingerprint"]:
        raise G2MError(
            f"graph: expected {student.meta_['graph']!r} with the seed, setting and options trained on (got "
            f"{graph.name!r}, or another split of it): scores would be of nodes it knows. Load it so, or leave it out."
        )
    width, classes = student.meta_["in_channels"], student.meta_["num_classes"]
    name = student.method if isinstance(student.method, str) else student.method.name
    positions = student.position_ is not None
    if not check_flag("neighbours", neighbours) and not positions:
        raise G2MError(f"neighbours: a student of method {name!r} reads features alone. Leave it out.")
    neighbours = neighbours and positions
    inputs = [f"features: float32 [N, {width}]", "edge_index: int64 [2, E]"]
    meta = {
        "what": _what(student, name, neighbours),
        "format": suffix[1:],
        "precision": precision,
        "inputs": inputs[: 1 + neighbours],
        "outputs": [f"{name}: float32 [N, {classes}]" for name in _OUTPUTS],
        **{name: student.meta_.get(name) for name in ("graph", "setting", "fingerprint", "metric")},
        "method": name,
        "teacher": student.meta_.get("teacher"),
        "in_channels": width,
        "num_classes": classes,
        "class_names": _names("class_names", class_names, classes),
        "feature_names": _names("feature_names", feature_names, width),
        "positions": positions,
        "neighbours": len(student.position_[0]) if neighbours else 0,
        "parameters": student.num_parameters(),
        "scores": {"val": student.meta_["val"]} | _numbers(scores),
        "trained_with": student.meta_["versions"],
        "versions": versions(),
    }
    if suffix == ".onnx":
        meta["opset"], meta["versions"] = OPSET, meta["versions"] | _packages()
    served = _Served(student, neighbours=neighbours, precision=precision)
    make, load = (_make_onnx, _open_onnx) if suffix == ".onnx" else (_make_pt2, _open_pt2)
    written = make(served, precision)
    exported = Exported(*load(written(meta), None))
    if calibration is None and graph is not None:
        calibration = graph.x[:ROWS]
    meta["compared"] = _compared(student, exported, calibration)
    if graph is not None:
        given = exported.predict_logits(graph.x, student._arcs_of(graph) if neighbours else None)
        answers = _answers(graph, given, lambda: exported.predict_logits(graph.x))
        meta["scores"] |= student.evaluate(graph)
        meta["exported_scores"] = {
            part: metrics.score(graph.metric, logits, y) for part, (logits, y) in answers.items()
        }
    data = written(meta)
    write_bytes(path, data)
    write_text(card, model_card(meta, path.name, len(data)))
    return path


def _suffix(path: Path) -> str:
    if path.suffix not in SUFFIXES:
        raise G2MError(
            f"path: expected a name that ends in {' or '.join(SUFFIXES)} (got {path.name!r})."
            f"{nearest(path.suffix, SUFFIXES)}"
        )
    return path.suffix


def _names(argument: str, names: Sequence[str] | None, count: int) -> list[str] | None:
    if names is None:
        return None
    if isinstance(names, str) or len(names) != count or not all(isinstance(name, str) for name in names):
        got = repr(names) if isinstance(names, str) else f"{len(names)}, such as {names[0]!r}" if len(names) else "none"
        raise G2MError(f"{argument}: expected {count} strings, in the order of columns (got {got}).")
    return list(names)


def _numbers(scores: Mapping[str, float] | None) -> dict[str, float]:
    try:
        return {str(name): float(value) for name, value in (scores or {}).items()}
    except (AttributeError, TypeError, ValueError):
        raise G2MError(f"scores: expected numbers by name, such as {{'test': 0.81}} (got {scores!r}).") from None


def _what(student: Student, method: str, neighbours: bool) -> str:
    """One sentence for whoever finds the file."""
    meta = student.meta_
    teacher = (meta.get("teacher") or {}).get("model")
    norm = "" if student.norm == "none" else f", {student.norm} norm"
    return (
        f"A multi-layer perceptron ({student.num_layers} × {student.hidden_channels}{norm}) that classifies nodes of "
        f"{meta['graph']!r} from their features {'and what is kept of their neighbours' if neighbours else 'alone'}, "
        f"trained by g2m's method {method!r}"
        + (f" on what a {str(teacher).upper()} teacher knows." if teacher else ".")
        + (
            " It also learned from positions in the graph, and this file gives it none: it answers as for nodes that "
            "nothing is linked to."
            if student.position_ is not None and not neighbours
            else ""
        )
    )


def _compared(student: Student, exported: Exported, calibration: Any) -> dict[str, Any]:
    """Return how near the file's answers are to the student's; raise if they are to be the same and are not."""
    width, precision = student.meta_["in_channels"], exported.meta["precision"]
    probes = {"random": torch.randn(1000, width, generator=torch.Generator().manual_seed(0))}
    if calibration is not None:
        probes["real"] = checked_features(calibration, width, argument="calibration")
        if not len(probes["real"]):
            raise G2MError("calibration: expected at least one row of features (got none).")
    found: dict[str, Any] = {}
    for kind, x in probes.items():
        largest, arcs = 0.0, _random_arcs(student, len(x)) if exported.meta["neighbours"] else None
        for size in sorted({1, 2, 7, len(x)} & {*range(1, len(x) + 1)}):
            asked = x[:size], None if arcs is None else arcs[:, arcs[1] < size]
            logits = student.predict_logits(*asked)
            difference = _difference(logits, exported.predict_logits(*asked), max(1.0, logits.abs().max().item()))
            difference = max(difference, _difference(logits.softmax(-1), exported.predict_proba(*asked), 1.0))
            largest = max(largest, difference)
            if precision == "float32" and difference > TOLERANCE:
                raise G2MError(
                    f"export: the file's answers to {size} rows of {kind} features differ from the student's by "
                    f"{difference:.1e}, more than {TOLERANCE:g}. Nothing was written: these versions of torch and "
                    f"{'onnxruntime' if exported.meta['format'] == 'onnx' else 'torch.export'} do not fit each other "
                    "(constraints.txt has some that do)."
                )
        same = (logits.argmax(1) == exported.predict(x, arcs)).float().mean().item()
        found[kind] = {"rows": len(x), "difference": largest, "same_class": same}
    return found


def _random_arcs(student: Student, num_rows: int) -> Tensor:
    """Return three arcs a row on average, some of them from ids that are not known."""
    generator, last = torch.Generator().manual_seed(0), int(student.position_[0][-1])
    known = torch.randint(-1, last + 3, (3 * num_rows,), generator=generator)
    return torch.stack([known, torch.randint(num_rows, (3 * num_rows,), generator=generator)])


def _difference(a: Tensor, b: Tensor, scale: float) -> float:
    difference = (a - b).abs().max().item() / scale
    return difference if difference == difference else float("inf")


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters narrate; what matters of it is checked afterwards."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# -- .onnx -----------------------------------------------------------------------------------------------------


def _packages() -> dict[str, str]:
    try:
        return {name: import_module(name).__version__ for name in ("onnx", "onnxscript", "onnxruntime")}
    except ImportError as error:
        raise G2MError(
            f"path: .onnx files are made with onnx, onnxscript and onnxruntime (no {error.name}). "
            "Run pip install 'g2m[export]', or name a .pt2."
        ) from None


def _make_onnx(served: _Served, precision: str) -> Writer:
    import onnx
    from onnxruntime.quantization import quantize_dynamic

    size = sum(tensor.nbytes for tensor in served.state_dict().values())
    if size > BYTES:
        raise G2MError(
            f"path: an .onnx file holds {BYTES / 1e9:.1f} GB at most (got {size / 1e9:.1f} GB of weights and rows of "
            "neighbours). Name a .pt2, or leave the rows out (neighbours=False)."
        )
    with _quiet():
        model = torch.onnx.export(
            served,
            served.example,
            input_names=list(_INPUTS[: len(served.example)]),
            output_names=list(_OUTPUTS),
            dynamic_shapes=served.dynamic_shapes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        ).model_proto
        del model.graph.value_info[:]  # shapes from before optimisation: some are no longer so
        for part in (model.graph, *model.graph.node, *model.graph.input, *model.graph.output, *model.graph.initializer):
            del part.metadata_props[:]  # of the exporter: longer than the network
        if precision == "int8":
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder, "int8.onnx")
                quantize_dynamic(model, file, per_channel=True, op_types_to_quantize=["MatMul"])
                model = onnx.load(file)
    model.producer_name, model.producer_version = "g2m", version("g2m")

    def written(meta: Mapping[str, Any]) -> bytes:
        model.doc_string = meta["what"]
        del model.metadata_props[:]
        for name, value in {**meta, _CHECKSUM: _UNSIGNED}.items():
            model.metadata_props.add(key=_PREFIX + name, value=json.dumps(value))
        onnx.checker.check_model(model, full_check=True)
        return _signed(model.SerializeToString(deterministic=True))

    return written


def _signed(data: bytes) -> bytes:
    """Put the SHA-256 of the file, with zeros in its place, into the place of the zeros."""
    return data.replace(_UNSIGNED.encode(), hashlib.sha256(data).hexdigest().encode(), 1)


def _open_onnx(data: bytes, threads: int | None) -> tuple[Run, dict[str, Any]]:
    try:
        import onnxruntime
    except ImportError:
        raise G2MError("path: .onnx files are run by onnxruntime. Run pip install 'g2m[export]'.") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    found = session.get_modelmeta().custom_metadata_map
    meta = {key.removeprefix(_PREFIX): json.loads(found[key]) for key in found if key.startswith(_PREFIX)}
    checksum = meta.pop(_CHECKSUM)
    if _signed(data.replace(checksum.encode(), _UNSIGNED.encode(), 1)) != data:
        raise ValueError("its checksum differs")

    def run(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        given = zip(_INPUTS, (one.numpy() for one in inputs), strict=False)
        logits, probabilities = session.run(_OUTPUTS, dict(given))
        return torch.from_numpy(logits), torch.from_numpy(probabilities)

    return run, meta


# -- .pt2 ------------------------------------------------------------------------------------------------------


def _check_torch() -> None:
    if torch.__version__ < "2.9":  # before that, weights were pickled
        raise G2MError(
            f"path: .pt2 files are made and opened by torch from 2.9 (got {torch.__version__}). Install that, or take "
            "an .onnx."
        )


def _make_pt2(served: _Served, precision: str) -> Writer:
    _check_torch()
    with _quiet():
        program = torch.export.export(served, served.example, dynamic_shapes=served.dynamic_shapes)
    program.example_inputs = None  # would be a pickle

    def written(meta: Mapping[str, Any]) -> bytes:
        file = io.BytesIO()
        with _quiet():
            torch.export.save(program, file, extra_files={_ENTRY: json.dumps(meta)})
        return file.getvalue()

    return written


def _open_pt2(data: bytes, threads: int | None) -> tuple[Run, dict[str, Any]]:
    _check_torch()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if broken := archive.testzip():
            raise ValueError(f"{broken} was changed")
        parts = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    meta = json.loads(parts[f"extra/{_ENTRY}"])
    configs = [json.loads(part)["config"] for name, part in parts.items() if name.endswith("_config.json")]
    # torch.export.load would open pickles; a file of ours has none.
    pickled = parts["data/sample_inputs/model.pt"] or any(one["use_pickle"] for c in configs for one in c.values())
    if pickled or not all(map(_PT2_PARTS.fullmatch, parts)):
        raise ValueError("it holds what g2m does not write")
    if threads is not None:
        torch.set_num_threads(threads)
    with _quiet():
        module = torch.export.load(io.BytesIO(data)).module()
    return torch.no_grad()(module), meta


# -- what is read ----------------------------------------------------------------------------------------------


class Exported:
    """An exported student: features in, classes out, as :class:`~g2m.Student` has it; ``meta`` says what it is.

    One that has rows of neighbours also takes ``edge_index`` ``[2, E]``, arcs from ids of the graph trained on to rows
    of features. :meth:`load` opens a file.

    Args:
        run: features ``[N, F]``, and arcs ``[2, E]`` of one that has rows of neighbours, to logits and probabilities
            ``[N, C]``.
        meta: what the file says it is.
    """

    def __init__(self, run: Run, meta: Mapping[str, Any]) -> None:
        self.run, self.meta = run, dict(meta)

    @classmethod
    def load(cls, path: str | Path, *, threads: int | None = None) -> Exported:
        """Open a file that :func:`export` wrote, on CPU.

        The file is checked first. Even so, open a ``.pt2`` of trusted origin only: torch makes code of what is in it.

        Args:
            path: ends in ``.onnx`` or ``.pt2``.
            threads: from 1, of the processors there are; of ``.pt2``, torch's in this process. Default ``None``: as
                many as torch takes.

        Raises:
            G2MError: if the file is missing, truncated, changed or not an exported student, or a package is missing.
        """
        path = Path(path)
        suffix = _suffix(path)
        if threads is not None:
            threads = min(check_whole("threads", threads), os.cpu_count() or 1)  # far more hang onnxruntime
        if not path.is_file():
            raise G2MError(f"path: no file {str(path)!r}.")
        data = path.read_bytes()
        try:
            return cls(*(_open_onnx if suffix == ".onnx" else _open_pt2)(data, threads))
        except G2MError:
            raise
        except LookupError:
            raise G2MError(f"path: {str(path)!r} is no student of g2m. Make one with Student.export.") from None
        except (
            Exception
        ) as error:  # of every kind: onnxruntime's have no common class, torch's readers raise what comes
            reason = str(error).partition("\n")[0]
            raise G2MError(
                f"path: {str(path)!r} is truncated, changed or not {suffix} ({reason}). Export it again."
            ) from None

    def __repr__(self) -> str:
        return f"<Exported {self.meta['format']}, {self.meta['precision']}: {self.meta['what']}>"

    def _answers(self, x: Any, edge_index: Any, output: int) -> Tensor:
        x = checked_features(x, self.meta["in_channels"]).cpu().contiguous()
        if not self.meta.get("neighbours"):  # older files do not say
            if edge_index is not None:
                raise reads_no_edge("this file")
            return torch.cat([self.run(rows)[output] for rows in x.split(ROWS)])
        arcs, size = checked_arcs(edge_index, len(x)), ROWS // 8  # their neighbours' rows are held as well
        starts = range(0, max(1, len(x)), size)
        return torch.cat([self.run(x[at : at + size], arcs_to(arcs, at, at + size))[output] for at in starts])

    def predict_logits(self, x: Tensor | np.ndarray, edge_index: Tensor | np.ndarray | None = None) -> Tensor:
        """Return logits ``[N, C]`` for features ``[N, F]``."""
        return self._answers(x, edge_index, 0)

    def predict_proba(
        self, x: Tensor | np.ndarray, edge_index: Tensor | np.ndarray | None = None
    ) -> Tensor | np.ndarray:
        """Return class probabilities ``[N, C]`` for features ``[N, F]``; an array for an array, else a tensor."""
        return like(x, self._answers(x, edge_index, 1))

    def predict(self, x: Tensor | np.ndarray, edge_index: Tensor | np.ndarray | None = None) -> Tensor | np.ndarray:
        """Return classes ``[N]`` for features ``[N, F]``; an array for an array, else a tensor."""
        return like(x, self._answers(x, edge_index, 0).argmax(-1))


# -- model card ------------------------------------------------------------------------------------------------

_CARD_MARK = "<!-- model card of {}, written by g2m -->\n"
_CALLS = {
    "onnx": """import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{name}")
inputs = {{"features": np.zeros((1, {width}), dtype=np.float32)}}  # a row for every node
{onnx_arcs}logits, probabilities = session.run(["logits", "probabilities"], inputs)""",
    "pt2": """import torch

model = torch.export.load("{name}").module()
inputs = [torch.zeros(1, {width})]  # a row for every node
{pt2_arcs}logits, probabilities = model(*inputs)""",
}
_ARCS = {
    "onnx_arcs": 'inputs["edge_index"] = np.array([[4, 7], [0, 0]])  # row 0 is linked to nodes 4 and 7\n',
    "pt2_arcs": "inputs.append(torch.tensor([[4, 7], [0, 0]]))  # row 0 is linked to nodes 4 and 7\n",
}
_OF_ARCS = (
    "An arc leads from a node of the graph trained on, by its id, to a row of features; nodes that training did not "
    "see do not count. Give each arc once: the file counts it as often as it comes.\n"
)
_PRECISION_NOTES = {
    "float32": "as trained",
    "bfloat16": "weight matrices stored in 16 bits, computed with in float32",
    "int8": "weights and products in 8 bits, by onnxruntime's dynamic quantisation; the rows of a batch share one "
    "scale, so that an answer depends on the rows beside it, and a row of much larger numbers makes the others' coarse",
}


def card_path(path: str | Path) -> Path:
    """Return where the model card of ``student.onnx`` is or goes: ``student.md``; another's, ``student.onnx.md``.

    Raises:
        G2MError: if both are there and are not its card.
    """
    path = Path(path)
    for card in (path.with_suffix(".md"), path.with_name(f"{path.name}.md")):
        if not card.exists():
            return card
        with card.open(encoding="utf-8", errors="replace") as file:
            if file.readline() == _CARD_MARK.format(path.name):
                return card
    raise G2MError(
        f"path: {str(card)!r} is not its model card, and would be overwritten by it. Name the file otherwise."
    )


def model_card(meta: Mapping[str, Any], name: str, size: int) -> str:
    """Return the model card of an exported student as Markdown.

    Args:
        meta: :attr:`Exported.meta`.
        name: of the file.
        size: of the file, in bytes.
    """
    from g2m.report import markdown_table  # it takes the drawing and benchmarking parts along

    in_bits = "" if meta["precision"] == "float32" else ", in 16 bits"
    facts = {
        "inputs": ", ".join(f"`{each}`" for each in meta["inputs"])
        + (", any N and E" if meta["neighbours"] else ", any N"),
        "outputs": ", ".join(f"`{output}`" for output in meta["outputs"]),
        "precision": f"{meta['precision']}: {_PRECISION_NOTES[meta['precision']]}",
        "size": f"{size:,} bytes, {meta['parameters']:,} parameters",
        **({"neighbours": f"rows of {meta['neighbours']:,} nodes are inside{in_bits}"} if meta["neighbours"] else {}),
        "trained on": f"{meta['graph']}, {meta['setting']}; fingerprint `{meta['fingerprint']}`",
        "versions": ", ".join(f"{part} {number}" for part, number in meta["versions"].items())
        + (f"; opset {meta['opset']}" if "opset" in meta else ""),
    }
    of_file = meta.get("exported_scores")
    scores = [
        [part, f"{value:.4f}", *([f"{of_file[part]:.4f}" if part in of_file else "–"] if of_file else [])]
        for part, value in meta["scores"].items()
    ]
    compared = [
        [kind, f"{found['rows']:,}", f"{found['difference']:.1e}", f"{100 * found['same_class']:.2f} %"]
        for kind, found in meta["compared"].items()
    ]
    arcs, edges = (_ARCS, " --edges edges.csv") if meta["neighbours"] else (dict.fromkeys(_ARCS, ""), "")
    pieces = [
        f"{_CARD_MARK.format(name)}# {name}\n",
        f"{meta['what']}\n",
        markdown_table(["", ""], facts.items()),
        f"## Scores\n\n{meta['metric']}, by part of the graph"
        + (": the student as trained, and this file.\n" if of_file else ", of the student as trained.\n"),
        markdown_table(["part", "student", *(["this file"] if of_file else [])], scores),
        "## Call it\n",
        f"```python\n{_CALLS[meta['format']].format(name=name, width=meta['in_channels'], **arcs)}\n```\n",
        f"or `g2m predict {shlex.quote(name)} features.csv{edges} --out predictions.csv`.\n",
        *([_OF_ARCS] if meta["neighbours"] else []),
        "Features are finite numbers, in the columns and on the scale the student was trained on; nothing checks that "
        "for you when the file is called without g2m.\n",
        "## Compared with the student\n",
        "Largest difference of its probabilities, and of its logits as a share of the largest.\n",
        markdown_table(["features", "rows", "difference", "same class"], compared),
    ]
    for title, key in (("Classes", "class_names"), ("Features", "feature_names")):
        if meta[key]:
            lines = (f"{number}. {entry}" for number, entry in enumerate(meta[key]))
            pieces.append(f"## {title}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(pieces)
