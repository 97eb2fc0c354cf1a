import io
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.image import imread
from result_cases import record

from g2m.comparisons import compare
from g2m.errors import G2MError
from g2m.report import grouped, markdown, sections, summary
from g2m.report_page import report_files, report_text, write_files
from g2m.report_sections import comparison_figures, comparison_sections

VOID = {"meta", "br", "img", "link", "input", "hr"}


def results(ms=0.1):
    """Three data sets, three methods, both settings, five seeds; graphs of one seed differ, students differ more."""
    shifts = {"glnn": 0.0, "hidden": 0.02, "mlp": -0.1}
    return [
        record(
            data,
            method,
            setting=setting,
            seed=seed,
            score=0.7 + 0.01 * seed + shift + 0.001 * ((seed * 7 + len(data)) % 3),
            teacher_score=0.72,
            ms=ms,
            teacher_ms=ms and 10 * ms,
            cold=0.5,
        )
        for data in ("cora-cpf", "citeseer-cpf", "photo-cpf")
        for setting in ("transductive", "inductive")
        for method, shift in shifts.items()
        for seed in range(5)
    ]


class Page(HTMLParser):
    """What the tests ask of a page; unbalanced tags are an error."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tables, self.headings, self.loads, self.ids, self.words = [], [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag == "h2":
            self.headings.append("")
        self.ids += [attributes["id"]] if "id" in attributes else []
        names = ("src", "href", "xlink:href", "srcset", "action", "data", "poster")
        self.loads += [attributes[name] for name in names if name in attributes]
        self.loads += re.findall(r"url\(([^)]*)\)", attributes.get("style", "") + attributes.get("clip-path", ""))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data
        if self.open and self.open[-1] == "h2":
            self.headings[-1] += data


@pytest.fixture(scope="module")
def files():
    return report_files(results(), command="g2m report r.jsonl")


def test_the_page_asks_for_nothing_outside_itself(files):
    page = Page(files["index.html"])
    assert page.loads, "links to its parts, and the plots' own"
    assert [load for load in page.loads if not load.startswith("#")] == []
    assert {load[1:] for load in page.loads} <= set(page.ids)
    assert not re.search(r"https?:|//\w+\.|@import|<link|<iframe|fetch\(|XMLHttp", files["index.html"])


def test_the_page_has_the_tables_of_the_markdown(files):
    page = Page(files["index.html"])
    assert page.headings == re.findall(r"^## (.*)$", files["report.md"], re.M)
    of_markdown = [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "---" not in line]
        for table in re.findall(r"(?:^\|.*\n)+", files["report.md"], re.M)
    ]
    assert page.tables == of_markdown
    found = [*sections(results()), *comparison_sections(compare(grouped(results())))]
    assert page.headings == [section.title for section in found]
    assert page.tables == [[list(map(str, row)) for row in (s.header, *s.rows)] for s in found if s.header]


def test_all_parts_are_there(files):
    titles = re.findall(r"^## (.*)$", files["report.md"], re.M)
    cases = ("transductive, test", "inductive, unseen", "inductive, test")
    expected = ["Transductive", "Inductive", *(f"Differences: {case}" for case in cases)]
    expected += [f"Over all data sets: {case}" for case in cases]
    assert titles == [*expected, "Mean ranks", "Quality against latency", "Cost of training"]
    assert "Made by `g2m report r.jsonl`" in files["report.md"]
    assert re.findall(r"!\[.*\]\((.*)\)", files["report.md"]) == ["ranks.png", "latency.png"]
    page = Page(files["index.html"])
    assert files["index.html"].count("<svg") == 2
    words = " ".join(page.words)
    for name in ("critical difference", "milliseconds for one node", "glnn", "hidden", "only ratios count"):
        assert name in words
    for name in ("ranks.png", "latency.png"):
        assert imread(io.BytesIO(files[name])).shape[2] in (3, 4)
    assert files["index.html"].count("aria-label") == 2


def test_a_mean_of_fewer_than_its_row_says_of_how_many():
    """Of hidden and glnn one has a pair, and one a seed, that the other lacks; one pair has no times."""
    gone = {("photo-cpf", "glnn", seed) for seed in range(5)} | {("cora-cpf", "glnn", 4)}
    records = [line for line in results() if (line["data"], line["method"], line["seed"]) not in gone]
    for line in records:
        for run in ("run", "teacher_run") if line["data"] == "cora-cpf" else ():
            line.get(run, {}).pop("ms", None)
    records.append(record("citeseer-cpf", "krd"))
    found = {section.title: section for section in comparison_sections(compare(grouped(records)))}
    overall = {line[0]: line for line in found["Over all data sets: transductive, test"].rows}
    assert overall["hidden"][1:3] == ["3", "+2.00 (of 2)"]
    assert overall["glnn"][1] == "2"
    of_cora = {line[2]: line for line in found["Differences: transductive, test"].rows if line[0] == "cora-cpf"}
    assert of_cora["hidden"][3] == "5"
    assert of_cora["hidden"][4].endswith("(of 4)")
    speeds = found["Quality against latency"]
    assert {line[3] for line in speeds.rows} == {"1 of 3"}
    assert speeds.notes[1] == "Transductive, test: left out, without a time in them, krd."


def test_differences_are_shown_with_their_star(files):
    (table,) = (t for s, t in zip(*_shown(files), strict=True) if s == "Differences: transductive, test")
    assert table[0] == ["data", "teacher", "model", "seeds", "over glnn", "p", "over its teacher", "p"]
    of = {tuple(row[:3]): row[3:] for row in table[1:]}
    assert len(of) == 9
    assert of["cora-cpf", "SAGE", "glnn"][1:3] == ["–", "–"]
    seeds, gain, p = of["cora-cpf", "SAGE", "hidden"][:3]
    assert (seeds, gain, p) == ("5", "+2.00 ± 0.00 *", "<0.001")
    assert of["cora-cpf", "SAGE", "mlp"][3:] == ["–", "–"], "it has no teacher of its own"
    lone = report_text([record(seed=s, method=m) for s in (0, 1) for m in ("glnn", "mlp")])
    assert re.search(r"\| cora-cpf \| SAGE \| mlp \| 2 \| \+0\.00 ± 0\.00 \| – \|", lone), "two seeds show no p"


def _shown(files):
    page = Page(files["index.html"])
    return page.headings, page.tables


def test_plots_show_every_model():
    compared = compare(grouped(results()))
    figures = comparison_figures(compared)
    assert figures.keys() == {"ranks", "latency"}
    panels = figures["ranks"].axes
    assert [[label.get_text() for label in panel.get_yticklabels()] for panel in panels] == [
        list(ranked.mean) for ranked in compared.ranks
    ]
    (legend,) = figures["latency"].legends
    assert {text.get_text() for text in legend.get_texts()} == {"SAGE", "glnn", "hidden", "mlp"}
    drawn = [(line.get_xdata()[0], line.get_ydata()[0]) for panel in figures["latency"].axes for line in panel.lines]
    assert {(speed.ms, speed.over_teacher) for speed in compared.speeds} <= set(drawn)


# -- what is not there -----------------------------------------------------------------------------------------


def test_records_without_latency_have_no_plot_of_it_and_the_report_says_so():
    found = report_files(results(ms=None))
    assert "latency.png" not in found
    assert "older versions did not measure it" in found["report.md"]
    assert found["index.html"].count("<svg") == 1
    assert found["latency.csv"].count("\n") == 1


def test_one_training_is_enough():
    found = report_files([record()])
    assert {name for name in found if name.endswith(".png")} == set()
    assert "No ranks" in found["report.md"]
    Page(found["index.html"])


def test_without_the_reference_teachers_remain():
    text = report_text([record(method="hidden", seed=seed) for seed in range(3)])
    assert "| data | teacher | model | seeds | over its teacher | p |" in text
    assert "No student of glnn is here" in text
    with pytest.raises(G2MError, match="Did you mean 'hidden'"):
        report_text([record(method="hidden")], against="hiden")


def test_tables_that_are_no_trainings_are_there_and_nothing_is_compared():
    records = [{"table": "speed <b>", "model": "<script>alert(1)</script>", "ms": 1, "ms_std": 0.5}]
    found = report_files(records)
    page = Page(found["index.html"])
    assert page.headings == ["speed <b>"]
    assert page.tables == [[["model", "ms"], ["<script>alert(1)</script>", "1.00 ± 0.50"]]]
    assert found["scores.csv"].count("\n") == 1
    assert found["report.md"] == "# Results\n\nMade by `g2m report`.\n\n" + markdown(records)


def test_a_part_left_out_in_a_few_pairs_is_said():
    records = [*results(), *(record("cora-cpf", "ff_g2m", seed=seed) for seed in range(2))]
    assert "Left out, as more than half of the pairs lack them: ff_g2m." in report_text(records)


# -- CSV -------------------------------------------------------------------------------------------------------


def read(files, name):
    return pd.read_csv(io.StringIO(files[f"{name}.csv"]), keep_default_na=False, na_values=[""])


def test_scores_have_a_line_per_row_and_part(files):
    table, rows = read(files, "scores"), summary(results())
    names = [
        *("data", "setting", "teacher", "method", "tokenizer", "options", "layers", "width", "parameters", "seeds")
    ]
    assert list(table) == [*names, "part", "mean", "std", "published_mean", "published_std", "seconds"]
    assert len(table) == sum(len(row["scores"]) for row in rows)
    for row in rows:
        of_row = table[
            (table.data == row["data"])
            & (table.setting == row["setting"])
            & (table.method == row["method"])
            & (table.teacher.fillna("") == (row["teacher"] or ""))
        ].set_index("part")
        assert set(of_row.index) == row["scores"].keys()
        assert of_row[["layers", "width", "parameters"]].drop_duplicates().to_numpy().tolist() == [[2, 128, 184_000]]
        for part, scores in row["scores"].items():
            line = of_row.loc[part]
            assert line["mean"] == pytest.approx(100 * pd.Series(scores).mean(), rel=1e-5)
            std = 100 * pd.Series(scores).std()  # not a number, and an empty cell, of a single seed
            assert line["std"] == pytest.approx(std, rel=1e-4, abs=1e-9, nan_ok=True)
            assert line["seeds"] == len(scores)
            published = [value for value in line[["published_mean", "published_std"]] if value == value]
            assert published == row["published"].get(part, [])


def test_the_other_files_have_the_numbers_of_the_report(files):
    compared = compare(grouped(results()))
    for name, found in {"differences": compared.differences, "overall": compared.overall}.items():
        table = read(files, name)
        assert table["mean"].to_list() == pytest.approx([each.mean for each in found], rel=1e-4)
    assert read(files, "latency")["faster"].to_list() == pytest.approx([s.faster for s in compared.speeds], rel=1e-4)
    assert read(files, "cost")["trainings"].sum() == len(results())
    assert read(files, "ranks").groupby(["setting", "part"])["rank"].sum().to_list() == [6, 6, 6], "1 + 2 + 3"


# -- writing ---------------------------------------------------------------------------------------------------


def test_the_order_of_the_records_and_the_day_change_nothing(files):
    shuffled = results()
    random.Random(0).shuffle(shuffled)
    again = report_files(shuffled, command="g2m report r.jsonl")
    assert {name: content for name, content in again.items() if not name.endswith(".png")} == {
        name: content for name, content in files.items() if not name.endswith(".png")
    }


def test_a_report_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = tmp_path / "new" / "report"
    first = {"a.md": "old", "b.csv": "old\n", "c.png": b"\x00"}
    assert write_files(folder, first) == folder
    (folder / "mine.txt").write_text("kept")
    write, written = Path.write_bytes, []

    def full(path, data):
        written.append(path)
        if len(written) == 3:
            raise OSError("no space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        write_files(folder, {name: "new" for name in first})
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        **{"a.md": b"old", "b.csv": b"old\n", "c.png": b"\x00"},
        "mine.txt": b"kept",
    }
    (folder / "ranks.png").write_bytes(b"of an earlier report")
    write_files(folder, {"a.md": "new ±", "latency.png": b""})
    assert (folder / "a.md").read_text(encoding="utf-8") == "new ±"
    assert not (folder / "ranks.png").exists()
    assert (folder / "latency.png").exists()
    assert (folder / "mine.txt").exists()


def test_a_file_is_not_taken_for_a_folder(tmp_path):
    (tmp_path / "report").write_text("mine")
    with pytest.raises(G2MError, match=r"--out: expected a folder, or a page that ends in \.md \(got the file"):
        write_files(tmp_path / "report", {"a": ""})
    assert (tmp_path / "report").read_text() == "mine"
