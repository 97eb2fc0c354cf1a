"""CSR against dense oracles. Entries are small integers in float64, so that every order of summation is exact."""

import pytest
import torch
from cases import thin
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, Tensor
from torch.nn import functional as F
from torch_geometric.utils import k_hop_subgraph

from g2m import sparse
from g2m.models import sum_adjacency
from g2m.sparse import CSR, attention, features, receptive_field, sampled_field

quick = settings(max_examples=40)


@st.composite
def matrices(draw, repeats: bool = True) -> tuple[CSR, Tensor]:
    """A matrix as CSR and dense: any order of entries, rows and columns without any, coordinates given twice."""
    shape = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    places = st.tuples(st.integers(0, shape[0] - 1), st.integers(0, shape[1] - 1))
    places = draw(st.lists(places, max_size=12, unique=not repeats))
    row, col = torch.tensor(places, dtype=torch.long).reshape(-1, 2).T
    value = torch.tensor(draw(st.lists(st.integers(-5, 5), min_size=len(places), max_size=len(places)))).double()
    dense = torch.zeros(shape, dtype=torch.float64).index_put((row, col), value, accumulate=True)
    return CSR.from_coo(row, col, value, shape), dense


def integers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(-5, 6, shape, generator=Generator().manual_seed(seed)).double()


@quick
@given(matrices(), st.integers(1, 3))
def test_product_and_gradient_equal_dense(pair, width):
    csr, dense = pair
    x = integers(dense.size(1), width).requires_grad_()
    upstream = integers(dense.size(0), width, seed=1)
    assert torch.equal(csr @ x, dense @ x)
    assert torch.equal(torch.autograd.grad(csr @ x, x, upstream)[0], dense.T @ upstream)


def test_narrow_operands_are_summed_in_float32_and_rounded_at_the_end():
    csr = CSR.from_dense(torch.ones(1, 600))
    x = torch.ones(600, 2, dtype=torch.bfloat16, requires_grad=True)  # bfloat16 itself counts to 256
    product = csr @ x
    assert (product.dtype, product.tolist()) == (torch.bfloat16, [[600, 600]])
    product.sum().backward()
    assert x.grad.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        wide = torch.full((600, 2), 1 + 2**-10)
        assert torch.equal(csr @ wide, product)
    assert not torch.equal(csr @ wide, product.float())
    weight, heads = torch.ones(600, 1, requires_grad=True), x.detach()[:, None].requires_grad_()
    summed = attention(weight, heads, csr)
    assert (summed.dtype, summed.tolist()) == (torch.bfloat16, [[[600, 600]]])
    summed.sum().backward()
    assert (weight.grad.dtype, heads.grad.dtype) == (torch.float32, torch.bfloat16)
    assert weight.grad.eq(2).all()


@pytest.mark.parametrize("width", [1, 64, 65, 200])
def test_a_large_table_is_taken_by_columns(monkeypatch, width):
    generator = Generator().manual_seed(0)
    dense = torch.randn(90, 30, generator=generator)
    dense[torch.rand(90, 30, generator=generator) < 0.4] = 0
    csr, table = CSR.from_dense(dense), torch.randn(200, 30, generator=generator)[:width].T  # not contiguous
    at_once = csr.multiply(table)
    monkeypatch.setattr(sparse, "_TABLE", 0)
    calls = []
    monkeypatch.setattr(sparse.F, "embedding_bag", lambda *a, bag=F.embedding_bag, **k: calls.append(1) or bag(*a, **k))
    torch.testing.assert_close(csr.multiply(table), at_once)
    assert len(calls) == -(-width // 64)


@quick
@given(matrices())
def test_transpose_equals_dense(pair):
    csr, dense = pair
    x = integers(dense.size(0), 2)
    assert csr.T.shape == tuple(dense.T.shape)
    assert torch.equal(csr.T @ x, dense.T @ x)
    assert torch.equal(csr.T.T @ integers(dense.size(1), 2), dense @ integers(dense.size(1), 2))


@quick
@given(matrices(), st.data())
def test_rows_equal_dense_in_any_order_and_repeated(pair, data):
    csr, dense = pair
    size = data.draw(st.sampled_from([range(8), range(17, 20)]))  # few, and more, are taken in different ways
    rows = st.lists(st.integers(0, len(dense) - 1), min_size=size[0], max_size=size[-1])
    index = torch.tensor(data.draw(rows), dtype=torch.long)
    cut, x = csr[index], integers(dense.size(1), 2)
    assert cut.shape == (len(index), dense.size(1))
    assert len(cut) == len(index)
    assert torch.equal(cut @ x, dense[index] @ x)
    upstream = integers(len(index), 2)
    assert torch.equal(cut.T @ upstream, dense[index].T @ upstream)


@quick
@given(matrices(repeats=False))
def test_dense_round_trip(pair):
    csr, dense = pair
    assert torch.equal(csr.to_dense(), dense)
    back = CSR.from_dense(dense)
    assert torch.equal(back.to_dense(), dense)
    assert back.nnz == int(dense.count_nonzero())
    assert torch.equal(back.row_of_entry(), dense.nonzero()[:, 0])


@quick
@given(matrices())
def test_indices_are_narrow_and_rows_in_order(pair):
    csr, dense = pair
    for matrix in (csr, csr.T, csr[torch.arange(len(dense))]):
        assert matrix.crow.dtype == matrix.col.dtype == torch.int32
        assert matrix.crow[0] == 0
        assert matrix.crow[-1] == matrix.nnz == len(matrix.col)
        assert (matrix.crow.diff() >= 0).all()
        row = matrix.row_of_entry()
        assert ((row.diff() > 0) | (matrix.col.diff() >= 0)).all()


def test_repeated_coordinates_stay_apart_and_add_up():
    csr = CSR.from_coo(*torch.tensor([[1, 0, 1], [0, 1, 0]]), torch.tensor([2.0, 5.0, 3.0]), (3, 2))
    assert csr.nnz == 3
    assert torch.equal(csr @ torch.eye(2), torch.tensor([[0.0, 5.0], [5.0, 0.0], [0.0, 0.0]]))


def test_gradcheck():
    generator = Generator().manual_seed(0)
    dense = torch.randn(5, 4, generator=generator, dtype=torch.float64)
    csr = CSR.from_dense(dense * (dense > 0))
    x = torch.randn(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: csr @ x, x)
    assert torch.autograd.gradcheck(lambda x: csr[torch.tensor([3, 3, 0])] @ x, x)


def test_no_entries():
    empty = torch.empty(0, dtype=torch.long)
    csr = CSR.from_coo(empty, empty, torch.empty(0), (3, 2))
    x = torch.ones(2, 4, requires_grad=True)
    product = csr @ x
    assert torch.equal(product, torch.zeros(3, 4))
    assert torch.equal(torch.autograd.grad(product.sum(), x)[0], torch.zeros(2, 4))
    assert csr[torch.tensor([2, 0])].nnz == 0


def test_dropout_keeps_the_pattern_and_the_gradient_follows_the_mask():
    csr = CSR.from_dense(torch.ones(40, 30))
    torch.manual_seed(0)
    dropped = csr.dropout(0.25, True)
    dense = dropped.to_dense()
    torch.testing.assert_close(dense.unique(), torch.tensor([0, 4 / 3]))
    assert abs(float((dense == 0).float().mean()) - 0.25) < 0.05
    assert dropped.nnz == csr.nnz
    x = torch.randn(30, 2, requires_grad=True)
    gradient = torch.autograd.grad((dropped @ x).sum(), x)[0]
    torch.testing.assert_close(gradient, dense.sum(0)[:, None].expand(30, 2))


@pytest.mark.parametrize(("p", "training"), [(0.5, False), (0.0, True)])
def test_dropout_is_nothing_in_evaluation_or_at_zero(p, training):
    csr = CSR.from_dense(torch.eye(3))
    assert csr.dropout(p, training) is csr


def test_to_the_same_device_is_no_copy():
    csr = CSR.from_dense(torch.eye(3))
    assert csr.to("cpu") is csr


@pytest.mark.parametrize(("nonzero", "sparse"), [(0, True), (10, True), (11, False), (100, False)])
def test_features_are_sparse_up_to_the_density(nonzero, sparse):
    x = torch.zeros(100)
    x[:nonzero] = 2
    x = x.view(10, 10)
    result = features(x)
    assert isinstance(result, CSR) is sparse
    assert torch.equal(result.to_dense(), x) if sparse else result is x


def test_other_values_on_the_same_pattern_transpose_alike():
    dense = torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, 4.0]])
    matrix = CSR.from_dense(dense)
    other = matrix.with_value(matrix.value * torch.tensor([1.0, 0.0, -1.0]))
    assert torch.equal(other.T.to_dense(), other.to_dense().T)
    assert torch.equal(other.to_dense(), torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, -4.0]]))


# -- receptive fields ------------------------------------------------------------------------------------------------


@st.composite
def queries(draw) -> tuple[CSR, Tensor, Tensor]:
    """An adjacency as CSR and dense, directed, with isolated nodes, loops and repeats; and some nodes in any order."""
    size = draw(st.integers(1, 8))
    arcs = draw(st.lists(st.tuples(st.integers(0, size - 1), st.integers(0, size - 1)), max_size=14))
    row, col = torch.tensor(arcs, dtype=torch.long).reshape(-1, 2).T
    value = torch.tensor(draw(st.lists(st.integers(-3, 3), min_size=len(arcs), max_size=len(arcs)))).double()
    dense = torch.zeros(size, size, dtype=torch.float64).index_put((row, col), value, accumulate=True)
    nodes = draw(st.permutations(range(size)))[: draw(st.integers(1, size))]
    return CSR.from_coo(row, col, value, (size, size)), dense, torch.tensor(nodes)


@settings(quick, max_examples=150)
@given(queries(), st.integers(0, 4))
def test_receptive_field_is_the_k_hop_neighbourhood_layer_by_layer(query, num_layers):
    csr, dense, nodes = query
    arcs = torch.stack([csr.col.long(), csr.row_of_entry()])
    field, layers = receptive_field(csr, nodes, num_layers)
    assert len(layers) == num_layers
    assert torch.equal(field[: len(nodes)], nodes)
    reads = [layer.shape[1] for layer in layers] + [len(nodes)]
    assert len(field) == reads[0]
    for i, size in enumerate(reads):  # what layer i reads: the first rows of the field, as far as the hops left
        expected, *_ = k_hop_subgraph(nodes, num_layers - i, arcs, num_nodes=len(csr))
        assert torch.equal(field[:size].sort().values, expected)
    for layer, read, answered in zip(layers, reads[:-1], reads[1:], strict=True):
        assert (len(layer), layer.shape) == (answered, (answered, read))
        assert layer.crow.dtype == layer.col.dtype == torch.int32
        sub = dense[field[:answered]]
        assert torch.equal(layer @ torch.eye(read).double(), sub[:, field[:read]])
        sub[:, field[:read]] = 0
        assert not sub.any()  # nothing was left out


@settings(quick, max_examples=100)
@given(queries(), st.integers(0, 4))
def test_layers_in_a_chain_are_rows_of_the_matrix_power_in_value_and_gradient(query, num_layers):
    csr, dense, nodes = query
    x, upstream = integers(len(csr), 2).requires_grad_(), integers(len(nodes), 2, seed=1)
    field, layers = receptive_field(csr, nodes, num_layers)
    part, whole = x[field], x
    for layer in layers:
        part, whole = layer @ part, dense @ whole
    assert torch.equal(part, whole[nodes])
    first, second = (torch.autograd.grad(out, x, upstream)[0] for out in (part, whole[nodes]))
    assert torch.equal(first, second)


@quick
@given(st.lists(st.integers(0, 9), min_size=1, unique=True), st.lists(st.integers(0, 9)))
def test_few_of_many_nodes_are_numbered_as_by_a_table_of_all(nodes, col):
    nodes, col = torch.tensor(nodes), torch.tensor(col, dtype=torch.long)
    by_table, by_order = (sparse._numbered(nodes, col, num_nodes) for num_nodes in (10, 10**6))
    assert all(map(torch.equal, by_table, by_order))
    field, position = by_table
    assert field[position].equal(col)
    assert field[: len(nodes)].equal(nodes)
    assert field[len(nodes) :].tolist() == sorted({*col.tolist()} - {*nodes.tolist()})


def test_receptive_field_follows_arcs_to_their_sources_alone():
    arc = CSR.from_coo(torch.tensor([1]), torch.tensor([0]), torch.ones(1), (3, 3))  # 1 reads 0
    for nodes, expected in [([1], [1, 0]), ([0], [0]), ([2], [2]), ([2, 1], [2, 1, 0]), ([0, 1], [0, 1])]:
        field, _ = receptive_field(arc, torch.tensor(nodes), 2)
        assert field.tolist() == expected


def test_an_isolated_node_is_its_own_field_and_gets_nothing():
    empty = torch.empty(0, dtype=torch.long)
    csr = CSR.from_coo(empty, empty, torch.empty(0), (4, 4))
    field, layers = receptive_field(csr, torch.tensor([3, 1]), 3)
    assert field.tolist() == [3, 1]
    assert [(layer.shape, layer.nnz) for layer in layers] == [((2, 2), 0)] * 3
    assert torch.equal(layers[0] @ torch.ones(2, 5), torch.zeros(2, 5))


def test_receptive_field_leaves_the_adjacency_as_it_was():
    csr = CSR.from_dense(torch.ones(5, 5).triu())
    before = csr.to_dense().clone()
    nodes = torch.tensor([4, 2])
    receptive_field(csr, nodes, 2)
    assert torch.equal(csr.to_dense(), before)
    assert nodes.tolist() == [4, 2]


@quick
@given(matrices(), st.data())
def test_split_gives_rows_in_turn(pair, data):
    csr, dense = pair
    cuts = sorted(data.draw(st.lists(st.integers(0, len(dense)), max_size=3)))
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, len(dense)], strict=True)]
    parts = csr.split(sizes)
    x = integers(dense.size(1), 2)
    assert [part.shape for part in parts] == [(size, dense.size(1)) for size in sizes]
    for part, expected in zip(parts, dense.split(sizes), strict=True):
        assert torch.equal(part @ x, expected @ x)
        assert part.col.dtype == part.crow.dtype == csr.crow.dtype


@quick
@given(st.lists(matrices(), min_size=1, max_size=3), st.booleans())
def test_block_diagonal_equals_dense_with_rows_filled_up(pairs, filled):
    width = max(dense.size(1) for _, dense in pairs)
    rows = max(len(dense) for _, dense in pairs) if filled else None
    matrices = [CSR(csr.crow, csr.col, csr.value, (len(csr), width)) for csr, _ in pairs]
    blocks = [
        torch.nn.functional.pad(dense, (0, width - dense.size(1), 0, (rows or len(dense)) - len(dense)))
        for _, dense in pairs
    ]
    block, expected = CSR.block_diagonal(matrices, rows), torch.block_diag(*blocks)
    x, upstream = integers(expected.size(1), 2).requires_grad_(), integers(len(expected), 2, seed=1)
    assert block.shape == tuple(expected.shape)
    assert torch.equal(block @ x, expected @ x)
    assert torch.equal(torch.autograd.grad(block @ x, x, upstream)[0], expected.T @ upstream)


# -- attention -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", [0, 1, 40])
def test_attention_is_a_dense_product_for_every_head(entries):
    generator = Generator().manual_seed(0)
    rows, columns, heads, channels = 6, 9, 3, 4
    row = torch.randint(rows - 1, (entries,), generator=generator)  # the last row has none
    col = torch.randint(columns, (entries,), generator=generator)
    pattern = CSR.from_coo(row, col, torch.ones(entries, dtype=torch.double), (rows, columns))
    weight = torch.randn(entries, heads, dtype=torch.double, generator=generator, requires_grad=True)
    x = torch.randn(columns, heads, channels, dtype=torch.double, generator=generator, requires_grad=True)
    out = attention(weight, x, pattern)
    dense = torch.zeros(rows, columns, heads, dtype=torch.double)
    at = (pattern.row_of_entry(), pattern.col.long())
    expected = torch.einsum("rch,chd->rhd", dense.index_put(at, weight, accumulate=True), x)
    torch.testing.assert_close(out, expected)
    for ours, theirs in zip(
        *(torch.autograd.grad(o.square().sum(), (weight, x)) for o in (out, expected)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_attention_holds_nothing_of_the_size_of_entries_times_channels():
    pattern = CSR.from_coo(torch.arange(50).repeat(20), torch.arange(1000) % 7, torch.ones(1000), (50, 7))
    weight, x = torch.rand(1000, 2, requires_grad=True), torch.rand(7, 2, 64, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.numel()), t)[1], lambda t: t):
        attention(weight, x, pattern)
    assert sorted(kept) == [7 * 2 * 64, 1000 * 2]


# -- sampled neighbourhoods ----------------------------------------------------------------------------------------


def test_a_sample_as_large_as_the_neighbourhood_is_the_neighbourhood():
    adjacency, x = sum_adjacency(thin(), loops=1.0), thin().x
    nodes = torch.tensor([5, 0, 17])
    (field, layers), (sampled, samples) = (
        receptive_field(adjacency, nodes, 2),
        sampled_field(adjacency, nodes, [60, 60]),
    )
    assert set(sampled.tolist()) == set(field.tolist())
    assert sampled[:3].equal(nodes)
    exact, found = x[field], x[sampled]
    for layer, sample in zip(layers, samples, strict=True):
        exact, found = layer @ exact, sample @ found
    torch.testing.assert_close(found, exact)


def test_sampled_rows_are_right_on_average_and_no_longer_than_asked():
    dense = torch.tensor([[1.0, 2, 0, 3, 4], [0, 0, 0, 0, 0], [0, 5, 0, 0, 0]])
    csr, mean = CSR.from_dense(dense), torch.zeros(3, 5)
    torch.manual_seed(0)
    for _ in range(4000):
        rows = csr.sampled_rows(torch.arange(3), 2)
        assert rows.crow.tolist() == [0, 2, 2, 3]
        mean += rows.to_dense() / 4000
    torch.testing.assert_close(mean, dense, atol=0.25, rtol=0)
    assert csr.sampled_rows(torch.tensor([2]), 2).to_dense().equal(dense[2:])


def test_fan_out_is_by_layer_the_first_layer_first():
    star = torch.stack([torch.arange(1, 50), torch.zeros(49, dtype=torch.long)])
    adjacency = CSR.from_coo(star[1], star[0], torch.ones(49), (50, 50))
    field, (first, last) = sampled_field(adjacency, torch.tensor([0]), [4, 3])
    assert last.nnz == 3
    assert first.nnz == 4, "of node 0 alone: the others have no entries"
    assert len(field) <= 1 + 3 + 4
