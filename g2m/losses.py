"""Losses as pure functions. Teachers are constants: gradients flow to the student alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def soft_label_loss(student_logits: Tensor, teacher_log_probs: Tensor, tau: float = 1.0) -> Tensor:
    """Mean over nodes of KL(teacher ‖ student), the common distillation term (Hinton et al., 2015); no τ² factor.

    Args:
        student_logits: ``[B, C]``.
        teacher_log_probs: ``[B, C]``, log-probabilities at the same temperature (log-target form).
        tau: temperature of the student, above 0; default 1.
    """
    return F.kl_div(F.log_softmax(student_logits / tau, -1), teacher_log_probs, reduction="batchmean", log_target=True)


def centred(logits: Tensor) -> Tensor:
    """Return logits ``[N, C]`` less their mean over classes: free of the constant that softmax does not see."""
    return logits - logits.mean(-1, keepdim=True)


def low_frequency_loss(student_logits: Tensor, low_target: Tensor, low_offset: Tensor, tau: float = 1.0) -> Tensor:
    """FF-G2M's low-frequency loss from node rows alone (Wu et al., AAAI 2023): no edge is looked at.

    Σ_j KL(p_j ‖ q_i) over a node and its neighbours is Σ_j⟨p_j, log p_j⟩ − ⟨Σ_j p_j, log q_i⟩: with the teacher's
    probabilities summed over neighbourhoods beforehand, the mean over all arcs and nodes is a mean over nodes. Exact,
    gradient included, at O(N·C) where the edge form takes O(E·C).

    Args:
        student_logits: ``[B, C]``.
        low_target: Σ_j p_j by node ``[B, C]``, times N / (E + N).
        low_offset: Σ_j⟨p_j, log p_j⟩ by node ``[B]``, times N / (E + N).
        tau: temperature of the student, above 0; default 1.
    """
    log_q = F.log_softmax(student_logits / tau, -1)
    return (low_offset.sum() - (low_target * log_q).sum()) / len(student_logits)


def high_frequency_loss(
    student_logits: Tensor, teacher_logits: Tensor, edge_index: Tensor, tau: float = 1.0, *, chunk: int = 2**15
) -> Tensor:
    """FF-G2M's high-frequency loss (Wu et al., AAAI 2023): mean over edges of KL(u_ij ‖ v_ij).

    u_ij = softmax(abs(t_i − t_j) / τ) of the teacher's logits, v_ij of the student's: how a node differs from its
    neighbour. (i, j) and (j, i) give the same: of an undirected graph, one arc an edge is enough.

    The gradient is made in the same pass, by ``chunk`` edges: memory beside the arguments is one ``[N, C]`` gradient
    and five ``[chunk, C]`` buffers, whatever E is. On GPU sums over edges come in no fixed order.

    Args:
        student_logits: ``[N, C]``.
        teacher_logits: ``[N, C]``.
        edge_index: rows of the two, ``[2, E]``; the mean of none is 0.
        tau: temperature on both sides, above 0; default 1.
        chunk: edges at a time, default 32 768.
    """
    return _HighFrequency.apply(student_logits, teacher_logits.detach(), edge_index, tau, chunk)


class _HighFrequency(Function):
    @staticmethod
    def forward(ctx, student: Tensor, teacher: Tensor, edge_index: Tensor, tau: float, chunk: int) -> Tensor:
        s, t = student.detach() / tau, teacher / tau
        num_edges = edge_index.size(1)
        grad = torch.zeros_like(s)
        total = torch.zeros((), dtype=torch.float64, device=s.device)
        size = (min(chunk, num_edges), s.size(1))
        d, p, q, log_p, log_q = (s.new_empty(size) for _ in range(5))  # reused: fresh memory costs more than the sums
        for i, j in zip(edge_index[0].split(chunk), edge_index[1].split(chunk), strict=True):
            if len(i) < len(d):
                d, p, q, log_p, log_q = (buffer[: len(i)] for buffer in (d, p, q, log_p, log_q))
            torch.index_select(t, 0, i, out=p)
            torch.index_select(t, 0, j, out=q)
            torch.log_softmax(p.sub_(q).abs_(), 1, out=log_p)
            torch.index_select(s, 0, i, out=d)
            torch.index_select(s, 0, j, out=q)
            torch.abs(d.sub_(q), out=q)
            torch.log_softmax(q, 1, out=log_q)
            torch.exp(log_p, out=p)
            torch.exp(log_q, out=q)
            total += torch.dot(p.flatten(), log_p.sub_(log_q).flatten())
            d.sign_().mul_(q.sub_(p))  # the gradient by s_i; by s_j, its opposite
            grad.index_add_(0, i, d).index_add_(0, j, d.neg_())  # alpha=-1 would take a path eight times slower
        ctx.save_for_backward(grad.div_(max(num_edges, 1) * tau))
        return (total / max(num_edges, 1)).to(s.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None, None, None, None
