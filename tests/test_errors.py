from fractions import Fraction

import numpy as np
import pytest

from g2m.errors import G2MError, check_keys, check_names, check_range, choose, nearest


def test_is_a_value_error():
    assert issubclass(G2MError, ValueError)


def test_nearest():
    assert nearest("pubmd", ["cora", "pubmed"]) == " Did you mean 'pubmed'?"
    assert nearest("zzz", ["cora", "pubmed"]) == ""


def test_choose_returns_the_value_or_names_the_nearest():
    assert choose("metric", "rocauc", ["accuracy", "rocauc"]) == "rocauc"
    with pytest.raises(
        G2MError, match=r"metric: expected one of accuracy, rocauc \(got 'acuracy'\)\. Did you mean 'accuracy'"
    ):
        choose("metric", "acuracy", ["accuracy", "rocauc"])


def test_check_keys_names_the_first_unknown_key():
    check_keys("card", ["name"], ["name", "source"])
    with pytest.raises(
        G2MError, match=r"card: unknown key 'sorce'\. Did you mean 'source'\? Known keys: name, source\."
    ):
        check_keys("card", ["name", "sorce"], ["name", "source"])


def test_check_names_names_the_first_argument_without_any():
    check_names(data=["a"], methods=("b",))
    with pytest.raises(G2MError, match=r"methods: expected at least one name \(got none\)\."):
        check_names(data=["a"], methods=[], teachers=[])


@pytest.mark.parametrize(
    ("value", "fine"), [(0, False), (0.5, True), (1, True), (1.1, False), ("1", False), (None, False)]
)
def test_check_range(value, fine):
    if fine:
        assert check_range("fraction", value, 0, 1, open_low=True) == value
    else:
        with pytest.raises(G2MError, match=r"fraction: expected a number in \(0, 1\]"):
            check_range("fraction", value, 0, 1, open_low=True)


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_check_range_refuses_what_is_not_finite(value):
    with pytest.raises(G2MError, match=value):
        check_range("lr", float(value), 0)


@pytest.mark.parametrize(
    ("value", "kind"), [(np.int64(100), int), (np.float32(0.5), float), (Fraction(1, 2), float), (2, int)]
)
def test_numbers_of_any_kind_become_pythons(value, kind):
    found = check_range("lr", value, 0)
    assert type(found) is kind
    assert found == value


@pytest.mark.parametrize("value", [True, np.True_])
def test_a_truth_is_no_number(value):
    with pytest.raises(G2MError, match=r"lam: expected a number in \[0, 1\]"):
        check_range("lam", value, 0, 1)


def test_check_range_leaves_open_ends_out():
    assert check_range("decay", 0, 0, 1, open_high=True) == 0
    with pytest.raises(G2MError, match=r"decay: expected a number in \[0, 1\) \(got 1\)"):
        check_range("decay", 1, 0, 1, open_high=True)
