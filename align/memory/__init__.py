"""Will it fit?  Peak memory of stages, predicted from shapes and settings before anything is loaded; no torch."""

from align.memory import kinds, rows
from align.memory.budget import Choice, fits, floor, parse_size, proposals
from align.memory.kinds import plan
from align.memory.known import Inquiry, Known, Unknown, outcome, workload_of
from align.memory.plan import Footprint, MemoryPlan, Part, Phase, Workload
from align.memory.shapes import Shape
from align.memory.text import as_json, report

__all__ = [
    "Choice",
    "Footprint",
    "Inquiry",
    "Known",
    "MemoryPlan",
    "Part",
    "Phase",
    "Shape",
    "Unknown",
    "Workload",
    "as_json",
    "fits",
    "floor",
    "kinds",
    "outcome",
    "parse_size",
    "plan",
    "proposals",
    "report",
    "rows",
    "workload_of",
]
