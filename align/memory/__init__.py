"""Will it fit?  Peak memory of stages, predicted from shapes and settings before anything is loaded; no torch."""

from align.memory import kinds, rows
from align.memory.budget import Choice, fits, floor, parse_size, proposals
from align.memory.find import Known, Question, Unknown, outcome, setup_of
from align.memory.kinds import plan
from align.memory.plan import Footprint, Part, Phase, Plan, Setup
from align.memory.shapes import Shape
from align.memory.text import as_json, report

__all__ = [
    "Choice",
    "Footprint",
    "Known",
    "Part",
    "Phase",
    "Plan",
    "Question",
    "Setup",
    "Shape",
    "Unknown",
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
    "setup_of",
]
