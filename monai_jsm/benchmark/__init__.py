"""Suites that measure monai_jsm against what its users would run instead."""

from __future__ import annotations

from monai_jsm.benchmark.speed import speed_suite

__all__ = ["speed_suite"]
