"""Run methods on the pairs of a suite, each result kept as soon as it is there."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import logging
import math
import os
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from scipy import ndimage

import monai_jsm
from monai_jsm.benchmark.methods import Method
from monai_jsm.benchmark.results import CaseResult, read_result, write_result
from monai_jsm.benchmark.suites import Suite
from monai_jsm.data import load_cases
from monai_jsm.data.errors import InputError
from monai_jsm.data.images import read_image
from monai_jsm.data.progress import with_progress
from monai_jsm.data.results import file_hash
from monai_jsm.geometry import sample, world_to_voxel
from monai_jsm.registration import PreAlignd, TotalFieldd, preprocessing
from monai_jsm.transforms import (
    CarryLandmarksd,
    JacobianDeterminantd,
    JointSaliencyd,
    MeasurePaird,
    WarpOriginald,
    WarpPaird,
)

__all__ = ["run_suite"]

logger = logging.getLogger(__name__)

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")


def run_suite(
    suite: Suite,
    methods: Sequence[Method],
    datalist: Path,
    output: Path,
    *,
    section: str = "testing",
    limit: int | None = None,
    with_landmarks: bool = False,
    jobs: int = 1,
    weights: Path | None = None,
    allow_outside: bool = False,
    commit: str = "",
) -> list[CaseResult]:
    """Register every case by every method; what was done before with the same settings and files is not done again.

    All rows start from the same pair: read, pre-aligned as the suite says, moving on the grid of fixed, intensities in
    [0, 1], masks left out, since most methods take none. A method's own work is timed, after a warm-up on a tiny pair,
    and the pre-alignment it starts from. All libraries are given the same number of threads.

    Args:
        suite: its pre-alignment, and on which data learned rows were trained.
        methods: rows.
        datalist: folder with ``datalist.json``.
        output: folder; results go to ``output/results/METHOD/CASE.json``.
        section: of the datalist.
        limit: only the first so many cases.
        with_landmarks: only cases that have landmarks.
        jobs: processes at the same time, each with its share of the threads; seconds are then those of a busy machine.
        weights: of our own rows; the released ones if left out.
        allow_outside: see :func:`monai_jsm.data.load_cases`.
        commit: of the source of monai_jsm, kept with each result.

    Returns:
        Results in the order of methods, then of cases.

    Raises:
        InputError: if the datalist or one of its files cannot be used, or a process was ended from outside.
    """
    cases = load_cases(datalist, section, suite.spatial_dims, allow_outside)
    cases = [case for case in cases if not with_landmarks or "fixed_landmarks" in case][:limit]
    if not cases:
        what = "no case with landmarks" if with_landmarks else "no case"
        raise InputError(f"{datalist}: has {what} in its section {section}; benchmark another section.")
    prints = {method.name: method.fingerprint(suite.weights, suite.spatial_dims, weights) for method in methods}
    done: dict[tuple[str, str], CaseResult] = {}
    missing: dict[str, list[tuple[Method, str]]] = {}
    for case in cases:
        files = _case_fingerprint(case, suite)
        missing[case["id"]] = []
        for method in methods:
            wanted = f"{prints[method.name]}-{files}"
            found = read_result(_path(output, method.name, case["id"]))
            if found is not None and found.fingerprint == wanted and not found.failure:
                done[method.name, case["id"]] = found
            else:
                missing[case["id"]].append((method, wanted))
    threads = _threads(jobs)
    made = {"threads": threads, "jobs": jobs, "version": monai_jsm.__version__, "commit": commit}
    run_case = partial(_run_case, suite=suite, output=output, weights=weights, made=made)
    alone = len(cases) < 4 * jobs  # then a case is dealt out method by method, or one process would have it all
    works: list[Callable[[], list[CaseResult]]] = [
        partial(run_case, case, part)
        for case in cases
        for part in ([[row] for row in missing[case["id"]]] if alone else [missing[case["id"]]])
        if part
    ]
    with _pool(jobs, threads) as pool:
        if pool:
            works = [pool.submit(work).result for work in works]
        for work in with_progress(works, f"{suite.name}: registering"):
            try:
                done |= {(result.method, result.case): result for result in work()}
            except BrokenProcessPool as error:
                raise InputError(
                    f"suite {suite.name}: one of its processes was ended from outside, most likely for lack of memory; "
                    "run it again with fewer --jobs, what is done is kept."
                ) from error
    return [done[method.name, case["id"]] for method in methods for case in cases]


def _threads(jobs: int) -> int:
    """A process's share of the cores, and no more than OMP_NUM_THREADS allows."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    allowed = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores // jobs, int(allowed) if allowed.isdigit() else cores))


def _set_threads(threads: int) -> None:
    """Give torch, SimpleITK and the ITK inside of other packages so many threads."""
    import SimpleITK

    torch.set_num_threads(threads)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)


@contextlib.contextmanager
def _pool(jobs: int, threads: int) -> Iterator[ProcessPoolExecutor | None]:
    """So many processes; None for one job, which works in this process."""
    if jobs == 1:
        _set_threads(threads)
        yield None
        return
    told = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, str(threads)))  # read by libraries when a process starts
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), _set_threads, (threads,))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        for name, value in told.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _path(output: Path, method: str, case: str) -> Path:
    return output / "results" / method / f"{case}.json"


def _case_fingerprint(case: Mapping[str, Any], suite: Suite) -> str:
    files = {key: file_hash(value) for key, value in sorted(case.items()) if os.path.isabs(str(value))}
    others = {key: str(value) for key, value in sorted(case.items()) if key not in files}
    return hashlib.sha256(json.dumps([files, others, suite.affine]).encode()).hexdigest()[:16]


def _run_case(
    case: Mapping[str, Any],
    missing: Sequence[tuple[Method, str]],
    suite: Suite,
    output: Path,
    weights: Path | None,
    made: dict[str, Any],
) -> list[CaseResult]:
    """The results of one case, written as they come."""
    prepared: dict[str, tuple[dict[Hashable, Any], float] | str] = {}
    results = []
    for method, fingerprint in missing:
        affine = method.affine or suite.affine
        if affine not in prepared:
            try:
                prepared[affine] = _prepare(case, suite.spatial_dims, affine)
            except Exception as error:  # that of one pair, the others are still to be done
                prepared[affine] = _told(error, f"{case['id']}, pre-alignment {affine}")
        empty = CaseResult(method.name, case["id"], subject=case.get("subject", ""), made=made, fingerprint=fingerprint)
        try:
            result = _run(empty, method, case, prepared[affine], suite, weights)
        except Exception as error:  # one method's fault is a row of the table, not the end of the others
            result = replace(empty, failure=_told(error, f"{case['id']}, {method.name}"))
        results.append(result)
        write_result(result, _path(output, method.name, case["id"]))
    return results


def _told(error: Exception, where: str) -> str:
    if isinstance(error, InputError):
        return str(error)
    logger.warning("%s: failed.", where, exc_info=error)
    return f"{type(error).__name__}: {error}"


def _prepare(case: Mapping[str, Any], spatial_dims: int, affine: str) -> tuple[dict[Hashable, Any], float]:
    """The pair that methods are given, without masks, and the seconds of the pre-alignment."""
    pair: dict[Any, Any] = {key: value for key, value in case.items() if not key.endswith("_mask")}
    seconds = 0.0
    for step in preprocessing(spatial_dims, affine).transforms:
        started = time.perf_counter()
        pair = step(pair)
        if isinstance(step, PreAlignd) and affine != "none":
            seconds = time.perf_counter() - started
    return pair, seconds


def _run(
    empty: CaseResult,
    method: Method,
    case: Mapping[str, Any],
    prepared: tuple[dict[Hashable, Any], float] | str,
    suite: Suite,
    weights: Path | None,
) -> CaseResult:
    if isinstance(prepared, str):
        return replace(empty, failure=prepared)
    pair, affine_seconds = prepared
    work = _ready(method, suite, weights)
    with _memory() as memory:
        started = time.perf_counter()
        pair = work(pair)
        seconds = time.perf_counter() - started
    ddf, shape = pair["pred"], (suite.spatial_dims, *pair["fixed_image"].shape[1:])
    if tuple(ddf.shape) != shape or not torch.isfinite(ddf).all():
        fault = "of another shape" if tuple(ddf.shape) != shape else "that is not finite"
        raise InputError(f"{method.name}: returned a field {fault}; report it with the pair.")
    measures, landmarks = _measure(pair, case, suite.spatial_dims)
    warnings = [line for line in str(pair.get("warnings", "")).split("\n") if line]
    return replace(
        empty,
        measures=measures,
        landmarks=landmarks,
        seconds=seconds + affine_seconds,
        peak_memory=memory["grown"],
        warnings=warnings,
    )


_runners: dict[tuple[Any, ...], Callable[[Mapping[Hashable, Any]], dict[Hashable, Any]]] = {}


def _ready(
    method: Method, suite: Suite, weights: Path | None
) -> Callable[[Mapping[Hashable, Any]], dict[Hashable, Any]]:
    """A method that ran once in this process on a tiny pair: imports and the reading of weights are not to be timed."""
    key = (method.name, suite.weights, suite.spatial_dims, weights)
    if key not in _runners:
        work = method.runner(suite.weights, weights)
        shape = [32, 36, 34][: suite.spatial_dims]
        noise = ndimage.gaussian_filter(np.random.default_rng(0).random(shape), 3.0)
        image = torch.from_numpy((noise - noise.min()) / np.ptp(noise)).float()[None]
        tiny = {
            f"{side}_image": MetaTensor(image, affine=torch.eye(suite.spatial_dims + 1)) for side in ("fixed", "moving")
        }
        with contextlib.suppress(Exception):  # the real pair will tell
            work(tiny | {"id": "warm-up", "warnings": ""})
        _runners[key] = work
    return _runners[key]


@contextlib.contextmanager
def _memory() -> Iterator[dict[str, float]]:
    """``grown``: MiB by which this process was larger at its peak than before; NaN where Linux does not tell."""
    told = {"grown": math.nan}
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts anew from here
        before = _status("VmRSS")
    except (OSError, AttributeError, TypeError):  # not Linux
        yield told
        return
    yield told
    told["grown"] = (_status("VmHWM") - before) / 1024


def _status(key: str) -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(key))


def _measure(
    pair: dict[Hashable, Any], case: Mapping[str, Any], spatial_dims: int
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Measures and landmarks of a pair with its field, by the same steps as every registration."""
    steps = [WarpPaird(), TotalFieldd(), WarpOriginald(), JointSaliencyd(spatial_dims), JacobianDeterminantd()]
    pair = Compose([*steps, CarryLandmarksd(), MeasurePaird()])(pair)
    measures = dict(pair["measures"])
    difference = pair["fixed_image"].as_tensor().float() - torch.as_tensor(pair["warped_image"]).float()
    measures["image_error"] = difference.abs().mean().item()
    errors = {name: values.tolist() for name, values in pair["landmark_errors"].items()}
    if not len(pair["fixed_world"]):
        return measures, []
    labels = pair["landmark_labels"].split("\n")
    fixed_voxels = world_to_voxel(pair["fixed_world"], pair["fixed_image"].affine)
    trust = _at(pair["trust"].as_tensor().float(), fixed_voxels)
    distances = _outlier_distances(pair, case)
    rows = []
    for i, label in enumerate(labels):
        row = {name: errors[name][i] for name in ("before_voxel", "after_voxel", "before_mm", "after_mm")}
        distance = None if distances is None else distances[i]
        rows.append({"label": label, **row, "outlier_distance": distance, "trust": trust[i]})
    return measures, rows


def _at(image: torch.Tensor, voxels: torch.Tensor) -> list[float]:
    """Values of (1, *S) at (N, D) voxels."""
    there = voxels.float().T.reshape(1, voxels.shape[1], *[1] * (voxels.shape[1] - 1), -1)
    return sample(image[None], there).flatten().tolist()


def _outlier_distances(pair: Mapping[Hashable, Any], case: Mapping[str, Any]) -> list[float] | None:
    """Voxels from each landmark to the nearest voxel that only one image shows, in that image."""
    nearest = None
    for side, image in (("fixed", "fixed_image"), ("moving", "moving_original")):
        if f"{side}_outlier" not in case:
            continue
        outlier = read_image(case[f"{side}_outlier"])[0] > 0
        if not outlier.any():
            continue
        away = torch.from_numpy(ndimage.distance_transform_edt(~outlier)).float()
        distances = _at(away[None], world_to_voxel(pair[f"{side}_world"], pair[image].affine))
        nearest = distances if nearest is None else [min(a, b) for a, b in zip(nearest, distances, strict=True)]
    return nearest
