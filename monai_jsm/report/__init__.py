"""Figures and the HTML page of a finished registration, or of the evaluation of many."""

from __future__ import annotations

from monai_jsm.report.page import measures_table, record_table, write_cohort_report, write_report

__all__ = ["measures_table", "record_table", "write_cohort_report", "write_report"]
