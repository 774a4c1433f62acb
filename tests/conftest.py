"""Fixtures that several test files share."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from hypothesis import settings

from monai_jsm.data import SECTIONS, Landmarks, write_landmarks

settings.register_profile("monai_jsm", deadline=None, derandomize=True)
settings.load_profile("monai_jsm")

PROJECT = Path(__file__).resolve().parents[1]
CENTRE = np.array([10.0, -20.0, 30.0])  # of both images in the world, mm
FIXED_GRID = ((24, 28, 20), (1.5, 1.2, 2.0), (1, -1, 1))  # shape, spacing in mm, direction of each axis
MOVING_GRID = ((26, 27, 22), (1.4, 1.3, 1.8), (-1, 1, 1))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of published test data, MONAI_JSM_DATA."""
    folder = Path(os.environ.get("MONAI_JSM_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"There are no test data in {folder}: set MONAI_JSM_DATA to their folder.")
    return folder


@pytest.fixture
def datalist_factory(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A maker of small datalists: ``datalist_factory(spatial_dims=2, cases_per_section=2, **changes) -> folder``.

    Each section holds ``cases_per_section`` pairs ``SECTION_N`` of soft blobs, with labels and 5 landmarks. Both
    images cover about 36 mm of the same world, on grids that differ in shape, spacing and flipped axis. Moving is the
    anatomy, fixed shows it through a smooth bump of 2 to 4 mm, so that a landmark p of fixed lies exactly at
    p + bump(p) in moving. ``changes`` are laid over the list, None removes an entry; landmark files are
    written in its ``landmark_space``, "lps" unless changed.
    """

    def make(spatial_dims: int = 2, cases_per_section: int = 2, **changes: Any) -> Path:
        folder = tmp_path_factory.mktemp("datalist")
        datalist: dict[str, Any] = {"spatial_dims": spatial_dims, "landmark_space": "lps"}
        space = changes.get("landmark_space") or datalist["landmark_space"]
        for number, section in enumerate(SECTIONS):
            datalist[section] = [
                write_case(folder, f"{section}_{index}", spatial_dims, space, seed=[number, index])
                for index in range(cases_per_section)
            ]
        datalist = {key: value for key, value in (datalist | changes).items() if value is not None}
        (folder / "datalist.json").write_text(json.dumps(datalist))
        return folder

    return make


def write_case(folder: Path, case_id: str, spatial_dims: int, space: str, seed: list[int]) -> dict[str, str]:
    generator = np.random.default_rng(seed)
    centre = CENTRE[:spatial_dims]
    blobs = centre + generator.uniform(-8, 8, (5, spatial_dims))
    widths = generator.uniform(3, 5, 5)
    heights = generator.uniform(50, 100, 5)
    direction = generator.standard_normal(spatial_dims)
    bump = direction / np.linalg.norm(direction) * generator.uniform(2, 4)

    def to_moving(points: np.ndarray) -> np.ndarray:
        distance = np.linalg.norm(points - centre, axis=-1, keepdims=True)
        return points + bump * np.exp(-(distance**2) / (2 * 15**2))

    def anatomy(points: np.ndarray) -> np.ndarray:
        distance = np.linalg.norm(points[..., None, :] - blobs, axis=-1)  # (*S, 5)
        return (heights * np.exp(-(distance**2) / (2 * widths**2))).sum(axis=-1)

    (folder / case_id).mkdir()
    case = {"id": case_id}
    fixed_points = centre + generator.uniform(-8, 8, (5, spatial_dims))
    labels = tuple("abcde")
    for side, grid, points in (
        ("fixed", FIXED_GRID, fixed_points),
        ("moving", MOVING_GRID, to_moving(fixed_points)),
    ):
        affine, world = make_grid(spatial_dims, *grid)
        signal = anatomy(to_moving(world) if side == "fixed" else world)
        image = (signal + generator.normal(0, 0.5, signal.shape)).astype(np.float32)
        for kind, array in (("image", image), ("label", (signal > 40).astype(np.uint8))):
            case[f"{side}_{kind}"] = f"{case_id}/{side}_{kind}.nii.gz"
            nib.save(nib.Nifti1Image(array, affine), folder / case[f"{side}_{kind}"])
        case[f"{side}_landmarks"] = f"{case_id}/{side}_landmarks.csv"
        write_landmarks(folder / case[f"{side}_landmarks"], Landmarks(labels, points), space, affine)
    return case


def make_grid(
    spatial_dims: int, shape: tuple[int, ...], spacing: tuple[float, ...], direction: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """The 4x4 affine of an image around CENTRE and the world coordinates of its voxels, (*S, D)."""
    affine = np.diag([*(np.array(spacing) * direction), 1.0])
    affine[:3, 3] = CENTRE - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    voxels = np.moveaxis(np.indices(shape[:spatial_dims]), 0, -1)
    return affine, voxels @ affine[:spatial_dims, :spatial_dims].T + affine[:spatial_dims, 3]


@pytest.fixture
def one_sentence() -> Callable[[str, Path, str], None]:
    """A check that a refusal is one sentence that begins with the file and says what is wrong and what to do."""

    def check(sentence: str, path: Path, fault: str) -> None:
        assert sentence.startswith(str(path))
        rest = sentence.removeprefix(str(path))
        assert fault in rest
        assert rest.endswith(".")
        assert "\n" not in rest
        assert ". " not in rest
        assert "; " in rest  # what follows is the remedy

    return check
