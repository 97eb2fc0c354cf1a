"""The training loop. There is one; teachers, students and condensed sets all go through it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn
from tqdm.auto import tqdm

from g2m import storage
from g2m.batches import Batch
from g2m.errors import G2MError, check_range, check_whole
from g2m.models import Output

Loss = Callable[[Output, Batch], Mapping[str, Tensor]]


class Batches(Protocol):
    def to(self, device: torch.device | str) -> Batches: ...

    def epoch(self, generator: Generator) -> Iterator[Batch]: ...


@dataclass
class History:
    """What happened, epoch by epoch.

    Attributes:
        epochs: one record per epoch: ``epoch``, ``loss``, each named part of it, and ``val``.
        best_epoch: the epoch whose state the model now has; the latest of equals.
        best_score: its validation score.
        seconds: time spent training, resumed runs included.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = -1
    best_score: float = -math.inf
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.epochs)


def check_options(*, lr: float, weight_decay: float, max_epochs: int, patience: int, seed: int) -> None:
    """Raise :class:`G2MError` unless these are options of :func:`fit`."""
    check_range("lr", lr, 0, open_low=True)
    check_range("weight_decay", weight_decay, 0)
    check_whole("max_epochs", max_epochs)
    check_whole("patience", patience)
    check_whole("seed", seed, 0)


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device named; ``"auto"`` is the first GPU if there is one, otherwise the CPU.

    Raises:
        G2MError: if there is no such device here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise G2MError(f"device: expected 'auto' or a device of this machine (got {device!r}: {reason}).") from None
    return resolved


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's random streams inside the block and give the caller's back after it."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach every GPU as well
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


def fit(
    model: nn.Module,
    loss: Loss,
    batches: Batches,
    validate: Callable[[], float],
    *,
    lr: float = 0.01,
    weight_decay: float = 5e-4,
    max_epochs: int = 200,
    patience: int = 50,
    seed: int = 0,
    device: torch.device | str = "auto",
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float = 20.0,
    identity: Mapping[str, Any] | None = None,
    observe: Callable[[], Mapping[str, float]] | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    progress: str | None = None,
) -> History:
    """Train a model by Adam until validation stops improving, and leave it in its best state.

    One step per batch on the sum of the loss's named parts. After each epoch ``validate`` is asked; the state with the
    highest score is kept (the latest of equals, as in the published codes) and restored at the end.

    Args:
        model: called with ``*batch.inputs``; returns :class:`~g2m.models.Output`.
        loss: gives the named parts of the loss; if it is a module, its parameters are trained and restored as well.
        batches: an epoch's batches (see :mod:`g2m.batches`).
        validate: the validation score of the model as it is, higher is better; called in evaluation mode, without grad.
        lr: Adam's learning rate, above 0; default 0.01.
        weight_decay: L2 weight inside Adam, from 0; default 5e-4.
        max_epochs: default 200.
        patience: stop after this many epochs without a score at least as good as the best; default 50.
        seed: of batch order and dropout; default 0. Same seed, same bits on CPU; the caller's streams are untouched.
        device: ``"auto"`` (default), ``"cpu"``, ``"cuda"`` …
        checkpoint: file to save to while training and to resume from if it exists; removed at the end.
        checkpoint_seconds: least time between two saves; default 20.
        identity: what a checkpoint must have been made for; another one is refused.
        observe: asked like ``validate``; what it gives joins the epoch's record.
        on_epoch: called with each epoch's record; may raise to stop, for example to prune a trial.
        progress: shows a progress bar under this title.

    Raises:
        G2MError: if the loss is not finite, or the checkpoint belongs to another run.
    """
    check_options(lr=lr, weight_decay=weight_decay, max_epochs=max_epochs, patience=patience, seed=seed)
    device = resolve_device(device)
    trained = nn.ModuleDict({"model": model, **({"loss": loss} if isinstance(loss, nn.Module) else {})}).to(device)
    batches = batches.to(device)
    optimizer = torch.optim.Adam(trained.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    generator = Generator().manual_seed(seed)
    settings = {"lr": lr, "weight_decay": weight_decay, "max_epochs": max_epochs, "patience": patience, "seed": seed}
    identity = json.loads(json.dumps({**settings, **(identity or {})}))
    history, best = History(), _copy(trained)

    with seeded(seed, device):
        if checkpoint is not None and Path(checkpoint).exists():
            history, best = _resume(checkpoint, identity, trained, optimizer, generator, device)
        started, saved = time.perf_counter() - history.seconds, time.perf_counter()
        bar = tqdm(
            total=max_epochs, initial=len(history), desc=progress, leave=False, disable=None if progress else True
        )
        with bar:
            while not _finished(history, max_epochs, patience):
                record = {"epoch": len(history), **_epoch(trained, loss, batches.epoch(generator), optimizer)}
                trained.eval()
                with torch.no_grad():
                    record["val"] = validate()
                    record |= observe() if observe is not None else {}
                if not math.isfinite(record["val"]):
                    raise G2MError(f"val: the validation score is {record['val']}; does 'val' hold a single class?")
                history.epochs.append(record)
                if record["val"] >= history.best_score:
                    history.best_epoch, history.best_score = record["epoch"], record["val"]
                    _copy(trained, best)
                history.seconds = time.perf_counter() - started
                if checkpoint is not None and time.perf_counter() - saved >= checkpoint_seconds:
                    _save(checkpoint, identity, history, best, trained, optimizer, generator, device)
                    saved = time.perf_counter()
                bar.update()
                bar.set_postfix(loss=f"{record['loss']:.3f}", val=f"{history.best_score:.4f}", refresh=False)
                if on_epoch is not None:
                    on_epoch(record)
    trained.load_state_dict(best)
    trained.eval()
    if checkpoint is not None:
        Path(checkpoint).unlink(missing_ok=True)
    return history


def _finished(history: History, max_epochs: int, patience: int) -> bool:
    return len(history) >= max_epochs or len(history) - 1 - history.best_epoch >= patience


def _epoch(
    trained: nn.ModuleDict, loss: Loss, batches: Iterator[Batch], optimizer: torch.optim.Adam
) -> dict[str, float]:
    trained.train()
    sums: dict[str, Tensor] = {}
    steps = 0
    for batch in batches:
        parts = loss(trained["model"](*batch.inputs), batch)
        if batch.only is not None:
            parts = {key: value for key, value in parts.items() if (key == "label") == (batch.only == "label")}
        if not parts:
            raise G2MError(
                f"loss: gave no part for a step on the {batch.only or 'whole'} (batch.only={batch.only!r}). "
                "Return the part on labels as 'label', at weight 0 too."
            )
        total = sum(parts.values())
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        for key, value in {"loss": total, **parts}.items():
            sums[key] = sums.get(key, 0) + value.detach()
        steps += 1
    means = {key: float(value) / steps for key, value in sums.items()}
    if not math.isfinite(means["loss"]):
        raise G2MError(f"loss: became {means['loss']} ({means}). Lower lr, or look for extreme feature values.")
    return means


# -- checkpoints -----------------------------------------------------------------------------------------------


def _copy(trained: nn.Module, into: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    state = trained.state_dict()
    if into is None:
        return {key: value.detach().clone() for key, value in state.items()}
    for key, value in state.items():
        into[key].copy_(value)
    return into


def _save(
    path: str | Path,
    identity: Mapping[str, Any],
    history: History,
    best: Mapping[str, Tensor],
    trained: nn.Module,
    optimizer: torch.optim.Adam,
    generator: Generator,
    device: torch.device,
) -> None:
    tensors = {f"best.{key}": value for key, value in best.items()}
    tensors |= {f"now.{key}": value for key, value in trained.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"adam.{index}.{key}": value for key, value in state.items()}
    tensors |= {"random.batches": generator.get_state(), "random.cpu": torch.get_rng_state()}
    if device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(device)
    storage.write(path, "checkpoint", tensors, {"identity": identity, "history": asdict(history)})


def _resume(
    path: str | Path,
    identity: Mapping[str, Any],
    trained: nn.Module,
    optimizer: torch.optim.Adam,
    generator: Generator,
    device: torch.device,
) -> tuple[History, dict[str, Tensor]]:
    tensors, meta = storage.read(path, "checkpoint")
    if meta["identity"] != identity:
        changed = sorted(k for k in identity | meta["identity"] if identity.get(k) != meta["identity"].get(k))
        raise G2MError(
            f"checkpoint: {str(path)!r} was made by another run, it differs in: {', '.join(changed)}. "
            "Delete it, or name another file."
        )

    def group(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v.to(device) for k, v in tensors.items() if k.startswith(prefix)}

    trained.load_state_dict(group("now."))
    state, parameters = optimizer.state_dict(), list(trained.parameters())
    for key, value in group("adam.").items():
        index, name = key.split(".")
        like = parameters[int(index)]  # Adam's fused kernel wants its state in the parameter's memory layout
        value = value if value.shape != like.shape else torch.empty_like(like, requires_grad=False).copy_(value)
        state["state"].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(state)
    generator.set_state(tensors["random.batches"])
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], device)
    return History(**meta["history"]), group("best.")
