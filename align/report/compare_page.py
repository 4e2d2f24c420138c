"""`align compare --html`: the comparison as one page, with the style, and as safe, as a report's."""

from __future__ import annotations

from string import ascii_uppercase

from align.ground.terminal import printable
from align.report import summary
from align.report.compare import Comparison, cost_text, left_over, legend
from align.report.html import environment
from align.report.text import value_text
from align.store.shapes import PAGE


def compared_page(found: Comparison) -> str:
    """The page as text; write it as UTF-8."""
    from align.report import plots

    templates = environment()
    templates.filters |= {
        "text": value_text,
        "interval": summary.interval,
        "cost": cost_text,
        "colour": plots.colour,
    }
    body = templates.get_template("compare.html.jinja").render(
        report={"title": f"{len(found.runs)} runs beside each other"},
        found=found,
        left=left_over(found),
        legend=" ".join(legend(found, "★")).replace("`", ""),
        letters=ascii_uppercase,
        overlaid=plots.overlaid,
    )
    return PAGE + printable(body)
