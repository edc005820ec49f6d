"""What a model costs, what a run reached, and several runs side by side."""

from pcl_clora.report.cost import cost_report, count_cost
from pcl_clora.report.records import RunRecord, read_run, run_cost
from pcl_clora.report.run import write_report
from pcl_clora.report.shapes import ReportError
from pcl_clora.report.tables import RunTable, make_table

__all__ = [
    "ReportError",
    "RunRecord",
    "RunTable",
    "cost_report",
    "count_cost",
    "make_table",
    "read_run",
    "run_cost",
    "write_report",
]
