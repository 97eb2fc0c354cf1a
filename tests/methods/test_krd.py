"""KRD against its sum over pairs, the chances by which pairs are drawn, and the power that follows the student."""

from dataclasses import replace

import pytest
import torch
from cases import blocks, fitted, intercept, outputs_of, same_bits, shuffled, student, weights
from torch import Generator, Tensor
from torch.nn import functional as F

from g2m.errors import G2MError
from g2m.estimators import Student
from g2m.graph import Graph
from g2m.methods import Method
from g2m.methods.krd import fitted_power
from g2m.models import Output

# As many classes as nodes: a teacher that calls every node by its own name shows who is paired with whom.
NODES = 48
NAMES = 50 * torch.eye(NODES)
LEVEL = torch.linspace(0, 1, NODES).clamp_max(46 / 47)  # the greatest twice, so that 0.99 of all is the greatest


def made(graph: Graph, change: Tensor = LEVEL, logits: Tensor | None = None, **options) -> tuple:
    """The method and the batch of everything, for a teacher as unsteady as said."""
    rows = graph.observed().num_nodes
    outputs = replace(outputs_of(graph), entropy_change=change[:rows, None])
    outputs = outputs if logits is None else replace(outputs, logits=logits[:rows])
    model, method, batches = intercept(student("krd", batch_size="all", **options), graph, outputs)
    (batch,) = batches.epoch(Generator())
    return model, method, batch, outputs


def paired(method: Method, batch, epoch: int) -> Tensor:
    """Whether i is paired with j ``[N, N]`` in an epoch: where the loss would have i call itself j."""
    method.epoch.fill_(epoch)
    logits = torch.zeros(len(batch.row), method.log_p.size(1), requires_grad=True)
    (gradient,) = torch.autograd.grad(method(Output(logits), batch)["soft"], logits)
    return gradient[:, : len(logits)] < 0


def arcs(graph: Graph) -> Tensor:
    """Whether there is an arc from j into i ``[N, N]``."""
    dense = torch.zeros(graph.num_nodes, graph.num_nodes, dtype=torch.bool)
    dense[graph.edge_index[1], graph.edge_index[0]] = True
    return dense


@pytest.mark.parametrize("directed", [False, True])
@pytest.mark.parametrize("unseen", [False, True])
@pytest.mark.parametrize("separate_means", [False, True])
@pytest.mark.parametrize(("lam", "tau"), [(0.0, 1.0), (0.3, 0.7)])
@pytest.mark.parametrize("epoch", [0, 2, 3, 9])
def test_loss_is_the_mean_over_pairs(epoch, lam, tau, separate_means, unseen, directed):
    graph = blocks(NODES, num_classes=NODES, unseen=unseen)
    graph = replace(graph, edge_index=graph.edge_index[:, ::2]) if directed else graph
    observed, options = graph.observed(), {"separate_means": separate_means, "warmup": 3}
    _, namer, batch, _ = made(graph, logits=NAMES, **options)
    pairs = paired(namer, batch, epoch)
    assert pairs.diagonal().all(), "every node is paired with itself"
    own, others = torch.eye(len(pairs), dtype=torch.bool), arcs(observed)
    if epoch < 3:
        assert torch.equal(pairs, own | others)
    else:
        assert 0 < (pairs & others).sum() < others.sum()
        assert not (pairs & ~own & ~others).any()

    model, method, batch, outputs = made(graph, lam=lam, tau=tau, **options)
    method.epoch.fill_(epoch)
    output = model(*batch.inputs)
    parts = method(output, batch)
    log_p, log_q = ((z.double() / tau).log_softmax(1) for z in (outputs.logits, output.logits))
    divergence = (log_p[None].exp() * (log_p[None] - log_q[:, None])).sum(2)
    groups = [own, pairs & ~own] if separate_means else [pairs]
    expected = (1 - lam) * sum(divergence[group].mean() for group in groups)
    torch.testing.assert_close(parts["soft"].double(), expected, rtol=1e-4, atol=1e-6)
    train = observed.part("train")
    label = lam * F.cross_entropy(output.logits[train], observed.y[train])
    torch.testing.assert_close(parts["label"], label, rtol=1e-4, atol=1e-6)

    # In batches of equal size it is the mean of theirs.
    options |= {"lam": lam, "tau": tau, "batch_size": observed.num_nodes // 4}
    _, cut, batches = intercept(student("krd", **options), graph, outputs)
    cut.epoch.fill_(epoch)
    means = [cut(model(*part.inputs), part)["soft"] for part in batches.epoch(Generator().manual_seed(0))]
    torch.testing.assert_close(torch.stack(means).mean(), parts["soft"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("separate_means", [False, True])
def test_a_loop_that_is_kept_is_no_neighbour(separate_means):
    graph, options = blocks(), {"separate_means": separate_means, "warmup": 1, "max_epochs": 3}
    loops = torch.arange(36).expand(2, -1)
    looped = replace(graph, edge_index=torch.cat([graph.edge_index, loops], 1), keep_loops=True)
    assert looped.num_edges == graph.num_edges + 36
    outputs = outputs_of(graph)
    moved = replace(outputs, meta=outputs.meta | {"fingerprint": looped.fingerprint()})
    first, second = student("krd", **options).fit(graph, outputs), student("krd", **options).fit(looped, moved)
    assert same_bits(weights(first), weights(second))


@pytest.mark.parametrize("power", [0.4, 1.0, 3.0])
def test_an_arc_is_drawn_by_how_steady_its_source_is(power):
    graph = blocks(NODES, num_classes=NODES)
    _, method, batch, _ = made(graph, logits=NAMES, warmup=0)
    method.power.fill_(power)
    epochs, there = 400, arcs(graph)
    drawn = torch.stack([paired(method, batch, epoch) for epoch in range(epochs)])
    assert drawn[:, torch.arange(NODES), torch.arange(NODES)].all()
    rho = LEVEL / LEVEL.max()
    chance = (1 - rho.double() ** power).expand(NODES, NODES)[there]
    count = drawn.sum(0)[there]
    sure = (chance == 0) | (chance == 1)
    assert torch.equal(count[sure], (epochs * chance[sure]).long())
    off = (count - epochs * chance)[~sure] / (epochs * chance * (1 - chance))[~sure].sqrt()
    assert off.abs().max() < 5
    assert abs(off.square().sum() - len(off)) < 5 * (2 * len(off)) ** 0.5  # a χ² of so many arcs
    # From one epoch to the next, and from one arc to the other, draws have nothing to do with each other.
    z = (drawn[:, there][:, ~sure].double() - chance[~sure]) / (chance * (1 - chance))[~sure].sqrt()
    for product in (z[1:] * z[:-1], z[:, 1:] * z[:, :-1]):
        assert abs(product.mean()) < 5 / product.numel() ** 0.5


def test_an_epoch_has_one_draw_which_follows_the_seed():
    graph = blocks(NODES, num_classes=NODES)
    first, second, other = (made(graph, logits=NAMES, warmup=0, seed=seed) for seed in (0, 0, 1))
    _, method, batch, _ = first
    draws = {epoch: paired(method, batch, epoch) for epoch in (4, 5)}
    assert torch.equal(draws[4], paired(method, batch, 4))
    assert torch.equal(draws[4], paired(second[1], second[2], 4))
    assert not torch.equal(draws[4], draws[5])
    assert not torch.equal(draws[4], paired(other[1], other[2], 4))


@pytest.mark.parametrize("power", [0.05, 1.0, 20.0])
def test_chances_are_chances_whatever_the_teacher(power):
    graph = blocks(200, num_classes=200)
    there, rest = arcs(graph), torch.linspace(0, 1, 200)
    outlier = torch.where(torch.arange(200) == 7, 1e6, rest)
    lone = torch.where(torch.arange(200) == 7, 5.0, 0.0)
    cases = {"zero": 0 * rest, "constant": 0 * rest + 0.3, "lone": lone, "outlier": outlier, "plain": rest}
    found = {}
    for name, change in cases.items():
        _, method, batch, _ = made(graph, change, 50 * torch.eye(200), warmup=0)
        assert ((method.unsteady >= 0) & (method.unsteady <= 1)).all()
        method.power.fill_(power)
        found[name] = paired(method, batch, 0) & there
    assert torch.equal(found["zero"], there)  # nothing moves: everyone is heard
    assert not found["constant"].any()  # no one is steadier than another
    assert torch.equal(found["lone"], there & (torch.arange(200) != 7))
    assert not found["outlier"][:, 7].any()
    # An outlier does not make all others look steady.
    assert abs(found["outlier"].sum() - found["plain"].sum()) < 0.1 * there.sum()


# -- the power -----------------------------------------------------------------------------------------------------


def counted(power: float, bins: Tensor, nodes: int = 20_000, low: float = 0.0, high: float = 1.0) -> tuple:
    """Nodes in the middle of each bin, of which a share agrees as 1 − ρ^power says, between low and high."""
    centre = (bins + 0.5) / 50
    share = low + (high - low) * (1 - centre.double() ** power)
    agree = torch.arange(nodes)[None] < (share * nodes).round()[:, None]
    return centre.repeat_interleave(nodes), agree.flatten()


EVERY = torch.arange(50)


@pytest.mark.parametrize("power", [1.0, 1.7, 3.0, 8.0])
def test_the_power_is_found_again(power):
    assert fitted_power(*counted(power, EVERY), 5.0) == pytest.approx(power, rel=0.1)
    generator = Generator().manual_seed(0)
    rho = torch.rand(200_000, generator=generator)
    agree = torch.rand(200_000, generator=generator) < 1 - rho**power
    assert fitted_power(rho, agree, 5.0) == pytest.approx(power, rel=0.1)
    # Where student and teacher disagree anyway, or agree anyway, makes no difference.
    assert fitted_power(*counted(power, EVERY, low=0.3, high=0.8), 5.0) == pytest.approx(power, rel=0.1)


def test_bins_without_nodes_do_not_move_the_power():
    """As published, they count as bins in which no one agrees."""
    for bins in (EVERY[::2], EVERY[::7], torch.cat([EVERY[:10], EVERY[-10:]])):
        assert fitted_power(*counted(2.0, bins), 5.0) == pytest.approx(2.0, rel=0.1)


def test_a_bin_counts_by_its_nodes():
    rho, agree = counted(2.0, EVERY)
    odd = torch.tensor([0.13, 0.33, 0.93])
    rho, agree = torch.cat([rho, odd]), torch.cat([agree, torch.tensor([False, False, True])])
    assert fitted_power(rho, agree, 5.0) == pytest.approx(fitted_power(*counted(2.0, EVERY), 5.0), rel=1e-3)


@pytest.mark.parametrize("agree", [False, True])
@pytest.mark.parametrize("rho", [torch.linspace(0, 1, 300), torch.zeros(300), torch.ones(300)], ids=["even", "0", "1"])
def test_where_all_shares_are_the_same_the_power_stays(rho, agree):
    assert fitted_power(rho, torch.full((300,), agree), 3.5) == 3.5
    if not rho.diff().any():  # a single bin has one share, whatever it is
        assert fitted_power(rho, torch.arange(300) % 3 == 0, 3.5) == 3.5


def test_the_power_stays_within_its_bounds():
    generator = Generator().manual_seed(0)
    for _ in range(50):
        size = int(torch.randint(2, 60, (), generator=generator))
        rho = torch.rand(size, generator=generator) ** torch.randint(1, 9, (), generator=generator)
        agree = torch.rand(size, generator=generator) < 0.5
        assert 0.05 <= fitted_power(rho, agree, 1.0) <= 20
    rho = torch.linspace(0, 1, 300)
    assert fitted_power(rho, rho > 0.99, 1.0) < 0.1  # who is unsteady agrees: no one else is heard
    assert fitted_power(rho, rho < 0.97, 1.0) > 10


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
def test_the_power_follows_the_student_with_momentum_after_the_warm_up(momentum):
    graph = blocks(NODES)
    _, method, _, outputs = made(graph, warmup=3, momentum=momentum)
    wrong = LEVEL > 0.6  # the student goes its own way where the teacher is unsteady
    logits = torch.where(wrong[:, None], -outputs.logits, outputs.logits)
    agree = logits.argmax(1) == outputs.logits.argmax(1)
    power = 1.0
    for epoch in range(8):
        record = method.after_epoch(lambda: logits)
        assert int(method.epoch) == epoch + 1
        if epoch + 1 >= 3:
            power = momentum * power + (1 - momentum) * fitted_power(LEVEL / LEVEL.max(), agree, power)
        assert record == {"power": pytest.approx(power, rel=1e-5)}
    assert (power == 1) == (momentum == 1)


def test_the_record_has_the_power():
    powers = [r["power"] for r in fitted("krd", blocks(), warmup=2, momentum=0.5, max_epochs=8).history_.epochs]
    assert powers[0] == 1 != powers[-1]
    assert all(0.05 <= power <= 20 for power in powers)


# -- runs ----------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.parametrize("last", [0, 1, 4])
def test_a_stopped_student_goes_on_to_the_same_bits(last, tmp_path):
    def stop(record):
        if record["epoch"] == last:
            raise Killed

    graph = blocks()
    options = {"dropout": 0.5, "batch_size": 7, "max_epochs": 7, "patience": 7, "warmup": 2, "momentum": 0.5}
    kept = {"checkpoint": tmp_path / "c", "checkpoint_seconds": 0}
    whole = fitted("krd", graph, **options)
    with pytest.raises(Killed):
        student("krd", **options).fit(graph, outputs_of(graph), on_epoch=stop, **kept)
    again = student("krd", **options).fit(graph, outputs_of(graph), **kept)
    assert same_bits(weights(whole), weights(again))
    assert whole.history_.epochs == again.history_.epochs
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("separate_means", [False, True])
@pytest.mark.parametrize("warmup", [0, 50])
def test_without_edges_it_is_glnn(warmup, separate_means):
    graph, options = blocks(edges=False), {"lam": 0.3, "tau": 2.0, "batch_size": 7}
    first = fitted("krd", graph, warmup=warmup, separate_means=separate_means, **options)
    second = fitted("glnn", graph, **options)
    torch.testing.assert_close(first.predict_logits(graph.x), second.predict_logits(graph.x), rtol=1e-3, atol=1e-4)


def test_the_warm_up_is_the_low_frequency_loss():
    graph, options = blocks(), {"lam": 0.3, "batch_size": 7}
    first = fitted("krd", graph, tau=1.5, **options)
    second = fitted("ff_g2m", graph, high=0.0, tau1=1.5, **options)
    torch.testing.assert_close(first.predict_logits(graph.x), second.predict_logits(graph.x), rtol=1e-3, atol=1e-4)


def test_it_matters_who_is_steady():
    graph = blocks()
    first, second = (fitted("krd", graph, warmup=warmup, max_epochs=6) for warmup in (0, 6))
    assert not same_bits(weights(first), weights(second))


@pytest.mark.parametrize("what", ["unseen", "test labels"])
def test_what_training_must_not_see_does_not_reach_who_is_paired(what):
    """The tests of leakage over all methods end within the warm-up."""
    graph = blocks(unseen=True)
    if what == "unseen":
        x, ids = graph.x.clone(), graph.part("unseen")
        x[ids] = 9
        arc = torch.isin(graph.edge_index, ids).any(0)
        other = replace(graph, x=x, edge_index=graph.edge_index[:, ~arc])
    else:
        y = graph.y.clone()
        y[graph.part("test")] = 0
        other = replace(graph, y=y)
    options = {"warmup": 1, "momentum": 0.0, "max_epochs": 6, "batch_size": 7}
    first, second = (fitted("krd", g, **options) for g in (graph, other))
    assert same_bits(weights(first), weights(second))
    assert first.history_.epochs == second.history_.epochs


def test_node_ids_do_not_decide_how_steady_a_node_is():
    graph = blocks(NODES, num_classes=NODES)
    other, order = shuffled(graph)
    chances = []
    for g, change in ((graph, LEVEL), (other, LEVEL[order])):
        _, method, batch, _ = made(g, change, NAMES, warmup=0)
        found = torch.stack([paired(method, batch, epoch) for epoch in range(300)]).double().mean(0)
        chances.append(found)
    torch.testing.assert_close(chances[1], chances[0][order][:, order], rtol=0, atol=5 * (2 * 0.25 / 300) ** 0.5)


def test_a_teacher_that_was_not_asked_again_is_refused():
    graph = blocks()
    with pytest.raises(G2MError, match="'krd' needs entropy_change, which noise_draws=0 leaves out"):
        Student("krd").fit(graph, replace(outputs_of(graph), entropy_change=None))
