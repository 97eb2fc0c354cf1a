"""A sweep that is killed twice: what becomes of its trials.

Starts `g2m sweep FILE`, ends one worker by SIGKILL after a fifth of the trials, and all of it, parent and workers,
after a half. Then the same command is given again and left alone. A row is what is in the storage when the lost trial
of the one worker was found, right after all are killed, and at the end. It fails where a trial is left running, where
one that was lost is not tried again with the same options, where the budget is missed by more than the number of
workers, or where a file is missing.

    python sweeps/kill_sweep.py glnn/cora-cpf-sage --trials 200 --folder kill --out docs/results/kill_sweep.jsonl
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from g2m.bench import append_result
from g2m.cli import mistakes
from g2m.experiments import open_experiment
from g2m.sweep import JOURNAL, Sweep


def done(trials: list[FrozenTrial]) -> int:
    return sum(trial.state in (TrialState.COMPLETE, TrialState.PRUNED) for trial in trials)


def lost(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials of killed processes, as far as somebody has found them."""
    return [trial for trial in of_state(trials, TrialState.FAIL) if trial.params and "error" not in trial.user_attrs]


def tried_again(trials: list[FrozenTrial]) -> int:
    again = {t.user_attrs["again"]: t for t in trials if "again" in t.user_attrs}
    # A trial killed between one option and the next has drawn some: those are what is tried again.
    return sum(t.number in again and options(t).items() <= options(again[t.number]).items() for t in lost(trials))


def options(trial: FrozenTrial) -> dict[str, object]:
    return trial.system_attrs.get("fixed_params", {}) | trial.params  # drawn, or to be


def wait(process: subprocess.Popen, study: optuna.Study, condition: Callable[[list[FrozenTrial]], bool]) -> None:
    while not condition(study.get_trials(deepcopy=False)):
        if process.poll() is not None:
            sys.exit(f"the sweep ended, exit code {process.returncode}, before it was killed: ask for more --trials")
        time.sleep(0.2)


def of_state(trials: list[FrozenTrial], state: TrialState) -> list[FrozenTrial]:
    return [trial for trial in trials if trial.state == state]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="experiment")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2, help="two at least: a lone one is the parent")
    parser.add_argument("-o", dest="options", action="append", default=[], help="key=value, as of g2m sweep")
    parser.add_argument("--storage", help="URL of an empty database; default: a journal in the folder")
    parser.add_argument("--folder", type=Path, default=Path("kill"), help="of the sweep, a new one")
    parser.add_argument("--out", type=Path, help="results file to append the table's rows to")
    given = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    place = given.storage or given.folder / JOURNAL
    sweep = Sweep(open_experiment(given.file).searched().override(given.options))
    study = sweep.study(place)
    if study.trials:
        sys.exit("expected a new study (got one with trials). Name another --folder or --storage.")

    words = ["sweep", given.file, "--trials", given.trials, "--workers", given.workers, "--out", given.folder]
    words += [word for option in given.options for word in ("-o", option)]
    words += ["--storage", given.storage] if given.storage else []
    command = [sys.executable, "-c", "from g2m.cli import app; app()", *map(str, words)]
    print(" ".join(["g2m", *map(str, words)]) if not given.storage else "g2m sweep … --storage …", flush=True)
    started = time.monotonic()

    def row(moment: str) -> list[FrozenTrial]:
        trials = study.get_trials(deepcopy=False)
        found = {
            "table": "A sweep that is killed twice",
            "experiment": given.file,
            "storage": given.storage.partition("://")[0] if given.storage else "journal",
            "trials": given.trials,
            "workers": given.workers,
            "moment": moment,
            **{state.name.lower(): len(of_state(trials, state)) for state in TrialState},
            "lost": len(lost(trials)),
            "with the same options again": tried_again(trials),
            "minutes": round((time.monotonic() - started) / 60, 1),
        }
        print("  ".join(f"{key}: {value}" for key, value in found.items() if key != "table"), flush=True)
        if given.out:
            append_result(given.out, found)
        return trials

    process = subprocess.Popen(command, start_new_session=True)
    wait(process, study, lambda trials: done(trials) >= given.trials // 5 and _at_work(trials))
    victim = _at_work(study.get_trials(deepcopy=False))[0].user_attrs["worker"][1]
    os.kill(victim, signal.SIGKILL)
    wait(process, study, lambda trials: not any(t.user_attrs["worker"][1] == victim for t in _at_work(trials)))
    row("one worker killed")
    wait(process, study, lambda trials: done(trials) >= given.trials // 2 and len(_at_work(trials)) == given.workers)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    running = len(_at_work(row("all killed")))
    code = subprocess.run(command).returncode
    trials = row("same command again, ended")

    missing = {"best.toml", "trials.csv", "history.png", "importances.png", "parallel.png"} - {
        path.name for path in given.folder.iterdir()
    }
    wrong = [
        *([f"exit code {code}"] if code else []),
        *([f"not written: {', '.join(sorted(missing))}"] if missing else []),
        *(f"trial {trial.number} is {trial.state.name}" for trial in trials if not trial.state.is_finished()),
        *(["one that was lost is not tried again"] if tried_again(trials) < len(lost(trials)) else []),
        *([f"{len(lost(trials))} lost, of {1 + running}"] if len(lost(trials)) != 1 + running else []),
    ]
    if not given.trials <= done(trials) + sum("error" in t.user_attrs for t in trials) <= given.trials + given.workers:
        wrong.append(f"{done(trials)} done of {given.trials}")
    sys.exit("; ".join(wrong) or 0)


def _at_work(trials: list[FrozenTrial]) -> list[FrozenTrial]:
    """Return the trials that are being trained: their options are drawn."""
    return [trial for trial in of_state(trials, TrialState.RUNNING) if trial.params and "worker" in trial.user_attrs]


if __name__ == "__main__":
    with mistakes():
        main()
