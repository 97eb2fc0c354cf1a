import itertools

import numpy as np
import pytest
from result_cases import record
from scipy import stats

from g2m.comparisons import (
    compare,
    costs,
    critical_difference,
    differences,
    holm,
    overall,
    paired,
    pairs,
    ranks,
    reference,
    speeds,
    training_seconds,
)
from g2m.errors import G2MError
from g2m.report import grouped

TEST = ("transductive", "test")


def draws(seed, *shape):
    return np.random.default_rng(seed).normal(0.8, 0.02, shape)


def trainings(scores, **options):
    """Records of students by (data, teacher, method): a score per seed; the teacher is at 0.5."""
    return [
        record(data, method, teacher, seed=seed, score=score, teacher_score=0.5, **options)
        for (data, teacher, method), of_seeds in scores.items()
        for seed, score in enumerate(of_seeds)
    ]


# -- one difference --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_paired_is_the_paired_t_test_over_common_seeds(seed):
    a, b = draws(seed, 2, 4 + seed)
    ours, theirs = dict(enumerate(a)), dict(enumerate(b))
    count, mean, error, p = paired(ours | {90: 0.1}, {91: 0.9} | dict(reversed(theirs.items())))
    assert (count, mean, error) == pytest.approx((len(a), np.mean(a - b), stats.sem(a - b)))
    assert p == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert paired(theirs, ours) == pytest.approx((count, -mean, error, p))


def test_too_few_seeds_and_equal_scores():
    assert paired({0: 0.5}, {0: 0.25}) == (1, 0.25, None, None)
    assert paired({0: 0.5, 1: 0.5}, {0: 0.25, 1: 0.5}) == (2, 0.125, 0.125, None)
    same = dict(enumerate([0.1, 0.2, 0.3]))
    assert paired(same, same) == (3, 0, 0, 1)
    assert paired({seed: 1.0 for seed in same}, {seed: 0.5 for seed in same}) == (3, 0.5, 0, 0)


@pytest.mark.parametrize("seed", range(10))
def test_holm_is_the_closed_test_of_bonferroni(seed):
    """By its definition: the largest, over all sets of hypotheses with this one, of Bonferroni's p of the set."""
    p = np.random.default_rng(seed).choice([0.0, 0.001, 0.01, 0.011, 0.04, 0.2, 0.9], 6).tolist()
    sets = [s for size in range(1, 7) for s in itertools.combinations(range(6), size)]
    expected = [max(min(1, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in range(6)]
    assert holm(p) == pytest.approx(expected)
    assert holm([None, *p[:3], None, *p[3:]]) == pytest.approx([None, *expected[:3], None, *expected[3:]])


def test_holm_of_nothing():
    assert holm([]) == []
    assert holm([None]) == [None]


# -- who is compared with whom ---------------------------------------------------------------------------------


def test_a_method_without_a_teacher_is_in_every_pair_of_its_data_set():
    records = [record(), record(teacher="gcn"), record("citeseer-cpf"), record(method="mlp"), record("digits", "mlp")]
    records += [record(setting="inductive")]
    found = pairs(grouped(records), "transductive")
    assert {pair: sorted(row["method"] for row in members) for pair, members in found.items()} == {
        ("cora-cpf", "sage"): ["glnn", "mlp"],
        ("cora-cpf", "gcn"): ["glnn", "mlp"],
        ("citeseer-cpf", "sage"): ["glnn"],
        ("digits", None): ["mlp"],
    }


def test_other_options_of_the_data_make_another_pair():
    records = [record("sbm", method, options=[o]) for method in ("glnn", "mlp") for o in ("data.num_nodes=300", "lr=1")]
    found = pairs(grouped(records), "transductive")
    assert len(found) == 2
    assert all(sorted(row["method"] for row in members) == ["glnn", "mlp"] for members in found.values())
    assert {teacher for _, teacher in found} == {"sage"}


def test_two_models_without_a_teacher_are_compared_once_a_data_set():
    data = ("cora-cpf", "citeseer-cpf", "photo-cpf", "computers-cpf", "cs-cpf", "physics-cpf")
    scores = {(d, None, m): draws(i, 4) for i, (d, m) in enumerate(itertools.product(data, ("mlp", "simmlp")))}
    taught = {(d, t, "glnn"): draws(i, 4) for i, (d, t) in enumerate(itertools.product(data, ("sage", "gcn", "gat")))}
    alone = differences(grouped(trainings(scores)), *TEST, "mlp")
    among = differences(grouped(trainings(scores | taught)), *TEST, "mlp")
    of = {d.data: d for d in among if d.model == "simmlp"}
    assert len(alone) == len(of) == sum(d.model == "simmlp" for d in among) == 6
    assert all((of[d.data].mean, of[d.data].p, of[d.data].teacher) == (d.mean, d.p, None) for d in alone)
    assert {d.teacher for d in among if d.model == "glnn"} == {"sage", "gcn", "gat"}
    (once,), (same,) = ([o for o in overall(found) if o.model == "simmlp"] for found in (alone, among))
    assert (same.pairs, same.mean, same.p) == (6, once.mean, once.p)
    back = [d for d in differences(grouped(trainings(scores | taught)), *TEST, "glnn") if d.model == "simmlp"]
    assert len(back) == 18, "with a teacher's student, once a teacher"


def test_two_models_of_one_name_are_refused():
    rows = grouped([record(), record(options=["teacher.dropout=0"])])  # it is 0.0
    with pytest.raises(G2MError, match=r"expected one row a model \(got 2 of 'glnn' on cora-cpf, teacher sage"):
        compare(rows)


def test_published_and_common_options_are_two_models():
    records = trainings({("cora-cpf", "sage", "glnn"): draws(0, 3)})
    records += trainings({(d, "sage", "glnn"): draws(1, 3) for d in DATA}, common=True)
    found = {(each.model, each.against): each for each in compare(grouped(records)).overall if each.part == "test"}
    assert {key: each.pairs for key, each in found.items()} == {
        ("glnn", "teacher"): 1,
        ("glnn common", "teacher"): 4,
        ("glnn common", "glnn"): 1,
    }


def test_the_reference_is_glnn_where_there_is_one():
    rows = grouped([record(), record(method="mlp")])
    assert reference(rows) == "glnn"
    assert reference(rows, "mlp") == "mlp"
    assert reference(grouped([record(method="mlp")])) is None
    assert reference([]) is None
    with pytest.raises(G2MError, match=r"--against: expected one of glnn, mlp \(got 'gln'\)\. Did you mean 'glnn'\?"):
        reference(rows, "gln")
    with pytest.raises(G2MError, match="--against: expected one of glnn, mlp"):
        reference(rows, "teacher")
    with pytest.raises(G2MError, match=r"--against: expected results of students \(got 'glnn' and none\)"):
        reference([], "glnn")


def test_of_several_references_the_one_of_the_same_teacher_counts():
    codes, other = ["teacher.tokenizer=inside"], ["dropout=0.5"]
    records = [
        record(seed=seed, score=score, options=options, method=method)
        for seed in range(3)
        for method, options, score in (
            ("glnn", (), 0.1),
            ("glnn", other, 0.2),
            ("glnn", codes, 0.3),
            ("vqgraph", codes, 0.5),
            ("hidden", (), 0.5),
            ("mlp", (), 0.5),
        )
    ]
    gains = {d.model: d.mean for d in differences(grouped(records), *TEST, "glnn") if d.against == "glnn"}
    assert gains == pytest.approx(
        {"glnn dropout=0.5": 10, "glnn + codes inside": 20, "vqgraph": 20, "hidden": 40, "mlp": 40}
    )


def test_of_several_references_of_a_teacher_the_one_trained_in_the_same_way_counts():
    records = [
        record(method=method, score=score, common=common, seed=seed, options=["teacher.lr=0.01"])
        for seed in range(3)
        for method, common, score in (
            ("glnn", False, 0.1),
            ("glnn", True, 0.2),
            ("krd", True, 0.5),
            ("hidden", False, 0.5),
        )
    ]
    gains = {d.model: d.mean for d in differences(grouped(records), *TEST, "glnn") if d.against == "glnn"}
    assert (gains["krd"], gains["hidden"]) == pytest.approx((30, 40))


def gains_over_glnn(*given):
    """Of students by method, options and score: how far each is above its reference, whichever comes first."""
    records = [
        record(method=method, options=options, score=score, seed=seed)
        for seed in range(3)
        for method, options, score in given
    ]
    rows = grouped(records)
    found, other = (
        {d.model: d.mean for d in differences(order, *TEST, "glnn") if d.against == "glnn"}
        for order in (rows, rows[::-1])
    )
    assert found == pytest.approx(other)
    return found


def test_the_plain_reference_has_the_shipped_options_then_no_codes():
    codes, other, third = ["teacher.tokenizer=inside"], ["dropout=0.5"], ["lr=0.5"]
    assert gains_over_glnn(("glnn", codes, 0.3), ("glnn", other, 0.2)) == pytest.approx({"glnn dropout=0.5": -10})
    assert gains_over_glnn(("glnn", codes, 0.3), ("glnn", (), 0.1)) == pytest.approx({"glnn + codes inside": 20})
    assert gains_over_glnn(("glnn", other, 0.3), ("glnn", third, 0.1)) == pytest.approx({"glnn lr=0.5": -20})


def test_a_reference_of_the_same_teacher_comes_before_one_trained_in_the_same_way():
    teacher, student = ["teacher.lr=0.5"], ["dropout=0.5"]
    given = (("glnn", teacher, 0.1), ("glnn", student, 0.2), ("hidden", [*teacher, *student], 0.5))
    assert gains_over_glnn(*given)["hidden"] == pytest.approx(40)


def test_graphs_of_other_options_cost_what_they_cost():
    records = [record("sbm", options=[f"data.num_nodes={n}"], seconds=n) for n in (300, 600)]
    assert {cost.data: cost.seconds for cost in costs(grouped(records))} == {
        'sbm {"num_nodes": 300}': 300,
        'sbm {"num_nodes": 600}': 600,
    }


def test_differences_are_of_common_seeds_in_points_and_corrected_together():
    scores = {("cora-cpf", t, m): draws(i, 5) for i, (t, m) in enumerate(itertools.product(("sage", "gcn"), ("glnn",)))}
    scores |= {("cora-cpf", "sage", "hidden"): draws(7, 4), ("cora-cpf", None, "mlp"): draws(8, 5)}
    found = differences(grouped(trainings(scores)), *TEST, "glnn")
    of = {(d.against, d.teacher, d.model): d for d in found}
    expected = {
        ("glnn", teacher, model): (scores["cora-cpf", teacher, "glnn"], scores["cora-cpf", own, model])
        for teacher, own, model in (("sage", "sage", "hidden"), ("sage", None, "mlp"), ("gcn", None, "mlp"))
    }
    for key, (theirs, ours) in expected.items():
        count = min(len(ours), len(theirs))
        gain = 100 * (ours - theirs[:count])
        assert (of[key].seeds, of[key].mean) == (count, pytest.approx(gain.mean()))
        assert of[key].p == pytest.approx(stats.ttest_1samp(gain, 0).pvalue)
    families = {name: [d for d in found if d.against == name] for name in ("glnn", "teacher")}
    assert [len(family) for family in families.values()] == [3, 3]
    for family in families.values():
        assert [d.p_holm for d in family] == pytest.approx(holm([d.p for d in family]))
        assert [d.significant for d in family] == [d.p_holm < 0.05 for d in family]
    own = of["teacher", "sage", "hidden"]
    assert own.mean == pytest.approx(100 * (scores["cora-cpf", "sage", "hidden"].mean() - 0.5))


def test_a_part_that_some_records_lack():
    colds = {("glnn", 0): 0.5, ("glnn", 1): None, ("mlp", 0): 0.25, ("mlp", 1): 0.75}
    records = [record(method=m, setting="inductive", seed=seed, cold=cold) for (m, seed), cold in colds.items()]
    found = {d.model: d for d in differences(grouped(records), "inductive", "cold", "glnn")}
    assert (found["mlp"].seeds, found["mlp"].mean, found["glnn"].seeds) == (1, -25, 1)
    assert differences(grouped([record()]), "inductive", "cold", "glnn") == []


# -- over all pairs --------------------------------------------------------------------------------------------

DATA = ("cora-cpf", "citeseer-cpf", "photo-cpf", "computers-cpf")


def test_overall_counts_and_tests_the_pairs():
    shift = dict(zip(itertools.product(DATA, ("sage", "gcn")), (0.1, 0.1, 0.1, 0, 0, -0.1, 0.001, 0.002), strict=True))
    noise = np.array([-0.004, 0.001, 0.003])
    scores = {(*pair, "glnn"): draws(1, 3) for pair in shift}
    scores |= {(*pair, "hidden"): draws(1, 3) + by + noise * (by != 0) for pair, by in shift.items()}
    rows = grouped(trainings(scores))
    found = differences(rows, *TEST, "glnn")
    (total,) = (each for each in overall(found) if each.against == "glnn")
    gains = [d.mean for d in found if d.against == "glnn"]
    assert sorted(gains) == pytest.approx(sorted(100 * by for by in shift.values()), abs=1e-9)
    assert (total.pairs, total.mean) == (8, pytest.approx(np.mean(gains)))
    assert (total.better, total.same, total.worse) == (3, 4, 1)
    assert total.p == total.p_holm == pytest.approx(stats.wilcoxon(gains).pvalue)
    assert {each.model for each in overall(found) if each.against == "teacher"} == {"glnn", "hidden"}


def test_overall_says_nothing_of_five_pairs_and_nothing_differs_where_all_are_equal():
    def total(count, by):
        chosen = list(itertools.product(DATA, ("sage", "gcn")))[:count]
        scores = {(*p, m): draws(i, 3) + by * (m == "hidden") for i, p in enumerate(chosen) for m in ("glnn", "hidden")}
        found = overall(differences(grouped(trainings(scores)), *TEST, "glnn"))
        return next(each for each in found if each.against == "glnn")

    assert (total(5, 0.1).p, total(5, 0.1).significant) == (None, False)
    assert total(6, 0.1).p == pytest.approx(2 / 2**6)
    assert (total(6, 0).p, total(6, 0).same) == (1, 6)


def test_pairs_of_too_few_seeds_for_a_test_are_neither_better_nor_the_same():
    scores = {(data, "sage", m): draws(0, 2) + 0.1 * (m == "hidden") for data in DATA for m in ("glnn", "hidden")}
    total = next(each for each in overall(differences(grouped(trainings(scores)), *TEST, "glnn")))
    assert (total.pairs, total.better, total.same, total.worse) == (4, 0, 0, 0)


# -- ranks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("models", "q"), [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)])
def test_critical_difference_is_that_of_demsars_table(models, q):
    for count in (6, 30):
        expected = q * np.sqrt(models * (models + 1) / (6 * count))
        assert critical_difference(models, count) == pytest.approx(expected, rel=1e-3)


METHODS = ("glnn", "hidden", "ff_g2m", "mlp")


def grid(seed, count=4):
    rng = np.random.default_rng(seed)
    return {(data, "sage", method): rng.random(3) for data in DATA[:count] for method in METHODS}


@pytest.mark.parametrize("seed", range(5))
def test_ranks_and_friedman_are_scipys(seed):
    scores = grid(seed)
    table = np.array([[scores[data, "sage", method].mean() for method in METHODS] for data in DATA])
    found = ranks(grouped(trainings(scores)), *TEST)
    expected = dict(zip(METHODS, stats.rankdata(-table, axis=1).mean(0), strict=True))
    assert found.mean == pytest.approx(expected)
    assert list(found.mean.values()) == sorted(found.mean.values())
    assert found.p == pytest.approx(stats.friedmanchisquare(*table.T).pvalue)
    assert (found.pairs, found.missing) == (4, ())
    assert found.critical == critical_difference(4, 4)


def test_ranks_depend_on_order_alone():
    scores = grid(3)
    other = {key: values**3 / 9 for key, values in scores.items()}
    one = {key: values[:1] for key, values in scores.items()}
    same = {key: values[:1] for key, values in other.items()}
    assert ranks(grouped(trainings(one)), *TEST) == ranks(grouped(trainings(same)), *TEST)


def test_ties_share_their_ranks():
    by_hand = {"glnn": (3, 3), "hidden": (1, 2), "ff_g2m": (1, 2), "mlp": (0, 2)}  # ranks 1, 2.5, 2.5, 4; 1, 3, 3, 3
    scores = {(DATA[i], "sage", m): [values[i] / 10] for m, values in by_hand.items() for i in range(2)}
    assert ranks(grouped(trainings(scores)), *TEST).mean == {"glnn": 1, "ff_g2m": 2.75, "hidden": 2.75, "mlp": 3.5}
    tied = ranks(grouped(trainings({key: [0.5] for key in scores})), *TEST)
    assert (set(tied.mean.values()), tied.p) == ({2.5}, 1)


def test_a_model_that_most_pairs_lack_is_left_out_and_pairs_that_lack_others_do_not_count():
    scores = grid(0)
    for data in DATA[1:]:
        del scores[data, "sage", "ff_g2m"]  # in one of four
    for data in DATA[2:]:
        del scores[data, "sage", "hidden"]  # in half of them
    found = ranks(grouped(trainings(scores)), *TEST)
    assert (found.missing, found.pairs, set(found.mean)) == (("ff_g2m",), 2, {"glnn", "hidden", "mlp"})


def test_no_ranks_of_one_model_or_one_pair():
    assert ranks(grouped(trainings(grid(0, count=1))), *TEST) is None
    assert ranks(grouped(trainings({(data, "sage", "glnn"): [0.5] for data in DATA})), *TEST) is None
    two = ranks(grouped(trainings({(d, "sage", m): [0.5] for d in DATA for m in METHODS[:2]})), *TEST)
    assert two.p is None, "Friedman's test needs three"


def test_means_are_over_the_seeds_all_models_have():
    scores = {(d, "sage", m): np.array([0.5 + 0.1 * (m == "hidden")]) for d in DATA for m in METHODS[:3]}
    more = {(d, "sage", "glnn"): np.array([0.5, 0.9]) for d in DATA}  # a second seed, an easy one, of glnn alone
    assert ranks(grouped(trainings(scores | more)), *TEST).mean["hidden"] == 1


# -- speed, cost -----------------------------------------------------------------------------------------------


def test_speeds_by_hand():
    records = []
    for data, student, teacher, gain in (("cora-cpf", 0.1, 1.0, 0.02), ("photo-cpf", 0.4, 9.0, -0.04)):
        records += [record(data, ms=student, teacher_ms=teacher, score=0.8 + gain, teacher_score=0.8)]
        records += [record(data, "mlp", ms=student / 2, score=0.7)]
    found = {speed.model: speed for speed in speeds(grouped(records), *TEST)}
    assert list(found) == ["mlp", "glnn", "SAGE"], "the fastest first"
    assert found["SAGE"].ms == pytest.approx(3)
    assert found["glnn"].ms == pytest.approx(0.2)
    assert found["mlp"].ms == pytest.approx(0.1)
    assert [found[m].faster for m in found] == pytest.approx([30, 15, 1])
    assert [found[m].over_teacher for m in found] == pytest.approx([-10, -1, 0])
    assert {(speed.pairs, speed.of) for speed in found.values()} == {(2, 2)}
    untimed = [*records, record("computers-cpf", score=0.9)]
    assert {(speed.pairs, speed.of) for speed in speeds(grouped(untimed), *TEST)} == {(2, 3)}


def test_each_student_is_compared_with_its_own_teacher_where_that_is_scored():
    times = {"ms": 1.0, "teacher_ms": 2.0}
    records = [record(score=0.5, teacher_score=0.6, **times)]
    records += [record(score=0.5, teacher_score=0.9, options=["teacher.tokenizer=inside"], **times)]
    records += [record(method="mlp", score=0.5, **times)]
    above = {speed.model: speed.over_teacher for speed in speeds(grouped(records), *TEST)}
    assert above == pytest.approx({"SAGE": 0, "glnn": -10, "glnn + codes inside": -40, "mlp": -10})
    records[0]["teacher_scores"]["test"] = None
    assert {speed.model for speed in speeds(grouped(records), *TEST)} == {"SAGE", "glnn + codes inside"}


def test_the_unit_of_time_does_not_change_how_much_faster_a_model_is():
    def faster(scale):
        records = [
            record(d, ms=scale * (i + 1), teacher_ms=scale * 7, seed=s) for i, d in enumerate(DATA) for s in (0, 1)
        ]
        return [speed.faster for speed in speeds(grouped(records), *TEST)]

    assert faster(1) == pytest.approx(faster(1000))


def test_records_without_latency_are_left_out():
    assert speeds(grouped([record(), record(method="mlp")]), *TEST) == []
    assert speeds(grouped([record(method="mlp", ms=1.0)]), *TEST) == [], "there is no teacher to compare with"
    old_and_new = [record(seed=0), record(seed=1, ms=0.5, teacher_ms=2.0)]
    assert [(s.model, s.ms, s.faster) for s in speeds(grouped(old_and_new), *TEST)] == [
        ("glnn", 0.5, 4),
        ("SAGE", 2, 1),
    ]


def test_costs_are_means_and_a_teacher_of_several_students_is_counted_once():
    records = [
        record(method=method, setting=setting, seed=seed, seconds=seconds, epochs=10 * seed + 10)
        for setting in ("transductive", "inductive")
        for method, seconds in (("glnn", 2.0), ("hidden", 2.0), ("mlp", 1.0))
        for seed in (0, 1)
    ]
    rows = grouped(records)
    found = {cost.model: cost for cost in costs(rows)}
    assert found.keys() == {"glnn", "hidden", "mlp"}
    assert [found["glnn"].trainings, found["glnn"].seconds, found["glnn"].epochs] == [4, 2, 15]
    assert (found["glnn"].teacher_seconds, found["mlp"].teacher_seconds) == (20, None)
    assert training_seconds(rows) == {"students": (12, 20), "teachers": (4, 80)}
    assert training_seconds(grouped(records + records)) == training_seconds(rows)


def test_everything_at_once_is_each_by_itself():
    rows = grouped(trainings(grid(1)) + [record(setting="inductive", seed=seed) for seed in range(3)])
    found = compare(rows)
    assert found.against == "glnn"
    cases = (TEST, ("inductive", "unseen"), ("inductive", "test"))
    assert found.differences == [d for case in cases for d in differences(rows, *case, "glnn")]
    assert found.ranks == [ranks(rows, *TEST)]
    assert found.costs == costs(rows)
    assert compare([]).costs == compare([]).differences == compare([]).ranks == []
