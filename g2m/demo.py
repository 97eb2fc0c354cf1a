"""The demo: a GNN's knowledge of handwritten digits in an MLP, quality against speed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from g2m.bench import cells, read_results, run
from g2m.data import load
from g2m.errors import G2MError
from g2m.estimators import Student, Teacher
from g2m.latency import SIZES, student_latency, teacher_latency
from g2m.report import mean_std, quality_against_speed, summary
from g2m.storage import write_text

DATA, TEACHER, METHODS = "digits", "sage", ("mlp", "glnn")
_FILES = ("teacher.safetensors", "outputs.safetensors", "student.safetensors", "mlp", "demo.jsonl", "demo.png")


def run_demo(
    folder: str | Path, *, seeds: int = 5, on_cell: Callable[[dict[str, Any]], None] | None = None
) -> list[dict[str, Any]]:
    """Train teacher and students in both settings; write artifacts, the table and a plot; return the table's rows.

    Args:
        folder: where ``teacher``, ``outputs``, ``student`` (``.safetensors``), ``demo.jsonl`` and ``demo.png`` go, and
            the student without a teacher under ``mlp``; a killed run continues there.
        seeds: number of seeds, default 5.
        on_cell: called with each finished training's record.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise G2MError(f"out: expected a folder (got the file {str(folder)!r}).")
    runs = folder / "runs.jsonl"
    ours = runs.is_file() and all(
        row.get("data") == DATA and row.get("method") in METHODS for row in read_results(runs)
    )
    begun = (folder / "cache").exists()  # all that a run killed early is sure to leave
    for name in () if ours else (runs.name, *(() if begun else _FILES)):
        if (folder / name).exists():
            raise G2MError(f"out: {str(folder / name)!r} is of another run. Name another folder.")
    grid = cells([DATA], methods=METHODS, teachers=[TEACHER], seeds=seeds)
    kept = {cell.key: cell.experiment.method for cell in grid if (cell.setting, cell.seed) == ("transductive", 0)}
    folders = {key: folder if method == METHODS[-1] else folder / method for key, method in kept.items()}
    records = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a graph gains nothing by two, which wait for each other beside a busy process
    try:
        for record in run(grid, out=runs, folders=folders, cache=folder / "cache"):
            records.append(record)
            if on_cell is not None:
                on_cell(record)
    finally:
        torch.set_num_threads(threads)
    graph = load(DATA, seed=0)
    speed = {"teacher": teacher_latency(Teacher.load(folder / "teacher.safetensors"), graph)}
    for key, method in kept.items():
        speed[method] = student_latency(Student.load(folders[key] / "student.safetensors"), graph)
    rows: dict[str, dict[str, Any]] = {}
    for row in summary(records):
        name = TEACHER.upper() if row["method"] == "teacher" else row["method"].upper()
        entry = rows.setdefault(name, {"table": DATA, "model": name})
        part = "test" if row["setting"] == "transductive" else "unseen"
        mean, std = mean_std([100 * score for score in row["scores"][part]])
        entry[row["setting"]], entry[f"{row['setting']}_std"] = round(mean, 2), round(std, 2)
        if row["setting"] == "inductive":  # the later of the two: what they share goes behind both scores
            entry |= {"seeds": row["seeds"], "parameters": row["run"]["parameters"]}
            for size in SIZES:
                time = speed[row["method"]][size]["p50"]
                entry[f"ms_{size}"] = round(time, 4)
                entry[f"speedup_{size}"] = round(speed["teacher"][size]["p50"] / time, 2)
    table = list(rows.values())
    write_text(folder / "demo.jsonl", "".join(f"{json.dumps(entry)}\n" for entry in table))
    panels = {"transductive": "transductive: test nodes", "inductive": "inductive: unseen nodes"}
    points = [
        {"model": e["model"], "setting": title, "accuracy": e[key], "std": e[f"{key}_std"], "ms": e["ms_1"]}
        for key, title in panels.items()
        for e in table
    ]
    quality_against_speed(points, folder / "demo.png", title="Handwritten digits: quality against speed")
    return table
