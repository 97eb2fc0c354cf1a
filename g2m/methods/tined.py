"""TINED-like: the student starts from its teacher's weights, with a layer in the place of each propagation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from g2m.errors import G2MError
from g2m.methods.glnn import GLNN
from g2m.models import MLP
from g2m.outputs import TeacherOutputs

if TYPE_CHECKING:
    import optuna


class TINED(GLNN):
    """Soft labels, from where the teacher's weights are (after Zhou et al., "TINED: GNNs-to-MLPs by Teacher Injection
    and Dirichlet Energy Distillation", ICML 2025).

    L = λ · mean CE(y, q) + (1 − λ) · mean KL(p ‖ q), which is that of :class:`~g2m.methods.glnn.GLNN`.

    A GNN's layer is a linear map and a propagation. The student's layers are the maps, copied, and between them a layer
    each for the propagation, which begins as the identity: as an MLP it begins where the teacher is without its
    graph, its biases and its norms. The paper's matching of Dirichlet energies by layer is left out.

    A teacher of L layers takes a student of 2·L − 1; one of L has no layers for propagations. Of another width, the
    block of a weight that both have is copied.

    Args:
        lam: λ, weight of the true labels in [0, 1]; default 0.
        tau: temperature of the soft labels, above 0; default 1.
    """

    name = "tined"
    paper = "after Zhou et al., ICML 2025"
    needs = frozenset({"logits", "transforms"})

    @torch.no_grad()
    def build(self, model: MLP, outputs: TeacherOutputs | None) -> None:
        maps, layers = outputs.transforms, list(model.layers)
        if len(layers) not in (len(maps), 2 * len(maps) - 1):
            raise G2MError(
                f"num_layers: method 'tined' follows a teacher of {len(maps)}, expected {2 * len(maps) - 1}, or "
                f"{len(maps)} with no layers for propagations (got {len(layers)})."
            )
        step = 1 if len(layers) == len(maps) else 2
        for layer, weight in zip(layers[::step], maps, strict=True):
            rows, columns = (min(sizes) for sizes in zip(layer.weight.shape, weight.shape, strict=True))
            layer.weight[:rows, :columns] = weight[:rows, :columns]
            nn.init.zeros_(layer.bias)
        for layer in layers[1::2] if step == 2 else ():
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)

    @classmethod
    def space(cls, trial: optuna.Trial) -> dict[str, Any]:
        return {"lam": trial.suggest_float("lam", 0.0, 0.5), "tau": trial.suggest_float("tau", 0.5, 2.0)}
