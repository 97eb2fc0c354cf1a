"""What a sweep searches, in words of a TOML file.

An option has a list, ``["none", "batch"]``, of which one is drawn, or a range, ``{low = 0.001, high = 0.1, log =
true}``; ``step = 0.1`` draws in steps, and where both ends are whole numbers so is what is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import inf
from typing import TYPE_CHECKING, Any

from g2m.errors import G2MError, check_keys, check_range

if TYPE_CHECKING:
    import optuna


def check_space(space: Any) -> None:
    """Refuse what is no space.

    Raises:
        G2MError: naming the option.
    """
    if not isinstance(space, dict):
        raise G2MError(f"space: expected a table of option = range (got {space!r}).")
    for name, spec in space.items():
        _check(name, spec)


def _check(name: str, spec: Any) -> None:
    where = f"space: {name}"
    if isinstance(spec, list):
        if not spec or any(isinstance(value, (list, dict)) for value in spec):
            raise G2MError(f"{where}: expected a list of plain values (got {spec!r}).")
        return
    if not isinstance(spec, dict):
        raise G2MError(f"{where}: expected a list or {{low = …, high = …}} (got {spec!r}). A fixed value is an option.")
    check_keys(where, spec, ("low", "high", "log", "step"))
    low, high = (check_range(f"{where}.{end}", spec.get(end), -inf) for end in ("low", "high"))
    if low > high:
        raise G2MError(f"{where}: expected low ≤ high (got {low} and {high}).")
    if not isinstance(spec.get("log", False), bool):
        raise G2MError(f"{where}.log: expected true or false (got {spec['log']!r}).")
    if spec.get("log") and (low <= 0 or "step" in spec):
        raise G2MError(f"{where}: expected low above 0 and no step with log (got {spec!r}).")
    if "step" in spec:
        check_range(f"{where}.step", spec["step"], 0, open_low=True)


class Recorder:
    """Stands in for a trial, to learn what a function draws: that is then in ``space``."""

    def __init__(self) -> None:
        self.space: dict[str, Any] = {}

    def suggest_categorical(self, name: str, choices: Iterable[Any]) -> Any:
        self.space[name] = list(choices)
        return self.space[name][0]

    def suggest_float(self, name: str, low: float, high: float, **how: Any) -> float:
        return self.suggest_int(name, float(low), float(high), **how)  # whole numbers would mean that only such are

    def suggest_int(self, name: str, low: float, high: float, **how: Any) -> float:
        self.space[name] = {"low": low, "high": high, **{key: value for key, value in how.items() if value}}
        return low


def suggest(trial: optuna.trial.BaseTrial, space: Mapping[str, Any]) -> dict[str, Any]:
    """Return a value for every option of ``space``, drawn from ``trial``.

    Numbers without steps have four digits: files then say the very ones.
    """
    found = {}
    for name, spec in space.items():
        if isinstance(spec, list):
            found[name] = trial.suggest_categorical(name, spec)
            continue
        whole = all(isinstance(spec[end], int) for end in ("low", "high")) and isinstance(spec.get("step", 1), int)
        draw = trial.suggest_int if whole else trial.suggest_float
        value = draw(name, **spec)
        found[name] = value if whole else _short(value, spec)
    return found


def _short(value: float, spec: Mapping[str, Any]) -> float:
    value = float(f"{value:.{10 if 'step' in spec else 4}g}")
    return float(min(max(value, spec["low"]), spec["high"]))


def corners(space: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return options at both ends of every range, and every choice of a list: enough to find wrong ones beforehand."""
    ends = {name: spec if isinstance(spec, list) else [spec["low"], spec["high"]] for name, spec in space.items()}
    longest = max(map(len, ends.values()))
    return [{name: values[min(i, len(values) - 1)] for name, values in ends.items()} for i in range(longest)]
