"""Codes against brute force, against another implementation of the same rule, and whether they stay in use."""

import math

import pytest
import torch
from cases import same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor
from torch.nn import functional as F

from g2m.codebook import CODE_METRICS, Codebook, log_assignments, nearest_code, perplexity, similarity, usage
from g2m.errors import G2MError

quick = settings(max_examples=40)
metrics = pytest.mark.parametrize("metric", CODE_METRICS)
EXACT = {"rtol": 1e-10, "atol": 1e-12}


def vectors(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=Generator().manual_seed(seed), dtype=dtype)


def clustered(num_clusters: int, each: int = 8, width: int = 16, seed: int = 0) -> Tensor:
    """Vectors around random centres, ``each`` of them around every one."""
    centres = vectors(num_clusters, width, seed=seed).repeat(each, 1)
    return centres + 0.1 * vectors(len(centres), width, seed=seed + 1000)


def codebook(num_codes: int, width: int, seed: int = 0, **options) -> Codebook:
    torch.manual_seed(seed + 500)  # not the stream of the vectors
    return Codebook(num_codes, width, **options)


def buffers(book: Codebook) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in book.state_dict().items()}


# -- vectors against codes -------------------------------------------------------------------------------------------


def scores(x: Tensor, codes: Tensor, metric: str, like: Tensor | None = None) -> Tensor:
    """Pair by pair, written as defined."""
    unit = (codes if like is None else like).square().sum(-1).mean()
    x, codes = x[:, None], codes[None]
    if metric == "cosine":
        return (x * codes).sum(-1) / (x.square().sum(-1) * codes.square().sum(-1)).sqrt()
    return -(x - codes).square().sum(-1) / (2 * unit)


@quick
@given(
    st.sampled_from(CODE_METRICS),
    st.integers(1, 12),
    st.integers(2, 9),
    st.integers(2, 5),
    st.integers(0, 999),
    st.integers(1, 150),
)
def test_nearest_code_is_the_best_of_all_pairs_in_chunks_of_any_size(metric, rows, num_codes, width, seed, chunk):
    x = vectors(rows, width, seed=seed, dtype=torch.float64)
    codes = vectors(num_codes, width, seed=seed + 1000, dtype=torch.float64) * torch.arange(1, num_codes + 1)[:, None]
    expected = scores(x, codes, metric)
    torch.testing.assert_close(similarity(x, codes, metric), expected, **EXACT)
    assert torch.equal(nearest_code(x, codes, metric, chunk=chunk), expected.argmax(1))


@metrics
def test_of_equal_codes_the_first_is_nearest(metric):
    codes = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert nearest_code(torch.tensor([[3.0, 1.0], [1.0, 3.0]]), codes, metric).tolist() == [1, 0]


def test_of_unit_vectors_both_similarities_are_the_same_but_for_a_constant():
    x, codes = (F.normalize(vectors(7, 4, seed=seed)) for seed in (0, 1))
    torch.testing.assert_close(similarity(x, codes, "euclidean"), similarity(x, codes, "cosine") - 1)


@metrics
@pytest.mark.parametrize("own", [True, False])
def test_log_assignments_are_a_softmax_at_each_level_of_what_is_left(metric, own):
    x, books = vectors(6, 3, dtype=torch.float64), vectors(2, 5, 3, seed=1, dtype=torch.float64)
    first = scores(x, books[0], metric)
    path = torch.stack([first.argmax(1) if own else torch.arange(6) % 5, torch.zeros(6, dtype=torch.long)], 1)
    second = scores(x - books[0][path[:, 0]], books[1], metric, books[0])
    expected = torch.stack([(s / 0.3).exp() / (s / 0.3).exp().sum(1, keepdim=True) for s in (first, second)], 1)
    found = log_assignments(x, books, 0.3, metric, None if own else path)
    torch.testing.assert_close(found.exp(), expected, **EXACT)


def test_usage_and_perplexity_by_hand():
    index = torch.tensor([0, 0, 1, 3])
    assert usage(index, 5) == pytest.approx(3 / 5)
    assert perplexity(index, 5) == pytest.approx(2**1.5)
    levels = torch.tensor([[0, 0], [0, 1], [0, 2], [0, 3]])  # one code at the first level, all at the second
    assert usage(levels, 4) == pytest.approx((1 / 4 + 1) / 2)
    assert perplexity(levels, 4) == pytest.approx((1 + 4) / 2)
    assert perplexity(torch.arange(12) % 6, 6) == pytest.approx(6)


# -- what a codebook gives -------------------------------------------------------------------------------------------

BOOKS = {
    "cosine": {"metric": "cosine"},
    "averaged": {"metric": "cosine", "renormalise": False},
    "euclidean": {"metric": "euclidean"},
    "levels": {"metric": "euclidean", "num_levels": 3},
}
books = pytest.mark.parametrize("options", BOOKS.values(), ids=BOOKS)
modes = pytest.mark.parametrize("training", [True, False])


@books
@modes
def test_the_value_is_the_code_and_its_gradient_goes_to_the_vector_as_it_is(options, training):
    book = codebook(5, 4, kmeans_iterations=0, **options).train(training)
    codes, x, weight = book.codes.clone(), vectors(9, 4).requires_grad_(), vectors(9, 4, seed=2)
    value, index, commitment = book(x)
    index = index.reshape(9, -1)
    assert torch.equal(value, sum(codes[level][index[:, level]] for level in range(book.num_levels)))
    (gradient,) = torch.autograd.grad((value * weight).sum(), x, retain_graph=True)
    assert torch.equal(gradient, weight)
    # the commitment has a gradient of its own, towards the code
    vector = F.normalize(x) if book.metric == "cosine" else x
    expected = (vector - value.detach()).square().sum() / (vector - vector.mean(0)).square().sum()
    torch.testing.assert_close(commitment, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in (commitment, expected)))


@books
def test_the_index_is_the_nearest_code_of_what_the_levels_before_left(options):
    book = codebook(6, 4, **options)
    x = vectors(50, 4)
    for _ in range(3):
        book(x)
    index = book.eval()(x).index
    assert index.shape == ((50, 3) if book.num_levels > 1 else (50,))
    rest = x
    for codes, found in zip(book.codes, index.reshape(50, -1).T, strict=True):
        assert torch.equal(found, scores(rest, codes, book.metric).argmax(1))
        rest = rest - codes[found]


def test_every_level_more_leaves_less():
    x, errors = vectors(200, 6), []
    for num_levels in (1, 2, 4):
        book = codebook(10, 6, metric="euclidean", num_levels=num_levels)
        for _ in range(5):
            book(x)
        errors.append(float((x - book.eval()(x).value).square().mean()))
    assert errors[1] < 0.7 * errors[0]
    assert errors[2] < 0.7 * errors[1]


@books
def test_evaluation_changes_nothing(options):
    x = vectors(40, 4)
    for started in (False, True):
        book = codebook(5, 4, **options)
        if started:
            book(x)
        before = buffers(book)
        book.eval()(x + 1)
        assert same_bits(buffers(book), before)
        assert bool(book.started) == started


@books
def test_same_seed_same_bits(options):
    x = vectors(60, 4)

    def trained(seed: int) -> dict[str, Tensor]:
        book = codebook(12, 4, seed, dead_threshold=3, **options)
        for _ in range(5):
            book(x)
        return buffers(book)

    assert same_bits(trained(0), trained(0))
    assert not same_bits(trained(0), trained(1))


@books
def test_commitment_does_not_grow_with_the_scale_of_the_vectors(options):
    x = vectors(60, 4)
    (_, _, first), (_, _, second) = (codebook(5, 4, **options)(scale * x) for scale in (1, 1000))
    torch.testing.assert_close(second, first, rtol=1e-3, atol=0)


def test_commitment_draws_vectors_neither_smaller_nor_elsewhere():
    """Where codes are the means of their members: along scale and shift it has no gradient."""
    x = vectors(60, 4, dtype=torch.float64) + 3
    book = codebook(5, 4).double()
    book(x)  # codes by k-means, then the means of their members
    for _ in range(20):
        book.decay = 0.0
        book(x)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(book(x).commitment, x)
    assert gradient.abs().max() > 1e-3
    assert abs((gradient * x).sum()) < 1e-9
    assert gradient.sum(0).abs().max() < 1e-9


@pytest.mark.parametrize("scale", [0.0, 1e-9, 1.0, 1e6])
def test_commitment_of_vectors_that_are_all_alike_stays_small(scale):
    x = (scale * torch.ones(6, 4)).requires_grad_()
    book = codebook(5, 4).eval()
    book.codes.fill_(0.9 * scale)
    commitment = book(x).commitment
    assert commitment <= 101
    assert torch.autograd.grad(commitment, x)[0].isfinite().all()


@books
def test_zero_vectors_and_fewer_vectors_than_codes_do_no_harm(options):
    for x in (torch.zeros(5, 4), torch.cat([torch.zeros(2, 4), vectors(3, 4)]), vectors(1, 4)):
        book = codebook(8, 4, **options)
        x.requires_grad_()
        for _ in range(4):
            value, index, commitment = book(x)
            (gradient,) = torch.autograd.grad(value.square().sum() + commitment, x)
            assert torch.isfinite(value).all()
            assert torch.isfinite(gradient).all()
            assert int(index.max()) < 8
        assert all(torch.isfinite(value).all() for value in buffers(book).values())


@metrics
def test_where_there_are_codes_enough_every_vector_has_its_own(metric):
    """And keeps it: one member is enough to live."""
    x, book = vectors(5, 4), codebook(8, 4, metric=metric)
    for _ in range(6):
        value, index, commitment = book(x)
        torch.testing.assert_close(value, F.normalize(x) if metric == "cosine" else x)
        assert len(index.unique()) == 5
        assert commitment < 1e-10


# -- how codes follow their members ----------------------------------------------------------------------------------


def followed(state: dict[str, Tensor], x: Tensor, decay: float, metric: str, renormalise: bool) -> dict[str, Tensor]:
    """One step of the moving averages, code by code."""
    codes, counts, sums = state["codes"].clone(), state["counts"].clone(), state["sums"].clone()
    if metric == "cosine":
        x = x / x.norm(dim=1, keepdim=True)
    index = scores(x, state["codes"], metric).argmax(1)
    for k in range(len(codes)):
        members = x[index == k]
        counts[k] = decay * counts[k] + (1 - decay) * len(members)
        sums[k] = decay * sums[k] + (1 - decay) * members.sum(0)
        if renormalise:
            codes[k] = sums[k] / (sums[k].norm() if metric == "cosine" else counts[k])
        else:
            mean = members.mean(0) if len(members) else state["codes"][k]
            codes[k] = decay * state["codes"][k] + (1 - decay) * mean / mean.norm()
    return {"codes": codes, "counts": counts, "sums": sums}


@pytest.mark.parametrize(("metric", "renormalise"), [("cosine", True), ("cosine", False), ("euclidean", True)])
def test_codes_follow_the_moving_averages_of_their_members(metric, renormalise):
    options = {"decay": 0.7, "kmeans_iterations": 0, "dead_threshold": 0, "renormalise": renormalise}
    book = codebook(6, 3, metric=metric, **options).double()
    state = {name: getattr(book, name)[0].clone() for name in ("codes", "counts", "sums")}
    for seed in range(6):
        x = vectors(8, 3, seed=seed, dtype=torch.float64)  # few: some codes have no member
        state = followed(state, x, 0.7, metric, renormalise)
        book(x)
        for name in ("codes", "counts") + (("sums",) if renormalise else ()):
            torch.testing.assert_close(getattr(book, name)[0], state[name], **EXACT)
    lengths = book.codes.norm(dim=-1)
    assert torch.allclose(lengths, torch.ones_like(lengths)) == (metric == "cosine" and renormalise)


@pytest.mark.parametrize(("metric", "num_levels"), [("cosine", 1), ("euclidean", 1), ("euclidean", 3)])
def test_another_implementation_gives_the_same_codes(metric, num_levels):
    library = pytest.importorskip("vector_quantize_pytorch")
    book = codebook(7, 5, metric=metric, num_levels=num_levels, decay=0.8, kmeans_iterations=0, dead_threshold=0)
    options = {"decay": 0.8, "kmeans_init": False, "threshold_ema_dead_code": 0, "eps": 0.0, "rotation_trick": False}
    theirs = [library.VectorQuantize(5, 7, use_cosine_sim=metric == "cosine", **options) for _ in range(num_levels)]
    for level, layer in enumerate(theirs):
        layer.codebook = book.codes[level]
        layer._codebook.embed_avg.copy_(book.sums[level : level + 1])
    for step in range(6):
        x, weight = vectors(40, 5, seed=step).requires_grad_(), vectors(40, 5, seed=99)
        value, index, commitment = book(x)
        rest, total, codes, loss = x, 0, [], 0
        for layer in theirs:
            quantised, code, loss = layer(rest)
            rest, total = rest - quantised.detach(), total + quantised
            codes.append(code)
        assert torch.equal(index, codes[0] if num_levels == 1 else torch.stack(codes, 1))
        torch.testing.assert_close(value, total)
        vector = F.normalize(x) if metric == "cosine" else x
        scale = (vector - vector.mean(0)).square().sum(1).mean()
        torch.testing.assert_close(commitment * scale, 5 * loss)  # theirs is a mean over entries; of the last level
        if (metric, num_levels) == ("euclidean", 1):  # under cosine theirs goes through the normalisation
            mine, other = (torch.autograd.grad((v * weight).sum(), x, retain_graph=True)[0] for v in (value, total))
            torch.testing.assert_close(mine, other)
        torch.testing.assert_close(book.codes, torch.stack([layer.codebook for layer in theirs]))


# -- codes in use ----------------------------------------------------------------------------------------------------


@metrics
@pytest.mark.parametrize(("num_codes", "each"), [(50, 8), (6, 300)])
def test_the_start_puts_codes_into_use(metric, num_codes, each):
    """At an eighth of the vectors, and where it looks at some of them only; random directions do much worse."""
    shares = {0: [], 10: []}
    for seed in range(3):
        x = clustered(num_codes, each, seed=seed)
        for iterations, share in shares.items():
            book = codebook(num_codes, 16, seed, metric=metric, kmeans_iterations=iterations)
            share.append(usage(book(x).index, num_codes))
    assert min(shares[10]) >= 0.9
    assert sum(shares[0]) / 3 < 0.85


@books
def test_the_start_ends_where_every_code_is_the_mean_of_its_members(options):
    """A fixed point of k-means, which the first step of the moving averages leaves as it is."""
    x = clustered(8, each=12, width=4)
    book = codebook(8, 4, kmeans_iterations=60, dead_threshold=0, **options)
    rest, index = F.normalize(x) if book.metric == "cosine" else x, book(x).index.reshape(len(x), -1)
    for level, codes in enumerate(book.codes):
        found = index[:, level]
        means = torch.stack([rest[found == k].mean(0) for k in range(8)])
        torch.testing.assert_close(codes, F.normalize(means) if book.metric == "cosine" else means)
        rest = rest - codes[found]


def test_without_iterations_codes_start_as_random_directions():
    book = codebook(20, 6, kmeans_iterations=0)
    before, x = book.codes[0].clone(), vectors(50, 6)
    torch.testing.assert_close(before.norm(dim=1), torch.ones(20))
    assert before.mean(0).abs().max() < 0.4
    assert bool(book.started)
    assert torch.equal(book(x).index, nearest_code(x, before))


@books
@pytest.mark.parametrize("dead_threshold", [1.0, 0.0])
def test_codes_without_members_come_back_unless_they_are_left_alone(options, dead_threshold):
    x = F.pad(clustered(12, each=10, width=15) + 3, (0, 1))
    book = codebook(12, 16, decay=0.9, kmeans_iterations=0, dead_threshold=dead_threshold, **options)
    far = F.pad(torch.zeros(15), (0, 1), value=-50.0)  # all at one place: of equals the first takes every vector
    book.codes[:], book.sums[:] = far, far
    for _ in range(30):
        book(x)
    share = usage(book.eval()(x).index, 12)
    if dead_threshold:
        assert share >= 0.8
    else:
        assert share == pytest.approx(1 / 12)


@metrics
@pytest.mark.parametrize(("dead_threshold", "steps"), [(0.6, 1), (0.5, 2), (0.3, 2), (0.2, 3)])
def test_a_code_is_replaced_once_it_has_fewer_members_than_the_threshold(metric, dead_threshold, steps):
    """Without members, of one in moving average 0.5, 0.25, 0.125 … are left; it then has as many as the threshold."""
    book = codebook(2, 2, metric=metric, decay=0.5, kmeans_iterations=0, dead_threshold=dead_threshold)
    book.codes[:] = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    book.sums.copy_(book.codes)
    for step in range(1, steps + 1):
        left = book.codes[0, 1].clone()
        book(torch.tensor([[1.0, 0.1], [1.0, -0.1]]))
        assert torch.allclose(book.codes[0, 1], left) == (step < steps)
    assert book.counts[0, 1] == pytest.approx(dead_threshold)
    torch.testing.assert_close(book.sums[0, 1], dead_threshold * book.codes[0, 1])


@metrics
def test_a_code_without_members_takes_the_place_of_a_vector_far_from_its_own(metric):
    """One of a hundred vectors is: by chance alone it would hardly be drawn."""
    x = torch.tensor([1.0, 0.1, 0.0]).repeat(100, 1)
    x[70] = torch.tensor([-1.0, 2.0, 0.0])
    for seed in range(3):
        book = codebook(2, 3, seed, metric=metric, decay=0.9, kmeans_iterations=0)
        book.codes[:] = torch.tensor([[1.0, 0.0, 0.0], [-1.0, -9.0, 0.0]])
        book.sums.copy_(book.codes)
        assert not book(x).index.any()
        assert book(x).index.nonzero().flatten().tolist() == [70]


@books
def test_codes_left_alone_stay_where_they_are_however_long(options):
    x = torch.tensor([[1.0, 0.1, 0.0], [1.0, -0.1, 0.0]])
    book = codebook(2, 3, decay=0.8, kmeans_iterations=0, dead_threshold=0, **options)
    book.codes[:] = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, -1.0]])
    book.sums.copy_(book.codes)
    for _ in range(600):
        book(x)
    torch.testing.assert_close(book.codes[0, 1], torch.tensor([0.0, 0.0, -1.0]))


@books
def test_a_saved_codebook_goes_on_as_if_nothing_had_happened(options):
    x = vectors(40, 4)
    first, second = (codebook(5, 4, seed, dead_threshold=0, **options) for seed in (0, 1))
    first(x)
    second.load_state_dict(first.state_dict())
    assert bool(second.started)
    for book in (first, second):
        book(x)
    assert same_bits(buffers(first), buffers(second))


# -- arguments -------------------------------------------------------------------------------------------------------

WRONG = {
    "num_codes": [1, 0, 2.5, "8"],
    "code_dim": [0, -1, 1.5],
    "metric": ["cosin", None],
    "num_levels": [0, 1.5],
    "decay": [-0.1, 1.0, 1.1, math.nan],
    "kmeans_iterations": [-1, 0.5],
    "dead_threshold": [-1, math.inf, math.nan],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_wrong_arguments_are_refused_by_name(name, value):
    options = {"num_codes": 4, "code_dim": 3, name: value}
    with pytest.raises(G2MError, match=f"^{name}: expected"):
        Codebook(options.pop("num_codes"), options.pop("code_dim"), **options)


def test_levels_under_cosine_are_refused():
    with pytest.raises(G2MError, match=r"^num_levels: expected 1 under the cosine metric"):
        Codebook(4, 3, metric="cosine", num_levels=2)
