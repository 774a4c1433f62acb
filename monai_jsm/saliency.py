"""Where two images show corresponding structure: structure tensor, saliency, joint saliency and trust.

Everything is differentiable, normalised per sample and never over a batch, and one body serves 2D and 3D.
A symmetric D x D tensor is kept as its D (D + 1) / 2 distinct entries, one map each: the diagonal first, then
the rows of the upper triangle. Filters are separable and each axis is one product with a banded matrix, which
holds the border as well: faster on a CPU than a convolution with one channel, and nothing is kept for backward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = [
    "JointSaliency",
    "JointSaliencyBlock",
    "regional_saliency",
    "structure_tensor",
    "tensor_distance",
]


class JointSaliency(NamedTuple):
    """What `JointSaliencyBlock` finds for a pair; every map is (B, 1, *S) on the grid of fixed.

    Attributes:
        joint_saliency: weight of the pair in [0, 1], high where both images show the same structure, low where
            either is flat or the structures differ.
        saliency_fixed: saliency of fixed; in [0, 1], save for the published formula.
        saliency_warped: saliency of warped, same scale.
        mismatch: distance of the two structure tensors, not negative.
        trust: relative weight of the evidence in (0, 1]: one where the structures agree and where both images are
            flat, near zero where structure exists in one image only or is turned.
    """

    joint_saliency: Tensor
    saliency_fixed: Tensor
    saliency_warped: Tensor
    mismatch: Tensor
    trust: Tensor


def structure_tensor(
    image: Tensor,
    sigma: float = 1.0,
    inner_sigma: float = 0.7,
    spacing: Sequence[float] | None = None,
    formula: str = "recommended",
) -> Tensor:
    """Gaussian-smoothed outer product of the gradient of one image.

    With the ``recommended`` formula the gradient is that of a Gaussian-smoothed image, co-located with the voxels
    and in intensity per mm, and the border is repeated. With the ``published`` one it is the forward difference,
    zero on the last sample, and the smoothing sees zeros outside the image. Kernels reach to four sigma.

    Args:
        image: (B, 1, *S).
        sigma: standard deviation of the smoothing of the outer product, mm (voxels without ``spacing``).
        inner_sigma: standard deviation of the derivative of Gaussian, mm (voxels without ``spacing``). Far below
            one voxel it becomes the central difference.
        spacing: D voxel edges in mm, in array-axis order; left out, every edge is one.
        formula: ``recommended`` or ``published``.

    Returns:
        (B, D, D, *S), symmetric and positive semi-definite; components in array-axis order. At least float32.

    Raises:
        ValueError: if a shape, a width, the spacing or the formula is not as above.

    Example:
        >>> ramp = torch.arange(17.0).expand(1, 1, 6, 17)  # rises by one per column
        >>> torch.allclose(structure_tensor(ramp)[0, :, :, 3, 8], torch.diag(torch.tensor([0.0, 1.0])), atol=1e-6)
        True
    """
    if image.dim() not in (4, 5) or image.shape[1] != 1:
        raise ValueError(f"image must be (B, 1, *S) with two or three spatial sizes, got {tuple(image.shape)}.")
    _check_choice("formula", formula, ("recommended", "published"))
    spatial_dims = image.dim() - 2
    edges = _edges(spatial_dims, spacing)
    _check_positive(sigma=sigma, inner_sigma=inner_sigma)
    with torch.autocast(image.device.type, enabled=False):
        entries = _structure_tensor(_at_least_float32(image), sigma, inner_sigma, edges, formula == "published")
    return _unpack(entries, spatial_dims)


def tensor_distance(first: Tensor, second: Tensor, kind: str = "full") -> Tensor:
    """Distance of two symmetric tensors: the root of their squared difference over all directions.

    With D the difference, d(g) = g^T D g its profile on the unit sphere and c = pi/2 in 2D, 8 pi/15 in 3D:
    ``full`` is sqrt(c (|D|^2 + tr(D)^2 / 2)), the whole profile; ``deviatoric`` is sqrt(c (|D|^2 - tr(D)^2 / n)),
    orientation and shape alone; ``published`` is sqrt(8 pi/15 (|D|^2 - tr(D)^2 / 3)) in 2D too, the 3D distance
    of 2D tensors. Exact in value; the gradient at distance zero is zero.

    Args:
        first: (B, D, D, *S), symmetric.
        second: same shape.
        kind: ``full``, ``deviatoric`` or ``published``.

    Returns:
        (B, 1, *S), in the unit of the tensors.

    Raises:
        ValueError: if the shapes are not as above, or ``kind`` is unknown.

    Example:
        >>> along_rows = torch.tensor([[1.0, 0.0], [0.0, 0.0]]).reshape(1, 2, 2, 1, 1)
        >>> tensor_distance(along_rows, along_rows.flip(1, 2), kind="full").square() / torch.pi  # |D|^2 = 2, tr D = 0
        tensor([[[[1.0000]]]])

    Reference:
        Alexander, Gee, Bajcsy: Similarity measures for matching diffusion tensor images. BMVC 1999.
    """
    _check_tensor("first", first)
    if first.shape != second.shape:
        raise ValueError(
            f"the two tensor fields must have one shape: first is {tuple(first.shape)}, second {tuple(second.shape)}."
        )
    _check_choice("kind", kind, ("full", "deviatoric", "published"))
    return _root(_squared_distance(_profile(_pack(first), kind), _profile(_pack(second), kind)))


def regional_saliency(tensor: Tensor, kind: str = "full", average: str = "mean") -> Tensor:
    """How far the tensor of a voxel lies from those of its 3^D - 1 neighbours; the border is repeated.

    Args:
        tensor: (B, D, D, *S), symmetric.
        kind: the distance, see `tensor_distance`.
        average: ``mean`` distance, or ``root_mean_square``, which needs box filters only: many times faster and
            smaller in memory, never below the mean. Squares below rounding error count as zero.

    Returns:
        (B, 1, *S), in the unit of the tensor.

    Raises:
        ValueError: if the shape is not as above, or ``kind`` or ``average`` is unknown.

    Example:
        >>> tensor = torch.zeros(1, 2, 2, 5, 6)
        >>> tensor[..., 2, 3] = torch.eye(2)
        >>> regional_saliency(tensor, "full")[0, 0, 2, 2:5] / torch.pi ** 0.5  # d(I, 0) = sqrt(2 pi)
        tensor([0.1768, 1.4142, 0.1768])
    """
    _check_tensor("tensor", tensor)
    _check_choice("kind", kind, ("full", "deviatoric", "published"))
    _check_choice("average", average, ("mean", "root_mean_square"))
    with torch.autocast(tensor.device.type, enabled=False):
        profile = _profile(_pack(_at_least_float32(tensor)), kind)
        return _mean_saliency(profile) if average == "mean" else _root_mean_square_saliency(profile)


class JointSaliencyBlock(torch.nn.Module):
    """Joint saliency and trust of a fixed image and the moving image warped onto it; no weights.

    The ``recommended`` formula takes structure tensors of Gaussian derivatives and divides them, sample by sample,
    by tr T + 0.1 q, with q the 90 % quantile of the trace tr T over the image (plus a ten-thousandth of its
    maximum, which acts only in images that are flat nearly everywhere). So neither offset, nor sign, nor contrast
    of an image matters. With s the saliency, d the distance of the two tensors and S = exp(-d^2 / (2 sigma_S^2)):

        joint saliency J = min(s_F, s_W) S             trust R = (min(s_F, s_W) S + k) / (max(s_F, s_W) + k)

    The ``published`` formula has forward differences, no contrast normalisation, the mean distance to the
    neighbours as saliency and J = u(min(s_F, s_W) / (1 + u(d))), where u shifts and scales one image to [0, 1];
    its trust is R above with u(s_F), u(s_W) and u(d).

    Gradients flow through every step, the quantile and the extrema included, so autograd agrees with finite
    differences; detach a map that serves as weight of a loss, or the network lowers the loss by creating
    mismatch. Constant and identical images have finite values and gradients. Half precision and autocast are
    computed in float32; the block scripts. No map depends on the other members of a batch.

    Args:
        spatial_dims: D, 2 or 3.
        sigma: standard deviation of the smoothing of the structure tensor, mm (voxels without ``spacing``).
        kind: distance of two tensors, see `tensor_distance`.
        formula: ``recommended`` or ``published``; left out, ``published`` for ``kind="published"``, else
            ``recommended``.
        saliency: of the recommended formula: ``energy``, tr T / (tr T + 0.1 q), or ``regional``, the root mean
            square distance to the neighbours, shifted and scaled to [0, 1]. The regional one vanishes on the crest
            of a straight edge, where the normalised tensor is level, so it misses two edges that cross; it takes
            nearly twice the time and half as much memory again.
        inner_sigma: standard deviation of the derivative of Gaussian of the recommended formula, same unit.
        spacing: D voxel edges in mm, in array-axis order; left out, every edge is one.
        similarity_sigma: sigma_S, the distance of tensors at which similarity falls to 0.61.
        trust_offset: k, the saliency that is too weak to count as evidence.

    Raises:
        ValueError: if an argument is not as above, or two images do not match.

    Example:
        >>> rows = torch.linspace(-6.0, 6.0, 24).sigmoid().reshape(1, 1, 24, 1).expand(1, 1, 24, 20)
        >>> columns = torch.linspace(-6.0, 6.0, 20).sigmoid().expand(1, 1, 24, 20)
        >>> block = JointSaliencyBlock(spatial_dims=2)
        >>> block(rows, 0.5 * rows).trust.min() > 0.99, block(rows, columns).trust.min() < 0.2
        (tensor(True), tensor(True))
    """

    def __init__(
        self,
        spatial_dims: int,
        sigma: float = 1.0,
        kind: str = "full",
        formula: str | None = None,
        saliency: str = "energy",
        inner_sigma: float = 0.7,
        spacing: Sequence[float] | None = None,
        similarity_sigma: float = 0.35,
        trust_offset: float = 0.15,
    ) -> None:
        super().__init__()
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
        _check_choice("kind", kind, ("full", "deviatoric", "published"))
        if formula is None:
            formula = "published" if kind == "published" else "recommended"
        _check_choice("formula", formula, ("recommended", "published"))
        _check_choice("saliency", saliency, ("energy", "regional"))
        _check_positive(
            sigma=sigma, inner_sigma=inner_sigma, similarity_sigma=similarity_sigma, trust_offset=trust_offset
        )
        self.spatial_dims = spatial_dims
        self.sigma = float(sigma)
        self.kind = kind
        self.formula = formula
        self.saliency = saliency
        self.inner_sigma = float(inner_sigma)
        self.edges = _edges(spatial_dims, spacing)
        self.similarity_sigma = float(similarity_sigma)
        self.trust_offset = float(trust_offset)

    def forward(self, fixed: Tensor, warped: Tensor) -> JointSaliency:
        """Joint saliency, its parts, and trust.

        Args:
            fixed: (B, 1, *S).
            warped: moving resampled on the grid of fixed, same shape.
        """
        if fixed.shape != warped.shape or fixed.dim() != self.spatial_dims + 2 or fixed.shape[1] != 1:
            raise ValueError(
                f"fixed and warped must both be (B, 1, *S) with {self.spatial_dims} spatial sizes: "
                f"fixed is {list(fixed.shape)}, warped is {list(warped.shape)}."
            )
        if not torch.jit.is_scripting():
            if torch.compiler.is_exporting():  # knows no autocast; its context would break the export
                return self._maps(fixed, warped)
            with torch.autocast(fixed.device.type, enabled=False):
                return self._maps(fixed.as_subclass(Tensor), warped.as_subclass(Tensor))
        one = torch.ones([1, 1], dtype=torch.float32, device=fixed.device)
        if torch.mm(one, one).dtype == torch.float32:
            return self._maps(fixed, warped)
        # Autocast is on. A script can neither ask for it nor leave it, but autocast leaves float64 alone.
        maps = self._maps(fixed.double(), warped.double())
        if fixed.dtype == torch.float64:
            return maps
        return JointSaliency(maps[0].float(), maps[1].float(), maps[2].float(), maps[3].float(), maps[4].float())

    def extra_repr(self) -> str:
        """What the block was made with."""
        return f"spatial_dims={self.spatial_dims}, sigma={self.sigma}, kind={self.kind}, formula={self.formula}"

    def _maps(self, fixed: Tensor, warped: Tensor) -> JointSaliency:
        fixed, warped = _at_least_float32(fixed), _at_least_float32(warped)
        return self._published(fixed, warped) if self.formula == "published" else self._recommended(fixed, warped)

    def _recommended(self, fixed: Tensor, warped: Tensor) -> JointSaliency:
        profile_fixed, salient_fixed = self._normalised(fixed)
        profile_warped, salient_warped = self._normalised(warped)
        squared = _squared_distance(profile_fixed, profile_warped)
        similarity = torch.exp(squared * (-0.5 / self.similarity_sigma**2))
        joint = torch.minimum(salient_fixed, salient_warped) * similarity
        trust = (joint + self.trust_offset) / (torch.maximum(salient_fixed, salient_warped) + self.trust_offset)
        return JointSaliency(joint, salient_fixed, salient_warped, _root(squared), trust)

    def _normalised(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        """Profile of the contrast-normalised tensor and the saliency of one image."""
        entries = _structure_tensor(image, self.sigma, self.inner_sigma, self.edges, False)
        trace = _trace(entries, self.spatial_dims)
        inverse = (trace + _contrast_floor(trace)).reciprocal()
        profile = _profile(entries, self.kind, inverse)
        if self.saliency == "energy":
            return profile, trace * inverse
        return profile, _unit_range(_root_mean_square_saliency(profile))

    def _published(self, fixed: Tensor, warped: Tensor) -> JointSaliency:
        profile_fixed = _profile(_structure_tensor(fixed, self.sigma, 0.0, self.edges, True), self.kind)
        profile_warped = _profile(_structure_tensor(warped, self.sigma, 0.0, self.edges, True), self.kind)
        saliency_fixed, saliency_warped = _mean_saliency(profile_fixed), _mean_saliency(profile_warped)
        mismatch = _root(_squared_distance(profile_fixed, profile_warped))
        relative = _unit_range(mismatch)
        joint = _unit_range(torch.minimum(saliency_fixed, saliency_warped) / (1.0 + relative))
        salient_fixed, salient_warped = _unit_range(saliency_fixed), _unit_range(saliency_warped)
        similarity = torch.exp(relative.square() * (-0.5 / self.similarity_sigma**2))
        trust = (torch.minimum(salient_fixed, salient_warped) * similarity + self.trust_offset) / (
            torch.maximum(salient_fixed, salient_warped) + self.trust_offset
        )
        return JointSaliency(joint, saliency_fixed, saliency_warped, mismatch, trust)


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")


def _check_positive(**widths: float) -> None:
    for name, width in widths.items():
        if not width > 0:
            raise ValueError(f"{name} must be positive, got {width}.")


def _check_tensor(name: str, tensor: Tensor) -> None:
    if tensor.dim() not in (5, 6) or tensor.shape[1:3] != (tensor.dim() - 3,) * 2:
        raise ValueError(f"{name} must be (B, D, D, *S) with D spatial sizes, D 2 or 3, got {tuple(tensor.shape)}.")


def _edges(spatial_dims: int, spacing: Sequence[float] | None) -> list[float]:
    edges = [1.0] * spatial_dims if spacing is None else [float(edge) for edge in spacing]
    if len(edges) != spatial_dims or not min(edges) > 0:
        raise ValueError(f"spacing must be {spatial_dims} positive lengths in mm, got {tuple(edges)}.")
    return edges


def _at_least_float32(values: Tensor) -> Tensor:
    return values if values.dtype == torch.float64 else values.float()


def _pack(tensor: Tensor) -> list[Tensor]:
    """The distinct entries of (B, D, D, *S), each (B, 1, *S)."""
    spatial_dims = tensor.shape[1]
    entries = [tensor[:, axis, axis].unsqueeze(1) for axis in range(spatial_dims)]
    for row in range(spatial_dims):
        entries += [tensor[:, row, column].unsqueeze(1) for column in range(row + 1, spatial_dims)]
    return entries


def _unpack(entries: list[Tensor], spatial_dims: int) -> Tensor:
    """(B, D, D, *S) of the distinct entries."""
    order = [[axis if axis == other else -1 for other in range(spatial_dims)] for axis in range(spatial_dims)]
    position = spatial_dims
    for row in range(spatial_dims):
        for column in range(row + 1, spatial_dims):
            order[row][column] = order[column][row] = position
            position += 1
    return torch.stack([torch.cat([entries[entry] for entry in row], dim=1) for row in order], dim=1)


def _gaussian(sigma: float, like: Tensor) -> Tensor:
    """Gaussian sampled at integers to four sigma, sum one."""
    radius = max(1, math.ceil(4.0 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=like.dtype, device=like.device)
    weights = torch.exp(offsets.square() * (-0.5 / sigma**2))
    return weights / weights.sum()


def _gaussian_derivative(sigma: float, like: Tensor) -> Tensor:
    """Derivative of a Gaussian; a ramp of slope one gives one. Below 0.2 voxels: the central difference."""
    sigma = max(sigma, 0.2)
    radius = max(1, math.ceil(4.0 * sigma))
    offsets = torch.arange(-radius, radius + 1, dtype=like.dtype, device=like.device)
    weights = offsets * torch.exp(offsets.square() * (-0.5 / sigma**2))
    return weights / (weights * offsets).sum()


def _filter_matrix(kernel: Tensor, size: int, border: str) -> Tensor:
    """Correlation of ``size`` samples with an odd kernel as a matrix; the border is ``repeated`` or ``zero``."""
    radius = kernel.numel() // 2
    sample = torch.arange(size, device=kernel.device)
    seen = torch.arange(-radius, size + radius, device=kernel.device)
    offset = seen.unsqueeze(0) - sample.unsqueeze(1) + radius  # (size, size + 2 radius)
    extended = torch.where((offset >= 0) & (offset <= 2 * radius), kernel[offset.clamp(0, 2 * radius)], 0.0)
    matrix = extended[:, radius : radius + size].clone()
    if border == "repeated":
        matrix[:, 0] += extended[:, :radius].sum(1)
        matrix[:, size - 1] += extended[:, radius + size :].sum(1)
    return matrix


def _filter(values: Tensor, axis: int, matrix: Tensor) -> Tensor:
    """Apply the matrix of a filter along one spatial axis."""
    size = values.shape[2 + axis]
    if axis == values.dim() - 3:
        return torch.matmul(values, matrix.t())
    rows = values.flatten(0, 1 + axis).flatten(2)  # (lines, size, rest)
    return torch.bmm(matrix.expand(rows.shape[0], size, size), rows).reshape(values.shape)


def _structure_tensor(
    image: Tensor, sigma: float, inner_sigma: float, edges: list[float], published: bool
) -> list[Tensor]:
    """The distinct entries of the structure tensor, each (B, 1, *S)."""
    spatial_dims = len(edges)
    # A derivative does not see an offset, but its rounding does.
    blurred = image - image.flatten(1)[:, 0].detach().reshape([-1] + [1] * (spatial_dims + 1))
    gradient: list[Tensor] = []
    for axis in range(spatial_dims):
        size = image.shape[2 + axis]
        if published:
            difference = torch.tensor([0.0, -1.0, 1.0], dtype=image.dtype, device=image.device) / edges[axis]
            gradient.append(_filter(blurred, axis, _filter_matrix(difference, size, "repeated")))
        else:
            width = inner_sigma / edges[axis]
            blur = _filter_matrix(_gaussian(width, image), size, "repeated")
            slope = _filter_matrix(_gaussian_derivative(width, image) / edges[axis], size, "repeated")
            gradient = [_filter(component, axis, blur) for component in gradient]
            gradient.append(_filter(blurred, axis, slope))
            if axis + 1 < spatial_dims:
                blurred = _filter(blurred, axis, blur)
    entries = [component.square() for component in gradient]
    for row in range(spatial_dims):
        for column in range(row + 1, spatial_dims):
            entries.append(gradient[row] * gradient[column])
    border = "zero" if published else "repeated"
    for axis in range(spatial_dims):
        smooth = _filter_matrix(_gaussian(sigma / edges[axis], image), image.shape[2 + axis], border)
        entries = [_filter(entry, axis, smooth) for entry in entries]
    return entries


def _trace(entries: list[Tensor], spatial_dims: int) -> Tensor:
    trace = entries[0] + entries[1]
    for axis in range(2, spatial_dims):
        trace += entries[axis]
    return trace


def _profile(entries: list[Tensor], kind: str, scale: Tensor | None = None) -> list[Tensor]:
    """Coordinates in which the distance of two tensors, times a scale per voxel, is the Euclidean one.

    c (|T|^2 + w tr(T)^2) is the squared length of sqrt(c) (T + b tr(T) I) with (1 + n b)^2 = 1 + n w.
    """
    spatial_dims = 2 if len(entries) == 3 else 3
    constant = 8.0 * math.pi / 15.0 if spatial_dims == 3 or kind == "published" else 0.5 * math.pi
    weight = -1.0 / 3.0
    if kind == "full":
        weight = 0.5
    elif kind == "deviatoric":
        weight = -1.0 / spatial_dims
    share = (math.sqrt(max(1.0 + spatial_dims * weight, 0.0)) - 1.0) / spatial_dims
    scale = entries[0].new_ones([]) if scale is None else scale
    scale = scale * math.sqrt(2.0 * constant)  # an entry off the diagonal counts twice, so one on it half
    half = math.sqrt(0.5)
    part = _trace(entries, spatial_dims) * (share * half)
    profile = [torch.add(part, entry, alpha=half) * scale for entry in entries[:spatial_dims]]
    return profile + [entry * scale for entry in entries[spatial_dims:]]


def _squared_distance(first: list[Tensor], second: list[Tensor]) -> Tensor:
    total = (first[0] - second[0]).square()
    for entry in range(1, len(first)):
        total += (first[entry] - second[entry]).square()
    return total


def _root(squared: Tensor) -> Tensor:
    """Square root, exact in value, with gradient zero at zero."""
    positive = squared > 0
    return torch.where(positive, torch.where(positive, squared, 1.0).sqrt(), 0.0)


def _mean_saliency(profile: list[Tensor]) -> Tensor:
    """Mean distance to the 3^D - 1 neighbours, each pair of neighbours visited once."""
    spatial_dims = profile[0].dim() - 2
    sizes = profile[0].shape[2:]
    padded = F.pad(torch.cat(profile, dim=1), [1] * (2 * spatial_dims), mode="replicate")
    total = torch.zeros_like(profile[0])
    window = int(3**spatial_dims)
    for neighbour in range(window // 2 + 1, window):
        here, there, ahead, behind = padded, padded, [0] * spatial_dims, [0] * spatial_dims
        for axis in range(spatial_dims):
            step, size = (neighbour // int(3**axis)) % 3 - 1, sizes[axis]
            length = size + abs(step)
            start = 1 - max(step, 0)
            here, there = here.narrow(2 + axis, start, length), there.narrow(2 + axis, start + step, length)
            ahead[axis], behind[axis] = max(step, 0), max(-step, 0)
        distance = torch.linalg.vector_norm(there - here, dim=1, keepdim=True)
        one, other = distance, distance
        for axis in range(spatial_dims):
            one, other = (
                one.narrow(2 + axis, ahead[axis], sizes[axis]),
                other.narrow(2 + axis, behind[axis], sizes[axis]),
            )
        total = total + one + other
    return total / (window - 1)


def _root_mean_square_saliency(profile: list[Tensor]) -> Tensor:
    """Root of the mean squared distance to the 3^D - 1 neighbours, from box means alone."""
    own = profile[0].square()
    for values in profile[1:]:
        own += values.square()
    means = [own]
    means.extend(profile)
    third = torch.full([3], 1.0 / 3.0, dtype=own.dtype, device=own.device)
    for axis in range(own.dim() - 2):
        box = _filter_matrix(third, own.shape[2 + axis], "repeated")
        means = [_filter(values, axis, box) for values in means]
    squared = own + means[0]
    rounding = 2.0**-52 if own.dtype == torch.float64 else 2.0**-23
    noise = squared.detach() * (4.0 * rounding)  # what cancellation leaves
    for entry, values in enumerate(profile):
        squared -= 2.0 * (values * means[entry + 1])
    window = int(3 ** (own.dim() - 2))
    return _root(torch.where(squared > noise, squared, 0.0) * (window / (window - 1)))


def _extremum_shape(values: Tensor) -> list[int]:
    return [values.shape[0]] + [1] * (values.dim() - 1)


def _contrast_floor(trace: Tensor) -> Tensor:
    """0.1 of the 90 % quantile of each sample, plus 1e-4 of its maximum; one for a sample that is zero.

    The quantile is an order statistic: exact, deterministic, differentiable, without a limit of size.
    """
    flat = trace.flatten(1)
    count = flat.shape[1] - int(0.9 * (flat.shape[1] - 1))
    upper = flat.topk(count, dim=1, sorted=False)[0]
    floor = 0.1 * upper.amin(1) + 1e-4 * upper.amax(1)
    return torch.where(floor > 0, floor, 1.0).reshape(_extremum_shape(trace))


def _unit_range(values: Tensor) -> Tensor:
    """Shift and scale each sample to [0, 1]; a constant sample gives zero."""
    flat = values.flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    extent = torch.where(high > low, high - low, 1.0)
    return (values - low.reshape(_extremum_shape(values))) / extent.reshape(_extremum_shape(values))
