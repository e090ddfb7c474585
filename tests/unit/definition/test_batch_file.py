"""Batch files: three forms that say the same, and everything that can be wrong with them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import pytest

from haulier.definition.batch_file import MOST_ENTRIES, MOST_PROBLEMS, BatchEntry, read_batch, refused
from haulier.errors import Problem, Refused

TOML = """
name = "rack 7"
policy = "stop_after: 3"

[[migration]]
vm = "web1"
target = "beta"
priority = 70
after = ["db1", "db2"]
deadline = 2026-12-01T04:00:00Z
label = "nightly"

[[migration]]
vm = "db1"
"""
CSV = """vm,target,priority,after,deadline,label
web1,beta,70,db1 db2,2026-12-01T04:00:00Z,nightly
db1,,,,,
"""
JSON_LINES = """
{"vm": "web1", "target": "beta", "priority": 70, "after": ["db1", "db2"], "deadline": "2026-12-01T04:00:00+00:00",\
 "label": "nightly"}

{"vm": "db1"}
"""
DEADLINE = datetime(2026, 12, 1, 4, tzinfo=UTC)


@pytest.mark.parametrize(
    ("form", "text", "lines"), [("toml", TOML, (5, 13)), ("csv", CSV, (2, 3)), ("jsonl", JSON_LINES, (2, 4))]
)
def test_three_forms_say_the_same(form: str, text: str, lines: tuple[int, int]) -> None:
    assert read_batch(text, form=form).entries == (
        BatchEntry(lines[0], "web1", "beta", 70, ("db1", "db2"), DEADLINE, "nightly"),
        BatchEntry(lines[1], "db1", "auto", None, (), None),
    )


def test_toml_has_a_head() -> None:
    file = read_batch(TOML, form="toml")
    assert (file.name, file.policy) == ("rack 7", "stop_after: 3")


def test_deadline_without_a_zone_is_utc() -> None:
    (entry,) = read_batch('{"vm": "a", "deadline": "2026-12-01T04:00:00"}', form="jsonl").entries
    assert entry.deadline == DEADLINE


WRONG = [
    ("toml", "[[migration]]\nvm = 3 3", "no TOML"),
    ("toml", "colour = 1", "colour is not known"),
    ("toml", "[[migration]]\nvm = 'a'\n\n[[migration]]\ntarget = 'b'", "line 4: vm is missing"),
    ("toml", "", "there is no migration in it"),
    ("csv", "name,target\nweb,beta", "line 1: there is no column vm"),
    ("csv", "vm,target\nweb,beta\ndb,beta,7\n", "line 3"),
    ("csv", "vm,colour\nweb,red", "line 2: colour is not known"),
    ("csv", "vm,priority\nweb,high", "line 2: priority: 'high' is no whole number"),
    ("csv", "vm,target\n,beta", "line 2: vm"),
    ("csv", "", "line 1"),
    ("jsonl", "{", "line 1: no JSON"),
    ("jsonl", "[1]", "line 1"),
    ("jsonl", "3", "line 1"),
    ("jsonl", '{"vm": "a", "deadline": "soon"}', "line 1: deadline"),
    ("jsonl", '{"vm": "a"}\n{"vm": 3}', "line 2: vm"),
    ("jsonl", "[" * 100_000, "line 1: no JSON"),
    ("jsonl", '{"vm": "a", "priority": true}', "line 1: priority"),
    ("jsonl", '{"vm": "a", "priority": 1.5}', "line 1: priority"),
    ("jsonl", '{"vm": "a", "priority": 1' + "0" * 400 + "}", "line 1: priority"),
    ("jsonl", '{"vm": "a", "deadline": 1900000000}', "line 1: deadline"),
    ("jsonl", '{"vm": "a", "deadline": "9999-12-31T23:59:59-12:00"}', "line 1: deadline: beyond"),
    ("jsonl", '{"vm": "a\\u0000b"}', "line 1: vm"),
    ("csv", "vm\n" + "a" * 200_000, "no CSV"),
    ("csv", "vm,vm\na,b\n", "line 1: a column is named twice"),
    ("toml", "a = 1" + "0" * 5000, "no TOML"),
    ("toml", "a = " + "[" * 5000, "no TOML"),
    ("toml", 'name = "a\\u0000b"\n[[migration]]\nvm = "a"', "name"),
    ("xml", "<a/>", "'xml' is no form"),
]


@pytest.mark.parametrize(("form", "text", "words"), WRONG)
def test_what_is_wrong_is_told_with_its_line(form: str, text: str, words: str) -> None:
    problems = problems_of(text, form)
    assert words in problems[0].message
    assert all(problem.hint for problem in problems)
    assert not any(word in problem.message for problem in problems for word in ("Input", "Extra", "Value error"))


def problems_of(text: str, form: str) -> Sequence[Problem]:
    """Those of a file that is none, or of its entries, as they are told."""
    try:
        return refused(read_batch(text, form=form).problems).problems
    except Refused as error:
        return error.problems


def test_column_that_is_not_known_is_told_once() -> None:
    problems = problems_of("vm,prority\n" + "web,1\n" * 50, "csv")
    assert [(each.code, each.message, each.hint) for each in problems] == [
        ("unknown_key", "line 2: prority is not known", "Did you mean priority?")
    ]


def test_what_can_be_read_is_there_beside_what_cannot() -> None:
    file = read_batch("vm,deadline\nweb,\ndb,soon\n", form="csv")
    assert [entry.vm for entry in file.entries] == ["web"]
    assert file.unread == {"db"}
    assert [each.message for each in file.problems] == ["line 3: deadline: 'soon' is no moment"]


def test_all_that_is_wrong_is_told_at_once_but_no_more_than_anybody_reads() -> None:
    problems = problems_of("\n".join(["{"] * (MOST_PROBLEMS + 20)), "jsonl")
    assert len(problems) == MOST_PROBLEMS + 1
    assert problems[-1].message == "and 20 more"


def test_too_many_lines() -> None:
    with pytest.raises(Refused) as caught:
        read_batch("vm\n" + "web\n" * (MOST_ENTRIES + 1), form="csv")
    assert caught.value.code == "batch_too_long"


def test_what_is_not_said_is_the_usual() -> None:
    csv, jsonl = "vm,target,after\nweb\n", '{"vm": "web", "after": null, "priority": null}'
    for form, text in (("csv", csv), ("jsonl", jsonl)):
        (entry,) = read_batch(text, form=form).entries
        assert (entry.target, entry.priority, entry.after) == ("auto", None, ())
