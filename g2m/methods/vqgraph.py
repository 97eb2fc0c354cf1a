"""VQGraph: the student also learns which codes its teacher's tokenizer gives a node."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from g2m.batches import Batch
from g2m.codebook import usage
from g2m.errors import G2MError, check_range
from g2m.graph import Graph
from g2m.losses import code_assignment_loss
from g2m.methods.base import hidden_width
from g2m.methods.glnn import GLNN
from g2m.models import MLP, Output
from g2m.outputs import TeacherOutputs

if TYPE_CHECKING:
    import optuna


class VQGraph(GLNN):
    """Soft labels and soft code assignments (Yang et al., "VQGraph: Rethinking Graph Representation Space for Bridging
    GNNs and MLPs", ICLR 2024), from a teacher with a tokenizer.

    L = λ · mean CE(y, q) + (1 − λ) · mean KL(p ‖ q) + w · mean KL(r ‖ r'): r is the teacher's assignment of a node over
    the K codes, softmax of similarities over a temperature; r' that of a linear map of the student's hidden state,
    trained with it and dropped with the method.

    The released code has w = 1e-8 and assignments at temperature 4, which tell next to nothing; KL is not scaled by the
    temperature squared, there or here.

    Args:
        lam: λ, weight of the true labels in [0, 1]; default 0, as released: labels come through the teacher.
        tau: temperature of the soft labels, above 0; default 1.
        code_weight: w, from 0; default 1.
        code_tau: temperature of the assignments, above 0; default 0.05. It tells something while an assignment spreads
            over a small part of the codes: that number is in ``meta_["figures"]``, and a warning if it is nearly all.
    """

    name = "vqgraph"
    paper = "Yang et al., ICLR 2024"
    needs = frozenset({"logits", "codebook", "code_input"})
    teacher_options = {"tokenizer": "beside"}  # noqa: RUF012 (never written to)

    codebook: Tensor

    def __init__(self, *, lam: float = 0.0, tau: float = 1.0, code_weight: float = 1.0, code_tau: float = 0.05) -> None:
        super().__init__(lam=lam, tau=tau)
        self.code_weight = check_range("code_weight", code_weight, 0)
        self.code_tau = check_range("code_tau", code_tau, 0, open_low=True)

    def build(self, model: MLP, outputs: TeacherOutputs | None) -> None:
        self.projection = nn.Linear(hidden_width(model, self.name), outputs.codebook.size(-1))
        self.register_buffer("codebook", outputs.code_levels, persistent=False)
        self.metric = outputs.code_metric

    def prepare(self, graph: Graph, outputs: TeacherOutputs) -> Mapping[str, Tensor]:
        num_codes, codes = self.codebook.size(1), outputs.codes()
        if (codes == codes[0]).all():
            raise G2MError(
                f"outputs: all nodes have the same of {num_codes} codes, there is nothing in them to learn. Train the "
                "teacher with a lower lr, or take tokenizer='beside'."
            )
        if (used := usage(codes, num_codes)) < 0.5:
            warnings.warn(
                f"outputs: only {used:.0%} of {num_codes} codes are in use. Train the teacher with a lower lr, or with "
                "fewer num_codes: an eighth of the nodes is about the most.",
                stacklevel=2,
            )
        spread = outputs.code_perplexity(self.code_tau)
        self.figures = {"code_perplexity": spread}
        if spread > 0.9 * num_codes:
            warnings.warn(
                f"code_tau: at {self.code_tau} an assignment spreads over {spread:.1f} of {num_codes} codes and says "
                "next to nothing. Lower it.",
                stacklevel=2,
            )
        targets = {**super().prepare(graph, outputs), "code_input": outputs.code_input}
        if len(self.codebook) > 1:
            targets["codes"] = codes
        return targets

    def loss(self, output: Output, batch: Batch) -> Mapping[str, Tensor]:
        code = code_assignment_loss(
            self.projection(output.hidden),
            batch.targets["code_input"],
            self.codebook,
            self.code_tau,
            self.metric,
            batch.targets.get("codes"),
        )
        return {**super().loss(output, batch), "code": self.code_weight * code}

    @classmethod
    def space(cls, trial: optuna.Trial) -> dict[str, Any]:
        return {
            "lam": trial.suggest_float("lam", 0.0, 0.5),
            "code_weight": trial.suggest_float("code_weight", 0.01, 10.0, log=True),
            "code_tau": trial.suggest_float("code_tau", 0.02, 0.3, log=True),
        }
