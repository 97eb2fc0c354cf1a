"""Every registered method meets the contract, and every clause of it can fail."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from cases import CONTRACT
from torch import nn

from g2m.errors import G2MError
from g2m.methods import REGISTRY, Method, label_loss

pytestmark = pytest.mark.filterwarnings("ignore:graph .* has no edges")


@pytest.mark.parametrize("clause", CONTRACT, ids=lambda clause: clause.__name__)
@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_contract(name: str, clause: Callable[[str, Path], None], tmp_path: Path) -> None:
    clause(name, tmp_path)


# -- methods made here: one right, the others each wrong in one way -------------------------------------------------


@pytest.fixture
def define() -> Iterator[Callable[..., str]]:
    """Register a method that meets the contract but for the attributes given; gone after the test."""
    before = dict(REGISTRY)

    def prepare(self, graph, outputs):
        return {"p": outputs.log_soft_labels()}

    def loss(self, output, batch):
        return {"label": label_loss(output, batch), "soft": soft(output, batch)}

    def define(**body) -> str:
        right = {"name": "made_here", "needs": frozenset({"logits"}), "prepare": prepare, "loss": loss}
        type("MadeHere", (Method,), right | body)
        return "made_here"

    yield define
    REGISTRY.clear()
    REGISTRY.update(before)


def soft(output, batch):
    return (output.logits.log_softmax(-1) - batch.targets["p"]).square().mean()


def parts(**parts) -> dict:
    return {"loss": lambda self, output, batch: {key: part(output, batch) for key, part in parts.items()}}


def prepare(p) -> dict:
    return {"prepare": lambda self, graph, outputs: {"p": p(graph, outputs)}}


def lenient(self, *, lam: float = 0.5) -> None:
    nn.Module.__init__(self)


def no_such_option(cls, trial) -> dict:
    return {"no_such": trial.suggest_int("no_such", 0, 1)}


def answers_more(model) -> None:
    model.register_forward_hook(lambda _, inputs, output: output._replace(logits=output.logits + 1))


Failed = pytest.fail.Exception
WRONG = {
    "trains_transductively": (AssertionError, parts(label=lambda o, b: 1 + 0 * o.logits.sum())),
    "trains_inductively": (IndexError, prepare(lambda g, o: o.log_soft_labels()[o.node_id])),
    "gives_finite_scalars_that_reach_the_student": (RuntimeError, parts(label=label_loss, soft=lambda o, b: b.y.sum())),
    "calls_the_part_on_labels_label": (AssertionError, parts(labels=label_loss, soft=soft)),
    "estimates_the_label_loss_without_bias": (AssertionError, parts(label=lambda o, b: label_loss(o, b) * len(b.row))),
    "is_reproducible": (AssertionError, parts(label=label_loss, soft=lambda o, b: random.random() * soft(o, b))),
    "ignores_node_order": (AssertionError, parts(label=label_loss, soft=lambda o, b: o.logits[b.row == 0].sum())),
    "survives_one_row": (AssertionError, parts(label=label_loss, soft=lambda o, b: o.logits.var(0).sum())),
    "survives_no_labelled_node": (
        AssertionError,
        parts(label=lambda o, b: nn.functional.cross_entropy(o.logits[b.labelled], b.y[b.labelled])),
    ),
    "survives_one_class": (
        AssertionError,
        parts(label=lambda o, b: label_loss(o, b) / (len(b.y[b.labelled].unique()) - 1)),
    ),
    "survives_no_edges": (ZeroDivisionError, prepare(lambda g, o: o.log_soft_labels() * (1 / g.num_edges))),
    "takes_or_refuses_a_single_layer": (AttributeError, parts(label=label_loss, soft=lambda o, b: o.hidden.sum())),
    "refuses_options_out_of_range": (Failed, {"__init__": lenient}),
    "keeps_its_options": (AttributeError, {"__init__": lenient}),
    "reads_what_it_declares": (
        AssertionError,
        prepare(lambda g, o: (o.logits if o.hidden is None else o.hidden[:, :3]).log_softmax(-1)),
    ),
    "searches_within_its_options": (AssertionError, {"space": classmethod(no_such_option)}),
    "leaves_the_teacher_as_it_was": (AssertionError, prepare(lambda g, o: o.logits.mul_(2).log_softmax(-1))),
    "runs_the_reference_schedule": (G2MError, parts(soft=soft)),
    "saves_and_loads": (AssertionError, {"build": lambda self, model, outputs: answers_more(model)}),
    "leaves_its_parameters_behind": (
        AssertionError,
        {"build": lambda self, model, outputs: model.register_parameter("own", nn.Parameter(torch.ones(1)))},
    ),
}
#: What a student sees to, whatever its method does.
BY_THE_STUDENT = {"refuses_unknown_options", "refuses_missing_outputs"}


def test_every_clause_is_shown_to_fail_but_those_of_the_student():
    assert {clause.__name__ for clause in CONTRACT} - BY_THE_STUDENT == WRONG.keys()


@pytest.mark.parametrize("clause", [c for c in CONTRACT if c.__name__ in WRONG], ids=lambda clause: clause.__name__)
def test_contract_catches_a_method_that_breaks_it(clause, define, tmp_path: Path) -> None:
    error, body = WRONG[clause.__name__]
    with pytest.raises(error):
        clause(define(**body), tmp_path)


@pytest.mark.parametrize("clause", CONTRACT, ids=lambda clause: clause.__name__)
def test_contract_holds_for_a_method_with_parameters_of_its_own(clause, define, tmp_path: Path) -> None:
    def init(self) -> None:
        nn.Module.__init__(self)
        self.head = nn.Linear(3, 3)

    def loss(self, output, batch):
        moved = output._replace(logits=self.head(output.logits))
        return {"label": label_loss(output, batch), "soft": soft(moved, batch)}

    clause(define(__init__=init, loss=loss), tmp_path)
