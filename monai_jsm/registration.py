"""The one path from a pair to a result: the bundle's inference, :func:`register` and the command line all walk it.

Affine pre-alignment, network, instance optimisation, total field, inverse, measures. A pair travels as a dictionary
(see :mod:`monai_jsm.transforms`), so that MONAI's workflows can drive the same pieces.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.inferers import Inferer
from monai.networks.layers import GaussianFilter
from monai.transforms import Compose, CopyItemsd, ScaleIntensityRangePercentilesd, ToDeviced, Transform
from monai.utils import convert_to_tensor
from torch import Tensor, nn

from monai_jsm.data.datalist import check_case
from monai_jsm.data.dicom import Series, find_series, is_dicom
from monai_jsm.data.dicom_objects import check_dicom_output, write_derived_series, write_registration_object
from monai_jsm.data.errors import InputError
from monai_jsm.data.fields import (
    FieldTransform,
    carry_world,
    carry_world_back,
    file_affine,
    read_transform,
    write_composite,
    write_field,
    write_fsl_warp,
    write_learn2reg,
)
from monai_jsm.data.images import PICTURE_SUFFIXES, SMALLEST_SIZE, Grid, check_label
from monai_jsm.data.landmarks import landmark_layout, read_landmarks, write_landmarks
from monai_jsm.data.preflight import check_memory, grid_warnings, needed_memory
from monai_jsm.data.progress import with_progress
from monai_jsm.data.results import (
    EXPORTS,
    check_folder,
    check_replaceable,
    clear_leftovers,
    is_finished,
    told_of,
    write_image,
    write_pairs_table,
    write_registration,
)
from monai_jsm.engines import PreparePair
from monai_jsm.geometry import (
    carry_points,
    compose_world,
    identity_grid,
    inverse_ddf,
    itk_displacement,
    voxel_to_world,
    world_to_voxel,
)
from monai_jsm.networks import GlobalToLocalNet, load_weights, released_weights
from monai_jsm.prealignment import find_theta
from monai_jsm.refinement import refine
from monai_jsm.report import write_report
from monai_jsm.transforms import (
    CarryLandmarksd,
    ItkFieldd,
    JacobianDeterminantd,
    JointSaliencyd,
    LandmarksToVoxeld,
    LoadPaird,
    MeasurePaird,
    MovingOnFixedGridd,
    WarpOriginald,
    WarpPaird,
    lies_within,
    pair_images,
    pair_record,
    voxels_across,
)

__all__ = [
    "AFFINE_CHOICES",
    "PairInferer",
    "PreAlignd",
    "RefineFieldd",
    "Registrar",
    "Registration",
    "TotalFieldd",
    "apply_transform",
    "carry_landmarks",
    "check_output",
    "evaluate_transform",
    "postprocessing",
    "preprocessing",
    "register",
    "register_pairs",
]

logger = logging.getLogger(__name__)

AFFINE_CHOICES = ("auto", "none")
_LONGEST = {2: 256, 3: 128}  # voxels that a network sees along an axis at most; it was trained on fewer
_ORIGINALS = {"moving_original": "moving_image", "moving_label_original": "moving_label"}
_FULL_RESOLUTION = {2: 2**18, 3: 2**19}  # voxels; a larger pair is refined at half resolution
Image = str | os.PathLike[str] | MetaTensor


class Preflightd(Transform):
    """Refuse a pair that needs more memory than there is; add ``warnings`` of unusual grids, joined by line feeds."""

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the case with the change."""
        d = dict(data)
        grids = [_grid(d[f"{side}_image"]) for side in ("fixed", "moving")]
        check_memory(str(d["id"]), *grids)
        warnings = grid_warnings(*grids)
        for side in ("fixed", "moving"):
            if str(d.get(f"{side}_image_path", "")).lower().endswith(PICTURE_SUFFIXES):
                warnings.append(
                    f"The {side} image is a picture: its millimetres come from a resolution tag and may be nominal."
                )
        d["warnings"] = "\n".join(warnings)
        return d


class PreAlignd(Transform):
    """Add ``theta``, the affine pre-alignment: (D+1, D+1) float64, world of fixed to world of moving, RAS, mm.

    ``theta_kind`` says whether it is an affine or rigid map or the identity, when nothing plainly helped.

    Args:
        affine: ``auto`` searches for it; ``none`` trusts the files' headers, and adds nothing.
        seed: of the search.

    Raises:
        ValueError: for another word.
    """

    def __init__(self, affine: str = "auto", seed: int = 0) -> None:
        if affine not in AFFINE_CHOICES:
            raise ValueError(f"affine must be one of {AFFINE_CHOICES}, got {affine!r}.")
        self.affine = affine
        self.seed = seed

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the case with the change."""
        d = dict(data)
        fixed, moving = d["fixed_image"], d["moving_image"]
        if self.affine == "none":
            _check_shared(d, moving)
            return d
        masks = [_array(d[key][0]) if key in d else None for key in ("fixed_mask", "moving_mask")]
        affines = _grid(fixed).affine, _grid(moving).affine
        found = find_theta(_array(fixed[0]), _array(moving[0]), *affines, masks[0], masks[1], self.seed)
        d["theta"], d["theta_kind"] = torch.as_tensor(found.theta, dtype=torch.float64), found.kind
        logger.info("%s: pre-alignment is %s. %s", d["id"], found.kind, found.note)
        _check_shared(d, moving)
        return d


def _check_shared(pair: Mapping[Hashable, Any], moving: MetaTensor) -> None:
    if not lies_within(voxels_across(pair["fixed_image"], moving, None, pair.get("theta")), moving.shape[1:]).any():
        raise InputError(
            f"{_name(pair, 'moving_image')}: shares no place in the world with {_name(pair, 'fixed_image')}; "
            "correct the headers, or let the affine pre-alignment search (--affine auto)."
        )


def _name(pair: Mapping[Hashable, Any], key: str) -> str:
    return pair.get(f"{key}_path") or f"the {key.replace('_', ' ')}"


class PairInferer(Inferer):
    """Run a registration network on a pair of any size.

    A pair larger than the network was trained for is smoothed and shrunk, so that motion stays within the network's
    reach; the field comes back on the grid of the pair, in its voxels.

    Args:
        longest: voxels that the network sees along an axis at most; by default 256 in 2D and 128 in 3D.
    """

    def __init__(self, longest: int | None = None) -> None:
        super().__init__()
        self.longest = longest

    def __call__(self, inputs: Tensor, network: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Predict a field.

        Args:
            inputs: (B, 2, *S), moving and fixed, intensities in [0, 1].
            network: takes ``inputs``, returns a ddf of the same size.
            *args: passed to the network.
            **kwargs: passed to the network.

        Returns:
            ddf, (B, D, *S), voxels.
        """
        shape = inputs.shape[2:]
        factor = max(shape) / (self.longest or _LONGEST[len(shape)])
        if factor <= 1:
            return network(inputs, *args, **kwargs)
        small = [max(min(SMALLEST_SIZE, n), round((n - 1) / factor) + 1) for n in shape]
        steps = inputs.new_tensor([(n - 1) / (m - 1) for n, m in zip(shape, small, strict=True)])
        smooth = GaussianFilter(len(shape), (0.35 * steps).tolist()).to(inputs)
        seen = smooth(inputs)
        ddf = network(_resized(seen, small), *args, **kwargs)
        return _resized(ddf, list(shape)) * steps.reshape(1, -1, *[1] * len(shape))


def _resized(image: Tensor, shape: Sequence[int]) -> Tensor:
    """The image on a grid of other size whose corner voxels have the same centres."""
    mode = {3: "linear", 4: "bilinear", 5: "trilinear"}[image.dim()]
    return F.interpolate(image, size=list(shape), mode=mode, align_corners=True)


class RefineFieldd(Transform):
    """Improve ``pred``, the network's field, for this very pair: see :func:`monai_jsm.refinement.refine`.

    Voxels outside of ``fixed_mask`` or ``moving_mask``, and those that lie beyond the moving image, weigh nothing.

    Args:
        device: where to work.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = device

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the case with the change."""
        d = dict(data)
        fixed, moving = (_array(d[f"{side}_image"])[None].to(self.device) for side in ("fixed", "moving"))
        ddf = torch.as_tensor(d["pred"])[None].to(fixed)
        weight = torch.ones_like(fixed)
        for key in ("fixed_mask", "moving_mask"):
            if key in d:
                weight = weight * (d[key].as_tensor()[None].to(fixed) > 0)
        if "moving_original" in d:
            there = voxels_across(d["fixed_image"], d["moving_original"], None, d.get("theta"))
            weight = weight * lies_within(there, d["moving_original"].shape[1:])[None].to(fixed)
        if not weight.any():
            named = next(key for key in ("moving_mask", "fixed_mask") if key in d)
            raise InputError(
                f"{_name(d, named)}: leaves no voxel of fixed to look at, with what else is masked or lies beyond "
                "moving; mark a region that both images show."
            )
        finest = 1 if fixed[0, 0].numel() <= _FULL_RESOLUTION[ddf.shape[1]] else 2
        spacing = np.linalg.norm(_grid(d["fixed_image"]).affine[:-1, :-1], axis=0).tolist()
        d["pred"] = refine(fixed, moving, ddf, weight, spacing=spacing, finest=finest)[0].cpu()
        return d


class TotalFieldd(Transform):
    """Turn ``pred`` into the total field: after it acts ``theta``, where there is one.

    A point of fixed at voxel x lies at ``fixed_affine @ (x + pred(x))`` in the world of moving.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the case with the change."""
        d = dict(data)
        d["pred"] = torch.as_tensor(d["pred"]).double()
        if "theta" in d:
            d["pred"] = compose_world(d["pred"][None], d["theta"], d["fixed_image"].affine)[0]
        return d


class InverseFieldd(Transform):
    """Add the inverse of the total field ``pred`` on the grid of the moving image, and how well it leads back.

    ``inverse`` is (D, *M), voxels of moving; ``inverse_field`` the same as ITK holds it, mm, LPS; ``inverse_measures``
    the mean, 95th percentile and maximum over voxels of fixed of the distance in mm between a point and itself, carried
    to moving and back. Points that leave moving are not counted.
    """

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return a copy of the case with the change."""
        d = dict(data)
        fixed, moving = d["fixed_image"], d["moving_original"]
        # float32 is twice as fast on large volumes and misses by less than a thousandth of a voxel
        inverse, _ = inverse_ddf(d["pred"][None].float(), fixed.affine, moving.affine, list(moving.shape[1:]))
        d["inverse"] = MetaTensor(inverse[0], affine=moving.affine)
        d["inverse_field"] = MetaTensor(itk_displacement(inverse, moving.affine)[0], affine=moving.affine)
        d["inverse_measures"] = _inverse_consistency(fixed, moving, d["pred"], inverse)
        return d


def _inverse_consistency(fixed: MetaTensor, moving: MetaTensor, ddf: Tensor, inverse: Tensor) -> dict[str, float]:
    """Measures of the distance between voxels of fixed and themselves, there and back; inverse is (1, D, *M)."""
    reached = voxels_across(fixed, moving, ddf, None)
    inside = lies_within(reached, moving.shape[1:]).flatten()
    there, world = reached[0].flatten(1).T[inside], voxel_to_world(_voxels(fixed), fixed.affine)[inside]
    back = voxel_to_world(carry_points(there[None], inverse)[0], moving.affine)
    return _distances(back, world)


def _voxels(image: MetaTensor) -> Tensor:
    """Voxels of an image's grid, (voxels, D) float64."""
    return identity_grid(list(image.shape[1:]), torch.zeros((), dtype=torch.float64))[0].flatten(1).T


def _distances(back: Tensor, start: Tensor) -> dict[str, float]:
    """Measures of inverse consistency from points carried there and back, (N, D), RAS, mm."""
    distance = torch.linalg.vector_norm(back - start, dim=-1)
    if not len(distance):
        return {}
    return {
        "inverse_consistency_mean": distance.mean().item(),
        "inverse_consistency_p95": float(np.percentile(distance.numpy(), 95)),
        "inverse_consistency_max": distance.max().item(),
    }


def preprocessing(spatial_dims: int, affine: str = "auto", seed: int = 0) -> Compose:
    """From a case to a pair on one grid, pre-aligned, intensities in [0, 1].

    Args:
        spatial_dims: D.
        affine: see :class:`PreAlignd`.
        seed: of the affine pre-alignment.
    """
    images = ["fixed_image", "moving_image"]
    return Compose(
        [
            LoadPaird(spatial_dims),
            Preflightd(),
            CopyItemsd(list(_ORIGINALS.values()), names=list(_ORIGINALS), allow_missing_keys=True),
            PreAlignd(affine, seed),
            MovingOnFixedGridd(),
            ScaleIntensityRangePercentilesd(images, lower=1, upper=99, b_min=0, b_max=1, clip=True),
            LandmarksToVoxeld(),
        ]
    )


def postprocessing(spatial_dims: int, refine: bool = True, device: str | torch.device = "cpu") -> Compose:
    """From the field of the network to all that is measured and written.

    Args:
        spatial_dims: D.
        refine: whether the field is improved for each pair by instance optimisation.
        device: of that; all else runs on the CPU.
    """
    return Compose(
        [
            *([RefineFieldd(device)] if refine else []),
            ToDeviced("pred", "cpu"),
            WarpPaird(),
            TotalFieldd(),
            WarpOriginald(),
            JointSaliencyd(spatial_dims),
            JacobianDeterminantd(),
            ItkFieldd(),
            InverseFieldd(),
            CarryLandmarksd(),
            MeasurePaird(),
        ]
    )


@dataclass(frozen=True, eq=False)
class Registration:
    """A registered pair.

    Attributes:
        ddf: total field, (D, *S), voxels of fixed: a point at voxel x of fixed lies at ``affine @ (x + ddf(x))`` in the
            world of moving. Its ``affine`` is that of fixed.
        inverse_ddf: its inverse, (D, *M), voxels of moving, on the grid of moving.
        theta: affine part that the field contains, (D+1, D+1), world of fixed to world of moving, RAS, mm.
        warped: the moving image on the grid of fixed, (1, *S), in its own intensities, one interpolation.
        joint_saliency: (1, *S), in [0, 1].
        trust: (1, *S), in [0, 1], near 0 where structure stands in one image only and beyond the moving image.
        jacobian: determinant of the Jacobian of the total field, (1, *S).
        metrics: what ``metrics.json`` holds: ``measures`` (name to value and unit), ``warnings``, ``inputs``,
            ``settings``.
        landmarks: a row a landmark: ``label``, positions in the world (RAS, mm), errors in mm and voxels.
    """

    ddf: MetaTensor
    inverse_ddf: MetaTensor
    theta: Tensor
    warped: MetaTensor
    joint_saliency: MetaTensor
    trust: MetaTensor
    jacobian: MetaTensor
    metrics: dict[str, Any]
    landmarks: list[dict[str, Any]]
    _pair: dict[Hashable, Any] = field(repr=False)

    def apply_image(self, image: Image, series: str = "") -> MetaTensor:
        """Pull another image that lies on moving (another contrast, a map) onto the grid of fixed, linearly.

        Args:
            image: file, or (1, *M) or (*M); it may have a grid of its own in the world of moving.
            series: UID of the DICOM series to read, where a folder holds several.

        Returns:
            (1, *S). Beyond the image: its smallest value.
        """
        return self._pulled(image, series, ())["warped"]

    def apply_label(self, label: Image) -> MetaTensor:
        """Pull a label that lies on moving onto the grid of fixed, one-hot and linearly.

        Args:
            label: file, or (1, *M) or (*M), whole numbers.

        Returns:
            (1, *S).
        """
        return self._pulled(label, "", ("moving_label_original",))["warped_label"]

    def _pulled(self, image: Image, series: str, also: Sequence[str]) -> dict[Hashable, Any]:
        pair: dict[Hashable, Any] = {"moving_image": _as_input(image), "moving_series": series}
        read = LoadPaird(self.ddf.shape[0])(pair)["moving_image"]
        pair = {"fixed_image": self._pair["fixed_image"], "pred": self.ddf}
        return WarpOriginald()(pair | dict.fromkeys(("moving_original", *also), read))

    def apply_points(
        self, points: Tensor | np.ndarray, frm: str = "fixed", to: str = "moving", space: str = "world"
    ) -> Tensor:
        """Carry points from one image to the other.

        Args:
            points: (N, D).
            frm: the image that the points lie on, ``fixed`` or ``moving``.
            to: the other one.
            space: ``world`` (RAS, mm) or ``voxel`` (of ``frm`` as they come, of ``to`` as they return).

        Returns:
            (N, D) float64.

        Raises:
            ValueError: if ``frm`` and ``to`` are not the two images or ``space`` is unknown, or if a point lies where
                the field says nothing.
        """
        if {frm, to} != {"fixed", "moving"} or space not in ("world", "voxel"):
            raise ValueError(
                "frm and to must be 'fixed' and 'moving', one each, and space 'world' or 'voxel', "
                f"got {frm!r}, {to!r} and {space!r}."
            )
        affines = {"fixed": self._pair["fixed_image"].affine, "moving": self._pair["moving_original"].affine}
        positions = torch.as_tensor(points, dtype=torch.float64)
        if positions.dim() != 2 or positions.shape[1] != len(self.ddf):
            raise ValueError(f"points must be (N, {len(self.ddf)}), got {tuple(positions.shape)}.")
        if space == "voxel":
            positions = voxel_to_world(positions, affines[frm])
        carry = carry_world if frm == "fixed" else carry_world_back
        carried, known = carry(positions, [_dense(self.ddf)])
        if not known.all():
            outside = torch.nonzero(~known).flatten().tolist()
            raise ValueError(f"the field says nothing at the points {outside[:5]}: they must lie within both images.")
        return carried if space == "world" else world_to_voxel(carried, affines[to])

    def save(
        self,
        folder: str | Path,
        formats: Sequence[str] = (),
        dicom_out: bool = False,
        report: bool = True,
    ) -> None:
        """Write the result; the folder is complete or absent.

        Args:
            folder: to be made; an older result of the same pair is replaced.
            formats: further formats of the field, of :data:`monai_jsm.data.results.EXPORTS`.
            dicom_out: also write the warped image as a DICOM series; both images must be DICOM series.
            report: also write ``report.html`` and its figures.

        Raises:
            InputError: if the folder cannot be replaced, or an image is no DICOM series where one is needed.
            ValueError: for an unknown format.
        """
        unknown = sorted(set(formats) - set(EXPORTS))
        if unknown:
            raise ValueError(f"formats must be of {sorted(EXPORTS)}, got {unknown}.")
        _check_volume(len(self.ddf), self._pair, formats, dicom_out)
        more: list[Callable[[Path], object]] = [partial(self._export, name) for name in formats]
        more.append(self._write_images_in_memory)
        if dicom_out:
            more.append(self._write_series)
        if report:
            more.append(write_report)
        write_registration(
            folder, {**self.metrics, "landmarks": self.landmarks}, pair_images(self._pair), self.metrics, more
        )

    def _export(self, name: str, folder: Path) -> None:
        path, vectors = folder / EXPORTS[name], self._pair["field"].as_tensor().numpy()
        affine, moving = (_full_affine(self._pair[key]) for key in ("fixed_image", "moving_original"))
        if name == "h5":
            write_composite(path, vectors, self.theta.numpy(), affine)
        elif name == "fsl":
            write_fsl_warp(path, vectors, affine, moving, tuple(self._pair["moving_original"].shape[1:]))
        elif name == "learn2reg":
            write_learn2reg(path, vectors, affine, moving)
        elif name == "dicom":
            write_registration_object(path, vectors, affine, *_both_series(self._pair))
        else:
            write_field(path, vectors, affine)

    def _write_images_in_memory(self, folder: Path) -> None:
        for key in ("fixed_image", "moving_image"):
            if f"{key}_bytes" in self._pair:
                (folder / f"{key}.nii").write_bytes(self._pair[f"{key}_bytes"])

    def _write_series(self, folder: Path) -> None:
        write_derived_series(
            folder / "dicom",
            _array(self.warped[0]).numpy(),
            _full_affine(self._pair["fixed_image"]),
            *_both_series(self._pair),
        )


def _both_series(case: Mapping[Any, Any]) -> tuple[Series, Series]:
    """The DICOM series of fixed and of moving, by the case as it was given or as it was loaded."""
    found = []
    for side in ("fixed", "moving"):
        path = case.get(f"{side}_image_path") or case[f"{side}_image"]
        if not isinstance(path, str) or not (Path(path).is_dir() or is_dicom(Path(path))):
            raise InputError(
                f"{path if isinstance(path, str) else f'the {side} image'}: is no DICOM series, which DICOM output "
                "refers to; give both images as DICOM series or leave DICOM output out."
            )
        found.append(find_series(path, case.get(f"{side}_series", "")))
    return found[0], found[1]


def check_output(
    folder: str | Path, case: Mapping[str, Any], formats: Sequence[str] = (), dicom_out: bool = False
) -> None:
    """Refuse what :meth:`Registration.save` would refuse, before any time is spent on registering.

    Args:
        folder: of the result.
        case: see :class:`Registrar`.
        formats: see :meth:`Registration.save`.
        dicom_out: see :meth:`Registration.save`.

    Raises:
        InputError: if the folder cannot be replaced, an image is no DICOM series where one is needed, or a format is
            asked for that has no place for 2D fields.
    """
    check_replaceable(folder, case)
    if dicom_out or "dicom" in formats:
        check_dicom_output(*_both_series(case), derived=dicom_out)
    if dicom_out or _VOLUMES_ONLY & {*formats}:
        _check_volume(check_case(case), case, formats, dicom_out)


_VOLUMES_ONLY = {"fsl", "learn2reg", "dicom"}


def _check_volume(spatial_dims: int, case: Mapping[Any, Any], formats: Sequence[str], dicom_out: bool) -> None:
    asked = sorted(_VOLUMES_ONLY & {*formats, *(["dicom"] if dicom_out else [])})
    if asked and spatial_dims == 2:
        named = case.get("fixed_image_path") or case["fixed_image"]
        named = named if isinstance(named, str) else "the fixed image"
        raise InputError(f"{named}: is a 2D image, for which {asked[0]} has no form; leave that output out.")


def _dense(ddf: MetaTensor) -> FieldTransform:
    """The total field as a transform of the world: displacement (D, *S), RAS, mm."""
    dims = len(ddf)
    affine = torch.as_tensor(_full_affine(ddf))
    kept = [*range(dims), 3]
    affine = affine[kept][:, kept]
    return FieldTransform(torch.einsum("rc,c...->r...", affine[:-1, :-1], ddf.as_tensor().double()), affine)


def _full_affine(image: MetaTensor) -> np.ndarray:
    return file_affine(image.affine.numpy(), image.dim() - 1)


def _grid(image: MetaTensor) -> Grid:
    """Grid of an image (1, *S)."""
    dims = image.dim() - 1
    kept = [*range(dims), -1]
    return Grid(tuple(image.shape[1:]), image.affine.numpy().astype(np.float64)[np.ix_(kept, kept)])


def _nifti_bytes(image: MetaTensor) -> bytes:
    return nib.Nifti1Image(_array(image[0]).numpy(), _full_affine(image)).to_bytes()


def _array(image: Tensor) -> Tensor:
    """The bare values."""
    return convert_to_tensor(image, track_meta=False)


def _as_input(image: Image) -> str | MetaTensor:
    """The absolute path, or the image in memory with its channel, (1, *S) float32."""
    if isinstance(image, (str, os.PathLike)):
        return os.path.abspath(image)
    if not isinstance(image, MetaTensor):
        raise ValueError("an image in memory must be a MetaTensor: its affine says where it lies.")
    values = image.as_tensor()
    values = values if values.dim() in (3, 4) and len(values) == 1 else values[None]
    return MetaTensor(values.float().cpu(), meta=dict(image.meta))


@dataclass
class Registrar:
    """How pairs are registered; call it with one pair after another.

    Attributes:
        affine: see :class:`PreAlignd`.
        refine: whether instance optimisation improves the network's field.
        weights: of a :class:`~monai_jsm.networks.GlobalToLocalNet`; by default the released ones. Where none are
            released for the number of axes, instance optimisation starts from the affine pre-alignment alone.
        device: of the network and of the optimisation; by default CUDA where it is.
        seed: of the affine pre-alignment.
    """

    affine: str = "auto"
    refine: bool = True
    weights: str | Path | None = None
    device: str | torch.device | None = None
    seed: int = 0
    _networks: dict[int, nn.Module | None] = field(default_factory=dict, init=False, repr=False)

    def told(self, spatial_dims: int) -> dict[str, Any]:
        """What decides the result of a pair of so many axes, as ``metrics.json`` tells it."""
        weights = self._weights(spatial_dims)
        network = "none" if weights is None else "GlobalToLocalNet"
        settings = {"affine": self.affine, "refine": self.refine, "network": network}
        return {"settings": settings, **told_of(self.seed, weights)}

    def __call__(self, case: Mapping[str, Any]) -> Registration:
        """Register one pair.

        Args:
            case: as in a datalist (``id``, ``fixed_image``, ``moving_image``, labels, masks, landmarks, and
                ``landmark_space``, ``fixed_series``, ``moving_series``), images also as MetaTensor.

        Returns:
            The result; nothing is written.

        Raises:
            InputError: if a file or an image cannot be used, memory does not suffice, or there is neither a network nor
                refinement.
        """
        started = time.monotonic()
        spatial_dims = check_case(case)
        device = self._device()
        self._network(spatial_dims, device)  # what it refuses, it refuses before any image is read
        steps: list[Callable[[Any], Any]] = [
            *preprocessing(spatial_dims, self.affine, self.seed).transforms,
            self.find_field,
            *postprocessing(spatial_dims, refine=False).transforms,
        ]
        pair: dict[Any, Any] = dict(case)
        for step in with_progress(steps, f"registering {case['id']}"):
            pair = step(pair)
        return self._result(case, pair, time.monotonic() - started)

    def find_field(self, pair: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Find the field of a pair that :func:`preprocessing` prepared: network, then instance optimisation.

        Args:
            pair: on one grid, pre-aligned, intensities in [0, 1].

        Returns:
            The pair with ``pred``, (D, *S), voxels; the affine pre-alignment is not yet in it.
        """
        device = self._device()
        network = self._network(pair["fixed_image"].dim() - 1, device)
        found: dict[Hashable, Any] = dict(pair)
        found.update(_predicted(pair, network, device))
        return RefineFieldd(device)(found) if self.refine else found

    def _device(self) -> torch.device:
        return torch.device(self.device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def _network(self, spatial_dims: int, device: torch.device) -> nn.Module | None:
        if spatial_dims not in self._networks:
            path = self._weights(spatial_dims)
            if path is None and not self.refine:
                raise InputError(
                    f"no weights are released for {spatial_dims}D images; leave --no-refine out or give --weights."
                )
            self._networks[spatial_dims] = (
                None if path is None else load_weights(GlobalToLocalNet(spatial_dims), path).to(device).eval()
            )
        return self._networks[spatial_dims]

    def _weights(self, spatial_dims: int) -> str | Path | None:
        return released_weights(spatial_dims) if self.weights is None else self.weights

    def _result(self, case: Mapping[str, Any], pair: dict[Hashable, Any], seconds: float) -> Registration:
        dims = len(pair["pred"])
        record = pair_record(pair)
        landmarks = record.pop("landmarks")
        for key, image in case.items():
            if isinstance(image, MetaTensor):
                content = _nifti_bytes(image)
                record["inputs"][key] = {"path": "in memory", "sha256": hashlib.sha256(content).hexdigest()}
                if key.endswith("image"):  # saved with the result, so that its report can be built again
                    pair[f"{key}_bytes"] = content
                    record["inputs"][key]["path"] = f"{key}.nii"
        needed = needed_memory(_grid(pair["fixed_image"]), _grid(pair["moving_original"]))
        record |= {
            **self.told(dims),
            "memory_estimate": {"value": round(needed / 2**30, 2), "unit": "GiB"},
            "seconds": {"value": round(seconds, 2), "unit": "s"},
        }
        fixed = pair["fixed_image"]
        return Registration(
            ddf=MetaTensor(pair["pred"], affine=fixed.affine),
            inverse_ddf=pair["inverse"],
            theta=pair.get("theta", torch.eye(dims + 1, dtype=torch.float64)),
            **{name: pair[name] for name in ("warped", "joint_saliency", "trust", "jacobian")},
            metrics=record,
            landmarks=landmarks,
            _pair=pair,
        )


def _predicted(pair: Mapping[Hashable, Any], network: nn.Module | None, device: torch.device) -> dict[str, Any]:
    """``pred``, the network's field, (D, *S); zero, with a warning, without a network."""
    fixed = pair["fixed_image"].as_tensor()
    if network is None:
        dims = fixed.dim() - 1
        told = f"No network is released for {dims}D images: the field is that of refinement alone."
        return {"pred": torch.zeros(dims, *fixed.shape[1:]), "warnings": f"{pair['warnings']}\n{told}"}
    batch = {key: pair[key].as_tensor()[None] for key in ("moving_image", "fixed_image")}
    image = PreparePair()(batch, device)[0]
    with torch.no_grad():
        return {"pred": PairInferer()(image, network)[0].cpu()}


def register(
    fixed: Image,
    moving: Image,
    *,
    fixed_landmarks: str | os.PathLike[str] | None = None,
    moving_landmarks: str | os.PathLike[str] | None = None,
    landmark_space: str = "",
    fixed_label: Image | None = None,
    moving_label: Image | None = None,
    fixed_mask: Image | None = None,
    moving_mask: Image | None = None,
    fixed_series: str = "",
    moving_series: str = "",
    affine: str = "auto",
    refine: bool = True,
    weights: str | Path | None = None,
    device: str | torch.device | None = None,
    seed: int = 0,
    name: str = "pair",
) -> Registration:
    """Register one image onto another: the moving image onto the fixed one, which stays.

    Args:
        fixed: file, DICOM folder or MetaTensor (*S) or (1, *S) of the image that stays, 2D or 3D, at least 16 voxels
            along every axis.
        moving: of the image that is brought onto it; its grid may differ.
        fixed_landmarks: file of landmarks of the fixed image, see :mod:`monai_jsm.data.landmarks`.
        moving_landmarks: the same landmarks in the moving image.
        landmark_space: frame of landmark files that do not say it: ``lps`` or ``ras`` (mm), ``voxel0`` or ``voxel1``.
        fixed_label: segmentation on the grid of the fixed image, for overlap measures; never used to register.
        moving_label: that of the moving image.
        fixed_mask: where to look in the fixed image; the rest weighs nothing in alignment and refinement.
        moving_mask: where to look in the moving image.
        fixed_series: UID of the DICOM series, where the folder of the fixed image holds several.
        moving_series: that of the moving image.
        affine: ``auto`` searches for an affine pre-alignment, ``none`` trusts the headers.
        refine: whether instance optimisation improves the field of the network.
        weights: see :class:`Registrar`.
        device: see :class:`Registrar`.
        seed: of the affine pre-alignment.
        name: identifies the pair in its results.

    Returns:
        The result; :meth:`Registration.save` writes it.

    Raises:
        InputError: if an input cannot be used.

    Example:
        >>> from monai_jsm.data import make_pair
        >>> from monai.data import MetaTensor
        >>> pair = make_pair(spatial_dims=2, seed=0)
        >>> fixed, moving = MetaTensor(pair.fixed), MetaTensor(pair.moving)
        >>> result = register(fixed, moving, affine="none", refine=False)
        >>> result.apply_points([[40.0, 30.0]], frm="fixed", to="moving", space="voxel").shape
        torch.Size([1, 2])
    """
    images = {
        "fixed_image": fixed,
        "moving_image": moving,
        "fixed_label": fixed_label,
        "moving_label": moving_label,
        "fixed_mask": fixed_mask,
        "moving_mask": moving_mask,
    }
    texts = {
        "fixed_landmarks": fixed_landmarks and os.path.abspath(fixed_landmarks),
        "moving_landmarks": moving_landmarks and os.path.abspath(moving_landmarks),
        "fixed_series": fixed_series,
        "moving_series": moving_series,
    }
    case: dict[str, Any] = {"id": name, "landmark_space": landmark_space}
    case |= {key: text for key, text in texts.items() if text}
    case |= {key: _as_input(image) for key, image in images.items() if image is not None}
    return Registrar(affine, refine, weights, device, seed)(case)


def register_pairs(
    cases: Sequence[Mapping[str, Any]],
    output: str | Path,
    registrar: Registrar,
    formats: Sequence[str] = (),
    dicom_out: bool = False,
) -> dict[str, str]:
    """Register many pairs, each into a folder of its own; those that are done already are left as they are.

    A pair is done if ``output/ID`` holds a result of the same inputs, by their hashes, and the same settings. A pair
    that fails does not stop the others. ``output/pairs.csv`` lists all with their state and measures.

    Args:
        cases: see :class:`Registrar`.
        output: folder of the folders, made if it is absent.
        registrar: how.
        formats: see :meth:`Registration.save`.
        dicom_out: see :meth:`Registration.save`.

    Returns:
        What is wrong with each pair that failed, by its id.
    """
    check_folder(output)
    output = Path(output)
    more_files = [*(EXPORTS[name] for name in formats), *(["dicom"] if dicom_out else [])]
    failed: dict[str, str] = {}
    for case in with_progress(cases, "registering pairs"):
        folder = output / case["id"]
        clear_leftovers(folder)
        try:
            if is_finished(folder, case, registrar.told(check_case(case)), more_files):
                logger.info("%s: done already.", case["id"])
            else:
                check_output(folder, case, formats, dicom_out)
                registrar(case).save(folder, formats, dicom_out)
        except InputError as error:
            failed[case["id"]] = str(error)
        except Exception as error:  # whatever befalls one pair, the others are still to be done
            logger.exception("%s: failed.", case["id"])
            failed[case["id"]] = f"{type(error).__name__}: {error}"
    write_pairs_table(output, [case["id"] for case in cases], failed)
    return failed


def apply_transform(
    paths: Sequence[str | Path],
    source: str | Path,
    reference: str | Path,
    output: str | Path,
    label: bool = False,
    inverse: bool = False,
    series: str = "",
    reference_series: str = "",
) -> None:
    """Pull an image through saved transforms onto the grid of another one, and write it.

    Args:
        paths: of the transforms, in the order in which a point of the fixed image runs through them; see
            :func:`monai_jsm.data.fields.read_transform`.
        source: image to pull: the moving one, or with ``inverse`` the fixed one.
        reference: image whose grid the output has: the fixed one, or with ``inverse`` the moving one.
        output: file to write, ``.nii``, ``.nii.gz``, ``.mha`` or ``.nrrd``.
        label: whether the image holds labels, to be pulled one-hot and linearly; else linearly.
        inverse: go from the moving to the fixed image.
        series: UID of the DICOM series of the source, where a folder holds several.
        reference_series: that of the reference.

    Raises:
        InputError: if a file cannot be used.
    """
    _check_not_an_input(output, [*paths, source, reference])
    parts = read_transform(paths)
    dims = parts[0].spatial_dims
    image, grid = _read(source, dims, series), _read(reference, dims, reference_series)
    if label:
        check_label(source, dims, _grid(image))
    elif not torch.isfinite(image).all():
        raise InputError(f"{source}: holds NaN or infinite voxels; replace them with the background value.")
    shape, voxels = grid.shape[1:], _voxels(grid)
    carried, known = (carry_world_back if inverse else carry_world)(voxel_to_world(voxels, grid.affine), parts)
    ddf = (world_to_voxel(carried, grid.affine) - voxels).T.reshape(dims, *shape)
    pair: dict[Hashable, Any] = {"fixed_image": grid, "moving_original": image, "pred": ddf}
    pulled = WarpOriginald()(pair | ({"moving_label_original": image} if label else {}))
    lost = 100 * (~known).double().mean().item()
    if lost:
        logger.warning("%.2g %% of the output lies where the transform says nothing: background there.", lost)
    background = torch.zeros(()) if label else _array(image).min()
    values = _array(pulled["warped_label" if label else "warped"][0])
    written = torch.where(known.reshape(shape), values, background).numpy()
    write_image(output, written.astype(np.int32) if label else written, _full_affine(grid))


def _check_not_an_input(output: str | Path, inputs: Sequence[str | Path]) -> None:
    there = Path(output).resolve()
    if any(Path(path).resolve() in (there, there.parent) for path in inputs):
        raise InputError(f"{output}: is one of the files that the command reads; give another file for the output.")


def _read(path: str | Path, spatial_dims: int, series: str) -> MetaTensor:
    read = LoadPaird(spatial_dims)({"moving_image": str(path), "moving_series": series})
    return read["moving_image"]


def evaluate_transform(
    paths: Sequence[str | Path], case: Mapping[Any, Any], inverse_paths: Sequence[str | Path] = ()
) -> dict[str, Any]:
    """Measure saved transforms, whoever wrote them, on a pair of images.

    Args:
        paths: of the transforms, as :func:`apply_transform` takes them.
        case: as in a datalist: ``id``, ``fixed_image``, ``moving_image``, and what there is of labels and landmarks.
        inverse_paths: of transforms from moving to fixed, in the order in which a point of moving runs through them;
            left out, the inverse is computed.

    Returns:
        What :func:`monai_jsm.transforms.pair_record` tells of a pair: measures with units, warnings, landmarks.

    Raises:
        InputError: if a file cannot be used, or a landmark lies where the transforms say nothing.
    """
    parts, back = read_transform(paths), read_transform(inverse_paths) if inverse_paths else ()
    dims = parts[0].spatial_dims
    check_case(case, dims)
    pair = LoadPaird(dims)(case)
    pair["warnings"] = "\n".join(grid_warnings(_grid(pair["fixed_image"]), _grid(pair["moving_image"])))
    copied = {name: pair[key] for name, key in _ORIGINALS.items() if key in pair}
    pair = MovingOnFixedGridd()(pair | copied)
    fixed = pair["fixed_image"]
    shape, voxels = fixed.shape[1:], _voxels(fixed)
    world = voxel_to_world(voxels, fixed.affine)
    there, known = carry_world(world, parts)
    pair["pred"] = (world_to_voxel(there, fixed.affine) - voxels).T.reshape(dims, *shape)
    if not known.all():
        lost = 100 * (~known).double().mean().item()
        pair["warnings"] += f"\nThe transforms say nothing in {lost:.1f} % of the fixed image: extrapolated there."
    carried, reached = carry_world(pair["fixed_landmarks"], parts)
    if not reached.all():
        names = [name for name, ok in zip(pair["landmark_labels"].split("\n"), reached.tolist(), strict=True) if not ok]
        raise InputError(
            f"{paths[0]}: says nothing at the landmarks {', '.join(names[:5])}; "
            "give a field that covers them or remove them."
        )
    pair |= {"fixed_world": pair["fixed_landmarks"], "moving_world": pair["moving_landmarks"], "carried_world": carried}
    pair = WarpOriginald()(pair)
    pair["warped_image"] = pair["warped"]
    if back:
        there_and_back, whole = carry_world(there, back)
        pair["inverse_measures"] = _distances(there_and_back[known & whole], world[known & whole])
    else:
        pair = InverseFieldd()(pair)
    return pair_record(MeasurePaird()(pair))


def carry_landmarks(
    paths: Sequence[str | Path],
    source: str | Path,
    output: str | Path,
    inverse: bool = False,
    space: str = "",
    source_image: str | Path | None = None,
    reference: str | Path | None = None,
) -> None:
    """Push a file of landmarks through saved transforms, and write it in the layout that it has.

    Points go the other way than images: through the transforms from fixed to moving, with ``inverse`` from moving to
    fixed.

    Args:
        paths: of the transforms, as :func:`apply_transform` takes them.
        source: file of landmarks of the fixed image, or with ``inverse`` of the moving one.
        output: file to write.
        inverse: go from the moving to the fixed image.
        space: frame of the file where it does not say it, one of ``LANDMARK_SPACES``.
        source_image: image that the landmarks lie on; needed if they are in voxels.
        reference: image that they are carried to; needed if they are in voxels.

    Raises:
        InputError: if a file cannot be used, or a landmark lies where the transforms say nothing.
    """
    _check_not_an_input(output, [*paths, source, *(path for path in (source_image, reference) if path)])
    parts = read_transform(paths)
    dims = parts[0].spatial_dims
    affines = [None if image is None else _grid(_read(image, dims, "")).affine for image in (source_image, reference)]
    if affines[0] is None and landmark_layout(source) in ("slicer", "fcsv"):
        affines[0] = np.eye(dims + 1)  # in mm, but always of three coordinates
    landmarks = read_landmarks(source, space, affines[0])
    if landmarks.positions.shape[1] != dims:
        raise InputError(
            f"{source}: has {landmarks.positions.shape[1]} coordinates a landmark where the transform has {dims} axes; "
            "give landmarks of this pair."
        )
    points = torch.from_numpy(landmarks.positions)
    carried, known = (carry_world_back if inverse else carry_world)(points, parts)
    if not known.all():
        names = [name for name, ok in zip(landmarks.labels, known.tolist(), strict=True) if not ok]
        raise InputError(f"{source}: the transform says nothing at {', '.join(names[:5])}; remove these landmarks.")
    same = Path(source).suffix.lower() == Path(output).suffix.lower()
    layout = landmark_layout(source) if same else ""
    write_landmarks(output, landmarks._replace(positions=carried.numpy()), space, affines[1], layout)
