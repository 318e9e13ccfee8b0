"""Push a kernel, follow it, fetch what it left, and see which machine it was.

A push spends hours of a weekly quota, so it is noted in the kernel's folder: the same content is not pushed twice unasked,
and calling again goes on following, however the first call ended.
"""

import contextlib
import json
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from grpo_kit.kaggle import retry
from grpo_kit.kaggle.kernel import accelerator as accelerator_kernel
from grpo_kit.kaggle.kernel import check_folder
from grpo_kit.kaggle.kernel_notebook import SEEN, Kernel
from grpo_kit.runs.files import write_text

ENDED = ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED")
WANTED = r"^(?!nf4/)"  # the 4-bit checkpoint is made anew from the mounted model; it has gigabytes
UNSEEN = 300.0  # seconds in which Kaggle may not know yet of what it has just taken


def push(client: Any, kernel: Kernel, force: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """Push `kernel`, unless the same content was pushed before; returns the note: `kernel`, `version`, `url`, `state`.

    `client`: a `kaggle_kernel.Client`. Raises what it raises; ConnectionError while it is open whether the push arrived.
    """
    path = kernel.folder / "push.json"
    note = _read(path)
    same = note.get("content") == kernel.content and not force
    name, accelerator = kernel.metadata["id"], kernel.metadata["machine_shape"]
    if same and note["state"] == "pushed":
        say(f"pushed before, {note['at'][:16]} UTC, as version {note['version']}: following it; --force pushes anew")
        return note
    if same and _is_under_way(client, name):
        say("the earlier push had no answer, but a run is under way: following it")
        return note
    kernel.write()
    check_folder(kernel.folder)
    note = {"kernel": name, "version": 0, "url": f"https://www.kaggle.com/code/{name}", "content": kernel.content}
    note |= {"accelerator": accelerator, "state": "sending", "at": datetime.now(UTC).isoformat(timespec="seconds")}
    _write(path, note)
    try:
        answer = client.push(kernel.folder, accelerator)
    except ConnectionError as error:
        raise ConnectionError(f"{error} It may have started: run the same command again, which looks before it pushes, or see {note['url']}.") from None  # fmt: skip
    except (OSError, RuntimeError, ValueError):
        path.unlink()
        raise
    note |= {"version": answer.version_number, "url": answer.url or note["url"], "state": "pushed"}
    _write(path, note)
    say(f"pushed version {note['version']} on {accelerator}: {note['url']}")
    return note


def follow(client: Any, note: dict[str, Any], say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> tuple[str, str]:  # fmt: skip
    """Wait for the run's end; returns (COMPLETE, ERROR or CANCEL_ACKNOWLEDGED, Kaggle's reason, empty if it gives none)."""
    started, last = clock(), ""
    for pause in retry.waits(5.0, 60.0, 1.5):
        try:
            status, why = client.status(versioned(note))
        except FileNotFoundError:
            if clock() - started > UNSEEN:
                raise
            status, why = "not known yet", ""
        except ConnectionError as error:
            raise ConnectionError(f"{error} The run goes on: the same command follows it again.") from None
        if status != last:
            say(f"{status.lower().replace('_', ' ')} after {(clock() - started) / 60:.0f} min")
            last = status
        if status in ENDED:
            return status, why
        client.sleep(pause)
    raise AssertionError("the pauses have no end")


def fetch(client: Any, note: dict[str, Any], folder: Path) -> tuple[Path, list[Path]]:
    """(where they lie, the run's files and log) without the 4-bit checkpoint; each version has a folder of its own."""
    output = folder / (f"output-{note['version']}" if note["version"] else "output")
    output.mkdir(parents=True, exist_ok=True)
    return output, client.output(versioned(note), output, WANTED)


def versioned(note: dict[str, Any]) -> str:
    """owner/slug/version, or without a version where the push had no answer: then the latest is meant."""
    return f"{note['kernel']}/{note['version']}" if note["version"] else note["kernel"]


def ran_on(folder: Path, since: str) -> tuple[str, str] | None:
    """(GPU, where that stands): of the first cell's line in the log, else of a stage that the run noted after `since`.

    None where neither says. `since`: UTC, ISO 8601.
    """
    for log in sorted(folder.glob("*.log")):
        seen = re.search(rf"{SEEN} (.*?)(?:\\n|\n|\"|$)", log.read_text(encoding="utf-8", errors="replace"))
        if seen:
            return seen[1], str(log)
    for notes in sorted(folder.glob("**/run.json")):
        try:
            stages = json.loads(notes.read_text(encoding="utf-8"))["stages"].values()
            new = [stage["environment"]["gpu"] for stage in stages if stage["finished"] >= since]
        except (ValueError, KeyError, TypeError, AttributeError):
            continue  # not ours
        if new:
            return new[-1] or "no GPU", str(notes)
    return None


def verdict(found: tuple[str, str] | None, accelerator: str) -> tuple[bool | None, str]:
    """(whether the accelerator asked for ran, None where nothing says; a sentence)."""
    if found is None:
        return None, "Which GPU ran cannot be established: neither the log nor a run.json in the output names it."
    gpu, where = found
    wanted = accelerator_kernel(accelerator).gpu
    if re.search(rf"\b{re.escape(wanted)}\b", gpu, re.IGNORECASE):
        return True, f"It ran on {gpu}, which is the {accelerator} that was asked for ({where})."
    return (
        False,
        f"{accelerator} was asked for, but it ran on {gpu} ({where}); Kaggle gives some accelerators to some only.",
    )


def last_words(folder: Path, lines: int = 12) -> list[str]:
    """The last lines that the run printed, from Kaggle's log, which is JSON or plain text."""
    for log in sorted(folder.glob("*.log")):
        text = log.read_text(encoding="utf-8", errors="replace")
        with contextlib.suppress(ValueError, AttributeError, TypeError):
            text = "".join(str(entry.get("data", "")) for entry in json.loads(text))
        return [line for line in text.splitlines() if line.strip()][-lines:]
    return []


def _is_under_way(client: Any, name: str) -> bool:
    try:
        return client.status(name)[0] in ("QUEUED", "RUNNING")
    except FileNotFoundError:  # the very first push, and it never arrived
        return False


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _write(path: Path, note: dict[str, Any]) -> None:
    write_text(path, json.dumps(note, indent=2) + "\n")
