"""The methods, each in one file. Importing a file registers its method."""

from g2m.methods import ff_g2m, glnn, hidden, mlp, vqgraph
from g2m.methods.base import REGISTRY, Method, hidden_width, label_loss, make_method

__all__ = [
    "REGISTRY",
    "Method",
    "ff_g2m",
    "glnn",
    "hidden",
    "hidden_width",
    "label_loss",
    "make_method",
    "mlp",
    "vqgraph",
]
