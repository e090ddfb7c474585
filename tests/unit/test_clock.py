"""What is done now and then only."""

from __future__ import annotations

import pytest

from haulier import clock
from haulier.clock import Pace


def test_pace_is_due_at_once_and_then_in_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace(1.0)
    times = {0.0: True, 0.5: False, 0.99: False, 1.0: True, 1.5: False, 7.0: True}
    for at, due in times.items():
        monkeypatch.setattr(clock, "steady_s", lambda at=at: at)
        assert pace.is_due() is due, at
