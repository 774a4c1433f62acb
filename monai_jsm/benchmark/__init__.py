"""Suites that measure monai_jsm against what its users would run instead."""

from __future__ import annotations

from monai_jsm.benchmark.compare import describe, named_suites, own_suite, run_benchmark
from monai_jsm.benchmark.speed import speed_suite

__all__ = ["describe", "named_suites", "own_suite", "run_benchmark", "speed_suite"]
