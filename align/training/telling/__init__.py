"""What a run at work tells people: its line of progress, its news, trackers.

Modules load on first use.
"""

from typing import TYPE_CHECKING

from align.ground import lazy

if TYPE_CHECKING:
    from align.training.telling import progress, reporter, tracker_names, trackers

__getattr__ = lazy.modules(__name__)
