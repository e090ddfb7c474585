"""What is said of one migration or sync."""

from __future__ import annotations

from typing import Any

import pytest

from haulier.cli.migration import _complain, _text

ERROR = {"code": "target_failed", "message": "the target's QEMU ended", "hint": "QEMU's own words."}
DOCUMENT: dict[str, Any] = {
    "id": 7, "vm": "web1", "source": "alpha", "target": "beta", "state": "done", "kind": "migration",
    "generation": None, "downtime_ms": None, "total_s": 1.5, "ram_bytes": None, "tpm": None, "errors": [],
    "waiting_for": None,
}  # fmt: skip


def test_migration_says_where_the_vm_went() -> None:
    assert _text(DOCUMENT).splitlines()[0] == "migration 7: web1 alpha → beta: done"


def test_sync_is_not_taken_for_a_migration() -> None:
    """The VM is where it was."""
    said = _text({**DOCUMENT, "kind": "sync", "generation": 5}).splitlines()[0]
    assert said == "sync 7: generation 5 of web1 to its replica on beta: done"


@pytest.mark.parametrize(("state", "is_told"), [("undone", True), ("needs_operator", True), ("cancelled", False)])
def test_what_a_cancel_has_broken_is_no_error(capsys: pytest.CaptureFixture[str], state: str, *, is_told: bool) -> None:
    _complain({**DOCUMENT, "state": state, "errors": [ERROR]})
    assert ("error[target_failed]" in capsys.readouterr().err) == is_told
