"""Reports: a table, JSON and one HTML page. They know results, not how they came about."""

from parallax.report.report import Report

__all__ = ["Report"]
