"""The tokenizer and the teachers that have one: terms against dense formulas, places, files, the cache."""

import inspect
import math

import pytest
import torch
from cases import blocks, same_bits, thin, weights
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from g2m import estimators
from g2m import tokenizer as tokenizer_module
from g2m.codebook import perplexity, usage
from g2m.errors import G2MError
from g2m.estimators import Teacher
from g2m.graph import Graph
from g2m.models import BACKBONES, symmetric_adjacency
from g2m.outputs import TeacherOutputs
from g2m.sparse import CSR
from g2m.tokenizer import (
    EDGE_DECODERS,
    NODE_TARGETS,
    PLACES,
    Reconstruction,
    TokenizedGNN,
    Tokenizer,
    tokenizer_options,
)

GRAPH = blocks()
SMALL = {"hidden_channels": 8, "max_epochs": 4, "device": "cpu", "num_codes": 6}
backbones = pytest.mark.parametrize("backbone", sorted(BACKBONES))
places = pytest.mark.parametrize("place", PLACES)


def teacher(place: str | None, model: str = "gcn", **options) -> Teacher:
    return Teacher(model, tokenizer=place, **{**SMALL, **options})


def plain(model: str = "gcn", **options) -> Teacher:
    return Teacher(model, **{**{k: v for k, v in SMALL.items() if k != "num_codes"}, **options})


def tokenizer(hidden_channels: int = 8, num_features: int = 10, **options) -> Tokenizer:
    torch.manual_seed(0)
    return Tokenizer(hidden_channels, num_features, **{"num_codes": 6, "code_dim": 4, **options})


def hidden_of(graph: Graph, width: int = 8, seed: int = 0) -> Tensor:
    """A hidden state, a leaf."""
    generator = Generator().manual_seed(seed)
    return (graph.x @ torch.randn(graph.num_features, width, generator=generator)).tanh().requires_grad_()


def adjacency_of(graph: Graph) -> Tensor:
    """Zeros and ones, both directions, every loop."""
    dense = torch.eye(graph.num_nodes)
    dense[graph.edge_index[0], graph.edge_index[1]] = 1
    return torch.maximum(dense, dense.T)


def min_max(decoded: Tensor, adjacency: Tensor) -> Tensor:
    gram = decoded @ decoded.T
    low, high = gram.detach().min(), gram.detach().max()
    return (adjacency - (gram - low) / (high - low)).square().mean().sqrt()


# -- linked pairs ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:graph .* is directed")
@pytest.mark.parametrize("keep_loops", [False, True])
@pytest.mark.parametrize("arcs", [[[0, 1, 2], [1, 2, 2]], [[0, 1, 1, 2, 2], [1, 0, 2, 1, 2]]], ids=["directed", "both"])
def test_linked_pairs_by_hand(arcs, keep_loops):
    """0 - 1 - 2, the last node alone; one loop was there before."""
    graph = Graph(torch.eye(4), torch.tensor(arcs), torch.arange(4) % 2, keep_loops=keep_loops)
    for decoder in ("sigmoid", "sigmoid-balanced"):
        assert tokenizer(8, 4, edge_decoder=decoder).linked_pairs(graph).tolist() == [0, 1, 4, 5, 6, 9, 10, 15]
    pairs = tokenizer(8, 4).linked_pairs(graph)
    expected = torch.tensor([[1.0, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]])
    assert isinstance(pairs, CSR)
    assert pairs.nnz == 8
    assert torch.equal(pairs.to_dense(), expected)


# -- terms -----------------------------------------------------------------------------------------------------------


def test_terms_carry_their_weights_and_nothing_is_done_at_weight_zero():
    graph, hidden = thin(), hidden_of(thin())

    def terms(**options) -> dict[str, float]:
        own = tokenizer(num_features=40, **options).train()
        return {k: v.item() for k, v in own.losses(own(hidden), graph.x, own.linked_pairs(graph)).items()}

    one = terms(commitment=1.0, edge_weight=1.0)
    assert list(one) == ["commitment", "node", "edge"]
    assert all(value > 0 for value in one.values())
    for name, option in {"commitment": "commitment", "node": "node_weight", "edge": "edge_weight"}.items():
        three = terms(**{"commitment": 1.0, "edge_weight": 1.0, option: 3.0})
        assert three == pytest.approx(one | {name: 3 * one[name]})
    assert list(terms(node_weight=0)) == ["commitment", "edge"]
    assert list(terms(edge_weight=0)) == ["commitment", "node"]
    assert terms(commitment=0)["commitment"] == 0
    default = {"commitment": 0.25 * one["commitment"], "node": one["node"], "edge": 0.03 * one["edge"]}
    assert terms() == pytest.approx(default)


@pytest.mark.parametrize("options", [{"code_metric": "cosine"}, {"code_levels": 2}], ids=["one", "levels"])
def test_the_edge_term_is_the_dense_one_of_decoded_codes(options):
    graph, hidden = thin(directed=True), hidden_of(thin())
    own = tokenizer(num_features=40, edge_weight=2.0, **options)
    for _ in range(2):
        tokens = own(hidden)
    own = own.double()
    tokens = own.eval()(hidden.double())
    edge = own.losses(tokens, graph.x.double(), own.linked_pairs(graph))["edge"]
    expected = 2 * min_max(tokens.decoded, adjacency_of(graph).double())
    torch.testing.assert_close(edge, expected, rtol=1e-8, atol=0)
    weight = own.decode_edges.weight
    mine, dense = (torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (edge, expected))
    torch.testing.assert_close(mine, dense, rtol=1e-6, atol=1e-9)
    assert torch.equal(tokens.decoded, own.decode_edges(tokens.code))


@pytest.mark.parametrize(("options", "said"), [({"code_levels": 2}, True), ({}, False)], ids=["levels", "one"])
def test_pairs_of_levels_are_warned_of_where_they_are_many(options, said, monkeypatch, caplog):
    monkeypatch.setattr(tokenizer_module, "_MOST_PAIRED", 10)
    tokenizer(**options).linked_pairs(thin())
    assert ("edge_decoder: 'minmax' looks at nearly all pairs" in caplog.text) == said


@pytest.mark.parametrize(("decoder", "share"), [("sigmoid", 1.0), ("sigmoid-balanced", 0.5)])
def test_the_sampled_edge_term_takes_linked_pairs_at_their_share(decoder, share):
    """On a complete graph there are no others to be drawn."""
    graph = Graph(torch.randn(5, 3), torch.ones(5, 5).nonzero().T, torch.arange(5) % 2)
    hidden, own = hidden_of(graph), tokenizer(num_features=3, num_codes=3, edge_decoder=decoder)
    tokens = own(hidden)
    edge = own.losses(tokens, graph.x, own.linked_pairs(graph))["edge"] / own.edge_weight
    expected = F.binary_cross_entropy_with_logits(tokens.decoded @ tokens.decoded.T, torch.ones(5, 5))
    torch.testing.assert_close(edge, share * expected)


@pytest.mark.parametrize("sparse", [False, True])
def test_the_node_term_tells_features_from_codes(sparse):
    graph = thin(sparse=sparse)
    hidden, own = hidden_of(graph), tokenizer(num_features=40)
    tokens = own(hidden)
    node = own.losses(tokens, graph.features, own.linked_pairs(graph))["node"]
    cosine = F.cosine_similarity(graph.x, own.decode_nodes(tokens.code))
    torch.testing.assert_close(node, (1 - cosine).square().mean())
    assert isinstance(graph.features, CSR) == sparse


@pytest.mark.parametrize("reference", [False, True])
def test_the_node_term_on_hidden_states_pulls_them_only_in_the_published_form(reference):
    """Elsewhere the hidden state is a target, and constant."""
    graph, hidden = GRAPH, hidden_of(GRAPH, 10)
    own = tokenizer(10, node_target="hidden", code_dim="hidden", reference=reference)
    tokens = own(hidden)
    node = own.losses(tokens, graph.x, own.linked_pairs(graph))["node"]
    told = own.decode_nodes(tokens.code)
    expected = (told - (hidden if reference else hidden.detach())).square().mean()
    torch.testing.assert_close(node, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, hidden, retain_graph=True)[0] for loss in (node, expected)))


def test_hidden_states_are_coded_as_they_are_or_mapped_and_brought_to_one_scale():
    hidden = hidden_of(GRAPH).detach()
    direct = tokenizer(code_dim="hidden")
    assert torch.equal(direct.project(hidden), hidden)
    assert direct.codebook.code_dim == 8
    assert tokenizer(code_dim=None).project(hidden).shape == (36, 10)
    own = tokenizer()
    projected = own.project(hidden)
    torch.testing.assert_close(projected.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(projected.var(0, unbiased=False), torch.ones(4), atol=1e-3, rtol=0)
    assert not list(own.project[1].parameters())


def test_figures_are_of_the_codes_given():
    index = torch.tensor([0, 0, 1, 3])
    assert tokenizer().figures(index) == {"usage": usage(index, 6), "perplexity": perplexity(index, 6)}


def test_reconstruction_gives_the_losses_of_its_tokenizer_and_nothing_else():
    hidden = hidden_of(GRAPH).detach()
    own = tokenizer()
    task = Reconstruction(own)
    output = task(hidden, GRAPH.x, own.linked_pairs(GRAPH))
    assert list(output.extra) == ["commitment", "node", "edge"]
    sum(output.extra.values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in task.parameters())
    task.eval()(hidden, GRAPH.x, own.linked_pairs(GRAPH))
    assert task.observe() == own.figures(own(hidden).index)


# -- beside ----------------------------------------------------------------------------------------------------------


@backbones
def test_beside_leaves_the_teacher_as_it_is_without(backbone):
    options = {"dropout": 0.3, "norm": "batch", "select": "loss", "seed": 3}
    alone, beside = plain(backbone, **options).fit(GRAPH), teacher("beside", backbone, **options).fit(GRAPH)
    of_gnn = {k.removeprefix("gnn."): v for k, v in weights(beside).items() if k.startswith("gnn.")}
    assert same_bits(weights(alone), of_gnn)
    assert torch.equal(alone.predict_logits(GRAPH), beside.predict_logits(GRAPH))
    assert beside.history_.epochs == alone.history_.epochs
    assert beside.evaluate(GRAPH) == alone.evaluate(GRAPH)
    a, b = alone.outputs(GRAPH), beside.outputs(GRAPH)
    assert torch.equal(a.hidden, b.hidden)
    assert torch.equal(a.low_target, b.low_target)
    assert {k: v for k, v in b.meta.items() if k not in {"seconds", "figures", "teacher"}} == {
        k: v for k, v in a.meta.items() if k not in {"seconds", "figures", "teacher"}
    }


def test_beside_learns_to_tell_features_from_codes():
    records = []
    trained = teacher("beside", max_epochs=60, num_codes=9, edge_weight=1.0).fit(GRAPH, on_epoch=records.append)
    of_codes = [record for record in records if "node" in record]
    assert len(records) == len(trained.history_) + len(of_codes)
    for part in ("node", "loss"):  # not edges: their decoder starts as the identity, and is good at once
        assert of_codes[-1][part] < 0.9 * of_codes[0][part]
    best = max(of_codes, key=lambda record: (record["val"], record["epoch"]))
    assert trained.meta_["figures"] == {name: best[name] for name in ("usage", "perplexity")}


# -- inside ----------------------------------------------------------------------------------------------------------


@backbones
def test_inside_trains_together_with_the_last_layer_behind_the_codes(backbone):
    trained = teacher("inside", backbone, max_epochs=30, patience=30, code_dim=4).fit(GRAPH)
    start = weights(teacher("inside", backbone, max_epochs=1, code_dim=4).fit(GRAPH))
    records = trained.history_.epochs
    assert {"label", "commitment", "node", "edge", "usage", "perplexity"} <= set(records[0])
    assert all(math.isfinite(value) for record in records for value in record.values())
    assert records[-1]["label"] < 0.7 * records[0]["label"]
    for name in ("tokenizer.codebook.codes", "tokenizer.project.0.weight", "tokenizer.decode_edges.weight"):
        assert not torch.equal(weights(trained)[name], start[name])
    before = trained.predict_logits(GRAPH)
    trained.model_.tokenizer.codebook.codes.zero_()
    assert not torch.allclose(trained.predict_logits(GRAPH), before)


@pytest.mark.filterwarnings("ignore:graph .* has no edges")
@backbones
def test_inside_nothing_of_a_node_but_its_code_reaches_the_last_layer(backbone):
    """Without edges nodes of one code have the same logits."""
    graph = blocks(edges=False)
    trained = teacher("inside", backbone).fit(graph)
    codes, logits = trained.outputs(graph).codes(), trained.predict_logits(graph)
    assert 1 < len(codes.unique()) < graph.num_nodes
    for code in codes.unique():
        members = logits[codes == code]
        torch.testing.assert_close(members, members[:1].expand_as(members))
    assert not torch.allclose(logits[codes == codes[0]][0], logits[codes != codes[0]][0])


def test_inside_the_gradient_of_the_labels_goes_past_the_codes():
    torch.manual_seed(0)
    gnn = {"num_layers": 3, "dropout": 0.0, "norm": "none"}
    model = TokenizedGNN("inside", "sage", 10, 8, 3, gnn=gnn, num_codes=6, code_dim=4)
    inputs, row = model.inputs_for(GRAPH, GRAPH.part("train"))
    assert torch.equal(row, torch.arange(36))
    output = model(*inputs)
    label = F.cross_entropy(output.logits, GRAPH.y)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(label, parameters, allow_unused=True), strict=True))
    unused = {name for name, gradient in gradients.items() if gradient is None}
    assert unused == {"tokenizer.decode_nodes.weight", "tokenizer.decode_nodes.bias"}
    assert gradients["gnn.backbone.convs.0.linear.weight"].any()
    assert model.eval()(*inputs).extra == {}


# -- the published network -------------------------------------------------------------------------------------------


def published(**options) -> TokenizedGNN:
    torch.manual_seed(0)
    gnn = {"num_layers": 2, "dropout": 0.0, "norm": "none"}
    model = TokenizedGNN("reference", "gcn", 10, 8, 3, gnn=gnn, **options)
    for parameter in model.parameters():  # zeros would hide a missing term
        if parameter.dim() == 1:
            nn.init.normal_(parameter)
    return model


def test_reference_has_the_published_defaults():
    own = published().tokenizer
    assert own.codebook.codes.shape == (1, 5000, 10)
    assert (own.codebook.metric, own.codebook.decay, own.codebook.dead_threshold) == ("cosine", 0.8, 0)
    assert (own.codebook.kmeans_iterations, own.codebook.renormalise) == (0, False)
    assert (own.node_weight, own.edge_weight, own.commitment) == (1e-3, 0.03, 0.25)
    assert (own.node_target, own.edge_decoder) == ("hidden", "minmax")
    assert not list(own.project.parameters())
    changed = published(num_codes=7, edge_weight=1.0).tokenizer
    assert (changed.codebook.num_codes, changed.edge_weight, changed.node_weight) == (7, 1.0, 1e-3)


def test_reference_is_the_published_network_and_its_losses():
    """GCN F wide → code → linear → GCN → ReLU → linear; mean squared errors, the edges' as a root."""
    model = published(num_codes=7)
    inputs, _ = model.inputs_for(GRAPH, GRAPH.part("train"))
    codes = model.tokenizer.codebook.codes[0].clone()
    output, dense = model(*inputs), symmetric_adjacency(GRAPH).to_dense()
    first, second = model.gnn.backbone.convs
    hidden = (dense @ first.linear(GRAPH.x) + first.bias).relu()
    code = codes[F.cosine_similarity(hidden[:, None], codes, dim=-1).argmax(1)]
    decoded = model.tokenizer.decode_edges(hidden + (code - hidden).detach())
    logits = model.classifier((dense @ second.linear(decoded) + second.bias).relu())
    torch.testing.assert_close(output.hidden, hidden)
    torch.testing.assert_close(output.logits, logits)
    assert hidden.shape == (36, 10)
    assert decoded.shape == (36, 10)
    expected = {
        "commitment": 0.25 * F.mse_loss(hidden, code),
        "node": 1e-3 * F.mse_loss(model.tokenizer.decode_nodes(hidden + (code - hidden).detach()), hidden),
        "edge": 0.03 * min_max(decoded, adjacency_of(GRAPH)),
    }
    assert output.extra.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(output.extra[name], value, rtol=1e-4, atol=1e-7)
        weight = first.linear.weight
        mine, theirs = (torch.autograd.grad(v, weight, retain_graph=True)[0] for v in (output.extra[name], value))
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("options", [{"model": "sage"}, {"num_layers": 3}, {"model": "gat"}])
def test_reference_is_of_one_shape(options):
    with pytest.raises(G2MError, match="tokenizer: 'reference' is a 'gcn' of 2 layers"):
        teacher("reference", **options).fit(GRAPH)


@pytest.mark.parametrize("code_dim", [1, 4, None])
def test_reference_has_codes_of_one_width(code_dim):
    with pytest.raises(G2MError, match="code_dim"):
        teacher("reference", code_dim=code_dim).fit(GRAPH)


@pytest.mark.parametrize(("place", "codes"), [("inside", 6), ("reference", 1)])
def test_dropout_falls_behind_the_codes_inside_and_before_them_in_the_published_form(place, codes):
    """All of it is dropped: the last layer reads nothing, or the codes are of nothing."""
    torch.manual_seed(0)
    gnn = {"num_layers": 2, "dropout": 1.0, "norm": "none"}
    model = TokenizedGNN(place, "gcn", 10, 8, 3, gnn=gnn, num_codes=6)
    inputs, _ = model.inputs_for(GRAPH, GRAPH.part("train"))
    output = model.train()(*inputs)
    assert round(6 * model.observe()["usage"]) == codes
    assert torch.allclose(output.logits, output.logits[:1].expand(36, 3)) == (place == "inside")
    assert output.hidden.any()


# -- what every teacher with a tokenizer gives -----------------------------------------------------------------------

OPTIONS = {
    "inside": {"dropout": 0.3, "code_metric": "cosine", "code_dim": 4},
    "beside": {"code_levels": 2, "edge_decoder": "sigmoid", "code_dim": None},
    "reference": {"dropout": 0.3, "code_metric": "euclidean"},
}
WIDTHS = {"hidden": 8, None: 10, 4: 4}


@places
@pytest.mark.parametrize("unseen", [False, True], ids=["transductive", "inductive"])
def test_codes_given_are_those_of_the_tokenizer(place, unseen):
    graph = blocks(unseen=unseen)
    for options in ({}, OPTIONS[place]):
        trained = teacher(place, **options).fit(graph)
        outputs = trained.outputs(graph)
        with torch.no_grad():
            index = trained.model_.tokenizer.eval()(outputs.hidden).index
        assert torch.equal(outputs.codes(), index)
        assert len(index.unique()) > 1
        assert outputs.code_metric == options.get("code_metric", "cosine" if place == "reference" else "euclidean")
        levels = (2,) if "code_levels" in options else ()
        width = 10 if place == "reference" else WIDTHS[options.get("code_dim", "hidden")]
        assert outputs.codebook.shape == (*levels, 6, width)
        figures = {"usage": usage(index, 6), "perplexity": perplexity(index, 6)}
        assert trained.meta_["figures"] == outputs.meta["figures"] == pytest.approx(figures)


@pytest.mark.parametrize("place", ["inside", "reference"])
def test_every_epoch_says_how_many_codes_are_in_use(place):
    trained = teacher(place).fit(GRAPH)
    for record in trained.history_.epochs:
        assert 1 / 6 <= record["usage"] <= 1
        assert 1 <= record["perplexity"] <= 6 * record["usage"] + 1e-4
    best = trained.history_.epochs[trained.history_.best_epoch]
    assert trained.meta_["figures"] == {name: best[name] for name in ("usage", "perplexity")}


@pytest.mark.parametrize("node_target", NODE_TARGETS)
@pytest.mark.parametrize("edge_decoder", EDGE_DECODERS)
def test_same_seed_same_bits_under_every_decoder(node_target, edge_decoder):
    options = {"node_target": node_target, "edge_decoder": edge_decoder, "dropout": 0.3}
    for place in ("inside", "beside"):
        first, again, other = (teacher(place, seed=seed, **options).fit(GRAPH) for seed in (0, 0, 1))
        assert same_bits(weights(first), weights(again))
        assert first.meta_["figures"] == again.meta_["figures"]
        assert not same_bits(weights(first), weights(other))


@places
def test_a_saved_teacher_gives_the_same(place, tmp_path):
    trained = teacher(place, **OPTIONS[place]).fit(GRAPH)
    loaded = Teacher.load(trained.save(tmp_path / "teacher.safetensors"))
    assert same_bits(weights(trained), weights(loaded))
    assert loaded.meta_ == trained.meta_
    assert trained.history_.seconds == pytest.approx(loaded.history_.seconds, abs=1e-3)
    assert loaded.params() == trained.params() | {"device": "auto"}
    first, second = trained.outputs(GRAPH), loaded.outputs(GRAPH)
    assert first.fingerprint() == second.fingerprint()
    assert first.meta == second.meta
    third = TeacherOutputs.load(first.save(tmp_path / "outputs.safetensors"))
    assert torch.equal(third.codes(), second.codes())


@places
def test_seconds_are_those_of_all_that_was_trained(place, monkeypatch):
    def timed(*given, **options):
        history = fit(*given, **options)
        history.seconds = float(next(seconds))
        return history

    fit, seconds = estimators.fit, iter([10, 200])
    monkeypatch.setattr(estimators, "fit", timed)
    trained = teacher(place, **OPTIONS[place]).fit(GRAPH)
    assert trained.history_.seconds == trained.meta_["seconds"] == (210 if place == "beside" else 10)


# -- the cache -------------------------------------------------------------------------------------------------------


@pytest.fixture
def trainings(monkeypatch):
    """The models that the training loop was asked to train."""
    seen, fit = [], estimators.fit
    monkeypatch.setattr(
        estimators, "fit", lambda model, *a, **k: (seen.append(type(model).__name__), fit(model, *a, **k))[1]
    )
    return seen


@places
def test_a_cached_teacher_is_not_trained_again(place, tmp_path, trainings):
    first = teacher(place).fit(GRAPH, cache=tmp_path)
    files = {path.name for path in (tmp_path / "teachers").iterdir()}
    assert len(files) == len(trainings) == (2 if place == "beside" else 1)
    trainings.clear()
    again = teacher(place).fit(GRAPH, cache=tmp_path)
    assert not trainings
    assert {path.name for path in (tmp_path / "teachers").iterdir()} == files
    assert first.outputs(GRAPH).fingerprint() == again.outputs(GRAPH).fingerprint()
    assert again.meta_ == first.meta_
    assert same_bits(weights(first), weights(teacher(place).fit(GRAPH)))
    teacher(place, num_codes=5).fit(GRAPH, cache=tmp_path)
    assert trainings.count("TokenizedGNN" if place != "beside" else "Reconstruction") == 2  # without cache, and this


def test_beside_takes_the_plain_teacher_from_the_cache(tmp_path, trainings):
    alone = plain().fit(GRAPH, cache=tmp_path)
    assert trainings == ["GNN"]
    teacher("beside").fit(GRAPH, cache=tmp_path)
    beside = teacher("beside", num_codes=9).fit(GRAPH, cache=tmp_path)
    assert trainings == ["GNN", "Reconstruction", "Reconstruction"]
    assert torch.equal(alone.predict_logits(GRAPH), beside.predict_logits(GRAPH))


# -- arguments -------------------------------------------------------------------------------------------------------


def test_options_are_those_of_the_tokenizer_but_for_the_form_of_it():
    signature = inspect.signature(Tokenizer).parameters
    assert set(tokenizer_options()) == set(signature) - {"hidden_channels", "num_features", "reference"}
    assert repr(Teacher("gcn", tokenizer="inside", num_codes=9)) == "Teacher('gcn', tokenizer='inside', num_codes=9)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Teacher(num_codes=5), "num_codes: an option of a tokenizer"),
        (lambda: Teacher(tokenizer="insied"), "tokenizer: .*Did you mean 'inside'"),
        (lambda: Teacher(tokenizer=True), "tokenizer: expected one of"),
        (lambda: Teacher(tokenizer="inside", num_code=5), "unknown key 'num_code'.*Did you mean 'num_codes'"),
        (lambda: Teacher("gcn", tokenizer="inside", reference=True), "unknown key 'reference'"),
        (lambda: Teacher(nn.Linear(2, 2), tokenizer="inside"), "tokenizer: a module has its own shape"),
        (lambda: Teacher(nn.Linear(2, 2), num_codes=5), "num_codes"),
        (lambda: Teacher(tokenizer="inside", fan_out=[2, 2]), "fan_out: .*no tokenizer but 'beside'"),
        (lambda: Teacher(tokenizer="reference", fan_out=[2, 2]), "fan_out: .*no tokenizer but 'beside'"),
    ],
)
def test_wrong_arguments_are_refused_at_once(make, message):
    with pytest.raises(G2MError, match=message):
        make()


def test_reference_of_the_backbone_is_still_its_own():
    model = teacher("inside", "sage", reference=True).fit(GRAPH).model_
    assert model.gnn.backbone.reference
    assert not model.tokenizer.reference


WRONG = {
    "num_codes": [1, 2.5],
    "code_dim": [0, 1.5, True, "hiden"],
    "code_metric": ["cosin"],
    "code_levels": [0, 1.5],
    "code_decay": [-0.1, 1.1, math.nan],
    "kmeans_iterations": [-1],
    "dead_threshold": [-1],
    "node_weight": [-1, math.inf],
    "node_target": ["feature"],
    "edge_weight": [-1, math.nan],
    "edge_decoder": ["min-max"],
    "commitment": [-0.1],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_wrong_values_are_refused_by_name(name, value):
    with pytest.raises(G2MError, match=f"^{name}: expected"):
        tokenizer(**{name: value})
    with pytest.raises(G2MError, match=f"^{name}: expected"):
        teacher("inside", **{name: value}).fit(GRAPH)


def test_levels_under_cosine_are_refused_by_name():
    with pytest.raises(G2MError, match=r"^code_levels: expected 1 under the cosine metric"):
        tokenizer(code_levels=2, code_metric="cosine")


def test_a_tokenizer_beside_that_nothing_trains_is_refused_before_its_network_is():
    def never(record):
        raise AssertionError("trained")

    untrained = {"node_weight": 0, "edge_weight": 0}
    with pytest.raises(G2MError, match=r"^node_weight, edge_weight: expected one above 0"):
        teacher("beside", **untrained).fit(GRAPH, on_epoch=never)
    teacher("beside", code_dim=5, **untrained, max_epochs=2).fit(GRAPH)
    teacher("inside", **untrained, max_epochs=2).fit(GRAPH)


@places
def test_a_teacher_of_one_layer_has_no_hidden_state_to_code(place):
    with pytest.raises(G2MError, match="num_layers: a tokenizer needs a hidden state"):
        teacher(place, num_layers=1).fit(GRAPH)
