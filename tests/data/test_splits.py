import numpy as np
import pytest
import torch
from torch_geometric.data import Data

from g2m import G2MError
from g2m.data import splits

Y = torch.arange(400) % 4


def cpf_restated(labels, seed, train_size=20, val_size=30):
    """The protocol, step by step: two passes over the classes, one generator."""
    rng = np.random.RandomState(seed)
    train, val = [], []
    for c in sorted(set(labels)):
        train.extend(rng.choice([i for i, label in enumerate(labels) if label == c], train_size, replace=False))
    for c in sorted(set(labels)):
        pool = [i for i, label in enumerate(labels) if label == c and i not in set(train)]
        val.extend(rng.choice(pool, val_size, replace=False))
    test = [i for i in range(len(labels)) if i not in set(train) | set(val)]
    return {"train": sorted(train), "val": sorted(val), "test": test}


def as_lists(parts):
    return {part: ids.tolist() for part, ids in parts.items()}


@pytest.mark.parametrize("seed", [0, 1, 9])
def test_cpf_draws_as_specified(seed):
    y = torch.from_numpy(np.random.default_rng(3).permutation(Y.numpy()))
    assert as_lists(splits.cpf(y, seed)) == cpf_restated(y.tolist(), seed)
    assert as_lists(splits.cpf(y, seed, train_per_class=5, val_per_class=7)) == cpf_restated(y.tolist(), seed, 5, 7)


def test_cpf_numbers_stay():
    # computed once, with NumPy 2.4: a change of generator or of the order of draws would show here
    parts = splits.cpf(torch.arange(30) % 2, 0, train_per_class=2, val_per_class=2)
    assert as_lists(parts)["train"] == [2, 5, 9, 12]
    assert as_lists(parts)["val"] == [18, 21, 26, 27]


@pytest.mark.parametrize("draw", [splits.cpf, lambda y, seed=0: splits.random(y, seed, num_val=50, num_test=60)])
def test_splits_are_disjoint_labelled_repeatable_and_change_with_the_seed(draw):
    y = Y.clone()
    y[::10] = -1
    parts = draw(y)
    ids = torch.cat(list(parts.values()))
    assert len(ids.unique()) == len(ids)
    assert (y[ids] >= 0).all()
    assert y[parts["train"]].bincount().tolist() == [20] * 4
    assert as_lists(draw(y)) == as_lists(parts)
    assert as_lists(draw(y, 1)) != as_lists(parts)
    assert all(ids.dtype == torch.int64 for ids in parts.values())


def test_cpf_leaves_every_labelled_node_in_a_part():
    y = Y.clone()
    y[:7] = -1
    parts = splits.cpf(y)
    assert {part: len(ids) for part, ids in parts.items()} == {"train": 80, "val": 120, "test": 193}
    assert y[parts["val"]].bincount().tolist() == [30] * 4


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"num_val": 50, "num_test": 60}, (80, 50, 60)),
        ({"train_per_class": 5, "num_val": 50, "num_test": None}, (20, 50, 330)),
        ({"train_per_class": 5, "num_val": None, "num_test": 0.25}, (20, 280, 100)),
        ({"train": 0.1, "num_val": 0.2, "num_test": None}, (40, 80, 280)),
        ({"train": 33, "num_val": 0.5, "num_test": 1}, (33, 200, 1)),
        ({"num_val": 120, "num_test": 200}, (80, 120, 200)),
    ],
)
def test_random_sizes(options, sizes):
    assert tuple(len(ids) for ids in splits.random(Y, **options).values()) == sizes


def test_random_defaults_are_those_of_ff():
    parts = splits.random(torch.arange(2000) % 3)
    assert {part: len(ids) for part, ids in parts.items()} == {"train": 60, "val": 500, "test": 1000}


@pytest.mark.parametrize(("num_val", "num_test"), [(0.1, 0.1), (0.25, 0.5), (0.01, 0.3)])
def test_stratified_parts_have_the_classes_in_the_shares_of_the_whole(num_val, num_test):
    y = torch.from_numpy(np.random.default_rng(0).choice(4, 1000, p=[0.6, 0.3, 0.09, 0.01]))
    y[:50] = -1
    parts = splits.stratified(y, 5, num_val=num_val, num_test=num_test)
    whole = y[50:].bincount(minlength=4)
    found = {part: y[ids].bincount(minlength=4) for part, ids in parts.items()}
    assert torch.equal(sum(found.values()), whole)
    for part, share in (("val", num_val), ("test", num_test)):
        assert found[part].min() >= 1
        assert ((found[part] - share * whole).abs() <= 1).all()
    assert torch.cat(list(parts.values())).sort().values.tolist() == list(range(50, 1000))
    assert as_lists(splits.stratified(y, 5, num_val=num_val, num_test=num_test)) == as_lists(parts)
    assert as_lists(splits.stratified(y, 6, num_val=num_val, num_test=num_test)) != as_lists(parts)


def test_stratified_is_a_tenth_each_by_default_and_draws_evenly():
    y = torch.arange(60) % 2
    drawn = torch.zeros(60)
    for seed in range(500):
        parts = splits.stratified(y, seed)
        assert [len(ids) for ids in parts.values()] == [48, 6, 6]
        drawn[parts["test"]] += 1
    assert (drawn / 500 - 0.1).abs().max() < 0.06  # four standard errors


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (
            lambda: splits.stratified(torch.tensor([0] * 9 + [1] * 2)),
            r"at least 3 labelled graphs .* \(got 2 in class 1\)",
        ),
        (lambda: splits.stratified(Y[:12], num_val=0.4, num_test=0.6), "leave a training graph .* all 3 of class 0"),
        (lambda: splits.stratified(Y, num_val=0), r"num_val: expected a share in \(0, 1\)"),
        (lambda: splits.stratified(Y, num_test=30), r"num_test: expected a share in \(0, 1\)"),
        (lambda: splits.stratified(Y.float()[:, None]), "integer labels of shape"),
        (lambda: splits.stratified(Y * 0 - 1), "expected labelled graphs"),
        (
            lambda: splits.cpf(torch.tensor([0] * 60 + [1] * 49)),
            r"at least 50 labelled nodes in every .* 49 in class 1\)",
        ),
        (lambda: splits.random(torch.tensor([0] * 60 + [1] * 19)), r"at least 20 .* \(got 19 in class 1\)"),
        (lambda: splits.cpf(torch.arange(100) % 2), "at least one node in 'test'"),
        (lambda: splits.cpf(Y * 0 - 1), "expected labelled nodes"),
        (lambda: splits.cpf(Y.float()), "integer labels"),
        (lambda: splits.cpf(Y[:, None]), "integer labels of shape"),
        (lambda: splits.cpf(Y, -1), "seed: expected an integer"),
        (lambda: splits.cpf(Y, 0.5), "seed: expected an integer"),
        (lambda: splits.cpf(Y, train_per_class=0), "train_per_class"),
        (lambda: splits.cpf(Y, train_per_class=2.5), r"train_per_class: expected a whole number from 1 \(got 2\.5\)"),
        (lambda: splits.cpf(Y, val_per_class=2.5), r"val_per_class: expected a whole number from 1 \(got 2\.5\)"),
        (lambda: splits.random(Y, train_per_class=2.5), r"train_per_class: expected a whole number from 1"),
        (lambda: splits.random(Y), "at most 320 nodes together, what 80 training nodes leave over"),
        (lambda: splits.random(Y, num_val=320, num_test=None), "at most 320 nodes together"),
        (
            lambda: splits.random(Y, num_val=None, num_test=None),
            r"at most one of them to be None, the rest \(got both\)",
        ),
        (lambda: splits.random(Y, train=0), "train: expected a number in"),
        (lambda: splits.random(Y, train=1.5), "train: expected a number of nodes or a share"),
        (lambda: splits.random(Y, num_val=-3), "num_val"),
    ],
)
def test_impossible_splits_say_what_is_wanting(draw, message):
    with pytest.raises(G2MError, match=message):
        draw()


def test_public_takes_the_masks_and_the_column_of_the_seed():
    parts = {"train": [0, 1], "val": [2], "test": [3, 4]}
    masks = {f"{part}_mask": torch.isin(torch.arange(6), torch.tensor(ids)) for part, ids in parts.items()}
    assert as_lists(splits.public(Data(**masks), 5)) == parts
    several = {key: torch.stack([mask.flip(0), mask], dim=1) for key, mask in masks.items()}
    assert as_lists(splits.public(Data(**several), 3)) == parts
    assert as_lists(splits.public(Data(**several), 2))["train"] == [4, 5]
    with pytest.raises(G2MError, match="no split of its own"):
        splits.public(Data(train_mask=masks["train_mask"]))
