"""What a training takes is said beforehand, and refused where there is not so much."""

import re
from contextlib import nullcontext

import pytest
import torch
from cases import blocks
from torch import nn

from g2m import memory
from g2m.data import load
from g2m.errors import G2MError
from g2m.estimators import Teacher
from g2m.memory import available_memory, check_memory, teacher_memory

CPU = torch.device("cpu")


def total(graph, **options) -> int:
    return sum(teacher_memory(Teacher("sage", **options), graph).values())


def test_the_graph_counts_as_it_lies_in_memory():
    graph = load("sbm-arxiv", num_nodes=4000)
    tensors = (graph.x, graph.edge_index, graph.y)
    assert teacher_memory(Teacher(), graph)["graph"] == sum(t.numel() * t.element_size() for t in tensors)


def test_more_parts_take_less_and_wider_networks_more():
    graph = load("sbm-arxiv", num_nodes=4000)
    by_parts = [total(graph, partitions=parts, hidden_channels=1024) for parts in (1, 2, 4)]
    assert by_parts == sorted(by_parts, reverse=True)
    assert len(set(by_parts)) == 3
    assert total(graph, hidden_channels=64) < total(graph, hidden_channels=256)
    assert total(graph, hidden_channels=2048, fan_out=[2, 2], batch_size=8) < total(graph, hidden_channels=2048)


def test_activations_computed_again_or_narrower_take_less():
    graph, wide = load("sbm-arxiv", num_nodes=4000), {"hidden_channels": 1024, "device": "cpu"}
    saved = [
        total(graph, num_layers=layers, **wide) - total(graph, num_layers=layers, checkpoint_activations=True, **wide)
        for layers in (2, 3, 6)
    ]
    assert saved == [0, 4000 * 1024 * 4, 4 * 4000 * 1024 * 4], "an array a hidden layer, but for the one in hand"
    deep = wide | {"num_layers": 6}
    assert total(graph, precision="bfloat16", **deep) < total(graph, **deep)
    both = total(graph, precision="bfloat16", checkpoint_activations=True, **deep)
    assert both < total(graph, checkpoint_activations=True, **deep)
    assert both < total(graph, precision="bfloat16", **deep)
    assert total(graph, num_layers=1, checkpoint_activations=True) == total(graph, num_layers=1)


def test_attention_takes_memory_by_arc_and_head():
    graph = load("sbm-arxiv", num_nodes=4000)

    def needed(model="gat", **options) -> int:
        return sum(teacher_memory(Teacher(model, num_layers=3, **options), graph).values())

    assert needed("sage") < needed(heads=1) < needed(heads=4) < needed(heads=8) == needed()
    assert needed(partitions=4) < needed()
    assert needed(checkpoint_activations=True) < needed()
    arcs = graph.num_edges + graph.num_nodes
    assert needed(heads=8) - needed(heads=4) == arcs * 4 * (30 * 2 + 24), "30 bytes kept a layer, 24 in hand"


def test_what_cannot_fit_is_refused_with_what_would(monkeypatch):
    graph = load("sbm-arxiv", num_nodes=4000)
    free = (total(graph, hidden_channels=1024) + total(graph, hidden_channels=1024, partitions=4)) // 2
    monkeypatch.setattr(memory, "available_memory", lambda device: free)
    teacher = Teacher("sage", hidden_channels=1024, max_epochs=1, device="cpu")
    with pytest.raises(
        G2MError, match=r"graph: training on 'sbm-arxiv' takes about .* GB .*partitions=\d+ would fit"
    ) as stop:
        teacher.fit(graph)
    assert teacher.partitions == 1, "it is as it was"
    parts = int(re.search(r"partitions=(\d+)", str(stop.value))[1])
    check_memory(Teacher("sage", hidden_channels=1024, partitions=parts), graph, CPU)


def test_of_a_module_of_ones_own_the_graph_is_all_that_is_counted(monkeypatch):
    graph = blocks()
    found = teacher_memory(Teacher(nn.Linear(4, 3)), graph)
    assert found == {"graph": memory._held(graph), "an answer for all nodes": 4 * graph.num_nodes * graph.num_classes}
    monkeypatch.setattr(memory, "available_memory", lambda device: sum(found.values()))
    check_memory(Teacher(nn.Linear(4, 3)), graph, CPU)


def test_what_nothing_helps_is_refused_plainly(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda device: 1000)
    with pytest.raises(G2MError, match="Take a machine with more"):
        check_memory(Teacher(), blocks(), CPU)


def test_where_nothing_tells_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda device: None)
    check_memory(Teacher(hidden_channels=10**9), blocks(), CPU)


def test_the_graph_that_is_there_is_not_asked_for_again(monkeypatch):
    for graph in (load("sbm-arxiv", num_nodes=4000), load("sbm-arxiv", num_nodes=4000, setting="inductive")):
        there = sum(t.nbytes for t in (graph.x, graph.edge_index, graph.y))
        needed = total(graph, device="cpu") - there
        monkeypatch.setattr(memory, "available_memory", lambda device, free=needed: free)
        check_memory(Teacher("sage", device="cpu"), graph, CPU)
        monkeypatch.setattr(memory, "available_memory", lambda device, free=needed - 1: free)
        with pytest.raises(G2MError, match="takes about"):
            check_memory(Teacher("sage", device="cpu"), graph, CPU)
        monkeypatch.setattr(memory, "available_memory", lambda device, free=needed - there: free)
        graph.observed()  # a copy, where it is inductive
        with pytest.raises(G2MError, match="takes about") if graph.setting == "transductive" else nullcontext():
            check_memory(Teacher("sage", device="cpu"), graph, CPU)


def test_a_gpu_gets_features_adjacencies_and_what_is_computed(monkeypatch):
    graph = load("sbm-arxiv", num_nodes=4000)
    teacher = Teacher("sage", hidden_channels=1024, device="cpu")
    parts = teacher_memory(teacher, graph)
    assert "a step of training" in parts
    needed = sum(parts.values()) - parts["graph"] + 2 * graph.x.nbytes
    for free, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(memory, "available_memory", lambda device, free=free: free)
        with nullcontext() if fits else pytest.raises(G2MError, match="takes about"):
            check_memory(teacher, graph, torch.device("cuda"))


def test_what_torch_has_of_a_gpu_and_does_not_use_is_free(monkeypatch):
    known = {"mem_get_info": (10, 80), "memory_reserved": 50, "memory_allocated": 20}
    for name, value in known.items():
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    assert available_memory(torch.device("cuda")) == 10 + 50 - 20


def group(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_limits_of_control_groups_leave_what_is_not_used_and_files_pages(tmp_path):
    stat = "anon 5\ninactive_file 300\nactive_file 70"
    group(tmp_path / "a/b", memory__max="max", memory__current=990, memory__stat=stat)
    group(tmp_path / "a", memory__max=1000, memory__current=999, memory__stat=stat)
    group(tmp_path, memory__max=5000, memory__current=1000, memory__stat="inactive_file 0")
    assert [*memory._left_by_groups("1:cpu:/a\n0::/a/b\n", tmp_path)] == [301, 4000]
    assert [*memory._left_by_groups("0::/of/another/view\n", tmp_path)] == [4000]
    assert [*memory._left_by_groups("", tmp_path)] == []


def test_limits_of_control_groups_of_version_1(tmp_path):
    for folder, limit, stat in (("", 2**63 - 4096, ""), ("job", 1000, "inactive_file 1\ntotal_inactive_file 300")):
        files = {"memory__limit_in_bytes": limit, "memory__usage_in_bytes": 999, "memory__stat": stat}
        group(tmp_path / "memory" / folder, **files)
    assert [*memory._left_by_groups("4:memory:/job\n1:cpu,cpuacct:/\n0::/\n", tmp_path)] == [301, 2**63 - 4096 - 999]


def test_free_memory_is_some_of_what_there_is():
    free = available_memory(CPU)
    assert free is None or 2**20 < free < 2**50


def test_what_a_training_takes_is_logged_before_it_and_not_where_it_is_known(caplog, tmp_path):
    graph, teacher = blocks(), Teacher("sage", max_epochs=1, device="cpu")
    caplog.set_level("INFO", logger="g2m.memory")
    teacher.fit(graph, cache=tmp_path)
    needed = sum(teacher_memory(teacher, graph).values())
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == [
        f"teacher: about {needed / 1e6:.1f} MB"
    ]
    teacher.fit(graph, cache=tmp_path)
    assert len(caplog.records) == 1
