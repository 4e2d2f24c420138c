"""What `import align` tells the threads that torch computes with."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SAYS = "import os, align; print(os.environ.get('GOMP_SPINCOUNT'))"


@pytest.mark.parametrize(
    ("own", "found"), [({}, "2000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "passive"}, "None")]
)
def test_threads_that_wait_sleep_soon(own: dict[str, str], found: str) -> None:
    """Unless the user has said how they wait."""
    given = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")} | own
    assert subprocess.check_output([sys.executable, "-c", SAYS], env=given, text=True).strip() == found
