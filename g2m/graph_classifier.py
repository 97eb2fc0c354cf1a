"""GraphClassifier: a graph neural network that classifies graphs, trained on all of them or on a condensed set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from g2m import metrics, storage
from g2m.batches import Batch, GraphBatches, check_batch_size
from g2m.condense.condensed import CondensedSet
from g2m.condense.program import Program
from g2m.errors import G2MError, check_flag, check_keys, check_whole, choose
from g2m.estimators import Answer, OnEpoch, _Estimator, _restore, scores
from g2m.graph_gnn import GRAPH_BACKBONES, POOLINGS, GraphGNN, divides_by_degrees, shape_of
from g2m.graphs import Graphs
from g2m.models import Output, backbone_options
from g2m.train import fit, on_device, resolve_device, seeded

_PRECISIONS = {"float32": torch.float32, "float64": torch.float64}
_PREDICT_GRAPHS = 4096  # graphs a forward pass takes at once in prediction: bounds memory, not results


def _class_loss(output: Output, batch: Batch) -> dict[str, Tensor]:
    loss = F.cross_entropy(output.logits, batch.y, reduction="none")
    return {"label": (batch.targets["weight"] * loss).sum() * batch.label_scale}


def _task_loss(output: Output, batch: Batch) -> dict[str, Tensor]:
    loss = F.binary_cross_entropy_with_logits(output.logits, batch.y.nan_to_num(), reduction="none")
    return {"label": (batch.targets["weight"] * loss).sum() * batch.label_scale}


class GraphClassifier(_Estimator):
    """A graph neural network that classifies graphs.

    Args:
        backbone: ``"gin"`` (default), ``"gcn"``, ``"gat"`` or ``"sage"``; see :class:`~g2m.graph_gnn.GraphGNN`.
        hidden_channels, num_layers: from 1; defaults 64, 3.
        pooling: ``"sum"`` (default), ``"mean"`` or ``"max"``.
        dropout: on pooled vectors, in [0, 1], default 0.
        norm: ``"none"`` (default), ``"batch"`` or ``"layer"``.
        lr, weight_decay: of Adam, above 0 and from 0; defaults 0.001, 0.
        batch_size: graphs a step, from 1; default 128. ``"all"``: all of them.
        draws: graphs, or records of a condensed set, an epoch, from 1, drawn in proportion to their weight; default
            ``None``: each once, and the weight is in the loss.
        max_epochs, patience: from 1; defaults 100, 50; the epoch is chosen on validation.
        share: compute nodes that no network of so many layers can tell apart once (default): the same logits, losses
            and gradients, up to rounding, for less. ``False``: node by node.
        precision: of the numbers: ``"float32"`` (default) or ``"float64"``. In the latter, training with and without
            ``share`` agrees to the last digits; in the former, rounding tells such runs apart as seeds do.
        seed: of initial weights, dropout and batch order, from 0 and below 2³²; default 0.
        device: ``"auto"`` (default), ``"cpu"``, ``"cuda"`` …
        options: of the backbone: ``heads``, ``attention_dropout`` (gat; with ``share=False``), ``reference`` (sage).

    Raises:
        G2MError: on an unknown backbone or option, with the nearest match.
    """

    def __init__(
        self,
        backbone: str = "gin",
        *,
        hidden_channels: int = 64,
        num_layers: int = 3,
        pooling: str = "sum",
        dropout: float = 0.0,
        norm: str = "none",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        batch_size: int | str = 128,
        draws: int | None = None,
        max_epochs: int = 100,
        patience: int = 50,
        share: bool = True,
        precision: str = "float32",
        seed: int = 0,
        device: str = "auto",
        **options: Any,
    ) -> None:
        self.backbone = choose("backbone", backbone, GRAPH_BACKBONES)
        allowed = [*backbone_options(backbone), *self._arguments()[1:]]
        check_keys(f"backbone {backbone!r}", options, allowed)
        self.hidden_channels, self.num_layers, self.dropout, self.norm = hidden_channels, num_layers, dropout, norm
        self.pooling = choose("pooling", pooling, POOLINGS)
        self.lr, self.weight_decay, self.batch_size = lr, weight_decay, check_batch_size(batch_size)
        self.draws = None if draws is None else check_whole("draws", draws)
        self.max_epochs, self.patience, self.share = max_epochs, patience, check_flag("share", share)
        self.precision = choose("precision", precision, _PRECISIONS)
        self.seed, self.device, self.options = seed, device, options
        self._check_options()
        with torch.device("meta"):  # a wrong option is refused here, not at fit
            self._build({"node_columns": 1, "edge_columns": None}, 2)
        if share:
            self._refuse_dropped_arcs("Take share=False.")

    def _build(self, in_channels: dict[str, Any], out_channels: int) -> GraphGNN:
        shape = {name: getattr(self, name) for name in ("num_layers", "pooling", "dropout", "norm")}
        sizes = (in_channels["node_columns"], in_channels["edge_columns"], self.hidden_channels, out_channels)
        return GraphGNN(self.backbone, *sizes, **shape, **self.options).to(_PRECISIONS[self.precision])

    def _refuse_dropped_arcs(self, way: str) -> None:
        if dropped := self.options.get("attention_dropout"):
            raise G2MError(
                f"attention_dropout: expected 0 where equal trees are computed once, an arc would be dropped in all of "
                f"them together (got {dropped}). {way}"
            )

    @property
    def _degrees(self) -> bool:
        return divides_by_degrees(self.backbone)

    def program(self, graphs: Graphs) -> Program:
        """Return what this network computes for graphs, for use in one's own loop; see ``share``."""
        program = Program.of_graphs(graphs, self.num_layers, share=self.share, degrees=self._degrees)
        return program.to(dtype=_PRECISIONS[self.precision])

    def fit(
        self,
        graphs: Graphs,
        condensed: CondensedSet | None = None,
        *,
        checkpoint: str | Path | None = None,
        progress: bool = False,
        on_epoch: OnEpoch | None = None,
    ) -> GraphClassifier:
        """Train on the training graphs, or on what stands for them; the epoch is chosen on ``val``. Returns self.

        Same seed, same bits, on CPU and the same number of threads.

        Args:
            graphs: needs the parts ``train`` and ``val``.
            condensed: a set made from the training graphs of ``graphs``, to train on in their place; default ``None``.
            checkpoint: file to save to while training and to resume from; removed at the end. Default ``None``.
            progress: show a bar; default False.
            on_epoch: called with each epoch's record; default ``None``.

        Raises:
            G2MError: if the condensed set is of other graphs, or its trees have too few hops for the network.
        """
        _check_graphs(graphs)
        val = graphs.subset(graphs.part("val"))
        if condensed is None:
            train = graphs.subset(graphs.part("train"))
            program, y, weight = self.program(train), train.y, None
            if y.dim() == 2:
                weight = torch.ones_like(y)
        else:
            if not isinstance(condensed, CondensedSet):
                raise G2MError(
                    f"condensed: expected a CondensedSet (got {type(condensed).__name__}). CondensedSet.load(path) "
                    "reads a saved one."
                )
            condensed.check(graphs)
            self._refuse_dropped_arcs("A condensed set always is; leave it out.")
            program = condensed.program(self.num_layers, degrees=self._degrees).to(dtype=_PRECISIONS[self.precision])
            y, weight = condensed.y, condensed.weight
        device = resolve_device(self.device)
        shape = {**shape_of(program), "x": graphs.x is not None}
        dtype, tasks = _PRECISIONS[self.precision], graphs.y.dim() == 2
        y, weight = (y.to(dtype) if y.is_floating_point() else y), None if weight is None else weight.to(dtype)
        with seeded(self.seed, device):
            model = self._build(shape, graphs.num_tasks if tasks else graphs.num_classes)
        batches = GraphBatches(program, y, weight, batch_size=self.batch_size, draws=self.draws)
        val_program, y_val = self.program(val).to(device), val.y.to(device)
        history = fit(
            model,
            _task_loss if tasks else _class_loss,
            batches,
            lambda: metrics.score(graphs.metric, model(val_program).logits, y_val),
            checkpoint=checkpoint,
            identity={
                "config": self._config(),
                "fingerprint": graphs.fingerprint(),
                "condensed": None if condensed is None else condensed.fingerprint(),
            },
            progress=f"{self.backbone} · {graphs.name}" if progress else None,
            on_epoch=on_epoch,
            **self._fit_options(),
        )
        self._trained(model, history, graphs, "graphs")
        self.meta_ |= {"in_channels": shape, "num_classes": model.head.out_features, "tasks": tasks}
        self.meta_["condensed"] = None if condensed is None else condensed.meta
        return self

    # -- answers -----------------------------------------------------------------------------------------------

    def predict_logits(self, graphs: Graphs) -> Tensor:
        """Return logits ``[G, C]``, or ``[G, T]`` of several tasks."""
        self._check_fitted()
        _check_graphs(graphs)
        shape, device = self.meta_["in_channels"], resolve_device(self.device)
        _check_columns("x", graphs.x, shape["node_columns"] if shape["x"] else None)
        if shape["edge_columns"] is not None and graphs.num_edges:
            _check_columns("edge_attr", graphs.edge_attr, shape["edge_columns"])
        with on_device(self.model_, device):
            programs = (self.program(graphs.subset(ids)) for ids in torch.arange(len(graphs)).split(_PREDICT_GRAPHS))
            return torch.cat([self.model_(program.to(device)).logits.cpu() for program in programs])

    def predict_proba(self, graphs: Graphs) -> Tensor:
        """Return probabilities: of classes ``[G, C]``, or of every task's class 1 ``[G, T]``."""
        logits = self.predict_logits(graphs)
        return logits.sigmoid() if self.meta_["tasks"] else logits.softmax(-1)

    def predict(self, graphs: Graphs) -> Tensor:
        """Return classes ``[G]``, or of every task ``[G, T]``."""
        logits = self.predict_logits(graphs)
        return (logits > 0).long() if self.meta_["tasks"] else logits.argmax(-1)

    def evaluate(self, graphs: Graphs, metric: str | None = None) -> dict[str, float]:
        """Return scores by part, ``val`` and ``test``, by the graphs' metric or another."""
        return scores(self.answers(graphs), metric or graphs.metric)

    def answers(self, graphs: Graphs) -> dict[str, Answer]:
        """Return logits and labels by part, those that :meth:`evaluate` scores: for a metric of your own."""
        self._check_fitted()
        _check_graphs(graphs)
        some = {part: graphs.subset(graphs.part(part)) for part in ("val", "test") if part in graphs.split}
        return {part: (self.predict_logits(graphs), graphs.y) for part, graphs in some.items()}

    def score(self, graphs: Graphs, part: str = "test") -> float:
        """Return the graphs' metric on one part, default ``"test"``."""
        _check_graphs(graphs)
        graphs.part(choose("part", part, ("val", "test")))  # refused if it is not there
        return self.evaluate(graphs)[part]

    # -- file --------------------------------------------------------------------------------------------------

    def _config(self) -> dict[str, Any]:
        return self.params() | {"device": "auto"}

    def save(self, path: str | Path) -> Path:
        """Write weights, configuration and training record to a safetensors file."""
        self._check_fitted()
        meta = {"config": self._config(), "meta": self.meta_, "epochs": self.history_.epochs}
        return storage.write(path, "graph classifier", self.model_.state_dict(), meta)

    @classmethod
    def load(cls, path: str | Path) -> GraphClassifier:
        """Read a saved classifier.

        Raises:
            G2MError: if the file is missing, broken or of another kind.
        """
        tensors, meta = storage.read(path, "graph classifier")
        return _restore(cls(**meta["config"]), tensors, meta, path)


def _check_graphs(graphs: Graphs) -> None:
    if not isinstance(graphs, Graphs):
        raise G2MError(
            f"graphs: expected g2m.Graphs (got {type(graphs).__name__}). Build them with Graphs.from_pyg, "
            "or load a card of graph classification."
        )


def _check_columns(name: str, found: Tensor | None, wanted: int | list[int] | None) -> None:
    def said(columns: int | list[int] | None) -> str:
        if columns is None:
            return "none"
        return f"{columns} columns of numbers" if isinstance(columns, int) else f"{len(columns)} columns of categories"

    got = None if found is None else found.size(1) if found.is_floating_point() else [0] * found.size(1)
    if said(got) != said(wanted):
        raise G2MError(
            f"graphs: expected {said(wanted)} in {name}, as in training (got {said(got)}). "
            "Take the attributes the classifier was trained on."
        )
