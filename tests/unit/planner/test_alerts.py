"""A label's value names a node, or none; never one of two."""

from __future__ import annotations

import pytest

from haulier.planner.alerts import node_of

NODES = {
    "alpha": "10.0.0.1",
    "beta.example.org": "10.0.0.2",
    "gamma": "fd00::3",
    "delta": "10.0.0.9",
    "eps": "10.0.0.9",
}


@pytest.mark.parametrize(
    ("value", "node"),
    [
        ("alpha", "alpha"),
        ("alpha:9100", "alpha"),
        ("10.0.0.1:9100", "alpha"),
        ("alpha.example.org:9100", "alpha"),
        ("beta.example.org:9100", "beta.example.org"),
        ("fd00::3", "gamma"),
        ("[fd00::3]:9100", "gamma"),
        ("beta", None),
        ("beta.example.com", None),
        ("10.0.0.9:9100", None),
        ("10.0.0.1.example.org", None),
        ("omega", None),
        ("", None),
        (":9100", None),
    ],
)
def test_which_node_a_label_names(value: str, node: str | None) -> None:
    assert node_of(value, NODES) == node
