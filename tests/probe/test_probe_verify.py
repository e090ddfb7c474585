"""The verifier: each kind of loss, put into good logs and volumes by hand, is found and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from probe.lines import crc_of
from probe.verify import main, verify_texts
from probe.volume import DATA_MAGIC, HEAD_MAGIC, SECTOR_BYTES, Record, VolumeError, pack_record, verify_volume

BOOT = "6b03e9d4afe1"
BASE = 2048


def line(text: str) -> str:
    """A line with its checksum."""
    return f"HP {text} crc={crc_of(f'HP {text} ')}\n"


def boot_line(boot: str = BOOT, *, tpm: str = "0", disk: str = "0") -> str:
    return line(f"boot boot={boot} v=1 tick_us=1000 line_every=100 tpm={tpm} tpm_err=0 disk={disk} disk_lost=0")


def tick_line(tick: int, boot: str = BOOT, **changed: int | str) -> str:
    values: dict[str, int | str] = {
        "tick": tick,
        "boot": boot,
        "tpm": tick // 50,
        "tpm_lost": 0,
        "tpm_err": 0,
        "disk": tick // 10,
        "disk_lost": 0,
        "disk_err": 0,
        "ram_bad": 0,
        "gap_us": 1000 + tick,
        "pause_us": 0,
        "max_gap_us": 1000 + tick,
    }
    values.update(changed)
    return line(" ".join(f"{key}={value}" for key, value in values.items()))


def good_lines(count: int = 10) -> list[str]:
    return [boot_line(), *(tick_line(100 * n) for n in range(1, count + 1))]


def problem(*texts: str) -> str:
    """The one problem of these logs."""
    verdict = verify_texts(texts)
    assert not verdict.ok
    assert len(verdict.problems) == 1, verdict.problems
    return verdict.problems[0]


def test_good_log() -> None:
    verdict = verify_texts(["SeaBIOS says hello\n" + "".join(good_lines())])
    assert verdict.ok
    assert (verdict.ticks, verdict.tpm, verdict.disk, verdict.torn) == (1000, 20, (100,), 0)
    assert (verdict.longest_gap_us, verdict.longest_pause_us) == (2000, 0)


def test_no_line_at_all_is_no_good_log() -> None:
    assert "no line" in problem("Linux version 6.1")


def test_dropped_line() -> None:
    lines = good_lines()
    del lines[5]
    assert problem("".join(lines)) == f"boot {BOOT}: no line between tick 400 and tick 600"


def test_dropped_first_line() -> None:
    assert "no line between tick 0 and tick 200" in problem("".join([*good_lines()[:1], *good_lines()[2:]]))


def test_missing_boot_line() -> None:
    assert "first line is missing" in problem("".join(good_lines()[1:]))


def test_repeated_line_in_the_other_log() -> None:
    lines = good_lines()
    assert "tick 600 is there twice" in problem("".join(lines[:7]), "".join(lines[6:]))


def test_tpm_stepping_back() -> None:
    text = "".join([*good_lines(), tick_line(1100, tpm=19)])
    assert problem(text) == f"boot {BOOT}: tick 1100: TPM counter stepped back from 20 to 19"


def test_tpm_gone() -> None:
    assert "from 20 to none" in problem("".join([*good_lines(), tick_line(1100, tpm="-")]))


def test_second_disk_stepping_back() -> None:
    text = "".join([boot_line(disk="0,0"), tick_line(100, disk="9,9"), tick_line(200, disk="19,8")])
    assert "disk 1 stepped back from 9 to 8" in problem(text)


def test_disk_gone() -> None:
    assert "2 disks became 1" in problem(boot_line(disk="0,0") + tick_line(100, disk="9"))


@pytest.mark.parametrize("key", ["tpm_lost", "tpm_err", "disk_lost", "disk_err", "ram_bad"])
def test_loss_that_the_guest_saw(key: str) -> None:
    changed: dict[str, Any] = {key: 3}
    text = "".join([*good_lines(), tick_line(1100, **changed)])
    assert problem(text) == f"boot {BOOT}: {key}=3 by tick 1100"


def test_crash() -> None:
    assert "crashed" in problem("".join(good_lines()) + line(f"fault boot={BOOT} tick=1000 vector=6"))


def test_pause_and_gap_are_the_longest_of_all_logs() -> None:
    verdict = verify_texts(["".join(good_lines()), tick_line(1100, gap_us=90000, pause_us=80000), tick_line(1200)])
    assert (verdict.longest_gap_us, verdict.longest_pause_us) == (90000, 80000)


@pytest.mark.parametrize("spoil", [lambda text: text[:40], lambda text: text.replace("disk=5", "disk=6")])
def test_torn_or_damaged_line_is_a_lost_one(spoil: Callable[[str], str]) -> None:
    lines = good_lines()
    lines[5] = spoil(lines[5]) + "\n"
    verdict = verify_texts(["".join(lines)])
    assert verdict.problems == (f"boot {BOOT}: no line between tick 400 and tick 600",)
    assert verdict.torn == 1


def test_line_cut_off_at_the_end_is_no_loss() -> None:
    verdict = verify_texts(["".join(good_lines()) + tick_line(1100)[:50]])
    assert (verdict.ok, verdict.ticks, verdict.torn) == (True, 1000, 1)


@pytest.mark.parametrize("cut", range(1, len(tick_line(600)) + 1))
def test_line_torn_by_a_move_is_put_together(cut: int) -> None:
    text = "".join(good_lines())
    place = text.index(tick_line(600)) + cut
    verdict = verify_texts([text[:place], text[place:]])
    assert (verdict.problems, verdict.lines, verdict.torn) == ((), 11, 0)


@pytest.mark.parametrize("cut", range(1, 150, 7))
def test_both_lines_torn_by_going_away_and_coming_back(cut: int) -> None:
    text = "".join(good_lines())
    away = text.index(tick_line(400)) + cut
    back = text.index(tick_line(700)) + 150 - cut
    verdict = verify_texts([text[:away] + text[back:], text[away:back]])
    assert (verdict.problems, verdict.lines, verdict.torn) == ((), 11, 0)


def test_killed_in_a_line_and_started_again() -> None:
    later = "6b03e9d60001"
    text = "".join(good_lines()) + tick_line(1100)[:50] + boot_line(later, tpm="22", disk="109")
    verdict = verify_texts([text + tick_line(100, later, tpm=24, disk=119)])
    assert (verdict.problems, verdict.boots) == ((), (BOOT, later))
    assert (verdict.ticks, verdict.tpm) == (100, 24)


def test_two_boots_within_a_second_stay_in_the_order_of_the_log() -> None:
    later = BOOT[:8] + "0001"  # sorts before the first
    text = "".join(good_lines()) + boot_line(later, tpm="20", disk="100")
    assert verify_texts([text]).boots == (BOOT, later)


def test_restart_on_an_older_volume_or_tpm() -> None:
    text = "".join(good_lines()) + boot_line("6b03e9d60001", tpm="3", disk="99")
    assert verify_texts([text]).problems == (
        "restart 6b03e9d60001: TPM counter stepped back from 20 to 3",
        "restart 6b03e9d60001: disk 0 stepped back from 100 to 99",
    )


# ---- volumes -----------------------------------------------------------------------------------------------------


def record(sequence: int, *, magic: bytes = DATA_MAGIC, ring: int = 16, index: int = 0) -> bytes:
    return pack_record(
        Record(magic=magic, sequence=sequence, tick=10 * sequence, boot=BOOT, tpm=7, index=index, ring=ring, base=BASE)
    )


def volume(newest: int, *, head: int | None = None, ring: int = 16) -> bytearray:
    """A volume after `newest` writes."""
    raw = bytearray((BASE + ring) * SECTOR_BYTES)
    for sequence in range(max(1, newest - ring + 1), newest + 1):
        put(raw, BASE + sequence % ring, record(sequence, ring=ring))
    put(raw, BASE - 1, record(newest if head is None else head, magic=HEAD_MAGIC, ring=ring))
    return raw


def put(raw: bytearray, sector: int, content: bytes) -> None:
    raw[sector * SECTOR_BYTES : (sector + 1) * SECTOR_BYTES] = content


@pytest.mark.parametrize("newest", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("ahead", [0, 1])
def test_good_volume(newest: int, ahead: int) -> None:
    verdict = verify_volume(bytes(volume(newest, head=newest - ahead)))
    assert verdict.problems == ()
    assert (verdict.sequence, verdict.tick, verdict.boot, verdict.tpm) == (newest, 10 * newest, BOOT, 7)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda raw: put(raw, BASE + 35 % 16, record(35 - 16)), "lost from the ring: 35 (there is 19)"),
        (lambda raw: put(raw, BASE + 35 % 16, bytes(512)), "lost from the ring: 35 (there is nothing)"),
        (lambda raw: put(raw, BASE + 35 % 16, record(35, index=1)), "lost from the ring: 35 (there is 35)"),
        (lambda raw: raw.__setitem__((BASE + 3) * 512 + 300, 1), "lost from the ring: 35 (there is nothing)"),
        (
            lambda raw: put(raw, BASE - 1, record(42, magic=HEAD_MAGIC)),
            "the header speaks of 42, the newest sector is 40",
        ),
        (
            lambda raw: put(raw, BASE - 1, record(38, magic=HEAD_MAGIC)),
            "the header speaks of 38, the newest sector is 40",
        ),
        (lambda raw: put(raw, BASE - 1, bytes(512)), "no header of the probe guest: blank, or not its volume"),
    ],
    ids=["older", "blank", "other-disk", "damaged", "header-ahead", "header-behind", "no-header"],
)
def test_spoilt_volume(spoil: Callable[[bytearray], None], said: str) -> None:
    raw = volume(40)
    spoil(raw)
    verdict = verify_volume(bytes(raw))
    assert not verdict.ok
    assert said in verdict.problems


def test_blank_ring_behind_a_header() -> None:
    raw = volume(40)
    raw[BASE * SECTOR_BYTES :] = bytes(16 * SECTOR_BYTES)
    assert any("and 11 more" in problem for problem in verify_volume(bytes(raw)).problems)


def test_volume_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(VolumeError, match="No such file"):
        verify_volume(tmp_path / "none.raw")


# ---- by hand -----------------------------------------------------------------------------------------------------


def test_command_line_says_ok(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, disk = tmp_path / "a.log", tmp_path / "disk.raw"
    log.write_text("".join(good_lines()))
    disk.write_bytes(volume(40))
    assert main([str(log), "--disk", str(disk)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "OK: 11 lines of 1 boot, newest tick 1000",
        "  TPM counter 20, disk sequence 100, torn lines 0",
        "  longest gap 2.0 ms, longest pause 0.0 ms",
        f"OK: {disk}: newest sequence 40, ring of 16 sectors",
    ]


def test_command_line_names_a_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = tmp_path / "a.log"
    log.write_text("".join([*good_lines(), tick_line(1100, ram_bad=1)]))
    assert main([str(log)]) == 1
    assert f"  problem: boot {BOOT}: ram_bad=1 by tick 1100" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["none.log"], ["here.log", "--disk", "none.raw"]])
def test_command_line_with_missing_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here.log").write_text("".join(good_lines()))
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("probe.verify: ") and "No such file" in said and said.count("\n") == 1
