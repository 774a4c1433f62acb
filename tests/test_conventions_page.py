"""docs/conventions.md is true: its code runs, its tables are those of the program, its figures are measured."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import torch
from pydicom.datadict import tag_for_keyword
from scipy import ndimage
from test_fields import TO_LPS, Case, edges_of, make_case, some_points
from torch import Tensor

from monai_jsm.apps.command_line import main
from monai_jsm.data import LANDMARK_SPACES, dicom_objects, landmarks
from monai_jsm.data.fields import FieldTransform, LinearTransform, carry_world, read_transform
from monai_jsm.data.results import EXPORTS
from monai_jsm.geometry import voxel_to_world, world_to_voxel

PAGE = (Path(__file__).parents[1] / "docs" / "conventions.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
POINT = torch.tensor([[12.0, -30.0, 45.0]], dtype=torch.float64)  # RAS: the one that the page carries
TOLERANCE = 1e-5  # of the intensities; float32 fields and headers leave 1e-6


def table(first_column: str) -> list[list[str]]:
    """The rows, without the header, of the table whose first column has this name."""
    _, _, rest = PAGE.partition(f"\n| {first_column} |")
    rows = rest.partition("\n\n")[0].splitlines()[2:]
    return [[field.strip() for field in row.strip("|").split("|")] for row in rows]


def named(field: str) -> str:
    return field.strip("`")


def turned_grid(spacing: tuple[float, float, float], angles: tuple[float, float, float], shape: tuple[int, ...]):
    """An affine whose middle is the point of the page."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(sitk.Euler3DTransform((0.0, 0.0, 0.0), *angles).GetMatrix(), (3, 3)) * spacing
    affine[:3, 3] = POINT[0].numpy() - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def bent(points: np.ndarray) -> np.ndarray:
    """A shift and a bump, mm, of points (*S, 3)."""
    away = ((points - POINT.numpy()) ** 2).sum(-1, keepdims=True)
    return points + [1.5, -1.0, 1.0] + np.exp(-away / 200) * [3.0, 1.5, 0.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first command of the page was run: a pair of oblique grids, one of them left-handed, and its result."""
    folder = tmp_path_factory.mktemp("page")
    shapes = {"before": (40, 36, 24), "after": (38, 42, 26)}
    affines = {
        "before": turned_grid((0.9, -1.3, 2.0), (0.2, -0.1, 0.3), shapes["before"]),
        "after": turned_grid((1.1, 1.0, 1.7), (-0.1, 0.2, -0.2), shapes["after"]),
    }
    noise = np.random.default_rng(0).random(shapes["after"])
    moving = 20000 * ndimage.gaussian_filter(noise, 2.0) - 9000  # its minimum is not 0
    world = nib.affines.apply_affine(affines["before"], np.moveaxis(np.indices(shapes["before"]), 0, -1))
    seen = nib.affines.apply_affine(np.linalg.inv(affines["after"]), bent(world))
    fixed = ndimage.map_coordinates(moving, np.moveaxis(seen, -1, 0), order=1, mode="nearest")
    for name, image in (("before", fixed), ("after", moving)):
        nib.save(nib.Nifti1Image(image.astype(np.float32), affines[name]), folder / f"{name}.nii.gz")
    command = re.search(r"^monai-jsm (register .*)$", PAGE, re.MULTILINE)
    assert command is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(command[1].split()) == 0
    assert nib.load(folder / "result" / "jacobian.nii.gz").get_fdata().std() > 0.01  # not a linear map alone
    return folder


def as_array(image) -> np.ndarray:
    """(*S), whichever library the image is of."""
    if isinstance(image, np.ndarray):
        return image
    if isinstance(image, sitk.Image):
        return sitk.GetArrayFromImage(image).T
    return image.numpy() if hasattr(image, "numpy") else np.asarray(image).T  # ants, itk


@pytest.mark.parametrize(
    "block",
    [pytest.param(block, marks=pytest.mark.slow if "import itk" in block else ()) for block in BLOCKS],
    ids=lambda block: block.split()[1],
)
def test_a_code_block_gives_the_warped_image_that_the_tool_wrote(folder, monkeypatch, block):
    for module in re.findall(r"^(?:import|from) (\w+)", block, re.MULTILINE):
        pytest.importorskip(module, reason=f"{module} is not installed")
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(block, names)
    moving = nib.load(folder / "after.nii.gz").get_fdata()
    written = nib.load(folder / "result" / "warped.nii.gz").get_fdata()
    difference = np.abs(as_array(names["warped"]) - written)
    if 'mode="nearest"' in block and "inside" not in names:  # a border instead of a background, as the page says
        difference = difference[nib.load(folder / "result" / "trust.nii.gz").get_fdata() > 0]
    assert difference.size > written.size / 2
    assert difference.max() < TOLERANCE * np.ptp(moving)
    if "carried" in names:
        expected, _ = carry_world(POINT, read_transform([folder / "result" / "field.nii.gz"]))
        assert (expected - POINT).norm() > 1
        np.testing.assert_allclose(np.array(names["carried"]), expected[0], atol=1e-4)  # float32


def test_the_table_of_outputs_names_what_is_written(folder):
    rows = {named(row[0]): row[1] for row in table("file")}
    exports = {named(option).removeprefix("--formats "): file for file, option in rows.items() if "formats" in option}
    assert exports == EXPORTS
    expected = {file for file, option in rows.items() if option != "with landmarks" and "dicom" not in option}
    assert {path.name for path in (folder / "result").iterdir()} == expected | {"figures"}


def test_the_files_have_the_shapes_and_intents_of_the_table(folder):
    for file, _, _, holds, _ in table("file"):
        if named(file).endswith(".nii.gz") and "shape" in holds:
            image = nib.load(folder / "result" / named(file))
            dims = re.search(r"shape \(([^)]*)\)", holds)[1].split(", ")
            sizes = dict(zip("XYZ", image.shape, strict=False))
            assert image.shape == tuple(sizes.get(size) or int(size) for size in dims)
            intent = re.search(r"intent (\d+)", holds)
            assert int(image.header["intent_code"]) == int(intent[1] if intent else 0)


def test_the_tables_of_landmarks_name_the_layouts_and_frames_of_the_program():
    rows = {row[0]: row[3] for row in table("layout")}
    assert list(rows) == re.findall(r"^(\w+) +\S", landmarks.__doc__.split("=\n")[2], re.MULTILINE)
    assert {named(row[0]) for row in table("`--landmark-space`")} == set(LANDMARK_SPACES)
    assert {name for name, needed in rows.items() if needed == "needed"} == {"plain", "learn2reg", "dirlab"}


def helped(command: str, capsys) -> str:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    return capsys.readouterr().out


def test_the_options_of_the_page_are_those_of_the_program(capsys):
    words = {command: helped(command, capsys) for command in ("register", "transform", "evaluate")}
    shown = re.findall(r"^monai-jsm (\w+) (.*)$", PAGE, re.MULTILINE)
    assert {command for command, _ in shown} >= {"register", "transform"}
    for command, rest in shown:
        for option in re.findall(r"--[\w-]+", rest):
            assert re.search(rf"{option}\b", words[command]), f"monai-jsm {command} has no {option}"
    prose = re.sub(r"```.*?```", "", PAGE, flags=re.DOTALL).replace("--help", "").replace("--premat", "")
    for option in set(re.findall(r"--[a-z][\w-]+", prose)):
        assert any(re.search(rf"{option}\b", text) for text in words.values()), f"there is no {option}"


def by_field(points: Tensor, case: Case, field: np.ndarray) -> Tensor:
    """Where points go through a field that is taken for one in mm, LPS."""
    vectors = torch.from_numpy(field * TO_LPS.reshape(3, 1, 1, 1))
    return carry_world(points, [FieldTransform(vectors, torch.from_numpy(case.fixed_affine))])[0]


def residual(case: Case) -> FieldTransform:
    """What comes before theta in the total map."""
    affine = torch.from_numpy(case.fixed_affine)
    voxels = torch.stack(torch.meshgrid(*map(torch.arange, case.field.shape[1:]), indexing="ij")).flatten(1).T.double()
    world = voxel_to_world(voxels, affine)
    total = by_field(world, case, case.field)
    vectors = world_to_voxel(total, torch.from_numpy(case.theta)) - world
    return FieldTransform(vectors.T.reshape(case.field.shape), affine)


def in_voxels(points: Tensor, case: Case) -> Tensor:
    return world_to_voxel(points, torch.from_numpy(case.fixed_affine))


# Of each mistake, in the order of the page, where it leads points and where they belong; named by words of its row.
MISTAKES: dict[str, Callable[[Case, Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "RAS": lambda case, start, end: (by_field(start, case, case.field * TO_LPS.reshape(3, 1, 1, 1)), end),
    "direction": lambda case, start, end: (
        by_field(start, case, case.total[0].numpy() * edges_of(case).reshape(3, 1, 1, 1)),
        end,
    ),
    "z, y, x": lambda case, start, end: (by_field(start, case, case.field[::-1].copy()), end),
    "negative": lambda case, start, end: (by_field(end, case, -case.field), start),
    "`inverse_field`": lambda case, start, end: (by_field(end, case, case.field), start),
    "once more": lambda case, start, end: (voxel_to_world(end, torch.from_numpy(case.theta)), end),
    "only the affine": lambda case, start, end: (voxel_to_world(start, torch.from_numpy(case.theta)), end),
    "other order": lambda case, start, end: (
        carry_world(start, [LinearTransform(torch.from_numpy(case.theta)), residual(case)])[0],
        end,
    ),
    "FSL": lambda case, start, end: (
        2 * (in_voxels(end, case) - in_voxels(start, case))[:, :1] * edges_of(case)[0],
        torch.zeros(len(start), 1),
    ),
    "`voxel0`": lambda case, start, end: (voxel_to_world(in_voxels(start, case) + 1, case.fixed_affine), start),
    "nearest": lambda case, start, end: (
        start
        + by_field(nearest := voxel_to_world(in_voxels(start, case).round(), case.fixed_affine), case, case.field)
        - nearest,
        end,
    ),
}


def test_every_trap_costs_what_the_page_says():
    case = make_case(3)
    start, end = some_points(case)
    moved = (end - start).norm(dim=1)
    assert f"{moved.mean():.1f} mm on average and {moved.max():.1f} at most" in " ".join(PAGE.split())
    rows = table("mistake")
    assert len(rows) == len(MISTAKES)
    for (mistake, *told), (word, make) in zip(rows, MISTAKES.items(), strict=True):
        assert word in mistake
        found, truth = make(case, start, end)
        error = (found - truth).norm(dim=1)
        assert told == [f"{error.mean():.1f}", f"{error.max():.1f}"], word


def test_outside_of_its_grid_itk_leaves_a_point_where_it_is():
    vectors = np.broadcast_to([2.0, 0.0], (7, 6, 2))
    transform = sitk.DisplacementFieldTransform(sitk.GetImageFromArray(vectors, isVector=True))
    assert transform.TransformPoint((-0.4, 3.0)) == (1.6, 3.0)
    assert transform.TransformPoint((-0.6, 3.0)) == (-0.6, 3.0)


def test_the_attributes_of_the_page_are_those_that_dicom_outputs_take_over():
    shown = {keyword for row in table("taken from")[:-1] for keyword in row[1].split(", ")}
    listed = {*dicom_objects._OF_STUDY, *dicom_objects._OF_MOVING}.union(*dicom_objects._OF_ACQUISITION.values())
    source = inspect.getsource(dicom_objects)
    alone = set(re.findall(r'_copy\(\w+, [\w\[\]]+, "(\w+)"', source)) | {"PhotometricInterpretation"}
    assert shown == listed | alone


def test_the_tags_of_the_page_are_those_of_the_standard():
    tags = re.findall(r"(\w+) \((\w{4}),(\w{4})\)", PAGE)
    assert len(tags) > 10
    for keyword, group, element in tags:
        assert tag_for_keyword(keyword) == int(group + element, 16), keyword
