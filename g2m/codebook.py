"""Vector quantisation: a codebook, the nearest code of every vector, and what keeps the codes in use."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from g2m.errors import G2MError, check_range, check_whole, choose

CODE_METRICS = ("cosine", "euclidean")
SCORES = 2**24  # scores held at once: bounds memory, not results
_KMEANS_ROWS = 256  # vectors per code that k-means looks at


# -- vectors against codes -------------------------------------------------------------------------------------------


def similarity(x: Tensor, codes: Tensor, metric: str = "cosine", like: Tensor | None = None) -> Tensor:
    """Return how near each vector is to each code ``[N, K]``, higher is nearer.

    Cosine in [-1, 1]; or minus half the squared Euclidean distance in units of the codes' mean squared norm, which for
    unit vectors is cosine less 1: a temperature means the same under both.

    Args:
        x: ``[N, D]``.
        codes: ``[K, D]``.
        metric: ``"cosine"`` (default) or ``"euclidean"``.
        like: codes ``[K, D]`` whose mean squared norm is the unit; default ``codes``.
    """
    if metric == "cosine":
        return F.normalize(x) @ F.normalize(codes).T
    norms = codes.square().sum(1)
    distance = x.square().sum(1, keepdim=True) - 2 * x @ codes.T + norms
    unit = (norms if like is None else like.square().sum(1)).mean()
    return -distance / (2 * unit.clamp_min(torch.finfo(unit.dtype).tiny))


def nearest_code(x: Tensor, codes: Tensor, metric: str = "cosine", *, chunk: int = SCORES) -> Tensor:
    """Return the index ``[N]`` of each vector's nearest code, the first of equals.

    Args:
        x: ``[N, D]``.
        codes: ``[K, D]``.
        metric: ``"cosine"`` (default) or ``"euclidean"``.
        chunk: scores held at once, default 2²⁴: no ``[N, K]`` matrix is made.
    """
    codes, offset = (F.normalize(codes), None) if metric == "cosine" else (codes, codes.square().sum(1) / 2)
    index = []
    for rows in x.split(max(1, chunk // len(codes))):
        scores = rows @ codes.T
        index.append((scores if offset is None else scores.sub_(offset)).argmax(1))
    return torch.cat(index)


def log_assignments(
    x: Tensor, codebook: Tensor, tau: float, metric: str = "cosine", path: Tensor | None = None
) -> Tensor:
    """Return log-probabilities ``[N, L, K]`` of the codes of each level: softmax of :func:`similarity` over ``tau``.

    All levels are measured in the first one's unit: in units of their own, what is all but explained would count most.

    Args:
        x: ``[N, D]``.
        codebook: ``[L, K, D]``; a level sees what the codes before it left.
        tau: temperature, above 0.
        metric: ``"cosine"`` (default) or ``"euclidean"``.
        path: codes ``[N, L]`` taken on the way; default: each vector's own nearest.
    """
    levels = []
    for level, codes in enumerate(codebook):
        scores = similarity(x, codes, metric, codebook[0])
        levels.append(F.log_softmax(scores / tau, -1))
        if level + 1 < len(codebook):
            x = x - codes[scores.argmax(1) if path is None else path[:, level]]
    return torch.stack(levels, 1)


def usage(index: Tensor, num_codes: int) -> float:
    """Return the share of codes that occur in ``index`` (``[N]``, or ``[N, L]``: mean over levels), in [0, 1]."""
    return float((_counts(index, num_codes) > 0).float().mean())


def perplexity(index: Tensor, num_codes: int) -> float:
    """Return how many codes are in use, as it were: exp of the entropy of ``index`` (mean over levels), from 1 to K."""
    share = _counts(index, num_codes) / len(index)
    return float((-torch.xlogy(share, share).sum(1)).exp().mean())


def _counts(index: Tensor, num_codes: int) -> Tensor:
    levels = index.reshape(len(index), -1).unbind(1)
    return torch.stack([torch.bincount(level, minlength=num_codes) for level in levels]).float()


def _unexplained(x: Tensor, value: Tensor) -> Tensor:
    """Return Σ ‖x − value‖² / Σ ‖x − mean of x‖²; of vectors that are all but equal, over a share of Σ ‖x‖²."""
    # The divisor has its gradient: as a constant, it would leave one towards ever smaller vectors.
    least = (1e-4 * x.detach().square().sum()).clamp_min(1e-12)
    return (x - value).square().sum() / torch.maximum((x - x.mean(0)).square().sum(), least)


# -- codebook --------------------------------------------------------------------------------------------------------


class _StraightThrough(Function):
    @staticmethod
    def forward(ctx, x: Tensor, code: Tensor) -> Tensor:
        return code.view_as(code)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class Quantized(NamedTuple):
    """Codes of vectors.

    Attributes:
        value: the code of each vector ``[N, D]``; its gradient goes to the vector as it is (straight-through).
        index: which code it is ``[N]``; ``[N, L]`` where there are levels.
        commitment: the share of the vectors' variance that the codes leave: their squared distances to their codes over
            those to their mean. Neither scale nor shift changes it, so that vectors which only shrink or drift gain
            nothing by it. Of unit vectors if the metric is cosine.
    """

    value: Tensor
    index: Tensor
    commitment: Tensor


class Codebook(nn.Module):
    """A vector quantiser (van den Oord et al., NeurIPS 2017) whose codes follow their members and stay in use.

    Codes are no parameters: at each step in training they move towards the mean of their members (exponential moving
    average). The first step sets them by k-means; a code that has lost its members takes the place of a vector that is
    far from its own.

    Args:
        num_codes: K.
        code_dim: D.
        metric: ``"euclidean"`` (default) or ``"cosine"``: codes are unit vectors.
        num_levels: codes per vector, each for what those before it left (residual quantisation, Euclidean only);
            default 1.
        decay: of the moving averages, in [0, 1), default 0.99.
        kmeans_iterations: of the start, default 10; with 0 codes start as random directions.
        dead_threshold: a code with fewer members than this, in moving average, is replaced; default 1, 0: never.
        renormalise: keep codes at unit length (cosine), default True. ``False``: codes are averaged with their members'
            mean direction as the published code of VQGraph does it.
    """

    codes: Tensor
    counts: Tensor
    sums: Tensor
    started: Tensor

    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        *,
        metric: str = "euclidean",
        num_levels: int = 1,
        decay: float = 0.99,
        kmeans_iterations: int = 10,
        dead_threshold: float = 1.0,
        renormalise: bool = True,
    ) -> None:
        super().__init__()
        self.num_codes, self.code_dim = check_whole("num_codes", num_codes, 2), check_whole("code_dim", code_dim)
        self.metric, self.num_levels = choose("metric", metric, CODE_METRICS), check_whole("num_levels", num_levels)
        if metric == "cosine" and num_levels > 1:
            raise G2MError(f"num_levels: expected 1 under the cosine metric (got {num_levels}). Take 'euclidean'.")
        self.decay = check_range("decay", decay, 0, 1, open_high=True)
        self.kmeans_iterations = check_whole("kmeans_iterations", kmeans_iterations, 0)
        self.dead_threshold, self.renormalise = check_range("dead_threshold", dead_threshold, 0), renormalise
        self.register_buffer("codes", F.normalize(torch.randn(num_levels, num_codes, code_dim), dim=-1))
        self.register_buffer("counts", torch.ones(num_levels, num_codes))
        self.register_buffer("sums", self.codes.clone())
        self.register_buffer("started", torch.tensor(kmeans_iterations == 0))

    def forward(self, x: Tensor) -> Quantized:
        """Quantise vectors ``[N, D]``; in training, codes follow."""
        vectors = F.normalize(x) if self.metric == "cosine" else x
        rest = vectors.detach()
        start, index, value = self.training and not self.started, [], torch.zeros_like(rest)
        for level in range(self.num_levels):
            if start:
                self._start(level, rest)
            codes = self.codes[level]
            index.append(nearest_code(rest, codes, self.metric))
            chosen = codes[index[-1]]
            if self.training:
                self._follow(level, rest, index[-1])
            value, rest = value + chosen, rest - chosen
        if start:
            self.started.fill_(True)
        return Quantized(
            _StraightThrough.apply(x, value),
            index[0] if self.num_levels == 1 else torch.stack(index, 1),
            _unexplained(vectors, value),
        )

    def extra_repr(self) -> str:
        levels = f"{self.num_levels}×" if self.num_levels > 1 else ""
        return f"{levels}{self.num_codes} codes, {self.code_dim} wide, {self.metric}"

    # -- upkeep ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _start(self, level: int, x: Tensor) -> None:
        """k-means from random vectors, spherical under cosine; a code without members starts anew elsewhere."""
        most = _KMEANS_ROWS * self.num_codes
        if len(x) > most:
            x = x[torch.randperm(len(x), device=x.device)[:most]]
        draw = torch.randperm(len(x), device=x.device)[: self.num_codes]
        more = torch.randint(len(x), (self.num_codes - len(draw),), device=x.device)
        codes = x[torch.cat([draw, more])]
        for _ in range(self.kmeans_iterations):
            counts, sums = self._members(x, nearest_code(x, codes, self.metric))
            empty = counts == 0
            codes = self._unit(sums / counts.clamp_min(1)[:, None])
            codes[empty] = x[torch.randint(len(x), (int(empty.sum()),), device=x.device)]
        self.codes[level], self.sums[level], self.counts[level] = codes, codes, 1.0

    @torch.no_grad()
    def _follow(self, level: int, x: Tensor, index: Tensor) -> None:
        codes, counts, sums = self.codes[level], self.counts[level], self.sums[level]
        new_counts, new_sums = self._members(x, index)
        counts.lerp_(new_counts, 1 - self.decay)
        if self.metric == "cosine" and not self.renormalise:
            mean = torch.where(new_counts[:, None] > 0, F.normalize(new_sums), F.normalize(codes))
            codes.lerp_(mean, 1 - self.decay)
        else:
            sums.lerp_(new_sums, 1 - self.decay)
            known = counts[:, None] > 1e-6  # long without members, a code stays where it is
            codes.copy_(torch.where(known, self._unit(sums / counts.clamp_min(1e-6)[:, None]), codes))
        dead = (counts < self.dead_threshold).nonzero().flatten()
        if len(dead):
            # Vectors far from their code, as k-means++ draws them: a code among its like is soon lost again.
            far = (x - codes[index]).square().sum(1).clamp_min(1e-12)
            codes[dead] = x[torch.multinomial(far, len(dead), replacement=len(dead) > len(x))]
            sums[dead], counts[dead] = self.dead_threshold * codes[dead], self.dead_threshold

    def _members(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """The number of members of each code, and their sum."""
        counts = torch.bincount(index, minlength=self.num_codes).to(x.dtype)
        return counts, x.new_zeros(self.num_codes, self.code_dim).index_add_(0, index, x)

    def _unit(self, codes: Tensor) -> Tensor:
        return F.normalize(codes) if self.metric == "cosine" else codes
