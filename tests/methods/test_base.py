"""Registration, options, and the loss on labels."""

import pytest
import torch
from cases import blocks
from torch import Generator, nn

from g2m.batches import FullBatch
from g2m.errors import G2MError
from g2m.estimators import Student
from g2m.methods import REGISTRY, Method, label_loss, make_method
from g2m.methods.glnn import GLNN
from g2m.models import Output


@pytest.fixture
def made_here():
    """A method registered for one test, with an option and a parameter."""
    before = dict(REGISTRY)

    class MadeHere(Method):
        name = "made_here"

        def __init__(self, *, width: int = 2) -> None:
            super().__init__()
            self.width = width
            self.weight = nn.Parameter(torch.ones(width))

    yield MadeHere
    REGISTRY.clear()
    REGISTRY.update(before)


def batch(labelled, y, scale):
    whole = FullBatch((None,), y, labelled).batch
    return whole.__class__(whole.inputs, whole.row, y, whole.labelled, scale)


def test_a_subclass_registers_itself(made_here):
    assert REGISTRY["made_here"] is made_here
    assert made_here.options() == {"width": 2}
    assert isinstance(make_method("made_here", {"width": 5}), made_here)
    assert repr(make_method("made_here", {"width": 5})) == "MadeHere(width=5)"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, r"name: expected one of the method M \(got none\)"),
        ({"name": "m", "needs": frozenset({"logit"})}, "needs, wants: unknown key 'logit'.*Did you mean 'logits'"),
    ],
)
def test_a_method_that_does_not_say_what_it_is_is_refused(body, message):
    before = dict(REGISTRY)
    with pytest.raises(G2MError, match=message):
        type("M", (Method,), body)
    assert before == REGISTRY


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prepare": lambda self, graph, outputs: {"p": graph.x[:5]}}, r"prepare: expected tensors of \d+ rows.*'p'"),
        ({"prepare": lambda self, graph, outputs: {"p": 3}}, r"prepare: expected tensors .*got int for 'p'"),
        (
            {"positions": lambda self, graph, outputs: graph.x[:5]},
            r"positions: expected floats \[\d+, P\] \(got torch.float32, \(5, ",
        ),
        ({"positions": lambda self, graph, outputs: graph.x.long()}, r"positions: .*got torch.int64, "),
        ({"positions": lambda self, graph, outputs: graph.x.numpy()}, r"positions: .*got ndarray"),
        ({"loss": lambda self, output, batch: label_loss(output, batch)}, "loss: expected a dict of scalar tensors"),
        ({"loss": lambda self, output, batch: {"label": output.logits}}, "loss: expected a dict of scalar tensors"),
    ],
)
def test_a_method_that_returns_something_else_is_told_so(made_here, wrong, message):
    right = {"loss": lambda self, output, batch: {"label": label_loss(output, batch)}}
    method = type("Other", (made_here,), {"name": "other", **right, **wrong})
    with pytest.raises(G2MError, match=message):
        Student(method, hidden_channels=4, max_epochs=1).fit(blocks())


def test_defaults_ask_for_nothing(made_here):
    method = made_here()
    assert (method.needs, method.nodes, method.paper, method.prepare(None, None)) == (frozenset(), "observed", "", {})
    assert made_here.space(None) == {}
    with pytest.raises(NotImplementedError):
        method(None, None)


@pytest.mark.parametrize("given", ["glnn", GLNN, GLNN()])
def test_by_name_class_or_instance(given):
    assert isinstance(make_method(given, {}), GLNN)


def test_an_instance_is_taken_as_it_is():
    method = GLNN(lam=0.3)
    assert make_method(method, {}) is method


#: Values just outside an option's range, in every method that has it; the contract tries those far outside.
OUTSIDE = {
    "lam": [-0.1, 1.1],
    "tau": [0],
    "alpha": [-0.1, 1.1],
    "momentum": [-0.1, 1.1],
    "code_tau": [0],
    "warmup": [-1, 1.5],
    "propagations": [-1, 1.5],
    "hops": [0, 1.5],
    "channels": [0],
    "ascents": [0],
    "adversarial_nodes": [1, "some", 2.5],
    "position_channels": [0],
    "walk_length": [1],
    "num_walks": [0],
    "window": [0],
    "position_epochs": [0],
}


@pytest.mark.parametrize("option", OUTSIDE)
def test_ranges_end_where_they_are_said_to(option):
    having = [name for name, cls in REGISTRY.items() if option in cls.options()]
    assert having
    for name in having:
        for value in OUTSIDE[option]:
            with pytest.raises(G2MError, match=f"^{option}"):
                make_method(name, {option: value})


@pytest.mark.parametrize("given", [None, 3, dict, nn.Linear(1, 1)])
def test_what_is_no_method_is_refused(given):
    with pytest.raises(G2MError, match="method: expected a name, a Method or a subclass"):
        make_method(given, {})


def test_every_registered_method_says_where_it_is_from():
    for name, cls in REGISTRY.items():
        assert cls.name == name
        assert cls.nodes in {"observed", "train"}
        assert cls.paper or not cls.needs
        assert cls.__doc__


def test_label_loss_equals_its_formula():
    logits = torch.randn(5, 3, generator=Generator().manual_seed(0), dtype=torch.float64)
    y, labelled = torch.tensor([0, 2, 1, 1, 0]), torch.tensor([0, 3])
    picked = [float(torch.exp(logits[i])[y[i]] / torch.exp(logits[i]).sum()) for i in labelled]
    expected = -torch.tensor(picked, dtype=torch.float64).log().sum() * 0.7
    torch.testing.assert_close(label_loss(Output(logits), batch(labelled, y, 0.7)), expected, rtol=1e-10, atol=0)


def test_label_loss_reads_no_other_label():
    logits = torch.randn(4, 3, requires_grad=True)
    y = torch.tensor([0, -1, 2, -1])  # -1: unlabelled
    loss = label_loss(Output(logits), batch(torch.tensor([0, 2]), y, 0.5))
    loss.backward()
    assert torch.isfinite(loss)
    assert not logits.grad[[1, 3]].any()
    assert logits.grad[[0, 2]].all()


def test_label_loss_without_a_label_is_zero_with_a_gradient():
    logits = torch.randn(4, 3, requires_grad=True)
    whole = batch(torch.tensor([0]), torch.zeros(4, dtype=torch.long), 1.0)
    none = whole.__class__(whole.inputs, whole.row, whole.y, torch.zeros(4, dtype=torch.bool), 1.0)
    loss = label_loss(Output(logits), none)
    loss.backward()
    assert loss == 0
    assert not logits.grad.any()


def test_a_name_that_is_taken_is_refused(made_here):
    with pytest.raises(G2MError, match=r"'glnn' is the method g2m\.methods\.glnn\.GLNN"):
        type("Other", (Method,), {"name": "glnn"})
    assert REGISTRY["glnn"] is GLNN


def test_the_same_class_again_takes_the_place_of_the_old(made_here):
    again = type("MadeHere", (Method,), {k: getattr(made_here, k) for k in ("name", "__module__", "__qualname__")})
    assert REGISTRY["made_here"] is again
