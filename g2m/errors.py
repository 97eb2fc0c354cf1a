"""The error g2m raises for a user's mistake, and did-you-mean for wrong names."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from difflib import get_close_matches
from math import inf, isfinite
from numbers import Integral, Real


class G2MError(ValueError):
    """A mistake the user can mend: the message names the argument, what was expected, what was got, what to do."""


class FileError(G2MError):
    """A file that is missing, or not what it should be."""


class OutOfMemoryError(G2MError):
    """What is asked for does not fit into a GPU's memory."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest of ``choices``, or an empty string."""
    match = get_close_matches(str(name), [str(c) for c in choices], n=1, cutoff=0.5)
    return f" Did you mean {match[0]!r}?" if match else ""


def choose(argument: str, value: str, choices: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``choices``; otherwise raise :class:`G2MError` with the nearest match."""
    choices = list(choices)
    if value in choices:
        return value
    raise G2MError(
        f"{argument}: expected one of {', '.join(map(str, choices))} (got {value!r}).{nearest(value, choices)}"
    )


def check_keys(where: str, given: Iterable[str], allowed: Iterable[str]) -> None:
    """Raise :class:`G2MError` on the first key of ``given`` that is not in ``allowed``, with the nearest match."""
    allowed = sorted(allowed)
    for key in given:
        if key not in allowed:
            raise G2MError(f"{where}: unknown key {key!r}.{nearest(key, allowed)} Known keys: {', '.join(allowed)}.")


def check_names(**given: Sized) -> None:
    """Raise :class:`G2MError` on the first argument that holds no name."""
    for argument, names in given.items():
        if not len(names):
            raise G2MError(f"{argument}: expected at least one name (got none).")


def check_whole(argument: str, value: int, low: int = 1) -> int:
    """Return ``value`` if it is a whole number from ``low``; otherwise raise :class:`G2MError`."""
    if isinstance(value, Integral) and not isinstance(value, bool) and value >= low:
        return int(value)
    raise G2MError(f"{argument}: expected a whole number from {low} (got {value!r}).")


def check_seed(seed: int) -> int:
    """Return ``seed`` if it is a whole number that every library takes, from 0 and below 2³²; else raise
    :class:`G2MError`."""
    if check_whole("seed", seed, 0) < 1 << 32:
        return int(seed)
    raise G2MError(f"seed: expected a whole number below 4294967296 (got {seed!r}).")


def check_flag(argument: str, value: bool) -> bool:
    """Return ``value`` if it is true or false; else raise :class:`G2MError`: the word "False" would count as true."""
    if isinstance(value, bool):
        return value
    raise G2MError(f"{argument}: expected True or False (got {value!r}).")


def check_range(
    argument: str, value: float, low: float, high: float = inf, *, open_low: bool = False, open_high: bool = False
) -> float:
    """Return ``value``, a Python number, if it is finite and in [low, high], an end left out if it is open; else raise
    :class:`G2MError`."""
    number = isinstance(value, Real) and not isinstance(value, bool)
    inside = number and isfinite(value) and low <= value <= high
    if inside and not (open_low and value == low) and not (open_high and value == high):
        return int(value) if isinstance(value, Integral) else float(value)
    brackets = "(" if open_low else "[", ")" if open_high else "]"
    raise G2MError(f"{argument}: expected a number in {brackets[0]}{low}, {high}{brackets[1]} (got {value!r}).")
