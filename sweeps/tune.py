"""Tuned options: search each method's on validation, then read test once, on fresh seeds, beside the options it had.

    python sweeps/tune.py cora-cpf citeseer-cpf --methods glnn,ff_g2m,vqgraph --trials 64 --stack 8 \
        --folder tune --tuned sweeps/tuned --out docs/results/tuned.jsonl

What `g2m sweep FILE` does for one experiment, by the API for several. Options are kept if validation on the fresh seeds
is better with them as well. Killed, the same command goes on.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import optuna

from g2m.bench import append_result, read_results, run
from g2m.cli import mistakes
from g2m.experiments import alike
from g2m.report import percent
from g2m.sweep import JOURNAL, Sweep

TABLE = "Tuned on validation, scored on fresh seeds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="+", help="card names")
    parser.add_argument("--methods", default="glnn,ff_g2m,vqgraph")
    parser.add_argument("--teacher", default="sage")
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=2, help="a trial is scored on")
    parser.add_argument("--stack", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--fresh", type=int, default=10, help="fresh seeds for the comparison")
    parser.add_argument("--folder", type=Path, default=Path("tune"), help="journals and results of the runs")
    parser.add_argument("--tuned", type=Path, help="folder for the files of the best options")
    parser.add_argument("--out", type=Path, help="results file to append the table's rows to")
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    known = read_results(given.out) if given.out and given.out.exists() else []
    sweeps = {
        (data, method): Sweep(alike(data, method, given.teacher), seeds=given.seeds)
        for data in given.data
        for method in given.methods.split(",")
    }
    for (data, method), sweep in sweeps.items():
        row = {"table": TABLE, "data": data, "method": method, "teacher": given.teacher, "trials": given.trials}
        row |= {"seeds a trial": given.seeds, "fresh seeds": given.fresh}
        if any(row.items() <= ({"teacher": "sage"} | other).items() for other in known):  # older rows name none
            continue
        folder = given.folder / f"{sweep.name}-{given.seeds}-seeds"
        folder.mkdir(parents=True, exist_ok=True)
        study = sweep.run(folder / JOURNAL, trials=given.trials, workers=given.workers, stack=given.stack)
        best, records = sweep.replicate(
            sweep.best(study), given.fresh, out=folder / "results.jsonl", workers=given.workers, stack=given.stack
        )
        before = [alike(data, method, given.teacher).cell(sweep.setting, record["seed"]) for record in records]
        before = list(run(before, out=folder / "before.jsonl", workers=given.workers, stack=given.stack))
        by_seed = {record["seed"]: record["scores"] for record in records}
        gained = {
            part: [by_seed[record["seed"]][part] - record["scores"][part] for record in before]
            for part in ("val", "test")
        }
        kept = sum(gained["val"]) > 0  # the best of many trials on few seeds may have been lucky
        if given.tuned and kept:
            best.write(given.tuned / f"{data}-{given.teacher}-{method}.toml")
        row |= {
            "val": percent([scores["val"] for scores in by_seed.values()]),
            "val gained": percent(gained["val"]),
            "kept": "yes" if kept else "no",
            "test": percent([scores["test"] for scores in by_seed.values()]),
            "test before": percent([record["scores"]["test"] for record in before]),
            "gained": percent(gained["test"]),
        }
        print("  ".join(f"{key}: {value}" for key, value in row.items() if key != "table"), flush=True)
        if given.out:
            append_result(given.out, row)


if __name__ == "__main__":
    with mistakes():
        main()
