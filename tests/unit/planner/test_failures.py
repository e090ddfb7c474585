"""Delays between tries: they grow, they are spread, they have an end."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import haulier
from haulier.planner.failures import CLASSES, FailureClass, class_of, delay_s


@pytest.mark.parametrize(("failures", "expected"), [(1, 10), (2, 20), (3, 40), (7, 600), (5000, 600)])
def test_doubles_up_to_the_limit(failures: int, expected: float) -> None:
    assert delay_s(failures, at_most_s=600, chance=0.5) == pytest.approx(expected)


@given(failures=st.integers(1, 100), limit=st.floats(1, 1e6), chance=st.floats(0, 1))
def test_chance_moves_it_by_a_fifth_at_most(failures: int, limit: float, chance: float) -> None:
    middle = delay_s(failures, at_most_s=limit, chance=0.5)
    assert 0.79 * middle <= delay_s(failures, at_most_s=limit, chance=chance) <= 1.21 * middle


def test_two_that_failed_together_do_not_come_back_together() -> None:
    assert delay_s(3, at_most_s=600, chance=0.1) != delay_s(3, at_most_s=600, chance=0.9)


def test_every_code_of_a_class_is_one_of_the_product() -> None:
    """A code that is renamed must not fall out of its class unseen."""
    root = Path(haulier.__file__).parent
    sources = [*root.rglob("*.py"), *(root.parent / "tasks").glob("*.py")]
    text = "".join(path.read_text() for path in sources if path.name != "failures.py")
    missing = [code for rule in CLASSES.values() for code in rule.codes if f'"{code}"' not in text]
    assert missing == []


def test_no_code_is_of_two_classes() -> None:
    codes = [code for rule in CLASSES.values() for code in rule.codes]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("node_silent", FailureClass.PASSING),
        ("no_space", FailureClass.TARGET),
        ("tpm_identity_differs", FailureClass.LASTING),
        ("whatever", FailureClass.LASTING),
    ],
)
def test_classes(code: str, found: FailureClass) -> None:
    assert class_of(code) is found
