"""Condensation by name."""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from g2m.condense.baselines import check_doscond, doscond, herding, kcenter, random_graphs
from g2m.condense.condensed import CondensedSet
from g2m.condense.mirage import TreeTable, check_mirage, mirage
from g2m.condense.scored import scored
from g2m.errors import G2MError, check_flag, check_keys, check_range, check_seed, check_whole, choose
from g2m.graphs import Graphs


def everything(graphs: Graphs) -> CondensedSet:
    """Return the graphs as a set of themselves: what budgets are shares of."""
    return CondensedSet(graphs, graphs.y, torch.ones(graphs.y.shape))


def lossless(graphs: Graphs, *, num_hops: int, degrees: bool = False, seed: int = 0) -> CondensedSet:
    """Keep all that networks of ``num_hops`` layers can tell apart, as graphs or as trees, whichever takes fewer bytes.

    Training on it gives the logits, losses and gradients of training on the graphs, and computes equal trees once.

    Args:
        graphs: the training graphs.
        num_hops: of the trees, from 1.
        degrees: whether to tell nodes of different degree apart, for GCN.
        seed: not used, nothing is drawn.
    """
    whole = everything(graphs)
    if not graphs.num_nodes:
        return whole
    table = TreeTable(graphs, num_hops, degrees)
    entries = table.counts.tocoo()
    trees = table.bags(*entries.coords, entries.data, len(graphs))
    shared = CondensedSet(trees, whole.y, whole.weight)
    return min(whole, shared, key=lambda made: made.nbytes().raw)


#: Method name -> function of the training graphs.
METHODS: dict[str, Callable[..., CondensedSet]] = {
    "mirage": mirage,
    "scored": scored,
    "lossless": lossless,
    "random": random_graphs,
    "herding": herding,
    "kcenter": kcenter,
    "doscond": doscond,
}
_CHECKS: dict[str, Callable[..., None]] = {"mirage": check_mirage, "doscond": check_doscond}  # of values of options
_OF_THE_RUN = ("graphs", "num_hops", "budget", "seed")  # arguments of all methods
_UNITS = {"": 1, "b": 1, "kb": 1000, "mb": 1_000_000, "kib": 1024, "mib": 1 << 20}


def check_budget(budget: int | str) -> tuple[float, bool]:
    """Return a budget's number, in bytes or in percent, and whether it is percent; see :func:`budget_bytes`."""
    found = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*(%|[a-zA-Z]*)\s*", budget) if isinstance(budget, str) else None
    if found and found[2] == "%":
        return check_range("budget", float(found[1]), 0), True
    if found and found[2].lower() in _UNITS:
        budget = int(check_range("budget", float(found[1]), 0) * _UNITS[found[2].lower()])
    elif isinstance(budget, str):
        raise G2MError(f"budget: expected bytes, such as 3000, '10kB' or '1%' (got {budget!r}).")
    return check_whole("budget", budget), False


def budget_bytes(budget: int | str, graphs: Graphs) -> int:
    """Return a budget in bytes.

    Args:
        budget: a number of bytes, ``"10kB"``, ``"2 MB"``, or ``"1%"`` of what the training graphs take in the same
            account.
        graphs: the training graphs.

    Raises:
        G2MError: on anything else.
    """
    number, percent = check_budget(budget)
    if not percent:
        return int(number)
    whole = everything(graphs).nbytes().raw
    if (made := int(number / 100 * whole)) < 1:
        raise G2MError(f"budget: expected at least one byte (got {budget!r} of {whole:,} bytes). Raise it.")
    return made


def check_options(method: str, options: Mapping[str, Any]) -> None:
    """Refuse an unknown method, what is none of its options, or a value that is none of an option's."""
    parameters = inspect.signature(METHODS[choose("method", method, METHODS)]).parameters
    check_keys(f"method {method!r}", options, [p for p in parameters if p not in _OF_THE_RUN])
    for name, value in options.items():
        if isinstance(parameters[name].default, bool):
            check_flag(name, value)
    if method in _CHECKS:
        check = _CHECKS[method]
        check(**{name: options.get(name, parameters[name].default) for name in inspect.signature(check).parameters})


def function_of(method: str, graphs: Graphs, options: Mapping[str, Any]) -> Callable[..., CondensedSet]:
    """Return the function of a method, once it has been checked that it takes such graphs and options.

    Raises:
        G2MError: on an unknown method or option, or on anything but :class:`~g2m.graphs.Graphs`.
    """
    if not isinstance(graphs, Graphs):
        raise G2MError(f"graphs: expected g2m.Graphs (got {type(graphs).__name__}). Load a card of sets of graphs.")
    check_options(method, options)
    return METHODS[method]


def condense(
    graphs: Graphs,
    method: str = "scored",
    *,
    num_hops: int = 2,
    budget: int | str | None = None,
    seed: int = 0,
    **options: Any,
) -> CondensedSet:
    """Condense the training graphs of a data set; nothing else of it is looked at.

    Args:
        graphs: needs the part ``train``.
        method: ``"scored"`` (default), ``"mirage"``, ``"lossless"``, ``"random"``, ``"herding"``, ``"kcenter"`` or
            ``"doscond"``.
        num_hops: layers of the networks that are to be trained on it, from 1; default 2. One more for GCN, or
            ``degrees=True``.
        budget: bytes that the set may take, or as text ``"10kB"``, ``"1%"`` of the training graphs', the default.
            ``"lossless"`` has none, and ``"mirage"`` none with ``min_support``.
        seed: of what is drawn, default 0.
        options: of the method, see :mod:`g2m.condense`.

    Raises:
        G2MError: on an unknown method or option, a budget too small for anything, or one where there is none.
    """
    function = function_of(method, graphs, options)
    num_hops, seed = check_whole("num_hops", num_hops), check_seed(seed)
    train = graphs.subset(graphs.part("train"))
    started = time.perf_counter()
    given: dict[str, Any] = {"num_hops": num_hops, "seed": seed, **options}
    if method != "lossless" and options.get("min_support") is None:
        given["budget"] = budget_bytes("1%" if budget is None else budget, train)
    elif budget is not None:
        without = "method 'lossless'" if method == "lossless" else "min_support"
        raise G2MError(f"budget: expected none with {without} (got {budget!r}). Leave out either.")
    made = function(train, **given)
    meta = {
        "method": method,
        "data": graphs.name,
        "fingerprint": graphs.fingerprint(),
        "options": {name: _plain(value) for name, value in given.items() if value is not None},
        "seconds": round(time.perf_counter() - started, 3),
        "figures": dict(made.meta),
    }
    return replace(made, meta=meta)


def _plain(value: Any) -> Any:
    """Return numpy's numbers as Python's, which a header can hold."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(of) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(of) for of in value]
    return value.item() if isinstance(value, np.generic) else value
