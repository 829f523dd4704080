"""Grids of networks, requests, methods and seeds, with equal tuning budgets and tables that show losses too."""

from qunlearn.bench.grid import Grid, read_grid
from qunlearn.bench.runner import run
from qunlearn.bench.table import markdown, tables

__all__ = ["Grid", "markdown", "read_grid", "run", "tables"]
