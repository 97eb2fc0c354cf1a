"""A plain MLP on the labels: what a student is without a teacher."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from g2m.batches import Batch
from g2m.methods.base import Method, label_loss
from g2m.models import Output


class PlainMLP(Method):
    """Cross-entropy on the training nodes; no teacher."""

    name = "mlp"
    nodes = "train"

    def loss(self, output: Output, batch: Batch) -> Mapping[str, Tensor]:
        return {"label": label_loss(output, batch)}
