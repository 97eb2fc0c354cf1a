"""Graph data sets, condensed: the computation trees that message passing sees, each once."""

from g2m.condense.baselines import doscond, herding, kcenter, random_graphs
from g2m.condense.condensed import CondensedSet, Trees
from g2m.condense.methods import METHODS, budget_bytes, condense, everything, lossless
from g2m.condense.mining import (
    Cover,
    Itemsets,
    cover,
    mine,
    top_k,
    within_budget,
)
from g2m.condense.mirage import TreeTable, mirage
from g2m.condense.program import Hop, Program
from g2m.condense.scored import CountModel, scored
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
    "METHODS",
    "ClassDAG",
    "CondensedSet",
    "CountModel",
    "Cover",
    "Forest",
    "Hop",
    "Inspection",
    "Itemsets",
    "Level",
    "Program",
    "Repetition",
    "RowKeys",
    "TreeClasses",
    "TreeKeys",
    "TreeTable",
    "Trees",
    "budget_bytes",
    "condense",
    "cover",
    "doscond",
    "everything",
    "graph_sets",
    "herding",
    "inspect",
    "kcenter",
    "lossless",
    "mine",
    "mirage",
    "random_graphs",
    "scored",
    "top_k",
    "tree_classes",
    "within_budget",
]
