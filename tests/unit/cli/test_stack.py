"""What `up` and `down` say of migrations that nobody works at."""

from __future__ import annotations

from haulier.cli.stack import _open


def test_each_migration_that_is_open_has_a_line() -> None:
    assert _open({"open": [3, 5]}, "is open") == "\nmigration 3 is open\nmigration 5 is open"
    assert _open({"open": []}, "is open") == ""
