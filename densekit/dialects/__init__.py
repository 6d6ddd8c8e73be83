"""Weights that others saved: read without unpickling, recognised by their names, loaded strictly, with a report."""

from densekit.dialects.conversion import Changes, convert
from densekit.dialects.reading import open_foreign, read_foreign
from densekit.dialects.report import LoadReport
from densekit.dialects.table import dialect_names, find_dialect, recognise
from densekit.dialects.writing import write_foreign

__all__ = [
    "Changes", "LoadReport", "convert", "dialect_names", "find_dialect", "open_foreign", "read_foreign", "recognise",
    "write_foreign",
]  # fmt: skip
