"""What is wrong with a batch as a whole, and where a VM goes when nobody says so."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from haulier.definition.batch_file import BatchEntry
from haulier.errors import Refused
from haulier.planner.batches import Known, Policy, check_batch, read_policy
from haulier.planner.placement import Host, choose_host

NOW = datetime(2026, 11, 1, tzinfo=UTC)
KNOWN = Known({"web": "alpha", "db": "alpha", "ci": "beta"}, frozenset({"alpha", "beta"}), NOW)


def entry(line: int, vm: str, **changes: object) -> BatchEntry:
    usual: dict[str, object] = {"target": "beta", "priority": None, "after": (), "deadline": None}
    return BatchEntry(line, vm, **(usual | changes))  # type: ignore[arg-type]


def told(*entries: BatchEntry) -> list[tuple[str, str]]:
    return [(problem.code, problem.message) for problem in check_batch(entries, KNOWN)]


def test_nothing_is_wrong() -> None:
    later = NOW + timedelta(hours=1)
    assert told(entry(1, "web", after=("db",), deadline=later), entry(2, "db"), entry(3, "ci", target="auto")) == []


def test_everything_is_wrong() -> None:
    found = told(
        entry(1, "web", after=("log",)),
        entry(2, "wep", target="bet"),
        entry(3, "web", priority=1_000_001),
        entry(4, "ci", deadline=NOW),
        entry(5, "db", target="alpha"),
    )
    assert found == [
        ("unknown_vm", "line 2: there is no VM called wep"),
        ("unknown_node", "line 2: there is no node called bet"),
        ("vm_twice", "line 3: VM web stands on line 1 already"),
        ("bad_priority", "line 3: 1000001 is no priority"),
        ("already_there", "line 4: VM ci is on beta already"),
        ("deadline_over", "line 4: the deadline 2026-11-01T00:00:00+00:00 is over"),
        ("already_there", "line 5: VM db is on alpha already"),
        ("after_unknown", "line 1: after: log is not in this batch"),
    ]
    assert all(problem.hint for problem in check_batch([entry(2, "wep", target="bet")], KNOWN))
    assert check_batch([entry(2, "wep")], KNOWN)[0].hint == "Did you mean web?"


@pytest.mark.parametrize("circle", [("web",), ("web", "db"), ("web", "db", "ci")])
def test_cycle(circle: tuple[str, ...]) -> None:
    """Each waits for the next, and the last for the first."""
    entries = [
        entry(number, vm, target="auto", after=(circle[(number + 1) % len(circle)],))
        for number, vm in enumerate(circle)
    ]
    ((code, words),) = told(*entries)
    assert code == "after_cycle"
    assert all(vm in words for vm in circle)


def test_thousands_of_unknown_names_are_told_in_no_time() -> None:
    """To look for the name that was meant takes a hundredth of a second each, among thousands."""
    known = Known({f"vm{number}": "alpha" for number in range(5000)}, KNOWN.nodes, NOW)
    problems = check_batch([entry(number, f"wm{number}") for number in range(5000)], known)
    assert len(problems) == 5000
    assert [problem.hint.startswith("Did you mean") for problem in problems].count(True) == 20


@pytest.mark.parametrize(
    ("word", "policy"),
    [
        (None, Policy(all_or_nothing=True)),
        ("all_or_nothing_checks", Policy(all_or_nothing=True)),
        ("go_on", Policy(all_or_nothing=False)),
        ("stop_after: 3", Policy(all_or_nothing=False, stop_after=3)),
        ("stop_after=10", Policy(all_or_nothing=False, stop_after=10)),
    ],
)
def test_policies(word: str | None, policy: Policy) -> None:
    assert read_policy(word) == policy


@pytest.mark.parametrize("word", ["", "stop_after", "stop_after: 0", "stop_after: -1", "go_on: 3", "goon"])
def test_words_that_are_no_policy(word: str) -> None:
    if not word:
        assert read_policy(word).all_or_nothing
        return
    with pytest.raises(Refused) as caught:
        read_policy(word)
    assert caught.value.code == "bad_policy"


def hosts() -> list[Host]:
    both = frozenset({"local", "fast"})
    return [Host("alpha", 900, both), Host("beta", 500, both), Host("gamma", 800, frozenset({"local"}))]


def place(there: list[Host], ram: int, *storages: str, source: str = "alpha") -> str | None:
    host = choose_host(there, source=source, ram_bytes=ram, storages=frozenset(storages))
    return host.name if host else None


def test_most_free_ram_wins_and_is_less_afterwards() -> None:
    there = hosts()
    assert [place(there, 400, "local") for _ in range(4)] == ["gamma", "beta", "gamma", None]


def test_storages_are_needed() -> None:
    assert place(hosts(), 100, "local", "fast") == "beta"
    assert place(hosts(), 100, "slow") is None


def test_source_is_no_target() -> None:
    assert place(hosts(), 100, source="gamma") == "alpha"
