"""g2m: the knowledge of a graph neural network in a model that needs no graph."""

from importlib.metadata import version

from g2m.errors import G2MError
from g2m.graph import Graph

__version__ = version("g2m")
__all__ = ["G2MError", "Graph", "__version__"]
