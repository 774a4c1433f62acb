"""From a case of a datalist to tensors, and from a predicted field to what is measured and written.

Dictionary transforms only: a pair travels as ``fixed_*`` and ``moving_*``. Landmarks travel in world coordinates (RAS,
mm) until :class:`LandmarksToVoxeld`, so any MONAI spatial transform that keeps the affine of its images moves them
along.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor, list_data_collate
from monai.transforms import MapTransform, RandomizableTransform, Transform
from torch import Tensor

from monai_jsm.data.errors import InputError
from monai_jsm.data.images import read_placed
from monai_jsm.data.landmarks import match_landmarks, read_landmarks
from monai_jsm.geometry import (
    carry_points,
    identity_grid,
    itk_displacement,
    jacobian_determinant,
    sample,
    voxel_to_world,
    warp,
    world_to_voxel,
)
from monai_jsm.losses import box_mean
from monai_jsm.metrics import UNITS, field_measures, label_measures, landmark_measures, target_registration_error
from monai_jsm.saliency import JointSaliencyBlock

__all__ = [
    "CarryLandmarksd",
    "ItkFieldd",
    "JacobianDeterminantd",
    "JointSaliencyd",
    "LandmarksToVoxeld",
    "LoadPaird",
    "MeasurePaird",
    "MovingOnFixedGridd",
    "RandSwapPaird",
    "RandWarpMovingd",
    "WarpOriginald",
    "WarpPaird",
    "collate_pairs",
    "lies_within",
    "pair_images",
    "pair_record",
    "voxels_across",
]

_IMAGES = ("fixed_image", "moving_image")
_LABELS = ("fixed_label", "moving_label")
_MASKS = ("fixed_mask", "moving_mask")
_LANDMARKS = ("fixed_landmarks", "moving_landmarks")


class LoadPaird(Transform):
    """Read the images, labels, masks and landmarks of a case.

    Images become (1, *S) float32 ``MetaTensor``, labels and masks (1, *S) of whole numbers; landmarks (N, D) float64,
    RAS, mm, matched by label, in the order of the fixed image, with ``landmark_labels`` their names joined by line
    feeds. A case without landmarks gets (0, D). The path of each file stays under ``<key>_path``.
    :func:`monai_jsm.data.check_cases` refuses what cannot be used; it runs before.

    Args:
        spatial_dims: 2 or 3; a 2D file may carry a third axis of one voxel.
    """

    def __init__(self, spatial_dims: int) -> None:
        self.spatial_dims = spatial_dims

    def _load(self, path: str, series: str) -> MetaTensor:
        array, affine = read_placed(path, self.spatial_dims, series)
        values = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None]
        return MetaTensor(values, affine=torch.from_numpy(affine), meta={"filename_or_obj": path})

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the case with the change."""
        d = dict(data)
        for key in (*_IMAGES, *_LABELS, *_MASKS):
            if isinstance(d.get(key), str):  # else a MetaTensor, loaded already
                series = d.get(key.replace("image", "series"), "") if key in _IMAGES else ""
                d[f"{key}_path"], d[key] = d[key], self._load(d[key], series)
        if "fixed_landmarks" not in d:
            d.update({key: torch.zeros(0, self.spatial_dims, dtype=torch.float64) for key in _LANDMARKS})
            d["landmark_labels"] = ""
            return d
        sets = [
            read_landmarks(d[key], d["landmark_space"], d[image].affine.numpy())
            for key, image in zip(_LANDMARKS, _IMAGES, strict=True)
        ]
        matched = match_landmarks(*sets)
        for key, landmarks in zip(_LANDMARKS, matched, strict=True):
            d[f"{key}_path"] = d[key]
            d[key] = torch.as_tensor(landmarks.positions, dtype=torch.float64)
        d["landmark_labels"] = "\n".join(matched[0].labels)
        return d


class MovingOnFixedGridd(Transform):
    """Resample the moving image, label and mask to the grid of the fixed image where the two grids differ.

    With ``theta``, a linear transform from the fixed image's world to the moving image's, (D+1, D+1), image and mask
    are pulled through it; the label is not, but gets a companion ``affine_label`` that is. Linear for the image,
    nearest for the mask, one-hot and linear for the label; beyond the moving image its border is repeated.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the case with the change."""
        d = dict(data)
        fixed, moving, theta = d["fixed_image"], d["moving_image"], d.get("theta")
        one_grid = fixed.shape == moving.shape and torch.allclose(fixed.affine, moving.affine, atol=1e-4)
        moves = theta is not None and not torch.equal(theta, torch.eye(len(theta)).to(theta))
        if not one_grid or moves:
            there = voxels_across(fixed, moving, None, theta)
            d["moving_image"] = _on_grid(_sampled(moving, there), fixed)
            if "moving_mask" in d:
                d["moving_mask"] = _on_grid(_sampled(d["moving_mask"], there, "nearest"), fixed)
        if "moving_label" in d:
            label = d["moving_label"]
            if not one_grid:
                d["moving_label"] = _on_grid(_sampled_label(label, voxels_across(fixed, moving, None, None)), fixed)
            if theta is not None:
                d["affine_label"] = _on_grid(_sampled_label(label, there), fixed) if moves else d["moving_label"]
        return d


class LandmarksToVoxeld(MapTransform):
    """Turn landmarks from world coordinates into voxels of the fixed image's grid, on which both images lie by now."""

    def __init__(self, keys: Sequence[str] = _LANDMARKS, refer_key: str = "fixed_image") -> None:
        super().__init__(keys)
        self.refer_key = refer_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the case with the change."""
        d = dict(data)
        for key in self.key_iterator(d):
            d[key] = world_to_voxel(d[key], d[self.refer_key].affine)
        return d


class WarpOriginald(Transform):
    """Add ``warped``: the moving image as it was read, pulled through the field in one interpolation, (1, *S).

    Expects ``pred``, the total field, ``moving_original``, a copy of the moving image on its own grid and in its own
    intensities, and perhaps ``moving_label_original``, from which ``warped_label`` comes, one-hot and linearly. Where
    the field leads more than half a voxel out of the moving image, ``warped`` has the smallest value of that image,
    ``warped_label`` is 0 and ``inside``, (1, *S), is False.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the case with the change."""
        d = dict(data)
        fixed, moving = d["fixed_image"], d["moving_original"]
        there = voxels_across(fixed, moving, _plain(d["pred"]), None)
        inside = lies_within(there, moving.shape[1:])
        d["inside"] = _on_grid(inside, fixed)
        d["warped"] = _on_grid(torch.where(inside, _sampled(moving, there), _plain(moving).min()), fixed)
        if "moving_label_original" in d:
            label = _sampled_label(d["moving_label_original"], there)
            d["warped_label"] = _on_grid(torch.where(inside, label, 0), fixed)
        return d


def voxels_across(fixed: MetaTensor, moving: MetaTensor, ddf: Tensor | None, theta: Tensor | None) -> Tensor:
    """Where every voxel of one image lies in another.

    Args:
        fixed: (1, *S).
        moving: (1, *M).
        ddf: (D, *S), voxels of ``fixed``; acts first.
        theta: (D+1, D+1), world of fixed to world of moving, RAS, mm; acts next.

    Returns:
        (1, D, *S) float64, voxels of ``moving``.
    """
    shape, dims = list(fixed.shape[1:]), fixed.dim() - 1
    at = identity_grid(shape, torch.zeros((), dtype=torch.float64))
    voxels = (at if ddf is None else at + ddf.to(at))[0].flatten(1).T  # (voxels, D)
    world = voxel_to_world(voxels, fixed.affine)
    if theta is not None:
        world = voxel_to_world(world, theta)  # a linear transform acts as an affine does
    return world_to_voxel(world, moving.affine).T.reshape(1, dims, *shape)


def lies_within(voxels: Tensor, shape: Sequence[int]) -> Tensor:
    """Whether voxels (1, D, *S) lie in an image of this shape, its outermost voxels whole; (1, *S)."""
    size = torch.tensor(list(shape), dtype=voxels.dtype).reshape(1, -1, *[1] * (voxels.dim() - 2))
    return ((voxels >= -0.5) & (voxels <= size - 0.5)).all(1)


def _sampled(image: Tensor, there: Tensor, mode: str = "bilinear") -> Tensor:
    """Read an image (1, *M) at voxels (1, D, *S) of its grid; (1, *S) of its own type."""
    return sample(_plain(image)[None].to(there), there, mode)[0].to(image.dtype)


def _sampled_label(label: Tensor, there: Tensor) -> Tensor:
    """Read a label (1, *M) one-hot and linearly; each voxel takes the strongest value, the lower of two equal ones."""
    values = _plain(label).unique()
    strongest = torch.full((1, *there.shape[2:]), -1.0, dtype=there.dtype)
    found = torch.empty_like(strongest, dtype=label.dtype)
    for value in values:  # one at a time: a brain has a hundred
        share = sample((_plain(label) == value)[None].to(there), there)[0]
        found, strongest = torch.where(share > strongest, value, found), torch.maximum(share, strongest)
    return found


class RandSwapPaird(RandomizableTransform):
    """Exchange fixed and moving, so that a network learns both directions."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the case with the change."""
        d = dict(data)
        self.randomize(None)
        if self._do_transform:
            for fixed, moving in (_IMAGES, _LABELS, _MASKS, _LANDMARKS):
                if fixed in d and moving in d:
                    d[fixed], d[moving] = d[moving], d[fixed]
        return d


class RandWarpMovingd(RandomizableTransform):
    """Pull the moving image through a random smooth field, so that a network meets large motion of every kind.

    The moving landmarks follow: a landmark at ``p`` goes to the ``q`` with ``q + v(q) = p``, found by fixed-point
    iteration. Labels and masks of the moving image follow by nearest neighbour.

    Args:
        prob: probability of warping a pair.
        max_displacement: the longest vector of a field is drawn uniformly from 0 to this, voxels.
        smoothness: range of the distance between independent vectors, voxels. Fields whose steepness would fold are
            made shorter until their steepest slope is 0.7.
    """

    def __init__(self, prob: float, max_displacement: float, smoothness: tuple[float, float]) -> None:
        RandomizableTransform.__init__(self, prob)
        self.max_displacement = max_displacement
        self.smoothness = smoothness

    def _field(self, shape: Sequence[int]) -> Tensor:
        """A random field, (1, D, *S), voxels."""
        step = self.R.uniform(*self.smoothness)
        coarse = [int(np.ceil(n / step)) + 3 for n in shape]
        noise = torch.as_tensor(self.R.standard_normal((1, len(shape), *coarse)), dtype=torch.float32)
        offset = torch.as_tensor(self.R.uniform(0, 1, len(shape)), dtype=torch.float32)
        at = identity_grid(list(shape), noise) / step + (1 + offset).reshape(1, -1, *[1] * len(shape))
        field = _box_smooth(sample(noise, at), int(step / 2) * 2 + 1)
        field = field / torch.linalg.vector_norm(field, dim=1).max() * self.R.uniform(0, self.max_displacement)
        slopes = torch.stack(torch.gradient(field, dim=list(range(2, field.dim()))))
        steepest = torch.linalg.vector_norm(slopes, dim=(0, 2)).max().item()
        return field * min(1.0, 0.7 / max(steepest, 1e-6))

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the case with the change."""
        d = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return d
        image = d["moving_image"]
        field = self._field(image.shape[1:])
        for key, mode in (("moving_image", "bilinear"), ("moving_label", "nearest"), ("moving_mask", "nearest")):
            if key in d:
                pulled = warp(_plain(d[key])[None].to(field), field, mode)[0].to(d[key].dtype)
                d[key] = _on_grid(pulled, image)
        if len(d.get("moving_landmarks", ())):
            target = world_to_voxel(d["moving_landmarks"], image.affine)
            found = target
            for _ in range(30):
                found = target - (carry_points(found[None], field)[0] - found)
            d["moving_landmarks"] = voxel_to_world(found, image.affine)
        return d


def _box_smooth(field: Tensor, window: int) -> Tensor:
    """Two passes of a moving average, the border repeated."""
    for _ in range(2):
        field = box_mean(field, window)
    return field


def collate_pairs(cases: Sequence[dict[str, Any]], pad: bool = False) -> dict[str, Any]:
    """Make a batch of cases that may differ in their number of landmarks and, for training, in size.

    Landmarks are padded with rows of NaN, which every measure leaves out.

    Args:
        cases: dictionaries with the same keys; images (C, *S), landmarks (N, D).
        pad: pad images, labels and masks at their far ends, by repeating the border, to the largest of the batch.

    Returns:
        One dictionary; images (B, C, *S), landmarks (B, N, D).

    Raises:
        InputError: if sizes differ and ``pad`` is off: what is measured and written must not hold padding.
    """
    cases = [dict(case) for case in cases]
    for key in (*_IMAGES, *_LABELS, *_MASKS):
        if key in cases[0]:
            shapes = [case[key].shape[1:] for case in cases]
            if len(set(shapes)) > 1 and not pad:
                raise InputError(
                    f"images of sizes {sorted(map(tuple, set(shapes)))} cannot share a batch; use batch size 1."
                )
            largest = np.max(shapes, axis=0)
            for case in cases:
                case[key] = _pad_far_end(case[key], largest)
    for key in _LANDMARKS:
        if key in cases[0]:
            longest = max(len(case[key]) for case in cases)
            for case in cases:
                missing = case[key].new_full((longest - len(case[key]), case[key].shape[1]), float("nan"))
                case[key] = torch.cat([case[key], missing])
    return list_data_collate(cases)


def _pad_far_end(image: Tensor, shape: np.ndarray) -> Tensor:
    widths = [n - have for n, have in zip(shape, image.shape[1:], strict=True)]
    if not any(widths):
        return image
    plain = image.as_tensor() if isinstance(image, MetaTensor) else image
    padding = [int(n) for width in reversed(widths) for n in (0, width)]
    padded = torch.nn.functional.pad(plain[None].float(), padding, mode="replicate")[0].to(plain.dtype)
    return MetaTensor(padded, meta=dict(image.meta)) if isinstance(image, MetaTensor) else padded


class WarpPaird(Transform):
    """Add ``warped_image`` and, where there are labels, ``warped_label``: moving pulled through the field.

    Labels are warped one-hot and linearly, and each voxel takes the strongest label; one whose original is kept is
    left to :class:`WarpOriginald`. Expects ``pred``, the ddf, (D, *S).
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the case with the change."""
        d = dict(data)
        ddf = _plain(d["pred"])[None]
        d["warped_image"] = _on_grid(warp(_plain(d["moving_image"])[None].to(ddf), ddf)[0], d["fixed_image"])
        if "moving_label" in d and "moving_label_original" not in d:
            there = identity_grid(list(ddf.shape[2:]), ddf) + ddf
            d["warped_label"] = _on_grid(_sampled_label(d["moving_label"], there), d["fixed_image"])
        return d


class JointSaliencyd(Transform):
    """Add ``joint_saliency`` and ``trust`` of the fixed image and the final warped one, each (1, *S), in [0, 1].

    Where ``inside`` is False, beyond the moving image, nothing corresponds: both are 0.
    """

    def __init__(self, spatial_dims: int) -> None:
        self.block = JointSaliencyBlock(spatial_dims)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the case with the change."""
        d = dict(data)
        warped = _plain(d["warped_image"])[None]
        with torch.no_grad():
            seen = self.block(_plain(d["fixed_image"])[None].to(warped), warped)
        inside = _plain(d["inside"]).to(warped) if "inside" in d else 1.0
        d["joint_saliency"] = _on_grid(seen.joint_saliency[0] * inside, d["fixed_image"])
        d["trust"] = _on_grid(seen.trust[0] * inside, d["fixed_image"])
        return d


class JacobianDeterminantd(Transform):
    """Add ``jacobian``, the determinant of the Jacobian of ``id + pred``, (1, *S)."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the case with the change."""
        d = dict(data)
        d["jacobian"] = _on_grid(jacobian_determinant(_plain(d["pred"])[None])[0], d["fixed_image"])
        return d


class ItkFieldd(Transform):
    """Add ``field``, the ddf as ITK, ANTs and Slicer hold it: (D, *S), mm, LPS."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the case with the change."""
        d = dict(data)
        d["field"] = _on_grid(itk_displacement(_plain(d["pred"])[None], d["fixed_image"].affine)[0], d["fixed_image"])
        return d


class CarryLandmarksd(Transform):
    """Push the fixed landmarks through the field and add the world coordinates of all three sets.

    ``carried_landmarks`` is (N, D), voxels; ``fixed_world``, ``moving_world``, ``carried_world`` and, with ``theta``,
    ``affine_world`` (carried by that alone) are (N, D), RAS, mm. Rows of NaN, which pad a batch, are dropped.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the case with the change."""
        d = dict(data)
        fixed, moving = (_plain(d[key]) for key in _LANDMARKS)
        there = ~torch.isnan(fixed).any(1)
        fixed, moving = fixed[there], moving[there]
        carried = fixed if len(fixed) == 0 else carry_points(fixed[None], _plain(d["pred"])[None])[0]
        affine = d["fixed_image"].affine
        d["carried_landmarks"] = carried
        for name, points in (("fixed_world", fixed), ("moving_world", moving), ("carried_world", carried)):
            d[name] = voxel_to_world(points, affine)
        if "theta" in d:
            d["affine_world"] = voxel_to_world(d["fixed_world"], d["theta"])
        return d


class MeasurePaird(Transform):
    """Add ``measures``, a dictionary of :data:`monai_jsm.metrics.UNITS`, the per-landmark errors, and ``case_error``.

    ``landmark_errors`` holds for each of :func:`~monai_jsm.metrics.landmark_measures`' names the errors, (N,).
    ``case_error`` is what :class:`~monai_jsm.metrics.CaseErrorMetric` takes. Runs after :class:`CarryLandmarksd` and
    :class:`WarpPaird`.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the case with the change."""
        d = dict(data)
        fixed_image = d["fixed_image"]
        spacing = _spacing(fixed_image)
        measures: dict[str, float] = {}
        when = {"before": "fixed_world", "affine": "affine_world", "after": "carried_world"}
        errors = {}
        for unit, turned in (("mm", lambda points: points), ("voxel", lambda p: world_to_voxel(p, fixed_image.affine))):
            for name, key in when.items():
                if key in d:
                    errors[f"{name}_{unit}"] = target_registration_error(
                        turned(d[key]), turned(d["moving_world"]), (1.0,) * len(spacing)
                    )
        d["landmark_errors"] = errors
        if len(d["fixed_world"]):
            measures.update(landmark_measures(errors))
        if "warped_label" in d and "fixed_label" in d:
            label = _plain(d["fixed_label"])
            for key, name in (("moving_label", "before"), ("affine_label", "affine"), ("warped_label", "after")):
                if key in d:
                    measures.update(label_measures(label, _plain(d[key]), spacing, name))
        jacobian = _plain(d["jacobian"]) if "jacobian" in d else jacobian_determinant(_plain(d["pred"])[None].double())
        d["measures"] = measures | field_measures(jacobian) | d.get("inverse_measures", {})
        both = torch.stack([_plain(d[key]).flatten().double() for key in ("fixed_image", "warped_image")])
        unexplained = 1 - torch.corrcoef(both)[0, 1].item() ** 2
        found = [measures.get(name) for name in ("tre_mean_after", "contour_distance_after")]
        kinds = [float("nan") if e is None else e if math.isfinite(e) else float("inf") for e in (*found, unexplained)]
        d["case_error"] = torch.tensor(kinds, dtype=torch.float64)
        return d


def pair_record(pair: Mapping[Hashable, Any]) -> dict[str, Any]:
    """What is told of one measured pair: its id, the files it came from, measures with units, landmarks.

    Args:
        pair: with ``id`` and what :class:`MeasurePaird` added.

    Returns:
        ``id``; ``inputs``, role to path; ``measures``, name to ``value`` and ``unit``; ``warnings``; ``landmarks``, a
        row each: ``label``, positions in the world (RAS, mm) and errors.
    """
    inputs = {str(key).removesuffix("_path"): path for key, path in pair.items() if str(key).endswith("_path")}
    measures = {name: {"value": value, "unit": UNITS[name]} for name, value in pair["measures"].items()}
    rows = len(pair["fixed_world"])
    columns = {"label": pair["landmark_labels"].split("\n") if rows else []}
    columns |= {side: pair[f"{side}_world"].tolist() for side in ("fixed", "moving", "carried")}
    columns |= {name: values.tolist() for name, values in pair["landmark_errors"].items()}
    landmarks = [{name: column[row] for name, column in columns.items()} for row in range(rows)]
    warnings = [line for line in pair.get("warnings", "").split("\n") if line]
    record = {"id": pair["id"], "inputs": inputs, "measures": measures, "warnings": warnings, "landmarks": landmarks}
    series = {f"{side}_image": pair[f"{side}_series"] for side in ("fixed", "moving") if f"{side}_series" in pair}
    record["series"] = series
    record["landmark_space"] = pair.get("landmark_space", "")
    if "theta" in pair:
        kind = pair["theta_kind"]
        record["theta"] = {"value": pair["theta"].tolist(), "unit": "mm, homogeneous coordinates", "kind": kind}
    return record


def pair_images(pair: Mapping[Hashable, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What is written of one registered pair: ``warped``, ``joint_saliency``, ``trust`` and ``jacobian``, each (*S).

    Also ``field`` (D, *S) and ``inverse_field`` (D, *M), mm, LPS. Each with its voxel-to-world matrix (RAS, mm).
    """
    maps = {name: pair[name][0] for name in ("warped", "joint_saliency", "trust", "jacobian")}
    fields = {name: pair[name] for name in ("field", "inverse_field")}
    return {
        name: (_plain(image).cpu().numpy(), pair[name].affine.cpu().numpy()) for name, image in (maps | fields).items()
    }


def _spacing(image: MetaTensor) -> tuple[float, ...]:
    dims = image.dim() - 1
    return tuple(torch.linalg.vector_norm(image.affine[:dims, :dims].double(), dim=0).tolist())


def _plain(image: Tensor) -> Tensor:
    return image.as_tensor() if isinstance(image, MetaTensor) else image


def _on_grid(values: Tensor, image: MetaTensor) -> MetaTensor:
    """Values on the grid of an image, with its affine and the name of its file."""
    return MetaTensor(values, meta=dict(image.meta))
