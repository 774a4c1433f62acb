"""Figures of one registered pair and of a cohort, drawn without matplotlib's global state.

One body serves 2D and 3D: a figure has a row of panels for each pair of array axes, which is one row for an
image and three (axial, coronal, sagittal) for a volume. Colours tell apart for colour-blind readers
(Okabe and Ito's palette, cividis, ColorBrewer's orange to purple).
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, starmap
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, MaxNLocator, NullFormatter
from nibabel import orientations
from nibabel.affines import apply_affine, voxel_sizes
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[Any]

BEFORE, AFTER, WORSE = "#E69F00", "#0072B2", "#D55E00"
GREY = colormaps["gray"].with_extremes(bad="#3B3B4F")  # bad: outside moving
DIFFERENCE = colormaps["cividis"].with_extremes(bad="#D9D9D9")
SALIENCY = LinearSegmentedColormap.from_list("saliency", [(0.34, 0.71, 0.91, 0.0), (0.34, 0.71, 0.91, 0.9)])
MISTRUST = LinearSegmentedColormap.from_list("mistrust", [(0.84, 0.37, 0.0, 0.9), (0.84, 0.37, 0.0, 0.0)])
VOLUME = LinearSegmentedColormap.from_list(
    "volume", ["#E66101", "#FDB863", "#F7F7F7", "#B2ABD2", "#5E3C99"]
).with_extremes(bad="black")  # bad: folded
AXIS_NAMES = {2: ("first array axis", "second array axis"), 3: ("right → left", "front → back", "head → foot")}
PLANE_NAMES = {2: {(0, 1): ""}, 3: {(0, 1): "axial", (0, 2): "coronal", (1, 2): "sagittal"}}
MOST_CASES = 40  # beside one another, before labels collide
LARGEST_PNG = 300_000  # bytes


@dataclass(frozen=True)
class Landmarks:
    """Landmarks of one pair, positions (N, D) in RAS world mm, errors (N,) in mm."""

    labels: list[str]
    fixed: Array
    moving: Array
    carried: Array
    before: Array
    after: Array


@dataclass(frozen=True)
class Pair:
    """What the figures of one pair need, with array axes as :func:`orient` leaves them.

    ``fixed``, ``warped`` and the maps share the grid (*S) and the RAS ``affine``, (D+1, D+1); ``moving`` has its own.
    ``field``, (*S, D), takes a point of fixed to moving: RAS mm.
    """

    fixed: Array
    warped: Array
    affine: Array
    moving: Array
    moving_affine: Array
    field: Array
    joint_saliency: Array
    trust: Array
    jacobian: Array
    landmarks: Landmarks | None

    @property
    def spatial_dims(self) -> int:
        """D, 2 or 3."""
        return self.fixed.ndim

    @property
    def centre(self) -> tuple[int, ...]:
        """Voxel of fixed that the planes run through: the landmarks' centre, without landmarks the image's."""
        last = np.array(self.fixed.shape) - 1
        if self.landmarks is None:
            return tuple(last // 2)
        return tuple(
            np.clip(
                np.rint(apply_affine(np.linalg.inv(self.affine), self.landmarks.fixed.mean(0))).astype(int), 0, last
            )
        )

    @property
    def planes(self) -> dict[tuple[int, int], str]:
        """The pairs of array axes to show, horizontal first, and the planes' names."""
        return {axes: PLANE_NAMES[self.spatial_dims][axes] for axes in combinations(range(self.spatial_dims), 2)}


def orient(array: Array, affine: Array, like: Array) -> tuple[Array, Array]:
    """Turn array axes into the order in which they are shown: axis 0 to the right, axis 1 or 2 downwards.

    A volume's axes are permuted and flipped to run closest to right-left, front-back and head-foot, the way
    radiologists look at slices. An image keeps the axes of ``like``, since a plane's world axes seldom mean anatomy.

    Args:
        array: (*S, ...), trailing axes stay as they are.
        affine: voxel to RAS world, (D+1, D+1).
        like: affine of fixed, (D+1, D+1).

    Returns:
        The array and its new affine.

    Example:
        >>> ras = np.diag([1.0, 2.0, 3.0, 1.0])
        >>> shown, affine = orient(np.zeros((4, 5, 6)), ras, like=ras)
        >>> np.diag(affine)
        array([-1., -2., -3.,  1.])
    """
    spatial_dims = len(affine) - 1
    wanted = orientations.axcodes2ornt(("L", "P", "I")) if spatial_dims == 3 else orientations.io_orientation(like)
    change = orientations.ornt_transform(orientations.io_orientation(affine), wanted)
    turned = orientations.apply_orientation(array, change)
    return turned, affine @ orientations.inv_ornt_aff(change, array.shape[:spatial_dims])


def png(figure: Figure) -> bytes:
    """The figure as PNG, at the finest of a few resolutions that keeps it below 300 kB."""
    for dots_per_inch in (110, 90, 70, 50):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=dots_per_inch, bbox_inches="tight", pad_inches=0.08)
        if buffer.tell() <= LARGEST_PNG:
            break
    return buffer.getvalue()


def draw_images(pair: Pair) -> Figure:
    """Fixed, moving where its header places it, and warped."""
    figure, panels = _panels(pair, ["fixed", "moving, before registration", "warped, after registration"])
    for row, axes in zip(panels, pair.planes, strict=True):
        for panel, image in zip(row, _grey_planes(pair, axes), strict=True):
            _show(panel, pair, axes, image, cmap=GREY, vmin=0, vmax=1)
    return figure


def draw_differences(pair: Pair) -> Figure:
    """Absolute difference from fixed before and after, on one colour scale."""
    figure, panels = _panels(pair, ["before", "after"])
    differences = []
    for axes in pair.planes:
        fixed, moving, warped = _grey_planes(pair, axes)
        differences.append((abs(moving - fixed), abs(warped - fixed)))
    highest = max(np.nanpercentile(difference, 99.5) for both in differences for difference in both if _any(difference))
    for row, axes, both in zip(panels, pair.planes, differences, strict=True):
        for panel, difference in zip(row, both, strict=True):
            image = _show(panel, pair, axes, difference, cmap=DIFFERENCE, vmin=0, vmax=highest or 1)
    _bar(figure, image, panels, "absolute difference (share of the grey range)")
    return figure


def draw_checkerboards(pair: Pair) -> Figure:
    """Tiles of fixed alternate with tiles of moving (before) and of warped (after)."""
    figure, panels = _panels(pair, ["before: fixed and moving", "after: fixed and warped"])
    spacing = voxel_sizes(pair.affine)
    tile = max(spacing * pair.fixed.shape) / 9
    for row, axes in zip(panels, pair.planes, strict=True):
        fixed, *others = _grey_planes(pair, axes)
        tiles = [np.arange(size) * spacing[axis] // tile for axis, size in zip(axes, fixed.shape, strict=True)]
        is_fixed = np.add.outer(*tiles) % 2 == 0
        for panel, other in zip(row, others, strict=True):
            _show(panel, pair, axes, np.where(is_fixed, fixed, other), cmap=GREY, vmin=0, vmax=1)
    return figure


def draw_field(pair: Pair) -> Figure:
    """A regular grid of fixed as the field lays it over moving, and the length of the displacement."""
    figure, panels = _panels(pair, ["grid of fixed, laid over moving", "displacement"])
    length = np.linalg.norm(pair.field, axis=-1)
    index = pair.centre
    to_moving = np.linalg.inv(pair.moving_affine)
    carried_centre = apply_affine(to_moving, apply_affine(pair.affine, index) + pair.field[index])
    moving_centre = tuple(np.clip(np.rint(carried_centre).astype(int), 0, np.array(pair.moving.shape) - 1))
    scale = _grey_range(pair.moving)
    for (left, right), axes in zip(panels, pair.planes, strict=True):
        moving = scale(_cut(pair.moving, axes, moving_centre))
        spacing = voxel_sizes(pair.moving_affine)
        left.imshow(moving.T, cmap=GREY, vmin=0, vmax=1, extent=_extent(moving.shape, spacing[list(axes)]))
        left.set(xlim=left.get_xlim(), ylim=left.get_ylim())
        for lines in _carried_lines(pair, axes):
            left.add_collection(LineCollection(lines, colors="#F0E442", linewidths=0.7))
        image = _show(right, pair, axes, _cut(length, axes, index), cmap="cividis", vmin=0, vmax=length.max() or 1)
    _bar(figure, image, panels[:, 1], "length of the displacement (mm)")
    return figure


def draw_trust(pair: Pair) -> Figure:
    """Joint saliency and trust, both laid over fixed."""
    figure, panels = _panels(pair, ["joint saliency over fixed", "trust over fixed"])
    maps = [
        (pair.joint_saliency, SALIENCY, "joint saliency (0 to 1, no unit)"),
        (pair.trust, MISTRUST, "trust (0: structure in one image only, 1: no mismatch)"),
    ]
    scale = _grey_range(pair.fixed)
    for column, (values, colours, label) in enumerate(maps):
        for panel, axes in zip(panels[:, column], pair.planes, strict=True):
            _show(panel, pair, axes, scale(_cut(pair.fixed, axes, pair.centre)), cmap=GREY, vmin=0, vmax=1)
            image = _show(panel, pair, axes, _cut(values, axes, pair.centre), cmap=colours, vmin=0, vmax=1)
        _bar(figure, image, panels[:, column], label)
    return figure


def draw_jacobian(pair: Pair) -> Figure:
    """Jacobian determinant, logarithmic and centred at 1, folded voxels in black."""
    figure, panels = _panels(pair, list(pair.planes.values()), in_one_row=True)
    folded = pair.jacobian <= 0
    logarithm = np.log2(np.where(folded, 1, pair.jacobian))
    limit = max(np.percentile(abs(logarithm), 99.9), 0.1)
    for panel, axes in zip(panels[0], pair.planes, strict=True):
        plane, plane_folded = (_cut(values, axes, pair.centre) for values in (logarithm, folded))
        image = _show(panel, pair, axes, np.where(plane_folded, np.nan, plane), cmap=VOLUME, vmin=-limit, vmax=limit)
        places = np.argwhere(plane_folded) * voxel_sizes(pair.affine)[list(axes)]
        if 0 < len(places) <= 500:  # one voxel of a large plane is too small to see
            panel.plot(*places.T, "x", color="black", markersize=4, markeredgewidth=0.8)
    bar = _bar(figure, image, panels, "Jacobian determinant (1: volume kept, no unit)")
    ticks = np.linspace(-limit, limit, 5)
    bar.set_ticks(list(ticks), labels=[f"{2**tick:.2f}" for tick in ticks])
    if folded.any():
        figure.legend(
            handles=[Patch(color="black", label=f"folded: {folded.sum()} of {folded.size} voxels")],
            loc="lower right",
            frameon=False,
            fontsize=9,
        )
    return figure


def draw_landmark_places(pair: Pair, landmarks: Landmarks) -> Figure:
    """Landmarks over fixed, coloured by the error that remains, with its direction."""
    titles = [f"{name}, all landmarks projected" if name else "landmarks on fixed" for name in pair.planes.values()]
    figure, panels = _panels(pair, titles, in_one_row=True)
    spacing = voxel_sizes(pair.affine)
    places = apply_affine(np.linalg.inv(pair.affine), landmarks.fixed) * spacing
    errors = (landmarks.moving - landmarks.carried) @ np.linalg.inv(pair.affine[:-1, :-1]).T * spacing
    scale = _grey_range(pair.fixed)
    for panel, axes in zip(panels[0], pair.planes, strict=True):
        _show(panel, pair, axes, scale(_cut(pair.fixed, axes, pair.centre)), cmap=GREY, vmin=0, vmax=1)
        panel.set(xlim=panel.get_xlim(), ylim=panel.get_ylim())
        start, step = places[:, axes], errors[:, axes]
        panel.add_collection(LineCollection(list(np.stack([start, start + step], 1)), colors="white", linewidths=1.2))
        dots = panel.scatter(
            *start.T, c=landmarks.after, cmap="plasma", vmin=0, s=22, edgecolors="white", linewidths=0.6, zorder=3
        )
    _bar(figure, dots, panels, "TRE after registration (mm)")
    return figure


def draw_landmark_errors(landmarks: Landmarks) -> Figure:
    """TRE of each landmark before and after, sorted by the error that remains."""
    order = np.argsort(landmarks.after, kind="stable")
    before, after = landmarks.before[order], landmarks.after[order]
    figure = Figure(figsize=(9.5, 3.8), layout="constrained")
    panel = figure.subplots()
    rank = np.arange(len(order))
    worse = after > before
    panel.vlines(
        rank, before, after, colors=[WORSE if bad else "#BBBBBB" for bad in worse], linewidth=np.where(worse, 2.2, 1.0)
    )
    panel.plot(rank, before, "o", markerfacecolor="white", color=BEFORE, markersize=5)
    panel.plot(rank, after, "o", color=AFTER, markersize=5)
    panel.axhline(before.mean(), color=BEFORE, linestyle="--", linewidth=1)
    panel.axhline(after.mean(), color=AFTER, linestyle="--", linewidth=1)
    panel.legend(
        handles=[
            Line2D([], [], marker="o", markerfacecolor="white", color=BEFORE, linestyle="--", label="before, and mean"),
            Line2D([], [], marker="o", color=AFTER, linestyle="--", label="after, and mean"),
            Line2D([], [], color=WORSE, linewidth=2.2, label=f"became worse: {worse.sum()} of {len(order)}"),
        ],
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=3,
        frameon=False,
    )
    labels = [landmarks.labels[index] for index in order]
    _label_positions(panel, labels, "landmark, sorted by the error after registration")
    panel.set(ylabel="TRE (mm)", ylim=(0, None))
    _plain(panel)
    return figure


def draw_case_boxes(errors: Mapping[str, tuple[Array, Array]]) -> Figure:
    """TRE per landmark as a box per case, before beside after; the worst cases where there are very many."""
    shown = _worst_cases(errors)
    figure, panel = _case_panel(errors, shown)
    for side, (colour, name) in enumerate([(BEFORE, "before"), (AFTER, "after")]):
        boxes = panel.boxplot(
            [errors[case][side] for case in shown],
            positions=np.arange(len(shown)) + 0.4 * side - 0.2,
            widths=0.32,
            patch_artist=True,
            boxprops={"facecolor": colour, "linewidth": 0.6},
            medianprops={"color": "black"},
            whiskerprops={"linewidth": 0.6},
            capprops={"linewidth": 0.6},
            flierprops={"marker": ".", "markersize": 3, "markerfacecolor": colour, "markeredgecolor": colour},
            manage_ticks=False,
        )
        boxes["boxes"][0].set_label(name)
    panel.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    panel.set(ylabel="TRE of the landmarks (mm)", ylim=(0, None))
    return figure


def draw_case_bars(errors: Mapping[str, tuple[Array, Array]]) -> Figure:
    """Mean TRE and its standard deviation per case, before beside after."""
    shown = _worst_cases(errors)
    figure, panel = _case_panel(errors, shown)
    for side, (colour, name) in enumerate([(BEFORE, "before"), (AFTER, "after")]):
        means = np.array([errors[case][side].mean() for case in shown])
        deviations = np.array([errors[case][side].std() for case in shown])
        panel.bar(
            np.arange(len(shown)) + 0.4 * side - 0.2,
            means,
            width=0.36,
            color=colour,
            label=name,
            yerr=(np.minimum(means, deviations), deviations),
            error_kw={"elinewidth": 0.8, "capsize": 1.5, "capthick": 0.8},
        )
    panel.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, frameon=False)
    panel.set(ylabel="TRE, mean and SD (mm)", ylim=(0, None))
    return figure


def draw_distribution(errors: Mapping[str, tuple[Array, Array]]) -> Figure:
    """How the TRE of all landmarks is spread: histogram, and share of landmarks below each error."""
    before, after = (np.concatenate([both[side] for both in errors.values()]) for side in (0, 1))
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    counts, shares = figure.subplots(1, 2)
    highest = max(before.max(), after.max()) or 1
    for values, colour, name in [(before, BEFORE, "before"), (after, AFTER, "after")]:
        counts.hist(values, bins=40, range=(0, highest), color=colour, alpha=0.65, label=name)
        steps = np.concatenate([[0], np.sort(values), [1.02 * highest]])
        share = 100 * np.append(np.arange(len(values) + 1), len(values)) / len(values)
        shares.step(steps, share, where="post", color=colour, label=name)
    counts.set(xlabel="TRE (mm)", ylabel="landmarks (count)")
    counts.yaxis.set_major_locator(MaxNLocator(integer=True))
    shares.set(xlabel="TRE (mm)", ylabel="landmarks with at most this TRE (%)", ylim=(0, 102), xlim=(0, 1.02 * highest))
    shares.axhline(95, color="#999999", linestyle=":", linewidth=1)
    for panel in (counts, shares):
        panel.legend(frameon=False)
        _plain(panel)
    return figure


def draw_case_measures(measures: Mapping[str, tuple[str, Array, Array]]) -> Figure:
    """Each case before and after, one panel per measure: name to (axis label, before, after)."""
    figure = Figure(figsize=(min(2.6 * len(measures) + 0.4, 11), 3.4), layout="constrained")
    for panel, (label, before, after) in zip(
        figure.subplots(1, len(measures), squeeze=False)[0], measures.values(), strict=True
    ):
        panel.plot([0, 1], np.stack([before, after]), color="#BBBBBB", linewidth=0.7)
        for place, values, colour in [(0, before, BEFORE), (1, after, AFTER)]:
            panel.plot(np.full(len(values), place), values, "o", color=colour, markersize=3.5)
            panel.plot([place - 0.18, place + 0.18], [np.nanmedian(values)] * 2, color="black", linewidth=2)
        panel.set(ylabel=label, xlim=(-0.4, 1.4), xticks=[0, 1], xticklabels=["before", "after"], xlabel="registration")
        _plain(panel)
    return figure


def _panels(pair: Pair, titles: Sequence[str], in_one_row: bool = False) -> tuple[Figure, Array]:
    """A figure of axes (planes, titles), or (1, planes) in one row, sized by the image's mm and labelled in mm."""
    size = voxel_sizes(pair.affine) * pair.fixed.shape
    heights = [float(np.clip(size[vertical] / size[horizontal], 0.2, 1.6)) for horizontal, vertical in pair.planes]
    rows = [max(heights)] if in_one_row else heights
    columns = len(titles)
    panel = min(9.4 / max(columns, 2), max(9.0 / sum(rows), 2.2))  # inches wide
    left, right, top, bottom, beside, below = 0.6, 0.1, 0.35, 1.2, 0.65, 0.55  # inches; automatic layout takes seconds
    width = left + columns * panel + (columns - 1) * beside + right
    height = top + sum(rows) * panel + (len(rows) - 1) * below + bottom
    figure = Figure(figsize=(width, height))
    panels = figure.subplots(
        len(rows),
        columns,
        squeeze=False,
        height_ratios=rows,
        gridspec_kw={
            "left": left / width,
            "right": 1 - right / width,
            "bottom": bottom / height,
            "top": 1 - top / height,
            "wspace": beside / panel,
            "hspace": below / (panel * sum(rows) / len(rows)),
        },
    )
    planes = [[axes] * len(titles) for axes in pair.planes] if not in_one_row else [list(pair.planes)]
    for row, row_planes in zip(panels, planes, strict=True):
        for panel, (horizontal, vertical) in zip(row, row_planes, strict=True):
            names = AXIS_NAMES[pair.spatial_dims]
            panel.set_xlabel(f"{names[horizontal]} (mm)", fontsize=8)
            panel.set_ylabel(f"{names[vertical]} (mm)", fontsize=8)
            panel.tick_params(labelsize=7)
            panel.xaxis.set_major_locator(MaxNLocator(5))
            panel.yaxis.set_major_locator(MaxNLocator(5))
    for panel, title in zip(panels[0], titles, strict=True):
        panel.set_title(title, fontsize=10)
    return figure, panels


def _cut(array: Array, axes: tuple[int, int], index: Sequence[int]) -> Array:
    """The plane of two array axes through a voxel: (n_horizontal, n_vertical)."""
    return array[tuple(slice(None) if axis in axes else index[axis] for axis in range(len(index)))]


def _extent(shape: tuple[int, ...], spacing: Array) -> tuple[float, float, float, float]:
    """Edges left, right, bottom, top in mm from the first voxel's centre; the vertical axis runs downwards."""
    (left, right), (top, bottom) = starmap(
        lambda size, edge: (-edge / 2, (size - 0.5) * edge), zip(shape, spacing, strict=True)
    )
    return left, right, bottom, top


def _show(panel: Axes, pair: Pair, axes: tuple[int, int], plane: Array, **style: Any) -> ScalarMappable:
    """A plane of fixed's grid, (n_horizontal, n_vertical), in mm."""
    return panel.imshow(plane.T, extent=_extent(plane.shape, voxel_sizes(pair.affine)[list(axes)]), **style)


def _bar(figure: Figure, image: ScalarMappable, panels: Array, label: str) -> Colorbar:
    first, last = panels.flat[0].get_position(), panels.flat[-1].get_position()
    width, height = 0.7 * (last.x1 - first.x0), 0.12 / figure.get_figheight()
    place = ((first.x0 + last.x1 - width) / 2, 0.5 / figure.get_figheight(), width, height)
    bar = figure.colorbar(image, cax=figure.add_axes(place), orientation="horizontal")
    bar.set_label(label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    return bar


def _grey_range(image: Array) -> Callable[[Array], Array]:
    """Scale that takes the image's 1st and 99th percentile to 0 and 1."""
    step = max(1, round((image.size / 200_000) ** (1 / image.ndim)))  # a sample of a large volume will do
    low, high = np.percentile(image[(slice(None, None, step),) * image.ndim], [1, 99])
    return lambda values: (values - low) / (high - low or 1)


def _grey_planes(pair: Pair, axes: tuple[int, int]) -> tuple[Array, Array, Array]:
    """One plane of fixed, of moving where its header places it, and of warped; about 0 to 1, NaN outside of moving."""
    voxels = np.stack(
        np.meshgrid(
            *(
                np.arange(size) if axis in axes else np.array([pair.centre[axis]])
                for axis, size in enumerate(pair.fixed.shape)
            ),
            indexing="ij",
        ),
        axis=-1,
    ).reshape(*(pair.fixed.shape[axis] for axis in axes), pair.spatial_dims)
    inside_moving = apply_affine(np.linalg.inv(pair.moving_affine) @ pair.affine, voxels).round(
        6
    )  # an edge stays inside
    moving = ndimage.map_coordinates(pair.moving, np.moveaxis(inside_moving, -1, 0), order=1, cval=np.nan)
    carried = apply_affine(pair.affine, voxels) + pair.field[tuple(np.moveaxis(voxels, -1, 0))]
    carried = apply_affine(np.linalg.inv(pair.moving_affine), carried)
    inside = np.all((carried >= -0.5) & (carried <= np.array(pair.moving.shape) - 0.5), axis=-1)
    moving_range = _grey_range(pair.moving)
    return (
        _grey_range(pair.fixed)(_cut(pair.fixed, axes, pair.centre)),
        moving_range(moving),
        np.where(inside, moving_range(_cut(pair.warped, axes, pair.centre)), np.nan),
    )


def _carried_lines(pair: Pair, axes: tuple[int, int]) -> list[list[Array]]:
    """Lines of a plane of fixed where the field takes them: (n, 2) each, mm on moving's two axes."""
    shape = [pair.fixed.shape[axis] for axis in axes]
    spacing = voxel_sizes(pair.affine)
    cell = max(spacing * pair.fixed.shape) / 22
    voxels = np.zeros((*shape, pair.spatial_dims))
    voxels[:] = pair.centre
    voxels[..., axes[0]] = np.arange(shape[0])[:, None]
    voxels[..., axes[1]] = np.arange(shape[1])
    in_moving = apply_affine(pair.affine, voxels) + _cut(pair.field, axes, pair.centre)
    carried = apply_affine(np.linalg.inv(pair.moving_affine), in_moving)
    carried = (carried * voxel_sizes(pair.moving_affine))[..., axes]  # (n_horizontal, n_vertical, 2)
    steps = [max(1, round(cell / spacing[axis])) for axis in axes]
    return [list(carried[:: steps[0]]), list(carried.swapaxes(0, 1)[:: steps[1]])]


def _any(values: Array) -> bool:
    return bool(np.isfinite(values).any())


def _worst_cases(errors: Mapping[str, tuple[Array, Array]]) -> list[str]:
    """Cases by mean error after registration, no more than fit beside one another."""
    return sorted(errors, key=lambda case: float(errors[case][1].mean()))[-MOST_CASES:]


def _case_panel(errors: Mapping[str, tuple[Array, Array]], shown: Sequence[str]) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(9.5, 4.0), layout="constrained")
    panel = figure.subplots()
    every = len(shown) == len(errors)
    _label_positions(
        panel,
        shown,
        "case, sorted by mean TRE after" + ("" if every else f" (the worst {len(shown)} of {len(errors)})"),
    )
    panel.set_xlim(-0.7, len(shown) - 0.3)
    _plain(panel)
    return figure, panel


def _label_positions(panel: Axes, labels: Sequence[str], name: str) -> None:
    """A tick label per position where they fit, otherwise none."""
    panel.set_xlabel(name)
    panel.xaxis.set_major_locator(FixedLocator(list(range(len(labels)))))
    if len(labels) <= MOST_CASES:
        panel.set_xticks(range(len(labels)), [label[:24] for label in labels], rotation=90, fontsize=7)
    else:
        panel.xaxis.set_major_formatter(NullFormatter())
        panel.tick_params(axis="x", length=0)


def _plain(panel: Axes) -> None:
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    panel.set_axisbelow(True)
