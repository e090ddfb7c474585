"""Exit statuses and error forms of the command line, with commands of the test's own behind it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest

from haulier import __version__
from haulier.cli import main as cli
from haulier.cli.moments import moment_of
from haulier.cli.output import Mode
from haulier.errors import NeedsOperator, OutcomeUnknown, Refused, StepFailed, Transient

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Run a command line in this process: exit status, standard output, standard error."""

    def run(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            cli.main(list(words))
        captured = capsys.readouterr()
        status = left.value.code
        assert isinstance(status, int)
        return status, captured.out, captured.err

    yield run
    Mode.json = False


# What somebody types wrongly, and the command whose help the hint names.
WRONG = [
    ("frobnicate", ""),
    ("migrate", "migrate "),
    ("migrate web", "migrate "),
    ("migrate web --too beta", "migrate "),
    ("migration show one", "migration show "),
    ("vm frobnicate", "vm "),
    ("node maintenance alpha perhaps", "node maintenance "),
    ("vm stop web --grace-s soon", "vm stop "),
    ("node set beta", "node set "),
]


@pytest.mark.parametrize(("line", "meant"), WRONG)
def test_wrong_usage(run: Run, line: str, meant: str) -> None:
    status, out, err = run(*line.split())
    assert (status, out) == (64, "")
    assert err.startswith("error[usage]: ")
    assert err.endswith(f"  hint: haulier {meant}--help\n")
    assert len(err.splitlines()) == 2


@pytest.mark.parametrize(("line", "meant"), WRONG)
def test_wrong_usage_as_json(run: Run, line: str, meant: str) -> None:
    status, out, _ = run(*line.split(), "--json")
    document = json.loads(out)
    assert (status, document["code"], document["hint"]) == (64, "usage", f"haulier {meant}--help")
    assert document["message"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (Refused("c", "m", "h"), 2),
        (StepFailed("c", "m", "h"), 1),
        (Transient("c", "m", "h"), 1),
        (OutcomeUnknown("c", "m", "h"), 1),
        (NeedsOperator("c", "m", "h"), 3),
    ],
)
@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_error_has_its_exit_status(run: Run, error: Exception, status: int, flags: tuple[str, ...]) -> None:
    def broken() -> None:
        raise error

    cli.app.command(broken, name="broken-for-a-test")
    try:
        found, out, err = run("broken-for-a-test", *flags)
    finally:
        del cli.app["broken-for-a-test"]
    assert (found, err) == (status, "error[c]: m\n  hint: h\n")
    assert (json.loads(out)["error"]["code"] == "c") if flags else out == ""


@pytest.mark.parametrize(("answer", "status"), [(None, 0), (0, 0), (1, 1), (3, 3)])
def test_command_says_its_status(run: Run, answer: int | None, status: int) -> None:
    cli.app.command(lambda: answer, name="answer-for-a-test")
    try:
        assert run("answer-for-a-test")[0] == status
    finally:
        del cli.app["answer-for-a-test"]


def test_interrupted(run: Run) -> None:
    def broken() -> None:
        raise KeyboardInterrupt

    cli.app.command(broken, name="interrupted-for-a-test")
    try:
        status, _, err = run("interrupted-for-a-test")
    finally:
        del cli.app["interrupted-for-a-test"]
    assert (status, "error[interrupted]" in err) == (130, True)


def test_version(run: Run) -> None:
    assert run("--version") == (0, f"{__version__}\n", "")


def test_help_names_every_command(run: Run) -> None:
    status, out, _ = run("--help")
    assert status == 0
    for word in ("up", "down", "doctor", "vm", "explain", "migrate", "migration", "node", "events"):
        assert f"{word} " in out or f"{word}\n" in out


# -- moments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-05-01T12:00:00+00:00", "2026-05-01T12:00:00+00:00"),
        ("2026-05-01T12:00:00+02:00", "2026-05-01T10:00:00+00:00"),
        ("2026-05-01T12:00:00", "2026-05-01T12:00:00+00:00"),
        ("2026-05-01", "2026-05-01T00:00:00+00:00"),
    ],
)
def test_moment(text: str, moment: str) -> None:
    assert moment_of(text) == moment


def test_ages_are_in_order() -> None:
    moments = [moment_of(age) for age in ("2d", "3h", "2h", "90m", "60s", "0s")]
    assert moments == sorted(moments)


@pytest.mark.parametrize("text", ["", "yesterday", "15", "15x", "-3h", "999999d", "9999999s", "2026-13-01"])
def test_no_moment(text: str) -> None:
    with pytest.raises(Refused, match="bad_moment"):
        moment_of(text)
