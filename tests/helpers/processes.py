"""Python processes that start with the heavy libraries imported: a command of the kit takes one second instead of ten.

`fork_server.py` imports them once for the whole test run; a test's process is a fork of it, with its own process
number, environment, folder and output, that can be interrupted and killed like any other. The kit is imported anew.
Tests of the start itself (imports, the signals during them, PYTHONHASHSEED) use `subprocess`.

`python processes.py ...` becomes such a fork too: `tests/conftest.py` starts the workers of pytest-xdist with it.
"""

import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ADDRESS = "GRPO_KIT_FORK_SERVER"  # the environment variable that says where it listens
_servers = []  # it lives as long as its input, which this process holds, is open


class Child:
    """A process started by `start`, with what tests and Jupyter use of `subprocess.Popen`."""

    stdin = stderr = stdout = None

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.pid = int.from_bytes(connection.recv(4), "little")
        if not self.pid:
            raise ConnectionError("the fork server of the tests has ended")

    @property
    def returncode(self) -> int | None:
        if not select.select([self._connection], [], [], 0)[0]:
            return None
        return int.from_bytes(self._connection.recv(4, socket.MSG_PEEK), "little", signed=True)

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        select.select([self._connection], [], [], timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        text = self.stdout.read()
        self.wait(timeout)
        return text, None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(15)

    def kill(self) -> None:
        self.send_signal(9)


def start(words: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Child:
    """Start `python` with these words (`[-W ignore] -m module ...` or `-c code ...`) in a session of its own.

    What it prints, errors too, is read from `stdout`.
    """
    output, end = os.pipe()
    nothing = os.open(os.devnull, os.O_RDONLY)
    try:
        child = _fork(words, dict(env or os.environ), cwd or Path.cwd(), (nothing, end, end), session=True)
    finally:
        os.close(nothing)
        os.close(end)
    child.stdout = os.fdopen(output, encoding="utf-8")
    return child


def start_server() -> None:
    """Let one fork server serve this process and all that it starts."""
    address = f"{tempfile.mkdtemp()}/socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)
        command = [sys.executable, Path(__file__).with_name("fork_server.py"), str(listener.fileno())]
        _servers.append(subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()]))
    os.environ[ADDRESS] = address


def _fork(words: Sequence[str], env: dict[str, str], cwd: Path, descriptors: Sequence[int], session: bool) -> Child:
    if ADDRESS not in os.environ:
        start_server()
    request = {"words": [str(word) for word in words], "env": env, "cwd": str(cwd), "session": session}
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ[ADDRESS])
    socket.send_fds(connection, [b"0"], descriptors)
    connection.sendall(f"{json.dumps(request)}\n".encode())
    return Child(connection)


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "-u"]
    worker = _fork(words, dict(os.environ), Path.cwd(), (0, 1, 2), session=False)
    os.close(0)  # so that only the fork holds them: when one side ends, the other must see it
    os.close(1)
    sys.exit(worker.wait())
