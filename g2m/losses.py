"""Losses as pure functions. Teachers are constants: gradients flow to the student alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from g2m.codebook import SCORES, log_assignments
from g2m.sparse import CSR


def soft_label_loss(student_logits: Tensor, teacher_log_probs: Tensor, tau: float = 1.0) -> Tensor:
    """Mean over nodes of KL(teacher ‖ student), the common distillation term (Hinton et al., 2015); no τ² factor.

    Args:
        student_logits: ``[B, C]``.
        teacher_log_probs: ``[B, C]``, log-probabilities at the same temperature (log-target form).
        tau: temperature of the student, above 0; default 1.
    """
    log_q = F.log_softmax(student_logits / tau, -1)
    return F.kl_div(log_q, teacher_log_probs.detach(), reduction="batchmean", log_target=True)


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
    return (low_offset.detach().sum() - (low_target.detach() * log_q).sum()) / len(student_logits)


def high_frequency_loss(
    student_logits: Tensor, teacher_logits: Tensor, edge_index: Tensor, tau: float = 1.0, *, chunk: int = 2**15
) -> Tensor:
    """FF-G2M's high-frequency loss (Wu et al., AAAI 2023): mean over edges of KL(u_ij ‖ v_ij).

    u_ij = softmax(abs(t_i − t_j) / τ) of the teacher's logits, v_ij of the student's: how a node differs from its
    neighbour. (i, j) and (j, i) give the same: of an undirected graph, one arc an edge is enough.

    The gradient is made in the same pass, by ``chunk`` edges: memory beside the arguments is one ``[N, C]`` gradient
    and five ``[chunk, C]`` buffers, whatever E is; backward takes one more ``[N, C]``, what it returns. On GPU sums
    over edges come in no fixed order.

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
        s, t = student.detach(), teacher  # differences are scaled, not these: it would take two more [N, C]
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
            torch.log_softmax(p.sub_(q).abs_().mul_(1 / tau), 1, out=log_p)
            torch.index_select(s, 0, i, out=d)
            torch.index_select(s, 0, j, out=q)
            torch.abs(d.sub_(q), out=q)
            torch.log_softmax(q.mul_(1 / tau), 1, out=log_q)
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


def similarity_loss(student: Tensor, teacher: Tensor, *, normalise: bool = True) -> Tensor:
    """NOSMOG's representational similarity loss (Tian et al., ICLR 2023): mean over pairs of nodes of the squared
    difference between the two sides' Gram matrices.

    ‖SSᵀ − TTᵀ‖² = ‖SᵀS‖² + ‖TᵀT‖² − 2‖SᵀT‖²: exact, O(B·D²) time, and no B × B matrix.

    Args:
        student: ``[B, D]``.
        teacher: ``[B, H]``.
        normalise: of rows of unit length, that is of cosines, over pairs of different nodes (default); else of rows as
            they are, over all pairs, as published.
    """
    pairs = len(student) ** 2
    teacher = teacher.detach()
    if normalise:
        student, teacher = F.normalize(student), F.normalize(teacher)
        pairs = max(pairs - len(student), 1)  # a node is as similar to itself on both sides
    own = (student.T @ student).square().sum() + (teacher.T @ teacher).square().sum()
    return (own - 2 * (student.T @ teacher).square().sum()) / pairs


# -- codes and reconstruction ----------------------------------------------------------------------------------------


def code_assignment_loss(
    student: Tensor,
    teacher: Tensor,
    codebook: Tensor,
    tau: float,
    metric: str = "cosine",
    path: Tensor | None = None,
    *,
    chunk: int = SCORES,
) -> Tensor:
    """VQGraph's token loss (Yang et al., ICLR 2024): mean over nodes, and levels, of KL(teacher ‖ student) over codes.

    Both sides are softmax of the same similarity to the same codes, at one temperature; no τ² factor. Zero if and only
    if the assignments agree.

    Args:
        student: vectors in code space ``[B, D]``.
        teacher: vectors in code space ``[B, D]``.
        codebook: ``[L, K, D]``.
        tau: temperature, above 0.
        metric: of the codebook.
        path: the teacher's codes ``[B, L]``, which both sides follow; needed if L is above 1.
        chunk: scores held at once, default 2²⁴; beyond that, rows go in parts that are computed again in backward.
    """
    rows, codebook = max(1, chunk // codebook.shape[:2].numel()), codebook.detach()
    if path is None:
        path = teacher.new_zeros(len(teacher), 0, dtype=torch.long)

    def part(student: Tensor, teacher: Tensor, path: Tensor) -> Tensor:
        log_q, log_p = (log_assignments(x, codebook, tau, metric, path) for x in (student, teacher))
        return F.kl_div(log_q, log_p, reduction="sum", log_target=True)

    if len(student) <= rows:
        total = part(student, teacher.detach(), path)
    else:
        parts = zip(student.split(rows), teacher.detach().split(rows), path.split(rows), strict=True)
        total = sum(checkpoint(part, *each, use_reentrant=False) for each in parts)
    return total / (len(student) * len(codebook))


def scaled_cosine_error(x: Tensor | CSR, code: Tensor, weight: Tensor, bias: Tensor, gamma: float = 2.0) -> Tensor:
    """Mean over nodes of (1 − cos(x, v))^γ (Hou et al., GraphMAE, KDD 2022), v = weight · code + bias: no v is made.

    ⟨x, v⟩ = ⟨xW, code⟩ + ⟨x, b⟩ and ‖v‖² = ⟨code, WᵀW code⟩ + 2⟨Wᵀb, code⟩ + ‖b‖²: O(nnz(x)·D + (N + F)·D²) where
    the ``[N, F]`` reconstruction takes O(N·F·D). A row of zeros has cosine 0.

    Args:
        x: features ``[N, F]``, dense or sparse; constant.
        code: what is decoded ``[N, D]``.
        weight: of the linear decoder ``[F, D]``.
        bias: of the linear decoder ``[F]``.
        gamma: from 1; default 2.
    """
    product = x @ torch.cat([weight, bias[:, None]], 1)
    dot = (product[:, :-1] * code).sum(1) + product[:, -1]
    square = ((code @ (weight.T @ weight)) * code).sum(1) + 2 * code @ (weight.T @ bias) + bias.square().sum()
    if isinstance(x, CSR):
        norm = torch.zeros_like(dot).index_add_(0, x.row_of_entry(), x.value.to(dot.dtype).square()).sqrt()
    else:
        norm = x.norm(dim=1)
    tiny = torch.finfo(dot.dtype).eps
    return (1 - dot / (norm * square.clamp_min(tiny).sqrt()).clamp_min(tiny)).clamp_min(0).pow(gamma).mean()


def min_max_edge_loss(
    decoded: Tensor, adjacency: CSR, distinct: Tensor | None = None, *, chunk: int = SCORES
) -> Tensor:
    """VQGraph's adjacency reconstruction (Yang et al., ICLR 2024) in linear memory: mean over all N² pairs of
    (A_ij − Ĝ_ij)², Ĝ the Gram matrix of the decoded nodes scaled to [0, 1] by its least and greatest entry.

    With Ĝ = aG + b the sum over pairs is nnz + a²‖UᵀU‖² + b²N² − 2aΣ_A⟨u_i, u_j⟩ − 2b·nnz + 2ab‖Σu‖². Value and
    gradient are exact, the two extremes held constant; O(N·D² + nnz·D) time, O(N·D) memory. Where all entries are
    equal, Ĝ is 0.

    Args:
        decoded: U ``[N, D]``.
        adjacency: A, symmetric, entries 1, with every loop; ``[N, N]``.
        distinct: the distinct rows of U ``[M, D]``, where they are known to be few: the least entry is looked for among
            their pairs. Default: U.
        chunk: entries of that Gram matrix held at once, default 2²⁴.
    """
    rows = (decoded if distinct is None else distinct).detach()
    low = min(float((part @ rows.T).min()) for part in rows.split(max(1, chunk // len(rows))))
    high = float(rows.square().sum(1).max())  # the greatest entry of a Gram matrix is on its diagonal
    return _MinMaxEdges.apply(decoded, adjacency, low, high)


class _MinMaxEdges(Function):
    @staticmethod
    def forward(ctx, u: Tensor, adjacency: CSR, low: float, high: float) -> Tensor:
        n, nnz = len(u), adjacency.nnz
        rounding = u.size(1) * torch.finfo(u.dtype).eps * abs(high)
        a = 1 / (high - low) if high - low > rounding else 0.0
        b = -low * a
        gram, total, linked = u.new_zeros(u.size(1), u.size(1), dtype=torch.float64), 0, 0
        of_neighbours = adjacency.multiply(u)
        for part, other in zip(u.split(2**14), of_neighbours.split(2**14), strict=True):
            part = part.double()  # large terms cancel
            gram += part.T @ part
            total = total + part.sum(0)
            linked = linked + (part * other).sum()
        pairs = a * a * gram.square().sum() + b * b * n * n - 2 * a * linked - 2 * b * nnz + 2 * a * b * (total @ total)
        grad = (u @ (a * gram).to(u.dtype)).sub_(of_neighbours).add_((b * total).to(u.dtype)).mul_(4 * a / n**2)
        ctx.save_for_backward(grad)
        return ((nnz + pairs) / n**2).to(u.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * grad, None, None, None


def sampled_edge_loss(decoded: Tensor, edge_key: Tensor, *, num_samples: int = 2**18, balanced: bool = False) -> Tensor:
    """Adjacency reconstruction by σ(⟨u_i, u_j⟩) from sampled pairs: binary cross-entropy, mean over all N² of them.

    Linked pairs and others are drawn apart and weighted by their shares, which estimates the mean over the dense matrix
    without bias; or by a half each.

    Args:
        decoded: U ``[N, D]``.
        edge_key: i·N + j of the linked pairs ``[E]``, ascending; both directions, loops included.
        num_samples: of each kind, at most; default 2¹⁸. Linked pairs are all taken if they are no more.
        balanced: weigh linked and other pairs alike; default False.
    """
    n, num_edges = len(decoded), len(edge_key)
    linked = edge_key
    if num_edges > num_samples:
        linked = edge_key[torch.randint(num_edges, (num_samples,), device=edge_key.device)]
    other = torch.randint(n * n, (min(num_samples, 4 * num_edges),), device=edge_key.device)
    place = torch.searchsorted(edge_key, other).clamp_max(num_edges - 1)
    other = other[edge_key[place] != other]
    share = 0.5 if balanced else num_edges / n**2
    total = decoded.new_zeros(())
    for keys, weight, sign in ((linked, share, -1), (other, 1 - share, 1)):
        if len(keys):
            score = (decoded[keys // n] * decoded[keys % n]).sum(1)
            total = total + weight * F.softplus(sign * score).mean()
    return total
