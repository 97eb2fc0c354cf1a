"""What the tests share: small graphs, an imaginary teacher, and the contract that every method must meet.

A clause of the contract takes the name of a registered method; ``tests/methods/test_contract.py`` runs all of them
over the whole registry, so a new method is covered by registering it.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from torch import Generator, Tensor

from g2m import estimators, storage
from g2m.batches import Batch
from g2m.errors import G2MError
from g2m.estimators import Student
from g2m.graph import Graph
from g2m.methods import REGISTRY, Method
from g2m.models import MLP
from g2m.outputs import TeacherOutputs

# -- graphs ------------------------------------------------------------------------------------------------------


def blocks(
    num_nodes: int = 36,
    *,
    num_classes: int = 3,
    num_features: int = 10,
    seed: int = 0,
    unseen: bool = False,
    edges: bool = True,
) -> Graph:
    """A block model: nodes of a class share edges and the mean of their features. Class of node i: i mod C.

    The first quarter is ``train``, the second ``val``, the rest ``test``; every third test node is ``unseen`` if asked.
    """
    generator = Generator().manual_seed(seed)
    y = torch.arange(num_nodes) % num_classes
    centre = 2 * torch.randn(num_classes, num_features, generator=generator)
    x = centre[y] + torch.randn(num_nodes, num_features, generator=generator)
    chance = torch.where(y[:, None] == y, 0.4, 0.05) * edges
    upper = torch.rand(num_nodes, num_nodes, generator=generator).lt(chance).triu(1)
    quarter, ids = num_nodes // 4, torch.arange(num_nodes)
    split = {"train": ids[:quarter], "val": ids[quarter : 2 * quarter], "test": ids[2 * quarter :]}
    if unseen:
        split["unseen"] = split["test"][::3]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "graph .* has no edges")
        return Graph(x, (upper | upper.T).nonzero().T, y, split, name="blocks", num_classes=num_classes)


def permuted(graph: Graph, order: Tensor) -> Graph:
    """The same graph under other ids: node k of it is node ``order[k]`` of ``graph``."""
    new_id = torch.empty_like(order)
    new_id[order] = torch.arange(len(order))
    split = {part: new_id[ids] for part, ids in graph.split.items()}
    return replace(graph, x=graph.x[order], edge_index=new_id[graph.edge_index], y=graph.y[order], split=split)


def shuffled(graph: Graph, seed: int = 5) -> tuple[Graph, Tensor]:
    order = torch.randperm(graph.num_nodes, generator=Generator().manual_seed(seed))
    return permuted(graph, order), order


def thin(*, directed: bool = False, sparse: bool = False, num_nodes: int = 60, seed: int = 0) -> Graph:
    """A thin random graph: several components, isolated nodes, the first and the last node among them."""
    generator = Generator().manual_seed(seed)
    edges = 1 + torch.randint(num_nodes - 12, (2, 3 * num_nodes // 4), generator=generator)
    if not directed:
        edges = torch.cat([edges, edges.flip(0)], 1)
    x = torch.randn(num_nodes, 40, generator=generator)
    if sparse:
        x = x * (torch.rand(num_nodes, 40, generator=generator) < 0.05)
    ids = torch.arange(num_nodes)
    third = num_nodes // 3
    split = {"train": ids[:third], "val": ids[third : 2 * third], "test": ids[2 * third :]}
    return Graph(x, edges, ids % 3, split, name="thin")


def of_the_neighbour(wrong: float, *, seed: int = 0) -> Graph:
    """Pairs of nodes: the class of one is written in the features of the other. A share ``wrong`` is flipped."""
    generator = Generator().manual_seed(seed)
    pair = torch.arange(600).reshape(-1, 2)
    x = torch.randn(600, 4, generator=generator)
    y = (x[pair.flip(1).flatten(), 0] > 0).long()
    y = torch.where(torch.rand(600, generator=generator) < wrong, 1 - y, y)
    order = torch.randperm(600, generator=generator)
    split = {"train": order[:200], "val": order[200:400], "test": order[400:]}
    return Graph(x, torch.cat([pair.T, pair.T.flip(0)], 1), y, split)


# -- an imaginary teacher ----------------------------------------------------------------------------------------


def outputs_of(graph: Graph, seed: int = 0) -> TeacherOutputs:
    """Outputs with every field filled in, a function of what training may see: no method lacks what it needs."""
    observed, generator = graph.observed(), Generator().manual_seed(seed)
    hidden = (observed.x @ torch.randn(observed.num_features, 6, generator=generator) / 3).tanh()
    logits = 2 * hidden @ torch.randn(6, observed.num_classes, generator=generator)
    source, target = observed.edge_index
    p = logits.softmax(-1)
    return TeacherOutputs(
        observed.node_id,
        logits,
        hidden,
        low_target=p.index_add(0, target, p[source]),
        entropy_change=hidden[:, :1].abs(),
        transforms=tuple(torch.randn(size, generator=generator) for size in ((6, 10), (3, 6))),
        codebook=torch.randn(5, 6, generator=generator),
        code_input=hidden.clone(),
        meta={
            "fingerprint": observed.fingerprint(),
            "setting": graph.setting,
            "teacher": {"model": "imaginary", "seed": seed},
        },
    )


def teacher_for(name: str, graph: Graph, seed: int = 0) -> TeacherOutputs | None:
    """Outputs for a method that needs some, else ``None``."""
    return outputs_of(graph, seed) if REGISTRY[name].needs else None


def student(name: str, **options: Any) -> Student:
    """A small student of a method, quick to train."""
    return Student(name, **{"hidden_channels": 8, "max_epochs": 4, "device": "cpu", **options})


def fitted(name: str, graph: Graph, **options: Any) -> Student:
    return student(name, **options).fit(graph, teacher_for(name, graph))


# -- comparing ---------------------------------------------------------------------------------------------------


def same_bits(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def weights(estimator: Any) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in estimator.model_.state_dict().items()}


# -- the contract of a method --------------------------------------------------------------------------------------


class _Stop(Exception):
    pass


def intercept(student: Student, graph: Graph, outputs: TeacherOutputs | None) -> tuple[MLP, Method, Any]:
    """The model, the method and the batches that ``Student.fit`` would hand to the training loop."""
    seen: list[Any] = []

    def stop(model: MLP, loss: Method, batches: Any, *_: Any, **__: Any) -> None:
        seen.extend((model, loss, batches))
        raise _Stop

    with pytest.MonkeyPatch.context() as patch, suppress(_Stop):
        patch.setattr(estimators, "fit", stop)
        student.fit(graph, outputs)
    return tuple(seen)


def steps(name: str, graph: Graph, **options: Any) -> tuple[MLP, Method, list[Batch]]:
    """A fresh model in training mode, its method, and the batches of one epoch."""
    model, method, batches = intercept(student(name, **options), graph, teacher_for(name, graph))
    return model.train(), method.train(), list(batches.epoch(Generator().manual_seed(0)))


def parts_of(name: str, model: MLP, method: Method, batch: Batch) -> dict[str, Tensor]:
    """The parts of the loss on a batch, each checked for being what the training loop takes."""
    parts = dict(method(model(*batch.inputs), batch))
    for key, value in parts.items():
        assert value.shape == (), f"{name}: part {key!r} is no scalar, its shape is {tuple(value.shape)}"
        assert torch.isfinite(value), f"{name}: part {key!r} is {value}"
        reached = torch.autograd.grad(value, list(model.parameters()), retain_graph=True, allow_unused=True)
        assert any(g is not None for g in reached), f"{name}: part {key!r} does not reach the student"
        assert all(g is None or torch.isfinite(g).all() for g in reached), f"{name}: gradient of {key!r} is not finite"
    return parts


def learns(name: str, graph: Graph) -> None:
    student = fitted(name, graph, max_epochs=25, patience=25, batch_size=1000)
    records = student.history_.epochs
    assert len(records) == 25
    assert all(math.isfinite(value) for record in records for value in record.values())
    assert records[-1]["loss"] < records[0]["loss"]
    assert student.predict(graph.x).shape == (graph.num_nodes,)


def trains_transductively(name: str, tmp_path: Path) -> None:
    learns(name, blocks())


def trains_inductively(name: str, tmp_path: Path) -> None:
    learns(name, blocks(unseen=True))


def gives_finite_scalars_that_reach_the_student(name: str, tmp_path: Path) -> None:
    model, method, batches = steps(name, blocks(), batch_size=1000)
    (batch,) = batches
    parts = parts_of(name, model, method, batch)
    sum(parts.values()).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def calls_the_part_on_labels_label(name: str, tmp_path: Path) -> None:
    """``label`` is there, at any weight; in a step on the teacher alone it is the only part that reads labels."""
    for options, seed in product(({}, drawn_options(name)), range(4)):
        model, method, (batch,) = steps(name, blocks(), batch_size=1000, **options)
        batch = replace(batch, only="teacher")
        torch.manual_seed(seed)
        before = method(model(*batch.inputs), batch)
        torch.manual_seed(seed)
        after = method(model(*batch.inputs), replace(batch, y=(batch.y + 1) % 3))
        assert "label" in before
        assert "loss" not in before, "the training record keeps the total under 'loss'"
        for key in set(before) - {"label"}:
            assert torch.equal(before[key], after[key]), f"{name}: part {key!r} reads labels"


def drawn_rows(batch: Batch) -> int:
    """How many rows a step is about; those after them are there for their edges."""
    return batch.batch_size or len(batch.row)


def estimates_the_label_loss_without_bias(name: str, tmp_path: Path) -> None:
    """The mean over an epoch of equal batches is the value on the whole: of every part that draws nothing at random.

    Of a part over pairs within a batch, only the mean over many epochs is.
    """
    for options in ({}, drawn_options(name)):  # a default may leave a part out
        model, method, (whole,) = steps(name, blocks(), batch_size=1000, **options)
        size = 3 if REGISTRY[name].nodes == "train" else 6
        _, _, cut = intercept(student(name, batch_size=size, **options), blocks(), teacher_for(name, blocks()))
        epochs = [list(cut.epoch(Generator().manual_seed(seed))) for seed in range(100)]
        assert {drawn_rows(batch) for batch in epochs[0]} == {size}

        def values(batch: Batch, seed: int, model: MLP = model, method: Method = method) -> Mapping[str, Tensor]:
            torch.manual_seed(seed)
            return method(model(*batch.inputs), batch)

        expected, again = values(whole, 0), values(whole, 1)

        def mean(key: str, batches: list[Batch], seed: int = 0) -> Tensor:
            return torch.stack([values(batch, seed + i)[key].detach() for i, batch in enumerate(batches)]).mean()

        for key in expected:
            if key != "label" and not torch.equal(expected[key], again[key]):
                continue
            one = mean(key, epochs[0])
            if key == "label" or torch.allclose(one, expected[key], rtol=1.3e-6, atol=1e-5):
                torch.testing.assert_close(one, expected[key], msg=lambda m, key=key: f"{name}: part {key!r}: {m}")
                continue
            means = torch.stack([mean(key, batches) for batches in epochs]).double()
            error = (means.mean() - expected[key]).abs()
            assert error <= 4 * means.std() / len(means) ** 0.5, f"{name}: part {key!r} is off by {error}"


def is_reproducible(name: str, tmp_path: Path) -> None:
    options = {"dropout": 0.5, "batch_size": 7}
    first, again, other = (fitted(name, blocks(), seed=seed, **options) for seed in (0, 0, 1))
    assert same_bits(weights(first), weights(again))
    assert first.history_.epochs == again.history_.epochs
    assert not same_bits(weights(first), weights(other))


def ignores_node_order(name: str, tmp_path: Path) -> None:
    """The loss of one model on the whole graph is the same under other node ids (on average, if it draws at random)."""
    graph = blocks()
    other, order = shuffled(graph)
    outputs = outputs_of(graph)
    rows = ("logits", "hidden", "low_target", "entropy_change", "code_input")
    meta = outputs.meta | {"fingerprint": other.fingerprint()}
    moved = replace(outputs, meta=meta, **{field: getattr(outputs, field)[order] for field in rows})
    model, method, batches = intercept(student(name, batch_size=1000), graph, outputs)
    _, moved_method, moved_batches = intercept(student(name, batch_size=1000), other, moved)
    moved_method.load_state_dict(method.state_dict())
    if batches.x.shape[1] > graph.num_features:  # positions are drawn at random: the same ones
        moved_batches.x = batches.x[order]

    def draws(method: Method, batches: Any, seeds: range) -> Tensor:
        (batch,) = batches.epoch(Generator().manual_seed(0))
        values = []
        for seed in seeds:
            torch.manual_seed(seed)
            parts = method(model(*batch.inputs), batch)
            values.append(torch.stack([parts[key].detach().double() for key in sorted(parts)]))
        return torch.stack(values)

    first = draws(method, batches, range(2))
    if torch.equal(first[0], first[1]):
        torch.testing.assert_close(draws(moved_method, moved_batches, range(1))[0], first[0], rtol=1e-5, atol=1e-7)
    else:
        a, b = draws(method, batches, range(200)), draws(moved_method, moved_batches, range(200, 400))
        assert ((a.mean(0) - b.mean(0)).abs() <= 5 * ((a.var(0) + b.var(0)) / 200).sqrt() + 1e-7).all()


def survives_one_row(name: str, tmp_path: Path) -> None:
    model, method, batches = steps(name, blocks(), batch_size=1)
    assert {drawn_rows(batch) for batch in batches} == {1}
    for batch in batches:
        sum(parts_of(name, model, method, batch).values()).backward()


def survives_no_labelled_node(name: str, tmp_path: Path) -> None:
    model, method, batches = steps(name, blocks(), batch_size=1000)
    batch = replace(batches[0], labelled=torch.zeros_like(batches[0].labelled))
    parts = parts_of(name, model, method, batch)
    assert parts["label"] == 0
    sum(parts.values()).backward()


def survives_one_class(name: str, tmp_path: Path) -> None:
    graph = blocks()
    y = graph.y.clone()
    y[graph.part("train")] = 1
    graph = replace(graph, y=y)
    model, method, batches = steps(name, graph, batch_size=5)
    for batch in batches:
        parts_of(name, model, method, batch)
    fitted(name, graph)


def survives_no_edges(name: str, tmp_path: Path) -> None:
    graph = blocks(edges=False)
    model, method, batches = steps(name, graph, batch_size=5)
    for batch in batches:
        parts_of(name, model, method, batch)
    fitted(name, graph)


def takes_or_refuses_a_single_layer(name: str, tmp_path: Path) -> None:
    refused = "num_layers: "
    try:
        fitted(name, blocks(), num_layers=1)
    except G2MError as error:
        refused = str(error)
    assert refused.startswith("num_layers: ")


def refuses_unknown_options(name: str, tmp_path: Path) -> None:
    for option in REGISTRY[name].options():
        with pytest.raises(G2MError, match=f"unknown key '{option}x'.*Did you mean '{option}'"):
            Student(name, **{f"{option}x": 1})
    with pytest.raises(G2MError, match="unknown key 'no_such_option'"):
        Student(name, no_such_option=1)


def refuses_options_out_of_range(name: str, tmp_path: Path) -> None:
    for option, default in REGISTRY[name].options().items():
        if default is None:
            continue
        wrong = [float("nan"), -1e9, "0.5"]
        if isinstance(default, bool | str):
            wrong = ["False"] if isinstance(default, bool) else ["no such choice"]
        for value in wrong:
            with pytest.raises(G2MError, match=option):
                Student(name, **{option: value})


def keeps_its_options(name: str, tmp_path: Path) -> None:
    """Options are attributes of the same name: a saved student says what it was trained with."""
    cls = REGISTRY[name]
    assert {option: getattr(cls(), option) for option in cls.options()} == cls.options()


def refuses_missing_outputs(name: str, tmp_path: Path) -> None:
    graph, needs = blocks(), REGISTRY[name].needs
    if not needs:
        return
    with pytest.raises(G2MError, match=rf"{name!r} learns from a teacher.*teacher\.outputs"):
        student(name).fit(graph)
    for field in needs - {"node_id", "logits"}:
        gone = {"codebook", "code_input"} if field in {"codebook", "code_input"} else {field}
        with pytest.raises(G2MError, match=f"needs .*{field}"):
            student(name).fit(graph, replace(outputs_of(graph), **dict.fromkeys(gone)))


def reads_what_it_declares(name: str, tmp_path: Path) -> None:
    """Whose fields are the same is trained the same: a search takes one student for another by that."""
    graph, cls = blocks(), REGISTRY[name]
    if not cls.needs:
        return
    outputs, declared = outputs_of(graph), cls.needs | cls.wants
    others = {"hidden", "low_target", "entropy_change", "codebook", "code_input", "transforms"} - declared
    few = replace(outputs, **dict.fromkeys(others))
    whole, less = (student(name, dropout=0.3).fit(graph, each) for each in (outputs, few))
    assert same_bits(weights(whole), weights(less))
    assert whole.meta_["outputs"] == less.meta_["outputs"] == few.fingerprint(declared)


def drawn_options(name: str, seed: int = 0) -> dict[str, Any]:
    """Options from the method's default search space."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return REGISTRY[name].space(optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed)).ask())


def searches_within_its_options(name: str, tmp_path: Path) -> None:
    """Whatever the default search space draws is taken by the constructor."""
    cls = REGISTRY[name]
    for seed in range(30):
        drawn = drawn_options(name, seed)
        assert drawn.keys() <= cls.options().keys()
        cls(**drawn)


def saves_and_loads(name: str, tmp_path: Path) -> None:
    """A loaded student gives the same bits from features alone, each row by itself."""
    graph = blocks()
    student = fitted(name, graph, norm="batch", dropout=0.3)
    loaded = Student.load(student.save(tmp_path / "student.safetensors"))
    assert same_bits(weights(student), weights(loaded))
    assert torch.equal(student.predict_logits(graph.x), loaded.predict_logits(graph.x))
    torch.testing.assert_close(loaded.predict_logits(graph.x[7:8]), student.predict_logits(graph.x)[7:8])
    assert loaded.params() == student.params() | {"device": "auto"}
    for call in (Student.predict, Student.predict_proba, Student.predict_logits):
        assert [p.name for p in inspect.signature(call).parameters.values() if p.default is p.empty] == ["self", "x"]


def leaves_its_parameters_behind(name: str, tmp_path: Path) -> None:
    student = fitted(name, blocks())
    plain = MLP(10, 8, 3).state_dict().keys()
    tensors, _ = storage.read(student.save(tmp_path / "student.safetensors"), "student")
    known = {"position.node_id", "position.value"} if student.position_ is not None else set()
    assert tensors.keys() == plain | known
    assert student.model_.state_dict().keys() == plain


def leaves_the_teacher_as_it_was(name: str, tmp_path: Path) -> None:
    graph = blocks()
    outputs, fresh = outputs_of(graph), outputs_of(graph)
    student(name).fit(graph, outputs)
    for field in ("node_id", "logits", "hidden", "low_target", "entropy_change", "codebook", "code_input"):
        assert torch.equal(getattr(outputs, field), getattr(fresh, field))
        assert not getattr(outputs, field).requires_grad
    assert all(map(torch.equal, outputs.transforms, fresh.transforms))


def runs_the_reference_schedule(name: str, tmp_path: Path) -> None:
    _, _, batches = steps(name, blocks(), reference_schedule=True, batch_size=4)
    assert {batch.only for batch in batches} == ({"label", "teacher"} if REGISTRY[name].needs else {None})
    student = fitted(name, blocks(), reference_schedule=True, batch_size=4)
    assert all(math.isfinite(value) for record in student.history_.epochs for value in record.values())


CONTRACT: list[Callable[[str, Path], None]] = [
    trains_transductively,
    trains_inductively,
    gives_finite_scalars_that_reach_the_student,
    calls_the_part_on_labels_label,
    estimates_the_label_loss_without_bias,
    is_reproducible,
    ignores_node_order,
    survives_one_row,
    survives_no_labelled_node,
    survives_one_class,
    survives_no_edges,
    takes_or_refuses_a_single_layer,
    refuses_unknown_options,
    refuses_options_out_of_range,
    keeps_its_options,
    refuses_missing_outputs,
    reads_what_it_declares,
    searches_within_its_options,
    saves_and_loads,
    leaves_its_parameters_behind,
    leaves_the_teacher_as_it_was,
    runs_the_reference_schedule,
]
