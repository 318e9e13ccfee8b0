"""Push a kernel, follow it, download its output, and find out which GPU it ran on.

A push spends hours of a weekly quota. Therefore it is noted in `push.json` in the kernel's folder: the same content is
not pushed again without `force`, and the next call follows the run, however the earlier call ended.
"""

import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from grpo_kit.kaggle.accelerators import compare_gpu, find_gpu
from grpo_kit.kaggle.kernel import Kernel
from grpo_kit.kaggle.submit import describe_calls
from grpo_kit.runs.files import write_text
from grpo_kit.runs.texts import format_time

ENDED = ("COMPLETE", "ERROR", "CANCEL_ACKNOWLEDGED")
# Everything but the 4-bit checkpoint, which has gigabytes and can be made again from the mounted model.
DOWNLOADED = r"^(?!nf4/)"
UNKNOWN_FOR = 300.0  # seconds for which Kaggle may not know a kernel that it has just received
STATUS_PAUSES = (5.0, 8.0, 12.0, 18.0, 27.0, 40.0)  # seconds between looks at the run; then 60
NOBODY = "your-username"  # the owner in a dry run, which needs no credentials

Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """How a kernel's run ended.

    Attributes:
        kernel: its name on Kaggle, owner/slug.
        accelerator: the machine that was requested.
        state: COMPLETE, ERROR or CANCEL_ACKNOWLEDGED.
        reason: Kaggle's reason for a failure, empty if it gives none.
        output: folder of the downloaded files.
        files: the downloaded files.
        right_gpu: whether the requested GPU ran; None when the output does not say.
        gpu_sentence: the same in words.
    """

    kernel: str
    accelerator: str
    state: str
    reason: str
    output: Path
    files: list[Path]
    right_gpu: bool | None
    gpu_sentence: str

    def problem(self) -> str:
        """Why the run is a failure, with the remedy; empty when it is not one."""
        if self.state != "COMPLETE":
            reason = f" ({self.reason.rstrip('.')})" if self.reason else ""
            return f"The run ended as {self.state}{reason}; its log is in {self.output}. --force pushes the same again."
        if self.right_gpu is False:
            return (
                f"{self.accelerator} did not run. Choose the competition's accelerator in Kaggle's editor, or another "
                "--accelerator, and push again."
            )
        return ""


def run_kernel(
    build: Callable[[str], Kernel], follow: bool = True, dry_run: bool = False, force: bool = False, say: Say = print
) -> Outcome | None:
    """Push a kernel, follow it to its end and download its output.

    Args:
        build: gives the kernel for an owner's user name, such as a partial `kernel.build_kernel`.
        follow: wait for the end; without it the call returns after the push.
        dry_run: only name the calls to Kaggle; nothing is sent or written.
        force: push even if the same content was pushed before.
        say: gets a line for each thing that was done.

    Returns:
        How the run ended; None without `follow` and in a dry run.

    Raises:
        FileNotFoundError: there are no Kaggle credentials.
        ValueError: the kernel would fail on Kaggle.
        PermissionError, RuntimeError: Kaggle refused the push.
        ConnectionError: Kaggle does not answer. Calling again is safe.
    """
    if dry_run:
        kernel = build(NOBODY)
        name = f"{kernel.metadata['id']}/VERSION"
        output = str(kernel.folder / "output-VERSION")
        for line in json.dumps(kernel.metadata, indent=2).splitlines():
            say(line)
        describe_calls(
            say,
            ("kernels_push", {"folder": str(kernel.folder), "acc": kernel.metadata["machine_shape"]}),
            ("kernels_status", {"kernel": name}),
            ("kernels_output", {"kernel": name, "path": output, "file_pattern": DOWNLOADED}),
        )
        return None
    from grpo_kit.kaggle.client import open_client  # loads the official client

    build(NOBODY)  # report mistakes in the settings before asking for credentials
    client = open_client(say)
    kernel = build(client.owner)
    note = push_once(client, kernel, force, say)
    if not follow:
        return None
    state, reason = follow_run(client, note, say)
    output, files = download_output(client, note, kernel.folder)
    accelerator = kernel.metadata["machine_shape"]
    right, sentence = compare_gpu(find_gpu(output, note["at"]), accelerator)
    return Outcome(kernel.metadata["id"], accelerator, state, reason, output, files, right, sentence)


def push_once(client: Any, kernel: Kernel, force: bool, say: Say) -> dict[str, Any]:
    """Push a kernel, unless the same content was pushed before.

    Args:
        client: A `client.KaggleClient`.
        kernel: the kernel.
        force: push it again anyway.
        say: gets a line with what was done.

    Returns:
        The note in push.json: `kernel`, `version` (0 if unknown), `url`, `content`, `accelerator`, `state`, `at`.

    Raises:
        PermissionError, RuntimeError, ValueError: Kaggle refused; no note is left.
        ConnectionError: the answer was lost, so the kernel may have started.
    """
    path = kernel.folder / "push.json"
    note = _read_note(path)
    same = note.get("content") == kernel.content and not force
    name, accelerator = kernel.metadata["id"], kernel.metadata["machine_shape"]
    if same and note["state"] == "pushed":
        say(
            f"pushed before, {format_time(note['at'])}, as version {note['version']}: following it; "
            "--force pushes again"
        )
        return note
    if same and _is_running(client, name):
        say("the earlier push had no answer, but the kernel is running: following it")
        return note
    kernel.write()
    note = {
        "kernel": name,
        "version": 0,
        "url": f"https://www.kaggle.com/code/{name}",
        "content": kernel.content,
        "accelerator": accelerator,
        "state": "sending",
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    _write_note(path, note)
    try:
        answer = client.push_kernel(kernel.folder, accelerator)
    except ConnectionError as error:
        raise ConnectionError(
            f"{error} The kernel may have started. Run the same command again (it checks before it pushes), or look at "
            f"{note['url']}."
        ) from None
    except (OSError, RuntimeError, ValueError):
        path.unlink()
        raise
    note |= {"version": answer.version_number, "url": answer.url or note["url"], "state": "pushed"}
    _write_note(path, note)
    say(f"pushed version {note['version']} on {accelerator}: {note['url']}")
    return note


def follow_run(
    client: Any, note: dict[str, Any], say: Say, clock: Callable[[], float] = time.monotonic
) -> tuple[str, str]:
    """Wait for the end of a run.

    Args:
        client: A `client.KaggleClient`.
        note: what `push_once` returned.
        say: gets a line for each new state.
        clock: a monotonic clock in seconds; tests pass their own.

    Returns:
        (COMPLETE, ERROR or CANCEL_ACKNOWLEDGED; Kaggle's reason for a failure, empty if it gives none).

    Raises:
        FileNotFoundError: Kaggle still does not know the kernel after five minutes.
        ConnectionError: Kaggle does not answer; the run goes on.
    """
    started, last = clock(), ""
    for pause in chain(STATUS_PAUSES, repeat(60.0)):
        try:
            status, reason = client.kernel_status(versioned_name(note))
        except FileNotFoundError:
            if clock() - started > UNKNOWN_FOR:
                raise
            status, reason = "not known yet", ""
        except ConnectionError as error:
            raise ConnectionError(f"{error} The run goes on. Run the same command again to follow it.") from None
        if status != last:
            say(f"{status.lower().replace('_', ' ')} after {(clock() - started) / 60:.0f} min")
            last = status
        if status in ENDED:
            return status, reason
        client.sleep(pause)
    raise AssertionError("the pauses never end")


def download_output(client: Any, note: dict[str, Any], folder: Path) -> tuple[Path, list[Path]]:
    """Download a run's files and log without the 4-bit checkpoint; each version has a folder of its own.

    Returns:
        (the folder, the files in it).
    """
    output = folder / (f"output-{note['version']}" if note["version"] else "output")
    output.mkdir(parents=True, exist_ok=True)
    return output, client.download_output(versioned_name(note), output, DOWNLOADED)


def versioned_name(note: dict[str, Any]) -> str:
    """owner/slug/version, or owner/slug, which means the latest version, if the push had no answer."""
    return f"{note['kernel']}/{note['version']}" if note["version"] else note["kernel"]


def read_last_lines(folder: Path, count: int = 12) -> list[str]:
    """The last `count` lines that the run printed, from Kaggle's log, which is JSON or plain text."""
    for log in sorted(folder.glob("*.log")):
        text = log.read_text(encoding="utf-8", errors="replace")
        with contextlib.suppress(ValueError, AttributeError, TypeError):
            text = "".join(str(entry.get("data", "")) for entry in json.loads(text))
        return [line for line in text.splitlines() if line.strip()][-count:]
    return []


def _is_running(client: Any, name: str) -> bool:
    try:
        return client.kernel_status(name)[0] in ("QUEUED", "RUNNING")
    except FileNotFoundError:  # the first push of this kernel never arrived
        return False


def _read_note(path: Path) -> dict[str, Any]:
    """The note in push.json, {} if there is none. Raises ValueError for a damaged one: then the run may be going on."""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        has_texts = all(isinstance(note[key], str) for key in ("kernel", "url", "content", "at"))
        is_sound = has_texts and type(note["version"]) is int and note["state"] in ("sending", "pushed")
        if is_sound and datetime.fromisoformat(note["at"]).tzinfo:
            return note
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, KeyError, RecursionError):
        pass
    raise ValueError(
        f"{path} is damaged, so nobody knows whether this kernel was pushed. Look at https://www.kaggle.com/code, then "
        "delete the file."
    )


def _write_note(path: Path, note: dict[str, Any]) -> None:
    write_text(path, json.dumps(note, indent=2) + "\n")
