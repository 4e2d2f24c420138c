"""Trackers of transformers that `report_to` names, checked before anything is loaded."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

from align.errors import InputError


def check(names: Sequence[str]) -> None:
    """Raises: InputError for a tracker that transformers does not know, or whose package is not installed."""
    for name in names:
        if name not in INTEGRATION_TO_CALLBACK:
            near = difflib.get_close_matches(name, INTEGRATION_TO_CALLBACK, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(INTEGRATION_TO_CALLBACK))}."
            raise InputError(f"report_to: {name} is no tracker of transformers; {hint}")
        if name not in get_available_reporting_integrations():
            raise InputError(f"report_to: the package of {name} is not installed here. Install it, or leave it out.")
