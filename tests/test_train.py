"""The training loop: what it keeps, when it stops, and that a killed run ends where an unbroken one does."""

import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import same_bits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, nn
from torch.nn import functional as F

from g2m import storage
from g2m.batches import FullBatch, NodeBatches
from g2m.errors import G2MError
from g2m.methods import label_loss
from g2m.models import MLP
from g2m.train import fit, resolve_device, seeded

N = 20
X, Y = torch.randn(N, 4, generator=Generator().manual_seed(0)), torch.arange(N) % 2
TRAIN = torch.arange(8)


def mlp(**options) -> MLP:
    torch.manual_seed(0)
    return MLP(4, 6, 2, **options)


def loss(output, batch):
    return {"label": label_loss(output, batch), "decay": 0.01 * output.logits.square().mean()}


def full():
    return FullBatch((X,), Y, TRAIN)


def mini(**options):
    return NodeBatches(X, Y, TRAIN, {"t": X}, batch_size=6, **options)


def accuracy(model):
    return lambda: float((model(X).logits.argmax(-1) == Y).float().mean())


def train(model=None, batches=None, validate=None, **options):
    model = mlp() if model is None else model
    history = fit(
        model, options.pop("loss", loss), batches or full(), validate or accuracy(model), **{"device": "cpu", **options}
    )
    return model, history


def state(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def scripted(scores):
    scores = iter(scores)
    return lambda: next(scores)


# -- which state is kept, and when it ends -------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=1, max_size=12), st.integers(1, 5))
def test_best_state_is_the_latest_of_equals_and_patience_counts_from_it(scores, patience):
    stop, best = len(scores), 0
    for epoch, score in enumerate(scores):
        if score >= scores[best]:
            best = epoch
        elif epoch - best >= patience:
            stop = epoch + 1
            break
    model, states = mlp(), []
    _, history = train(
        model,
        validate=scripted(scores),
        on_epoch=lambda record: states.append(state(model)),
        max_epochs=len(scores),
        patience=patience,
    )
    assert len(history) == stop
    assert (history.best_epoch, history.best_score) == (best, scores[best])
    assert [record["val"] for record in history.epochs] == scores[:stop]
    assert same_bits(state(model), states[best])
    assert not model.training


def test_running_statistics_are_restored_too():
    model, states = mlp(norm="batch"), []
    train(model, validate=scripted([0.1, 0.9, 0.2, 0.3]), on_epoch=lambda r: states.append(state(model)), max_epochs=4)
    assert same_bits(state(model), states[1])
    assert not torch.equal(states[1]["norms.0.running_mean"], states[3]["norms.0.running_mean"])


def test_scores_below_zero_are_scores():
    _, history = train(validate=scripted([-3.0, -2.0, -5.0]), max_epochs=3)
    assert (history.best_epoch, history.best_score) == (1, -2.0)


# -- what a step is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [6, 64])  # from 64 on, weights are stored input-major
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_full_batch_epoch_is_one_step_of_adam(weight_decay, width):
    torch.manual_seed(0)
    model = MLP(4, width, 2)
    oracle = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))
    oracle[0].load_state_dict(model.layers[0].state_dict())
    oracle[2].load_state_dict(model.layers[1].state_dict())
    adam = torch.optim.Adam(oracle.parameters(), lr=0.02, weight_decay=weight_decay, foreach=False)
    losses = []
    for _ in range(8):
        logits = oracle(X)
        total = F.cross_entropy(logits[TRAIN], Y[TRAIN]) + 0.01 * logits.square().mean()
        adam.zero_grad()
        total.backward()
        adam.step()
        losses.append(float(total))
    _, history = train(model, validate=scripted(range(8)), lr=0.02, weight_decay=weight_decay, max_epochs=8)
    torch.testing.assert_close([record["loss"] for record in history.epochs], losses, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model(X).logits, oracle(X), rtol=1e-4, atol=1e-5)


def test_the_record_holds_means_over_steps():
    seen = []

    def recorded(output, batch):
        parts = loss(output, batch)
        seen.append({key: float(value) for key, value in parts.items()})
        return parts

    _, history = train(batches=mini(), loss=recorded, max_epochs=1)
    (record,) = history.epochs
    assert len(seen) == 4
    for key in ("label", "decay"):
        assert record[key] == pytest.approx(sum(parts[key] for parts in seen) / 4, rel=1e-5)
    assert record["loss"] == pytest.approx(record["label"] + record["decay"], rel=1e-5)
    assert record.keys() == {"epoch", "loss", "label", "decay", "val"}


def test_reference_schedule_takes_half_of_the_loss_a_step():
    """With nothing to learn in the second pass, Adam coasts on the first."""
    calls = []

    def recorded(output, batch):
        calls.append(batch.only)
        return {"label": label_loss(output, batch), "rest": 0 * output.logits.sum()}

    model = mlp()
    train(model, mini(reference_schedule=True), loss=recorded, max_epochs=1, lr=1e-3, weight_decay=0)
    assert calls == ["label"] + ["teacher"] * 3
    oracle = mlp()
    adam = torch.optim.Adam(oracle.parameters(), lr=1e-3, foreach=False)
    first = next(iter(mini(reference_schedule=True).epoch(Generator().manual_seed(0))))
    label_loss(oracle(*first.inputs), first).backward()
    adam.step()
    for _ in range(3):
        adam.zero_grad(set_to_none=False)
        adam.step()
    torch.testing.assert_close(model(X).logits, oracle(X).logits, rtol=1e-4, atol=1e-6)


def test_a_step_without_a_part_is_refused():
    with pytest.raises(G2MError, match="no part for a step on the label"):
        train(batches=mini(reference_schedule=True), loss=lambda o, b: {"rest": o.logits.sum()})


@pytest.mark.parametrize("name", ["loss", "epoch", "val"])
def test_names_of_the_loops_own_are_refused(name):
    with pytest.raises(G2MError, match=f"^loss: '{name}' is the loop's own"):
        train(loss=lambda output, batch: {**loss(output, batch), name: output.logits.sum()})
    with pytest.raises(G2MError, match=f"^after_epoch: '{name}' is the loop's own"):
        train(observe=lambda: {name: 1.0})


def test_a_loss_without_a_gradient_is_refused():
    with pytest.raises(
        G2MError, match=r"^loss: expected a part that depends on what is trained \(got none in \['a'\]\)"
    ):
        train(loss=lambda output, batch: {"a": torch.zeros(())})


def test_training_and_evaluation_modes():
    model, modes = mlp(dropout=0.5), []

    def noted(output, batch):
        modes.append(("step", model.training, torch.is_grad_enabled()))
        return loss(output, batch)

    def validate():
        modes.append(("val", model.training, torch.is_grad_enabled()))
        return 1.0

    train(model, mini(), validate, loss=noted, max_epochs=2)
    assert modes == 2 * [*4 * [("step", True, True)], ("val", False, False)]


def test_parameters_of_the_loss_are_trained_and_restored():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, output, batch):
            return {"label": label_loss(output, batch) * self.scale}

    scaled, seen = Scaled(), []
    train(
        validate=scripted([0.1, 0.9, 0.2]),
        loss=scaled,
        max_epochs=3,
        on_epoch=lambda r: seen.append(float(scaled.scale)),
    )
    assert len(set(seen)) == 3
    assert float(scaled.scale) == seen[1] != 1


# -- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite(bad):
    with pytest.raises(G2MError, match=r"loss: became (nan|inf).*Lower lr"):
        train(loss=lambda o, b: {"label": label_loss(o, b), "bad": o.logits.sum() * 0 + bad}, max_epochs=2)


def test_weights_that_are_not_finite_after_the_last_step():
    model = mlp()
    with pytest.raises(G2MError, match=r"lr: expected steps that leave weights finite .*Lower lr"):
        train(model, validate=lambda: pytest.fail("asked"), lr=1e38, max_epochs=1)
    assert not all(p.isfinite().all() for p in model.parameters())


def test_what_is_not_trained_may_be_of_any_numbers():
    model = mlp()
    for name, value in {"mask": torch.tensor([0.0, -torch.inf]), "order": torch.arange(2)}.items():
        model.register_parameter(name, nn.Parameter(value, requires_grad=False))
    assert len(train(model, max_epochs=2)[1]) == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_validation_score_that_is_not_finite(bad):
    with pytest.raises(G2MError, match=r"val: the validation score is .*single class"):
        train(validate=lambda: bad)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0}, "lr"),
        ({"lr": float("nan")}, "lr"),
        ({"weight_decay": -1}, "weight_decay"),
        ({"max_epochs": 0}, "max_epochs"),
        ({"patience": 0}, "patience"),
        ({"device": "cpuu"}, "device: expected 'auto'"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(G2MError, match=message):
        train(**options)


def test_device():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_another_precision_of_the_callers_is_refused(request):
    with torch.autocast("cpu"), pytest.raises(G2MError, match=r"^torch: expected .* \(got torch.float32, autocast\)"):
        run()
    request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
    torch.set_default_dtype(torch.float64)
    with pytest.raises(G2MError, match=r"^torch: expected the default dtype float32 .* \(got torch.float64\)"):
        run()


# -- random streams ------------------------------------------------------------------------------------------------


def run(seed=0, **options):
    torch.manual_seed(0)
    model = MLP(4, 64, 2, dropout=0.4, norm="batch")  # wide enough for input-major weights
    model, history = train(model, mini(), max_epochs=6, seed=seed, **options)
    return state(model), history


def test_same_seed_same_bits_other_seed_others():
    torch.manual_seed(1)
    first, history = run()
    torch.manual_seed(2)
    again, history_again = run()
    assert same_bits(first, again)
    assert history.epochs == history_again.epochs
    assert not same_bits(first, run(seed=1)[0])


@pytest.mark.parametrize("end", ["normal", "raise"])
def test_the_callers_stream_is_untouched(end):
    def stop(record):
        raise KeyboardInterrupt

    model = mlp(dropout=0.4)
    before = torch.get_rng_state()
    if end == "raise":
        with pytest.raises(KeyboardInterrupt):
            train(model, mini(), on_epoch=stop)
    else:
        train(model, mini(), max_epochs=2)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeding_for_the_cpu_leaves_other_devices_alone(monkeypatch):
    def refuse(seed):
        raise AssertionError("seeded every GPU")

    monkeypatch.setattr(torch.cuda, "manual_seed_all", refuse)
    with seeded(3, torch.device("cpu")):
        first = torch.rand(3)
    assert torch.equal(first, torch.rand(3, generator=Generator().manual_seed(3)))


# -- checkpoints ---------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def kill_at(epoch, kill=None):
    def on_epoch(record):
        if record["epoch"] == epoch:
            if kill is not None:
                kill()
            raise Killed

    return on_epoch


def records(history):
    return history.epochs, history.best_epoch, history.best_score


@pytest.mark.parametrize("epochs", [[0], [5], [1, 2, 4]])
def test_stopped_and_resumed_gives_the_bits_of_an_unbroken_run(epochs, tmp_path):
    """With dropout, batch norm, mini-batches, and an epoch number that counts on across stops."""
    whole, history = run()
    options = {"checkpoint": tmp_path / "c", "checkpoint_seconds": 0}
    for epoch in epochs:
        with pytest.raises(Killed):
            run(on_epoch=kill_at(epoch), **options)
        assert (tmp_path / "c").exists()
    resumed, resumed_history = run(**options)
    assert same_bits(whole, resumed)
    assert records(history) == records(resumed_history)
    assert resumed_history.seconds > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stop", [2, 3])
def test_the_best_state_may_lie_before_the_stop(stop, tmp_path):
    """Also where nothing is left to do but to restore it: the stop came after the last epoch."""
    scores, states = [0.1, 0.9, 0.3, 0.2], []
    options = {"checkpoint": tmp_path / "c", "checkpoint_seconds": 0, "max_epochs": 4}
    model = mlp()

    def on_epoch(record):
        states.append(state(model))
        kill_at(stop)(record)

    with pytest.raises(Killed):
        train(model, validate=scripted(scores), on_epoch=on_epoch, **options)
    resumed, history = train(validate=scripted(scores[stop + 1 :]), **options)
    assert history.best_epoch == 1
    assert same_bits(state(resumed), states[1])
    assert not resumed.training


def test_resuming_does_not_repeat_epochs(tmp_path):
    options, seen = {"checkpoint": tmp_path / "c", "checkpoint_seconds": 0}, []
    with pytest.raises(Killed):
        run(on_epoch=kill_at(3), **options)
    run(on_epoch=lambda record: seen.append(record["epoch"]), **options)
    assert seen == [4, 5]


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import test_train
test_train.run(
    checkpoint={checkpoint!r}, checkpoint_seconds=0,
    on_epoch=test_train.kill_at(3, lambda: os.kill(os.getpid(), signal.SIGKILL)),
)
"""


def test_killed_and_resumed_gives_the_bits_of_an_unbroken_run(tmp_path):
    path = tmp_path / "c"
    code = KILLED.format(tests=str(Path(__file__).parent), checkpoint=str(path))
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == -signal.SIGKILL
    assert len(storage.read(path, "checkpoint")[1]["history"]["epochs"]) == 4
    (whole, history), (resumed, resumed_history) = run(), run(checkpoint=path, checkpoint_seconds=0)
    assert same_bits(whole, resumed)
    assert records(history) == records(resumed_history)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "seed"),
        ({"lr": 0.5}, "lr"),
        ({"patience": 7, "weight_decay": 0.0}, "patience, weight_decay"),
        ({"identity": {"graph": "b"}}, "graph"),
        ({"identity": {}}, "graph"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_what_differs(change, named, tmp_path):
    options = {"checkpoint": tmp_path / "c", "checkpoint_seconds": 0, "identity": {"graph": "a"}}
    with pytest.raises(Killed):
        run(on_epoch=kill_at(1), **options)
    before = (tmp_path / "c").read_bytes()
    with pytest.raises(G2MError, match=rf"made by another run, it differs in: {named}\."):
        run(**(options | change))
    assert (tmp_path / "c").read_bytes() == before


def test_a_checkpoint_of_a_gpu_goes_on_on_a_cpu(tmp_path, monkeypatch):
    options = {"checkpoint": tmp_path / "c", "checkpoint_seconds": 0}
    with pytest.raises(Killed):
        run(on_epoch=kill_at(1), **options)
    tensors, meta = storage.read(tmp_path / "c", "checkpoint")
    storage.write(tmp_path / "c", "checkpoint", {**tensors, "random.cuda": tensors["random.cpu"]}, meta)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda *_: pytest.fail("the GPU is not used"))
    assert same_bits(run(**options)[0], run()[0])


def test_a_checkpoint_may_be_kept_until_the_result_is(tmp_path):
    options = {"checkpoint": tmp_path / "c", "checkpoint_seconds": 0}
    whole, history = run(keep_checkpoint=True, **options)
    again, history_again = run(on_epoch=lambda record: pytest.fail("trained again"), **options)
    assert same_bits(whole, again)
    assert records(history) == records(history_again)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_refused(tmp_path):
    options = {"checkpoint": tmp_path / "c", "checkpoint_seconds": 0}
    with pytest.raises(Killed):
        run(on_epoch=kill_at(1), **options)
    (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:-10])
    with pytest.raises(G2MError, match="truncated"):
        run(**options)


def test_a_checkpoint_that_another_process_has_just_removed_is_none(tmp_path, monkeypatch):
    def removed(path, kind):
        path.unlink()
        return read(path, kind)

    options, read = {"checkpoint": tmp_path / "c", "checkpoint_seconds": 0}, storage.read
    with pytest.raises(Killed):
        run(on_epoch=kill_at(1), **options)
    monkeypatch.setattr(storage, "read", removed)
    again, history = run(**options)
    assert same_bits(again, run()[0])
    assert len(history) == 6


def test_saves_keep_their_distance(tmp_path, monkeypatch):
    writes = []
    monkeypatch.setattr(storage, "write", lambda *args: writes.append(args))
    run(checkpoint=tmp_path / "c", checkpoint_seconds=math.inf)
    assert writes == []
    run(checkpoint=tmp_path / "c", checkpoint_seconds=0)
    assert len(writes) == 6
