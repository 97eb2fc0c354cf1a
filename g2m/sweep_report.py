"""What a sweep found, as rows and as plots."""

from __future__ import annotations

import warnings
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState


def best_rows(study: optuna.Study, most: int = 5) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the best trials: the ``most`` best scores, or the front of two objectives."""
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    if len(study.directions) == 1:
        trials = sorted(finished, key=lambda trial: -trial.values[0])[:most]
    else:
        trials = sorted(study.best_trials, key=lambda trial: -trial.values[0])
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    header = ["trial", "val", *([study.user_attrs["sweep"]["also"]] if len(study.directions) > 1 else []), *names]

    def shown(trial: FrozenTrial) -> list[str]:
        params = [trial.params.get(name, "–") for name in names]
        return [str(trial.number), *(f"{value:.5g}" for value in trial.values), *(map(_short, params))]

    return header, [shown(trial) for trial in trials]


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def draw(study: optuna.Study, folder: str | Path) -> list[Path]:
    """Draw a study as PNG files and return their paths: the history of the score, which options mattered, the options
    of each trial side by side; of two objectives, their front.

    What a handful of trials cannot show is left out.
    """
    from matplotlib import pyplot, rc_context
    from optuna.visualization import matplotlib as plots

    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    searched = {name for trial in finished for name in trial.params}
    of_score = {"target": lambda trial: trial.values[0], "target_name": "validation"}
    found = {"history": lambda: plots.plot_optimization_history(study, **of_score)}
    if len(finished) > 3 and len({trial.values[0] for trial in finished}) > 1:
        found["importances"] = lambda: plots.plot_param_importances(study, **of_score)
    if len(finished) > 1 and len(searched) > 1:
        found["parallel"] = lambda: plots.plot_parallel_coordinate(study, **of_score)
    if len(study.directions) > 1:
        also = study.user_attrs["sweep"]["also"]
        found["pareto"] = lambda: plots.plot_pareto_front(study, target_names=["validation", also])
    folder, written = Path(folder), []
    for name, plot in found.items():
        with warnings.catch_warnings(), rc_context():  # Optuna sets a style for all plots to come
            warnings.simplefilter("ignore")  # that plots are experimental; that importances are of low values
            figure = plot().figure
        written.append(folder / f"{name}.png")
        figure.savefig(written[-1], dpi=150, bbox_inches="tight")
        pyplot.close(figure)
    return written
