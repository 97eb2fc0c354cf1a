import json
import re

import numpy as np
import pytest
from matplotlib.image import imread
from result_cases import record

from g2m.bench import append_result, read_results
from g2m.errors import G2MError
from g2m.report import (
    curves,
    grouped,
    insert,
    markdown,
    markdown_table,
    mean_std,
    percent,
    quality_against_speed,
    score_rows,
    sections,
    summary,
    thousands,
)

# -- numbers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 10, 101])
def test_mean_std_is_numpys_with_ddof_1(count):
    values = np.random.default_rng(count).random(count).tolist()
    assert mean_std(values) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    mean, std = map(float, percent(values).split(" ± "))
    assert (mean, std) == pytest.approx((100 * np.mean(values), 100 * np.std(values, ddof=1)), abs=0.005)


def test_a_single_value_has_no_deviation():
    assert mean_std([0.25]) == (0.25, 0)
    assert percent([0.25]) == "25.00"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (999, "999"), (1000, "1k"), (184_455, "184k"), (1_149_000, "1.1M")]
)
def test_thousands(count, text):
    assert thousands(count) == text


# -- summary ---------------------------------------------------------------------------------------------------


def test_summary_gathers_seeds_and_adds_the_teacher():
    records = [record(seed=seed, score=score, seconds=seed + 1) for seed, score in [(2, 0.7), (0, 0.5), (1, 0.9)]]
    teacher, student = summary(records)
    assert (teacher["method"], student["method"]) == ("teacher", "glnn")
    assert student["seeds"] == teacher["seeds"] == 3
    assert student["scores"] == {"val": [0.5, 0.9, 0.7], "test": pytest.approx([0.501, 0.901, 0.701])}, "by seed"
    assert teacher["scores"]["test"] == pytest.approx([0.601, 1.001, 0.801])
    assert (student["seconds"], teacher["seconds"]) == (2, 20)
    assert student["published"] == {"test": [80.26, 1.66]}
    assert teacher["published"] == {"test": [80.64, 1.57]}


def test_summary_counts_a_teacher_once_and_a_repeated_line_once():
    records = [record(seed=seed) for seed in (0, 1)]
    assert summary(records + records) == summary(records)
    assert [row["seeds"] for row in summary(records)] == [2, 2]


def test_a_tokenizer_is_in_the_name_of_the_teacher_and_published_scores_are_of_the_one_without():
    options = ([], ["teacher.tokenizer=inside"], ["teacher.tokenizer=beside"])
    header, table = score_rows(summary(record(options=given) for given in options), "transductive")
    names, published = ([row[header.index(column)] for row in table] for column in ("model", "published"))
    suffix = ["", " + codes beside", " + codes inside"]
    assert names == [f"{who}SAGE{codes}" for who in ("", "glnn ← ") for codes in suffix]
    assert [score != "–" for score in published] == [not name.count("codes") for name in names]
    assert "options" not in header


def test_summary_keeps_apart_what_differs():
    records = [
        record(),
        record(setting="inductive"),
        record(method="mlp"),
        record(teacher="gcn"),
        record(data="citeseer-cpf"),
        record(options=["dropout=0.5"]),
        record(options=["dropout=0.5", "glnn.tau=2"]),
        record(options=["teacher.lr=0.5"]),
    ]
    rows = summary(records)
    students = [
        (r["data"], r["setting"], r["teacher"], r["method"], r["options"]) for r in rows if r["method"] != "teacher"
    ]
    assert sorted(students, key=str) == sorted(
        [
            ("cora-cpf", "transductive", "sage", "glnn", ""),
            ("cora-cpf", "inductive", "sage", "glnn", ""),
            ("cora-cpf", "transductive", None, "mlp", ""),
            ("cora-cpf", "transductive", "gcn", "glnn", ""),
            ("citeseer-cpf", "transductive", "sage", "glnn", ""),
            ("cora-cpf", "transductive", "sage", "glnn", "dropout=0.5"),
            ("cora-cpf", "transductive", "sage", "glnn", "dropout=0.5 tau=2"),
            ("cora-cpf", "transductive", "sage", "glnn", "teacher.lr=0.5"),
        ],
        key=str,
    )
    teachers = {(r["data"], r["setting"], r["teacher"], r["options"]) for r in rows if r["method"] == "teacher"}
    assert teachers == {
        ("cora-cpf", "transductive", "sage", ""),
        ("cora-cpf", "inductive", "sage", ""),
        ("cora-cpf", "transductive", "gcn", ""),
        ("citeseer-cpf", "transductive", "sage", ""),
        ("cora-cpf", "transductive", "sage", "teacher.lr=0.5"),
    }


def test_published_and_common_options_of_a_method_are_told_apart():
    published, common = record(score=0.5), record(score=0.7, common=True)
    other = record("citeseer-cpf", common=True)
    for alone in (published, common):
        assert [row["options"] for row in summary([alone])] == ["", ""]
    assert "common" not in markdown([common, other])
    rows = [row for row in grouped([published, common, other]) if row["method"] == "glnn"]
    assert [(row["data"], row["name"], row["options"]) for row in rows] == [
        ("citeseer-cpf", "glnn common", "common"),
        ("cora-cpf", "glnn", ""),
        ("cora-cpf", "glnn common", "common"),
    ]
    assert [row["by_seed"][0]["val"] for row in rows[1:]] == [0.5, 0.7]
    assert "| cora-cpf | glnn ← SAGE | common |" in (page := markdown([published, common, other]))
    assert "`common`: with the teacher" in page
    changed = record(common=True, options=["dropout=0.5"])
    assert {row["options"] for row in grouped([published, common, changed])} == {"", "common", "common dropout=0.5"}


def test_teachers_of_several_methods_experiments_are_told_apart():
    records = [record("cora", method, "gcn") for method in ("glnn", "krd")]
    assert [row["options"] for row in summary(records[1:])] == ["", ""]
    teachers = [row["options"] for row in summary(records) if row["method"] == "teacher"]
    assert teachers == ["", "teacher.hidden_channels=1024"]


def test_an_option_left_out_is_shown_as_default():
    line = record()
    del line["config"]["student_options"]["dropout"]
    assert summary([line])[-1]["options"] == "dropout=default"


def test_order_is_teacher_student_baseline_and_transductive_first():
    records = [record(method=m, setting=s) for s in ("inductive", "transductive") for m in ("mlp", "glnn")]
    found = [(row["setting"], row["method"]) for row in summary(records)]
    assert found == [(s, m) for s in ("transductive", "inductive") for m in ("teacher", "glnn", "mlp")]


def test_a_part_counts_the_seeds_that_have_it():
    """Older records have no ``cold``; a part that could not be scored is ``None`` or NaN."""
    colds = [None, 0.5, float("nan"), 0.3, None]
    records = [record(setting="inductive", seed=seed, cold=cold) for seed, cold in enumerate(colds)]
    records[4]["scores"]["cold"] = None
    for row in summary(records):
        assert row["scores"]["cold"] == [0.5, 0.3]
        assert len(row["scores"]["unseen"]) == row["seeds"] == 5
    assert summary(records[::-1]) == summary(records)
    assert "cold" not in summary(records[:1])[0]["scores"]


def test_parts_that_one_record_of_a_teacher_lacks_are_taken_from_another(caplog):
    """Whichever comes first. Where they contradict each other, one of them counts, and it is said."""

    def of_teacher(*records):
        teacher = next(row for row in summary(records) if row["method"] == "teacher")
        return {part: score for part, (score,) in teacher["scores"].items()}

    whole, less = record(setting="inductive", cold=0.25), record(setting="inductive", method="hidden")
    assert of_teacher(whole, less) == of_teacher(less, whole) == whole["teacher_scores"]
    assert "cold" in whole["teacher_scores"].keys() - less["teacher_scores"].keys()
    assert not caplog.records
    other = record(setting="inductive", method="hidden", teacher_score=0.3)
    assert of_teacher(whole, other) == other["teacher_scores"]
    said = "cora-cpf: seed 0 of teacher sage twice, with other scores, .*: the later of those beside hidden counts"
    assert [bool(re.fullmatch(said, line)) for line in caplog.messages] == [True]


def test_the_order_of_the_lines_does_not_decide_what_is_known_of_a_teacher():
    # hidden: nothing published; krd: nothing of its teacher; auto comes first by name
    records = [record(method=method) for method in ("hidden", "krd", "glnn", "mlp", "auto")]
    assert summary(records) == summary(records[::-1])
    assert summary(records)[0]["published"] == {"test": [80.64, 1.57]}


def test_grouped_has_what_each_seed_gave():
    records = [record(seed=seed, score=seed / 10) for seed in (3, 1)]
    teacher, student = grouped(records)
    assert list(student["by_seed"]) == [1, 3]
    assert student["by_seed"] == {r["seed"]: r["scores"] for r in records}
    assert student["teacher_by_seed"] == teacher["by_seed"] == {r["seed"]: r["teacher_scores"] for r in records}
    assert student["runs"] == {r["seed"]: r["run"] for r in records}
    assert teacher["runs"] == {r["seed"]: r["teacher_run"] for r in records}


def test_names_say_more_than_the_method_where_a_teacher_has_several_students_of_it():
    codes = ["teacher.tokenizer=inside"]
    plain = [record(), record("citeseer-cpf", options=["dropout=0.5"]), record(method="mlp"), record(teacher="gcn")]
    assert [row["name"] for row in grouped(plain) if row["method"] != "teacher"] == ["glnn", "glnn", "glnn", "mlp"]
    several = [record(options=options) for options in ((), ["dropout=0.5"], codes, [*codes, "dropout=0.5"])]
    names = {row["name"] for row in grouped([*several, record(method="hidden")]) if row["method"] != "teacher"}
    assert names == {"glnn", "glnn dropout=0.5", "glnn + codes inside", "glnn + codes inside dropout=0.5", "hidden"}


# -- tables ----------------------------------------------------------------------------------------------------


def cells(table: str) -> list[list[str]]:
    """A Markdown table as its cells, header first."""
    header, rule, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()]
    assert set(rule) == {"---"}
    assert all(len(row) == len(header) for row in rows)
    return [header, *rows]


def test_score_rows_put_the_published_number_beside_the_measured():
    records = [record(seed=seed, score=score, setting="inductive") for seed, score in enumerate((0.5, 0.7))]
    header, rows = score_rows(summary(records), "inductive")
    measured = {"test": "60.10 ± 14.14", "seen": "60.20 ± 14.14", "unseen": "60.30 ± 14.14"}
    published = {"test": "77.82", "seen": "78.97 ± 1.56", "unseen": "73.21 ± 1.50"}
    student = rows[1]
    assert student[: header.index("test")] == ["cora-cpf", "glnn ← SAGE", "2×128, 184k", "2"]
    for part in measured:
        column = header.index(part)
        assert header[column + 1] == "published"
        assert student[column : column + 2] == [measured[part], published[part]]
    assert rows[0][1] == "SAGE"
    assert score_rows(summary(records), "transductive")[1] == []


def test_score_rows_show_cold_nodes_only_where_some_record_has_them():
    old, new = record(setting="inductive"), record(setting="inductive", method="mlp", cold=0.5)
    assert "cold" not in score_rows(summary([old]), "inductive")[0]
    header, rows = score_rows(summary([old, new]), "inductive")
    assert header[-2:] == ["cold", "published"]
    assert [row[-2:] for row in rows] == [["–", "–"], ["–", "–"], ["50.00", "–"]]


def test_a_part_that_some_seeds_lack_says_how_many_have_it():
    rows = summary([record(setting="inductive"), record(setting="inductive", seed=1, cold=0.5)])
    cells = score_rows(rows, "inductive")[1][-1]
    assert cells[-2] == "50.00 (of 1)"
    assert "of" not in cells[-4]


def test_score_rows_show_options_only_where_there_are_any():
    assert "options" not in score_rows(summary([record()]), "transductive")[0]
    header, rows = score_rows(summary([record(), record(options=["dropout=0.5"])]), "transductive")
    column = header.index("options")
    assert {row[column] for row in rows} == {"", "dropout=0.5"}


def test_no_published_number_is_a_dash():
    header, rows = score_rows(summary([record(data="digits")]), "transductive")
    assert {row[header.index("published")] for row in rows} == {"–"}


def test_markdown_has_a_table_per_setting_versions_and_sources():
    records = [record(), record(setting="inductive"), record(method="mlp"), record(data="digits")]
    page = markdown(records, level=4)
    assert re.findall(r"^(#+ .*)$", page, re.M) == ["#### Transductive", "#### Inductive"]
    first = cells(re.search(r"#### Transductive\n\n?((?:\|.*\n)+)", page)[1])
    assert first[0].count("published") == 1
    assert len(first) == 1 + 5  # cora: teacher, student, mlp; digits: teacher, student
    assert "g2m 1.2.3, torch 4.5.6" in page
    assert page.count("Published: ") == 1
    assert "Inductive" not in markdown([record()])


def test_markdown_of_other_tables():
    records = [
        {"table": "speed", "model": "a", "ms": 1.5, "ms_std": 0.25},
        {"table": "size", "model": "a", "bytes": 7},
        {"table": "speed", "model": "b", "note": "x"},
    ]
    page = markdown(records)
    assert re.findall(r"^## (.*)$", page, re.M) == ["speed", "size"]
    speed, size = (cells(table) for table in re.findall(r"(?:^\|.*\n)+", page, re.M))
    assert speed == [["model", "ms", "note"], ["a", "1.50 ± 0.25", "–"], ["b", "–", "x"]]
    assert size == [["model", "bytes"], ["a", "7"]]
    assert "Percent" not in page


def test_markdown_of_both_kinds_and_of_nothing():
    page = markdown([record(), {"table": "speed", "ms": 1}])
    assert re.findall(r"^## (.*)$", page, re.M) == ["Transductive", "speed"]
    assert markdown([]) == ""


def test_sections_are_the_tables_of_the_page():
    records = [record(), record(setting="inductive"), {"table": "speed", "ms": 1}]
    found = sections(records)
    assert [section.title for section in found] == ["Transductive", "Inductive", "speed"]
    tables = [cells(table) for table in re.findall(r"(?:^\|.*\n)+", markdown(records), re.M)]
    assert tables == [[[str(cell) for cell in row] for row in (s.header, *s.rows)] for s in found]
    assert [len(section.notes) > 0 for section in found] == [False, True, False]


def test_markdown_table():
    assert cells(markdown_table(["a", "b"], [["1", "2"]])) == [["a", "b"], ["1", "2"]]


def test_insert_replaces_between_the_lines_and_can_be_repeated():
    page = "# x\n<!-- run me -->\nold\n<!-- end -->\nafter\n<!-- other -->\n<!-- end -->\n"
    once = insert(page, "run me", "new\n")
    assert "old" not in once
    assert once.startswith("# x\n<!-- run me -->\n")
    assert once.endswith("<!-- end -->\nafter\n<!-- other -->\n<!-- end -->\n")
    assert insert(once, "run me", "new\n") == once
    another = "<!-- run me -->\nno end\n<!-- g2m report other -->\n<!-- end -->\n"
    for broken in ("no lines", "<!-- run me -->\nno end", "<!-- end -->\n<!-- run me -->\n", another):
        with pytest.raises(G2MError, match="--into: the page lacks the lines"):
            insert(broken, "run me", "new")


# -- plot ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [("one",), ("one", "two")])
def test_plot_is_a_png_of_its_panels(tmp_path, settings):
    rows = [
        {"model": model, "setting": setting, "accuracy": 80.0 + i, "std": 1.0, "ms": 0.01 * 10**i}
        for setting in settings
        for i, model in enumerate(("a", "b"))
    ]
    with pytest.raises(G2MError, match=r"path: expected a name that ends in \.png, \.svg, \.pdf \(got '.*plot'\)"):
        quality_against_speed(rows, tmp_path / "plot", title="t")
    path = quality_against_speed(rows, tmp_path / "new" / "plot.png", title="t")
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    image = imread(path)
    assert image.shape[1] / image.shape[0] == pytest.approx(len(settings) * 4.6 / 3.8, rel=0.01)
    assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 2, "something is drawn, in colours"
    assert [file.name for file in path.parent.iterdir()] == ["plot.png"]


def test_curves_are_drawn_a_panel_each(tmp_path):
    line = [[0.1, 0.2, 0.3], [0.2, 0.3, 0.4]]
    panels = {"first": {"a": line, "b": line[:1]}, "second": {"a": line}}
    path = curves(panels, tmp_path / "new" / "plot.png", title="t", xlabel="epoch")
    image = imread(path)
    assert image.shape[1] / image.shape[0] == pytest.approx(2 * 4.2 / 3.8, rel=0.01)
    assert len(np.unique(image.reshape(-1, image.shape[2]), axis=0)) > 2, "something is drawn, in colours"
    assert [file.name for file in path.parent.iterdir()] == ["plot.png"]


# -- a file of results in, tables out --------------------------------------------------------------------------


def test_the_page_from_a_file_is_the_page_from_the_records(tmp_path):
    records = [record(seed=seed, score=0.7 + seed / 100) for seed in range(3)]
    for line in records:
        append_result(tmp_path / "r.jsonl", line)
    assert markdown(read_results(tmp_path / "r.jsonl")) == markdown(records)
    assert json.loads(json.dumps(summary(records))) == summary(records)


def test_published_scores_stand_beside_the_published_method_only():
    """A change to training keeps them; a change to the method's own hyper-parameters makes another method of it."""
    for option, kept in (("max_epochs=9", True), ("teacher.dropout=0.1", True), ("glnn.tau=3", False)):
        rows = summary([record(options=[option])])
        student = next(row for row in rows if row["method"] == "glnn")
        assert bool(student["published"]) is kept
        assert next(row for row in rows if row["method"] == "teacher")["published"]


def test_published_scores_are_of_one_network_and_of_its_own_codes():
    for option in ("teacher.members=3", "teacher.num_codes=4"):
        assert not any(row["published"] for row in summary([record(options=[option])]))


def test_published_scores_do_not_stand_beside_another_split():
    for row in summary([record(options=["data.split=random"])]):
        assert not row["published"]


def test_a_seed_with_two_scores_is_said(caplog):
    first, second = record(score=0.5), record(score=0.8)
    summary([first, first])
    assert not caplog.records
    assert summary([first, second])[-1]["scores"]["test"] == [0.801]
    assert "cora-cpf: seed 0 of glnn twice, with other scores" in caplog.text


def test_all_versions_are_named():
    first, second = record(seed=0), record(seed=1)
    second["config"] = {**second["config"], "versions": {"g2m": "9.9"}}
    page = markdown([first, second])
    assert "g2m 9.9" in page
    assert ", ".join(f"{k} {v}" for k, v in first["config"]["versions"].items()) in page


def test_published_scores_stand_beside_teachers_of_the_published_size_only():
    for option, kept in (("teacher.select=loss", True), ("teacher.hidden_channels=64", False)):
        rows = summary([record(options=[option])])
        assert bool(next(row for row in rows if row["method"] == "teacher")["published"]) is kept


def test_a_method_that_is_not_known_here_is_reported():
    known, other = record(), record(score=0.7)
    other |= {"method": "confident", "config": {**other["config"], "method": "confident"}, "key": "another"}
    rows = {row["method"]: row for row in summary([known, other])}
    assert rows["confident"]["scores"]["test"] == pytest.approx([0.701])
    assert rows["confident"]["published"] == {}
    assert rows["glnn"]["published"]
