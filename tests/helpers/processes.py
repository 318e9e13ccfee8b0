"""Python processes that start with the heavy libraries imported: a command of the kit takes one second instead of ten.

A fork server (Python's own) imports them once for each pytest process; a test's process is a fork of it, with its own
process number, environment, folder and output, that can be interrupted and killed like any other. The kit itself is
imported anew. Tests of the start itself (imports, the signals during them, PYTHONHASHSEED) use `subprocess`.
"""

import atexit
import gc
import importlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import time
import types
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

LIBRARIES = (
    "torch", "torch._dynamo", "transformers", "transformers.models.nemotron_h.modeling_nemotron_h", "peft", "trl",
    "trl.trainer.grpo_trainer", "bitsandbytes", "datasets", "accelerate", "pandas", "matplotlib.backends.backend_agg",
    "ipykernel.kernelapp",
)  # fmt: skip


class Child:
    """A process started by `start`, with what tests and Jupyter use of `subprocess.Popen`."""

    stdin = stderr = None

    def __init__(self, process, output: Connection) -> None:
        self._process, self.pid = process, process.pid
        self.stdout = os.fdopen(os.dup(output.fileno()), encoding="utf-8")
        self.terminate, self.kill = process.terminate, process.kill

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self._process.name, timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        text = self.stdout.read()
        self.wait(timeout)
        return text, None

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def start(words: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Child:
    """Start `python` with these words (`[-W ignore] -m module ...` or `-c code ...`) in a session of its own.

    What it prints, errors too, is read from `stdout`.
    """
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(list(LIBRARIES))
    ours, theirs = server.Pipe(duplex=False)
    arguments = ([str(w) for w in words], dict(env or os.environ), str(cwd or Path.cwd()), theirs)
    process = server.Process(target=_run, args=arguments)
    process.start()
    theirs.close()
    with ours:
        child = Child(process, ours)
    while child.poll() is None and os.getpgid(child.pid) != child.pid:  # or a signal to its group would reach ours
        time.sleep(0.001)
    return child


def _run(words: list[str], env: dict[str, str], here: str, output: Connection) -> None:
    os.setsid()
    gc.freeze()  # the libraries; collecting garbage need not visit their millions of objects
    for descriptor in (1, 2):
        os.dup2(output.fileno(), descriptor)
    output.close()
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    os.environ.clear()
    os.environ.update(env)
    os.chdir(here)
    folders = [folder for folder in env.get("PYTHONPATH", "").split(os.pathsep) if folder]
    sys.path[:0] = [here, *folders]
    if any((Path(folder) / "sitecustomize.py").is_file() for folder in folders):
        sys.modules.pop("sitecustomize", None)
        importlib.import_module("sitecustomize")
    if words[:2] == ["-W", "ignore"]:
        warnings.simplefilter("ignore")
        words = words[2:]
    sys.argv = [words[0], *words[2:]]
    try:
        if words[0] == "-m":
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(words[1], sys.modules["__main__"].__dict__)
    finally:
        atexit._run_exitfuncs()
