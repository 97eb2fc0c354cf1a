"""Teacher and Student: the two objects a user trains, with scikit-learn's verbs."""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import math
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.nn import functional as F

from g2m import distributed, frequency, metrics, storage
from g2m.batches import Batch, FullBatch, NodeBatches, PartitionBatches, SampledBatches, check_batch_size, to_device
from g2m.codebook import Codebook
from g2m.errors import FileError, G2MError, check_flag, check_keys, check_range, check_whole, choose
from g2m.graph import Graph
from g2m.mapped import beside, from_array, is_mapped, noisy, not_finite
from g2m.memory import check_memory
from g2m.methods import REGISTRY, Method, label_loss, make_method
from g2m.models import (
    BACKBONES,
    GNN,
    MLP,
    NORMS,
    PRECISIONS,
    Ensemble,
    Output,
    Wrapped,
    backbone_options,
    sum_adjacency,
)
from g2m.outputs import TeacherOutputs
from g2m.positions import neighbour_arcs, of_arcs
from g2m.sparse import features
from g2m.tokenizer import PLACES, Reconstruction, TokenizedGNN, tokenizer_options
from g2m.train import History, check_options, fit, memory_of_the_gpu, on_device, resolve_device, seeded

OnEpoch = Callable[[dict[str, float]], None]
Answer = tuple[Tensor, Tensor]  # logits, and the labels they are scored against
SELECT = ("metric", "loss")
_UNSAID = ("checkpoint_activations", "precision")  # not in a configuration at their default: older ones lack them
_POSITION = ("position.node_id", "position.value")  # names in a student's file
_PREDICT_ROWS = 16384  # rows a forward pass takes at once in prediction: bounds memory, not results


class _Estimator:
    """Constructor arguments as attributes, fitted state with a trailing underscore, a repr that can be pasted back."""

    model_: nn.Module
    history_: History
    meta_: dict[str, Any]

    def params(self) -> dict[str, Any]:
        """Return the constructor's arguments, options included."""
        return {name: getattr(self, name) for name in self._arguments()} | self.options

    @classmethod
    def _arguments(cls) -> list[str]:
        """Names of the constructor's own arguments."""
        return [p.name for p in inspect.signature(cls).parameters.values() if p.kind is not p.VAR_KEYWORD]

    def _changed(self, *names: str) -> list[str]:
        """Return those of the named constructor arguments that are not at their default."""
        signature = inspect.signature(type(self)).parameters
        return [name for name in names if name not in signature or getattr(self, name) != signature[name].default]

    def __repr__(self) -> str:
        (_, first), *rest = self.params().items()
        changed = {*self._changed(*(name for name, _ in rest if name not in self.options)), *self.options}
        shown = [f"{name}={value!r}" for name, value in rest if name in changed]
        return f"{type(self).__name__}({', '.join([repr(first), *shown])})"

    def _check_fitted(self) -> None:
        if not hasattr(self, "model_"):
            name = type(self).__name__
            raise G2MError(f"{name.lower()}: not fitted yet. Call {name}.fit(graph, …) or {name}.load(path) first.")

    def _check_options(self) -> None:
        """Refuse wrong options when they are given, not after a teacher is trained."""
        for held in (vars(self), self.options):
            held |= {name: _plain(value) for name, value in held.items()}
        options = self._fit_options()
        resolve_device(options.pop("device"))
        check_options(**options)
        for name in ("hidden_channels", "num_layers"):
            check_whole(name, getattr(self, name))
        check_range("dropout", self.dropout, 0, 1)
        choose("norm", self.norm, NORMS)

    def _fit_options(self) -> dict[str, Any]:
        names = ("lr", "weight_decay", "max_epochs", "patience", "seed", "device")
        return {name: getattr(self, name) for name in names}

    def _trained(self, model: nn.Module, history: History, observed: Graph, setting: str) -> None:
        """Keep the result of training; it lives on the CPU, inference moves it where it is asked to."""
        self.model_, self.history_ = model.to("cpu"), history
        self.meta_ = {
            "graph": observed.name,
            "fingerprint": observed.fingerprint(),
            "setting": setting,
            "in_channels": observed.num_features,
            "num_classes": observed.num_classes,
            "metric": observed.metric,
            "best_epoch": history.best_epoch,
            "epochs": len(history),
            "val": history.best_score,
            "seconds": round(history.seconds, 3),
            "threads": torch.get_num_threads(),
            "device": resolve_device(self.device).type,
            "versions": versions(),
        }

    def _take(self, other: Any) -> Any:
        """Become what another one was trained to."""
        vars(self).update({name: value for name, value in vars(other).items() if name.endswith("_")})
        return self

    def num_parameters(self) -> int:
        """Return the number of trained parameters."""
        self._check_fitted()
        return sum(p.numel() for p in self.model_.parameters())

    def num_entries(self) -> int:
        """Return how many numbers are held in tables beside the parameters: codes, rows kept of known nodes."""
        self._check_fitted()
        return sum(module.codes.numel() for module in self.model_.modules() if isinstance(module, Codebook))


def _plain(value: Any) -> Any:
    """Return a number as Python's own, also inside a mapping: numpy's, or a fraction, is no JSON."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return float(value) if isinstance(value, Real) and not isinstance(value, int | float) else value


def versions() -> dict[str, str]:
    """Return the versions of g2m, torch and torch_geometric, which what is saved is stamped with."""
    import torch_geometric

    import g2m

    return {"g2m": g2m.__version__, "torch": torch.__version__, "torch_geometric": torch_geometric.__version__}


def _parts(graph: Graph) -> list[str]:
    """The parts a graph is scored on."""
    parts = [part for part in ("val", "test") if part in graph.split]
    if graph.setting == "transductive":
        return parts
    return [*parts, *(["seen"] if len(graph.part("seen")) else []), "unseen", "cold"]


def _answers(graph: Graph, logits: Tensor, alone: Callable[[], Tensor]) -> dict[str, Answer]:
    """Return logits and labels by part; ``alone`` gives the logits of all nodes as if none had an edge."""
    found = {}
    for part in _parts(graph):
        ids = graph.part("unseen" if part == "cold" else part)
        found[part] = (alone() if part == "cold" else logits)[ids], graph.y[ids]
    return found


def scores(answers: Mapping[str, Answer], metric: str) -> dict[str, float]:
    """Return the score of each part's answers."""
    return {part: metrics.score(metric, logits, y) for part, (logits, y) in answers.items()}


def _teacher_loss(output: Output, batch: Batch) -> dict[str, Tensor]:
    if "label" in output.extra:
        raise G2MError("module: 'label' is the loss on labels (got it in output.extra as well). Name that otherwise.")
    return {"label": label_loss(output, batch), **output.extra}


class Teacher(_Estimator):
    """A graph neural network that learns from labels and tells what it knows.

    Args:
        model: ``"sage"`` (default), ``"gcn"``, ``"gat"``, ``"appnp"``, ``"gin"``, or any ``nn.Module`` with PyG's
            signature ``module(x, edge_index) -> logits [N, C]``. A module is trained as it is handed over.
        hidden_channels, num_layers: from 1; defaults 128, 2.
        dropout: in [0, 1], default 0.
        norm: ``"none"`` (default), ``"batch"`` or ``"layer"``.
        lr, weight_decay: of Adam, above 0 and from 0; defaults 0.01, 5e-4.
        max_epochs, patience: from 1; defaults 200, 50; the epoch is chosen on validation.
        select: how: by the graph's ``"metric"`` (default, as in the papers), or by ``"loss"``, the cross-entropy. The
            metric often peaks early, when the teacher is right but not sure of anything; students learn more from
            the surer one.
        members: how many networks are trained, from different seeds; their mean probabilities are the answer. Default
            1; several cost as much more, in training and at every answer, and tell students more.
        tokenizer: ``None`` (default); ``"inside"``: codes stand between the hidden state and the last layer, trained
            together; ``"beside"``: the GNN is trained as without, then codes for its hidden states; ``"reference"``:
            the network of VQGraph's published code. See :class:`~g2m.tokenizer.TokenizedGNN`.
        partitions: train on so many random parts of the graph in turn, drawn anew every epoch, each with the edges
            inside it: memory falls with it. Default 1: the whole graph in one step.
        fan_out: train on batches of nodes with a sample of their neighbourhood: so many neighbours at most, by layer,
            the first layer first. Default ``None``.
        batch_size: nodes of such a batch, from 1; default 1024.
        checkpoint_activations: compute the activations of hidden layers again in backward, and keep only what each
            layer reads: the same teacher in less memory and more time, the more so the more layers. Default False.
        precision: ``"float32"`` (default), or ``"bfloat16"``: the network is computed under :class:`torch.autocast`,
            in training and for answers; weights, loss and what it answers stay float32. Takes less memory; meant for
            GPUs: a processor without instructions for it takes several times as long as in float32.
        seed: of initial weights and dropout, from 0 and below 2³²; default 0.
        device: ``"auto"`` (default), ``"cpu"``, ``"cuda"`` …
        options: of the backbone, see :class:`~g2m.models.GNN`, and of the :class:`~g2m.tokenizer.Tokenizer`.

    Raises:
        G2MError: on an unknown model or option, with the nearest match.
    """

    def __init__(
        self,
        model: str | nn.Module = "sage",
        *,
        hidden_channels: int = 128,
        num_layers: int = 2,
        dropout: float = 0.0,
        norm: str = "none",
        lr: float = 0.01,
        weight_decay: float = 5e-4,
        max_epochs: int = 200,
        patience: int = 50,
        select: str = "metric",
        members: int = 1,
        tokenizer: str | None = None,
        partitions: int = 1,
        fan_out: Sequence[int] | None = None,
        batch_size: int = 1024,
        checkpoint_activations: bool = False,
        precision: str = "float32",
        seed: int = 0,
        device: str = "auto",
        **options: Any,
    ) -> None:
        if isinstance(model, str):
            choose("model", model, BACKBONES)
        elif not isinstance(model, nn.Module):
            raise G2MError(f"model: expected a name or an nn.Module (got {type(model).__name__}).")
        allowed = backbone_options(model) if isinstance(model, str) else []
        if tokenizer is not None:
            allowed += tokenizer_options()
            choose("tokenizer", tokenizer, PLACES)
        elif of_codes := set(options) & set(tokenizer_options()):
            raise G2MError(
                f"{min(of_codes)}: an option of a tokenizer. Name its place: tokenizer={' | '.join(PLACES)}."
            )
        name = model if isinstance(model, str) else type(model).__name__
        check_keys(f"teacher {name!r}", options, [*allowed, *self._arguments()[1:]])
        self.model, self.hidden_channels, self.num_layers, self.dropout = model, hidden_channels, num_layers, dropout
        self.norm, self.lr, self.weight_decay, self.max_epochs = norm, lr, weight_decay, max_epochs
        self.patience, self.select, self.seed, self.device = patience, choose("select", select, SELECT), seed, device
        self.members, self.tokenizer, self.options = check_whole("members", members), tokenizer, options
        self.partitions, self.batch_size = check_whole("partitions", partitions), check_whole("batch_size", batch_size)
        if not isinstance(fan_out, Sequence | None):
            raise G2MError(f"fan_out: expected a number for each layer, such as (10, 5) (got {fan_out!r}).")
        self.fan_out = None if fan_out is None else [check_whole("fan_out", most) for most in fan_out]
        if self.fan_out is None and self._changed("batch_size"):
            raise G2MError(f"batch_size: of steps that fan_out samples (got {batch_size} without). Give both or none.")
        if self.fan_out is not None and (
            partitions > 1 or tokenizer in ("inside", "reference") or not isinstance(model, str)
        ):
            raise G2MError(
                "fan_out: expected a model by name, no tokenizer but 'beside' and no partitions (got other). "
                "Leave it out."
            )
        self.checkpoint_activations = check_flag("checkpoint_activations", checkpoint_activations)
        self.precision = choose("precision", precision, PRECISIONS)
        self._check_options()
        if members > 1 and tokenizer is not None:
            raise G2MError(
                f"members: expected 1 with a tokenizer, codes are of one network (got {members}). Leave out either."
            )
        if isinstance(model, nn.Module) and (
            shape := self._changed("hidden_channels", "num_layers", "dropout", "norm", "members", "tokenizer")
        ):
            raise G2MError(f"{shape[0]}: a module has its own shape (got {name} and {', '.join(shape)}). Leave it out.")
        if isinstance(model, nn.Module) and (unsaid := self._changed(*_UNSAID)):
            raise G2MError(f"{unsaid[0]}: expected a model by name (got a module, {name}). Build it into the module.")

    def _resolve_device(self) -> torch.device:
        """Return the device, or say that it does not compute in the precision asked for."""
        device = resolve_device(self.device)
        if self.precision == "bfloat16":
            with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
                found = device.type == "cpu" or (
                    device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
                )
            if not found:
                raise G2MError(
                    f"precision: expected 'float32' on {str(device)!r}, which has no bfloat16 that g2m knows (got "
                    "'bfloat16'). Take device='cpu' or a newer GPU."
                )
        return device

    def _build(self, in_channels: int, out_channels: int) -> nn.Module:
        if isinstance(self.model, nn.Module):
            return Wrapped(copy.deepcopy(self.model))
        if self.members > 1:
            return Ensemble([self._member(i)._build(in_channels, out_channels) for i in range(self.members)])
        names = ("num_layers", "dropout", "norm", "checkpoint_activations", "precision")
        common = {name: getattr(self, name) for name in names}
        sizes = (self.model, in_channels, self.hidden_channels, out_channels)
        if self.tokenizer is None:
            return GNN(*sizes, **common, **self.options)
        of_codes = {name: value for name, value in self.options.items() if name in tokenizer_options()}
        gnn = common | {name: value for name, value in self.options.items() if name not in of_codes}
        return TokenizedGNN(self.tokenizer, *sizes, gnn=gnn, **of_codes)

    @memory_of_the_gpu()
    def fit(
        self,
        graph: Graph,
        *,
        cache: str | Path | None = None,
        progress: bool = False,
        on_epoch: OnEpoch | None = None,
    ) -> Teacher:
        """Train on the observed part of ``graph``: labels of ``train``, the epoch chosen on ``val``. Returns self.

        Same seed, same bits, on CPU and the same number of threads.

        Args:
            graph: needs the parts ``train`` and ``val``.
            cache: folder of trained teachers. One with this graph's fingerprint, this configuration and seed is read
                from it; otherwise it is trained, with checkpoints there, and kept. Needs ``model`` by name. Default
                ``None``.
            progress: show a bar; default False.
            on_epoch: called with each epoch's record; default ``None``. With a tokenizer beside, its epochs follow,
                counted anew; their ``val`` is minus their loss.
        """
        _check_graph(graph)
        kept = self._cache_file(graph, cache) if cache is not None else None
        if kept is not None and kept.exists():
            self._take(Teacher.load(kept)).meta_ |= {"graph": graph.name, "setting": graph.setting}
            return self
        if kept is not None:
            storage.check_writable("cache", kept)
        if self.tokenizer == "beside":
            return self._fit_beside(graph, kept, cache=cache, progress=progress, on_epoch=on_epoch)
        if self.members > 1:
            return self._fit_members(graph, cache=cache, progress=progress, on_epoch=on_epoch)
        device = self._resolve_device()
        check_memory(self, graph, device)
        observed = graph.observed()
        train, val = observed.part("train"), observed.part("val")
        with seeded(self.seed, device):
            model = self._build(graph.num_features, graph.num_classes)
        batches = self._batches(model, observed, train)
        val_inputs, val_row = model.inputs_for(observed, val)
        val_inputs, y_val = tuple(to_device(value, device) for value in val_inputs), observed.y[val].to(device)
        asked = torch.isin(val_row, val).to(device)  # in the order of val: both ascend

        def val_logits() -> Tensor:
            return model(*val_inputs).logits[asked]

        if isinstance(self.model, nn.Module):  # of one's own
            if not any(parameter.requires_grad for parameter in model.parameters()):
                raise G2MError(
                    "module: expected parameters to train (got none). Take Teacher.from_trained(module, graph)."
                )
            with torch.no_grad(), seeded(self.seed, device):  # which lazy parameters draw from
                _check_answer(model.to(device).eval()(*val_inputs).logits, len(val_row), graph)
        if not math.isfinite(metrics.score(graph.metric, torch.zeros(len(val), graph.num_classes), observed.y[val])):
            raise G2MError("val: the validation score is nan; does 'val' hold a single class?")
        validate = {
            "metric": lambda: metrics.score(graph.metric, val_logits(), y_val),
            "loss": lambda: -float(F.cross_entropy(val_logits(), y_val)),
        }
        history = fit(
            model,
            _teacher_loss,
            batches,
            validate[self.select],
            observe=getattr(model, "observe", None),
            checkpoint=kept.with_suffix(".checkpoint") if kept is not None else None,
            keep_checkpoint=True,
            identity={"config": self._config(), "fingerprint": observed.fingerprint()} if kept is not None else None,
            progress=f"teacher · {graph.name}" if progress else None,
            on_epoch=on_epoch,
            **self._fit_options(),
        )
        with torch.no_grad():
            score = metrics.score(graph.metric, val_logits(), y_val)
        self._trained(model, history, observed, graph.setting)
        self.meta_ |= {"val": score, "figures": model.observe() if hasattr(model, "observe") else {}}
        if kept is not None:
            self.save(kept)
            kept.with_suffix(".checkpoint").unlink(missing_ok=True)
        return self

    def _batches(
        self, model: nn.Module, observed: Graph, train: Tensor
    ) -> FullBatch | PartitionBatches | SampledBatches:
        if self.fan_out is not None:
            if len(self.fan_out) != model.hops:
                raise G2MError(f"fan_out: expected {model.hops} numbers, one a hop (got {list(self.fan_out)}).")
            x, adjacency = model.inputs(observed)
            return SampledBatches(x, adjacency, observed.y, train, fan_out=self.fan_out, batch_size=self.batch_size)
        if self.partitions > 1:
            everything = lambda part: model.inputs_for(part, torch.arange(part.num_nodes))[0]  # noqa: E731
            return PartitionBatches(observed, train, everything, parts=self.partitions)
        inputs, row = model.inputs_for(observed, train)
        return FullBatch(inputs, observed.y, train, row=row)

    def _fit_beside(
        self,
        graph: Graph,
        kept: Path | None,
        *,
        cache: str | Path | None,
        progress: bool,
        on_epoch: OnEpoch | None,
    ) -> Teacher:
        """Train the GNN as it is without a tokenizer, then the tokenizer on its hidden states: those of no labels."""
        params = {name: value for name, value in self.params().items() if name not in tokenizer_options()}
        with seeded(self.seed, resolve_device(self.device)):  # before the GNN is trained: wrong options cost nothing
            model = self._build(graph.num_features, graph.num_classes)
        plain = Teacher(**params | {"tokenizer": None}).fit(graph, cache=cache, progress=progress, on_epoch=on_epoch)
        observed = graph.observed()
        model.gnn.load_state_dict(plain.model_.state_dict())
        task, hidden = Reconstruction(model.tokenizer), plain._forward(observed).hidden
        inputs = (hidden, observed.features, model.tokenizer.linked_pairs(observed))
        batches = FullBatch(inputs, observed.y, observed.part("train"))
        history = fit(
            task,
            lambda output, _: output.extra,
            batches,
            lambda: -float(sum(task(*batches.batch.inputs).extra.values())),
            observe=task.observe,
            checkpoint=kept.with_suffix(".checkpoint") if kept is not None else None,
            keep_checkpoint=True,
            identity={"config": self._config(), "fingerprint": observed.fingerprint()} if kept is not None else None,
            progress=f"codes · {graph.name}" if progress else None,
            on_epoch=on_epoch,
            **self._fit_options(),
        )
        with torch.no_grad():
            task(*batches.batch.inputs)
        seconds = plain.history_.seconds + history.seconds
        self.model_, self.history_ = model.to("cpu"), replace(plain.history_, seconds=seconds)
        self.meta_ = {**plain.meta_, "seconds": round(seconds, 3), "figures": task.observe()}
        if kept is not None:
            self.save(kept)
            kept.with_suffix(".checkpoint").unlink(missing_ok=True)
        return self

    def _member(self, i: int) -> Teacher:
        """Return one of several networks; the first is the one there would be alone."""
        return Teacher(**self.params() | {"members": 1, "seed": (self.seed + 1_000_003 * i) % (1 << 32)})

    def _fit_members(
        self, graph: Graph, *, cache: str | Path | None, progress: bool, on_epoch: OnEpoch | None
    ) -> Teacher:
        """Train the members one after the other; each is kept in the cache by itself."""
        fitted = [
            self._member(i).fit(graph, cache=cache, progress=progress, on_epoch=on_epoch) for i in range(self.members)
        ]
        observed, history = graph.observed(), copy.copy(fitted[0].history_)
        history.seconds = sum(member.history_.seconds for member in fitted)
        self._trained(Ensemble([member.model_ for member in fitted]).eval(), history, observed, graph.setting)
        val = observed.part("val")
        score = metrics.score(graph.metric, self.predict_logits(observed)[val], observed.y[val])
        self.meta_ |= {"val": score, "figures": {}}
        return self

    @classmethod
    def from_trained(cls, module: nn.Module, graph: Graph) -> Teacher:
        """Return a fitted teacher around a module trained elsewhere, with PyG's forward signature.

        Its validation score on ``graph`` is computed; nothing is trained. In the inductive setting it is yours to
        make sure that ``module`` has not seen the unseen nodes.
        """
        _check_graph(graph)
        teacher, observed = cls(module), graph.observed()
        teacher._trained(teacher._build(0, 0).eval(), History(), observed, graph.setting)
        logits, val = teacher.predict_logits(observed), observed.part("val")
        _check_answer(logits, observed.num_nodes, graph)
        teacher.meta_["val"] = metrics.score(graph.metric, logits[val], observed.y[val])
        return teacher

    # -- answers -----------------------------------------------------------------------------------------------

    def _forward(self, graph: Graph) -> Output:
        self._check_fitted()
        _check_graph(graph)
        if graph.num_features != self.meta_["in_channels"]:
            raise G2MError(f"graph: expected {self.meta_['in_channels']} features (got {graph.num_features}).")
        with on_device(self.model_, device := self._resolve_device()):
            output = self.model_(*(to_device(value, device) for value in self.model_.inputs(graph)))
        return Output(output.logits.cpu(), None if output.hidden is None else output.hidden.cpu())

    def predict_logits(self, graph: Graph) -> Tensor:
        """Return logits ``[N, C]`` on the whole of ``graph``."""
        return self._forward(graph).logits

    def predict_proba(self, graph: Graph) -> Tensor:
        """Return class probabilities ``[N, C]`` on the whole of ``graph``."""
        return self.predict_logits(graph).softmax(-1)

    def predict(self, graph: Graph) -> Tensor:
        """Return classes ``[N]`` on the whole of ``graph``."""
        return self.predict_logits(graph).argmax(-1)

    def evaluate(self, graph: Graph) -> dict[str, float]:
        """Return scores by part: ``val`` and ``test``; in the inductive setting also ``seen``, ``unseen`` and ``cold``.

        Observed nodes are scored on the observed graph, unseen ones on the whole; ``cold`` are the unseen ones if
        nothing is known of their edges. Where all of ``test`` is unseen, there is no ``seen``.
        """
        return scores(self.answers(graph), graph.metric)

    def answers(self, graph: Graph) -> dict[str, Answer]:
        """Return logits and labels by part, those that :meth:`evaluate` scores: for a metric of your own."""
        logits = self.predict_logits(graph)
        if graph.setting == "inductive":
            observed = graph.observed()
            logits[torch.isin(graph.node_id, observed.node_id)] = self.predict_logits(observed)
        return _answers(graph, logits, lambda: self.predict_logits(graph.without_edges()))

    def score(self, graph: Graph, part: str = "test") -> float:
        """Return the graph's metric on one part, default ``"test"``."""
        return self.evaluate(graph)[choose("part", part, _parts(graph))]

    def outputs(self, graph: Graph, *, noise_draws: int = 5) -> TeacherOutputs:
        """Return what the teacher says of the nodes training may see: the artifact students are fitted on.

        Args:
            graph: the one the teacher was fitted on.
            noise_draws: how often the teacher is asked again with noisy features, for ``entropy_change``; default 5.
                0: not at all, and methods that look at reliability cannot be fitted on the outputs.

        Raises:
            G2MError: on another graph, split or setting.
        """
        self._check_fitted()
        _check_graph(graph)
        observed = graph.observed()
        if observed.fingerprint() != self.meta_["fingerprint"]:
            raise G2MError(
                f"graph: expected {self.meta_['graph']!r} with the split and setting the teacher was fitted on (got "
                f"{graph.name!r}, {graph.setting}, with another fingerprint): it may have seen nodes that students of "
                "this one may not. Fit a teacher on this graph, split and setting."
            )
        output = self._forward(observed)
        meta = {
            **self.meta_,
            "fingerprint_without_edges": observed.fingerprint(edges=False),
            "setting": graph.setting,
            "teacher": self._config(),
        }
        low_target = sum_adjacency(observed, loops=1.0).multiply(output.logits.softmax(-1))
        more = self.model_.knowledge(output) if hasattr(self.model_, "knowledge") else {}
        if check_whole("noise_draws", noise_draws, 0):
            more["entropy_change"] = self._entropy_change(observed, output.logits, noise_draws)
        return TeacherOutputs(observed.node_id, output.logits, output.hidden, low_target, meta=meta, **more)

    def _entropy_change(self, observed: Graph, logits: Tensor, draws: int) -> Tensor:
        """Return the mean absolute change of each node's entropy ``[M, 1]`` when every feature gets noise of its own
        standard deviation."""
        spread, entropy = observed.x.std(0, unbiased=False), Categorical(logits=logits).entropy()
        generator, total = torch.Generator().manual_seed(self.seed), torch.zeros_like(entropy)
        for _ in range(draws):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "graph .* has no edges")  # said already
                moved = replace(observed, x=noisy(observed.x, spread, generator))
            total += (Categorical(logits=self._forward(moved).logits).entropy() - entropy).abs()
        return (total / draws)[:, None]

    # -- file --------------------------------------------------------------------------------------------------

    def _config(self) -> dict[str, Any]:
        unsaid = {*_UNSAID} - {*self._changed(*_UNSAID)}
        params = {name: value for name, value in self.params().items() if name not in unsaid} | {"device": "auto"}
        return params | ({} if isinstance(self.model, str) else {"model": type(self.model).__name__})

    def _cache_file(self, graph: Graph, cache: str | Path) -> Path:
        if not isinstance(self.model, str):
            raise G2MError("cache: needs a model by name; a module's configuration is not known. Leave cache out.")
        identity = {"config": self._config(), "fingerprint": graph.observed().fingerprint(), "versions": versions()}
        key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
        return Path(cache) / "teachers" / f"{key}.safetensors"

    def save(self, path: str | Path) -> Path:
        """Write weights, configuration and training record to a safetensors file."""
        self._check_fitted()
        meta = {"config": self._config(), "meta": self.meta_, "epochs": self.history_.epochs}
        return storage.write(path, "teacher", self.model_.state_dict(), meta)

    @classmethod
    def load(cls, path: str | Path, module: nn.Module | None = None) -> Teacher:
        """Read a saved teacher.

        Args:
            path: file written by :meth:`save`.
            module: a module of the same structure, where the teacher was a module of the user's own; default ``None``.

        Raises:
            G2MError: if the file is missing, broken, of another kind, or of another module.
        """
        tensors, meta = storage.read(path, "teacher")
        config = meta["config"]
        if module is not None and config["model"] in BACKBONES:
            raise G2MError(f"module: {str(path)!r} holds g2m's {config['model']!r} (got one of yours). Leave it out.")
        if config["model"] not in BACKBONES:
            if module is None:
                raise G2MError(f"module: {str(path)!r} holds a module of yours ({config['model']}); pass one like it.")
            config["model"] = module
        return _restore(cls(**config), tensors, meta, path)


class _Task(NamedTuple):
    """What a student is trained by, before anything is trained."""

    model: MLP
    method: Method
    batches: NodeBatches
    validate: Callable[[], float]
    observe: Callable[[], dict[str, float]]
    position: Tensor | None


class Student(_Estimator):
    """An MLP that learns from a teacher's outputs and needs no graph to predict.

    Args:
        method: a registered name (``"mlp"``, ``"glnn"`` …), or a :class:`~g2m.methods.Method` class or instance;
            default ``"glnn"``.
        hidden_channels, num_layers: from 1; defaults 128, 2.
        dropout: in [0, 1], default 0.
        norm: ``"none"`` (default), ``"batch"`` or ``"layer"``.
        lr, weight_decay: of Adam, above 0 and from 0; defaults 0.01, 5e-4.
        batch_size: nodes a step, from 1; default 512. ``"all"``: all of them.
        edge_batch_size: where the method takes edges, how many a step, from 1, drawn at random. Default ``None``: the
            edges of the step's nodes.
        max_epochs, patience: from 1; defaults 200, 50; the epoch is chosen on validation.
        reference_schedule: separate steps for labels and teacher as the published codes take them, where there is a
            teacher; default False.
        seed: of initial weights, dropout and batch order, from 0 and below 2³²; default 0.
        device: ``"auto"`` (default), ``"cpu"``, ``"cuda"`` …
        options: hyper-parameters of the method.

    Raises:
        G2MError: on an unknown method or option, with the nearest match.
    """

    def __init__(
        self,
        method: str | Method | type[Method] = "glnn",
        *,
        hidden_channels: int = 128,
        num_layers: int = 2,
        dropout: float = 0.0,
        norm: str = "none",
        lr: float = 0.01,
        weight_decay: float = 5e-4,
        batch_size: int | str = 512,
        edge_batch_size: int | None = None,
        max_epochs: int = 200,
        patience: int = 50,
        reference_schedule: bool = False,
        seed: int = 0,
        device: str = "auto",
        **options: Any,
    ) -> None:
        make_method(method, options, self._arguments()[1:])  # refuses a wrong option here, not at fit
        self.method = method.name if isinstance(method, type) else method
        self.hidden_channels, self.num_layers, self.dropout = hidden_channels, num_layers, dropout
        self.norm, self.lr, self.weight_decay = norm, lr, weight_decay
        self.batch_size, self.edge_batch_size = batch_size, edge_batch_size
        self.max_epochs, self.patience, self.reference_schedule = max_epochs, patience, reference_schedule
        self.seed, self.device, self.options = seed, device, options
        self._check_options()
        check_batch_size(batch_size)
        if edge_batch_size is not None:
            check_whole("edge_batch_size", edge_batch_size)
        check_flag("reference_schedule", reference_schedule)

    def _build(self, in_channels: int, out_channels: int) -> MLP:
        sizes = {"num_layers": self.num_layers, "dropout": self.dropout, "norm": self.norm}
        return MLP(in_channels, self.hidden_channels, out_channels, **sizes)

    def fit(
        self,
        graph: Graph,
        outputs: TeacherOutputs | None = None,
        *,
        checkpoint: str | Path | None = None,
        checkpoint_seconds: float = 20.0,
        indicators: bool = False,
        trained: Student | Iterable[Student] = (),
        progress: bool = False,
        on_epoch: OnEpoch | None = None,
    ) -> Student:
        """Train on the observed part of ``graph``; the epoch is chosen on ``val``. Returns self.

        Same seed, same bits, on CPU and the same number of threads.

        Args:
            graph: needs the parts ``train`` and ``val``.
            outputs: of a teacher fitted on the same graph, split and setting; not needed by methods without a
                teacher, ``"mlp"`` and ``"simmlp"``. With a method that takes no edges, the graph may also be
                ``graph.without_edges()``.
            checkpoint: file to save to while training and to resume from; removed at the end. Default ``None``.
            checkpoint_seconds: least time between two saves, from 0; default 20.
            indicators: also record, for every epoch, how much of the teacher's low and high frequencies the student
                has (:func:`g2m.frequency.indicators`), on the observed graph; needs ``outputs`` and edges. Default
                False.
            trained: fitted students. One of the same options, graph, and outputs in what its method reads of them is
                taken over, not trained again, and so is each of those that a search would train. Default none.
            progress: show a bar; default False.
            on_epoch: called with each epoch's record; default ``None``.

        Raises:
            G2MError: if outputs are missing, of another graph, or lack what the method needs.
        """
        _check_graph(graph)
        check_range("checkpoint_seconds", checkpoint_seconds, 0)
        if checkpoint is not None:
            storage.check_writable("checkpoint", Path(checkpoint))
        trained = (trained,) if isinstance(trained, Student) else tuple(trained)
        if not all(isinstance(other, Student) for other in trained):
            raise G2MError("trained: expected fitted students (got others among them).")
        if indicators and outputs is None:
            raise G2MError("indicators: compare a student with its teacher. Pass outputs=teacher.outputs(graph).")
        if indicators and not graph.observed().num_edges:
            raise G2MError("indicators: compare the ends of edges (got a graph without). Pass the whole graph.")
        options = {"checkpoint_seconds": checkpoint_seconds, "indicators": indicators, "on_epoch": on_epoch}
        options |= {"checkpoint": checkpoint, "progress": progress}
        method, search = self._begin(graph, outputs)
        source = _source(method, graph, outputs)
        if any(self._take_over(other, source, indicators) for other in trained):
            return self
        if search is not None:
            self._fit_best(search, graph, outputs, trained=trained, **options)
            self.meta_ |= source  # of all that it has compared
            return self
        return self._fit_method(method, graph, outputs, **options)

    def _begin(
        self, graph: Graph, outputs: TeacherOutputs | None
    ) -> tuple[Method, Generator[Method, float, int] | None]:
        """Check what the student is fitted on; return its method, and what that would search, if it does."""
        _check_graph(graph)
        method = make_method(self.method, self.options)
        _check_outputs(method, graph, outputs)
        outputs = None if outputs is None else outputs.single()
        with seeded(self.seed, resolve_device(self.device)):
            model = self._build(graph.num_features, graph.num_classes)
            search = method.search(model, graph.observed(), outputs)
            if search is None:  # what it would refuse to be built for, before positions cost anything
                copy.deepcopy(method).build(model, outputs)
            return method, search

    def _fit_best(
        self,
        search: Generator[Method, float, int],
        graph: Graph,
        outputs: TeacherOutputs | None,
        *,
        trained: Sequence[Student],
        checkpoint: str | Path | None,
        on_epoch: OnEpoch | None,
        **options: Any,
    ) -> None:
        """Train a student by every method the search asks for, and become the one that it settles on.

        One that cannot be trained does not end the search; ``on_epoch`` may.
        """
        tried: list[Student] = []
        stopped: list[G2MError] = []

        def told(record: dict[str, float]) -> None:
            try:
                on_epoch(record)
            except G2MError as error:
                stopped.append(error)
                raise

        failed: dict[int, G2MError] = {}
        common = {name: getattr(self, name) for name in self._arguments() if name != "method"}
        candidate, settled = next(search), None
        while settled is None:
            kept = None if checkpoint is None else Path(f"{checkpoint}.{len(tried)}")
            tried.append(Student(candidate, **common))
            try:
                tried[-1]._fit_once(graph, outputs, kept, trained, on_epoch=on_epoch and told, **options)
                score = tried[-1].history_.best_score
            except FileError:  # not the method is wrong
                raise
            except G2MError as error:
                if error in stopped:
                    raise
                failed[len(tried) - 1], score = error, -math.inf
            try:
                candidate = search.send(score)
            except StopIteration as end:
                settled = end.value
        if settled in failed:  # as every other did
            raise failed[settled]
        self._take(tried[settled])
        seconds = sum(student.history_.seconds for i, student in enumerate(tried) if i not in failed)
        self.history_ = replace(self.history_, seconds=seconds)
        trials = [
            {
                "method": student.method.name,
                **{name: getattr(student.method, name) for name in student.method.options()},
                **({"val": None, "error": str(failed[i])} if i in failed else {"val": student.history_.best_score}),
            }
            for i, student in enumerate(tried)
        ]
        figures = {**self.meta_["figures"], "taken": settled}
        self.meta_ = {**self.meta_, "seconds": round(seconds, 3), "trials": trials, "figures": figures}
        for number in range(len(tried) if checkpoint is not None else 0):
            for ending in ("", ".checkpoint"):  # the second is of one that failed
                path = Path(f"{checkpoint}.{number}{ending}")
                distributed.from_first(lambda path=path: path.unlink(missing_ok=True))

    def _fit_once(
        self,
        graph: Graph,
        outputs: TeacherOutputs | None,
        kept: Path | None,
        trained: Sequence[Student],
        *,
        indicators: bool,
        **options: Any,
    ) -> None:
        """Fit, or take over a student that was fitted on the same: one of those trained, or that of the file."""
        method, _ = self._begin(graph, outputs)
        source, options = _source(method, graph, outputs), options | {"indicators": indicators}
        if any(self._take_over(other, source, indicators) for other in trained):
            return
        if kept is None:
            self._fit_method(method, graph, outputs, checkpoint=None, **options)
            return
        if distributed.alike(lambda: kept.exists() and self._take_over(Student.load(kept), source, indicators), kept):
            return
        checkpoint = Path(f"{kept}.checkpoint")
        self._fit_method(method, graph, outputs, checkpoint=checkpoint, keep_checkpoint=True, **options)
        distributed.from_first(lambda: [str(self.save(kept)), checkpoint.unlink(missing_ok=True)])

    def _take_over(self, other: Student, source: Mapping[str, Any], indicators: bool) -> bool:
        """Become a copy of another student if it was trained as this one is to be; return whether it was."""
        other._check_fitted()
        lacking = indicators and not set(frequency.Indicators._fields) <= other.history_.epochs[0].keys()
        if lacking or any(other.meta_.get(key) != value for key, value in source.items()):
            return False
        try:
            if other._recipe() != self._recipe():
                return False
        except G2MError:  # options of a method that is otherwise here
            return False
        self._take(copy.deepcopy(other))
        return True

    def _recipe(self) -> dict[str, Any]:
        """Return the configuration with every option of the method, as JSON has it."""
        config = self._config()
        if config["method"] in REGISTRY:
            method = make_method(self.method, self.options)
            config |= {name: getattr(method, name) for name in method.options()}
        return json.loads(json.dumps(config))

    def _fit_method(
        self,
        method: Method,
        graph: Graph,
        outputs: TeacherOutputs | None,
        *,
        checkpoint: str | Path | None,
        checkpoint_seconds: float,
        indicators: bool,
        progress: bool,
        on_epoch: OnEpoch | None,
        keep_checkpoint: bool = False,
    ) -> Student:
        task = self._prepare(method, graph, outputs, indicators=indicators)
        identity = None
        if checkpoint is not None:
            identity = {"config": self._recipe(), "versions": versions(), "fingerprint": graph.observed().fingerprint()}
            identity |= {"indicators": True} if indicators else {}  # of every epoch, or of none
            identity |= {"outputs": outputs.fingerprint()} if outputs is not None else {}
        history = fit(
            task.model,
            task.method,
            task.batches,
            task.validate,
            checkpoint=checkpoint,
            checkpoint_seconds=checkpoint_seconds,
            keep_checkpoint=keep_checkpoint,
            identity=identity,
            observe=task.observe,
            progress=f"{method.name} · {graph.name}" if progress else None,
            on_epoch=on_epoch,
            shared=True,
            **self._fit_options(),
        )
        return self._finish(task, history, graph, outputs)

    @memory_of_the_gpu()
    def _prepare(
        self,
        method: Method,
        graph: Graph,
        outputs: TeacherOutputs | None,
        *,
        indicators: bool = False,
        place: Callable[[Any], Any] | None = None,
    ) -> _Task:
        """Return what training takes, on the device; ``place`` puts features there, default by a copy of their own."""
        observed, device = graph.observed(), resolve_device(self.device)
        outputs = None if outputs is None else outputs.single()
        with seeded(self.seed, device):
            x, position = observed.features, method.positions(observed, outputs)
            if position is not None:
                ids, rows = observed.node_id, observed.num_nodes
                floats = isinstance(position, Tensor) and position.is_floating_point()
                if not floats or position.shape[:-1] != (rows,):  # that is, not of two dimensions either
                    tensor = isinstance(position, Tensor)
                    got = f"{position.dtype}, {tuple(position.shape)}" if tensor else type(position).__name__
                    raise G2MError(f"method {method.name!r}: positions: expected floats [{rows}, P] (got {got}).")
                arcs = neighbour_arcs(observed, ids, own=method.reads_own)
                x = features(beside(observed.x, of_arcs(position, ids, arcs, rows)))
            model = self._build(x.shape[1], graph.num_classes)
            method = copy.deepcopy(make_method(self.method, self.options))  # anew: its own weights follow the seed
            method.build(model, outputs)
            targets, edge_index = method.prepare(observed, outputs), method.edges(observed)
        for key, value in targets.items():
            if not isinstance(value, Tensor) or value.shape[:1] != (observed.num_nodes,):
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                expected = f"expected tensors of {observed.num_nodes} rows, one a node"
                raise G2MError(f"method {method.name!r}: prepare: {expected} (got {got} for {key!r}).")
        train, val = observed.part("train"), observed.part("val")
        batches = NodeBatches(
            x if place is None else place(x),
            observed.y,
            train,
            targets,
            nodes=train if method.nodes == "train" else None,
            batch_size=self.batch_size,
            reference_schedule=self.reference_schedule and bool(method.needs),
            edge_index=edge_index,
            edge_batch_size=self.edge_batch_size,
        ).to(device)
        x_val, y_val = batches.rows(val), batches.y[val]

        def observe() -> dict[str, float]:
            @cache
            def logits() -> Tensor:
                if is_mapped(batches.x):
                    return torch.cat([model(rows.to(device)).logits for rows in batches.x.split(_PREDICT_ROWS)])
                return model(batches.x).logits

            found = dict(method.after_epoch(logits))
            if indicators:
                compared = frequency.indicators(logits().cpu(), outputs.logits, observed.edge_index)
                found |= compared._asdict()
            return found

        def validate() -> float:
            return metrics.score(graph.metric, model(x_val).logits, y_val)

        return _Task(model, method, batches, validate, observe, position)

    def _finish(self, task: _Task, history: History, graph: Graph, outputs: TeacherOutputs | None) -> Student:
        """Become what the task was trained to."""
        observed = graph.observed()
        self._trained(task.model, history, observed, graph.setting)
        self.position_ = None if task.position is None else (observed.node_id, task.position)
        self.meta_["figures"] = dict(task.method.figures)
        if task.position is not None:
            self.meta_["position_channels"] = task.position.size(1)
            self.meta_["reads_own_position"] = task.method.reads_own
            self.meta_["fingerprint_without_edges"] = observed.fingerprint(edges=False)
        self.meta_ |= _source(task.method, graph, outputs)
        return self

    # -- answers -----------------------------------------------------------------------------------------------

    def predict_logits(self, x: Tensor | np.ndarray | Graph, edge_index: Tensor | np.ndarray | None = None) -> Tensor:
        """Return logits ``[N, C]`` for features ``[N, F]``, on the CPU wherever those are: no graph is asked for.

        A student that reads of neighbours (``"nosmog"``, ``"onehop"``, ``"auto"`` with ``neighbours=True``) may be
        asked about a graph that has the nodes it was trained on, by their ids: others read the mean of their
        neighbours' positions. Asked about features, it takes them for new nodes, that nothing is linked to but what
        ``edge_index`` says: arcs ``[2, E]`` from ids of the graph trained on, of nodes that training saw (others do not
        count), to rows of ``x``; one given again counts once, as in a graph.

        Raises:
            G2MError: on features of another shape, or on arcs that the student has no use for or that lead nowhere.
        """
        self._check_fitted()
        arcs = None
        if isinstance(x, Graph):
            if edge_index is not None:
                raise G2MError("edge_index: a graph has its own. Give features beside it, or the graph alone.")
            if self.position_ is not None:
                arcs = self._arcs_of(x)
            x = x.x
        x, position = checked_features(x, self.meta_["in_channels"]), None
        if self.position_ is not None:
            known, position = self.position_
            arcs = checked_arcs(edge_index, len(x)) if arcs is None else arcs
            position = of_arcs(position, known, arcs, len(x))
        elif edge_index is not None:
            raise reads_no_edge(f"a student of method {getattr(self.method, 'name', self.method)!r}")
        chunks, device = x.split(_PREDICT_ROWS), resolve_device(self.device)
        if position is not None:
            pairs = zip(chunks, position.split(_PREDICT_ROWS), strict=True)
            chunks = (torch.cat([part.to(device) for part in pair], 1) for pair in pairs)
        with on_device(self.model_, device):
            return torch.cat([self.model_(rows.to(device)).logits.cpu() for rows in chunks])

    def _arcs_of(self, graph: Graph) -> Tensor:
        """Return the arcs that say whose positions the nodes of ``graph`` read, the one trained on, or raise."""
        if graph.observed().fingerprint(edges=False) != self.meta_["fingerprint_without_edges"]:
            raise G2MError(
                f"graph: positions are known on the graph trained on, {self.meta_['graph']!r} (got {graph.name!r}, or "
                "another split of it). Pass features, with edge_index for the neighbours that are known."
            )
        own = self.meta_.get("reads_own_position", True)  # files from before there was a choice do not say
        return neighbour_arcs(graph, self.position_[0], own=own)

    def predict_proba(
        self, x: Tensor | np.ndarray, edge_index: Tensor | np.ndarray | None = None
    ) -> Tensor | np.ndarray:
        """Return class probabilities ``[N, C]``, see :meth:`predict_logits`; an array for an array, else a tensor."""
        return like(x, self.predict_logits(x, edge_index).softmax(-1))

    def predict(self, x: Tensor | np.ndarray, edge_index: Tensor | np.ndarray | None = None) -> Tensor | np.ndarray:
        """Return classes ``[N]``, see :meth:`predict_logits`; an array for an array, else a tensor."""
        return like(x, self.predict_logits(x, edge_index).argmax(-1))

    def evaluate(self, graph: Graph) -> dict[str, float]:
        """Return scores by part: ``val`` and ``test``; in the inductive setting also ``seen``, ``unseen`` and ``cold``.

        ``cold`` are the unseen nodes if nothing is known of their edges: most students never look at one. Where all of
        ``test`` is unseen, there is no ``seen``.
        """
        return scores(self.answers(graph), graph.metric)

    def answers(self, graph: Graph) -> dict[str, Answer]:
        """Return logits and labels by part, those that :meth:`evaluate` scores: for a metric of your own."""
        self._check_fitted()
        _check_graph(graph)
        return _answers(graph, self.predict_logits(graph), lambda: self.predict_logits(graph.x))

    def score(self, graph: Graph, part: str = "test") -> float:
        """Return the graph's metric on one part, default ``"test"``."""
        return self.evaluate(graph)[choose("part", part, _parts(graph))]

    # -- file --------------------------------------------------------------------------------------------------

    def _config(self) -> dict[str, Any]:
        if isinstance(self.method, str):  # of a file, perhaps, from where it is known
            return self.params() | {"device": "auto"}
        method = make_method(self.method, self.options)
        own = {name: _plain(getattr(method, name)) for name in method.options()} if method is self.method else {}
        for name, value in own.items():
            try:
                json.dumps(value)
            except TypeError as error:
                raise G2MError(
                    f"method {method.name!r}: to be saved or resumed, {name} has to be a number, text, or lists and "
                    f"tables of those (got {type(value).__name__}: {error})."
                ) from None
        return self.params() | own | {"device": "auto", "method": method.name}

    def save(self, path: str | Path) -> Path:
        """Write weights, configuration and training record to a safetensors file. The method's own parts stay out."""
        self._check_fitted()
        meta = {"config": self._config(), "meta": self.meta_, "epochs": self.history_.epochs}
        tensors = self.model_.state_dict()
        if self.position_ is not None:
            tensors |= dict(zip(_POSITION, self.position_, strict=True))
        return storage.write(path, "student", tensors, meta)

    def num_entries(self) -> int:
        return super().num_entries() + (0 if self.position_ is None else self.position_[1].numel())

    def export(
        self,
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
        """Write the student as one file that runs without g2m, ``.onnx`` or ``.pt2``, and a model card beside it.

        Arguments and errors are those of :func:`g2m.export.export`. :class:`~g2m.Exported` opens the file.
        """
        from g2m.export import export

        options = {"precision": precision, "neighbours": neighbours, "calibration": calibration, "graph": graph}
        names = {"class_names": class_names, "feature_names": feature_names}
        return export(self, path, scores=scores, **options, **names)

    @classmethod
    def load(cls, path: str | Path) -> Student:
        """Read a saved student. Its method need not be known here: predicting and saving do not take it.

        Raises:
            G2MError: if the file is missing, broken or of another kind.
        """
        tensors, meta = storage.read(path, "student")
        config = dict(meta["config"])
        own = {name: config.pop(name) for name in list(config) if name not in cls._arguments()}
        student = cls("mlp", **{name: value for name, value in config.items() if name != "method"})
        student.method, student.options = config["method"], own
        found = [tensors.pop(name) for name in _POSITION if name in tensors]
        student.position_ = tuple(found) or None
        return _restore(student, tensors, meta, path)


def checked_features(x: Any, width: int, *, argument: str = "x", first: int = 0) -> Tensor:
    """Return features as float32 ``[N, F]``, or say what is wrong; ``first``: what their first row counts as."""
    try:
        x = x if isinstance(x, Tensor) else from_array(x)  # of a table as well
        if x.is_complex():
            raise TypeError("complex numbers")
        x = x.detach().to_dense().to(torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"{type(x).__name__}: {str(error).strip()}"
        raise G2MError(f"{argument}: expected features of shape [N, {width}] (got {got}).") from None
    if x.dim() != 2 or x.size(1) != width:
        raise G2MError(f"{argument}: expected features of shape [N, {width}] (got {tuple(x.shape)}).")
    if not x.sum().isfinite() and (row := not_finite(x)[1]) is not None:  # the sum alone rarely overflows: one pass
        raise G2MError(f"{argument}: expected finite features (got NaN or infinity, the first in row {first + row}).")
    return x


def checked_arcs(edge_index: Any, num_rows: int) -> Tensor:
    """Return arcs ``[2, E]`` from ids to rows of features, by row and each once, on the CPU, or say what is wrong."""
    if edge_index is None:
        return torch.empty(2, 0, dtype=torch.long)
    expected = "edge_index: expected arcs of int64, shape [2, E], from known nodes to rows of x"
    try:
        arcs = torch.as_tensor(edge_index).cpu()
    except (TypeError, ValueError, RuntimeError) as error:
        raise G2MError(f"{expected} (got {type(edge_index).__name__}: {str(error).strip()}).") from None
    whole = arcs.dtype in (torch.int64, torch.int32) or not arcs.numel()  # an empty list has no type
    if not whole or arcs.dim() != 2 or len(arcs) != 2:
        raise G2MError(f"{expected} (got {arcs.dtype}, shape {tuple(arcs.shape)}).")
    arcs = arcs.long()
    outside = arcs[1, (arcs[1] < 0) | (arcs[1] >= num_rows)]
    if len(outside):
        raise G2MError(f"edge_index: expected arcs to rows 0 to {num_rows - 1} of x (got one to row {outside[0]}).")
    (source, row), (before, row_before) = arcs[:, 1:], arcs[:, :-1]
    if ((row > row_before) | ((row == row_before) & (source > before))).all():  # as they are wanted
        return arcs
    ids, place = arcs[0].unique(return_inverse=True)  # ids may be of any size: their places make pairs that fit
    pairs = (arcs[1] * len(ids) + place).unique()
    return torch.stack([ids[pairs % len(ids)], pairs // len(ids)])


def reads_no_edge(what: str) -> G2MError:
    """Return the error of arcs given to what has no use for them."""
    return G2MError(f"edge_index: {what} reads features alone. Leave it out.")


def like(given: Any, result: Tensor) -> Any:
    """Return an array if an array was given, else the tensor."""
    return result.numpy() if isinstance(given, np.ndarray) else result


def _check_graph(graph: Graph) -> None:
    if not isinstance(graph, Graph):
        raise G2MError(
            f"graph: expected a g2m.Graph, teachers and students classify nodes (got {type(graph).__name__}). "
            "Build one with Graph.from_pyg or Graph.from_networkx, or load a card of node classification."
        )


def _check_outputs(method: Method, graph: Graph, outputs: TeacherOutputs | None) -> None:
    if not isinstance(outputs, TeacherOutputs | None):
        raise G2MError(f"outputs: expected TeacherOutputs (got {type(outputs).__name__}). Pass teacher.outputs(graph).")
    if outputs is not None:  # of a method without a teacher too: indicators compare with them
        outputs.check(graph, edges=method.takes_edges)
    elif method.needs:
        raise G2MError(f"outputs: method {method.name!r} learns from a teacher. Pass outputs=teacher.outputs(graph).")
    missing = sorted(name for name in method.needs if getattr(outputs, name, None) is None)
    if missing == ["entropy_change"]:  # any teacher's, but for passes that were left out
        raise G2MError(
            f"outputs: method {method.name!r} needs entropy_change, which noise_draws=0 leaves out. Take "
            "teacher.outputs(graph) with noise_draws from 1."
        )
    if missing:
        options = "".join(f", {name}={value!r}" for name, value in method.teacher_options.items())
        raise G2MError(
            f"outputs: method {method.name!r} needs {', '.join(missing)}, which this teacher does not emit. "
            f"Take teacher.outputs(graph) of g2m.Teacher('gcn'{options})."
        )


def _source(method: Method, graph: Graph, outputs: TeacherOutputs | None) -> dict[str, Any]:
    """Return what a student is fitted on and by, as its ``meta_`` has it."""
    reads = method.needs | method.wants
    return {
        "fingerprint": graph.observed().fingerprint(),
        "setting": graph.setting,
        "teacher": outputs.meta.get("teacher") if method.needs else None,
        "outputs": outputs.fingerprint(reads) if reads and outputs is not None else None,
        "versions": versions(),
    }


def _check_answer(logits: Tensor, rows: int, graph: Graph) -> None:
    if logits.shape != (expected := (rows, graph.num_classes)):
        raise G2MError(f"module: expected logits of shape {expected} on {graph.name!r} (got {tuple(logits.shape)}).")
    if not logits.isfinite().all():
        raise G2MError(f"module: expected finite logits on {graph.name!r} (got NaN or infinity).")


def _restore(estimator: Any, tensors: dict[str, Tensor], meta: dict[str, Any], path: str | Path) -> Any:
    saved = meta["meta"]
    width = saved["in_channels"]
    if "position_channels" in saved:
        width += saved["position_channels"]
    with seeded(0, torch.device("cpu")):  # weights that are drawn, and replaced at once
        model = estimator._build(width, saved["num_classes"])
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise G2MError(f"path: the weights in {str(path)!r} do not fit its configuration ({error}).") from None
    epochs = meta["epochs"]
    best_score = epochs[saved["best_epoch"]]["val"] if epochs else saved["val"]
    history = History(epochs, saved["best_epoch"], best_score, saved["seconds"])
    estimator.model_, estimator.history_, estimator.meta_ = model.eval(), history, saved
    return estimator
