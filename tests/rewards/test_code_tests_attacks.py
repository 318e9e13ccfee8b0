"""Programs that attack code_tests: none passes, none survives its limit, nothing is left.

An attack prints or returns the expected value only where it succeeds. `python -m tests.rewards.test_code_tests_attacks`
prints what each does on this machine.
"""

import contextlib
import json
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from grpo_kit.rewards import code_tests
from grpo_kit.rewards.code_tests import code_tests_verdict, describe_isolation

SMALL = {"memory_mib": 256}
SEVEN = json.dumps({"kind": "stdin", "inputs": ["3 4\n"], "outputs": ["7\n"], **SMALL})
LINES = json.dumps({"kind": "stdin", "inputs": ["2\n"], "outputs": ["1\n2\n"], **SMALL})
CALL = json.dumps({"kind": "function", "name": "f", "inputs": [[3, 4]], "outputs": [7], **SMALL})
ASSERT = json.dumps({"kind": "asserts", "code": ["assert f(3, 4) == 7"], "setup": "", **SMALL})
EACH = json.dumps({"kind": "asserts", "code": ["assert all(map(f, [2, 3]))"], "setup": "", **SMALL})
GOLD = json.dumps({"kind": "asserts", "code": ["assert f(3) == g(3)"], "setup": "def g(n): return n + 4", **SMALL})
TRUTH = json.dumps({"kind": "asserts", "code": ["assert f(3, 4)"], "setup": "", **SMALL})
CLOSE = json.dumps({"kind": "asserts", "code": ["assert abs(f(3) - 7) < 1e-6"], "setup": "", **SMALL})
SHORT, SHORT_ASSERT = (json.dumps(json.loads(tests) | {"time_limit_s": 0.2}) for tests in (SEVEN, ASSERT))

CALLED = "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
SEARCH = """
import gc, sys
def f(*a):
    seen, frame = [], sys._getframe()
    while frame:
        seen += [frame.f_locals, frame.f_globals]
        frame = frame.f_back
    for o in gc.get_objects() + seen:
        if "".join(["assert", " f(3"]) in (repr(o) if isinstance(o, (dict, list, tuple)) else ""):
            return 7
"""
MEMORY = """
def search(reversed_text):
    memory = open("/proc/self/mem", "rb")
    for line in open("/proc/self/maps"):
        start, end = (int(x, 16) for x in line.split()[0].split("-"))
        if " rw" in line:
            memory.seek(start)
            if reversed_text.encode() in memory.read(end - start)[::-1]:  # so that it does not find itself
                return 7
def f(*a): return search("3(f tressa")
"""
LIAR = """
class L:
    def __eq__(self, other): return True
    def __sub__(self, other): return self
    def __abs__(self): return self
    def __lt__(self, other): return True
    def __bool__(self): return True
    def __repr__(self): return "7"
    def __reduce__(self): return (int, (7,))
def f(*a): return L()
"""
DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        print(7, flush=True)
        time.sleep(60)
"""

# What it tries, what stops it (None: only data are compared), its tests, the program, our reason.
ATTACKS = [
    # processes
    ("a fork", "system calls", SEVEN, "import os\nos.fork()\nprint(7)", "crashed"),
    ("a fork bomb", "system calls", SEVEN, "import os\nwhile 1: os.fork()", "crashed"),
    ("vfork without Python", "system calls", SEVEN, CALLED + "print(7 if libc.vfork() >= 0 else 8)", "wrong_output"),
    ("clone3", "system calls", SEVEN,
     CALLED + "print(7 if libc.syscall(435, ctypes.create_string_buffer(88), 88) >= 0 else 8)", "wrong_output"),
    ("clone without a thread", "system calls", SEVEN,
     CALLED + "print(7 if libc.syscall(56, 17, 0, 0, 0, 0) >= 0 else 8)", "wrong_output"),
    ("a daemon that forks twice", "system calls", SEVEN, DAEMON, "crashed"),
    ("zombie children", "system calls", SEVEN,
     "import os\nfor _ in range(99):\n    if not os.fork(): os._exit(0)\nprint(7)", "crashed"),
    ("a shell", "system calls", SEVEN, "import os\nos.system('echo 7')", "wrong_output"),
    ("subprocess", "system calls", SEVEN,
     "import subprocess\nprint(subprocess.check_output(['echo', '7']).decode())", "crashed"),
    ("exec of another program", "system calls", SEVEN, "import os\nos.execv('/bin/echo', ['echo', '7'])", "crashed"),
    ("posix_spawn", "system calls", SEVEN,
     "import os\nos.posix_spawn('/bin/echo', ['echo', '7'], {})\nprint(7)", "crashed"),
    ("multiprocessing", "system calls", SEVEN,
     "import multiprocessing as m\nm.Process(target=print, args=(7,)).start()", "crashed"),
    ("a session of its own", "system calls", SEVEN, "import os\nos.setpgid(0, 0)\nos.setsid()\nprint(7)", "crashed"),
    ("a thousand threads", "limits", SEVEN,
     "import threading, time\n"
     "for _ in range(1000): threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\nprint(7)", "crashed"),
    # the server, the parent and others
    ("kill the parent", "system calls", SEVEN, "import os\nos.kill(os.getppid(), 9)\nprint(7)", "crashed"),
    ("kill everything", "system calls", SEVEN, "import os\nos.kill(-1, 0)\nprint(7)", "crashed"),
    ("kill the parent's group", "system calls", SEVEN,
     "import os\nos.killpg(os.getpgid(os.getppid()), 0)\nprint(7)", "crashed"),
    ("a queued signal", "system calls", SEVEN,
     CALLED + "import os\nprint(7 if libc.sigqueue(os.getppid(), 9, 0) == 0 else 8)", "wrong_output"),
    ("a signal by pidfd", "system calls", SEVEN,
     "import os, signal\nsignal.pidfd_send_signal(os.pidfd_open(os.getppid()), 0)\nprint(7)", "crashed"),
    ("a signal by a descriptor's owner", "system calls", SEVEN,
     "import fcntl, os\nfcntl.fcntl(0, 8, os.getppid())\nprint(7)", "crashed"),
    ("the parent's environment", "files", SEVEN,
     "import os\nopen(f'/proc/{os.getppid()}/environ').read()\nprint(7)", "crashed"),
    ("the parent's memory", "files", SEVEN, "import os\nopen(f'/proc/{os.getppid()}/mem', 'rb')\nprint(7)", "crashed"),
    ("the parent's descriptors", "files", SEVEN,
     "import os\nos.listdir(f'/proc/{os.getppid()}/fd')\nprint(7)", "crashed"),
    ("the list of processes", "files", SEVEN, "import os\nos.listdir('/proc')\nprint(7)", "crashed"),
    ("ptrace", "system calls", SEVEN,
     CALLED + "import os\nprint(7 if libc.ptrace(16, os.getppid(), 0, 0) == 0 else 8)", "wrong_output"),
    ("process_vm_readv", "system calls", SEVEN,
     CALLED + "import os\nprint(7 if libc.process_vm_readv(os.getppid(), 0, 0, 0, 0, 0) == 0 else 8)", "wrong_output"),
    ("the parent's limits", "system calls", SEVEN,
     "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_CPU)\nprint(7)", "crashed"),
    ("the parent's priority", "system calls", SEVEN,
     "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)\nprint(7)", "crashed"),
    ("outliving the parent", "system calls", SEVEN,
     CALLED + "print(7 if libc.prctl(1, 0, 0, 0, 0) == 0 else 8)", "wrong_output"),
    ("every descriptor above 2", "closed descriptors", SEVEN,
     "import os\nfound = 8\nfor fd in range(3, 4096):\n"
     "    try: os.fstat(fd); found = 7\n    except OSError: pass\nprint(found)", "wrong_output"),
    ("raising its own limits", "no new privileges", SEVEN,
     "import resource\nresource.setrlimit(resource.RLIMIT_CPU, (999, 999))\nprint(7)", "crashed"),
    ("root again", "system calls", SEVEN, "import os\nos.setuid(0)\nprint(7)", "crashed"),
    ("environment tokens", "an empty environment", SEVEN,
     "import os\n"
     "print(7 if any('TOKEN' in k or 'KEY' in k or k == 'HOME' for k in os.environ) else 8)", "wrong_output"),
    ("LD_PRELOAD for the next one", "system calls", SEVEN,
     "import os, sys\nos.environ['LD_PRELOAD'] = '/tmp/x.so'\n"
     "os.execv(sys.executable, ['python', '-c', 'print(7)'])", "crashed"),
    # files
    ("writing outside", "files", SEVEN, "open('VICTIM2', 'w')\nprint(7)", "crashed"),
    ("writing into its folder", "files", SEVEN, "open('x', 'w').write('7')\nprint(7)", "crashed"),
    ("a file of 10 GB", "files", SEVEN, "f = open('x', 'wb')\nf.truncate(10**10)\nprint(7)", "crashed"),
    ("a file in shared memory", "files", SEVEN, "open('/dev/shm/grpo-kit-attack', 'w')\nprint(7)", "crashed"),
    ("a file without a name", "files", SEVEN, "import os\nos.open('.', os.O_TMPFILE | os.O_RDWR)\nprint(7)", "crashed"),
    ("memory that is a file", "system calls", SEVEN, "import os\nos.memfd_create('x')\nprint(7)", "crashed"),
    ("a segment of shared memory", "system calls", SEVEN,
     CALLED + "print(7 if libc.shmget(0, 4096, 0o1600) >= 0 else 8)", "wrong_output"),
    ("emptying a file", "files", SEVEN, "import os\nos.truncate('VICTIM', 0)\nprint(7)", "crashed"),
    ("deleting its tests", "files", SEVEN,
     "import os, shutil\nfor n in os.listdir('.') + ['VICTIM']: os.remove(n)\nprint(7)", "crashed"),
    ("deleting its folder", "system calls", SEVEN, "import os\nos.rmdir(os.getcwd())\nprint(7)", "crashed"),
    ("a folder", "files", SEVEN, "import os\nos.mkdir('x')\nprint(7)", "crashed"),
    ("renaming", "system calls", SEVEN, "import os\nos.rename('VICTIM', 'VICTIM2')\nprint(7)", "crashed"),
    ("a symbolic link", "files", SEVEN,
     "import os\nos.symlink('/etc/passwd', 'x')\nprint(open('x').read() and 7)", "crashed"),
    ("a hard link", "files", SEVEN, "import os\nos.link('VICTIM', 'x')\nprint(7)", "crashed"),
    ("a named pipe", "files", SEVEN, "import os\nos.mkfifo('x')\nprint(7)", "crashed"),
    ("changing modes", "system calls", SEVEN, "import os\nos.chmod('VICTIM', 0o777)\nprint(7)", "crashed"),
    ("reading /etc/passwd", "files", SEVEN, "print(7 if open('/etc/passwd').read() else 8)", "crashed"),
    ("listing /", "files", SEVEN, "import os\nprint(7 if os.listdir('/') else 8)", "crashed"),
    ("reading the answers of a data set", "files", SEVEN,
     "import os\nprint([7 for p, _, _ in os.walk(os.path.dirname('VICTIM')) if p][0])", "crashed"),
    ("a way out by ..", "files", SEVEN, "import os\nprint(7 if os.listdir('../..') else 8)", "crashed"),
    ("a device", "files", SEVEN, "open('/dev/kmsg').read(1)\nprint(7)", "crashed"),
    # the network
    ("a connection", "network", SEVEN,
     "import socket\nsocket.create_connection(('127.0.0.1', 22), 1)\nprint(7)", "crashed"),
    ("a server", "system calls", SEVEN, "import socket\nsocket.socket().bind(('', 0))\nprint(7)", "crashed"),
    ("a socket of Unix", "system calls", SEVEN, "import socket\nsocket.socket(socket.AF_UNIX)\nprint(7)", "crashed"),
    ("a datagram to a socket of Unix", "system calls", SEVEN,
     "import socket\na, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\na.sendto(b'7', '/dev/log')\nprint(7)",
     "crashed"),
    ("a raw socket", "system calls", SEVEN,
     "import socket\nsocket.socket(socket.AF_PACKET, socket.SOCK_RAW)\nprint(7)", "crashed"),
    ("a name's address", "network", SEVEN, "import socket\nsocket.getaddrinfo('example.org', 80)\nprint(7)", "crashed"),
    ("a page", "network", SEVEN,
     "import urllib.request\nurllib.request.urlopen('http://example.org')\nprint(7)", "crashed"),
    # the kernel
    ("a mount", "system calls", SEVEN,
     CALLED + "print(7 if libc.mount(b'x', b'/tmp', b'tmpfs', 0, 0) == 0 else 8)", "wrong_output"),
    ("a namespace", "system calls", SEVEN, CALLED + "print(7 if libc.unshare(0x10000000) == 0 else 8)", "wrong_output"),
    ("a new root", "system calls", SEVEN, "import os\nos.chroot('.')\nprint(7)", "crashed"),
    ("io_uring", "system calls", SEVEN,
     CALLED + "print(7 if libc.syscall(425, 1, ctypes.create_string_buffer(120)) >= 0 else 8)", "wrong_output"),
    ("writing all disks", "system calls", SEVEN, CALLED + "print(7 if libc.syncfs(0) == 0 else 8)", "wrong_output"),
    ("another filter", "system calls", SEVEN, CALLED + "print(7 if libc.prctl(22, 1) == 0 else 8)", "wrong_output"),
    ("calls by the numbers of x32", "system calls", SEVEN,
     CALLED + "print(7 if libc.syscall(0x40000000 + 57) >= 0 else 8)", "wrong_output"),
    ("a crash of the interpreter", "the exit status", SEVEN,
     CALLED + "print(7, flush=True)\nctypes.string_at(0)", "crashed"),
    ("a stack that overflows", "limits", SEVEN,
     "import sys\nsys.setrecursionlimit(10**9)\nprint(7, flush=True)\n"
     "class R: __repr__ = lambda r: repr(r)\nrepr(R())", "crashed"),
    # memory and output
    ("16 GiB at once", "limits", SEVEN, "x = bytearray(2**34)\nprint(7)", "too_much_memory"),
    ("memory bit by bit", "limits", SEVEN, "x = [0]\nwhile 1: x += x", "too_much_memory"),
    ("memory that is mapped", "limits", SEVEN, "import mmap\nmmap.mmap(-1, 2**34)\nprint(7)", "crashed"),
    ("a flood of output", "limits", SEVEN, "while 1: print('7' * 10**6)", "too_much_output"),
    ("the first lines only", None, LINES, "print(1)", "wrong_output"),
    ("an unfinished line", None, LINES, "print('1\\n', end='', flush=True)\nimport os\nos._exit(0)", "wrong_output"),
    ("a NUL in the output", None, SEVEN, "print('7\\0')", "wrong_output"),
    ("invalid UTF-8", None, SEVEN, "import os\nos.write(1, b'7\\xff')", "wrong_output"),
    ("half a surrogate pair", "the exit status", SEVEN, "print('7\\ud800')", "crashed"),
    ("all answers at once", None, SEVEN, "for n in range(9999): print(n)", "wrong_output"),
    ("a terminal's signs", None, SEVEN, "print('8\\b7')", "wrong_output"),
    ("digits of another script", None, SEVEN, "print('\\uff17')", "wrong_output"),
    ("a closed output", "the exit status", SEVEN, "import os\nos.close(1)\nprint(7)", "crashed"),
    ("an input that is written", "the exit status", SEVEN, "import os\nos.write(0, b'7')\nprint(7)", "crashed"),
    ("bombs of brackets", "the exit status", SEVEN, "(" * 50000, "crashed"),
    ("another encoding", None, SEVEN, "# coding: utf-7\nprint(8)", "wrong_output"),
    # a value that lies
    ("exit before the assert", None, ASSERT, "import os\nos._exit(0)", "crashed"),
    ("exit within the call", None, ASSERT, "import os\ndef f(*a): os._exit(0)", "crashed"),
    ("SystemExit within the call", None, ASSERT, "def f(*a): raise SystemExit(0)", "crashed"),
    ("exit before the function", None, CALL, "import os\nos._exit(0)", "not_data"),
    ("an object that equals everything", None, ASSERT, LIAR, "crashed"),
    ("the same as a returned value", None, CALL, LIAR, "not_data"),
    ("an object that is true", None, TRUTH, LIAR, "crashed"),
    ("an object that is close", None, CLOSE, LIAR, "crashed"),
    ("a number with another ==", None, ASSERT,
     "class I(int):\n    def __eq__(self, o): return True\ndef f(*a): return I(8)", "wrong_output"),
    ("a list with other items", None, ASSERT,
     "class I(list):\n    def __eq__(self, o): return True\n"
     "    def __iter__(self): return iter([7])\ndef f(*a): return I()", "wrong_output"),
    ("another abs", None, CLOSE,
     "import builtins\nbuiltins.abs = lambda x: 0\ndef abs(x): return 0\ndef f(*a): return 8", "wrong_output"),
    ("other builtins", None, ASSERT,
     "import builtins\nbuiltins.AssertionError = SystemExit\n"
     "builtins.exec = builtins.isinstance = lambda *a: True\ndef f(*a): return 8", "crashed"),
    ("another json", None, ASSERT,
     "import json\njson.dumps = lambda *a, **k: '{\"value\": 8}'\ndef f(*a): return 8", "wrong_output"),
    ("other modules", None, ASSERT,
     "import sys\nfor n in list(sys.modules): sys.modules[n] = None\ndef f(*a): return 8", "wrong_output"),
    ("another os._exit", None, ASSERT, "import os\nos._exit = lambda s: None\nraise SystemExit", "crashed"),
    ("an answer that nobody asked for", None, ASSERT,
     "import os\nos.write(4, b'{\"pass\": true}\\n' * 9)\ndef f(*a): return 8", "crashed"),
    ("a mark of success on every descriptor", None, ASSERT,
     "import os\nfor fd in range(64):\n    try: os.write(fd, b'\\0\\0\\0\\1\\0')\n"
     "    except OSError: pass\ndef f(*a): return 8", "crashed"),
    ("a pickled answer", None, ASSERT,
     "import os\nos.write(4, b\"cos\\nsystem\\n(S'echo 7'\\ntR.\\n\")\ndef f(*a): return 8", "crashed"),
    ("a kind that there is not", None, ASSERT,
     "import os\nos.write(4, b'{\"value\": {\"!\": \"eval\", \"v\": \"7\"}}\\n')\ndef f(*a): return 8", "crashed"),
    ("an error of its choice", None, ASSERT,
     "import os\nos.write(4, b'{\"error\": \"\", \"type\": \"SystemExit\"}\\n')\ndef f(*a): return 8", "crashed"),
    ("an AssertionError of its own", None, ASSERT, "def f(*a): raise AssertionError", "crashed"),
    ("an end of the test's own loop", None, EACH, "def f(n): raise StopIteration", "crashed"),
    ("the reference in the setup", None, GOLD, "def f(n): return g(n)", "crashed"),
    ("KeyboardInterrupt", None, ASSERT, "def f(*a): raise KeyboardInterrupt", "crashed"),
    ("frames and gc, to find the test", None, ASSERT, SEARCH, "wrong_output"),
    ("its own memory, to find the test", "files", ASSERT, MEMORY, "crashed"),
    ("a trace in every frame", None, ASSERT,
     "import sys\nsys.settrace(lambda *a: 1 / 0)\ndef f(*a): return 8", "crashed"),
    ("functions with the names of Python", None, ASSERT,
     "def compile(*a): return 7\nint = str = list = lambda *a: 7\ndef f(*a): return 8", "wrong_output"),
    ("a list that holds itself", None, CALL, "def f(*a):\n    x = []\n    x.append(x)\n    return x", "not_data"),
    ("NaN", None, CALL, "def f(*a): return float('nan')", "not_data"),
    ("nested a hundred thousand times", None, CALL,
     "import os\nos.write(4, b'{\"value\":' + b'[' * 100000)\nos._exit(0)", "not_data"),
    ("two answers", None, CALL, "import os\nos.write(4, b'{\"value\": 7}\\n')\ndef f(*a): return 8", "not_data"),
    ("a long answer", "limits", CALL, "def f(*a): return '7' * 10**7", "too_much_output"),
    ("an answer without a value", None, CALL, "import os\nos.write(4, b'[7]')\nos._exit(0)", "not_data"),
]  # fmt: skip

# These run until a limit ends them.
SLOW = [
    ("a loop", "limits", SHORT, "print(7, flush=True)\nwhile 1: pass", "too_slow"),
    ("a loop in C", "limits", SHORT, "sum(iter(int, 1))", "too_slow"),
    ("a power of powers", "limits", SHORT, "print(9**9**9)", "too_slow"),
    ("a pattern without end", "limits", SHORT, "import re\nre.match('(a+)+$', 'a' * 64 + 'b')\nprint(7)", "too_slow"),
    ("a loop that catches everything", "limits", SHORT,
     "while 1:\n    try:\n        while 1: pass\n    except BaseException: pass", "too_slow"),
    ("signals that are ignored", "limits", SHORT,
     "import signal\nfor n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n"
     "    except (OSError, ValueError): pass\nwhile 1: pass", "too_slow"),
    ("a thread that does not end", "limits", SHORT,
     "import threading\ndef g():\n    while 1: pass\n"
     "threading.Thread(target=g).start()\nprint(7, flush=True)", "too_slow"),
    ("sleep", "limits", SHORT, "import time\nprint(7, flush=True)\ntime.sleep(999)", "too_slow"),
    ("a closed output, then sleep", "limits", SHORT,
     "import os, time\nprint(7, flush=True)\nos.close(1)\ntime.sleep(999)", "too_slow"),
    ("a lock that is held", "limits", SHORT,
     "import threading\nx = threading.Lock()\nx.acquire()\nx.acquire()", "too_slow"),
    ("sleep within a call", "limits", SHORT_ASSERT, "import time\ndef f(*a): time.sleep(999)", "too_slow"),
    ("a generator without end", "limits", SHORT_ASSERT, "def f(*a):\n    while 1: yield 7", "too_slow"),
    ("a loop at exit", "limits", SHORT,
     "import atexit\n@atexit.register\ndef g():\n    while 1: pass\nprint(7, flush=True)", "too_slow"),
]  # fmt: skip


def judge(attack, victim):
    return code_tests_verdict(f"```python\n{attack[3].replace('VICTIM', str(victim))}\n```", attack[2])


@pytest.fixture
def victim():
    """A file that everybody may write, in a folder where everybody may write."""
    path = Path(tempfile.gettempdir(), f"grpo-kit-victim-{os.getpid()}")
    path.write_text("unharmed")
    path.chmod(0o666)
    yield path
    harmed = not path.exists() or path.read_text() != "unharmed" or path.stat().st_mode & 0o777 != 0o666
    for left in [path, *Path("/dev/shm").glob("grpo-kit-attack")]:
        left.unlink(missing_ok=True)
    assert not harmed


def list_leftovers(victim):
    """Descendants of the servers, files in their folders, and what attacks would write elsewhere."""
    servers = code_tests._program_servers
    left = [path for path in (Path(f"{victim}2"), Path("/dev/shm/grpo-kit-attack")) if path.exists()]
    left += [path for server in servers for path in Path(server.folder).iterdir()]
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) in {server.process.pid for server in servers}:
                left.append(path.parent.name)
    return left


def settle(victim):
    """What is left once the servers have seen that their last programs are done."""
    until = time.monotonic() + 20
    while list_leftovers(victim) and time.monotonic() < until:
        time.sleep(0.01)
    return list_leftovers(victim)


def count_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


def require_failure(attacks, victim):
    descriptors = count_descriptors()
    with ThreadPoolExecutor(code_tests.PROGRAMS_AT_ONCE) as pool:
        verdicts = list(pool.map(lambda attack: judge(attack, victim), attacks))
    found = {attack[0]: (verdict.reward, verdict.reason) for attack, verdict in zip(attacks, verdicts)}
    assert found == {attack[0]: (0.0, attack[4]) for attack in attacks}
    assert settle(victim) == []
    assert count_descriptors() <= descriptors + 2 * code_tests.PROGRAMS_AT_ONCE  # servers that are new
    assert code_tests_verdict("```python\nprint(7)\n```", SEVEN).reward == 1.0


@pytest.mark.parametrize("attacks", [ATTACKS, pytest.param(SLOW, marks=pytest.mark.slow)], ids=["quick", "slow"])
def test_no_attack_passes_or_survives_or_leaves_anything(attacks, victim):
    layers = describe_isolation()
    require_failure([attack for attack in attacks if layers.get(attack[1], "holds") == "holds"], victim)


@pytest.fixture
def alone(monkeypatch, request):
    """Servers on which one layer holds and the other three are left out."""
    layers = describe_isolation()
    if layers[request.param] != "holds":
        pytest.skip(f"{request.param}: {layers[request.param]}")
    kind = code_tests._ProgramServer
    others = [name for name in code_tests.ISOLATION if name != request.param]
    monkeypatch.setattr(code_tests, "_idle_servers", [])
    monkeypatch.setattr(code_tests, "_program_servers", set())
    monkeypatch.setattr(code_tests, "_ProgramServer", lambda: kind(others))
    yield request.param
    code_tests._end_program_servers()


@pytest.mark.slow
@pytest.mark.parametrize("alone", ["system calls", "network", "files"], indirect=True)
def test_the_layer_that_is_named_stops_an_attack_alone(alone, victim):
    require_failure([attack for attack in ATTACKS if attack[1] == alone], victim)


def test_no_memory_holds_a_test_or_another_programs_input(monkeypatch):
    kind = code_tests._ProgramServer
    monkeypatch.setattr(code_tests, "_idle_servers", [])
    monkeypatch.setattr(code_tests, "_program_servers", set())
    monkeypatch.setattr(code_tests, "_ProgramServer", lambda: kind(["files", "user"]))  # which close /proc
    zebra = json.dumps({"kind": "stdin", "inputs": ["a zebra in Zanzibar"], "outputs": ["19"]})
    read = "s = input()\nzebra = [s.upper() + str(n) for n in range(999)]\nprint(len(s))"
    other = MEMORY + "def f(*a): return search('rabiznaZ ni arbez')"
    own = other + "\nkeep = 'rabiznaZ ni arbez'[::-1]"
    try:
        found = [
            code_tests_verdict(f"```python\n{program}\n```", tests)[:2]
            for program, tests in [(read, zebra), (own, ASSERT), (other, ASSERT), (MEMORY, ASSERT)]
        ]
    finally:
        code_tests._end_program_servers()
    assert found == [(1.0, "right"), (1.0, "right"), (0.0, "wrong_output"), (0.0, "wrong_output")]


PYTHONS = (sys.executable, "/usr/bin/python3")  # the first one that other users can read
PUBLIC = next((path for path in PYTHONS if not os.path.realpath(path).startswith("/root/")), sys.executable)
BOMB = """
import os, time
while 1:
    try: os.fork()
    except OSError: time.sleep(0.01)
"""
ESCAPES = [
    ("a fork bomb", None, SHORT, BOMB, "too_slow"),
    ("a daemon that forks twice", None, LINES, DAEMON, "wrong_output"),
    ("zombie children", None, LINES,
     "import os\nfor _ in range(20):\n    if not os.fork(): os._exit(0)", "wrong_output"),
    ("children that sleep", None, LINES,
     "import os, time\nfor _ in range(9):\n    if not os.fork(): os.setsid(); time.sleep(99)", "wrong_output"),
    ("another user's process", None, SEVEN, "import os\nos.kill(os.getppid(), 9)\nprint(7)", "crashed"),
    ("the parent's environment", None, SEVEN,
     "import os\nopen(f'/proc/{os.getppid()}/environ').read()\nprint(7)", "crashed"),
]  # fmt: skip


@pytest.mark.slow
def test_another_user_and_an_attentive_server_stop_processes_without_a_filter(victim, monkeypatch):
    kind = code_tests._ProgramServer
    monkeypatch.setattr(code_tests, "_idle_servers", [])
    monkeypatch.setattr(code_tests, "_program_servers", set())
    monkeypatch.setattr(code_tests, "_ProgramServer", lambda: kind(["system calls", "files"]))
    monkeypatch.setattr(sys, "executable", PUBLIC)
    server = code_tests._ProgramServer()
    server.end()
    if server.layers["user"] != "holds":
        pytest.skip(f"user: {server.layers['user']}")
    try:
        require_failure(ESCAPES, victim)
    finally:
        code_tests._end_program_servers()


def test_there_are_more_than_sixty_attacks():
    assert len({attack[0] for attack in ATTACKS + SLOW}) == len(ATTACKS) + len(SLOW) > 60


if __name__ == "__main__":
    os.environ["GRPO_KIT_RUN_PROGRAMS"] = "anyway"
    print(describe_isolation())
    for attack in ATTACKS + SLOW:
        began = time.monotonic()
        verdict = judge(attack, "/dev/null")
        mark = "" if (verdict.reward, verdict.reason) == (0.0, attack[4]) else f"   not {attack[4]}"
        print(f"{attack[0]:45} {verdict.reason:16} {time.monotonic() - began:.2f} s{mark}", flush=True)
