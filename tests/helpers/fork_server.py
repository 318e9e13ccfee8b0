"""Import the heavy libraries once, then fork for everyone who asks: `python fork_server.py NUMBER-OF-A-SOCKET`.

`tests/helpers/processes.py` starts this process and sends the requests. It ends when the process that started it does.
"""

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import sys
import threading
import traceback
import types
import warnings
from pathlib import Path

LIBRARIES = (
    "torch", "torch._dynamo", "transformers", "transformers.models.nemotron_h.modeling_nemotron_h", "peft", "trl",
    "trl.trainer.grpo_trainer", "bitsandbytes", "datasets", "accelerate", "pandas", "scipy.stats",
    "matplotlib.backends.backend_agg", "matplotlib.pyplot", "torch.utils.tensorboard", "ipykernel.kernelapp",
    "omegaconf", "pydantic", "typer.testing", "rich.console", "optuna", "sqlalchemy.orm", "alembic.command",
)  # fmt: skip


def serve(listener: socket.socket) -> socket.socket:
    """Fork for each connection, and tell it how the fork ended. Only the forks return, each with its connection."""
    running: dict[int, socket.socket] = {}
    wake, awaken = socket.socketpair()
    awaken.setblocking(False)
    signal.set_wakeup_fd(awaken.fileno())
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    while True:
        ready, _, _ = select.select([0, listener, wake], [], [])
        if 0 in ready:  # the process that started this one has ended
            shutil.rmtree(Path(listener.getsockname()).parent)
            sys.exit()
        if wake in ready:
            wake.recv(4096)
            while running and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                code = os.waitstatus_to_exitcode(ended[1])
                with running.pop(ended[0]) as connection, contextlib.suppress(OSError):
                    connection.sendall(code.to_bytes(4, "little", signed=True))
        if listener in ready:
            connection, _ = listener.accept()
            if pid := os.fork():
                running[pid] = connection
                continue
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for inherited in (listener, wake, awaken, *running.values()):
                inherited.close()
            return connection


def become(connection: socket.socket) -> None:
    """Be the Python process that the request describes: its input and output, environment, folder and words."""
    _, descriptors, _, _ = socket.recv_fds(connection, 1, 3)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdin = os.fdopen(0, encoding="utf-8", closefd=False)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
    with connection, connection.makefile(encoding="utf-8") as lines:
        request = json.loads(lines.readline())
        if request["session"]:
            os.setsid()
        connection.sendall(os.getpid().to_bytes(4, "little"))
    words, env, here = request["words"], request["env"], request["cwd"]
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
    if words[0] == "-m":
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.modules["__main__"] = types.ModuleType("__main__")
        exec(words[1], sys.modules["__main__"].__dict__)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the terminal; the forks hear it
    del sys.path[0]  # this file's folder
    for name in LIBRARIES:
        importlib.import_module(name)
    gc.freeze()  # the libraries; collecting garbage need not visit their millions of objects
    connection = serve(socket.socket(fileno=int(sys.argv[1])))
    code = 1
    try:
        become(connection)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:  # as Python ends, but without taking the libraries apart
        threading._shutdown()
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
