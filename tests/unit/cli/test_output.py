"""What the commands print: one JSON document or text, errors in one form, and sizes for people."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from haulier.cli.output import Mode, complain, fail, show, show_text, size, table
from haulier.errors import NeedsOperator, Problem, Refused, StepFailed

ERROR = StepFailed("qemu_not_started", "QEMU did not start: no such [file]", "See its log.")
SEVERAL = Refused.because((Problem("one", "first", "do this"), Problem("two", "second")))

Capture = pytest.CaptureFixture[str]


@pytest.fixture(params=[False, True], ids=["text", "json"])
def mode(request: pytest.FixtureRequest) -> Iterator[bool]:
    Mode.json = request.param
    yield request.param
    Mode.json = False


@pytest.fixture
def as_json() -> Iterator[None]:
    Mode.json = True
    yield
    Mode.json = False


@pytest.mark.usefixtures("as_json")
def test_error_as_json(capsys: Capture) -> None:
    fail(ERROR)
    problem = {"code": "qemu_not_started", "message": "QEMU did not start: no such [file]", "hint": "See its log."}
    assert json.loads(capsys.readouterr().out) == {**problem, "error": problem, "errors": [problem]}


@pytest.mark.usefixtures("as_json")
def test_every_reason_as_json(capsys: Capture) -> None:
    fail(SEVERAL)
    document = json.loads(capsys.readouterr().out)
    assert (document["code"], document["message"], document["hint"]) == ("one", "first", "do this")
    assert [each["code"] for each in document["errors"]] == ["one", "two"]


def test_error_for_people(capsys: Capture) -> None:
    fail(ERROR)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error[qemu_not_started]: QEMU did not start: no such [file]\n  hint: See its log.\n"


def test_people_hear_every_reason_in_both_modes(mode: bool, capsys: Capture) -> None:
    fail(SEVERAL)
    assert capsys.readouterr().err == "error[one]: first\n  hint: do this\nerror[two]: second\n"


def test_problem_without_hint(capsys: Capture) -> None:
    complain(Problem("two", "second"))
    assert capsys.readouterr().err == "error[two]: second\n"


def test_result(mode: bool, capsys: Capture) -> None:
    show({"a": 1}, "one line")
    captured = capsys.readouterr()
    assert captured.out == ('{"a": 1}\n' if mode else "one line\n")
    assert captured.err == ""


def test_text_for_people_only(mode: bool, capsys: Capture) -> None:
    show_text("words")
    assert capsys.readouterr().out == ("" if mode else "words\n")


def test_words_are_printed_as_they_are(capsys: Capture) -> None:
    """Brackets are no markup, and a long path is not broken into lines that nobody can copy."""
    path = "/images/[red]/" + "x" * 300
    show({}, path)
    assert capsys.readouterr().out == f"{path}\n"


def test_table(capsys: Capture) -> None:
    rows = [{"name": "web", "seconds": 1.25, "pid": None}, {"name": "db", "pid": 7}]
    show({}, table(rows, {"vm": "name", "s": "seconds", "pid": "pid"}))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["vm", "s", "pid"], ["web", "1.2", "-"], ["db", "-", "7"]]


def test_moment_in_a_table_has_no_parts_of_seconds(capsys: Capture) -> None:
    show(None, table([{"at": "2026-05-01T12:00:00.123456+00:00"}], {"at": "at"}))
    assert "2026-05-01T12:00:00+00:00" in capsys.readouterr().out


def test_brackets_in_a_table(capsys: Capture) -> None:
    show({}, table([{"name": "[bold]x[/bold]"}], {"vm": "name"}))
    assert "[bold]x[/bold]" in capsys.readouterr().out


def test_empty_table() -> None:
    assert table([], {"vm": "name"}) == "none"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "-"),
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (8 << 20, "8.0 MiB"),
        (5 << 30, "5.0 GiB"),
        ((1 << 40) - 1, "1.0 TiB"),
        (3 << 40, "3.0 TiB"),
        (5000 << 40, "5000.0 TiB"),
        ((1 << 20) - 1, "1.0 MiB"),
    ],
)
def test_size(number: int | None, text: str) -> None:
    assert size(number) == text


def test_operator_errors_have_the_same_form(capsys: Capture) -> None:
    fail(NeedsOperator("lost", "where is it?", "Look."))
    assert capsys.readouterr().err.startswith("error[lost]: where is it?\n")
