"""Low and high frequencies of a signal on a graph, as in FF-G2M (Wu et al., AAAI 2023).

Â = D^-½ (A + I) D^-½ and L = I − Â. Âs is a sum over neighbours, the node itself included, weighted by 1/√(d_i d_j)
with d the degrees of A + I: their plain mean where all degrees are equal. L has its eigenvalues, the frequencies, in
[0, 2): a signal that neighbours share has low ones, a signal that sets them apart has high ones.
"""

from __future__ import annotations

import inspect
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
from torch import Tensor
from torch.nn import functional as F

from g2m.errors import G2MError, check_whole, choose
from g2m.graph import Graph, check_edge_index
from g2m.models import symmetric_adjacency
from g2m.sparse import CSR

METHODS = ("auto", "exact", "chebyshev")
EXACT_NODES = 2048  # "auto" goes through all eigenvectors up to this many nodes: some seconds
COLUMNS = 64  # of a signal that are filtered at a time
ARCS = 2**15  # whose ends are compared at a time: their rows stay in cache
TERMS = 2**18  # of Chebyshev series that are integrated at a time
RESTARTS = 1000  # of Lanczos, before it is given up


class Components(NamedTuple):
    """The low- and the high-frequency part of a signal; each has the signal's shape, and they add up to it."""

    low: Tensor
    high: Tensor


class Spectrum(NamedTuple):
    """Energy ``[K]`` of a signal at eigenvalues of L ``[K]``, ascending; both float64, on CPU."""

    eigenvalue: Tensor
    energy: Tensor


class Indicators(NamedTuple):
    """How neighbours differ, as three means over arcs: see :func:`indicators`."""

    similarity: float
    distance: float
    distance_gap: float


# -- one signal, two parts -------------------------------------------------------------------------------------


def components(signal: Tensor, graph: Graph) -> Components:
    """Return low = ½(s + Âs) and high = ½(s − Âs); they add up to the signal s.

    On an eigenvector of L with eigenvalue λ, low is 1 − λ/2 of it and high is λ/2. Differentiable in the signal; time
    and memory grow linearly with nodes and arcs. Â is built at every call.

    Args:
        signal: ``[N]`` or ``[N, C]``, float32 or float64, on any device.
        graph: of N nodes. Of a directed one, a node takes in the arcs that lead to it.

    Raises:
        G2MError: if the signal is not of that shape and type.
    """
    _check_signal(signal, graph)
    adjacency = _adjacency(graph, signal.dtype, signal.device)
    smooth = (adjacency @ signal.reshape(len(signal), -1)).reshape(signal.shape)
    return Components((signal + smooth) / 2, (signal - smooth) / 2)


# -- the spectrum ----------------------------------------------------------------------------------------------


def spectral_ends(signal: Tensor, graph: Graph, k: int = 16) -> Spectrum:
    """Return the k smallest and the k largest eigenvalues of L, and the energy ‖uᵀs‖² of the signal on each.

    Where an eigenvalue is repeated its eigenvectors are not unique: only the energy summed over all of them is
    defined, and where ``k`` cuts through them not even that. 0 comes once for every connected component.

    Time has no useful bound in nodes and arcs: the closer the eigenvalues at an end, the more products with Â it takes
    to tell them apart. Long thin graphs, such as paths and grids, are hard at few thousand nodes; it is given up then.

    Args:
        signal: ``[N]`` or ``[N, C]``, float32 or float64; energies are summed over columns.
        graph: undirected, of N nodes.
        k: eigenvalues at each end, from 1; default 16.

    Returns:
        ``2k`` entries, or all N if that is no more.

    Raises:
        G2MError: on any of the above not holding, or if eigenvalues are not told apart in 1000 restarts.
    """
    _check_signal(signal, graph)
    _check_undirected(graph)
    check_whole("k", k)
    matrix = _scipy(_adjacency(graph))
    if 2 * k >= graph.num_nodes:
        value, vector = np.linalg.eigh(matrix.toarray())
        value, vector = 1 - value[::-1], vector[:, ::-1]
    else:
        low, low_vector = _largest(matrix, k, np.empty((graph.num_nodes, 0)))
        high, high_vector = _largest(-matrix, k, low_vector)
        value = np.concatenate([1 - low, (1 + high)[::-1]])
        vector = np.hstack([low_vector, high_vector[:, ::-1]])
    return Spectrum(torch.from_numpy(value.copy()), _energy(vector, signal))


def spectral_energy(
    signal: Tensor, graph: Graph, *, bins: int = 32, method: str = "auto", num_moments: int | None = None
) -> Spectrum:
    """Return the histogram of the signal's energy over the eigenvalues of L.

    Args:
        signal: ``[N]`` or ``[N, C]``, float32 or float64; energies are summed over columns.
        graph: undirected, of N nodes.
        bins: number of bins of equal width over [0, 2], from 1; default 32. ``"chebyshev"`` takes 4 products with Â
            for each by default, and time of bins² to integrate; memory stays that of a few signals.
        method: ``"exact"``: through all eigenvectors, N² memory and N³ time; ``"chebyshev"``: kernel polynomial
            method with Jackson's kernel (Weiße et al., Rev. Mod. Phys. 2006), linear in nodes and arcs: it blurs
            λ = 1 − cos θ by about π / num_moments in θ; ``"auto"`` (default): exact up to 2048 nodes.
        num_moments: of ``"chebyshev"``, from 1, at one product with Â for every two; default ``8 * bins``.

    Returns:
        ``eigenvalue``: centres of the bins; ``energy``: of the signal in each, summing to ‖signal‖². A bin takes in
        its lower edge.

    Raises:
        G2MError: on any of the above not holding.
    """
    _check_signal(signal, graph)
    _check_undirected(graph)
    check_whole("bins", bins)
    choose("method", method, METHODS)
    num_moments = check_whole("num_moments", 8 * bins if num_moments is None else num_moments)
    edges = np.linspace(0, 2, bins + 1)
    centre = torch.from_numpy((edges[:-1] + edges[1:]) / 2)
    if method == "exact" or (method == "auto" and graph.num_nodes <= EXACT_NODES):
        value, vector = np.linalg.eigh(_scipy(_adjacency(graph)).toarray())
        # Many eigenvalues lie on an edge, 1 above all: rounding must not put them now below it, now above.
        value = (1 - value + 1e-9).clip(0, 2)
        energy, _ = np.histogram(value, edges, weights=_energy(vector, signal).numpy())
        return Spectrum(centre, torch.from_numpy(energy))
    signal = signal.detach().double().reshape(len(signal), -1)
    adjacency = _adjacency(graph, signal.dtype, signal.device)
    moments = sum(_moments(adjacency, block, num_moments) for block in signal.split(COLUMNS, 1))
    return Spectrum(centre, torch.from_numpy(_integrate(moments, edges)))


def _moments(adjacency: CSR, signal: Tensor, count: int) -> np.ndarray:
    """Return Σ over columns of <s, T_k(L − I) s> for every k below ``count``; two for a product with L − I = −Â."""

    def dot(a: Tensor, b: Tensor) -> float:
        return float(torch.dot(a.reshape(-1), b.reshape(-1)))

    before, last = signal, -(adjacency @ signal)  # T_0 s and T_1 s
    moments = [dot(signal, signal), dot(signal, last)]
    while len(moments) < count:
        # 2 T_i T_j = T_{i+j} + T_{|i−j|}, and every T is symmetric
        moments.append(2 * dot(last, last) - moments[0])
        before, last = last, -2 * (adjacency @ last) - before
        moments.append(2 * dot(last, before) - moments[1])
    return np.array(moments[:count])


def _jackson(count: int) -> np.ndarray:
    """Return the weights ``[count]`` that keep a cut Chebyshev series of a nonnegative function nonnegative."""
    k, step = np.arange(count), np.pi / (count + 1)
    return ((count + 1 - k) * np.cos(k * step) + np.sin(k * step) / np.tan(step)) / (count + 1)


def _integrate(moments: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Return the integral of the damped series between neighbouring ``edges`` of λ = 1 + cos θ.

    In θ the series is (m_0 + 2 Σ_k g_k m_k cos kθ) / π, which is integrated term by term.
    """
    theta = np.arccos((edges - 1).clip(-1, 1))
    k = np.arange(1, len(moments))
    damped = (_jackson(len(moments)) * moments)[1:] / k
    rows = max(1, TERMS // len(moments))  # a matrix of all edges and moments is quadratic in bins
    terms = [np.sin(part[:, None] * k) @ damped for part in np.split(theta, range(rows, len(theta), rows))]
    below = (moments[0] * (np.pi - theta) - 2 * np.concatenate(terms)) / np.pi
    return np.diff(below).clip(0)  # less than 0 is rounding: Jackson's kernel is nonnegative


# Where its start vector runs out, ARPACK draws another; from scipy 1.17 on, differently at every call unless told.
_SEED = {"rng": 0} if "rng" in inspect.signature(eigsh).parameters else {}


def _largest(matrix: csr_array, k: int, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the k largest eigenvalues, descending, and eigenvectors of a symmetric matrix, orthogonal to ``known``.

    ``known`` holds orthonormal eigenvectors ``[N, K]``; all eigenvalues are in [-1, 1], and N > K + k. Lanczos from
    one vector can miss copies of a repeated eigenvalue (of a graph in many pieces, it does): what is found is moved
    out of the way, and the rest is searched from another vector, until there is nothing larger. All is searched 3
    higher: ARPACK takes what it finds at 0 for nothing, and L has many eigenvalues 1.
    """
    generator = np.random.default_rng(0)
    value, vector = np.empty(0), np.empty((len(known), 0))

    def search(count: int, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
        basis = np.hstack([known, vector])
        shift = (basis * (matrix @ basis)).sum(0) + 2  # to -2, below all others

        def product(x: np.ndarray) -> np.ndarray:
            x = x.reshape(-1)
            return matrix @ x + 3 * x - basis @ (shift * (basis.T @ x))

        operator = LinearOperator(matrix.shape, matvec=product, dtype=matrix.dtype)
        start, width = generator.standard_normal(len(known)), min(len(known), max(3 * count, 20))
        try:
            options = {"which": "LA", "v0": start, "ncv": width, "tol": tolerance, "maxiter": RESTARTS}
            found, direction = eigsh(operator, count, **options, **_SEED)
        except ArpackNoConvergence:
            raise G2MError(
                f"graph: expected eigenvalues that can be told apart (got some closer at an end of the spectrum than "
                f"{RESTARTS} restarts of Lanczos can, with k={k}). Take a larger k, or "
                "spectral_energy(signal, graph, method='chebyshev')."
            ) from None
        return found - 3, direction

    while len(value) < k or search(1, 1e-6)[0].item() > value[-1] + 1e-8:
        more, more_vector = search(k, 1e-10)
        value, vector = np.concatenate([value, more]), np.hstack([vector, more_vector])
        order = np.argsort(-value, kind="stable")[:k]
        value, vector = value[order], vector[:, order]
    return value, vector


def _energy(vector: np.ndarray, signal: Tensor) -> Tensor:
    """Return the energy of the signal on every column of ``vector``."""
    signal = signal.detach().double().reshape(len(signal), -1).cpu().numpy()
    return torch.from_numpy(((vector.T @ signal) ** 2).sum(1))


def _adjacency(graph: Graph, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> CSR:
    """Â as the models have it, but not rounded to float32."""
    pattern = symmetric_adjacency(graph)
    degree = pattern.crow.diff().double()  # entries of a row: every arc once, and the loop
    value = (degree[pattern.row_of_entry()] * degree[pattern.col.long()]).rsqrt()
    return CSR(pattern.crow, pattern.col, value.to(dtype), pattern.shape).to(device)


def _scipy(adjacency: CSR) -> csr_array:
    return csr_array(
        (adjacency.value.numpy(), adjacency.col.numpy(), adjacency.crow.numpy()),
        shape=adjacency.shape,
    )


# -- neighbours ------------------------------------------------------------------------------------------------


def indicators(student_logits: Tensor, teacher_logits: Tensor, edge_index: Tensor) -> Indicators:
    """Return how much neighbours are alike, and differ, in what a student answers.

    These are FF-G2M's two indicators in the space of nodes, one for low and one for high frequencies. They are taken
    of class probabilities, q (student) and p (teacher), as logits have no common scale or offset. As means over arcs
    (i, j), loops left out:

    - ``similarity``: cosine of q_i and q_j; the higher, the more of the answer is low frequency.
    - ``distance``: ‖q_i − q_j‖; the higher, the more of it is high frequency.
    - ``distance_gap``: |‖q_i − q_j‖ − ‖p_i − p_j‖|; 0 if the student tells neighbours apart as the teacher does.

    With the teacher in both places they are the teacher's own. Without arcs no neighbours differ: 1, 0 and 0.

    Args:
        student_logits: ``[N, C]``, of floating point.
        teacher_logits: likewise.
        edge_index: ``[2, E]`` node ids.

    Raises:
        G2MError: if a shape does not fit, or an id is out of range.
    """
    _check_logits(student_logits, teacher_logits)
    check_edge_index(edge_index, len(student_logits), of=", one per row of the logits")
    student, teacher = (logits.detach().double().softmax(1) for logits in (student_logits, teacher_logits))
    teacher, edge_index = teacher.to(student.device), edge_index.to(student.device)
    edge_index = edge_index[:, edge_index[0] != edge_index[1]]
    if edge_index.size(1) == 0:
        return Indicators(1.0, 0.0, 0.0)
    total = student.new_zeros(3)
    for source, target in edge_index.split(ARCS, 1):
        one, other = student[source], student[target]
        distance = (one - other).norm(dim=1)
        of_teacher = (teacher[source] - teacher[target]).norm(dim=1)
        similarity = F.cosine_similarity(one, other)
        total += torch.stack([similarity.sum(), distance.sum(), (distance - of_teacher).abs().sum()])
    return Indicators(*(total / edge_index.size(1)).tolist())


# -- checks ----------------------------------------------------------------------------------------------------


def _check_signal(signal: Tensor, graph: Graph) -> None:
    if not isinstance(signal, Tensor) or signal.dtype not in (torch.float32, torch.float64):
        got = signal.dtype if isinstance(signal, Tensor) else type(signal).__name__
        raise G2MError(f"signal: expected a tensor of float32 or float64 (got {got}). Convert it with .float().")
    if signal.dim() not in (1, 2) or len(signal) != graph.num_nodes or 0 in signal.shape:
        raise G2MError(
            f"signal: expected one row per node of graph {graph.name!r}, shape [{graph.num_nodes}] or "
            f"[{graph.num_nodes}, C] (got {tuple(signal.shape)})."
        )


def _check_undirected(graph: Graph) -> None:
    source, target = graph.edge_index
    arc, reverse = source * graph.num_nodes + target, target * graph.num_nodes + source
    alone = ~torch.isin(reverse, arc)
    if alone.any():
        first = graph.edge_index[:, alone][:, 0].tolist()
        raise G2MError(
            f"graph: expected every arc with its reverse, a directed graph has no spectrum (got {first} without it). "
            "Add the reverse arcs, for example with torch_geometric.utils.to_undirected."
        )


def _check_logits(student: Tensor, teacher: Tensor) -> None:
    for name, logits in (("student_logits", student), ("teacher_logits", teacher)):
        if not isinstance(logits, Tensor) or not logits.is_floating_point() or logits.dim() != 2 or 0 in logits.shape:
            got = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
            raise G2MError(f"{name}: expected a floating-point tensor of shape [N, C] (got {got}).")
    if student.shape != teacher.shape:
        raise G2MError(
            f"teacher_logits: expected the shape of student_logits, {tuple(student.shape)} "
            f"(got {tuple(teacher.shape)}). Give both for the same nodes and classes."
        )
