"""Limits and rates as people write them."""

from __future__ import annotations

import pytest

from haulier.cli.limits import read_rates
from haulier.errors import Refused
from haulier.planner.labels import Rate


@pytest.mark.parametrize(
    ("word", "rate"),
    [
        ("nightly=6/h", Rate(6, 3600)),
        ("nightly=1/10m", Rate(1, 600)),
        ("nightly=100/1d", Rate(100, 86_400)),
        ("nightly=usual", None),
    ],
)
def test_rate_of_a_label(word: str, rate: Rate | None) -> None:
    assert read_rates([word]) == {"nightly": rate}


@pytest.mark.parametrize("word", ["", "nightly", "nightly=", "nightly=6", "nightly=6/", "=6/h", "a=-1/h", "a=1/h=2"])
def test_what_is_no_rate_is_refused(word: str) -> None:
    with pytest.raises(Refused) as caught:
        read_rates([word])
    assert caught.value.code == "bad_rate"
