"""The report: what it says, what its figures show, and what it refuses."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine
from scipy.ndimage import map_coordinates

from monai_jsm.data.errors import InputError
from monai_jsm.report import write_cohort_report, write_report
from monai_jsm.report.figures import (
    Landmarks,
    Pair,
    draw_field,
    draw_images,
    draw_jacobian,
    draw_landmark_places,
    orient,
)
from monai_jsm.report.page import read_pair

SHAPES = {2: (46, 38), 3: (34, 40, 9)}
MOVING_SHAPES = {2: (50, 41), 3: (36, 44, 11)}
SPACING = np.array([1.5, 1.25, 6.0])
CENTRE = np.array([12.0, -20.0, 7.0])  # RAS mm, where the anatomy lies


def affine_of(spatial_dims, shape, flip_second=True):
    """Anisotropic, turned a little, the second axis flipped, the middle voxel at CENTRE."""
    angle = 0.1
    turn = np.eye(spatial_dims)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    directions = np.ones(spatial_dims)
    directions[1] = -1 if flip_second else 1
    affine = np.eye(spatial_dims + 1)
    affine[:-1, :-1] = turn @ np.diag(directions * SPACING[:spatial_dims])
    affine[:-1, -1] = CENTRE[:spatial_dims] - affine[:-1, :-1] @ ((np.array(shape) - 1) / 2)
    return affine


def world_grid(shape, affine):
    return apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))


def anatomy(world):
    """An ellipse with an off-centre bright spot and stripes, as a function of RAS mm (..., D)."""
    inside = world - CENTRE[: world.shape[-1]]
    body = np.linalg.norm(inside / [22, 17, 24][: world.shape[-1]], axis=-1) < 1
    spot = np.linalg.norm(inside - [8, 6, 3][: world.shape[-1]], axis=-1) < 6
    return 100.0 * body + 80.0 * spot + 25.0 * body * np.sin(inside[..., 0] / 2)


def displacement(world):
    """RAS mm from fixed to moving: a shift and a smooth swirl."""
    inside = world - CENTRE[: world.shape[-1]]
    bump = np.exp(-((inside**2).sum(-1, keepdims=True)) / 500)
    motion = np.concatenate([3 + 0.15 * inside[..., 1:2], -2 - 0.2 * inside[..., :1], 0.1 * inside[..., 2:]], axis=-1)
    return motion * bump


def save(path, array, affine, intent="none"):
    spatial_dims = len(affine) - 1
    full = np.eye(4)
    keep = [*range(spatial_dims), 3]
    full[np.ix_(keep, keep)] = affine
    image = nib.Nifti1Image(array.astype(np.float32), full)
    image.header.set_intent(intent)
    nib.save(image, path)


def write_table(path, columns, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def landmark_columns(spatial_dims):
    positions = [f"{kind}_{axis}" for kind in ("fixed", "moving", "carried") for axis in "xyz"[:spatial_dims]]
    return ["case", "label", *positions, "before_mm", "after_mm", "before_voxel", "after_voxel"]


def measures_of(before, after):
    summaries = {"mean": np.mean, "median": np.median, "p95": lambda errors: np.percentile(errors, 95), "max": np.max}
    measures = {
        f"tre_{name}_{when}": {"value": float(summary(errors)), "unit": "mm"}
        for name, summary in summaries.items()
        for when, errors in (("before", before), ("after", after))
    }
    measures["share_improved"] = {"value": float(100 * np.mean(after < before)), "unit": "%"}
    return measures


def change_json(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.fixture(params=[2, 3], ids=["2D", "3D"])
def registration(request, tmp_path):
    """A finished registration of a synthetic pair by its true field, with 11 landmarks."""
    spatial_dims = request.param
    rng = np.random.default_rng(7)
    folder = tmp_path / "registration"
    folder.mkdir()
    shape, moving_shape = SHAPES[spatial_dims], MOVING_SHAPES[spatial_dims]
    affine, moving_affine = affine_of(spatial_dims, shape), affine_of(spatial_dims, moving_shape, flip_second=False)
    world = world_grid(shape, affine)
    field = displacement(world)
    warped = anatomy(world + field)
    save(tmp_path / "fixed.nii.gz", warped + rng.normal(0, 2, shape), affine)
    save(tmp_path / "moving.nii.gz", anatomy(world_grid(moving_shape, moving_affine)), moving_affine)
    save(folder / "warped.nii.gz", warped, affine)
    lps = field * ([-1, -1] + [1] * (spatial_dims - 2))
    save(folder / "field.nii.gz", lps.reshape(*shape, *[1] * (4 - spatial_dims), spatial_dims), affine, "vector")
    in_voxels = np.linalg.solve(affine[:-1, :-1], field[..., None])[..., 0]
    gradient = np.stack([np.stack(np.gradient(in_voxels[..., i]), -1) for i in range(spatial_dims)], -2)
    jacobian = np.linalg.det(np.eye(spatial_dims) + gradient)
    distance = np.linalg.norm(world - CENTRE[:spatial_dims] - [10, -6, 0][:spatial_dims], axis=-1)
    save(folder / "jacobian.nii.gz", jacobian, affine)
    save(folder / "joint_saliency.nii.gz", np.hypot(*np.gradient(warped)[:2]).clip(0, 60) / 60, affine)
    save(folder / "trust.nii.gz", 1 - np.exp(-((distance / 8) ** 2)), affine)
    fixed = CENTRE[:spatial_dims] + rng.uniform(-12, 12, (11, spatial_dims))
    moving = fixed + displacement(fixed)
    carried = moving + rng.normal(0, 0.3, moving.shape)
    before, after = (np.linalg.norm(points - moving, axis=1) for points in (fixed, carried))
    write_table(
        folder / "landmarks.csv",
        landmark_columns(spatial_dims),
        [
            ["pair_1", f"point {i}", *fixed[i], *moving[i], *carried[i], before[i], after[i], before[i], after[i]]
            for i in range(len(fixed))
        ],
    )
    inputs = {
        f"{role}_image": {
            "path": str(tmp_path / f"{role}.nii.gz") if role == "fixed" else f"../{role}.nii.gz",
            "sha256": hashlib.sha256((tmp_path / f"{role}.nii.gz").read_bytes()).hexdigest(),
        }
        for role in ("fixed", "moving")
    }
    measures = measures_of(before, after)
    measures["share_improved"]["value"] = 100.0
    measures |= {
        "dice_before": {"value": 0.61, "unit": "1"},
        "dice_after": {"value": 0.93, "unit": "1"},
        "folding": {"value": 0.0, "unit": "%"},
        "log_jacobian_sd": {"value": 0.12, "unit": "1"},
    }
    metrics = {
        "id": "pair_1",
        "inputs": inputs,
        "measures": measures,
        "versions": {"monai_jsm": "0.1.0"},
        "frame": {"field": "mm, LPS"},
        "seed": 0,
        "command": "monai-jsm register --fixed fixed.nii.gz --moving moving.nii.gz",
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


@pytest.fixture
def cohort(tmp_path):
    """An evaluation of five cases with 4 to 12 landmarks each; case_3 became worse."""
    rng = np.random.default_rng(3)
    folder = tmp_path / "evaluation"
    folder.mkdir()
    cases, landmarks = [], []
    for index in range(5):
        before = rng.gamma(4, 1.2, 4 + 2 * index)
        after = before * (1.2 if index == 3 else 0.3)
        summary = {name: entry["value"] for name, entry in measures_of(before, after).items()}
        cases.append({"case": f"case_{index}", **summary, "dice_before": 0.5 + 0.05 * index, "dice_after": 0.9})
        cases[-1]["folding"] = 0.0
        landmarks += [
            [f"case_{index}", i, *np.zeros(6), before[i], after[i], before[i] / 1.5, after[i] / 1.5]
            for i in range(len(before))
        ]
    names = list(cases[0])
    write_table(folder / "cases.csv", names, [list(case.values()) for case in cases])
    write_table(folder / "landmarks.csv", landmark_columns(2), landmarks)
    units = {"share_improved": "%", "folding": "%", "dice_before": "1", "dice_after": "1"}
    measures = {
        name: {
            "mean": float(np.mean([case[name] for case in cases])),
            "sd": float(np.std([case[name] for case in cases])),
            "median": float(np.median([case[name] for case in cases])),
            "unit": units.get(name, "mm"),
        }
        for name in names[1:]
    }
    (folder / "metrics.json").write_text(json.dumps({"cases": 5, "measures": measures, "seed": 0}))
    return folder


def pair_of(spatial_dims, shift):
    """A pair whose field is one shift in RAS mm, axes turned for display."""
    shape, moving_shape = SHAPES[spatial_dims], MOVING_SHAPES[spatial_dims]
    affine, moving_affine = affine_of(spatial_dims, shape), affine_of(spatial_dims, moving_shape, flip_second=False)
    world = world_grid(shape, affine)
    field = np.broadcast_to(np.array(shift[:spatial_dims]), world.shape)
    moving, shown_moving_affine = orient(anatomy(world_grid(moving_shape, moving_affine)), moving_affine, affine)
    on_fixed = {name: anatomy(world) for name in ("fixed", "warped", "joint_saliency", "trust")}
    on_fixed["jacobian"] = np.ones(shape)
    shown = {name: orient(image, affine, affine)[0] for name, image in on_fixed.items()}
    shown_field, shown_affine = orient(field, affine, affine)
    return Pair(
        affine=shown_affine,
        moving=moving,
        moving_affine=shown_moving_affine,
        field=shown_field,
        landmarks=None,
        **shown,
    )


def axes_affine(spatial_dims, seed):
    """A random affine: permuted, flipped, anisotropic and a little oblique."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(np.eye(spatial_dims) + 0.1 * rng.standard_normal((spatial_dims, spatial_dims)))
    affine = np.eye(spatial_dims + 1)
    affine[:-1, :-1] = turn @ np.eye(spatial_dims)[rng.permutation(spatial_dims)] * rng.uniform(0.5, 4, spatial_dims)
    affine[:-1, -1] = rng.uniform(-50, 50, spatial_dims)
    return affine


@settings(deadline=None, derandomize=True, max_examples=30)
@given(spatial_dims=st.sampled_from([2, 3]), seed=st.integers(0, 2**16))
def test_turning_axes_for_display_moves_no_voxel_in_the_world(spatial_dims, seed):
    affine, like = axes_affine(spatial_dims, seed), axes_affine(spatial_dims, seed + 1)
    world = world_grid((4, 5, 6)[:spatial_dims], affine)
    turned, turned_affine = orient(world, affine, like)
    np.testing.assert_allclose(turned, world_grid(turned.shape[:-1], turned_affine), atol=1e-9)
    if spatial_dims == 3:
        assert (np.diag(np.sign(turned_affine))[:3] == -1).all()  # right to left, front to back, head to foot


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_moving_before_registration_stands_where_its_header_places_it(spatial_dims):
    fixed, moving = (panel.images[0].get_array() for panel in draw_images(pair_of(spatial_dims, (0, 0, 0))).axes[:2])
    apart = np.abs(fixed - moving)
    assert apart.mean() < 0.06  # grids differ by half voxels: interpolation only, edges of the shapes
    flipped = np.abs(fixed - moving[::-1])
    assert flipped.mean() > 2 * apart.mean()


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_grid_drawn_over_moving_is_moved_by_the_field_towards_moving(spatial_dims):
    still, shifted = pair_of(spatial_dims, (0, 0, 0)), pair_of(spatial_dims, (4.0, -3.0, 2.0))
    lines = [
        np.array(draw_field(pair).axes[0].collections[0].get_segments()) for pair in (still, shifted)
    ]  # (lines, points, 2), mm along the shown axes of moving
    directions = still.moving_affine[:-1, :-1] / np.linalg.norm(still.moving_affine[:-1, :-1], axis=0)
    expected = np.array([4.0, -3.0, 2.0])[:spatial_dims] @ directions
    np.testing.assert_allclose(lines[1] - lines[0], np.broadcast_to(expected[:2], lines[0].shape), atol=1e-9)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_line_at_a_landmark_is_the_error_that_remains(spatial_dims):
    pair = pair_of(spatial_dims, (0, 0, 0))
    voxel = np.array([[9.0, 7.0, 4.0], [20.0, 11.0, 2.0]])[:, :spatial_dims]
    step = np.array([[2.0, 3.0, 1.0], [0.0, -4.0, 0.0]])[:, :spatial_dims]
    fixed = apply_affine(pair.affine, voxel)
    landmarks = Landmarks(
        ["a", "b"], fixed, apply_affine(pair.affine, voxel + step), fixed, np.array([5.0, 6.0]), np.array([1.0, 2.0])
    )
    segments = np.array(draw_landmark_places(pair, landmarks).axes[0].collections[0].get_segments())
    spacing = np.linalg.norm(pair.affine[:-1, :-1], axis=0)
    np.testing.assert_allclose(segments[:, 0], (voxel * spacing)[:, :2])
    np.testing.assert_allclose(segments[:, 1], ((voxel + step) * spacing)[:, :2])


def test_jacobian_map_is_symmetric_about_one_and_leaves_folded_voxels_to_their_own_colour():
    pair = pair_of(2, (0, 0))
    jacobian = np.full(pair.jacobian.shape, 2.0)
    jacobian[:20] = 0.5
    jacobian[3, 4] = -0.1
    image = draw_jacobian(replace(pair, jacobian=jacobian)).axes[0].images[0]
    assert image.get_clim() == (-1, 1)
    assert np.argwhere(np.ma.getmaskarray(image.get_array())).tolist() == [[4, 3]]
    np.testing.assert_array_equal(image.get_array()[5, [0, -1]], [-1, 1])


def test_field_read_from_its_file_leads_from_fixed_to_the_same_tissue_in_moving(registration):
    pair = read_pair(registration)
    world = world_grid(pair.fixed.shape, pair.affine)

    def mismatch(field):
        voxels = apply_affine(np.linalg.inv(pair.moving_affine), world + field)
        return np.abs(map_coordinates(pair.moving, np.moveaxis(voxels, -1, 0), order=1) - pair.warped).mean()

    assert mismatch(pair.field) < 0.04 * np.ptp(pair.moving)  # interpolation at the edges of the shapes
    assert min(mismatch(0 * pair.field), mismatch(-pair.field), mismatch(pair.field[::-1])) > 1.5 * mismatch(pair.field)


def test_report_stands_alone_and_keeps_its_figures_small(registration):
    page = write_report(registration)
    html = page.read_text(encoding="utf-8")
    assert page == registration / "report.html"
    assert set(re.findall(r'(?:src|href)="([^"]{5})', html)) == {"data:"}
    assert "http" not in html.replace("http-equiv", "")
    images = sorted((registration / "figures").iterdir())
    assert [path.stem for path in images] == [
        "checkerboards",
        "differences",
        "field",
        "images",
        "jacobian",
        "landmark_errors",
        "landmark_places",
        "trust",
    ]
    assert all(path.stat().st_size < 300_000 for path in images)
    assert html.count("<figcaption>") == len(images)
    assert not list(registration.glob("**/*.tmp"))


def test_report_opens_with_what_happened_in_one_sentence(registration):
    measures = json.loads((registration / "metrics.json").read_text())["measures"]
    before, after = (f"{measures[f'tre_mean_{when}']['value']:.2f}" for when in ("before", "after"))
    html = write_report(registration).read_text(encoding="utf-8")
    assert (
        f"Mean TRE fell from {before} to {after} mm over 11 landmarks; 100.0 % of the landmarks came closer; "
        "mean Dice rose from 0.610 to 0.930; no folding." in html
    )
    assert 'role="alert"' not in html


@pytest.mark.parametrize("registration", [2], indirect=True)
def test_report_warns_of_what_a_reader_must_not_overlook(registration):
    changes = {
        "tre_mean_after": (9.5, "Worse after registration: TRE, mean rose from"),
        "dice_after": (0.4, "Worse after registration: Dice overlap of the labels fell from 0.610 to 0.400"),
        "folding": (0.0021, "The field folds in 0.0021 % of the voxels"),
        "share_improved": (89.0, "Only 89.0 % of the landmarks came closer"),
        "log_jacobian_sd": (None, "Could not be computed: Standard deviation of the logarithm"),
    }

    def worsen(metrics):
        for name, (value, _) in changes.items():
            metrics["measures"][name]["value"] = value

    change_json(registration / "metrics.json", worsen)
    html = write_report(registration).read_text(encoding="utf-8")
    assert html.count("<li>") == len(changes)
    for _, warning in changes.values():
        assert warning in html


@pytest.mark.parametrize("registration", [3], indirect=True)
def test_report_without_landmarks_shows_the_rest_and_says_so(registration):
    (registration / "landmarks.csv").unlink()
    change_json(registration / "metrics.json", lambda metrics: metrics.update(measures={}))
    html = write_report(registration).read_text(encoding="utf-8")
    assert "No landmarks or labels were given, so accuracy was not measured." in html
    assert "Error per landmark" not in html
    assert "run through the middle of fixed" in html


@pytest.mark.parametrize("registration", [2], indirect=True)
def test_names_from_files_cannot_inject_markup(registration):
    change_json(registration / "metrics.json", lambda metrics: metrics.update(id="<script>alert(1)</script>"))
    assert "<script>" not in write_report(registration).read_text(encoding="utf-8")


def drop(name):
    return lambda folder: (folder / name).unlink()


def truncate(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:400])


def edit(name, old, new):
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new, 1))


def resize(name):
    return lambda folder: nib.save(nib.Nifti1Image(np.zeros((5, 6, 7), np.float32), np.eye(4)), folder / name)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("metrics.json"), r"metrics\.json does not exist: give the folder of a finished"),
        (edit("metrics.json", "{", "["), r"metrics\.json is not valid JSON"),
        (edit("metrics.json", '"id"', '"name"'), "has neither 'id' nor 'cases'"),
        (edit("metrics.json", '"unit"', '"units"'), r"measures in .*metrics\.json lack 'unit'"),
        (edit("metrics.json", '"moving_image"', '"other"'), "does not say path and sha256 of the moving image"),
        (drop("../moving.nii.gz"), r"moving image .*moving\.nii\.gz does not exist: put it back"),
        (resize("../fixed.nii.gz"), r"fixed\.nii\.gz has changed since it was registered"),
        (drop("trust.nii.gz"), r"trust\.nii\.gz does not exist"),
        (truncate("field.nii.gz"), r"field\.nii\.gz cannot be read as NIfTI"),
        (resize("field.nii.gz"), r"field\.nii\.gz has shape \(5, 6, 7\) and is no displacement field"),
        (resize("jacobian.nii.gz"), r"jacobian\.nii\.gz has shape \(5, 6.*\) but field\.nii\.gz has"),
        (edit("landmarks.csv", "carried_y", "carriedY"), r"landmarks\.csv lacks the column carried_y"),
        (edit("landmarks.csv", "point 0,", "point 0,far"), r"landmarks\.csv, line 2: fixed_x is 'far.*' and no number"),
        (
            edit("landmarks.csv", "point 0,", "point 0,nan,"),
            r"landmarks\.csv, line 2: fixed_x is missing or not finite",
        ),
    ],
)
@pytest.mark.parametrize("registration", [2], indirect=True)
def test_damaged_folder_is_refused_and_the_older_report_stays(registration, damage, message):
    (registration / "report.html").write_text("older")
    damage(registration)
    with pytest.raises(InputError, match=message):
        write_report(registration)
    assert (registration / "report.html").read_text() == "older"
    assert not (registration / "figures").exists()


def test_cohort_report_has_the_table_the_figures_and_the_cases_that_became_worse(cohort):
    page = write_report(cohort)
    html = page.read_text(encoding="utf-8")
    mean = json.loads((cohort / "metrics.json").read_text())["measures"]["tre_mean_after"]
    assert (
        f"to {mean['mean']:.2f} mm over 5 cases (40 landmarks); on average 80.0 % of the landmarks came closer" in html
    )
    assert f"{mean['mean']:.2f} ± {mean['sd']:.2f} (median {mean['median']:.2f})" in html
    assert "Mean TRE rose in 1 of 5 cases: case_3." in html
    assert sorted(path.stem for path in (cohort / "figures").iterdir()) == [
        "case_bars",
        "case_boxes",
        "case_measures",
        "distribution",
    ]
    assert html == write_cohort_report(cohort).read_text(encoding="utf-8")


def test_cohort_without_landmarks_shows_its_cases(cohort):
    (cohort / "landmarks.csv").unlink()
    html = write_report(cohort).read_text(encoding="utf-8")
    assert "over 5 cases;" in html
    assert html.count("<figcaption>") == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop("cases.csv"), r"cases\.csv does not exist"),
        (edit("metrics.json", '"cases": 5', '"cases": 6'), r"cases\.csv has 5 cases but metrics\.json says 6"),
        (edit("cases.csv", "case,", "id,"), r"cases\.csv lacks the column case"),
        (edit("landmarks.csv", "after_mm", "after"), r"landmarks\.csv lacks the column after_mm"),
        (edit("metrics.json", '"sd"', '"std"'), "lack 'sd'"),
    ],
)
def test_damaged_cohort_is_refused(cohort, damage, message):
    damage(cohort)
    with pytest.raises(InputError, match=message):
        write_report(cohort)


@pytest.mark.parametrize("registration", [2], indirect=True)
def test_cohort_report_refuses_the_folder_of_one_pair(registration):
    with pytest.raises(InputError, match="has no entry 'cases'"):
        write_cohort_report(registration)
