"""One writer for a run: a file `.lock` in its folder says who writes, and by a heartbeat that it still does.

The file is created exclusively, which also works on Google Drive and NFS, where `flock` may be missing. A lock is dead
when its process is gone from this machine, or when its heartbeat has stopped; then the next writer takes it over.
Deleting the file takes over as well: the old writer notices that at its next heartbeat, and ends without writing.
"""

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from grpo_kit.runs import interrupts
from grpo_kit.runs.files import clean_leftovers, is_running, name_place, write_text

LOCK = ".lock"
BEAT = 15.0  # seconds between heartbeats
STALE = 300.0  # seconds without one after which a writer on another machine counts as dead; Drive shows files late
SETTLE = 1.0  # seconds after which the last of several processes that take over a dead lock has it
_held: set[str] = set()  # tokens of this process's locks


class LockLost(BaseException):
    """Another process took the lock over, because this one's heartbeat had stopped or somebody deleted the file."""


@contextmanager
def hold_lock(folder: Path, what: str, stage: str) -> Iterator[None]:
    """Be the only process that writes into `folder` while the block runs. Leftovers of killed ones are cleaned first.

    Args:
        folder: is created if necessary, and removed afterwards if it is empty.
        what: what is locked, for messages, such as "Run 'first'".
        stage: what this process does there.

    Raises:
        RuntimeError: another process writes there; or it took over in the middle, which ends the block at once.
    """
    with interrupts.listen():
        yield from _hold(folder, what, stage)


def _hold(folder: Path, what: str, stage: str) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    path, lock = folder / LOCK, _describe_process(stage)
    stop = threading.Event()
    _acquire(path, lock, what)
    _held.add(lock["token"])
    beats = threading.Thread(target=_beat, args=(path, lock, stop), daemon=True)
    try:
        with interrupts.working():
            beats.start()
            clean_leftovers(folder)
            yield
    except LockLost:
        other = read_lock(path)
        if other and other["token"] == lock["token"]:  # it is a lock around this one
            raise
        raise RuntimeError(
            f"{what} was taken over from this process"
            + (f" by {_describe_holder(other)}" if other else f", because {path} was deleted")
            + "; what this process had not saved is lost. Let one process at a time write it."
        ) from None
    finally:
        stop.set()
        if beats.ident:
            beats.join()
        _held.discard(lock["token"])
        if (read_lock(path) or {}).get("token") == lock["token"]:
            path.unlink(missing_ok=True)
        with suppress(OSError):  # what failed at once leaves no trace
            folder.rmdir()
            folder.parent.rmdir()


def is_locked(folder: Path) -> bool:
    """Whether a process writes into `folder`."""
    lock = read_lock(folder / LOCK)
    return lock is not None and not _is_dead(lock)


def read_lock(path: Path) -> dict[str, Any] | None:
    """The lock in this file; None where there is none, or none that can be read."""
    for _ in range(3):  # a lock that is just being created is empty
        try:
            lock, form = json.loads(path.read_text(encoding="utf-8")), _describe_process("")
            fits = isinstance(lock, dict) and all(type(lock.get(key)) is type(form[key]) for key in form)
            return lock if fits else None
        except ValueError:
            time.sleep(0.1)
        except OSError:
            return None
    return None


def _describe_process(stage: str) -> dict[str, Any]:
    return {
        "stage": stage,
        "host": platform.node(),
        "machine": _machine(),
        "pid": os.getpid(),
        "start": int(time.time()),
        "beat": int(time.time()),
        "token": uuid.uuid4().hex,
    }


def _machine() -> str:
    """This machine since its last start, and which of its containers this is: process ids count only within that."""
    parts = []
    for name, read in (("boot_id", Path.read_text), ("pid", os.readlink)):
        with suppress(OSError):  # not Linux: the host's name has to do
            parts.append(str(read(Path("/proc/sys/kernel/random" if name == "boot_id" else "/proc/self/ns") / name)))
    return " ".join(part.strip() for part in [platform.node(), *parts])


def _is_dead(lock: dict[str, Any]) -> bool:
    silence = time.time() - lock["beat"]
    if lock["machine"] == _machine():
        if lock["pid"] == os.getpid():
            return lock["token"] not in _held  # a container's processes have the same numbers after each start
        # A process that began later only has the number of the dead one; clocks jump, so its silence counts too.
        if not is_running(lock["pid"], time.time() if silence < 3 * BEAT else lock["start"]):
            return True
    return silence > STALE


def _describe_holder(lock: dict[str, Any]) -> str:
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(lock["start"]))
    return f"{lock['stage']!r} in process {lock['pid']} on {lock['host']}, since {since}"


def _acquire(path: Path, lock: dict[str, Any], what: str) -> None:
    while True:
        try:
            with name_place(path), path.open("x", encoding="utf-8") as file:
                try:
                    file.write(json.dumps(lock) + "\n")
                    file.flush()
                except OSError:  # a full disk
                    path.unlink()
                    raise
            return
        except FileExistsError:
            holder = read_lock(path)
        if holder is None and not path.exists():  # it has just ended
            continue
        if holder and not _is_dead(holder):
            silence = max(0, int(time.time() - holder["beat"]))
            raise RuntimeError(
                f"{what} is being written by {_describe_holder(holder)}; its last sign of life was {silence} s ago. "
                f"Wait until it ends or use another run; if it is dead, delete {path} or call again in "
                f"{STALE - silence:.0f} s."
            )
        write_text(path, json.dumps(lock) + "\n")
        time.sleep(SETTLE)
        if (read_lock(path) or {}).get("token") == lock["token"]:
            return


def _beat(path: Path, lock: dict[str, Any], stop: threading.Event) -> None:
    """Write the time into the lock, again and again, until it is another process's."""
    while not stop.wait(BEAT):
        try:
            with path.open("r+", encoding="utf-8") as file:
                if json.loads(file.read())["token"] != lock["token"]:
                    raise FileNotFoundError
                file.seek(0)
                file.write(json.dumps(lock | {"beat": int(time.time())}) + "\n")
        except FileNotFoundError:
            interrupts.interrupt(LockLost)
            return
        except (OSError, ValueError, KeyError, TypeError):  # a disk that does not answer now may do so later
            continue
