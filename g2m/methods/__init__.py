"""The methods, each in one file. Importing a file registers its method."""

from g2m.methods import auto, ff_g2m, glnn, hidden, krd, mlp, nosmog, onehop, propagated, simmlp, tined, vqgraph
from g2m.methods.base import REGISTRY, Method, hidden_width, label_loss, make_method

__all__ = [
    "REGISTRY",
    "Method",
    "auto",
    "ff_g2m",
    "glnn",
    "hidden",
    "hidden_width",
    "krd",
    "label_loss",
    "make_method",
    "mlp",
    "nosmog",
    "onehop",
    "propagated",
    "simmlp",
    "tined",
    "vqgraph",
]
