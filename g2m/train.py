"""The training loop. There is one; teachers, students and condensed sets all go through it."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim.adam import adam
from tqdm.auto import tqdm

from g2m import distributed, storage
from g2m.batches import Batch
from g2m.errors import FileError, G2MError, OutOfMemoryError, check_range, check_seed, check_whole
from g2m.models import Output, rows_shared

Loss = Callable[[Output, Batch], Mapping[str, Tensor]]
Forward = Callable[["Sequence[Run]", Sequence[Batch]], Sequence[Output]]
_OWN = frozenset({"epoch", "loss", "val"})  # of an epoch's record


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
    check_seed(seed)


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device named; ``"auto"`` is torch's current GPU if there is one, otherwise the CPU.

    Raises:
        G2MError: if there is no such device here, or the caller has torch compute in another precision than float32.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise G2MError(f"device: expected 'auto' or a device of this machine (got {device!r}: {reason}).") from None
    autocast = any(map(torch.is_autocast_enabled, ("cpu", "cuda")))
    if autocast or torch.get_default_dtype() != torch.float32:
        got = f"{torch.get_default_dtype()}{', autocast' * autocast}"
        raise G2MError(
            f"torch: expected the default dtype float32 and no autocast (got {got}). Set torch.set_default_dtype("
            "torch.float32), and call g2m outside of torch.autocast."
        )
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


@contextmanager
def memory_of_the_gpu() -> Iterator[None]:
    """Inside, running out of a GPU's memory is a mistake that one can mend."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(
            f"device: the GPU's memory does not hold this ({str(error).partition('. ')[0]}). Take a smaller "
            "batch_size or hidden_channels, a teacher on partitions, fewer students at once, or device='cpu'."
        ) from error


@contextmanager
def on_device(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, a model is on a device, for answers; after it, whatever happens, where weights are kept, on the CPU."""
    model.eval()
    try:
        with memory_of_the_gpu(), torch.no_grad():
            if device.type != "cpu":
                model.to(device)
            yield
    finally:
        if device.type != "cpu":
            model.to("cpu")


@memory_of_the_gpu()
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
    keep_checkpoint: bool = False,
    identity: Mapping[str, Any] | None = None,
    observe: Callable[[], Mapping[str, float]] | None = None,
    on_epoch: Callable[[dict[str, float]], None] | None = None,
    progress: str | None = None,
    shared: bool = False,
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
        max_epochs: from 1; default 200.
        patience: stop after this many epochs, from 1, without a score at least as good as the best; default 50.
        seed: of batch order and dropout, from 0 and below 2³²; default 0. Same seed, same bits, on CPU and the same
            number of threads; the caller's streams are untouched.
        device: ``"auto"`` (default), ``"cpu"``, ``"cuda"`` …
        checkpoint: file to save to while training and to resume from if it exists; removed at the end.
        checkpoint_seconds: least time between two saves; default 20.
        keep_checkpoint: leave it to the caller to remove the checkpoint, once the result is saved. Default False.
        identity: what a checkpoint must have been made for; another one is refused.
        observe: asked like ``validate``; what it gives joins the epoch's record.
        on_epoch: called with each epoch's record; may raise to stop, for example to prune a trial.
        progress: shows a progress bar under this title; default ``None``: none.
        shared: where processes are joined (:mod:`g2m.distributed`), train it with all of them: the model's answer for a
            row depends on that row alone, and the batches are the same in all. Default False.

    Raises:
        G2MError: if the loss is not finite, or the checkpoint belongs to another run.
    """
    run = Run(
        model,
        loss,
        batches,
        validate,
        lr=lr,
        weight_decay=weight_decay,
        max_epochs=max_epochs,
        patience=patience,
        seed=seed,
        device=device,
        observe=observe,
        shared=shared and distributed.size() > 1,
    )
    first = not run.shared or distributed.rank() == 0
    settings = {"lr": lr, "weight_decay": weight_decay, "max_epochs": max_epochs, "patience": patience, "seed": seed}
    identity = json.loads(json.dumps({**settings, **(identity or {})}))
    with seeded(seed, run.device):
        if checkpoint is not None and run.shared:
            distributed.alike(lambda: _resume(checkpoint, identity, run), checkpoint)
        elif checkpoint is not None:
            _resume(checkpoint, identity, run)
        saved, done = time.perf_counter(), len(run.history)
        disable = None if progress and first else True
        bar = tqdm(total=max_epochs, initial=done, desc=progress, leave=False, disable=disable)
        with bar:
            while not run.finished:
                train_epoch([run], lambda _, batches: [run.forward(*batch.inputs) for batch in batches])
                if run.error is not None:
                    raise run.error
                if first and checkpoint is not None and time.perf_counter() - saved >= checkpoint_seconds:
                    _save(checkpoint, identity, run)
                    saved = time.perf_counter()
                record = run.history.epochs[-1]
                bar.update()
                bar.set_postfix(loss=f"{record['loss']:.3f}", val=f"{run.history.best_score:.4f}", refresh=False)
                if on_epoch is not None:
                    on_epoch(record)
    run.restore()
    if first and checkpoint is not None and not keep_checkpoint:
        Path(checkpoint).unlink(missing_ok=True)
    return run.history


class Adam:
    """torch's Adam, fused, L2 inside; several runs take their steps in one call.

    torch's kernel copies gradients that are not contiguous, to no end: it is shown transposed weights as they lie.

    Attributes:
        state: of every parameter the two moments and the number of steps.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        self.parameters, self.lr, self.weight_decay = list(parameters), lr, weight_decay
        self.state = [
            {
                "exp_avg": torch.zeros_like(p, requires_grad=False),
                "exp_avg_sq": torch.zeros_like(p, requires_grad=False),
                "step": torch.zeros((), device=p.device),
            }
            for p in self.parameters
        ]

    def zero_grad(self) -> None:
        for p in self.parameters:
            p.grad = None

    @staticmethod
    @torch.no_grad()
    def step(several: Sequence[Adam]) -> None:
        """Take one step with each."""
        together: dict[tuple[float, float], list[tuple[Tensor, ...]]] = {}
        for one in several:
            rows = together.setdefault((one.lr, one.weight_decay), [])
            for p, state in zip(one.parameters, one.state, strict=True):
                if p.grad is not None:
                    tensors = [p.detach(), p.grad, state["exp_avg"], state["exp_avg_sq"]]
                    if p.dim() == 2 and not p.is_contiguous():
                        tensors = [tensor.t() for tensor in tensors]
                    rows.append((*tensors, state["step"]))
        for (lr, weight_decay), rows in together.items():
            if rows:
                p, grad, mean, square, step = map(list, zip(*rows, strict=True))
                options = {"lr": lr, "weight_decay": weight_decay, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
                adam(p, grad, mean, square, [], step, fused=True, amsgrad=False, maximize=False, **options)


class Stream:
    """torch's random streams as one of several runs has them: in a ``with`` block, they go on where it left off."""

    def __init__(self, seed: int, device: torch.device) -> None:
        defaults = [torch.default_generator]
        if device.type == "cuda":
            index = torch.cuda.current_device() if device.index is None else device.index
            defaults.append(torch.cuda.default_generators[index])
        self.pairs = [(default, Generator(default.device).manual_seed(seed)) for default in defaults]

    @property
    def cpu(self) -> Generator:
        return self.pairs[0][1]

    def __enter__(self) -> None:
        for default, own in self.pairs:
            default.set_state(own.get_state())

    def __exit__(self, *_: Any) -> None:
        for default, own in self.pairs:
            own.set_state(default.get_state())


class Run:
    """One model in training: what it is made of, and how far it is. Arguments are those of :func:`fit`.

    Args:
        own_stream: whether it has random streams of its own, for several trained at once, or, the default, torch's.
        shared: whether all joined processes train it.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        batches: Batches,
        validate: Callable[[], float],
        *,
        lr: float,
        weight_decay: float,
        max_epochs: int,
        patience: int,
        seed: int,
        device: torch.device | str,
        observe: Callable[[], Mapping[str, float]] | None = None,
        own_stream: bool = False,
        shared: bool = False,
    ) -> None:
        check_options(lr=lr, weight_decay=weight_decay, max_epochs=max_epochs, patience=patience, seed=seed)
        self.device = resolve_device(device)
        self.model, self.loss, self.validate, self.observe = model, loss, validate, observe
        self.seed, self.shared = seed, shared
        parts = {"model": model, **({"loss": loss} if isinstance(loss, nn.Module) else {})}
        self.trained = nn.ModuleDict(parts).to(self.device)
        self.batches = batches.to(self.device)
        self.max_epochs, self.patience = max_epochs, patience
        self.adam = Adam(self.trained.parameters(), lr, weight_decay)
        self.generator = Generator().manual_seed(seed)
        self.stream = Stream(seed, self.device) if own_stream else nullcontext()
        self.history, self.best = History(), _copy(self.trained)
        self.error: G2MError | None = None

    @property
    def finished(self) -> bool:
        history = self.history
        return len(history) >= self.max_epochs or len(history) - 1 - history.best_epoch >= self.patience

    def begin_epoch(self) -> None:
        self.trained.train()
        if self.shared:  # every process drops out by itself, and a resumed one as it would have
            self._dropout = Stream(self.seed + 1_000_003 * distributed.rank() + 7919 * len(self.history), self.device)

    def forward(self, *inputs: Any) -> Output:
        """Return the model's answer to a batch in training; where it is shared, each process computes some rows."""
        if not self.shared:
            return self.model(*inputs)
        x, *rest = inputs
        sizes = distributed.shares(len(x))
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), self._dropout, rows_shared(self.model):
            own = self.model(x.split(sizes)[distributed.rank()], *rest)
        hidden = None if own.hidden is None else distributed.gather(own.hidden, sizes)
        return Output(distributed.gather(own.logits, sizes), hidden, own.extra)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Do what concerns this run only: from its random streams, and keep a mistake of its user for ``error``."""
        try:
            with self.stream:
                yield
        except G2MError as error:
            self.error = error

    def restore(self) -> None:
        """Leave the model in its best state."""
        self.trained.load_state_dict(self.best)
        self.trained.eval()

    def parts(self, output: Output, batch: Batch) -> Mapping[str, Tensor]:
        """Return the parts of the loss that this step is to use."""
        parts = self.loss(output, batch)
        if not isinstance(parts, Mapping) or any(not isinstance(p, Tensor) or p.dim() for p in parts.values()):
            raise G2MError(f"loss: expected a dict of scalar tensors by name, the parts of the loss (got {parts!r}).")
        self._refuse_own(parts, "loss", "a part of it")
        if not any(part.requires_grad for part in parts.values()):
            raise G2MError(f"loss: expected a part that depends on what is trained (got none in {sorted(parts)}).")
        if batch.only is not None:
            parts = {key: value for key, value in parts.items() if (key == "label") == (batch.only == "label")}
        if not parts:
            raise G2MError(
                f"loss: gave no part for a step on the {batch.only or 'whole'} (batch.only={batch.only!r}). "
                "Return the part on labels as 'label', at weight 0 too."
            )
        return parts

    @staticmethod
    def _refuse_own(found: Mapping[str, Any], argument: str, what: str) -> None:
        """Refuse names that the loop keeps for itself."""
        if taken := sorted(_OWN & found.keys()):
            raise G2MError(f"{argument}: {taken[0]!r} is the loop's own in the record. Name {what} otherwise.")

    def judge(self, sums: Mapping[str, Tensor], steps: int) -> None:
        """Record an epoch, and keep the state if it is as good as the best."""
        means = {key: float(value) / steps for key, value in sums.items()}
        mend = "Lower lr, or look for extreme feature values."
        if not math.isfinite(means["loss"]):
            raise G2MError(f"loss: became {means['loss']} ({means}). {mend}")
        trained = [p for p in self.adam.parameters if p.requires_grad]
        if not get_total_norm(trained, math.inf).isfinite():  # the last step came after the loss
            raise G2MError(f"lr: expected steps that leave weights finite (got NaN or infinity, {means}). {mend}")
        record = {"epoch": len(self.history), **means}
        self.trained.eval()
        with torch.no_grad():
            record["val"] = self.validate()
            seen = self.observe() if self.observe is not None else {}
        self._refuse_own(seen, "after_epoch", "a figure")
        record |= seen
        if self.shared:  # to the last digit, or they might not stop together
            record = distributed.from_first(lambda: record)
        if not math.isfinite(record["val"]):
            raise G2MError(f"val: the validation score is {record['val']}; does 'val' hold a single class?")
        self.history.epochs.append(record)
        if record["val"] >= self.history.best_score:
            self.history.best_epoch, self.history.best_score = record["epoch"], record["val"]
            _copy(self.trained, self.best)


def train_epoch(runs: Sequence[Run], forward: Forward, steps: Iterator[Sequence[Batch]] | None = None) -> None:
    """Train several runs for an epoch, side by side: they have as many steps, and one call of ``forward`` for each.

    A run that fails has its :class:`G2MError` in ``error``; the rest do not notice.

    Args:
        runs: at least one.
        forward: gives the outputs of all their models, which nothing but it joins, for a batch each.
        steps: batches of all, step by step; default those of each.
    """
    started, sums, count = time.perf_counter(), [{} for _ in runs], 0
    for run in runs:
        run.begin_epoch()
    steps = zip(*(run.batches.epoch(run.generator) for run in runs), strict=True) if steps is None else steps
    for batches in steps:
        totals, count = [], count + 1
        for run, output, batch, so_far in zip(runs, forward(runs, batches), batches, sums, strict=True):
            if run.error is not None:
                continue
            with run.alone():
                parts = run.parts(output, batch)
                totals.append(sum(parts.values()))
                for key, value in {"loss": totals[-1], **parts}.items():
                    so_far[key] = so_far.get(key, 0) + value.detach()
        del output  # its hidden state: backward may have no need of it
        going = [run for run in runs if run.error is None]
        if not going:
            return
        for run in going:
            run.adam.zero_grad()
        torch.autograd.backward(totals)
        for run in going:
            if run.shared:
                distributed.average_gradients(run.adam.parameters)
        Adam.step([run.adam for run in going])
    for run, so_far in zip(runs, sums, strict=True):
        if run.error is None:
            with run.alone():
                run.judge(so_far, count)
    seconds = (time.perf_counter() - started) / len(runs)
    for run in runs:
        run.history.seconds += seconds


# -- checkpoints -----------------------------------------------------------------------------------------------


def _copy(trained: nn.Module, into: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    state = trained.state_dict()
    if into is None:
        return {key: value.detach().clone() for key, value in state.items()}
    for key, value in state.items():
        into[key].copy_(value)
    return into


def _save(path: str | Path, identity: Mapping[str, Any], run: Run) -> None:
    tensors = {f"best.{key}": value for key, value in run.best.items()}
    tensors |= {f"now.{key}": value for key, value in run.trained.state_dict().items()}
    for index, state in enumerate(run.adam.state):
        tensors |= {f"adam.{index}.{key}": value for key, value in state.items()}
    tensors |= {"random.batches": run.generator.get_state(), "random.cpu": torch.get_rng_state()}
    if run.device.type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state(run.device)
    storage.write(path, "checkpoint", tensors, {"identity": identity, "history": asdict(run.history)})


def _resume(path: str | Path, identity: Mapping[str, Any], run: Run) -> int:
    """Take a run to where its checkpoint is, if there is one; return how many epochs are done."""
    try:
        tensors, meta = storage.read(path, "checkpoint")
    except FileError:
        if Path(path).exists():
            raise
        return 0
    if meta["identity"] != identity:
        changed = sorted(k for k in identity | meta["identity"] if identity.get(k) != meta["identity"].get(k))
        raise FileError(
            f"checkpoint: {str(path)!r} was made by another run, it differs in: {', '.join(changed)}. "
            "Delete it, or name another file."
        )

    def group(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v.to(run.device) for k, v in tensors.items() if k.startswith(prefix)}

    run.trained.load_state_dict(group("now."))
    for key, value in group("adam.").items():
        index, name = key.split(".")
        run.adam.state[int(index)][name].copy_(value)
    run.generator.set_state(tensors["random.batches"])
    torch.set_rng_state(tensors["random.cpu"])
    if run.device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], run.device)
    run.history, run.best = History(**meta["history"]), group("best.")
    return len(run.history)
