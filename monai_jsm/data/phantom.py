"""A cine-MR phantom of the beating heart whose motion is known everywhere in closed form.

The default data of the bundle. ``fixed`` is end-diastole, ``moving`` end-systole; the anatomy is defined on the
material points of end-diastole, so with ``phi = id + ddf`` the images are ``fixed(x) = anatomy(x)`` and
``moving(y) = anatomy(phi^-1(y))``, and ``fixed(x)`` corresponds to ``moving(x + ddf(x))``.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import logging
import math
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from monai_jsm.data.errors import InputError
from monai_jsm.data.progress import with_progress

__all__ = ["OUTLIERS", "HeartMotion", "PhantomPair", "make_pair", "write_phantom"]

OUTLIERS = ("none", "mass", "cavity", "contrast", "through_plane")

_logger = logging.getLogger(__name__)

_Array = NDArray[np.float64]

# Lengths in the plane are told in reference voxels: those of an image of 128 x 128. Along the heart's long axis t is
# 0 at the valve plane and -1 at the apex; a 2D image is the plane t = 0.
_REFERENCE = 128.0
_DEFAULT_SIZE = {2: (128, 128), 3: (64, 64, 32)}
_SPACING = (1.25, 1.25, 2.5)
_REACH = 52.0  # no contraction and no twist beyond this distance from the centre of the left ventricle
_TOP = 0.53  # nor above this height
_CORNER = 0.75  # share of the cavity's area that is squeezed evenly; the rest leads over to the wall
_RIGHT_REACH = 2.5  # the right ventricle ends at this multiple of the squared epicardial radius
_WANTED_LANDMARKS = 36
_SEEDS_PER_SET = 1_000_000


def _step(x: _Array) -> _Array:
    """0 below 0, 1 above 1, twice differentiable."""
    x = np.clip(x, 0.0, 1.0)
    return x * x * x * (10.0 + x * (6.0 * x - 15.0))


def _step_slope(x: _Array) -> _Array:
    x = np.clip(x, 0.0, 1.0)
    return 30.0 * np.square(x * (1.0 - x))


def _step_integral(x: _Array) -> _Array:
    inside = np.clip(x, 0.0, 1.0)
    return inside**4 * (2.5 + inside * (inside - 3.0)) + np.maximum(x - 1.0, 0.0)


def _ramp(t: _Array, start: float, stop: float) -> _Array:
    """Antiderivative of the step that climbs from ``start`` to ``stop``."""
    return (stop - start) * _step_integral((t - start) / (stop - start))


def _solve_increasing(
    function: Callable[[_Array], tuple[_Array, _Array]], target: _Array, low: float, high: float
) -> _Array:
    """Where an increasing function (its value and slope) takes ``target``: Newton, kept inside a bracket."""
    below, above = np.full_like(target, low), np.full_like(target, high)
    x = np.clip(target, low, high)
    for _ in range(100):
        value, slope = function(x)
        error = value - target
        below, above = np.where(error < 0, x, below), np.where(error > 0, x, above)
        newton = x - error / slope
        following = np.where((newton >= below) & (newton <= above), newton, (below + above) / 2)
        if np.abs(following - x).max(initial=0.0) <= 1e-14 * (high - low):
            return following
        x = following
    return x


class _Swirl(NamedTuple):
    """Rotation about ``centre`` in one coordinate plane, fading as a Gaussian: it keeps every volume."""

    centre: _Array
    width: _Array
    axes: tuple[int, int]
    angle: float

    def __call__(self, points: _Array, direction: float = 1.0) -> _Array:
        """Turn points, (D, ...), forth or back."""
        trailing = (-1,) + (1,) * (points.ndim - 1)
        centre, width = self.centre.reshape(trailing), self.width.reshape(trailing)
        turned = (points - centre) / width
        angle = direction * self.angle * np.exp(-0.5 * np.square(turned).sum(axis=0))
        i, j = self.axes
        turned[i], turned[j] = _turn(turned[i], turned[j], angle)
        return turned * width + centre


def _turn(x: _Array, y: _Array, angle: _Array) -> tuple[_Array, _Array]:
    cos, sin = np.cos(angle), np.sin(angle)
    return cos * x - sin * y, sin * x + cos * y


@dataclasses.dataclass(frozen=True)
class HeartMotion:
    """The map from end-diastole to end-systole: four maps, one after the other, each in closed form.

    With s the squared distance from the long axis, theta the angle, t the height:

    1. contraction: s becomes q(s, theta, t), theta and t stay. The determinant is dq/ds, which is 1 / (dt'/dt)
       in the wall (step 3), so the wall keeps its volume; the blood is squeezed, the surroundings give way;
    2. twist: theta grows by an angle that depends on q and t. The determinant is 1;
    3. shortening: t becomes t'(t, q), a function of t alone within the left ventricle;
    4. a few wide swirls (local rotations), the rest of the motion. The determinant is 1.

    Each step is undone in closed form or as one increasing function of one number, so ``inverse`` is exact to
    rounding. Points are (..., D) float64, voxels, array order.

    Attributes:
        size: D voxels along each axis of the image.
        centre: (D,) voxels; the long axis where it meets the valve plane.
        frame: (2, 2), determinant 1 or -1, from voxels in the plane to the heart's own axes: the first one
            points to the right ventricle.
        endocardium: radius of the left ventricle's cavity at end-diastole, in 1/128 of the shorter edge in the plane.
        epicardium: outer radius of its wall, same unit.
        contraction: share of the endocardial radius that is lost.
        right_contraction: share of the right ventricle's area that is lost where it is deepest, about.
        shortening: share of the length that is lost; 0 in 2D.
        twist: angle in radians at the apex (at the one plane of a 2D image).
        swirls: the rest of the motion.
    """

    size: tuple[int, ...]
    centre: _Array
    frame: _Array
    endocardium: float
    epicardium: float
    contraction: float
    right_contraction: float
    shortening: float
    twist: float
    swirls: tuple[_Swirl, ...]

    @classmethod
    def draw(cls, seed: int, spatial_dims: int = 2, size: Sequence[int] | None = None) -> HeartMotion:
        """The motion of ``make_pair(seed, spatial_dims, size)``.

        Args:
            seed: not negative.
            spatial_dims: 2 or 3.
            size: D voxels, at least 32 each; 128 x 128 or 64 x 64 x 32 if left out.

        Raises:
            ValueError: if an argument is not as above.

        Example:
            >>> motion = HeartMotion.draw(seed=3)
            >>> x = np.array([[70.0, 51.5]])
            >>> bool(np.allclose(motion.inverse(x + motion.displacement(x)), x, atol=1e-10))
            True
        """
        size = _checked_size(seed, spatial_dims, size)
        rng = np.random.default_rng([seed, 0])
        edges = np.array(size, dtype=np.float64)
        unit = edges[:2].min() / _REFERENCE
        centre = (edges - 1) / 2
        centre[:2] += rng.uniform(-6.0, 6.0, 2) * unit
        centre[2:] = 0.64 * (edges[2:] - 1)
        angle, stretch, mirror = rng.uniform(0, 2 * np.pi), np.exp(rng.uniform(-0.06, 0.06)), rng.choice([-1.0, 1.0])
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        contraction = rng.uniform(0.25, 0.45)
        endocardium = rng.uniform(17.0, 19.5) - 12.0 * (contraction - 0.25)  # weak hearts are wide
        epicardium = endocardium + rng.uniform(6.0, 8.5)
        right_contraction = rng.uniform(0.05, 0.13)
        twist = np.deg2rad(rng.uniform(2.0, 12.0) * (1.2 - contraction)) * rng.choice([-1.0, 1.0])
        shortening = rng.uniform(0.10, 0.16) * (spatial_dims - 2)
        swirls = []
        for _ in range(3):
            axes = sorted(rng.choice(spatial_dims, 2, replace=False))
            swirls.append(
                _Swirl(
                    centre=(edges - 1) / 2 + rng.uniform(-0.13, 0.13, spatial_dims) * edges,
                    width=rng.uniform(0.085, 0.105) * edges,
                    axes=(int(axes[0]), int(axes[1])),
                    angle=float(rng.uniform(-0.16, 0.16)),
                )
            )
        return cls(
            size=size,
            centre=centre,
            frame=np.diag([stretch, mirror / stretch]) @ turn,
            endocardium=float(endocardium),
            epicardium=float(epicardium),
            contraction=float(contraction),
            right_contraction=float(right_contraction),
            shortening=float(shortening),
            twist=float(twist),
            swirls=tuple(swirls),
        )

    @property
    def unit(self) -> float:
        """Voxels in a reference voxel."""
        return min(self.size[:2]) / _REFERENCE

    @property
    def length(self) -> float:
        """Voxels from the valve plane to the apex; not used in 2D."""
        return 0.44 * (self.size[-1] - 1)

    def to_heart(self, points: _Array) -> tuple[_Array, _Array, _Array]:
        """Voxels, (D, ...), to the heart's own axes: two in the plane, reference voxels, and the height t.

        In 2D one height stands for all points: it has size 1 along each axis.
        """
        offset = points - self.centre.reshape((-1,) + (1,) * (points.ndim - 1))
        (a, b), (c, d) = self.frame / self.unit
        height = sum(offset[2:], start=np.zeros((1,) * (points.ndim - 1))) / self.length
        return a * offset[0] + b * offset[1], c * offset[0] + d * offset[1], height

    def from_heart(self, x: _Array, y: _Array, height: _Array | float) -> _Array:
        """The way back from ``to_heart``, (D, ...); the height is dropped in 2D."""
        (a, b), (c, d) = np.linalg.inv(self.frame) * self.unit
        along = [height * self.length] * (len(self.size) - 2)
        return np.stack(
            [centre + v for centre, v in zip(self.centre, [a * x + b * y, c * x + d * y, *along], strict=True)]
        )

    def squared_radii(self, height: _Array) -> tuple[_Array, _Array]:
        """Squared endo- and epicardial radius at end-diastole, tapering to 0 at the apex."""
        below = np.minimum(height, 0.0)
        inner = self.endocardium**2 * _ramp(1.1 - np.square(below / 0.82), 0.0, 0.2)
        return inner, self.epicardium**2 * _ramp(1.1 - np.square(below), 0.0, 0.2)

    def _shortened(self, height: _Array) -> tuple[_Array, _Array]:
        """Displacement of t inside the left ventricle, and its slope: the base descends, the apex stays."""
        edges = ((-1.0, -0.8), (-0.08, 0.16), (0.3, _TOP))
        middles = [(start + stop) / 2 for start, stop in edges]
        recovery = (middles[1] - middles[0]) / (middles[2] - middles[1])
        weights = (-self.shortening, self.shortening * (1 + recovery), -self.shortening * recovery)
        value, slope = np.zeros_like(height), np.zeros_like(height)
        for weight, (start, stop) in zip(weights, edges, strict=True):
            value += weight * _ramp(height, start, stop)
            slope += weight * _step((height - start) / (stop - start))
        return value, slope

    def _contraction(self, angle: _Array, height: _Array) -> Callable[[_Array], tuple[_Array, _Array]]:
        """The function s -> (q, dq/ds) along the rays with this angle and height."""
        inner, outer = (np.maximum(radius, 1e-9) for radius in self.squared_radii(height))
        wall = 1.0 / (1.0 + self._shortened(height)[1]) - 1.0
        lost = 1.0 - np.square(1.0 - self.contraction * (1.0 - _step(height / 0.5)))
        squeeze = 2.0 * (lost + wall) / (1.0 + _CORNER) - wall
        end, right_end = _REACH**2, _RIGHT_REACH * outer
        right = self.right_contraction * (right_end - outer) * np.square(0.5 + 0.5 * np.cos(angle))
        right = right * (1.0 - _step(height / 0.5))

        def contracted(s: _Array) -> tuple[_Array, _Array]:
            corner = (s / inner - _CORNER) / (1.0 - _CORNER)
            change = -squeeze * s + (squeeze + wall) * (1.0 - _CORNER) * inner * _step_integral(corner)
            change_slope = -squeeze + (squeeze + wall) * _step(corner)
            away = (s - outer) / (end - outer)
            fade, fade_slope = 1.0 - _step(away), -_step_slope(away) / (end - outer)
            into, beyond = (s - outer) / (right_end - outer), (s - right_end) / (end - right_end)
            rise, rise_slope = _step(into), _step_slope(into) / (right_end - outer)
            fall, fall_slope = 1.0 - _step(beyond), -_step_slope(beyond) / (end - right_end)
            q = s + change * fade - right * rise * fall
            slope = 1.0 + change_slope * fade + change * fade_slope - right * (rise_slope * fall + rise * fall_slope)
            return q, slope

        return contracted

    def _twisted(self, q: _Array, height: _Array) -> _Array:
        """Angle of the twist: in 3D it changes sign from base to apex."""
        along = 1.0 - 1.3 * (len(self.size) - 2) * (1.0 + height)
        ends = _step((height + 1.25) / 0.25) * (1.0 - _step(height / 0.5))
        return self.twist * along * ends * (1.0 - _step(q / _REACH**2))

    def _lowered(self, q: _Array) -> _Array:
        """Share of the shortening at this squared distance from the axis: 1 in the left ventricle."""
        start = self.epicardium**2
        return 1.0 - _step((q - start) / (_REACH**2 - start))

    def displacement(self, points: _Array) -> _Array:
        """Where each end-diastolic point goes until end-systole, minus the point: (..., D), voxels."""
        points = np.asarray(points, dtype=np.float64)
        return np.moveaxis(self._moved(_components(points)), 0, -1) - points

    def _moved(self, points: _Array) -> _Array:
        x, y, height = self.to_heart(points)
        s = np.maximum(x * x + y * y, 1e-12)
        q = self._contraction(np.arctan2(y, x), height)(s)[0]
        scale = np.sqrt(q / s)
        x, y = _turn(scale * x, scale * y, self._twisted(q, height))
        points = self.from_heart(x, y, height + self._shortened(height)[0] * self._lowered(q))
        for swirl in self.swirls:
            points = swirl(points)
        return points

    def inverse(self, points: _Array) -> _Array:
        """The end-diastolic place of end-systolic points: (..., D), voxels."""
        points = _components(np.asarray(points, dtype=np.float64))
        for swirl in reversed(self.swirls):
            points = swirl(points, direction=-1.0)
        x, y, lowered = self.to_heart(points)
        q = np.maximum(x * x + y * y, 1e-12)
        share = self._lowered(q)

        def shortened(height: _Array) -> tuple[_Array, _Array]:
            value, slope = self._shortened(height)
            return height + value * share, 1.0 + slope * share

        reach = np.abs(lowered).max(initial=1.0) + 1.0
        height = _solve_increasing(shortened, np.broadcast_to(lowered, q.shape), -reach, reach)
        x, y = _turn(x, y, -self._twisted(q, height))
        s, inside = np.array(q), q < _REACH**2
        contracted = self._contraction(np.arctan2(y[inside], x[inside]), height[inside])
        s[inside] = _solve_increasing(contracted, q[inside], 0.0, _REACH**2)
        scale = np.sqrt(s / q)
        return np.moveaxis(self.from_heart(scale * x, scale * y, height), 0, -1)

    def determinant(self, points: _Array) -> _Array:
        """Jacobian determinant of the map at end-diastolic points, (..., D) to (...)."""
        x, y, height = self.to_heart(_components(np.asarray(points, dtype=np.float64)))
        q, slope = self._contraction(np.arctan2(y, x), height)(x * x + y * y)
        return slope * (1.0 + self._shortened(height)[1] * self._lowered(q))


def _components(points: _Array) -> _Array:
    """(..., D) to (D, ...), each component in one piece: arithmetic on it is several times faster."""
    return np.ascontiguousarray(np.moveaxis(points, -1, 0))


class _Papillary(NamedTuple):
    """A muscle in the cavity: its place as angle and share of the endocardial radius, its half axes likewise."""

    angle: float
    place: float
    across: float
    along: float


@dataclasses.dataclass(frozen=True)
class _Anatomy:
    """Signal of the tissue at end-diastolic points, 0 to about 1, before the scanner sees it."""

    motion: HeartMotion
    tissues: dict[str, float]
    papillaries: tuple[_Papillary, ...]
    chest: tuple[float, float]  # direction (from the right ventricle's) and distance
    liver: tuple[float, float, float]  # direction, distance of its surface, its radius
    tilt: tuple[float, float]  # how both go sideways along the long axis
    textures: tuple[_Array, ...]  # spline coefficients on the grid of fixed: fine, coarse

    @classmethod
    def draw(cls, rng: np.random.Generator, motion: HeartMotion) -> _Anatomy:
        side = rng.choice([-1.0, 1.0])
        return cls(
            motion=motion,
            tissues={
                "lung": rng.uniform(0.02, 0.06),
                "muscle": rng.uniform(0.22, 0.34),
                "liver": rng.uniform(0.20, 0.36),
                "fat": rng.uniform(0.55, 0.78),
                "blood": rng.uniform(0.82, 0.95),
            },
            papillaries=_draw_papillaries(rng),
            chest=(side * rng.uniform(0.35, 1.0), rng.uniform(39.0, 48.0)),
            liver=(-side * rng.uniform(1.2, 1.9), rng.uniform(27.0, 34.0), rng.uniform(30.0, 46.0)),
            tilt=(rng.uniform(-6.0, 6.0), rng.uniform(-6.0, 6.0)),
            textures=_draw_textures(rng, motion),
        )

    def mutated(self, rng: np.random.Generator) -> _Anatomy:
        """The same tissues in a plane nearer the apex: a narrower cavity, other papillary muscles, other texture."""
        return dataclasses.replace(
            self,
            motion=dataclasses.replace(self.motion, endocardium=self.motion.endocardium * rng.uniform(0.70, 0.85)),
            papillaries=_draw_papillaries(rng, turn=rng.uniform(0.6, 2.0)),
            textures=_draw_textures(rng, self.motion),
        )

    def right_distance(self, x: _Array, y: _Array, height: _Array) -> _Array:
        """Distance from the right ventricle's cavity (the left one's wall left aside), reference voxels."""
        taper = _ramp(1.1 - np.square(np.minimum(height, 0.0) / 0.85), 0.0, 0.2)
        size = self.motion.epicardium * np.sqrt(np.maximum(taper, 1e-9))
        x, y = (x - 0.78 * size) / (0.74 * size), y / (1.02 * size)
        level = np.hypot(x, y)
        return level * (level - 1.0) / np.maximum(np.hypot(x / (0.74 * size), y / (1.02 * size)), 1e-6)

    def labels(self, points: _Array) -> NDArray[np.uint8]:
        """1 left cavity, papillary muscles and all; 2 left wall; 3 right cavity; 0 above the valve plane."""
        x, y, height = self.motion.to_heart(points)
        s = x * x + y * y
        inner, outer = self.motion.squared_radii(height)
        label = np.where(s < inner, 1, np.where(s < outer, 2, np.where(self.right_distance(x, y, height) < 0, 3, 0)))
        return np.where(height <= 0, label, 0).astype(np.uint8)

    def signal(self, points: _Array) -> _Array:
        """Signal at the points, (D, ...) to (...)."""
        motion, tissues = self.motion, self.tissues
        x, y, height = motion.to_heart(points)
        fine, coarse = (_sample(texture, points) for texture in self.textures)
        radius, angle = np.hypot(x, y), np.arctan2(y, x)
        inner, outer = (np.sqrt(squared) for squared in motion.squared_radii(height))

        def inside(distance: _Array) -> _Array:
            """Share of a voxel at this distance (reference voxels) from a border that lies on its inner side."""
            return _step(0.5 - distance * motion.unit / 1.7)

        # Lung, with vessels.
        image = tissues["lung"] * (1.0 + 0.35 * fine) + 0.35 * np.clip(fine - 1.9, 0.0, 1.2)

        # Below the diaphragm: a dark capsule, a rim of fat, the organ with its vessels.
        direction, away, size = self.liver
        off = np.hypot(x - (away + size) * np.cos(direction), y - (away + size) * np.sin(direction))
        depth = size + self.tilt[0] * height + 1.5 * coarse - off
        layers = np.array([0.08, tissues["fat"] * 0.7, 0.08, tissues["liver"], 0.85 * tissues["liver"]])
        organ = np.interp(depth, [0.0, 1.8, 3.8, 5.5, 22.0], layers)
        organ = organ * (1.0 + 0.10 * fine + 0.10 * coarse) + 0.25 * np.clip(fine - 1.6, 0.0, 1.0) * (depth > 4)
        image = _blend(image, organ, inside(-depth))

        # Chest wall: pleura, fat, muscle between ribs, fat under the skin.
        direction, away = self.chest
        along, across = _turn(x, y, np.array(-direction))
        depth = along - away - self.tilt[1] * height + 0.004 * np.square(across) + 1.2 * coarse
        fat, muscle = tissues["fat"], 0.6 * tissues["muscle"]
        layers = np.array([0.05, fat, fat, muscle, muscle, fat, 0.8 * fat, muscle, 1.2 * muscle])
        wall = np.interp(depth, [0.0, 1.5, 4.0, 6.0, 12.0, 14.0, 24.0, 27.0, 50.0], layers)
        image = _blend(image, wall * (1.0 + 0.08 * fine + 0.12 * coarse), inside(-depth))

        # Fat around both ventricles, thick in the grooves between them, in a thin dark sac.
        below_apex, below_cavity = (60.0 * np.maximum(tip - height, 0.0) for tip in (-1.0, -0.86))  # reference voxels
        right = self.right_distance(x, y, height) + below_apex
        left = radius - outer + below_apex
        cavity = radius - inner + below_cavity
        spread = 5.0
        mixed = np.clip(0.5 + (left - right) / (2 * spread), 0.0, 1.0)
        both = left * (1 - mixed) + right * mixed - spread * mixed * (1 - mixed)
        thickness = np.maximum(2.4 + 1.8 * coarse + 2.5 * np.clip(np.cos(angle - direction), 0.0, 1.0), 0.0)
        image = _blend(image, 0.05, inside(both - thickness - 1.3))
        image = _blend(image, 0.85 * fat * (1.0 + 0.15 * fine), inside(both - thickness))

        # Right ventricle: thin wall, blood with trabeculae.
        blood = tissues["blood"] * (1.0 + 0.035 * coarse + 0.03 * fine)
        flesh = tissues["muscle"] * (1.0 + 0.10 * fine)
        image = _blend(image, flesh, inside(right - 1.8))
        image = _blend(image, 0.92 * blood, inside(right + 1.6 * np.clip(fine + 0.2, 0.0, 2.0)))
        image = _blend(image, flesh, 0.6 * _step((fine - 1.2) / 0.8) * inside(right))

        # Left ventricle; above the valve plane its wall is thin, as an atrium's.
        thin = (outer - inner) * 0.6 * _step(height / 0.2)
        image = _blend(image, flesh, inside(left + thin))
        rough = 1.7 * np.clip(fine - 0.1, 0.0, 2.0) * (1.0 - _step(height / 0.1))
        image = _blend(image, blood, inside(cavity + rough))
        presence = 1.0 - _step(height / 0.15)
        for papillary in self.papillaries:
            along, across = _turn(x, y, np.array(-papillary.angle))
            along = (along - papillary.place * inner) / papillary.along
            level = (np.hypot(along, across / papillary.across) - inner) * papillary.across + 0.4 * fine
            image = _blend(image, flesh, presence * inside(level) * inside(cavity))
        return np.maximum(image, 0.0)


def _draw_papillaries(rng: np.random.Generator, turn: float = 0.0) -> tuple[_Papillary, ...]:
    """Two muscles on the free wall, on either side of the direction away from the right ventricle."""
    return tuple(
        _Papillary(
            angle=math.pi + turn + side * rng.uniform(0.75, 1.15),
            place=rng.uniform(0.60, 0.72),
            across=rng.uniform(0.13, 0.19),
            along=rng.uniform(0.18, 0.26),
        )
        for side in (-1.0, 1.0)
    )


def _draw_textures(rng: np.random.Generator, motion: HeartMotion) -> tuple[_Array, ...]:
    """Two smooth random fields of variance 1 as cubic spline coefficients."""
    textures = []
    for sigma in (max(0.9, 1.7 * motion.unit), max(1.2, 5.0 * motion.unit)):
        texture = ndimage.gaussian_filter(rng.standard_normal(motion.size), sigma, mode="reflect", truncate=3.0)
        textures.append(ndimage.spline_filter(texture / texture.std(), order=3, mode="mirror"))
    return tuple(textures)


def _sample(coefficients: _Array, points: _Array) -> _Array:
    return ndimage.map_coordinates(coefficients, points, order=3, mode="mirror", prefilter=False)


def _blend(below: _Array, above: _Array | float, share: _Array) -> _Array:
    return below + (above - below) * share


@dataclasses.dataclass(frozen=True)
class _Outlier:
    """What one of the two images shows and the other does not, told on end-diastolic points."""

    kind: str
    anatomy: _Anatomy
    other: _Anatomy
    centre: _Array  # (D,) voxels
    radius: float  # reference voxels
    waves: tuple[tuple[float, float], ...]  # amplitude and phase of the outline's second and third harmonic
    strength: float

    @classmethod
    def draw(cls, rng: np.random.Generator, kind: str, anatomy: _Anatomy) -> _Outlier:
        motion = anatomy.motion
        slides = kind == "through_plane"
        nearest, farthest = (0.2, 0.8) if slides else (0.6, 1.8)
        away, direction = motion.endocardium * rng.uniform(nearest, farthest), rng.uniform(0, 2 * np.pi)
        strengths = {
            "cavity": rng.uniform(0.02, 0.08),
            "mass": rng.choice([rng.uniform(0.42, 0.55), rng.uniform(1.1, 1.3)]),  # as no tissue
            "contrast": rng.choice([rng.uniform(-0.65, -0.5), rng.uniform(0.4, 0.55)]),
        }
        return cls(
            kind=kind,
            anatomy=anatomy,
            other=anatomy.mutated(rng),
            centre=motion.from_heart(away * np.cos(direction), away * np.sin(direction), rng.uniform(-0.6, -0.2)),
            radius=rng.uniform(10.0, 14.0) if slides else rng.uniform(6.0, 10.5),
            waves=tuple((rng.uniform(0.05, a), rng.uniform(0, 2 * np.pi)) for a in (0.22, 0.12)),
            strength=strengths.get(kind, 1.0),
        )

    def depth(self, points: _Array) -> _Array:
        """How far inside the outlier, (D, ...) to (...), voxels in the plane; negative outside."""
        motion = self.anatomy.motion
        x, y, height = motion.to_heart(points)
        if self.kind == "contrast":
            # The agent fills the blood, and in one sector half of the wall.
            inner, outer = (np.sqrt(squared) for squared in motion.squared_radii(height))
            sector = _step(2.0 * np.cos(np.arctan2(y, x) - self.waves[0][1]) - 1.0)
            return (inner + 0.5 * sector * (outer - inner) - np.hypot(x, y)) * motion.unit
        centre = motion.to_heart(self.centre)
        x, y = x - centre[0], y - centre[1]
        z = (height - centre[2]) * motion.length * _SPACING[2] / _SPACING[0] / motion.unit
        angle = np.arctan2(y, x)
        outline = sum(a * np.cos(k * angle + phase) for k, (a, phase) in enumerate(self.waves, start=2))
        return (self.radius * (1.0 + outline) - np.sqrt(x * x + y * y + z * z)) * motion.unit

    def paint(self, signal: _Array, points: _Array) -> _Array:
        """The signal with the outlier in it."""
        share = _step(0.5 + self.depth(points) / 1.7)
        seen = share > 0
        at, before = points[:, seen], signal[seen]
        if self.kind == "through_plane":
            content = self.other.signal(at)
        elif self.kind == "contrast":
            content = before + self.strength * (before if self.strength < 0 else 1.0)
        else:
            content = self.strength * (1.0 + 0.12 * _sample(self.other.textures[0], at))
        painted = signal.copy()
        painted[seen] = _blend(before, np.maximum(content, 0.0), share[seen])
        return painted


def _coil(rng: np.random.Generator, anatomy: _Anatomy, across: _Array) -> _Array:
    """Sensitivity of the receiving coil, which lies on the chest wall; ``across`` is (D, *S), -1 to 1."""
    facing = np.array([np.cos(anatomy.chest[0]), np.sin(anatomy.chest[0])]) @ anatomy.motion.frame
    slope = rng.uniform(0.1, 0.45) * facing / np.linalg.norm(facing)
    fall = rng.uniform(-0.2, 0.0)
    return np.exp(np.tensordot(slope, across[:2], axes=1) + fall * np.square(across).sum(axis=0))


def _acquire(rng: np.random.Generator, signal: _Array, coil: _Array, across: _Array) -> NDArray[np.float32]:
    """What the scanner makes of a signal: point spread, bias field, gain, Rician noise; blood lies near 750."""
    bias = coil * np.exp(np.tensordot(rng.uniform(-0.06, 0.06, len(across)), across, axes=1))
    ideal = ndimage.gaussian_filter(signal, 0.6, mode="nearest") * bias * 850.0 * rng.uniform(0.85, 1.15)
    noise = rng.uniform(10.0, 20.0) * rng.standard_normal((2, *signal.shape))
    return np.hypot(ideal + noise[0], noise[1]).astype(np.float32)


def _anatomical_points(anatomy: _Anatomy) -> _Array:
    """Places an observer finds, (N, D) voxels of fixed: both contours, insertions, right free wall, papillary tips."""
    motion = anatomy.motion
    around = np.arange(0.0, 2 * np.pi, 0.004)
    levels = np.linspace(0.0, -0.6, 1 + 2 * (len(motion.size) - 2))
    places = []
    for level in levels:
        inner, outer = (float(np.sqrt(radius)) for radius in motion.squared_radii(np.asarray(level)))
        for radius, count in ((inner, 10 // len(levels)), (outer, 8 // len(levels))):
            angles = 2 * np.pi * (np.arange(count) + 0.5) / count
            places += [(radius * np.cos(angle), radius * np.sin(angle), level) for angle in angles]
        circle = outer * np.cos(around), outer * np.sin(around)
        distance = anatomy.right_distance(*circle, level)
        for i in np.flatnonzero(np.sign(distance) != np.sign(np.roll(distance, -1))):
            angle = around[i] + 0.004 * distance[i] / (distance[i] - np.roll(distance, -1)[i])
            places.append((outer * np.cos(angle), outer * np.sin(angle), level))
        for slope in (-0.9, -0.3, 0.3, 0.9)[:: len(levels)]:
            ray = outer * np.linspace(1.0, 2.0, 501)
            distance = anatomy.right_distance(ray * np.cos(slope), ray * np.sin(slope), level)
            away = ray[np.abs(distance).argmin()]
            places.append((away * np.cos(slope), away * np.sin(slope), level))
        for muscle in anatomy.papillaries:
            tip = (muscle.place - muscle.along) * inner
            places.append((tip * np.cos(muscle.angle), tip * np.sin(muscle.angle), level))
    return motion.from_heart(*np.array(places).T).T


def _corners(signal: _Array, unit: float) -> _Array:
    """Corner-like voxels, the clearest first, (N, D): where the structure tensor is strong in every direction."""
    gradient = np.stack(np.gradient(ndimage.gaussian_filter(signal, max(0.8, unit))))
    tensor = np.empty((*signal.shape, len(gradient), len(gradient)))
    for i, first in enumerate(gradient):
        for j, second in enumerate(gradient[: i + 1]):
            tensor[..., i, j] = tensor[..., j, i] = ndimage.gaussian_filter(first * second, max(1.0, 1.5 * unit))
    trace = np.trace(tensor, axis1=-2, axis2=-1)
    clear = np.linalg.det(tensor) / np.maximum(trace, 1e-12) ** (len(gradient) - 1)
    peaks = np.argwhere((clear == ndimage.maximum_filter(clear, size=5 if unit > 0.4 else 3)) & (clear > 0))
    return peaks[np.argsort(-clear[tuple(peaks.T)], kind="stable")].astype(np.float64)


def _landmarks(
    anatomy: _Anatomy, signal: _Array, outlier: _Outlier | None, mask: NDArray[np.bool_]
) -> tuple[_Array, _Array]:
    """The anatomical points, then corners of the moving tissue, both (N, D), without what lies in the outlier."""
    motion = anatomy.motion
    last = np.array(motion.size) - 1
    anatomical, corners = _anatomical_points(anatomy), _corners(signal, motion.unit)
    shift = np.linalg.norm(motion.displacement(corners)[:, :2], axis=-1)
    fixed = np.concatenate([anatomical, corners[shift > motion.unit]])
    moving = fixed + motion.displacement(fixed)
    usable = ((fixed >= 1) & (fixed <= last - 1) & (moving >= 1) & (moving <= last - 1)).all(axis=-1)
    if outlier is not None:
        nearest = np.rint(np.clip(fixed, 0, last)).astype(int)
        usable &= (outlier.depth(fixed.T) < -2.0) & ~mask[tuple(nearest.T)]
    chosen: list[int] = []
    for i in np.flatnonzero(usable):
        gaps = np.linalg.norm(fixed[chosen] - fixed[i], axis=-1)
        if len(chosen) < _WANTED_LANDMARKS and gaps.min(initial=np.inf) > 3.0 * motion.unit:
            chosen.append(int(i))
    return fixed[chosen], moving[chosen]


class PhantomPair(NamedTuple):
    """One pair of the phantom and all that is known about it; S is the grid of both images.

    Attributes:
        fixed: end-diastole, (*S) float32, about 0 to 1000.
        moving: end-systole, (*S) float32.
        ddf: the truth, (D, *S) float64, voxels, components in array-axis order: fixed(x) is moving(x + ddf(x)).
        fixed_landmarks: (N, D) float64, voxels, first voxel's centre at zero; none lies in the outlier. 36 at the
            default sizes; fewer where a small grid leaves no room.
        moving_landmarks: the same landmarks in moving, (N, D) float64.
        fixed_label: (*S) uint8; 1 cavity of the left ventricle, 2 its wall, 3 cavity of the right ventricle.
        moving_label: the same at end-systole.
        outlier: (*S) bool, on the grid of fixed: tissue that one of the images does not show.
        spacing: D voxel edges in mm, array-axis order.
    """

    fixed: NDArray[np.float32]
    moving: NDArray[np.float32]
    ddf: _Array
    fixed_landmarks: _Array
    moving_landmarks: _Array
    fixed_label: NDArray[np.uint8]
    moving_label: NDArray[np.uint8]
    outlier: NDArray[np.bool_]
    spacing: tuple[float, ...]


def _checked_size(seed: int, spatial_dims: int, size: Sequence[int] | None) -> tuple[int, ...]:
    if spatial_dims not in _DEFAULT_SIZE:
        raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims!r}.")
    if int(seed) != seed or seed < 0:
        raise ValueError(f"seed must be a whole number that is not negative, got {seed!r}.")
    size = tuple(int(n) for n in size) if size is not None else _DEFAULT_SIZE[spatial_dims]
    if len(size) != spatial_dims or min(size) < 32:
        raise ValueError(f"size must be {spatial_dims} edges of at least 32 voxels, got {size}.")
    return size


def make_pair(
    seed: int, spatial_dims: int = 2, size: Sequence[int] | None = None, outlier: str | None = None
) -> PhantomPair:
    """Draw a heart, let it beat, and image it at end-diastole (fixed) and at end-systole (moving).

    The same arguments give the same bits. The motion does not depend on ``outlier``.

    Args:
        seed: not negative.
        spatial_dims: 2 (one short-axis slice) or 3 (a stack whose last axis is the heart's long axis, base last).
        size: D voxels, at least 32 each; 128 x 128 or 64 x 64 x 32 if left out. The heart grows with the image.
        outlier: what only one of the two images shows, drawn which one: ``"none"``; ``"mass"`` or ``"cavity"``, a
            grey, bright or dark lump; ``"contrast"``, an agent in the left ventricle's blood and part of its wall;
            ``"through_plane"``, another plane of the anatomy in one region. Drawn at random if left out, ``"none"``
            half of the time.

    Returns:
        Images, truth, landmarks, labels and the mask of the outlier.

    Raises:
        ValueError: if an argument is not as above.

    Example:
        >>> pair = make_pair(seed=7, size=(48, 40), outlier="mass")
        >>> pair.fixed.shape, pair.ddf.shape, bool(pair.outlier.any())
        ((48, 40), (2, 48, 40), True)
    """
    motion = HeartMotion.draw(seed, spatial_dims, size)
    if outlier is not None and outlier not in OUTLIERS:
        raise ValueError(f"outlier must be one of {', '.join(OUTLIERS)} or None, got {outlier!r}.")
    anatomy = _Anatomy.draw(np.random.default_rng([seed, 1]), motion)
    rng = np.random.default_rng([seed, 2])
    kind = str(rng.choice(OUTLIERS, p=[0.5, 0.125, 0.125, 0.125, 0.125]))
    carrier = int(rng.integers(2))
    lump = _Outlier.draw(rng, outlier or kind, anatomy) if (outlier or kind) != "none" else None

    grid = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float64) for n in motion.size), indexing="ij"))
    points = np.moveaxis(grid, 0, -1)
    material = (grid, _components(motion.inverse(points)))  # of fixed, of moving: (D, *S)
    signals = [anatomy.signal(place) for place in material]
    mask = np.zeros(motion.size, dtype=bool)
    clean = signals[0]
    if lump is not None:
        signals[carrier] = lump.paint(signals[carrier], material[carrier])
        mask = lump.depth(grid) > -1.35  # its soft edge and the point spread
    fixed_landmarks, moving_landmarks = _landmarks(anatomy, clean, lump, mask)

    rng = np.random.default_rng([seed, 3])
    across = np.stack([2.0 * index / (n - 1) - 1.0 for index, n in zip(grid, motion.size, strict=True)])
    coil = _coil(rng, anatomy, across)
    fixed, moving = (_acquire(rng, signal, coil, across) for signal in signals)
    return PhantomPair(
        fixed=fixed,
        moving=moving,
        ddf=_components(motion.displacement(points)),
        fixed_landmarks=fixed_landmarks,
        moving_landmarks=moving_landmarks,
        fixed_label=anatomy.labels(material[0]),
        moving_label=anatomy.labels(material[1]),
        outlier=mask,
        spacing=_SPACING[:spatial_dims],
    )


def write_phantom(
    folder: str | Path,
    spatial_dims: int = 2,
    training: int = 160,
    validation: int = 16,
    testing: int = 24,
    size: Sequence[int] | None = None,
    seed: int = 0,
) -> str:
    """Write a data set of phantom pairs: NIfTI images, labels and outlier masks, landmark CSV, ``datalist.json``.

    The folder appears complete or not at all, and once only, however many processes ask for it: whoever comes later
    takes what is there. Landmarks are in frame ``voxel0`` (array order, first voxel's centre at zero).

    Args:
        folder: made if absent; one that holds a phantom of the same settings is left as it is.
        spatial_dims: 2 or 3.
        training: number of pairs of that split, each with a heart of its own; so for the two others.
        validation: number of pairs.
        testing: number of pairs.
        size: D voxels, as for ``make_pair``.
        seed: data sets of different seeds share no pair.

    Returns:
        The folder.

    Raises:
        InputError: if the folder holds anything else, or a phantom of other settings.
        ValueError: if an argument is not as above.
    """
    size = _checked_size(seed, spatial_dims, size)
    counts = {"training": training, "validation": validation, "testing": testing}
    if min(counts.values()) < 0 or not 0 < sum(counts.values()) <= _SEEDS_PER_SET:
        raise ValueError(f"the three splits must hold 1 to {_SEEDS_PER_SET} pairs in all, none negative, got {counts}.")
    settings = {"version": 1, "spatial_dims": int(spatial_dims), "size": list(size), **counts, "seed": int(seed)}
    folder = Path(folder)
    if _holds_phantom(folder, settings):
        return str(folder)

    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    draft.mkdir()
    try:
        _logger.info("making %d phantom pairs in %s", sum(counts.values()), folder)
        datalist: dict[str, Any] = {"spatial_dims": int(spatial_dims), "landmark_space": "voxel0", "phantom": settings}
        names = [(split, f"{split}_{i:03d}") for split, count in counts.items() for i in range(count)]
        datalist.update({split: [] for split in counts})
        for number, (split, name) in enumerate(with_progress(names, "making the phantom")):
            pair = make_pair(int(seed) * _SEEDS_PER_SET + number, spatial_dims, size)
            datalist[split].append(_write_case(draft, name, pair))
        (draft / "datalist.json").write_text(json.dumps(datalist, indent=2) + "\n", encoding="utf-8")
        try:
            os.rename(draft, folder)  # onto nothing or an empty folder
        except OSError:
            if not _holds_phantom(folder, settings):
                raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return str(folder)


def _holds_phantom(folder: Path, settings: dict[str, Any]) -> bool:
    """Whether the data set is there already; False if there is nothing at all."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    remedy = "Name another folder, or delete this one."
    try:
        found = json.loads((folder / "datalist.json").read_text(encoding="utf-8"))["phantom"]
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(f"{folder} exists and does not hold a phantom. {remedy}") from None
    if found != settings:
        raise InputError(f"{folder} holds a phantom made with {found}, not with {settings}. {remedy}")
    return True


def _write_case(folder: Path, name: str, pair: PhantomPair) -> dict[str, str]:
    """One folder of files; returns the case of the datalist."""
    (folder / name).mkdir()
    affine = np.diag([*pair.spacing, *[1.0] * (4 - len(pair.spacing))])
    affine[:3, 3] = (-62.5, -81.25, 12.5)
    case = {"id": name}
    images = ("fixed_image", pair.fixed), ("moving_image", pair.moving)
    labels = ("fixed_label", pair.fixed_label), ("moving_label", pair.moving_label)
    for key, array in (*images, *labels, ("outlier", pair.outlier.astype(np.uint8))):
        path = f"{name}/{key}.nii.gz"
        nib.save(nib.Nifti1Image(array, affine), folder / path)
        if key != "outlier":
            case[key] = path
    for key, points in (("fixed_landmarks", pair.fixed_landmarks), ("moving_landmarks", pair.moving_landmarks)):
        case[key] = f"{name}/{key}.csv"
        with (folder / case[key]).open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(["label", *"xyz"[: points.shape[1]]])
            writer.writerows([i, *point] for i, point in enumerate(points.tolist()))
    return case
