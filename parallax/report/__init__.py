"""Tables, JSON, HTML and plots of what the lenses found, rendered without computing anything."""

from parallax.report.files import check_writable
from parallax.report.overview import overview_table
from parallax.report.report import Report
from parallax.report.request import SCHEMA_VERSION, load_request

__all__ = ["SCHEMA_VERSION", "Report", "check_writable", "load_request", "overview_table"]
