"""NOSMOG against its formula; its adversary; and where its students' positions come from."""

import warnings
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from cases import blocks, fitted, intercept, outputs_of, same_bits, steps, student, weights
from torch import Generator, Tensor
from torch.nn import functional as F

from g2m.errors import G2MError
from g2m.estimators import Student, Teacher
from g2m.graph import Graph
from g2m.losses import soft_label_loss
from g2m.models import BatchNorm, statistics_as_they_are
from g2m.sparse import CSR

FREE = {"position": "none"}


def cosines(rows: Tensor) -> Tensor:
    return F.cosine_similarity(rows[:, None], rows[None], dim=2)


@pytest.mark.parametrize("unseen", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lam": 0.3, "tau": 2.0, "mu": 0.7},
        {"normalise": False, "mu": 1e-3},
        {"mu": 0.0},
        {"mu": 0.0, "position": None},
    ],
    ids=str,
)
def test_loss_equals_its_formula(options, unseen):
    graph = blocks(unseen=unseen)
    observed, outputs = graph.observed(), outputs_of(graph)
    model, method, batches = intercept(student("nosmog", batch_size=7, eta=0.0, **options), graph, outputs)
    lam, tau, mu = options.get("lam", 0.0), options.get("tau", 1.0), options.get("mu", 0.1)
    label = 0
    for batch in batches.epoch(Generator().manual_seed(0)):
        output = model(*batch.inputs)
        parts = method(output, batch)
        assert parts.keys() == {"label", "soft"} | ({"similarity"} if mu else set())
        log_p, log_q = ((z.double() / tau).log_softmax(1) for z in (outputs.logits[batch.row], output.logits))
        soft = (1 - lam) * (log_p.exp() * (log_p - log_q)).sum(1).mean()
        torch.testing.assert_close(parts["soft"].double(), soft, rtol=1e-4, atol=1e-6)
        if mu:
            mapped = method.projection(output.hidden).relu().double()
            sides = mapped, outputs.hidden[batch.row].double()
            gram = cosines if options.get("normalise", True) else lambda rows: rows @ rows.T
            off = (gram(sides[0]) - gram(sides[1])).square()
            pairs = ~torch.eye(len(off), dtype=torch.bool) if options.get("normalise", True) else ...
            torch.testing.assert_close(parts["similarity"].double(), mu * off[pairs].mean(), rtol=1e-3, atol=1e-6)
        label = label + parts["label"] * len(batch.row) / observed.num_nodes
    whole = model(batches.x).logits
    train = observed.part("train")
    torch.testing.assert_close(label, lam * F.cross_entropy(whole[train], observed.y[train]), rtol=1e-4, atol=1e-6)


def test_alone_it_is_glnn():
    graph, options = blocks(), {"lam": 0.3, "tau": 2.0, "batch_size": 7, "dropout": 0.3}
    first = fitted("nosmog", graph, mu=0, eta=0, **FREE, **options)
    assert same_bits(weights(first), weights(fitted("glnn", graph, **options)))
    for term in ("mu", "eta"):
        other = fitted("nosmog", graph, **{"mu": 0, "eta": 0, term: 1.0}, **FREE, **options)
        assert not same_bits(weights(other), weights(first))


# -- the adversary -------------------------------------------------------------------------------------------------


def asked(model, call) -> list[Tensor]:
    """What the model is asked about in a call."""
    seen = []
    hook = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach().clone()))
    call()
    hook.remove()
    return seen


@pytest.mark.parametrize("nodes", ["all", 5, 2, 1000])
@pytest.mark.parametrize("epsilon", [0.0, 0.05, 3.0])
@pytest.mark.parametrize("position", ["none", "deepwalk"])
def test_the_adversary_stays_in_its_box_and_takes_its_steps(position, epsilon, nodes):
    options = {"epsilon": epsilon, "ascents": 3, "adversarial_nodes": nodes, "position": position}
    model, method, (batch,) = steps("nosmog", blocks(), batch_size=1000, **options)
    output, x = model(*batch.inputs), batch.inputs[0]
    seen = asked(model, lambda: method(output, batch))
    assert len(seen) == 3 + 1  # the steps, and the loss where they end
    count = {"all": 36, 1000: 36}.get(nodes, nodes)
    for moved in seen:
        assert moved.shape == (count, x.size(1))
        near = (moved[:, None] - x).abs().amax(2) <= epsilon * (1 + 1e-5) + 1e-6
        assert near.any(1).all()
        assert nodes not in ("all", 1000) or near.diagonal().all()
    for before, after in pairwise(seen):
        step = (after - before).abs()
        assert step.max() <= epsilon / 4 * (1 + 1e-4) + 1e-6
        assert epsilon == 0 or step.max() > epsilon / 5


@pytest.mark.parametrize("norm", ["none", "batch", "layer"])
def test_the_adversary_leaves_no_trace_but_its_loss(norm):
    model, method, (batch,) = steps("nosmog", blocks(), batch_size=1000, norm=norm, dropout=0.3, **FREE)
    output = model(*batch.inputs)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    total = sum(method(output, batch).values())
    assert same_bits(before, model.state_dict())
    assert all(p.grad is None for module in (model, method) for p in module.parameters())
    total.backward()
    assert same_bits(before, model.state_dict())
    assert all(p.grad is not None for p in model.parameters())
    model(*batch.inputs)  # it goes on learning its statistics
    assert same_bits(before, model.state_dict()) == (norm != "batch")


def test_batch_norm_learns_again_even_after_an_error():
    model, _, _ = steps("nosmog", blocks(), norm="batch", **FREE)
    with pytest.raises(ZeroDivisionError), statistics_as_they_are(model):
        raise ZeroDivisionError
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    assert norms
    assert all(norm.track_running_stats for norm in norms)


@pytest.mark.parametrize("lam", [0.0, 0.4])
def test_the_adversary_finds_worse_than_chance_does(lam):
    options = {"epsilon": 0.5, "lam": lam, "eta": 0.3, "adversarial_nodes": "all", "tau": 1.5, **FREE}
    model, method, (batch,) = steps("nosmog", blocks(), batch_size=1000, **options)
    x, log_p = batch.inputs[0], batch.targets["log_soft_labels"]
    output, worst, chance = model(x), [], []
    for seed in range(40):
        torch.manual_seed(seed)
        worst.append(method(output, batch)["adversarial"].detach() / (0.3 * (1 - lam)))
        moved = x + torch.empty_like(x).uniform_(-0.5, 0.5)
        chance.append(soft_label_loss(model(moved).logits, log_p, 1.5).detach())
    worst, chance = torch.stack(worst), torch.stack(chance)
    assert worst.min() > chance.max()
    assert worst.mean() > soft_label_loss(output.logits, log_p, 1.5) + 5 * chance.std()


def test_some_nodes_stand_for_all_on_average():
    values = {}
    for nodes in ("all", 5):
        options = {"adversarial_nodes": nodes, "ascents": 1, "epsilon": 0.5, **FREE}
        model, method, (batch,) = steps("nosmog", blocks(), batch_size=1000, **options)
        output = model(*batch.inputs)
        torch.manual_seed(0)
        found = [method(output, batch)["adversarial"].detach() for _ in range(300)]
        values[nodes] = torch.stack(found).double()
    error = (values["all"].var() / 300 + values[5].var() / 300).sqrt()
    assert abs(values["all"].mean() - values[5].mean()) < 5 * error
    assert values[5].std() > 2 * values["all"].std()


def test_sparse_features_are_moved_as_dense_ones():
    graph = blocks()
    graph = replace(graph, x=F.one_hot(torch.arange(36) % 20, 20).float())
    model, method, (batch,) = steps("nosmog", graph, batch_size=1000, epsilon=0.1, **FREE)
    assert isinstance(batch.inputs[0], CSR)
    output = model(*batch.inputs)
    for moved in asked(model, lambda: method(output, batch)):
        assert (moved - batch.inputs[0].to_dense()).abs().max() <= 0.1 + 1e-6
    fitted("nosmog", graph)


def test_a_pass_over_labels_alone_has_no_adversary():
    model, method, batches = steps("nosmog", blocks(), batch_size=4, reference_schedule=True, ascents=2)
    assert {batch.only for batch in batches} == {"label", "teacher"}
    for batch in batches:
        output = model(*batch.inputs)
        parts = {}
        seen = asked(model, lambda: parts.update(method(output, batch)))  # noqa: B023 (called at once)
        assert len(seen) == (0 if batch.only == "label" else 3)
        assert ("adversarial" in parts) == (batch.only == "teacher")


# -- positions -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graph() -> Graph:
    """Two unseen nodes are linked to each other alone, and two to nobody."""
    graph = blocks(60, unseen=True)
    lone = graph.part("unseen")[:4]
    kept = graph.edge_index[:, ~torch.isin(graph.edge_index, lone).any(0)]
    return replace(graph, edge_index=torch.cat([kept, torch.stack([lone[:2], lone[:2].flip(0)])], 1))


@pytest.fixture(scope="module")
def trained(graph) -> Student:
    return fitted("nosmog", graph, max_epochs=6, position_channels=5, num_walks=2)


def by_hand(student: Student, graph: Graph, observed: Tensor) -> Tensor:
    """Logits from features and positions: a known node's own, the mean of known neighbours', or zeros."""
    own = dict(zip(student.position_[0].tolist(), student.position_[1], strict=True))
    rows = []
    for i in range(graph.num_nodes):
        if observed[i]:
            rows.append(own[i])
            continue
        linked = [own[j] for j, k in graph.edge_index.T.tolist() if k == i and observed[j]]
        rows.append(torch.stack(linked).mean(0) if linked else torch.zeros(5))
    with torch.no_grad():
        return student.model_(torch.cat([graph.x, torch.stack(rows)], 1)).logits


def seen(graph: Graph) -> Tensor:
    return ~torch.isin(torch.arange(graph.num_nodes), graph.part("unseen"))


def test_a_student_reads_its_nodes_own_positions_and_the_mean_of_others_neighbours(graph, trained):
    assert trained.model_.layers[0].in_features == 10 + 5 == 10 + trained.meta_["position_channels"]
    assert torch.equal(trained.position_[0], graph.observed().node_id)
    logits = trained.predict_logits(graph)
    torch.testing.assert_close(logits, by_hand(trained, graph, seen(graph)), rtol=1e-4, atol=1e-5)
    lone = graph.part("unseen")[:4]
    torch.testing.assert_close(logits[lone], trained.predict_logits(graph.x)[lone])  # linked to nobody known
    # The observed part alone, by the ids that its nodes have in the whole.
    torch.testing.assert_close(trained.predict_logits(graph.observed()), logits[seen(graph)], rtol=1e-4, atol=1e-5)
    assert torch.equal(trained.predict(graph), logits.argmax(1))
    torch.testing.assert_close(trained.predict_proba(graph), logits.softmax(1))
    assert trained.evaluate(graph)["val"] == trained.history_.best_score


def test_positions_are_deepwalks_of_the_observed_graph(graph):
    def draw(graph, **options):
        drawn.append((graph.fingerprint(), options.pop("seed"), options))
        return torch.randn(graph.num_nodes, 5)

    drawn = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("g2m.methods.nosmog.deepwalk", draw)
        for seed in (0, 0, 1):
            options = {"position_channels": 5, "walk_length": 9, "num_walks": 2, "window": 3, "position_epochs": 4}
            fitted("nosmog", graph, max_epochs=1, seed=seed, standardise=False, **options)
    first, again, other = drawn
    assert first == again
    assert first[0] == graph.observed().fingerprint()
    assert first[1] != other[1], "walks follow the student's seed"
    asked = {"channels": 5, "walk_length": 9, "num_walks": 2, "window": 3, "epochs": 4, "standardise": False}
    assert first[2] == asked


def test_features_are_taken_for_nodes_that_nothing_is_linked_to(graph, trained):
    with torch.no_grad():
        expected = trained.model_(torch.cat([graph.x, torch.zeros(60, 5)], 1)).logits
    torch.testing.assert_close(trained.predict_logits(graph.x), expected)
    torch.testing.assert_close(trained.predict_logits(graph.without_edges())[~seen(graph)], expected[~seen(graph)])
    assert not torch.allclose(trained.predict_logits(graph), expected)
    cold = graph.part("unseen")
    score = float((expected[cold].argmax(1) == graph.y[cold]).double().mean())
    assert trained.evaluate(graph)["cold"] == score
    with pytest.raises(G2MError, match=r"shape \[N, 10\] \(got \(60, 15\)\)"):
        trained.predict(torch.zeros(60, 15))


@pytest.mark.parametrize("what", ["graph", "split", "features", "setting"])
def test_positions_of_another_graph_are_not_given(what, graph, trained):
    x = graph.x.clone()
    x[graph.part("train")[0]] += 1
    others = {
        "graph": blocks(60, seed=1, unseen=True),
        "split": graph.with_split(graph.split | {"unseen": graph.part("unseen")[1:]}),
        "features": replace(graph, x=x),
        "setting": graph.with_split({part: ids for part, ids in graph.split.items() if part != "unseen"}),
    }
    for call in (trained.predict_logits, trained.predict, trained.evaluate):
        with pytest.raises(G2MError, match=r"^graph: positions are known on the graph trained on.*Pass features"):
            call(others[what])


def test_positions_are_saved(graph, trained, tmp_path):
    loaded = Student.load(trained.save(tmp_path / "s.safetensors"))
    for first, second in zip(loaded.position_, trained.position_, strict=True):
        assert torch.equal(first, second)
    for given in (graph, graph.x):
        assert torch.equal(loaded.predict_logits(given), trained.predict_logits(given))
    assert loaded.evaluate(graph) == trained.evaluate(graph)
    again = Student.load(loaded.save(tmp_path / "t.safetensors"))
    assert torch.equal(again.predict_logits(graph), trained.predict_logits(graph))


@pytest.mark.parametrize("ends", ["among unseen", "unseen to seen", "features"])
def test_unseen_nodes_reach_their_own_answers_alone(ends, graph, trained):
    unseen = graph.part("unseen")
    if ends == "features":
        x = graph.x.clone()
        x[unseen[0]] += 3
        other, changed = replace(graph, x=x), unseen[:1]
    else:
        arc = torch.stack([unseen[5], unseen[8] if ends == "among unseen" else graph.part("train")[0]])[:, None]
        arc = torch.cat([arc, arc.flip(0)], 1)
        other = replace(graph, edge_index=torch.cat([graph.edge_index, arc], 1))
        assert other.num_edges > graph.num_edges
        changed = unseen[:0] if ends == "among unseen" else unseen[5:6]
    again = fitted("nosmog", other, max_epochs=6, position_channels=5, num_walks=2)
    assert same_bits(weights(again), weights(trained))
    assert torch.equal(again.position_[1], trained.position_[1])
    before, after = trained.predict_logits(graph), again.predict_logits(other)
    assert (before != after).any(1).nonzero().flatten().tolist() == changed.tolist()


def test_without_positions_a_student_is_free_of_the_graph(tmp_path):
    graph = blocks(60, unseen=True)
    outputs = Teacher("gcn", hidden_channels=8, max_epochs=3, device="cpu").fit(graph).outputs(graph)
    first, second = (student("nosmog", **FREE).fit(g, outputs) for g in (graph, graph.without_edges()))
    assert same_bits(weights(first), weights(second))
    assert first.position_ is None
    assert first.model_.layers[0].in_features == graph.num_features
    loaded = Student.load(first.save(tmp_path / "s.safetensors"))
    assert loaded.position_ is None
    for g in (graph, blocks(7)):  # asked about any graph, it takes the features
        assert torch.equal(loaded.predict_logits(g), first.predict_logits(g.x))
    with pytest.raises(G2MError, match="takes edges"):
        student("nosmog").fit(graph.without_edges(), outputs)


def test_positions_of_a_graph_without_edges_are_zero():
    graph = blocks(edges=False)
    trained = fitted("nosmog", graph)
    assert not trained.position_[1].any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(trained.predict_logits(graph), trained.predict_logits(graph.x))


def test_fitting_again_without_positions_forgets_them():
    graph = blocks()
    trained = student("nosmog")
    assert trained.fit(graph, outputs_of(graph)).position_ is not None
    trained.options = dict(FREE)
    assert trained.fit(graph, outputs_of(graph)).position_ is None
    assert trained.predict(graph.x).shape == (36,)


def test_a_hidden_state_is_needed_and_asked_for_before_anything_walks(monkeypatch):
    monkeypatch.setattr("g2m.methods.nosmog.deepwalk", None)
    with pytest.raises(G2MError, match="num_layers: method 'nosmog' reads a hidden state"):
        student("nosmog", num_layers=1).fit(blocks(), outputs_of(blocks()))
