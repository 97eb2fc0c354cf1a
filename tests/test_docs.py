"""The pages do what they say: their code runs, in order, and their links lead somewhere."""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from g2m import cli
from g2m.bench import read_results
from g2m.data import cards, find_card
from g2m.methods import REGISTRY
from g2m.report import insert, markdown

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
SETUP = ("make", "git", "cd", "pip", ".")  # not run: they change the environment
LANGUAGES = ("python", "bash", "toml", "")  # a block of no language is shown, not run


def blocks(page: str) -> list[tuple[str, str]]:
    """The fenced blocks of a page as (language, text); an unclosed fence is an error."""
    found, language, text = [], None, []
    for line in page.splitlines():
        fence = re.match(r"\s*(`{3,}|~{3,})(.*)", line)
        if fence is None:
            text.append(line)
        elif language is None:
            language, text = fence[2].strip(), []
        else:
            assert not fence[2].strip(), f"a block is opened inside a block: {line!r}"
            found.append((language, "\n".join(text)))
            language, text = None, []
    assert language is None, "the last block is not closed"
    return found


def commands(block: str) -> list[list[str]]:
    """The g2m commands of a bash block, as words; any line that is neither one nor set-up is an error."""
    found = []
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if not words or words[0] in SETUP:
            continue
        assert words[0] == "g2m", f"neither set-up nor a g2m command: {line!r}"
        assert not {"|", "&", "&&", ";", "||", ">", ">>", "<"} & set(words), f"needs a shell: {line!r}"
        found.append(words)
    return found


def run_command(words: list[str], monkeypatch) -> None:
    if words[1:3] == ["data", "get"]:  # fetches, if the files are not there: then only the name is checked
        card = find_card(words[3])
        if card.status() == "needs download":
            return
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stop:
        cli.app()
    assert stop.value.code in (None, 0), f"{shlex.join(words)} ended with {stop.value.code}"


def test_blocks_and_commands_are_found():
    """What the other tests see is what is on the page."""
    page = (
        "x\n```python\na = 1\n```\n  ```bash\ng2m data  # all\npip install g2m\n\ng2m train \\\n  digits\n```\n```\n```"
    )
    assert blocks(page) == [
        ("python", "a = 1"),
        ("bash", "g2m data  # all\npip install g2m\n\ng2m train \\\n  digits"),
        ("", ""),
    ]
    assert commands(blocks(page)[1][1]) == [["g2m", "data"], ["g2m", "train", "digits"]]
    for broken in ("ls", "g2m data | head", "python x.py", "G2M_CACHE=x g2m data"):
        with pytest.raises(AssertionError):
            commands(broken)
    with pytest.raises(AssertionError):
        blocks("```python\nx")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_of_a_page_runs_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("G2M_CACHE", str(tmp_path / "cache"))
    before = dict(REGISTRY)
    namespace: dict = {"__name__": f"page_{page.stem}"}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            for number, (language, text) in enumerate(blocks(page.read_text(encoding="utf-8")), 1):
                assert language in LANGUAGES, f"block {number} is marked {language!r}: is it to be run?"
                if language == "toml" and (name := re.match(r"# (\S+\.toml)$", text, re.M)):
                    Path(name[1]).write_text(text, encoding="utf-8")
                elif language == "python":
                    exec(compile(text, f"{page.name}, block {number}", "exec"), namespace)
                elif language == "bash":
                    for words in commands(text):
                        run_command(words, monkeypatch)
                elif language == "":
                    assert not re.search(r"^\s*(g2m |import |from \w+ import |>>> )", text, re.M), (
                        f"block {number} has code and no language: nothing runs it"
                    )
    finally:
        for name in REGISTRY.keys() - before.keys():
            del REGISTRY[name]


def test_the_generated_page_has_no_code():
    assert blocks((ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")) == []


def anchors(page: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.S)
    for link in re.findall(r"!?\[[^\]]*\]\(([^)\s]+)[^)]*\)", text):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{link} leads nowhere"
        assert target.resolve().is_relative_to(ROOT), f"{link} leads out of the repository"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{link}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_are_made_by_a_command_that_can_be_run(page):
    """Each ``<!-- g2m report … -->`` has its end and names this page and files of docs/results."""
    text = page.read_text(encoding="utf-8")
    markers = re.findall(r"^<!-- (.*?) -->$", text, re.M)
    assert markers[1::2] == ["end"] * (len(markers) // 2)
    assert len(markers) % 2 == 0
    for command in markers[::2]:
        words = shlex.split(command)
        assert words[:2] == ["g2m", "report"]
        assert words[-2:] == ["--into", str(page.relative_to(ROOT))]
        assert all(path.startswith("docs/results/") for path in words[2:-2])


def test_every_results_file_is_the_tables_of_one_page():
    pages = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    shown = [path for c in re.findall(r"^<!-- (g2m report .*?) -->$", pages, re.M) for path in shlex.split(c)[2:-2]]
    assert sorted(shown) == sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs" / "results").glob("*.jsonl"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_tables_are_those_of_the_results_files(page):
    text = page.read_text(encoding="utf-8")
    for command in re.findall(r"^<!-- (g2m report .*?) -->$", text, re.M):
        records = [record for path in shlex.split(command)[2:-2] for record in read_results(ROOT / path)]
        assert insert(text, command, markdown(records, level=3)) == text, f"{page.name} is stale: run {command}"


def test_the_readme_knows_every_method_and_the_data_page_every_card():
    readme, data = ((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/data.md"))
    from g2m import methods

    shipped = {name for name, method in REGISTRY.items() if method.__module__.startswith(methods.__name__)}
    assert {"mlp", "glnn"} <= shipped
    assert [name for name in shipped if f"`{name}`" not in readme] == []
    assert [name for name in cards() if f"`{name}`" not in data] == []


def test_importing_is_quiet_and_does_no_more_than_it_must():
    """No network, no thread, nothing printed, and none of the heavy optional parts."""
    code = """if True:
        import socket, sys, threading
        def refuse(*args, **kwargs):
            raise SystemExit("import reached for the network")
        socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
        import g2m, g2m.cli
        assert threading.active_count() == 1, threading.enumerate()
        heavy = ("ogb", "outdated", "optuna", "matplotlib", "networkx", "sklearn.datasets", "onnx")
        loaded = [name for name in heavy if name in sys.modules]
        assert loaded == [], loaded
        assert all(hasattr(g2m, name) for name in g2m.__all__)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
