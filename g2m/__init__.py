"""g2m: the knowledge of a graph neural network in a model that needs no graph."""

from importlib.metadata import version

__version__ = version("g2m")

from g2m.data import load
from g2m.errors import G2MError
from g2m.estimators import Student, Teacher
from g2m.export import Exported
from g2m.graph import Graph
from g2m.graph_classifier import GraphClassifier
from g2m.graphs import Graphs
from g2m.methods import Method
from g2m.models import GNN, MLP
from g2m.outputs import TeacherOutputs
from g2m.stacked import fit_stacked

__all__ = [
    "GNN",
    "MLP",
    "Exported",
    "G2MError",
    "Graph",
    "GraphClassifier",
    "Graphs",
    "Method",
    "Student",
    "Teacher",
    "TeacherOutputs",
    "__version__",
    "fit_stacked",
    "load",
]
