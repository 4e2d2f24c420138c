"""Will it fit?  Peak memory of stages, predicted from shapes and settings before anything is loaded; no torch."""

from align.memory.budget import Choice, fits, floor, parse_size, proposals
from align.memory.find import Known, Question, Unknown, outcome, setup_of
from align.memory.kinds import KINDS, plan
from align.memory.plan import Part, Phase, Plan, Setup
from align.memory.shapes import Shape
from align.memory.text import as_json, report

__all__ = [
    "KINDS",
    "Choice",
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
    "outcome",
    "parse_size",
    "plan",
    "proposals",
    "report",
    "setup_of",
]
