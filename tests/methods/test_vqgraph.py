"""VQGraph against its formula, and what becomes of the codes it is given."""

import warnings
from dataclasses import replace

import pytest
import torch
from cases import blocks, fitted, intercept, outputs_of, same_bits, shuffled, steps, student, weights
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from g2m import storage
from g2m.errors import G2MError
from g2m.estimators import Teacher
from g2m.graph import Graph
from g2m.methods.vqgraph import VQGraph
from g2m.models import Output
from g2m.outputs import TeacherOutputs

KINDS = ("cosine", "euclidean", "levels")
kinds = pytest.mark.parametrize("kind", KINDS)


def coded(graph: Graph, kind: str = "cosine") -> TeacherOutputs:
    """Outputs with codes of a kind; as many as leave the default temperature something to tell."""
    outputs, generator = outputs_of(graph), Generator().manual_seed(1)
    if kind == "levels":
        codebook = torch.randn(2, 12, 6, generator=generator) * torch.tensor([1.0, 0.5])[:, None, None]
    else:
        codebook = torch.randn(12, 6, generator=generator)
    return replace(outputs, codebook=codebook, code_metric="cosine" if kind == "cosine" else "euclidean")


def moved_to(other: Graph, outputs: TeacherOutputs, order: Tensor) -> TeacherOutputs:
    rows = {f: getattr(outputs, f)[order] for f in ("logits", "hidden", "low_target", "code_input")}
    return replace(outputs, meta=outputs.meta | {"fingerprint": other.fingerprint()}, **rows)


def log_shares(x: Tensor, codes: Tensor, tau: float, metric: str, first: Tensor) -> Tensor:
    if metric == "cosine":
        score = F.cosine_similarity(x[:, None], codes[None], dim=-1)
    else:
        score = -torch.cdist(x, codes).square() / (2 * first.square().sum(1).mean())
    return (score / tau).log_softmax(1)


def code_loss(student: Tensor, outputs: TeacherOutputs, tau: float) -> Tensor:
    """KL(r ‖ r') node by node, mean over levels, in float64."""
    levels, teacher = outputs.code_levels.double(), outputs.code_input.double()
    codes, total = outputs.codes().reshape(len(teacher), -1), 0
    for level, book in enumerate(levels):
        log_r, log_own = (log_shares(x, book, tau, outputs.code_metric, levels[0]) for x in (teacher, student))
        total = total + (log_r.exp() * (log_r - log_own)).sum(1)
        teacher, student = (x - book[codes[:, level]] for x in (teacher, student))
    return total / len(levels)


@kinds
@pytest.mark.parametrize("unseen", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"lam": 0.3, "tau": 2.0, "code_weight": 0.5, "code_tau": 0.2}, {"lam": 1.0, "code_tau": 0.05}]
)
def test_loss_equals_its_formula(kind, unseen, options):
    """λ mean CE + (1 − λ) mean KL(p ‖ q) + w mean KL(r ‖ r'); in batches, each node against its own codes."""
    graph = blocks(unseen=unseen)
    observed, outputs = graph.observed(), coded(graph, kind)
    model, method, batches = intercept(student("vqgraph", batch_size=7, **options), graph, outputs)
    lam, tau = options.get("lam", 0.0), options.get("tau", 1.0)
    output = model(observed.x)
    code = code_loss(method.projection(output.hidden).double(), outputs, options.get("code_tau", VQGraph().code_tau))
    code = options.get("code_weight", 1.0) * code
    log_p, log_q = ((z.double() / tau).log_softmax(1) for z in (outputs.logits, output.logits))
    soft = (1 - lam) * (log_p.exp() * (log_p - log_q)).sum(1)
    label, train = [], observed.part("train")
    for batch in batches.epoch(Generator().manual_seed(0)):
        parts = method(model(*batch.inputs), batch)
        assert parts.keys() == {"label", "soft", "code"}
        torch.testing.assert_close(parts["code"].double(), code[batch.row].mean(), rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(parts["soft"].double(), soft[batch.row].mean(), rtol=1e-3, atol=1e-6)
        label.append(parts["label"] * len(batch.row) / observed.num_nodes)
    expected = lam * F.cross_entropy(output.logits[train], observed.y[train])
    torch.testing.assert_close(sum(label), expected, rtol=1e-4, atol=1e-6)


@kinds
def test_rows_go_by_node_and_not_by_place(kind):
    graph = blocks()
    other, order = shuffled(graph)
    outputs = coded(graph, kind)
    results = []
    for g, o in (
        (graph, outputs),
        (other, moved_to(other, outputs, order)),
        (other, moved_to(other, outputs, order.flip(0))),
    ):
        model, method, batches = intercept(student("vqgraph", batch_size=1000), g, o)
        (batch,) = batches.epoch(Generator().manual_seed(0))
        results.append(method(model(*batch.inputs), batch)["code"])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)
    assert abs(results[0] - results[2]) > 1e-3  # codes of other nodes


@kinds
def test_nothing_is_lost_where_the_student_stands_at_its_teacher(kind):
    graph = blocks()
    outputs = coded(graph, kind)
    _, method, batches = intercept(student("vqgraph", hidden_channels=6, batch_size=1000), graph, outputs)
    nn.init.eye_(method.projection.weight)
    nn.init.zeros_(method.projection.bias)
    (batch,) = batches.epoch(Generator().manual_seed(0))
    at = Output(outputs.logits[batch.row], outputs.code_input[batch.row])
    parts = method(at, batch)
    assert abs(parts["code"]) < 1e-5
    assert abs(parts["soft"]) < 1e-5
    off = at._replace(hidden=at.hidden.roll(1, 0))
    assert method(off, batch)["code"] > 0.1


def test_student_comes_to_the_codes_of_its_teacher():
    graph = blocks()
    options = {"hidden_channels": 64, "max_epochs": 200, "patience": 200, "weight_decay": 0.0}
    losses = [r["code"] for r in student("vqgraph", **options).fit(graph, coded(graph)).history_.epochs]
    assert losses[-1] < 0.1 * losses[0]


def test_without_codes_it_is_soft_labels_alone():
    graph, options = blocks(), {"lam": 0.3, "tau": 2.0, "batch_size": 7, "dropout": 0.3}
    first, other = (student("vqgraph", code_weight=w, **options).fit(graph, coded(graph)) for w in (0, 1))
    second = fitted("glnn", graph, **options)
    assert same_bits(weights(first), weights(second))
    assert not same_bits(weights(other), weights(second))


# -- what is said of the temperature ---------------------------------------------------------------------------------


@kinds
def test_a_temperature_that_tells_nothing_gives_a_warning(kind):
    graph = blocks()
    outputs = coded(graph, kind)
    with pytest.warns(
        UserWarning, match=r"code_tau: at 1\.0 an assignment spreads over 1[01]\.\d of 12 codes.*Lower it"
    ):
        trained = student("vqgraph", code_tau=1.0).fit(graph, outputs)
    assert trained.meta_["figures"] == {"code_perplexity": outputs.code_perplexity(1.0)}
    assert trained.meta_["figures"]["code_perplexity"] > 0.9 * 12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trained = student("vqgraph", code_tau=0.5).fit(graph, outputs)
    assert trained.meta_["figures"] == {"code_perplexity": outputs.code_perplexity(0.5)}
    assert trained.meta_["figures"]["code_perplexity"] < 0.9 * 12


def test_figures_are_kept_with_the_student(tmp_path):
    trained = fitted("vqgraph", blocks())
    path = trained.save(tmp_path / "student.safetensors")
    assert type(trained).load(path).meta_["figures"] == trained.meta_["figures"]
    assert fitted("glnn", blocks()).meta_["figures"] == {}


def test_codes_that_are_hardly_in_use_give_a_warning_and_one_code_for_all_an_error():
    graph = blocks()
    outputs = replace(coded(graph), code_input=coded(graph).codebook[torch.arange(36) % 6])  # six of twelve
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        student("vqgraph", max_epochs=1).fit(graph, outputs)
    five = replace(outputs, code_input=outputs.codebook[torch.arange(36) % 5])
    with pytest.warns(UserWarning, match="outputs: only 42% of 12 codes are in use. Train the teacher with a lower lr"):
        student("vqgraph", max_epochs=1).fit(graph, five)
    for one in (outputs.codebook[:1].expand(36, -1), torch.zeros(36, 6)):
        collapsed = replace(outputs, code_input=one)
        with pytest.raises(G2MError, match=r"outputs: all nodes have the same of 12 codes.*tokenizer='beside'"):
            student("vqgraph").fit(graph, collapsed)


# -- parts of its own ------------------------------------------------------------------------------------------------


def test_the_projection_is_trained_and_stays_behind(tmp_path):
    graph = blocks()
    model, method, _ = intercept(student("vqgraph"), graph, outputs_of(graph))
    assert method.state_dict().keys() == {"projection.weight", "projection.bias"}  # no codes in a checkpoint
    assert not method.codebook.requires_grad
    (_, trained_method, (batch,)) = steps("vqgraph", graph, batch_size=1000)
    code = trained_method(model(*batch.inputs), batch)["code"]
    assert torch.autograd.grad(code, trained_method.projection.weight)[0].any()
    tensors, _ = storage.read(fitted("vqgraph", graph).save(tmp_path / "s"), "student")
    assert tensors.keys() == model.state_dict().keys()


def test_a_student_of_one_layer_has_no_hidden_state_to_code():
    graph = blocks()
    with pytest.raises(G2MError, match="num_layers: method 'vqgraph' reads a hidden state"):
        student("vqgraph", num_layers=1).fit(graph, outputs_of(graph))
    assert student("vqgraph", num_layers=3).fit(graph, outputs_of(graph)).predict(graph.x).shape == (36,)


@pytest.mark.parametrize("place", ["inside", "beside", "reference"])
@pytest.mark.parametrize("unseen", [False, True])
def test_it_learns_from_any_teacher_with_a_tokenizer(place, unseen):
    graph = blocks(unseen=unseen)
    options = {"num_codes": 9, "hidden_channels": 8, "max_epochs": 20, "device": "cpu"}
    outputs = Teacher("gcn", tokenizer=place, **options).fit(graph).outputs(graph)
    records = student("vqgraph", max_epochs=30, patience=30, code_tau=0.05).fit(graph, outputs).history_.epochs
    assert records[-1]["code"] < records[0]["code"]


def test_a_teacher_without_a_tokenizer_is_refused():
    graph = blocks()
    outputs = Teacher("gcn", hidden_channels=8, max_epochs=2, device="cpu").fit(graph).outputs(graph)
    with pytest.raises(G2MError, match="'vqgraph' needs code_input, codebook"):
        student("vqgraph").fit(graph, outputs)
