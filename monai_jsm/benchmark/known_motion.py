"""Pairs made of one image and a motion that is known everywhere, with landmarks and changes that it does not know.

``moving`` is the image ``A`` and ``fixed(x) = A(x + ddf(x))``, so a landmark ``p`` of fixed lies at ``p + ddf(p)`` in
moving. One of the two is then changed by what the motion does not know: a structure is painted into it, taken out of it
or magnified. Gain, bias field and noise differ too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage

from monai_jsm.geometry import carry_points, invert_points, jacobian_determinant
from monai_jsm.saliency import structure_tensor

__all__ = ["LESIONS", "STROKE_CHANGES", "WARP_FAMILIES", "KnownMotionPair", "draw_motion", "make_known_motion_pair"]

WARP_FAMILIES = ("noise", "bspline", "swirls")
LESIONS = ("cavity", "mass", "texture")
STROKE_CHANGES = ("fracture", "swelling")

_LEAST_JACOBIAN = 0.15
_BIAS = 0.15  # share of the signal by which a coil changes it at most
_NOISE = 0.015  # of an image whose tissue reaches 1
_APART = 3  # voxels between two landmarks, and between a landmark and an outlier, at least
_NEAR = 8.0  # voxels; a landmark as close to an outlier is counted as near it
_BORDER = 2.0  # voxels of the border without landmarks

_Array = NDArray[np.float64]
_Mask = NDArray[np.bool_]


class KnownMotionPair(NamedTuple):
    """One pair of a known motion.

    Attributes:
        fixed: (*S) float64, tissue up to about 1.
        moving: (*S), on the same grid.
        ddf: the truth, (D, *S), voxels, components in array-axis order.
        fixed_landmarks: (N, D), voxels, first voxel's centre at zero; none within 3 voxels of the outlier.
        moving_landmarks: the same landmarks in moving, (N, D).
        carrier: "fixed" or "moving", which image was changed; "" where none was.
        outlier: (*S), true where the carrier was changed by what the motion does not know, on the carrier's grid.
    """

    fixed: _Array
    moving: _Array
    ddf: _Array
    fixed_landmarks: _Array
    moving_landmarks: _Array
    carrier: str
    outlier: _Mask


def draw_motion(
    generator: np.random.Generator,
    shape: Sequence[int],
    spacing: Sequence[float],
    longest: tuple[float, float],
    family: str,
) -> _Array:
    """A random smooth motion that folds nowhere: its Jacobian determinant stays above 0.15.

    Widths are shares of the shortest edge of the image. A motion that folds is drawn again, its length too.

    - ``noise``: white noise smoothed by a Gaussian of 0.085 to 0.14, and finer noise, smoothed by 0.04, of 5 to 15 %
      of its length;
    - ``bspline``: cubic B-splines, control points at random 0.18 to 0.28 apart;
    - ``swirls``: five rotations one after the other, each about a random centre in a random coordinate plane, fading
      as a Gaussian of 0.1 to 0.2.

    Args:
        generator: is drawn from.
        shape: D voxels along each axis.
        spacing: D voxel edges in mm.
        longest: range from which the longest vector of the motion is drawn, mm.
        family: one of ``WARP_FAMILIES``.

    Returns:
        (D, *S), voxels, components in array-axis order.

    Raises:
        ValueError: if there is no such family, or none of 200 motions is free of folds.

    Example:
        >>> ddf = draw_motion(np.random.default_rng(0), (40, 50), (1.0, 2.0), (3.0, 3.0), "bspline")
        >>> ddf.shape, round(float(np.hypot(ddf[0], 2 * ddf[1]).max()), 6)
        ((2, 40, 50), 3.0)
    """
    if family not in WARP_FAMILIES:
        raise ValueError(f"family must be one of {WARP_FAMILIES}, got {family!r}.")
    edges = np.asarray(spacing, dtype=np.float64)
    draw = {"noise": _draw_noise, "bspline": _draw_bspline, "swirls": _draw_swirls}[family]
    trailing = (-1,) + (1,) * len(shape)
    for _ in range(200):
        motion = _scaled(draw(generator, tuple(shape), edges)) * generator.uniform(*longest)  # mm
        ddf = motion / edges.reshape(trailing)
        if jacobian_determinant(torch.from_numpy(ddf)[None]).min() > _LEAST_JACOBIAN:
            return ddf
    raise ValueError(f"motions of {longest} mm fold in an image of {tuple(shape)} voxels; ask for shorter ones.")


def make_known_motion_pair(
    image: _Array,
    spacing: Sequence[float],
    generator: np.random.Generator,
    longest: tuple[float, float],
    family: str,
    outlier: str = "",
    floor: float = 0.5,
    wanted: int = 12,
    points: _Array | None = None,
) -> KnownMotionPair:
    """Move one image by a motion drawn at random, and image it twice.

    Landmarks are the strongest corners of fixed (largest smallest eigenvalue of the structure tensor), more than 3
    voxels apart, and where there is an outlier the strongest within 8 voxels of it too, a third as many.

    Outliers of digits follow Morpho-MNIST: a ``fracture`` takes one to three pieces out of the stroke, across it; a
    ``swelling`` magnifies a disc around a point of the stroke, a point at the share q of its radius coming from q^3.
    A swelling is itself a motion, but one that ``ddf`` leaves out. Unlike there, strokes are not thinned to a skeleton:
    points are ridges of the distance to the background, and both are done at the resolution of the image. The other
    kinds, of any D, fill a lump: ``cavity`` with background, ``mass`` with bright tissue and ``texture`` with smooth
    noise.

    Args:
        image: (*S), intensities of tissue up to about 1, background 0.
        spacing: D voxel edges in mm.
        generator: is drawn from.
        longest: range of the longest vector of the motion, mm.
        family: one of ``WARP_FAMILIES``.
        outlier: one of ``LESIONS`` or ``STROKE_CHANGES`` (2D only); "" makes none.
        floor: intensity above which lie landmarks and the middle of outliers.
        wanted: number of landmarks anywhere; fewer where there is no room.
        points: landmarks of moving to take instead, (N, D), voxels; those that come from outside of the image are left
            out.

    Returns:
        The pair, see :class:`KnownMotionPair`.

    Raises:
        ValueError: if there is no such family or outlier, or the motion cannot be drawn.

    Reference:
        Castro, Tan, Kainz, Konukoglu, Glocker: Morpho-MNIST: quantitative assessment and diagnostics for representation
        learning. JMLR 20(178), 2019, 1-29. https://jmlr.org/papers/v20/19-033.html
    """
    if outlier not in ("", *LESIONS, *STROKE_CHANGES):
        raise ValueError(f"outlier must be one of {(*LESIONS, *STROKE_CHANGES)} or empty, got {outlier!r}.")
    ddf = draw_motion(generator, image.shape, spacing, longest, family)
    clean = ndimage.map_coordinates(image, np.indices(image.shape) + ddf, order=3, mode="nearest")
    sides = {"fixed": clean, "moving": image}
    carrier, mask = "", np.zeros(image.shape, dtype=bool)
    if outlier:
        carrier = ("fixed", "moving")[generator.integers(2)]
        change = _CHANGES.get(outlier)
        if change is not None:
            sides[carrier], mask = change(generator, sides[carrier])
        else:
            mask = _lump(generator, sides[carrier] > floor, np.asarray(spacing, dtype=np.float64))
            sides[carrier] = _painted(generator, sides[carrier], mask, outlier)
    there = np.indices(image.shape) + ddf
    usable = _inside(np.indices(image.shape), image.shape) & _inside(there, image.shape)
    off = np.full(image.shape, np.inf)
    if carrier:
        off = ndimage.distance_transform_edt(~mask)
        if carrier == "moving":
            off = ndimage.map_coordinates(off, there, order=1, mode="nearest")
        usable &= off > _APART
    if points is None:
        strength = _cornerness(clean, usable & (clean > floor))
        landmarks = np.concatenate([_strongest(strength, wanted), _strongest(strength * (off <= _NEAR), wanted // 3)])
        landmarks = np.unique(landmarks, axis=0).astype(np.float64)
    else:
        landmarks, error = (found[0].numpy() for found in invert_points(torch.from_numpy(points)[None], _batch(ddf)))
        inside = (error < 1e-3) & _inside(landmarks.T, image.shape)
        landmarks = landmarks[inside]
        landmarks = landmarks[usable[tuple(np.rint(landmarks).astype(int).T)]]
    carried = carry_points(torch.from_numpy(landmarks)[None], _batch(ddf))[0].numpy()
    fixed, moving = (_acquired(generator, sides[side], spacing) for side in ("fixed", "moving"))
    return KnownMotionPair(fixed, moving, ddf, landmarks, carried, carrier, mask)


def _batch(ddf: _Array) -> torch.Tensor:
    return torch.from_numpy(ddf)[None]


def _inside(points: NDArray[Any], shape: Sequence[int]) -> _Mask:
    """Whether points (D, ...) keep away from the border."""
    last = np.reshape(shape, (-1,) + (1,) * (points.ndim - 1)) - 1
    return np.logical_and.reduce((points >= _BORDER) & (points <= last - _BORDER), axis=0)


def _scaled(field: _Array) -> _Array:
    return field / np.linalg.norm(field, axis=0).max()


def _smooth_noise(generator: np.random.Generator, shape: tuple[int, ...], widths: _Array, channels: int) -> _Array:
    """Smoothed noise (channels, *S) whose longest vector is 1; widths in voxels, one an axis."""
    noise = generator.standard_normal((channels, *shape))
    return _scaled(np.stack([ndimage.gaussian_filter(channel, widths) for channel in noise]))


def _shortest(shape: tuple[int, ...], edges: _Array) -> float:
    return float((np.array(shape) * edges).min())


def _draw_noise(generator: np.random.Generator, shape: tuple[int, ...], edges: _Array) -> _Array:
    unit = _shortest(shape, edges) / edges  # voxels
    coarse = _smooth_noise(generator, shape, generator.uniform(0.085, 0.14) * unit, len(shape))
    return coarse + generator.uniform(0.05, 0.15) * _smooth_noise(generator, shape, 0.04 * unit, len(shape))


def _draw_bspline(generator: np.random.Generator, shape: tuple[int, ...], edges: _Array) -> _Array:
    step = generator.uniform(0.18, 0.28) * _shortest(shape, edges) / edges  # voxels
    counts = [int(np.ceil(n / width)) + 4 for n, width in zip(shape, step, strict=True)]
    control = generator.standard_normal((len(shape), *counts))
    start = 1 + generator.uniform(0, 1, len(shape))
    trailing = (-1,) + (1,) * len(shape)
    at = np.indices(shape) / step.reshape(trailing) + start.reshape(trailing)
    return np.stack([ndimage.map_coordinates(values, at, order=3, prefilter=False) for values in control])


def _draw_swirls(generator: np.random.Generator, shape: tuple[int, ...], edges: _Array) -> _Array:
    unit = _shortest(shape, edges)
    trailing = (-1,) + (1,) * len(shape)
    start = np.indices(shape) * edges.reshape(trailing)
    points = start.copy()  # mm
    for _ in range(5):
        centre = generator.uniform(0.2, 0.8, len(shape)) * shape * edges
        width = generator.uniform(0.1, 0.2) * unit
        i, j = sorted(generator.choice(len(shape), 2, replace=False).tolist())
        offset = points - centre.reshape(trailing)
        angle = generator.uniform(-1, 1) * np.exp(-0.5 * np.square(offset / width).sum(axis=0))
        points[i] += (np.cos(angle) - 1) * offset[i] - np.sin(angle) * offset[j]
        points[j] += np.sin(angle) * offset[i] + (np.cos(angle) - 1) * offset[j]
    return points - start


def _cornerness(image: _Array, mask: _Mask) -> _Array:
    """Smallest eigenvalue of the structure tensor where the mask is true, 0 elsewhere, (*S)."""
    tensor = structure_tensor(torch.from_numpy(image)[None, None], sigma=1.5, inner_sigma=1.0)[0]  # (D, D, *S)
    strength = np.zeros(image.shape)
    strength[mask] = torch.linalg.eigvalsh(tensor.movedim((0, 1), (-2, -1))[torch.from_numpy(mask)])[:, 0].numpy()
    return strength


def _strongest(strength: _Array, wanted: int) -> NDArray[np.intp]:
    """The voxels (N, D) of greatest strength above 0, the strongest first, none closer to another than allowed."""
    left = strength.copy()
    picked: list[tuple[np.intp, ...]] = []
    while len(picked) < wanted and left.max() > 0:
        voxel = np.unravel_index(left.argmax(), left.shape)
        picked.append(voxel)
        left[tuple(slice(max(i - _APART, 0), i + _APART + 1) for i in voxel)] = 0
    return np.array(picked, dtype=np.intp).reshape(-1, strength.ndim)


def _acquired(generator: np.random.Generator, image: _Array, spacing: Sequence[float]) -> _Array:
    edges = np.asarray(spacing, dtype=np.float64)
    widths = 0.25 * _shortest(image.shape, edges) / edges
    bias = 1 + _BIAS * _smooth_noise(generator, image.shape, widths, 1)[0]
    return image * generator.uniform(0.8, 1.25) * bias + _NOISE * generator.standard_normal(image.shape)


def _lump(generator: np.random.Generator, tissue: _Mask, edges: _Array) -> _Mask:
    """A closed shape of 6 to 12 % of the shortest edge in radius, whose middle lies inside of the tissue."""
    radius = generator.uniform(0.06, 0.12) * _shortest(tissue.shape, edges)
    depth = ndimage.distance_transform_edt(ndimage.binary_closing(tissue, iterations=2), sampling=edges)
    inside = np.argwhere(depth >= min(radius, 0.9 * depth.max()))
    centre = inside[generator.integers(len(inside))]
    trailing = (-1,) + (1,) * tissue.ndim
    distance = np.linalg.norm((np.indices(tissue.shape) - centre.reshape(trailing)) * edges.reshape(trailing), axis=0)
    wobble = _smooth_noise(generator, tissue.shape, 0.5 * radius / edges, 1)[0]
    lumps, _ = ndimage.label(distance < radius * (1 + 0.2 * wobble / wobble.std()))
    return lumps == lumps[tuple(centre)]


def _painted(generator: np.random.Generator, image: _Array, mask: _Mask, kind: str) -> _Array:
    soft = ndimage.gaussian_filter(mask.astype(np.float64), 0.8)
    if kind == "cavity":
        content = np.full(image.shape, generator.uniform(0.0, 0.1))
    elif kind == "mass":
        content = np.full(image.shape, generator.uniform(0.9, 1.1))
    else:
        texture = _smooth_noise(generator, image.shape, np.full(image.ndim, 1.5), 1)[0]
        content = np.clip(0.5 + 0.25 * texture / texture.std(), 0, 1)
    return image * (1 - soft) + content * soft


def _stroke(generator: np.random.Generator, image: _Array) -> tuple[_Mask, _Array, NDArray[np.intp]]:
    """Where the stroke is, the depth of its voxels, and the voxels of its middle in random order, (N, 2)."""
    stroke = image > 0.5
    depth = ndimage.distance_transform_edt(stroke)
    middle = np.argwhere((depth >= 1.5) & (depth == ndimage.maximum_filter(depth, size=3)))
    return stroke, depth, generator.permutation(middle)


def _fractured(generator: np.random.Generator, image: _Array) -> tuple[_Array, _Mask]:
    stroke, depth, middle = _stroke(generator, image)
    tensor = structure_tensor(torch.from_numpy(image)[None, None], sigma=2.5)[0].movedim((0, 1), (-2, -1))
    along = torch.linalg.eigh(tensor)[1][..., 0].numpy()  # unit vectors of least change, (*S, 2)
    offset = np.moveaxis(np.indices(image.shape), 0, -1)
    gaps = np.zeros(image.shape, dtype=bool)
    for centre in middle[: generator.integers(1, 4)]:
        direction = along[tuple(centre)]
        across = np.array([-direction[1], direction[0]])
        half = generator.uniform(1.5, 2.5)
        reach = depth[tuple(centre)] + 3
        gaps |= (np.abs((offset - centre) @ direction) <= half) & (np.abs((offset - centre) @ across) <= reach)
    gaps &= ndimage.binary_dilation(stroke, iterations=2)
    return image * (1 - ndimage.gaussian_filter(gaps.astype(np.float64), 0.6)), gaps


def _swollen(generator: np.random.Generator, image: _Array) -> tuple[_Array, _Mask]:
    _, _, middle = _stroke(generator, image)
    centre = middle[0].reshape(-1, 1, 1)
    radius = generator.uniform(6.0, 9.0)
    offset = np.indices(image.shape) - centre
    share = np.minimum(np.linalg.norm(offset, axis=0) / radius, 1.0)
    return ndimage.map_coordinates(image, centre + offset * share**2, order=1), share < 1


_CHANGES: dict[str, Callable[[np.random.Generator, _Array], tuple[_Array, _Mask]]] = {
    "fracture": _fractured,
    "swelling": _swollen,
}
