"""Graph data sets, condensed: the computation trees that message passing sees, each once."""

from g2m.condense.mining import (
    CountItems,
    Cover,
    Itemsets,
    count_items,
    cover,
    coverage,
    mine,
    top_k,
    within_budget,
)
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
    "CountItems",
    "Cover",
    "Forest",
    "Inspection",
    "Itemsets",
    "Level",
    "Repetition",
    "RowKeys",
    "TreeClasses",
    "TreeKeys",
    "count_items",
    "cover",
    "coverage",
    "graph_sets",
    "inspect",
    "mine",
    "top_k",
    "tree_classes",
    "within_budget",
]
