"""The end of an ablation: its table, from what lies in its folder. Called where cells run here, and by the job after an array."""

from pathlib import Path

from vet_extensions.ablation.cells import read_cells
from vet_extensions.ablation.plan import read_plan
from vet_extensions.ablation.prepare import PLAN_FILE


def write_table(folder: Path) -> Path:
    """Write the table, as text, as a page and for programs, of what is done so far; returns the page."""
    from vet_extensions.ablation.page import write_tables
    from vet_extensions.ablation.table import ablation_table

    return write_tables(ablation_table(read_plan(folder / PLAN_FILE), read_cells(folder)), folder)
