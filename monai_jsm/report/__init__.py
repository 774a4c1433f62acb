"""Figures and the HTML page of a finished registration, or of the evaluation of many."""

from __future__ import annotations

from monai_jsm.report.page import write_cohort_report, write_report

__all__ = ["write_cohort_report", "write_report"]
