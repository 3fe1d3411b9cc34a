"""The files of the launcher by their own names, as they import one another."""

from __future__ import annotations

import sys

from tests.fakes import PROJECT

sys.path.insert(0, str(PROJECT / "rules" / "tools" / "launch"))
