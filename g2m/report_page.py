"""A report of results files: Markdown, CSV, and one HTML page that needs nothing but a browser."""

from __future__ import annotations

import csv
import html
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from g2m.comparisons import Cost, Difference, Overall, Speed, compare
from g2m.errors import G2MError
from g2m.report import Record, Section, grouped, markdown_sections, mean_std, of_trainings, sections, summary
from g2m.report_sections import INK, comparison_figures, comparison_sections

SCORES = (
    *("data", "setting", "teacher", "method", "tokenizer", "options", "layers", "width", "parameters", "seeds"),
    *("part", "mean", "std", "published_mean", "published_std", "seconds"),
)
_FILES = {"ranks.png", "latency.png"}  # that not every report has
RANKS = ("setting", "part", "model", "rank", "pairs", "critical_difference", "friedman_p")


def report_files(
    records: Iterable[Record], *, command: str = "g2m report", against: str | None = None
) -> dict[str, str | bytes]:
    """Return the files of a report: ``report.md``, ``index.html``, its plots as PNG, and the numbers as CSV.

    Args:
        records: of results files.
        command: that makes the report, for its first line.
        against: the method to compare others with; default ``"glnn"`` where there is one.

    Raises:
        G2MError: if no student is of the method named.
    """
    records = list(records)
    compared = compare(grouped(of_trainings(records)), against)
    found, figures = [*sections(records), *comparison_sections(compared)], comparison_figures(compared)
    ranks = [
        dict(zip(RANKS, (r.setting, r.part, model, rank, r.pairs, r.critical, r.p), strict=True))
        for r in compared.ranks
        for model, rank in r.mean.items()
    ]
    lines = {
        "differences": (_names(Difference), map(asdict, compared.differences)),
        "overall": (_names(Overall), map(asdict, compared.overall)),
        "latency": (_names(Speed), map(asdict, compared.speeds)),
        "cost": (_names(Cost), map(asdict, compared.costs)),
        "scores": (SCORES, score_lines(records)),
        "ranks": (RANKS, ranks),
    }
    return {
        "report.md": _title(command) + markdown_sections(found, plots=True),
        "index.html": _page(found, {name: _svg(figure) for name, figure in figures.items()}, command),
        **{f"{name}.csv": _csv(*table) for name, table in lines.items()},
        **{f"{name}.png": _png(figure) for name, figure in figures.items()},
    }


def report_text(records: Iterable[Record], *, command: str = "g2m report", against: str | None = None) -> str:
    """Return the tables of a report as one Markdown page without plots; arguments as of :func:`report_files`."""
    records = list(records)
    compared = compare(grouped(of_trainings(records)), against)
    return _title(command) + markdown_sections([*sections(records), *comparison_sections(compared)])


def write_files(folder: str | Path, files: Mapping[str, str | bytes]) -> Path:
    """Write files into a folder: all under temporary names first, and renamed only when all are written.

    Raises:
        G2MError: if the folder is a file.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise G2MError(f"--out: expected a folder, or a page that ends in .md (got the file {str(folder)!r}).")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".report.", dir=folder) as temporary:
        for name, content in files.items():
            (Path(temporary) / name).write_bytes(content.encode() if isinstance(content, str) else content)
        for name in files:
            (Path(temporary) / name).replace(folder / name)
    for name in _FILES - files.keys():  # plots of an earlier report, which nothing there shows any more
        (folder / name).unlink(missing_ok=True)
    return folder


def _title(command: str) -> str:
    return f"# Results\n\nMade by `{command}`.\n\n"


# -- numbers ---------------------------------------------------------------------------------------------------


def score_lines(records: Iterable[Record]) -> list[dict[str, Any]]:
    """Return a line per row of :func:`g2m.report.summary` and part, scores in percent, as ``scores.csv`` has them."""
    lines = []
    for row in summary(of_trainings(records)):
        for part, scores in row["scores"].items():
            (mean, std), published = mean_std([100 * score for score in scores]), row["published"].get(part, ())
            line = {**row["run"], **row, "part": part, "mean": mean, "seeds": len(scores)}
            line |= {"std": std} if len(scores) > 1 else {}
            line |= dict(zip(("published_mean", "published_std"), published, strict=False))
            lines.append({name: line.get(name) for name in SCORES})
    return lines


def _names(kind: type) -> list[str]:
    return [field.name for field in fields(kind)]


def _csv(header: Sequence[str], lines: Iterable[Mapping[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, header, lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {key: float(f"{value:.6g}") if isinstance(value, float) else value for key, value in line.items()}
        for line in lines
    )
    return file.getvalue()


# -- the page --------------------------------------------------------------------------------------------------


_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1f2428; --head: #eef1f4; --line: #d5dae0; --link: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --back: #15181c; --text: #e3e7eb; --head: #262b31; --line: #3a4149; --link: #7ab7ff; }
}
body { margin: 2rem auto; max-width: 76rem; padding: 0 1rem; font: 15px/1.5 system-ui, sans-serif;
  background: var(--back); color: var(--text); }
a { color: var(--link); }
nav { columns: 18rem; }
nav a { display: block; }
.table { width: fit-content; max-width: 100%; max-height: 80vh; overflow: auto; border: 1px solid var(--line);
  margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th { position: sticky; top: 0; background: var(--head); text-align: left; }
th button { all: unset; cursor: pointer; font-weight: 600; padding: .35rem .7rem; white-space: nowrap; }
th button:focus-visible { outline: 2px solid var(--link); }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
td { padding: .25rem .7rem; border-top: 1px solid var(--line); white-space: nowrap; }
.number { text-align: right; }
tbody tr:hover { background: var(--head); }
figure { margin: 1rem 0; }
svg { max-width: 100%; height: auto; }
code { font-size: .93em; }
"""

# Numbers before words, and what is not there last, whichever the direction.
_SORT = """
const key = (row, column) => {
  const text = row.cells[column].textContent.trim(), number = parseFloat(text.replace(/[<+,]/g, ""));
  return [text === "" || text === "–" ? 2 : Number.isNaN(number) ? 1 : 0, number, text];
};
document.querySelectorAll("th button").forEach(button => button.addEventListener("click", () => {
  const head = button.parentElement, body = head.closest("table").tBodies[0], column = head.cellIndex;
  const way = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", way === 1 ? "ascending" : "descending");
  const rows = [...body.rows].map(row => [key(row, column), row]);
  rows.sort(([a], [b]) => a[0] - b[0] || way * (a[0] === 0 ? a[1] - b[1] : a[2].localeCompare(b[2])));
  body.append(...rows.map(([, row]) => row));
}));
"""


def _page(found: Sequence[Section], plots: Mapping[str, str], command: str) -> str:
    """Return the HTML page: everything is in it, and it asks nothing of the network."""
    links, parts = [], []
    for number, section in enumerate(found, 1):
        title = html.escape(section.title)
        links.append(f'<a href="#part{number}">{title}</a>')
        parts.append(f'<section id="part{number}">\n<h2>{title}</h2>')
        if section.plot in plots:
            parts.append(f'<figure role="img" aria-label="{title}">{plots[section.plot]}</figure>')
        if section.header:
            parts.append(_table(section.header, section.rows))
        parts += [f"<p>{_inline(note)}</p>" for note in section.notes]
        parts.append("</section>")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Results</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>Results</h1>\n"
        f"<p>Made by <code>{html.escape(command)}</code>. A click on a column's name sorts by it.</p>\n"
        f"<nav>{''.join(links)}</nav>\n" + "\n".join(parts) + f"\n<script>{_SORT}</script>\n</body>\n</html>\n"
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    rows = [[str(cell) for cell in row] for row in rows]
    numbers = [all(re.match(r"[+−<-]?\d|–$|$", row[i]) for row in rows) for i in range(len(header))]
    kinds = [' class="number"' if number else "" for number in numbers]

    def line(tag: str, cells: Iterable[str]) -> str:
        return "<tr>" + "".join(f"<{tag}{k}>{c}</{tag}>" for k, c in zip(kinds, cells, strict=True)) + "</tr>"

    head = line("th", (f"<button>{html.escape(str(name))}</button>" for name in header))
    body = "\n".join(line("td", map(html.escape, row)) for row in rows)
    return f'<div class="table"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _inline(text: str) -> str:
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(text, quote=False))


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, dpi=120, format="png")
    return file.getvalue()


def _svg(figure: Any) -> str:
    """Return a figure as an SVG element: words as words, in the page's colour, the same for the same figure."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "g2m"}):
        figure.savefig(file, format="svg", transparent=True)
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.S)
    svg = re.sub(r' (?:xmlns(?::\w+)?="[^"]*"|id="[\w.]+?_\d+")', "", svg)  # names that nothing refers to
    return svg.replace(INK, "currentColor")
