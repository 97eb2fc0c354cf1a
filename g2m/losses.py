"""Losses as pure functions. Teachers are constants: gradients flow to the student alone."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def soft_label_loss(student_logits: Tensor, teacher_log_probs: Tensor, tau: float = 1.0) -> Tensor:
    """Mean over nodes of KL(teacher ‖ student), the common distillation term (Hinton et al., 2015); no τ² factor.

    Args:
        student_logits: ``[B, C]``.
        teacher_log_probs: ``[B, C]``, log-probabilities at the same temperature (log-target form).
        tau: temperature of the student, above 0; default 1.
    """
    return F.kl_div(F.log_softmax(student_logits / tau, -1), teacher_log_probs, reduction="batchmean", log_target=True)
