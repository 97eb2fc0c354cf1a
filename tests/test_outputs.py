"""TeacherOutputs: checked when built, when loaded and when used; nothing of unseen nodes in it."""

from dataclasses import replace

import pytest
import torch
from cases import blocks, outputs_of, same_bits, student, weights
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, nn

from g2m import storage
from g2m.codebook import CODE_METRICS
from g2m.errors import G2MError
from g2m.estimators import Student, Teacher
from g2m.outputs import TeacherOutputs

FIELDS = ("node_id", "logits", "hidden", "low_target", "entropy_change", "codebook", "code_input")


@pytest.fixture
def outputs():
    return outputs_of(blocks())


def with_nan(tensor, row):
    tensor = tensor.clone()
    tensor[row, 1] = float("nan")
    return tensor


def in_levels(codebook):
    """Two levels: other codes, and these."""
    return torch.stack([codebook.flip(1) + 1, codebook])


LOW = r"low_target: expected probabilities summed .* in row "
CASES = {
    "ids are floats": (lambda o: {"node_id": o.node_id.float()}, "node_id: expected int64"),
    "ids are 32-bit": (lambda o: {"node_id": o.node_id.int()}, "node_id: expected int64"),
    "ids are a matrix": (lambda o: {"node_id": o.node_id[:, None]}, "node_id: expected int64"),
    "no rows": (lambda o: {"node_id": o.node_id[:0]}, "M at least 1"),
    "ids negative": (lambda o: {"node_id": o.node_id - 1}, "node_id: .*from 0"),
    "ids out of order": (lambda o: {"node_id": o.node_id.flip(0)}, "ascending"),
    "an id twice": (lambda o: {"node_id": o.node_id // 2}, "strictly ascending"),
    "logits flat": (lambda o: {"logits": o.logits[:, 0]}, r"logits: expected \[M, C\]"),
    "one class": (lambda o: {"logits": o.logits[:, :1]}, "C at least 2"),
    "logits are integers": (lambda o: {"logits": o.logits.long()}, "logits: expected a floating-point"),
    "a row missing": (lambda o: {"logits": o.logits[1:]}, "logits: expected 36 rows"),
    "hidden short": (lambda o: {"hidden": o.hidden[:-1]}, "hidden: expected 36 rows"),
    "hidden flat": (lambda o: {"hidden": o.hidden[:, 0]}, "hidden: expected a floating-point matrix"),
    "logits NaN": (lambda o: {"logits": with_nan(o.logits, 5)}, "logits: expected finite.*row 5"),
    "hidden NaN": (lambda o: {"hidden": with_nan(o.hidden, 7)}, "hidden: expected finite.*row 7"),
    "codebook NaN": (lambda o: {"codebook": with_nan(o.codebook, 2)}, "codebook: expected finite.*row 2"),
    "logits infinite": (lambda o: {"logits": o.logits / 0}, "logits: expected finite"),
    "low_target wide": (lambda o: {"low_target": o.hidden}, "low_target: expected"),
    "low_target negative": (
        lambda o: {"low_target": o.low_target.clone().index_fill_(0, torch.tensor(3), -1)},
        LOW + "3",
    ),
    "low_target of nothing": (
        lambda o: {"low_target": o.low_target * (torch.arange(36) != 4)[:, None]},
        LOW + "4, sum 0",
    ),
    "low_target of less than the node": (lambda o: {"low_target": o.soft_labels() * 0.99}, LOW + "0, sum 0.99"),
    "codebook flat": (lambda o: {"codebook": o.codebook[0]}, "codebook: expected a floating-point"),
    "codebook of four axes": (lambda o: {"codebook": o.codebook[None, None]}, "codebook: expected a floating-point"),
    "codebook NaN at a level": (
        lambda o: {"codebook": in_levels(with_nan(o.codebook, 2))},
        "codebook: expected finite",
    ),
    "codes of other width at levels": (lambda o: {"codebook": in_levels(o.codebook)[..., :4]}, "expected 4 columns"),
    "code_metric unknown": (lambda o: {"code_metric": "cosin"}, "code_metric: expected one of.*Did you mean 'cosine'"),
    "codebook alone": (lambda o: {"code_input": None}, "both or neither"),
    "code_input alone": (lambda o: {"codebook": None}, "both or neither"),
    "codes of other width": (lambda o: {"codebook": o.codebook[:, :4]}, "code_input: expected 4 columns"),
    "entropy_change flat": (lambda o: {"entropy_change": o.entropy_change[:, 0]}, "entropy_change: expected a float"),
    "entropy_change wide": (lambda o: {"entropy_change": o.hidden.abs()}, r"entropy_change: expected \[M, 1\] from 0"),
    "entropy_change negative": (lambda o: {"entropy_change": -o.entropy_change}, "entropy_change: .*from 0"),
    "entropy_change short": (lambda o: {"entropy_change": o.entropy_change[1:]}, "entropy_change: expected 36 rows"),
    "entropy_change infinite": (lambda o: {"entropy_change": o.entropy_change / 0}, "entropy_change: expected finite"),
    "hidden an array": (lambda o: {"hidden": o.hidden.numpy()}, r"hidden: expected a tensor \(got ndarray\)"),
    "transforms of arrays": (lambda o: {"transforms": (o.hidden.numpy(),)}, "transforms: expected a tensor"),
    "transforms flat": (lambda o: {"transforms": (o.hidden, o.hidden[0])}, "transforms: .*number 1"),
    "transforms NaN": (lambda o: {"transforms": (with_nan(o.hidden, 2),)}, "transforms: .*number 0"),
    "transforms of integers": (lambda o: {"transforms": (o.hidden, o.hidden.long())}, "transforms: .*number 1"),
}


@pytest.mark.parametrize("case", CASES)
def test_refuses(case, outputs):
    change, message = CASES[case]
    with pytest.raises(G2MError, match=message):
        replace(outputs, **change(outputs))


@pytest.mark.parametrize("name", ["glnn", "ff_g2m", "krd", "nosmog", "vqgraph", "tined", "hidden", "propagated"])
def test_a_teacher_is_a_constant_whatever_it_was_made_with(name, outputs):
    fields = {f: 1 * getattr(outputs, f).requires_grad_() for f in FIELDS[1:]}
    fields["transforms"] = tuple(1 * weight.requires_grad_() for weight in outputs.transforms)
    made = replace(outputs, **fields)
    assert not any(getattr(made, f).requires_grad for f in FIELDS)
    assert not any(weight.requires_grad for weight in made.transforms)
    first, second = (student(name, batch_size=8).fit(blocks(), given) for given in (made, outputs_of(blocks())))
    assert same_bits(weights(first), weights(second))


def test_optional_fields_may_be_missing(outputs):
    bare = TeacherOutputs(outputs.node_id, outputs.logits)
    assert all(getattr(bare, field) is None for field in (*FIELDS[2:], "transforms"))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_low_target_of_nodes_alone_is_taken_in_any_precision(dtype):
    """Rows of sum 1, but for rounding."""
    logits = 3 * torch.randn(2000, 40, generator=Generator().manual_seed(0)).to(dtype)
    p = logits.softmax(1)
    assert (p.sum(1, dtype=torch.float64) < 1).any()
    assert TeacherOutputs(torch.arange(2000), logits, low_target=p).low_target is not None
    with pytest.raises(G2MError, match="low_target: expected probabilities"):
        TeacherOutputs(torch.arange(2000), logits, low_target=p / 2)


@pytest.mark.parametrize(
    ("edge_index", "message"),
    [
        (
            [[-1], [0]],
            r"edge_index: expected node ids in \[0, 35\], rows .*got \[-1, 0\].*graph\.observed\(\)\.edge_index",
        ),
        ([[0], [36]], r"edge_index: .*got \[0, 36\].*graph\.observed\(\)\.edge_index"),
        ([[0, 1], [1, 2], [2, 3]], r"edge_index: expected shape \[2, E\] \(got \(3, 2\)\)"),
        ([[0.0], [1.0]], r"edge_index: .*got torch\.float32"),
    ],
)
def test_high_pass_checks_its_edges(edge_index, message, outputs):
    with pytest.raises(G2MError, match=message):
        outputs.high_pass(torch.tensor(edge_index))


@settings(max_examples=30)
@given(st.floats(0.1, 10), st.integers(0, 99))
def test_soft_labels_equal_their_formula(tau, seed):
    logits = 3 * torch.randn(4, 3, generator=Generator().manual_seed(seed), dtype=torch.float64)
    outputs = TeacherOutputs(torch.arange(4), logits)
    power = torch.exp(logits / tau)
    expected = power / power.sum(1, keepdim=True)
    torch.testing.assert_close(outputs.soft_labels(tau), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(outputs.log_soft_labels(tau), expected.log(), rtol=1e-10, atol=1e-10)


def test_soft_labels_at_one_are_probabilities(outputs):
    torch.testing.assert_close(outputs.soft_labels(), outputs.logits.softmax(-1))


@pytest.mark.parametrize("tau", [0, -1.0, float("nan"), "1"])
def test_temperature_is_above_zero(tau, outputs):
    with pytest.raises(G2MError, match="tau"):
        outputs.soft_labels(tau)


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bare", [False, True])
def test_save_and_load(bare, outputs, tmp_path):
    outputs = TeacherOutputs(outputs.node_id, outputs.logits, meta=outputs.meta) if bare else outputs
    loaded = TeacherOutputs.load(outputs.save(tmp_path / "outputs.safetensors"))
    assert loaded.meta == outputs.meta
    assert repr(loaded) == repr(outputs)
    for field in FIELDS:
        first, second = getattr(outputs, field), getattr(loaded, field)
        assert (first is None and second is None) or torch.equal(first, second)
    for first, second in zip(outputs.transforms or (), loaded.transforms or (), strict=True):
        assert torch.equal(first, second)
    assert (loaded.transforms is None) == bare
    assert loaded.fingerprint() == outputs.fingerprint()


def test_many_transforms_keep_their_order(outputs, tmp_path):
    outputs = replace(outputs, transforms=tuple(torch.full((2, i + 1), float(i)) for i in range(12)))
    loaded = TeacherOutputs.load(outputs.save(tmp_path / "o"))
    assert [weight.shape[1] for weight in loaded.transforms] == list(range(1, 13))


CHANGED = {field: lambda o, field=field: {field: getattr(o, field) + 1} for field in FIELDS}
CHANGED |= {
    "transforms": lambda o: {"transforms": (o.transforms[0], o.transforms[1] + 1)},
    "order of transforms": lambda o: {"transforms": o.transforms[::-1]},
    "no transforms": lambda o: {"transforms": None},
    "no entropy_change": lambda o: {"entropy_change": None},
    "code_metric": lambda o: {"code_metric": "euclidean"},
}


@pytest.mark.parametrize("what", CHANGED)
def test_the_fingerprint_is_of_everything(what, outputs):
    assert replace(outputs, **CHANGED[what](outputs)).fingerprint() != outputs.fingerprint()
    assert replace(outputs, meta={}).fingerprint() == outputs_of(blocks()).fingerprint()


def test_fields_that_share_memory_are_saved(outputs, tmp_path):
    outputs = replace(outputs, code_input=outputs.hidden)
    assert torch.equal(TeacherOutputs.load(outputs.save(tmp_path / "o")).code_input, outputs.hidden)


ROWS = {"node_id": torch.arange(2), "logits": torch.eye(2)}


@pytest.mark.parametrize(
    "tensors",
    [
        {"logits": torch.eye(2)},
        {**ROWS, "x": torch.eye(2)},
        {**ROWS, "transforms.first": torch.eye(2)},
        {**ROWS, "transforms.1": torch.eye(2)},
    ],
    ids=lambda tensors: ", ".join(tensors),
)
def test_a_file_of_other_fields_is_refused(tensors, tmp_path):
    path = storage.write(tmp_path / "o", "outputs", tensors, {})
    with pytest.raises(G2MError, match="does not hold teacher outputs"):
        TeacherOutputs.load(path)


def test_what_is_wrong_when_built_is_wrong_when_loaded(tmp_path):
    path = storage.write(tmp_path / "o", "outputs", {"node_id": torch.tensor([1, 0]), "logits": torch.eye(2)}, {})
    with pytest.raises(G2MError, match="ascending"):
        TeacherOutputs.load(path)


def test_a_teacher_file_is_no_outputs_file(tmp_path):
    teacher = Teacher("gcn", hidden_channels=4, max_epochs=1, device="cpu").fit(blocks())
    with pytest.raises(G2MError, match="expected a outputs file"):
        TeacherOutputs.load(teacher.save(tmp_path / "t"))


# -- belonging -------------------------------------------------------------------------------------------------------


def test_only_observed_nodes_have_rows():
    graph = blocks(unseen=True)
    outputs = Teacher("gcn", hidden_channels=4, max_epochs=2, device="cpu").fit(graph).outputs(graph)
    unseen = set(graph.part("unseen").tolist())
    assert set(outputs.node_id.tolist()) == set(range(graph.num_nodes)) - unseen
    assert len(outputs.logits) == len(outputs.hidden) == graph.num_nodes - len(unseen)
    assert outputs.meta["setting"] == "inductive"
    assert outputs.meta["fingerprint"] == graph.observed().fingerprint()


def drop_edge(graph):
    return replace(graph, edge_index=graph.edge_index[:, 1:])


def other_split(graph):
    return graph.with_split(graph.split | {"train": graph.part("train")[1:]})


def other_label(graph):
    y = graph.y.clone()
    y[0] = (y[0] + 1) % 3
    return replace(graph, y=y)


OTHERS = {
    "features": lambda g: replace(g, x=g.x + 1e-3),
    "edges": drop_edge,
    "labels": other_label,
    "split": other_split,
    "setting": lambda g: blocks(unseen=True),
    "unseen nodes": lambda g: g.inductive(seed=1),
}


@pytest.mark.parametrize("what", OTHERS)
def test_student_refuses_outputs_of_another_graph(what):
    graph = blocks()
    outputs, other = outputs_of(graph), OTHERS[what](graph)
    for made_on, used_on in ((graph, other), (other, graph)):
        with pytest.raises(G2MError, match=r"made on another graph, split or setting.*teacher\.outputs"):
            Student("glnn", device="cpu").fit(used_on, outputs_of(made_on))
    assert outputs.check(graph) is None
    assert outputs.check(replace(graph, name="by another name")) is None


class Network(nn.Module):
    def forward(self, x, edge_index):
        return x[:, :3]


@pytest.mark.parametrize("what", OTHERS)
def test_a_teacher_gives_no_outputs_of_another_graph(what, tmp_path):
    """They would pass for those of a teacher that has seen no more than a student of that graph may."""
    graph = blocks()
    other = OTHERS[what](graph)
    for fitted_on, asked_on in ((graph, other), (other, graph)):
        taught = Teacher("gcn", hidden_channels=4, max_epochs=1, device="cpu").fit(fitted_on)
        by_hand = Teacher.from_trained(Network(), fitted_on)
        for one in (taught, Teacher.load(taught.save(tmp_path / "t")), by_hand):
            with pytest.raises(G2MError, match=r"graph: expected .*fitted on .*Fit a teacher on this graph"):
                one.outputs(asked_on)
            one.outputs(replace(fitted_on, name="by another name")).check(fitted_on)


def test_student_refuses_outputs_of_other_unseen_nodes():
    graph = blocks()
    with pytest.raises(G2MError, match="made on another graph"):
        Student("glnn").fit(graph.inductive(seed=1), outputs_of(graph.inductive(seed=0)))


def test_outputs_without_a_fingerprint_are_refused(outputs):
    with pytest.raises(G2MError, match="fingerprint None"):
        replace(outputs, meta={}).check(blocks())


# -- derived knowledge and belonging -------------------------------------------------------------------------------


@pytest.mark.parametrize("unseen", [False, True])
def test_a_teacher_hands_over_the_sums_over_neighbourhoods(unseen):
    graph = blocks(unseen=unseen)
    observed = graph.observed()
    outputs = Teacher("gcn", hidden_channels=8, max_epochs=3).fit(graph).outputs(graph)
    dense = torch.eye(observed.num_nodes)
    dense[observed.edge_index[1], observed.edge_index[0]] = 1
    torch.testing.assert_close(outputs.low_target, dense @ outputs.soft_labels())
    torch.testing.assert_close(outputs.low_pass(), dense @ outputs.soft_labels() / dense.sum(1, keepdim=True))


def test_high_pass_is_how_ends_differ_whatever_the_offset(outputs):
    edges = torch.tensor([[0, 3, 5], [1, 3, 0]])
    high = outputs.high_pass(edges)
    logits = outputs.logits - outputs.logits.mean(1, keepdim=True)
    torch.testing.assert_close(high, (logits[[0, 3, 5]] - logits[[1, 3, 0]]).abs())
    assert not high[1].any()
    shift = torch.arange(36.0)[:, None]
    torch.testing.assert_close(replace(outputs, logits=outputs.logits + shift).high_pass(edges), high)


def test_low_pass_says_where_it_comes_from(outputs):
    with pytest.raises(G2MError, match=r"low_target: not in these outputs.*teacher\.outputs"):
        replace(outputs, low_target=None).low_pass()


def test_a_graph_without_edges_will_do_only_where_that_is_said():
    graph = blocks(unseen=True)
    outputs = Teacher("gcn", hidden_channels=8, max_epochs=3).fit(graph).outputs(graph)
    alone = graph.without_edges()
    outputs.check(alone, edges=False)
    outputs.check(graph, edges=False)
    with pytest.raises(G2MError, match="takes edges"):
        outputs.check(alone)
    other = replace(alone, x=alone.x + (torch.arange(36) == 0)[:, None])
    fewer = replace(graph, edge_index=graph.edge_index[:, 2:])
    for wrong in (other, fewer):
        with pytest.raises(G2MError, match="another graph"):
            outputs.check(wrong, edges=False)
    bare = replace(outputs, meta={"fingerprint": outputs.meta["fingerprint"]})
    with pytest.raises(G2MError, match="another graph"):
        bare.check(alone, edges=False)


# -- codes -----------------------------------------------------------------------------------------------------------

KINDS = {
    "cosine": {},
    "euclidean": {"code_metric": "euclidean"},
    "one level": {"levels": slice(1, 2), "code_metric": "cosine"},
    "two levels": {"levels": slice(0, 2), "code_metric": "euclidean"},
}


@pytest.fixture(params=KINDS)
def coded(request, outputs):
    """Outputs with a codebook as a matrix, or with one more axis."""
    kind = dict(KINDS[request.param])
    levels = kind.pop("levels", None)
    return replace(
        outputs, codebook=outputs.codebook if levels is None else in_levels(outputs.codebook)[levels], **kind
    )


def expected_assignments(outputs, tau):
    """Codes ``[M, L]`` and probabilities ``[M, L, K]``, level by level in double precision."""
    x, codes, shares = outputs.code_input.double(), [], []
    levels = outputs.codebook.double().reshape(-1, *outputs.codebook.shape[-2:])
    for level in levels:
        if outputs.code_metric == "cosine":
            score = torch.cosine_similarity(x[:, None], level[None], dim=-1)
        else:
            score = -torch.cdist(x, level).square() / (2 * levels[0].square().sum(1).mean())
        codes.append(score.argmax(1))
        shares.append((score / tau).softmax(1))
        x = x - level[codes[-1]]
    return torch.stack(codes, 1), torch.stack(shares, 1)


def test_codes_and_assignments_equal_their_formula(coded):
    codes, shares = expected_assignments(coded, 0.2)
    if coded.codebook.dim() == 2:
        codes, shares = codes[:, 0], shares[:, 0]
    assert torch.equal(coded.codes(), codes)
    assert len(codes.unique()) > 2
    found = coded.code_assignments(0.2)
    torch.testing.assert_close(found.double(), shares, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))
    assert torch.equal(found.argmax(-1), coded.codes())
    rows = torch.tensor([7, 0, 7, 30])
    torch.testing.assert_close(coded.code_assignments(0.2, rows), found[rows])


def test_code_perplexity_is_how_many_codes_an_assignment_spreads_over(coded, monkeypatch):
    _, shares = expected_assignments(coded, 0.2)
    expected = float(torch.exp(-(shares * shares.log()).sum(-1).mean()))
    assert coded.code_perplexity(0.2) == pytest.approx(expected, rel=1e-4)
    assert coded.code_perplexity(1e-4) == pytest.approx(1, abs=1e-3)
    assert coded.code_perplexity(1e4) == pytest.approx(5, abs=1e-3)
    for most, step in ((36, 1), (35, 2), (12, 3), (5, 8), (1, 36)):  # nodes, evenly spaced
        some = shares[::step]
        expected_of_some = float(torch.exp(-(some * some.log()).sum(-1).mean()))
        assert coded.code_perplexity(0.2, most=most) == pytest.approx(expected_of_some, rel=1e-4)
    monkeypatch.setattr("g2m.outputs.SCORES", 12)  # one or two rows at a time
    assert coded.code_perplexity(0.2) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("tau", [0, -1.0, float("nan"), "1"])
def test_temperature_of_codes_is_above_zero(tau, outputs):
    for call in (outputs.code_assignments, outputs.code_perplexity):
        with pytest.raises(G2MError, match="tau"):
            call(tau)


def test_a_codebook_as_levels_is_the_same_for_one(outputs):
    assert torch.equal(outputs.code_levels[0], outputs.codebook)
    one = replace(outputs, codebook=outputs.codebook[None])
    assert one.code_levels is one.codebook
    assert torch.equal(one.codes()[:, 0], outputs.codes())
    assert torch.equal(one.code_assignments(0.1)[:, 0], outputs.code_assignments(0.1))
    assert one.code_perplexity(0.1) == outputs.code_perplexity(0.1)


def test_codes_say_where_they_come_from(outputs):
    bare = TeacherOutputs(outputs.node_id, outputs.logits)
    for call in (bare.codes, lambda: bare.code_assignments(0.1), lambda: bare.code_perplexity(0.1)):
        with pytest.raises(G2MError, match=r"codebook: not in these outputs.*tokenizer='beside'"):
            call()


@pytest.mark.parametrize("metric", CODE_METRICS)
def test_how_codes_are_looked_up_is_kept_in_the_file(metric, outputs, tmp_path):
    outputs = replace(outputs, code_metric=metric, codebook=in_levels(outputs.codebook)[:1])
    loaded = TeacherOutputs.load(outputs.save(tmp_path / "o"))
    assert loaded.code_metric == metric
    assert loaded.meta == outputs.meta
    assert torch.equal(loaded.codebook, outputs.codebook)
    assert torch.equal(loaded.codes(), outputs.codes())


def test_a_file_from_before_there_was_a_choice_is_of_cosine(outputs, tmp_path):
    tensors = {name: getattr(outputs, name) for name in FIELDS}
    assert TeacherOutputs.load(storage.write(tmp_path / "o", "outputs", tensors, {})).code_metric == "cosine"
    path = storage.write(tmp_path / "o", "outputs", tensors, {"code_metric": "no such"})
    with pytest.raises(G2MError, match="code_metric"):
        TeacherOutputs.load(path)


# -- how steady a teacher is, and what it is made of -----------------------------------------------------------------


def entropy(p):
    return -torch.special.xlogy(p, p).sum(1)


@pytest.mark.parametrize("unseen", [False, True])
@pytest.mark.parametrize("draws", [1, 3])
def test_entropy_change_is_how_far_noise_moves_the_entropy(draws, unseen):
    graph = blocks(unseen=unseen)
    graph = replace(graph, x=graph.x * torch.arange(10.0))  # the first column has no spread, and gets no noise
    observed = graph.observed()
    taught = Teacher("gcn", hidden_channels=8, max_epochs=3, dropout=0.5, seed=4, device="cpu").fit(graph)
    before, generator, total = entropy(taught.predict_proba(observed)), Generator().manual_seed(4), 0
    for _ in range(draws):
        noise = torch.randn(observed.x.shape, generator=generator) * observed.x.std(0, correction=0)
        assert not noise[:, 0].any()
        total = total + (entropy(taught.predict_proba(replace(observed, x=observed.x + noise))) - before).abs()
    outputs = taught.outputs(graph, noise_draws=draws)
    assert outputs.entropy_change.shape == (observed.num_nodes, 1)
    torch.testing.assert_close(outputs.entropy_change[:, 0], total / draws, rtol=1e-3, atol=1e-5)
    assert outputs.entropy_change.min() >= 0
    assert len(outputs.entropy_change.unique()) > 10
    again, other = taught.outputs(graph, noise_draws=draws), taught.outputs(graph, noise_draws=draws + 1)
    assert again.fingerprint() == outputs.fingerprint()
    assert not torch.equal(other.entropy_change, outputs.entropy_change)


def test_the_callers_random_stream_has_no_part_in_outputs():
    graph = blocks()
    taught = Teacher("gcn", hidden_channels=8, max_epochs=2, device="cpu").fit(graph)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        found.append(taught.outputs(graph).fingerprint())
        assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[1]


def test_without_draws_reliability_is_not_known():
    graph = blocks()
    taught = Teacher("gcn", hidden_channels=8, max_epochs=2, device="cpu").fit(graph)
    outputs = taught.outputs(graph, noise_draws=0)
    assert outputs.entropy_change is None
    with pytest.raises(G2MError, match=r"method 'krd' needs entropy_change, which noise_draws=0 leaves out"):
        Student("krd", device="cpu").fit(graph, outputs)
    Student("glnn", max_epochs=1, device="cpu").fit(graph, outputs)
    for wrong in (-1, 1.5, "5"):
        with pytest.raises(G2MError, match=r"^noise_draws: expected a whole number from 0"):
            taught.outputs(graph, noise_draws=wrong)


@pytest.mark.parametrize("model", ["appnp", "gat", "gcn", "sage"])
@pytest.mark.parametrize("num_layers", [1, 3])
def test_transforms_are_a_teachers_linear_maps_in_order(num_layers, model, tmp_path):
    graph = blocks()
    options = {"hidden_channels": 8, "num_layers": num_layers, "max_epochs": 2, "device": "cpu"}
    taught = Teacher(model, **options).fit(graph)
    outputs = taught.outputs(graph)
    shapes = [tuple(weight.shape) for weight in outputs.transforms]
    assert shapes == ([(3, 10)] if num_layers == 1 else [(8, 10), (8, 8), (3, 8)])
    own = [p for p in taught.model_.parameters() if p.dim() == 2]
    for weight in outputs.transforms:
        assert not weight.requires_grad
        assert sum(p.shape == weight.shape and torch.equal(p, weight) for p in own) == 1
        weight.zero_()  # a copy
    assert all(p.any() for p in own)
    loaded = Teacher.load(taught.save(tmp_path / "t")).outputs(graph)
    assert [tuple(weight.shape) for weight in loaded.transforms] == shapes


def test_a_teacher_of_codes_hands_over_its_maps_too():
    graph = blocks()
    for place in ("inside", "beside"):
        common = {"hidden_channels": 8, "max_epochs": 2, "num_codes": 6, "device": "cpu"}
        outputs = Teacher("gcn", tokenizer=place, **common).fit(graph).outputs(graph)
        assert [tuple(weight.shape) for weight in outputs.transforms] == [(8, 10), (3, 8)]
