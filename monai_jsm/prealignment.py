"""A rigid or affine map that brings two images roughly together, before a network or a deformable method sees them.

It is taken only where it plainly helps: a map that follows one moving organ, a lesion or noise is worse than none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import ndimage

if TYPE_CHECKING:
    import SimpleITK

__all__ = ["Prealignment", "find_theta"]

_LONGEST = {2: 256, 3: 128}  # about the most voxels along an axis that an affine map needs
_SCALES = (4, 2, 1)
_FEWEST = 8  # voxels that shrinking leaves of an axis
_SAMPLES = 30000  # of fixed, in an estimate of the gradient
_POINTS = 100000  # that similarities are compared at
_BINS = 32
_ITERATIONS = 100
_SHORTEST_STEP = 1e-3
_START_ANGLES = np.deg2rad((-30, -15, 15, 30))
_STARTS = 3  # that the coarsest level refines, beside the identity
_LEAST_OVERLAP = 0.25  # of the smaller of the two fields of view
_LEAST_GAIN = 0.1  # over the identity; one voxel's shift of one patient's images costs 0.15 to 0.5
_LEAST_RISE = 0.003  # of the similarity, over the identity; noise alone makes up to 0.002
_LEAST_FURTHER_GAIN = 0.01  # of an affine map over a rigid one
_SCALE_LIMITS = (0.5, 2.0)
_MOST_ANISOTROPY = 2.0


class Prealignment(NamedTuple):
    """A linear map and what speaks for it.

    Attributes:
        theta: (D+1, D+1) float64, on world coordinates (RAS, mm), fixed to moving: ``moving(theta p)`` shows what
            ``fixed(p)`` shows.
        kind: ``"identity"``, ``"rigid"`` or ``"affine"``.
        similarity_before: normalised mutual information of the images as they lie, 1 (nothing shared) to 2; 1 where
            their fields of view hardly overlap.
        similarity_after: the same through ``theta``.
        overlap: share of the voxels of fixed (of its mask) that ``theta`` leads into moving (into its mask).
        note: a sentence for each map that was found and not taken, or that there is none; else empty.
    """

    theta: np.ndarray
    kind: str
    similarity_before: float
    similarity_after: float
    overlap: float
    note: str


def find_theta(
    fixed: ArrayLike | torch.Tensor,
    moving: ArrayLike | torch.Tensor,
    fixed_affine: ArrayLike | torch.Tensor,
    moving_affine: ArrayLike | torch.Tensor,
    fixed_mask: ArrayLike | torch.Tensor | None = None,
    moving_mask: ArrayLike | torch.Tensor | None = None,
    seed: int = 0,
) -> Prealignment:
    """Find the rigid or affine map of the world that brings fixed to moving, or keep the identity.

    Mutual information is maximised, so contrast may differ. The search starts as the images lie, with their centres
    and with their centres of mass together, each also turned by up to 30 degrees. The best starts run on images
    shrunk fourfold, as rigid and as affine maps, and the winners on finer ones. Images of more than about 256
    voxels along an axis (2D, 128 in 3D) are shrunk on the finest level too; thin axes never are.

    A map is taken only if it raises the shared information (normalised mutual information less 1) by a tenth and by
    0.003, the affine one over a rigid one by a hundredth more; if it keeps a quarter of the smaller field of view in
    common; and if it scales no direction by less than 0.5 or more than 2, and none twice as much as another.

    The same arguments give the same bits, whatever the number of threads.

    Args:
        fixed: (*S), real numbers.
        moving: (*M), real numbers, D axes like fixed; shape and grid may differ.
        fixed_affine: voxel-to-world matrix of fixed, (D+1, D+1), RAS, mm.
        moving_affine: the same of moving.
        fixed_mask: (*S), true where fixed is compared.
        moving_mask: (*M), true where moving is compared.
        seed: of the voxels that are drawn, not negative.

    Returns:
        The map and its similarity.

    Raises:
        ValueError: if the images have not the same 2 or 3 axes, at least 2 voxels along each and finite, varying
            values, if an affine is singular or of another size, if a mask is empty or of another shape, or the seed
            is negative.

    Example:
        >>> rows, columns = np.indices((64, 60))
        >>> fixed = np.exp(-((rows - 30) ** 2 + 2 * (columns - 25) ** 2) / 150)
        >>> moving = np.exp(-((rows - 36) ** 2 + 2 * (columns - 21) ** 2) / 150)
        >>> found = find_theta(fixed, moving, np.eye(3), np.eye(3))
        >>> found.kind, found.theta[:2, 2].round().tolist()
        ('rigid', [6.0, -4.0])

    Reference:
        Mattes, Haynor, Vesselle, Lewellen, Eubank: PET-CT image registration in the chest using free-form
        deformations. IEEE Trans. Med. Imaging 22(1), 2003, 120-128. https://doi.org/10.1109/TMI.2003.809072
        Studholme, Hill, Hawkes: An overlap invariant entropy measure of 3D medical image alignment.
        Pattern Recognition 32(1), 1999, 71-86. https://doi.org/10.1016/S0031-3203(98)00091-0
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}.")
    images = _to_itk("fixed", fixed, fixed_affine), _to_itk("moving", moving, moving_affine)
    dims = images[0].GetDimension()
    if images[1].GetDimension() != dims:
        raise ValueError(f"fixed and moving must have as many axes, got {dims} and {images[1].GetDimension()}.")
    masks = _mask_to_itk("fixed", fixed_mask, images[0]), _mask_to_itk("moving", moving_mask, images[1])
    levels = _levels(*images, *masks, seed)
    identity = np.eye(dims + 1)
    before, overlap = levels[-1].similarity(identity)
    found = Prealignment(identity, "identity", before, before, overlap, "")
    notes = []
    for kind, theta in _search(levels, seed):
        after, overlap = levels[-1].similarity(theta)
        fault = _implausible(theta)
        enough = before + max(_LEAST_RISE, _LEAST_GAIN * (before - 1))
        if not fault and after <= max(enough, 1 + (1 + _LEAST_FURTHER_GAIN) * (found.similarity_after - 1)):
            fault = f"takes the similarity from {found.similarity_after:.4f} to {after:.4f} only"
        if fault:
            notes.append(f"The {kind} map {fault}, and was not taken.")
        else:
            found = found._replace(theta=theta, kind=kind, similarity_after=after, overlap=overlap)
    if not notes and found.kind == "identity":
        notes.append("However they are laid, the images hardly overlap, and no map was sought.")
    return found._replace(note=" ".join(notes))


def _implausible(theta: np.ndarray) -> str:
    """What is wrong with a map, or nothing."""
    scales = np.linalg.svd(theta[:-1, :-1], compute_uv=False)
    low, high = scales.min(), scales.max()
    if np.linalg.det(theta) <= 0:
        return "is a reflection"
    if low < _SCALE_LIMITS[0] or high > _SCALE_LIMITS[1] or high > _MOST_ANISOTROPY * low:
        return f"scales by {low:.2f} to {high:.2f}"
    return ""


def _search(levels: list[_Level], seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """The best rigid and the best affine map; none where the images never overlap enough."""
    coarse, middle, fine = levels

    def similarity(transform: Any) -> float:
        return coarse.similarity(_theta(transform))[0]

    as_they_lie, *others = _starts(coarse.fixed, coarse.moving)
    starts = [as_they_lie, *sorted(others, key=similarity, reverse=True)[:_STARTS]]
    ends = [coarse.climb(start, seed) for start in starts if similarity(start) > 1]
    if not ends:
        return
    rigid = middle.climb(max(ends, key=similarity), seed)
    yield "rigid", _theta(fine.climb(rigid, seed))
    affine = max((coarse.climb(_as_affine(end), seed, along_lines=True) for end in ends), key=similarity)
    affine = middle.climb(affine, seed, along_lines=True)
    yield "affine", _theta(fine.climb(affine, seed))


def _as_affine(rigid: Any) -> SimpleITK.AffineTransform:
    import SimpleITK

    affine = SimpleITK.AffineTransform(rigid.GetDimension())
    affine.SetCenter(rigid.GetCenter())
    affine.SetMatrix(rigid.GetMatrix())
    affine.SetTranslation(rigid.GetTranslation())
    return affine


def _starts(fixed: SimpleITK.Image, moving: SimpleITK.Image) -> Iterator[Any]:
    """Rigid maps about the centre of mass of fixed, the identity first."""
    import SimpleITK

    make: Any = {2: SimpleITK.Euler2DTransform, 3: SimpleITK.Euler3DTransform}[fixed.GetDimension()]
    centres, masses = zip(*((_centre(image), _centre_of_mass(image)) for image in (fixed, moving)), strict=True)
    angles = np.zeros(math.comb(fixed.GetDimension(), 2))
    turns = [angles, *(angle * axis for axis in np.eye(len(angles)) for angle in _START_ANGLES)]
    for shift in (0 * centres[0], centres[1] - centres[0], masses[1] - masses[0]):
        for turn in turns:
            transform = make()
            transform.SetCenter(masses[0].tolist())
            transform.SetParameters([*turn.tolist(), *shift.tolist()])
            yield transform


class _Level(NamedTuple):
    """Both images at one resolution, and places to compare them at.

    Attributes:
        fixed, moving: the images.
        fixed_mask, moving_mask: the masks at the resolution they came in.
        points: (N, D), world, at random within fixed (its mask) and not on its voxels: reading between voxels smooths
            noise, and if only moving were read so, any map would seem to beat the identity.
        values: (N,), fixed there.
        least_overlap: share of the points that must fall in moving.
    """

    fixed: SimpleITK.Image
    moving: SimpleITK.Image
    fixed_mask: SimpleITK.Image | None
    moving_mask: SimpleITK.Image | None
    points: np.ndarray
    values: np.ndarray
    least_overlap: float

    def similarity(self, theta: np.ndarray) -> tuple[float, float]:
        """Normalised mutual information where the images overlap, 1 if that is too little, and that share of fixed."""
        points = self.points @ theta[:-1, :-1].T + theta[:-1, -1]
        values = _read(self.moving, points)
        seen = np.isfinite(values)
        if self.moving_mask is not None:
            seen &= _read(self.moving_mask, points, order=0) == 1
        overlap = float(seen.mean())
        if overlap <= self.least_overlap:
            return 1.0, overlap
        first, second = (np.minimum(side[seen] * _BINS, _BINS - 1).astype(np.intp) for side in (self.values, values))
        joint = np.bincount(first * _BINS + second, minlength=_BINS**2).reshape(_BINS, _BINS)
        together = _entropy(joint)
        apart = _entropy(joint.sum(axis=0)) + _entropy(joint.sum(axis=1))
        return max(apart / together, 1.0) if together else 1.0, overlap

    def climb(self, start: Any, seed: int, along_lines: bool = False) -> Any:
        """Follow the mutual information uphill, to a transform of the type of ``start``.

        Searching ``along_lines`` takes longer, and gets through the narrow valleys of affine maps.
        """
        import SimpleITK

        method = SimpleITK.ImageRegistrationMethod()
        method.SetNumberOfWorkUnits(1)  # sums over several threads would differ from run to run
        method.SetInterpolator(SimpleITK.sitkLinear)
        method.SetMetricAsMattesMutualInformation(_BINS)
        voxels = self.fixed.GetNumberOfPixels()
        if self.fixed_mask is not None:
            method.SetMetricFixedMask(self.fixed_mask)
            voxels *= np.mean(SimpleITK.GetArrayViewFromImage(self.fixed_mask))
        if self.moving_mask is not None:
            method.SetMetricMovingMask(self.moving_mask)
        method.SetMetricSamplingStrategy(method.REGULAR)  # each sample moved a little, at random
        method.SetMetricSamplingPercentage(min(1.0, _SAMPLES / voxels), seed + 1)  # 0 stands for the clock
        method.SetOptimizerScalesFromPhysicalShift()
        step = min(self.fixed.GetSpacing())
        if along_lines:
            method.SetOptimizerAsConjugateGradientLineSearch(
                learningRate=1.0,
                numberOfIterations=_ITERATIONS,
                lineSearchMaximumIterations=10,
                maximumStepSizeInPhysicalUnits=step,
            )
        else:
            method.SetOptimizerAsRegularStepGradientDescent(
                learningRate=1.0,
                minStep=_SHORTEST_STEP,
                numberOfIterations=_ITERATIONS,
                relaxationFactor=0.8,
                estimateLearningRate=method.EachIteration,  # or a step near the best could be of any size
                maximumStepSizeInPhysicalUnits=step,
            )
        end = type(start)(start)
        method.SetInitialTransform(end, inPlace=True)
        try:
            method.Execute(self.fixed, self.moving)
        except RuntimeError:  # too few of the samples meet moving
            return start
        return end


def _entropy(counts: np.ndarray) -> float:
    """Entropy of what was counted, with Miller's correction, or the fewer the samples the more they would share."""
    counts = counts[counts > 0]
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum() + (len(share) - 1) / (2 * counts.sum()))


def _read(image: SimpleITK.Image, points: np.ndarray, order: int = 1) -> np.ndarray:
    """An image at world points (N, D), NaN beyond the outer edges of its voxels."""
    import SimpleITK

    sizes, affine = image.GetSize(), _affine(image)
    voxels = (points - affine[:-1, -1]) @ np.linalg.inv(affine[:-1, :-1]).T  # (N, D)
    inside = ((voxels >= -0.5) & (voxels <= np.array(sizes) - 0.5)).all(axis=1)
    array = SimpleITK.GetArrayViewFromImage(image).T
    values = ndimage.map_coordinates(array, voxels.T, order=order, mode="nearest", output=np.float64)
    return np.where(inside, values, np.nan)


def _affine(image: SimpleITK.Image) -> np.ndarray:
    dims = image.GetDimension()
    affine = np.eye(dims + 1)
    affine[:-1, :-1] = np.reshape(image.GetDirection(), (dims, dims)) * image.GetSpacing()
    affine[:-1, -1] = image.GetOrigin()
    return affine


def _levels(
    fixed: SimpleITK.Image,
    moving: SimpleITK.Image,
    fixed_mask: SimpleITK.Image | None,
    moving_mask: SimpleITK.Image | None,
    seed: int,
) -> list[_Level]:
    import SimpleITK

    random = np.random.default_rng(seed)
    sizes, affine = fixed.GetSize(), _affine(fixed)
    volumes = [
        math.prod(image.GetSpacing())
        * (image.GetNumberOfPixels() if mask is None else SimpleITK.GetArrayViewFromImage(mask).sum())
        for image, mask in ((fixed, fixed_mask), (moving, moving_mask))
    ]
    if fixed_mask is None:
        flat = random.integers(math.prod(sizes), size=min(math.prod(sizes), _POINTS))
    else:
        flat = np.flatnonzero(SimpleITK.GetArrayFromImage(fixed_mask).T)
        flat = random.choice(flat, size=min(len(flat), _POINTS))
    voxels = np.stack(np.unravel_index(flat, sizes), axis=1) + random.uniform(-0.5, 0.5, (len(flat), len(sizes)))
    points = voxels @ affine[:-1, :-1].T + affine[:-1, -1]
    least = _LEAST_OVERLAP * min(1.0, volumes[1] / volumes[0])
    levels = []
    for first, second in zip(_pyramid(fixed), _pyramid(moving), strict=True):
        some = points[: first.GetNumberOfPixels()]
        values = _read(first, some)
        known = np.isfinite(values)  # shrinking may cost the last voxels of an axis
        levels.append(_Level(first, second, fixed_mask, moving_mask, some[known], values[known], least))
    return levels


def _theta(transform: Any) -> np.ndarray:
    """The matrix of a linear transform, (D+1, D+1)."""
    dims = transform.GetDimension()
    theta = np.eye(dims + 1)
    corners = np.array([transform.TransformPoint(corner) for corner in np.eye(dims + 1, dims, k=-1).tolist()])
    theta[:-1, -1] = corners[0]
    theta[:-1, :-1] = (corners[1:] - corners[0]).T
    return theta


def _centre(image: SimpleITK.Image) -> np.ndarray:
    """The middle of the field of view, world."""
    return np.array(image.TransformContinuousIndexToPhysicalPoint([(size - 1) / 2 for size in image.GetSize()]))


def _centre_of_mass(image: SimpleITK.Image) -> np.ndarray:
    """The middle of what differs from the background, dark or bright, which the border shows; world."""
    import SimpleITK

    array = SimpleITK.GetArrayFromImage(image).T
    border = np.concatenate([array.take((0, -1), axis=axis).ravel() for axis in range(array.ndim)])
    weight = np.abs(array - np.median(border))
    index = np.array([np.average(at, weights=weight) for at in np.indices(array.shape)])
    return np.array(image.TransformContinuousIndexToPhysicalPoint(index.tolist()))


def _pyramid(image: SimpleITK.Image) -> list[SimpleITK.Image]:
    """The image averaged over bins of about equal edges in mm, coarse to fine; thin axes stay as they are."""
    import SimpleITK

    sizes, edges = np.array(image.GetSize()), np.array(image.GetSpacing())
    finest = max((sizes * edges).max() / _LONGEST[len(sizes)], edges.min())
    bins = [np.clip(np.rint(scale * finest / edges), 1, np.maximum(sizes // _FEWEST, 1)) for scale in _SCALES]
    return [SimpleITK.BinShrink(image, size.astype(int).tolist()) for size in bins]


def _to_itk(name: str, image: ArrayLike | torch.Tensor, affine: ArrayLike | torch.Tensor) -> SimpleITK.Image:
    """The image, 0 to 1 between its first and 99th percentile. ITK's physical space stands for RAS here."""
    import SimpleITK

    array = _to_numpy(image).astype(np.float32)
    dims = array.ndim
    if dims not in _LONGEST or min(array.shape) < 2:
        raise ValueError(f"{name} must have 2 or 3 axes of at least 2 voxels, got the shape {array.shape}.")
    if not np.isfinite(array).all() or array.min() == array.max():
        raise ValueError(f"{name} must hold finite values, not all the same.")
    low, high = np.percentile(array, (1, 99))
    if low == high:
        low, high = array.min(), array.max()
    matrix = _to_numpy(affine).astype(np.float64)
    if matrix.shape != (dims + 1, dims + 1) or not np.isfinite(matrix).all() or np.linalg.det(matrix) == 0:
        raise ValueError(f"{name}_affine must be an invertible ({dims + 1}, {dims + 1}) matrix, got {matrix.tolist()}.")
    edges = np.linalg.norm(matrix[:-1, :-1], axis=0)
    result = SimpleITK.GetImageFromArray(np.clip((array - low) / (high - low), 0, 1).T)
    result.SetSpacing(edges.tolist())
    result.SetDirection((matrix[:-1, :-1] / edges).ravel().tolist())
    result.SetOrigin(matrix[:-1, -1].tolist())
    return result


def _mask_to_itk(name: str, mask: ArrayLike | torch.Tensor | None, image: SimpleITK.Image) -> SimpleITK.Image | None:
    import SimpleITK

    if mask is None:
        return None
    array = _to_numpy(mask).astype(bool)
    if array.shape != image.GetSize() or not array.any():
        raise ValueError(f"{name}_mask must have the shape {image.GetSize()} and not be empty, got {array.shape}.")
    result = SimpleITK.GetImageFromArray(array.astype(np.uint8).T)
    result.CopyInformation(image)
    return result


def _to_numpy(values: ArrayLike | torch.Tensor) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
