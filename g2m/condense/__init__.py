"""Graph data sets, condensed: the computation trees that message passing sees, each once."""

from g2m.condense.trees import (
    ClassDAG,
    Forest,
    Inspection,
    Level,
    Repetition,
    RowKeys,
    TreeClasses,
    TreeKeys,
    graph_sets,
    inspect,
    tree_classes,
)

__all__ = [
    "ClassDAG",
    "Forest",
    "Inspection",
    "Level",
    "Repetition",
    "RowKeys",
    "TreeClasses",
    "TreeKeys",
    "graph_sets",
    "inspect",
    "tree_classes",
]
