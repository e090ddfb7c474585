"""swtpm, the TPM's process: started before its QEMU, dead before anybody else may use the state."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from haulier.errors import Refused, StepFailed
from haulier.hypervisor.layout import VmPlace, listening_socket
from haulier.hypervisor.processes import end, spawn

# The first release with the linear file back end (`backend-uri=file://`).
OLDEST_SWTPM = (0, 7, 0)


@dataclass(frozen=True, slots=True)
class SwtpmFacts:
    """What the installed swtpm is and can do; versions as their makers write them, `libtpms` may be unknown."""

    program: str
    version: str
    libtpms: str | None
    features: frozenset[str]

    @property
    def is_too_old(self) -> bool:
        return version_tuple(self.version) < OLDEST_SWTPM


def version_tuple(version: str) -> tuple[int, ...]:
    """`0.7.1` as numbers that compare."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def swtpm_facts(program: str) -> SwtpmFacts:
    """Ask the program what it is. Raises StepFailed when it is not there or answers nonsense."""
    try:
        answer = subprocess.run(
            [program, "socket", "--tpm2", "--print-capabilities"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
        facts = json.loads(answer.stdout)
        return SwtpmFacts(program, str(facts["version"]), _libtpms_version(program), frozenset(facts["features"]))
    except (OSError, subprocess.SubprocessError, ValueError, KeyError) as error:
        raise StepFailed("swtpm_missing", f"{program} does not work: {error}", "Install swtpm 0.7 or newer.") from error


def _libtpms_version(program: str) -> str | None:
    """No option prints it; the file name of the loaded library does."""
    found = subprocess.run(
        ["sh", "-c", 'ldd "$(command -v "$0")"', program], capture_output=True, text=True, timeout=20, check=False
    )
    match = re.search(r"(?m)^\s*libtpms\.so\S* => (\S+)", found.stdout)
    version = re.search(r"libtpms\.so\.([\d.]+)$", str(Path(match.group(1)).resolve())) if match else None
    return version.group(1) if version else None


def state_uri(volume: Path) -> str:
    """A state volume as swtpm's options name it.

    Raises Refused for a path with a comma: it would begin another option, and swtpm knows no way to escape one.
    """
    if "," in str(volume):
        raise Refused("tpm_path_with_comma", f"{volume} has a comma, which swtpm cannot take", "Rename it.")
    return f"file://{volume}"


def manufacture(volume: Path, *, work: Path) -> None:
    """Make a new TPM with its endorsement keys in a blank state volume. Never call it where a TPM has been.

    Raises StepFailed with the tool's words; the volume is then to be made anew.
    """
    log = work / "swtpm_setup.log"
    made = subprocess.run(
        ["swtpm_setup", "--tpm2", "--tpm-state", state_uri(volume), "--createek", "--not-overwrite",
         "--runas", "root" if Path("/proc/self").owner() == "root" else Path("/proc/self").owner(),
         "--logfile", str(log)],
        # It removes the volume and lets swtpm make it anew, 0640 if nobody objects.
        capture_output=True, text=True, timeout=120, check=False, umask=0o077,
    )  # fmt: skip
    words = log.read_text(errors="replace") if log.exists() else made.stderr
    log.unlink(missing_ok=True)
    if made.returncode != 0:
        raise StepFailed("tpm_not_made", f"swtpm_setup failed: {' '.join(words.split())[-300:]}", "haulier doctor")
    if volume.is_file():  # who may open a device is its administrator's to say
        volume.chmod(0o600)


def start_swtpm(place: VmPlace, volume: Path, *, facts: SwtpmFacts) -> None:
    """Start the TPM of a VM on its state volume; QEMU connects to `place.tpm_socket` next.

    From 0.8 on swtpm writes its state once more when its QEMU goes away; where the flag exists, that is switched off,
    because by then the state may belong to another node.
    """
    flags = ["--flags", "disable-auto-shutdown"] if "flags-opt-disable-auto-shutdown" in facts.features else []
    with listening_socket(place.tpm_socket) as control:
        spawn(
            place.swtpm,
            [
                facts.program, "socket", "--tpm2",
                "--tpmstate", f"backend-uri={state_uri(volume)},mode=0600",
                "--ctrl", f"type=unixio,fd={control.fileno()}",
                "--pid", f"file={place.swtpm.pid_file}",
                "--log", f"file={place.swtpm.log},level=1",
                *flags,
            ],
            pass_fds=[control.fileno()],
        )  # fmt: skip


def stop_swtpm(place: VmPlace, *, patience_s: float = 5.0) -> None:
    """Make sure that no swtpm of this VM runs here any more. Safe to call twice.

    It is asked first, and killed after `patience_s`; without patience it does not come round to writing anything.
    """
    end(place.swtpm, patience_s=patience_s)
    place.tpm_socket.unlink(missing_ok=True)
