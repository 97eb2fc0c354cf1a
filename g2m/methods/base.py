"""What a distillation method is. One subclass, one file."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from g2m.batches import Batch
from g2m.errors import G2MError, check_keys, choose
from g2m.graph import Graph
from g2m.metrics import standard_error
from g2m.models import MLP, Output
from g2m.outputs import TeacherOutputs

if TYPE_CHECKING:
    import optuna

REGISTRY: dict[str, type[Method]] = {}


class Method(nn.Module):
    """What the student learns from, and how. Subclasses register themselves under ``name``.

    A subclass sets the attributes below, takes its hyper-parameters as keyword arguments, and defines :meth:`loss`;
    :meth:`prepare` if it needs the teacher, :meth:`build` if it owns parameters. Hyper-parameters are kept as
    attributes of the same name. Parameters it owns are trained beside the student's and not exported.

    Attributes:
        name: what users call it.
        paper: authors or system, venue and year; ``"g2m"`` for our own, empty for baselines.
        needs: fields of :class:`~g2m.outputs.TeacherOutputs` it reads; empty if it has no teacher.
        wants: fields it also makes use of where they are there.
        teacher_options: options that a teacher of it has unless told otherwise, so that it emits what the method needs.
        nodes: the nodes a step draws from: ``"observed"`` (default) or ``"train"``.
        takes_edges: whether it looks at the graph's edges, in :meth:`prepare` or :meth:`edges`; default False.
        reads_own: whether a node that training has seen reads its own row of :meth:`positions` (default), or the mean
            of its neighbours', as the others do.
        figures: numbers worth knowing of a run, set in :meth:`prepare`; the student keeps them in ``meta_``.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    wants: ClassVar[frozenset[str]] = frozenset()
    teacher_options: ClassVar[Mapping[str, Any]] = {}
    nodes: ClassVar[str] = "observed"
    takes_edges: bool = False
    reads_own: ClassVar[bool] = True
    figures: Mapping[str, float] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not isinstance(getattr(cls, "name", None), str):
            raise G2MError(
                f'name: expected one of the method {cls.__qualname__} (got none). Set name = "…" in the class.'
            )
        knowledge = {each.name for each in fields(TeacherOutputs)} - {"node_id", "meta"}
        check_keys(f"method {cls.name!r}: needs, wants", {*cls.needs, *cls.wants}, knowledge)
        taken = REGISTRY.setdefault(cls.name, cls)
        if (taken.__module__, taken.__qualname__) != (cls.__module__, cls.__qualname__):
            raise G2MError(f"name: {cls.name!r} is the method {taken.__module__}.{taken.__qualname__}. Choose another.")
        REGISTRY[cls.name] = cls  # the same class again: its file was reloaded

    def prepare(self, graph: Graph, outputs: TeacherOutputs | None) -> Mapping[str, Tensor]:
        """Return the per-node tensors ``[N, …]`` that :meth:`loss` finds, cut to the batch, in ``batch.targets``.

        Called once, before training, with the observed graph; row i of everything is node i of it.
        """
        return {}

    def build(self, model: MLP, outputs: TeacherOutputs | None) -> None:
        """Make the parameters of the method's own whose shapes depend on the student or on the teacher's outputs.

        Called before :meth:`prepare`, under the student's seed; and, of a copy, before anything else is done, so that
        what cannot be built is refused at once.
        """

    def positions(self, graph: Graph, outputs: TeacherOutputs | None) -> Tensor | None:
        """Return columns ``[N, P]`` that the student reads beside the features of the observed graph; default none.

        Called first, under the student's seed. A node that training has not seen gets the mean of its neighbours'
        columns, or zeros: a student with positions is not free of the graph. Another object of the method goes on to
        :meth:`build` and :meth:`prepare`: what is kept on ``self`` here is not there.
        """
        return None

    def search(self, model: MLP, graph: Graph, outputs: TeacherOutputs | None) -> Generator[Method, float, int] | None:
        """Yield methods to train by, in the place of this one; return the number of the one that the student becomes.

        Each is answered with the student's score on ``val``, −∞ if it could not be trained; they are counted from 0.
        Default ``None``: there is nothing to search. ``model`` is a student as it would be trained, to look at, and
        ``graph`` the observed one.
        """
        return None

    def after_epoch(self, logits: Callable[[], Tensor]) -> Mapping[str, float]:
        """Look at the student after an epoch and return what is to join the epoch's record; default nothing.

        Args:
            logits: gives the student's logits ``[N, C]`` on the observed graph, in evaluation mode.

        What changes here and decides the loss has to be a buffer: checkpoints keep buffers.
        """
        return {}

    def edges(self, graph: Graph) -> Tensor | None:
        """Return the edges ``[2, E]`` of the observed graph that batches are to carry; default none.

        With edges, the first ``batch.batch_size`` rows of a batch were drawn, and the rest are other ends of its edges.
        """
        return None

    def loss(self, output: Output, batch: Batch) -> Mapping[str, Tensor]:
        """Return the weighted parts of the loss, scalars by name; the one on labels is called ``label``, and none
        ``loss``, ``epoch`` or ``val``, which an epoch's record has already.

        In a step on one half alone (``batch.only``) the loop takes ``label``, or all others: those read no label then.
        """
        raise NotImplementedError

    def forward(self, output: Output, batch: Batch) -> Mapping[str, Tensor]:
        """Return :meth:`loss`."""
        return self.loss(output, batch)

    @classmethod
    def space(cls, trial: optuna.Trial) -> dict[str, Any]:
        """Return hyper-parameters drawn from ``trial``: the ranges a sweep searches by default."""
        return {}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in self.options())

    @classmethod
    def options(cls) -> dict[str, Any]:
        """Return the names of the hyper-parameters with their defaults."""
        return {p.name: p.default for p in inspect.signature(cls).parameters.values() if p.kind is p.KEYWORD_ONLY}


def label_loss(output: Output, batch: Batch) -> Tensor:
    """Cross-entropy on the batch's training nodes, scaled to estimate its mean over all of them without bias."""
    mask = batch.labelled
    return F.cross_entropy(output.logits[mask], batch.y[mask], reduction="sum") * batch.label_scale


def hidden_width(model: MLP, method: str) -> int:
    """Return the width of a student's hidden state.

    Raises:
        G2MError: if it has none.
    """
    if len(model.layers) < 2:
        raise G2MError(f"num_layers: method {method!r} reads a hidden state, expected at least 2 (got 1).")
    return model.layers[-1].in_features


def first_unless_beaten(scores: Sequence[float], graph: Graph) -> int:
    """Return which of several students to take by their scores on ``val``: the first, unless another beats it clearly.

    That is by a standard error of the first one's score: of many students on few validation nodes the best is mostly
    lucky. One whose score is −∞ could not be trained: the first is the first that could.
    """
    best, observed = max(range(len(scores)), key=scores.__getitem__), graph.observed()
    first = next(i for i, score in enumerate(scores) if score > -math.inf or i == best)
    if best == first:
        return first
    error = standard_error(graph.metric, scores[first], observed.y[observed.part("val")])
    return best if scores[best] > scores[first] + error else first


def make_method(method: str | Method | type[Method], options: Mapping[str, Any], others: Iterable[str] = ()) -> Method:
    """Return a method from its name, class or instance.

    ``others`` are names the caller takes itself: a misspelt option may have meant one of them.

    Raises:
        G2MError: on an unknown name or option, with the nearest match.
    """
    if isinstance(method, Method):
        if options:
            raise G2MError(f"method: expected no options beside an instance (got {', '.join(options)}).")
        return method
    cls = REGISTRY[choose("method", method, REGISTRY)] if isinstance(method, str) else method
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise G2MError(f"method: expected a name, a Method or a subclass of it (got {type(method).__name__}).")
    check_keys(f"method {cls.name!r}", options, [*cls.options(), *others])
    return cls(**options)
