r"""code_tests decides whether the program of a reply passes its row's tests: 1.0 if it passes all of them, 0.0 if not,
None where the row has no tests that can be judged.

Paste this file into a notebook cell as it is. It needs only the standard library, and Linux to run programs.

The column `tests` holds a JSON text, or None where the row belongs to another reward:

    {"kind": "stdin", "inputs": ["3 4\n"], "outputs": ["7\n"]}                  a program that reads and prints
    {"kind": "function", "name": "add", "inputs": [[3, 4]], "outputs": [7]}     a function, or a method of Solution
    {"kind": "asserts", "code": ["assert add(3, 4) == 7"], "setup": ""}         lines of Python that hold an assert

and may have: `checker` (one of CHECKERS; tokens where it is missing), `float_tolerance` (absolute or relative, for
numbers with a point; integers stay exact), `time_limit_s` of processor time for a test (10), `memory_mib` (1024),
`several_answers` (true: many outputs are right; unusable without a checker), `language` (only Python is usable).

The program is the last ```python fence behind the last </think>. Each test runs in a process of its own, a fork of a
server without anything imported but the standard library. That process gets the test's input and never an expected
output: outputs are compared here, values travel as JSON. In an assert, the test's code and its setup run in a second
process (the program has the setup's imports only), and what it calls of the program is called in the first one; only
plain values come back (numbers, texts, lists, tuples, sets, dicts). So nothing that a program does to its own process
can make a wrong value right.

A row is unusable where it has no tests, lists of different lengths, only blank outputs, an assert that calls nothing of
the program or several names of it, or values that are no JSON.

What a program may do is bounded in layers: limits on time, memory, processes and output; no new privileges; a filter of
system calls (no processes, no signals, no sockets, no writing); no network; files read only where Python lies
(Landlock); another user. `code_tests_reward.describe()` tries each on this machine. Where fewer than two of the last
four hold, or where the environment holds credentials, the reward raises RuntimeError unless GRPO_KIT_RUN_PROGRAMS is
"anyway". This protects from accidents and from common attacks. It does not protect from a determined attacker.
"""

import ast
import atexit
import builtins
import contextlib
import json
import math
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, NamedTuple

LONGEST_PROGRAM = 100_000  # characters of a program
LONGEST_TESTS, MOST_TESTS = 10_000_000, 1000  # characters of a row's tests, and how many they may be
LONGEST_ASSERT = 50_000  # characters of an assert's code; Python 3.10 cannot parse everything that is longer
LONGEST_TEST, LONGEST_RUN = 60.0, 180.0  # seconds that a row may allow a test, that a program gets for all of them
MOST_OUTPUT = 1_000_000  # bytes of a test's output beyond twice the expected ones
TIME_LIMIT, MEMORY_LIMIT = 10.0, 1024  # of a test, where the row has none: seconds, MiB
PROGRAMS_AT_ONCE = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, 8)
CHECKERS = ("tokens", "exact", "lines", "unordered_lines", "case_insensitive")
CODE_REASONS = ("right", "wrong_output", "crashed", "too_slow", "too_much_memory", "too_much_output", "not_data")
CODE_REASONS += ("no_function", "no_program", "too_long", "unclosed_think", "lost", "unusable")
ISOLATION = ("system calls", "network", "files", "user")  # two of these layers must hold

_FENCE_OPENING = re.compile(r"([ \t]*)(`{3,})[ \t]*(?:python|python3|py)[ \t]*", re.IGNORECASE)
_NUMBER_TOKEN = re.compile(rb"[+-]?(?:[0-9]{1,300}(?:\.[0-9]{0,300})?|\.[0-9]{1,300})(?:[eE][+-]?[0-9]{1,3})?")
_CREDENTIAL = re.compile(r"(?!GPG_KEY$)(?:.*_)?(?:TOKEN|KEY|APIKEY|SECRET|CREDENTIAL)S?(?:_.*)?$|.*PASSW")


# Names that a function may use without an import, as on LeetCode: replies say List and deque as if they were there.
_STARS = "string re datetime collections heapq bisect copy math random statistics itertools functools operator typing"
_FUNCTION_SETUP = "".join(f"from {name} import *\n" for name in [*_STARS.split(), "builtins"])
_FUNCTION_SETUP += f"import sys, json, {', '.join(_STARS.split())}\n"  # then bisect is the module
_FUNCTION_SETUP += "sys.setrecursionlimit(50000)\n"


class CodeVerdict(NamedTuple):
    """A reward, the one of CODE_REASONS that led to it, and the share of the tests that were passed."""

    reward: float | None
    reason: str
    passed: float = 0.0


def code_tests_reward(
    completions: Sequence,
    tests: Sequence | None = None,
    prompt_opened_think: bool | Sequence[bool] = False,
    **kwargs,
) -> list[float | None]:
    r"""1.0 for a program that passes all tests of its row, 0.0 for another reply, None where the row has no tests.

    Args:
        completions: texts or message lists; of several turns the last one of the assistant is judged. TRL's
            `reasoning_content` counts as thinking that is closed.
        tests: for each completion the tests as JSON text; None where the row belongs to another reward.
        prompt_opened_think: whether the chat template put <think> into the prompt, so that a completion without
            </think> is unfinished and earns 0. A bool, or a column of the dataset.
        kwargs: other columns. If `log_metric` is among them (TRL passes it), the share of each reason is logged as
            `code_tests/<reason>`, and the mean share of passed tests as `code_tests/passed`.

    Returns:
        One reward for each completion. PROGRAMS_AT_ONCE programs run beside each other.

    Raises:
        ValueError: the lengths differ.
        RuntimeError: programs must not run on this machine (see `describe`), or cannot.

    Example:
        >>> reply = "```python\nprint(sum(map(int, input().split())))\n```"
        >>> code_tests_reward([reply, reply], ['{"kind": "stdin", "inputs": ["3 4"], "outputs": ["7"]}', None])
        [1.0, None]
    """
    count = len(completions)
    columns = {"tests": tests, "prompt_opened_think": prompt_opened_think}
    for name, column in columns.items():
        if column is None or isinstance(column, bool):
            columns[name] = [column] * count
        elif len(column) != count:
            raise ValueError(
                f"code_tests_reward got {count} completions and {len(column)} values of {name}; each completion needs "
                "its own. Pass the dataset's columns repeated once per completion."
            )
    rows = list(zip(completions, *columns.values(), strict=True))
    with ThreadPoolExecutor(PROGRAMS_AT_ONCE) as pool:
        verdicts = list(pool.map(lambda row: code_tests_verdict(*row), rows))
    if log_metric := kwargs.get("log_metric"):
        counts = Counter(verdict.reason for verdict in verdicts)
        for reason in CODE_REASONS:
            log_metric(f"code_tests/{reason}", counts[reason] / max(count, 1))
        judged = [verdict.passed for verdict in verdicts if verdict.reward is not None]
        log_metric("code_tests/passed", sum(judged) / max(len(judged), 1))
    return [verdict.reward for verdict in verdicts]


def code_tests_verdict(completion: str | list, tests: str | None, prompt_opened_think: bool = False) -> CodeVerdict:
    """The reward of one completion, its reason and the share of passed tests; the arguments are a row's.

    >>> code_tests_verdict("I would print 7.", '{"kind": "stdin", "inputs": ["3 4"], "outputs": ["7"]}')
    CodeVerdict(reward=0.0, reason='no_program', passed=0.0)
    """
    row = _read_tests(tests) if isinstance(tests, str) else None
    if row is None:
        return CodeVerdict(None, "unusable")
    _, reply = _split_thinking(_join_contents(completion), prompt_opened_think)
    if reply is None:
        return CodeVerdict(0.0, "unclosed_think")
    program = _find_program(reply)
    if program is None:
        return CodeVerdict(0.0, "no_program")
    if len(program) > LONGEST_PROGRAM:
        return CodeVerdict(0.0, "too_long")
    describe_isolation()
    reason, passed = _judge_program(program, row)
    return CodeVerdict(float(reason == "right"), reason, passed / len(row.payloads))


def describe_isolation() -> dict[str, str]:
    """Each layer of protection: "holds", or why it does not; tried once on this machine, in processes of their own.

    Raises:
        RuntimeError: programs must not run here: fewer than two layers of ISOLATION hold, or the environment holds
            credentials. The variable GRPO_KIT_RUN_PROGRAMS=anyway overrides both.
    """
    layers = _probe_layers()
    if os.environ.get("GRPO_KIT_RUN_PROGRAMS") == "anyway":
        return dict(layers)
    remedy = (
        "Set the environment variable GRPO_KIT_RUN_PROGRAMS=anyway if a policy's programs may run here all the same."
    )
    held = [name for name in ISOLATION if layers[name] == "holds"]
    if len(held) < 2:
        reasons = "; ".join(f"{name}: {layers[name]}" for name in ISOLATION if name not in held)
        raise RuntimeError(
            f"{len(held)} of the layers {', '.join(ISOLATION)} hold on this machine ({reasons}); "
            f"code_tests_reward runs programs where two do. {remedy}"
        )
    names = sorted(name for name, value in os.environ.items() if value and _CREDENTIAL.match(name.upper()))
    if names:
        raise RuntimeError(
            f"The environment holds credentials ({', '.join(names)}); code_tests_reward does not run programs beside "
            f"them, though it does not pass them on. Remove them (unset {' '.join(names)}). {remedy}"
        )
    return dict(layers)


code_tests_reward.describe = describe_isolation


# The reply.


def _join_contents(completion: str | list | dict | None) -> str:
    """The last assistant turn as the model wrote it; thinking that TRL has taken off stands before </think> again."""
    if completion is None or isinstance(completion, str):
        return completion or ""
    turns = [completion] if isinstance(completion, dict) else completion
    turn = next((turn for turn in reversed(turns) if turn.get("role", "assistant") == "assistant"), {})
    content = turn.get("content") or ""
    if not isinstance(content, str):
        content = "".join(block if isinstance(block, str) else str(block.get("text") or "") for block in content)
    thinking = turn.get("reasoning_content", turn.get("thinking"))
    return content if thinking is None else f"{thinking}</think>{content}"


def _split_thinking(text: str, opened: bool) -> tuple[str, str | None]:
    """(the thinking, what follows it, or None where the thinking is not closed)."""
    close = text.rfind("</think>")
    if text.rfind("<think>") > close or (opened and close < 0):
        return text, None
    thought = text[: max(close, 0)]
    return thought, text[close + len("</think>") :] if close >= 0 else text


def _find_program(reply: str) -> str | None:
    """The text in the last fence that is marked as Python; None without one, or where it is not closed."""
    program, lines, indent, ticks = None, None, "", ""
    for line in reply.split("\n"):
        line = line.rstrip("\r")
        if lines is not None and line.strip().removesuffix("<|im_end|>").strip() == ticks:
            program, lines = "\n".join(lines) + "\n", None
        elif lines is not None:
            lines.append(line.removeprefix(indent))
        elif opening := _FENCE_OPENING.fullmatch(line):
            program, lines, (indent, ticks) = None, [], opening.groups()
    return program


# The row.


class _Tests(NamedTuple):
    """A row's tests: what is sent to a program's process, test by test, and what is expected."""

    kind: str
    header: dict
    payloads: list[bytes]
    expected: list
    checker: str
    tolerance: float | None


@lru_cache(maxsize=16)  # a group's replies share the tests
def _read_tests(text: str) -> _Tests | None:
    """None where the row cannot be judged."""
    try:
        if len(text) > LONGEST_TESTS:
            return None
        row = json.loads(text, parse_constant=_refuse_infinity)
        kind, checker = row["kind"], row.get("checker") or "tokens"
        tolerance = row.get("float_tolerance")
        seconds, mib = row.get("time_limit_s") or TIME_LIMIT, row.get("memory_mib") or MEMORY_LIMIT
        usable = (
            str(row.get("language") or "python").lower() in ("python", "python3", "py")
            and checker in CHECKERS
            and not (row.get("several_answers") and not row.get("checker"))
            and (tolerance is None or (_is_number(tolerance) and 0 <= tolerance <= 1 and checker != "exact"))
            and not (tolerance is not None and checker == "unordered_lines")
            and (_is_number(seconds) and 0 < seconds <= LONGEST_TEST)
            and (_is_number(mib) and 16 <= mib <= 16384)
        )
        if not usable:
            return None
        header = {"kind": kind, "seconds": float(seconds), "memory": int(mib * 2**20)}
        return _Tests(kind, *_read_cases(row, kind, header), checker, tolerance)
    except (
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        RecursionError,
        SyntaxError,
        MemoryError,
    ):
        return None


def _read_cases(row: dict, kind: str, header: dict) -> tuple[dict, list[bytes], list]:
    """(header, payloads, expected). Raises ValueError where a case cannot be judged."""
    if kind == "asserts":
        setup, codes = row.get("setup") or "", row["code"]
        _require_texts([setup, *codes], codes)
        if max(map(len, [setup, *codes])) > LONGEST_ASSERT:
            raise ValueError
        tests = [{"setup": setup, "code": code, "name": _find_free_name(setup, code)} for code in codes]
        is_import = (ast.Import, ast.ImportFrom)
        imports = "\n".join(ast.unparse(node) for node in ast.parse(setup).body if isinstance(node, is_import))
        payloads = [json.dumps(test).encode() for test in tests]
        return header | {"setup": imports, "cap": MOST_OUTPUT}, payloads, [None] * len(codes)
    inputs, outputs = row["inputs"], row["outputs"]
    if not (isinstance(inputs, list) and isinstance(outputs, list)) or len(inputs) != len(outputs):
        raise ValueError
    if kind == "stdin":
        _require_texts(inputs + outputs, inputs)
        expected = [text.encode() for text in outputs]
        if not any(text.strip() for text in expected):
            raise ValueError  # a silent program would pass
        cap = MOST_OUTPUT + 2 * max(map(len, expected))
        return header | {"cap": cap}, [text.encode() for text in inputs], expected
    usable = (
        kind == "function"
        and 0 < len(inputs) <= MOST_TESTS
        and all(isinstance(arguments, list) for arguments in inputs)
        and (isinstance(row["name"], str) and row["name"].isidentifier())
        and any(value is not None for value in outputs)
    )
    if not usable:
        raise ValueError
    cap = MOST_OUTPUT + 2 * max(len(json.dumps(value)) for value in outputs)
    calls = [{"name": row["name"], "arguments": arguments, "named": {}} for arguments in inputs]
    return header | {"setup": _FUNCTION_SETUP, "cap": cap}, [json.dumps(call).encode() for call in calls], outputs


def _require_texts(texts: list, tests: list) -> None:
    if not 0 < len(tests) <= MOST_TESTS or not all(isinstance(text, str) for text in texts):
        raise ValueError
    "".join(texts).encode()  # raises for half a surrogate pair


def _find_free_name(setup: str, code: str) -> str:
    """The name that the program must define: used by a test, and defined neither by it, its setup nor Python.

    Raises ValueError where there is none, or several: the program could then answer what its own answer is compared
    with, as in `assert is_close(f(1), 2)`.
    """
    body, used, bound = ast.parse(code), set(), set(dir(builtins))
    for node in [*ast.walk(ast.parse(setup)), *ast.walk(body)]:
        if isinstance(node, ast.Name):
            (used if isinstance(node.ctx, ast.Load) else bound).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            bound.add(node.name)
        elif isinstance(node, ast.alias):
            bound.add((node.asname or node.name).split(".")[0])
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
    (name,) = used - bound
    if not any(isinstance(node, ast.Assert) for node in ast.walk(body)):
        raise ValueError
    return name


def _refuse_infinity(name: str) -> None:
    raise ValueError(name)


def _is_number(value: Any) -> bool:
    is_finite = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return is_finite and not isinstance(value, bool)


# The comparison.


def _is_right(row: _Tests, output: bytes, expected: Any) -> tuple[bool, str]:
    """(whether an output or value is the expected one, the reason)."""
    if row.kind == "stdin":
        return _same_output(output, expected, row.checker, row.tolerance), "wrong_output"
    try:
        reply = json.loads(output, parse_constant=_refuse_infinity, parse_int=_read_int)
        if "value" not in reply:
            return False, reply["error"] if reply["error"] in ("not_data", "no_function") else "crashed"
        value = reply["value"]
        if row.checker == "unordered_lines" and isinstance(value, list) and isinstance(expected, list):
            value, expected = (
                sorted(items, key=lambda v: json.dumps(v, sort_keys=True)) for items in (value, expected)
            )
        return _same_value(value, expected, row.tolerance), "wrong_output"
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError):
        return False, "not_data"


def _read_int(digits: str) -> Any:
    return int(digits) if len(digits) < 4000 else ["integer", digits]  # Python refuses to read longer ones


def _same_output(output: bytes, expected: bytes, checker: str, tolerance: float | None) -> bool:
    output, expected = output.replace(b"\r\n", b"\n"), expected.replace(b"\r\n", b"\n")
    if checker == "exact":
        return output.removesuffix(b"\n") == expected.removesuffix(b"\n")
    if checker == "case_insensitive":
        output, expected = (text.decode("utf-8", "replace").casefold().encode() for text in (output, expected))
    if checker in ("tokens", "case_insensitive"):
        lines, wanted = [output.split()], [expected.split()]
    else:
        lines, wanted = ([line.split() for line in text.rstrip().split(b"\n")] for text in (output, expected))
    if checker == "unordered_lines":
        lines, wanted = sorted(lines), sorted(wanted)
    if [len(line) for line in lines] != [len(line) for line in wanted]:
        return False
    pairs = ((a, b) for line, other in zip(lines, wanted) for a, b in zip(line, other))
    return all(a == b or (tolerance is not None and _same_number(a, b, tolerance)) for a, b in pairs)


def _same_number(token: bytes, expected: bytes, tolerance: float) -> bool:
    if not _NUMBER_TOKEN.fullmatch(token) or not _NUMBER_TOKEN.fullmatch(expected):
        return False
    if token.lstrip(b"+-").isdigit() and expected.lstrip(b"+-").isdigit():
        return int(token) == int(expected)  # a tolerance is not meant for counts
    return _is_within(float(token), float(expected), tolerance)


def _is_within(value: float, expected: float, tolerance: float) -> bool:
    value, expected = float(value), float(expected)  # an integer may be beyond all floats: OverflowError
    return math.isfinite(value + expected) and abs(value - expected) <= tolerance * max(1.0, abs(expected))


def _same_value(value: Any, expected: Any, tolerance: float | None) -> bool:
    """Whether two JSON values are equal; true is not 1, and 1.0 is 1."""
    if isinstance(expected, list):
        return (
            isinstance(value, list)
            and len(value) == len(expected)
            and all(_same_value(a, b, tolerance) for a, b in zip(value, expected))
        )
    if isinstance(expected, dict):
        return (
            isinstance(value, dict)
            and value.keys() == expected.keys()
            and all(_same_value(value[key], item, tolerance) for key, item in expected.items())
        )
    if _is_number(expected) and _is_number(value):
        both_integers = isinstance(expected, int) and isinstance(value, int)
        return value == expected or (
            tolerance is not None and not both_integers and _is_within(value, expected, tolerance)
        )
    return type(value) is type(expected) and value == expected


# Running programs: processes are forked from servers, of which each runs one program at a time.


class _ProgramServer:
    """A process that forks one process for each test, confined by the layers that hold.

    A program's tests are sent one by one. The server ends when its standard input is closed, also because this process
    died.
    """

    def __init__(self, without: Sequence[str] = ()):
        if not sys.platform.startswith("linux"):
            raise RuntimeError(
                f"code_tests_reward runs programs on Linux only; this is {sys.platform}. On Windows run it in WSL."
            )
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
        if "LD_LIBRARY_PATH" in os.environ:  # Python itself may need it
            environment["LD_LIBRARY_PATH"] = os.environ["LD_LIBRARY_PATH"]
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-X", "utf8", "-c", _PROGRAM_SERVER, json.dumps(list(without))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/", env=environment,
            start_new_session=True, bufsize=0,
        )  # fmt: skip
        _program_servers.add(self)
        try:
            hello = json.loads(self._receive(60))
        except (EOFError, TimeoutError, ValueError):
            hello = {"error": "it did not start"}
        if "error" in hello:
            self.end(wait=True)
            raise RuntimeError(
                f"the process that runs programs ({sys.executable} -I -S) is of no use: {hello['error']}. Start Python "
                "so by hand, or install another one."
            )
        self.layers, self.folder = hello["layers"], hello["folder"]

    def begin(self, header: dict) -> None:
        self._send(json.dumps(header).encode())

    def run(self, payload: bytes, seconds: float) -> tuple[str, bytes]:
        """(why a test failed or "", its output). Raises EOFError or TimeoutError where the server is lost."""
        self._send(payload, b"t")
        reason, _, output = self._receive(2 * seconds + 15).partition(b"\0")
        if reason == b"lost":
            raise EOFError
        return reason.decode(), output

    def finish(self) -> None:
        """Ends the program's process; the server is ready for the next program."""
        self._write(b"e")

    def _send(self, body: bytes, command: bytes = b"") -> None:
        self._write(command + struct.pack(">I", len(body)) + body)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[self.process.stdin.write(view) :]

    def _receive(self, seconds: float) -> bytes:
        fd, until, data, size = self.process.stdout.fileno(), time.monotonic() + seconds, bytearray(), 4
        waiting = select.poll()
        waiting.register(fd, select.POLLIN)
        while len(data) < size:
            if not waiting.poll(max(0.0, until - time.monotonic()) * 1000):
                raise TimeoutError
            if not (more := os.read(fd, min(size - len(data), 2**20))):
                raise EOFError
            data += more
            if size == 4 and len(data) == 4:
                size = 4 + struct.unpack(">I", data)[0]
        return bytes(data[4:])

    def end(self, wait: bool = False) -> None:
        """Ends the server and what it runs: at once, or in its own time, when it takes its folder away itself."""
        _program_servers.discard(self)
        self.process.stdin.close()
        try:
            self.process.wait(5 if wait else 0)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)  # its programs die with it
            self.process.wait()
        self.process.stdout.close()
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder, ignore_errors=True)


_program_servers: set[_ProgramServer] = set()  # all, also those that run a program
_idle_servers: list[_ProgramServer] = []
_server_places = threading.BoundedSemaphore(PROGRAMS_AT_ONCE)
_probing = threading.Lock()
_probed_layers: dict[str, str] = {}


def _probe_layers() -> dict[str, str]:
    with _probing:
        if not _probed_layers:
            with _server_places:
                server = _ProgramServer()
                _probed_layers.update(server.layers)
                _idle_servers.append(server)
    return _probed_layers


def _judge_program(program: str, row: _Tests) -> tuple[str, int]:
    """(the reason, how many tests were passed). Where the server is lost, a new one runs the program once more."""
    for idle in (_idle_servers, []):
        with _server_places:
            try:
                server = idle.pop()
            except IndexError:
                server = _ProgramServer()
            try:
                verdict = _run_tests(server, program, row)
            except (EOFError, TimeoutError, OSError):
                server.end()
                continue
            except BaseException:  # an interrupt must not leave a late answer in the pipe
                server.end()
                raise
            _idle_servers.append(server)
            return verdict
    return "lost", 0


def _run_tests(server: _ProgramServer, program: str, row: _Tests) -> tuple[str, int]:
    until, passed, first = time.monotonic() + LONGEST_RUN, 0, ""
    server.begin(row.header | {"program": program})
    for payload, expected in zip(row.payloads, row.expected, strict=True):
        if time.monotonic() > until:
            first = first or "too_slow"
            break
        reason, output = server.run(payload, row.header["seconds"])
        if not reason and row.kind != "asserts":
            is_right, why = _is_right(row, output, expected)
            reason = "" if is_right else why
        passed, first = passed + (not reason), first or reason
        if reason in ("too_slow", "too_much_memory"):  # the other tests would take as long
            break
    server.finish()
    return first or "right", passed


def _end_program_servers() -> None:
    for server in list(_program_servers):
        server.end(wait=True)
    _idle_servers.clear()


def _forget_program_servers() -> None:
    """In a forked process: the parent keeps its servers, this process starts its own."""
    global _server_places, _probing
    for server in _program_servers:
        server.process.stdin.close()
        server.process.stdout.close()
    _program_servers.clear(), _idle_servers.clear()
    _server_places, _probing = threading.BoundedSemaphore(PROGRAMS_AT_ONCE), threading.Lock()


atexit.register(_end_program_servers)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_program_servers)

# The server: it never reads what it runs. For each program it forks a runner, which reads the program; the runner forks
# a process for each test. The text below is that process's whole code.

_PROGRAM_SERVER = r'''
import array, ast, atexit, bisect, builtins, collections, contextlib, copy, ctypes, dataclasses, datetime, decimal
import enum, errno, fcntl, fractions, functools, gc, heapq, io, itertools, json, math, numbers, operator, os, queue
import random, re, resource, select, shutil, signal, statistics, string, struct, sys, tempfile, textwrap, threading
import time, types, typing

RAN_OUT, NOT_CONFINED, WRONG, LEFT = 77, 99, 11, 12  # exit statuses
libc = ctypes.CDLL(None, use_errno=True)
PYTHON = next(path for path in sys.path if os.path.exists(os.path.join(path, "os.py")))


def call(name, *arguments):
    if not sys.platform.startswith("linux"):
        raise OSError(errno.ENOSYS, "needs Linux")
    function = getattr(libc, name)
    function.restype = ctypes.c_long
    result = function(*[ctypes.c_long(value) if isinstance(value, int) else value for value in arguments])
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


# The filter of system calls: numbers on x86_64 and aarch64, None where a machine has no such call. They are answered
# with EPERM. A filter sees numbers and no paths, so nothing is written at all.

ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
REFUSED = """
fork 57 - vfork 58 - execve 59 221 execveat 322 281 unshare 272 97 setns 308 268 setsid 112 157 setpgid 109 154
kill 62 129 tkill 200 130 tgkill 234 131 rt_sigqueueinfo 129 138 rt_tgsigqueueinfo 297 240 ptrace 101 117
process_vm_readv 310 270 process_vm_writev 311 271 kcmp 312 272 prctl 157 167 seccomp 317 277 personality 135 92
socket 41 198 connect 42 203 bind 49 200 listen 50 201 accept 43 202 accept4 288 242
setuid 105 146 setgid 106 144 setreuid 113 145 setregid 114 143 setresuid 117 147 setresgid 119 149 setgroups 116 159
setfsuid 122 151 setfsgid 123 152 capset 126 91 setpriority 141 140 sched_setparam 142 118 sched_setscheduler 144 119
sched_setaffinity 203 122 sched_setattr 314 274 ioprio_set 251 30 migrate_pages 256 238 move_pages 279 239
shmget 29 194 shmat 30 196 shmctl 31 195 semget 64 190 semop 65 193 semctl 66 191 semtimedop 220 192 msgget 68 186
msgsnd 69 189 msgrcv 70 188 msgctl 71 187 mq_open 240 180 mq_unlink 241 181 memfd_create 319 279
creat 85 - mkdir 83 - mkdirat 258 34 rmdir 84 - unlink 87 - unlinkat 263 35 rename 82 - renameat 264 38
renameat2 316 276 link 86 - linkat 265 37 symlink 88 - symlinkat 266 36 mknod 133 - mknodat 259 33 chmod 90 -
fchmod 91 52 fchmodat 268 53 chown 92 - fchown 93 55 lchown 94 - fchownat 260 54 truncate 76 45 utime 132 - utimes 235 -
utimensat 280 88 futimesat 261 - setxattr 188 5 lsetxattr 189 6 fsetxattr 190 7 removexattr 197 14 lremovexattr 198 15
fremovexattr 199 16 inotify_init 253 - inotify_init1 294 26 fanotify_init 300 262 name_to_handle_at 303 264
open_by_handle_at 304 265 mount 165 40 umount2 166 39 pivot_root 155 41 chroot 161 51 swapon 167 224 swapoff 168 225
reboot 169 142 sethostname 170 161 setdomainname 171 162 init_module 175 105 finit_module 313 273 delete_module 176 106
kexec_load 246 104 kexec_file_load 320 294 acct 163 89 settimeofday 164 170 clock_settime 227 112 adjtimex 159 171
clock_adjtime 305 266 quotactl 179 60 syslog 103 116 iopl 172 - ioperm 173 - modify_ldt 154 - vhangup 153 58
bpf 321 280 perf_event_open 298 241 keyctl 250 219 add_key 248 217 request_key 249 218 userfaultfd 323 282
io_setup 206 0 io_submit 209 2 sync 162 81 syncfs 306 267
""".split()
NEWER = 424  # from here on numbers are the same everywhere; these calls are answered with ENOSYS, as by an older kernel
NEWER_ALLOWED = (436, 439, 441, 449)  # close_range, faccessat2, epoll_pwait2, futex_waitv
WRITING = 0o3 | os.O_CREAT | os.O_TRUNC | os.O_APPEND | 0o20000000  # flags of open; the last is O_TMPFILE
ARGUMENTS = (  # numbers, which argument, a test of it ("any" of the bits, "is"), the values, whether it is refused then
    ((2, None), 1, "any", [WRITING], True),  # open
    ((257, 56), 2, "any", [WRITING], True),  # openat
    ((56, 220), 0, "any", [0x10000], False),  # clone: threads only
    ((302, 261), 0, "is", [0], False),  # prlimit64: of itself only
    ((72, 25), 1, "is", [8, 10, 15], True),  # fcntl: signals that a descriptor sends to others
    ((53, 199), 1, "any", [2], True),  # socketpair: one of datagrams can send to any socket of this machine
    ((16, 29), 1, "is", [0x5412, 0x541C], True),  # ioctl: characters that a terminal takes for typed ones
)


@functools.lru_cache  # made once, in the server
def make_filter():
    machine = os.uname().machine
    if machine not in ARCHITECTURES or sys.maxsize < 2**32:
        raise OSError(errno.ENOSYS, f"there are no numbers of system calls for {machine}")
    column, architecture = ARCHITECTURES[machine]
    kill, allow, refuse, absent = 0x80000000, 0x7FFF0000, 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
    load, equal, least, bits, end = 0x20, 0x15, 0x35, 0x45, 0x06
    code = [(load, 0, 0, 4), (equal, 1, 0, architecture), (end, 0, 0, kill), (load, 0, 0, 0)]
    for number in NEWER_ALLOWED:
        code += [(equal, 0, 1, number), (end, 0, 0, allow)]
    code += [(least, 0, 1, NEWER), (end, 0, 0, absent)]
    for number in REFUSED[1 + column :: 3]:
        if number != "-":
            code += [(equal, 0, 1, int(number)), (end, 0, 0, refuse)]
    for numbers, place, test, values, is_refused in ARGUMENTS:
        if numbers[column] is not None:
            code += [(equal, 0, 2 + 2 * len(values), numbers[column]), (load, 0, 0, 16 + 8 * place)]
            for value in values:
                code += [(bits if test == "any" else equal, 0, 1, value), (end, 0, 0, refuse if is_refused else allow)]
            code += [(end, 0, 0, allow if is_refused else refuse)]
    code += [(end, 0, 0, allow)]
    text = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in code))
    return ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(text))), text


def refuse_system_calls():
    call("prctl", 22, 2, make_filter()[0])  # PR_SET_SECCOMP, SECCOMP_MODE_FILTER


# The other layers.


def refuse_new_privileges():
    call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0))
    call("capset", header, ctypes.create_string_buffer(24))  # root keeps its name and loses its capabilities


def leave_network():
    """In the server, once: its programs inherit an empty network. Who is not root needs a namespace of users too."""
    user, group = os.getuid(), os.getgid()
    call("unshare", 0x40000000 if user == 0 else 0x50000000)
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)


def open_ruleset(folder):
    """A Landlock ruleset: reading where Python lies and in the program's folder, nothing else."""
    version = call("syscall", 444, 0, 0, 1)
    rights = 2 ** {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16) - 1
    attributes = struct.pack("@QQQ", rights, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    ruleset = call("syscall", 444, ctypes.create_string_buffer(attributes), 24, 0)
    libraries = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", os.path.join(sys.base_prefix, "lib")]
    for path in {*sys.path, *libraries, "/usr/share/zoneinfo", "/etc/ld.so.cache",
                 "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom", folder}:
        if os.path.exists(path):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            rule = struct.pack("=Qi", 12 if os.path.isdir(path) else 4, place)  # read files, read folders
            call("syscall", 445, ruleset, 1, ctypes.create_string_buffer(rule), 0)
            os.close(place)
    return ruleset


def close_files(ruleset):
    call("syscall", 446, ruleset, 0)


def find_users():
    """Two numbers that belong to nobody, for programs and for tests."""
    import pwd

    taken = {entry.pw_uid for entry in pwd.getpwall()}
    first = 50000 + os.getpid() % 5000 * 2
    return next([user, user + 1] for user in range(first, first + 1000, 2) if not {user, user + 1} & taken)


def change_user(users, role):
    if not users:
        call("unshare", 0x10000000)
    else:
        os.setgroups([])
        os.setresgid(users[role], users[role], users[role])
        os.setresuid(users[role], users[role], users[role])


def set_limits(seconds, memory, is_alone):
    def limit(name, value):
        hard = resource.getrlimit(name)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (value, value))

    limit(resource.RLIMIT_CPU, math.ceil(seconds))
    limit(resource.RLIMIT_AS, memory)
    limit(resource.RLIMIT_FSIZE, 0)
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_NOFILE, 64)
    limit(resource.RLIMIT_STACK, 2**27)
    if is_alone:  # else it would count every process of the user
        limit(resource.RLIMIT_NPROC, 64)


# Probing: each layer in a process of its own, which then tries what it forbids.


def probe(apply, is_forbidden):
    """"holds", or why not."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            apply()
            answer = is_forbidden() or "holds"
        except BaseException as error:
            answer = f"{getattr(error, 'strerror', None) or error}"
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    answer = os.read(reading, 1000).decode() or "the process that tried it died"
    os.close(reading)
    os.waitpid(child, 0)
    return answer


def expect_refusal(*actions):
    for action in actions:
        try:
            action()
        except OSError:
            continue
        return "it is set, but has no effect"


def try_system_calls():
    import socket

    thread = threading.Thread(target=len, args=("",))
    thread.start()
    thread.join()
    return expect_refusal(os.fork, socket.socket, lambda: os.kill(os.getppid(), 0), lambda: os.open("/dev/null", 1))


def try_memory():
    try:
        bytearray(2**40)
    except MemoryError:
        return None
    return "it is set, but has no effect"


def try_user():
    try:
        os.listdir(PYTHON)
    except OSError:
        return f"another user cannot read {PYTHON}, where Python lies"
    return expect_refusal(lambda: open(f"/proc/{os.getppid()}/environ").read())


def try_privileges():
    with open("/proc/self/status") as file:
        status = dict(line.split(":", 1) for line in file)
    return None if int(status["CapEff"], 16) == 0 else "capabilities are left"


def try_network():
    with open("/proc/self/net/dev") as file:
        names = [line.split(":")[0].strip() for line in file if ":" in line]
    return None if names in ([], ["lo"]) else f"there are devices: {', '.join(names)}"


class Layers:
    """Which layers hold, and what they need."""

    def __init__(self, folder, without):
        self.folder, self.ruleset, self.users = folder, None, []
        os.chmod(self.folder, 0o755)
        self.held = {}

        def hold(name, apply, is_forbidden):
            self.held[name] = "left out" if name in without else probe(apply, is_forbidden)

        hold("limits", lambda: set_limits(5, 2**30, False), try_memory)
        hold("no new privileges", refuse_new_privileges, try_privileges)
        with contextlib.suppress(OSError):
            make_filter()
        hold("system calls", lambda: (refuse_new_privileges(), refuse_system_calls()), try_system_calls)
        hold("network", leave_network, try_network)
        if self.holds("network"):
            leave_network()
        elif self.holds("system calls") and "network" not in without:
            self.held["network"] = "by the filter of system calls"  # which is one layer, and counts once
        try:
            self.ruleset = open_ruleset(self.folder)
        except OSError as error:
            self.held["files"] = f"Landlock: {error.strerror}"
        else:
            hold("files", lambda: (refuse_new_privileges(), close_files(self.ruleset)),
                 lambda: expect_refusal(lambda: os.listdir("/"), lambda: os.open("/proc/self/environ", 0)))
        self.users = find_users() if os.getuid() == 0 else []
        hold("user", lambda: change_user(self.users, 0), try_user)
        self.size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()

    def holds(self, name):
        return self.held.get(name) == "holds"

    def confine(self, role, descriptors, seconds, memory):
        """In a test's process, before it runs anything: role 0 is the program's, 1 that of an assert's code."""
        runner = os.getppid()
        os.setsid()
        os.chdir(self.folder)
        with contextlib.suppress(OSError):  # where the machine's memory runs out, this process goes first
            os.write(os.open("/proc/self/oom_score_adj", os.O_WRONLY), b"1000")
        is_alone = self.holds("user") and (self.users or not self.holds("system calls"))
        set_limits(seconds, self.size + memory, is_alone)
        if self.holds("user"):
            change_user(self.users, role)
        call("prctl", 1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != runner:
            os._exit(NOT_CONFINED)
        if self.holds("no new privileges"):
            refuse_new_privileges()
        if self.holds("files"):
            close_files(self.ruleset)
        moved = [fcntl.fcntl(fd, fcntl.F_DUPFD, 40) for fd in descriptors]
        for place, fd in enumerate(moved):
            os.dup2(fd, place)
        os.closerange(len(moved), 65536)
        if self.holds("system calls"):
            refuse_system_calls()


# A test's process.


def open_streams():
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)
    sys.stderr = sys.__stderr__ = open(2, "w", encoding="utf-8", closefd=False)


def make_module(name):
    module = types.ModuleType(name)
    sys.modules[name] = sys.modules["__main__"] = module
    module.__dict__["__builtins__"] = builtins
    builtins.exit = builtins.quit = sys.exit  # which are not there under -S
    sys.argv = ["program.py"]
    random.seed(0)  # a program that draws numbers gets the same verdict again
    return module.__dict__


def run_program(program, leave):
    """A program that reads and prints, as Python would run and end it."""
    status = 0
    try:
        exec(compile(program, "program.py", "exec"), make_module("__main__"))
    except SystemExit as stop:
        status = 0 if stop.code in (None, 0) else 1
    except MemoryError:
        status = RAN_OUT
    except BaseException:
        status = 1
    try:
        threading._shutdown()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.__stdout__.flush()
    except BaseException:
        status = status or 1
    leave(status)


def answer_calls(program, setup, is_plain, leave):
    """Read calls of the program's functions from descriptor 3, write what they return to 4."""
    try:
        space, given = make_module("program"), {}
        exec(compile(setup, "setup.py", "exec"), given)
        space["__builtins__"] = vars(builtins) | given  # apart from the program's own names, which are called
        exec(compile(program, "program.py", "exec"), space)
        calls = open(3, "rb", closefd=False)
        for line in calls:
            request = json.loads(line)
            name, failure = request["name"], "crashed"
            try:
                if name not in space and not hasattr(space.get("Solution"), name):
                    failure = "no_function"
                    raise NameError(name)
                function = space[name] if name in space else getattr(space["Solution"](), name)
                read = list if is_plain else decode
                value = function(*read(request["arguments"]), **decode(request["named"]))
                failure = "not_data"
                answer = {"value": encode(value, is_plain)}
                text = json.dumps(answer, allow_nan=not is_plain)
            except (MemoryError, SystemExit):
                raise
            except BaseException as error:
                kinds = [kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins"]
                text = json.dumps({"error": failure, "type": kinds[0]})
            data = text.encode() + b"\n"
            while data:
                data = data[os.write(4, data) :]
    except MemoryError:
        leave(RAN_OUT)
    except BaseException:
        leave(1)
    leave(0)


def encode(value, is_plain=False, depth=0):
    """The value as JSON: subclasses as their plain type, what JSON has not as {"!": kind, "v": ...}."""
    if depth > 200:
        raise ValueError("too deep")
    if value is None or isinstance(value, bool):
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind.__str__(value) if kind is str else kind.__add__(value, 0)
    if isinstance(value, (list, tuple)):
        kind = list if isinstance(value, list) else tuple
        items = [encode(item, is_plain, depth + 1) for item in kind.__iter__(value)]
        return items if is_plain or kind is list else {"!": "tuple", "v": items}
    if isinstance(value, dict):
        items = [[encode(part, is_plain, depth + 1) for part in pair] for pair in dict.items(value)]
        if is_plain or (all(isinstance(key, str) for key, _ in items) and "!" not in dict(items)):
            return dict(items)
        return {"!": "dict", "v": items}
    if is_plain:
        raise ValueError("no JSON")
    for kind in (set, frozenset):
        if isinstance(value, kind):
            return {"!": kind.__name__, "v": [encode(item, is_plain, depth + 1) for item in kind.__iter__(value)]}
    if isinstance(value, (bytes, bytearray)):
        return {"!": "bytes", "v": bytes(value).hex()}
    if isinstance(value, complex):
        return {"!": "complex", "v": [value.real, value.imag]}
    if isinstance(value, (types.GeneratorType, map, filter, zip, range, enumerate, reversed)):
        return {"!": "iter", "v": [encode(item, is_plain, depth + 1) for item in value]}
    raise ValueError("no data")


KINDS = {"tuple": tuple, "set": set, "frozenset": frozenset, "iter": iter, "dict": dict, "bytes": bytes.fromhex}
KINDS["complex"] = lambda parts: complex(*parts)


def decode(value):
    if isinstance(value, list):
        return [decode(item) for item in value]
    if isinstance(value, dict):
        return KINDS[value["!"]](decode(value["v"])) if "!" in value else {key: decode(v) for key, v in value.items()}
    return value


def run_assert(job, leave):
    """The test's own code. What it calls of the program is called in the program's process."""
    answers, calls, count = open(3, "rb", closefd=False), os.fdopen(4, "wb", closefd=False), 0

    def proxy(*arguments, **named):
        nonlocal count
        request = {"name": job["name"], "arguments": [encode(v) for v in arguments], "named": encode(named)}
        calls.write(json.dumps(request).encode() + b"\n")
        calls.flush()
        line = answers.readline(2**26)
        if not line.endswith(b"\n"):
            leave(LEFT)
        answer = json.loads(line)
        count += 1
        if "value" in answer:
            return decode(answer["value"])
        kind = getattr(builtins, str(answer["type"]), None)
        is_error = isinstance(kind, type) and issubclass(kind, Exception)
        # StopIteration would end the test's own map() or filter() early, as if all were well.
        is_error = is_error and not issubclass(kind, (AssertionError, StopIteration, StopAsyncIteration))
        raise (kind if is_error else RuntimeError)("raised by the program")

    try:
        space = make_module("test")
        exec(compile(job["setup"], "setup.py", "exec"), space)
        space[job["name"]] = proxy
        exec(compile(job["code"], "test.py", "exec"), space)
    except AssertionError:
        leave(WRONG)
    except BaseException:
        leave(LEFT)
    leave(0 if count else LEFT)


# The runner.


class Runner:
    """Runs the tests of one program, in a fork of the server that has never seen another program."""

    def __init__(self, layers, requests, replies, null):
        self.layers, self.requests, self.replies, self.null = layers, requests, replies, null
        call("prctl", 36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: what a program leaves behind becomes this one's child
        call("prctl", 1, signal.SIGKILL)
        header = json.loads(receive(requests))
        self.kind, self.program, self.setup = header["kind"], header["program"], header.get("setup", "")
        self.seconds, self.memory, self.cap = header["seconds"], header["memory"], header["cap"]
        del header

    def serve(self):
        while True:
            command = os.read(self.requests, 1)
            if command != b"t":
                os._exit(0 if command == b"e" else 1)
            reason, output = self.run_assert() if self.kind == "asserts" else self.run_test(receive(self.requests))
            send(self.replies, reason.encode() + b"\0" + output)

    def fork(self, role, descriptors, work, *arguments):
        child = os.fork()
        if not child:
            leave = os._exit
            try:
                self.layers.confine(role, descriptors, self.seconds, self.memory)
                open_streams()
            except BaseException:
                leave(NOT_CONFINED)
            work(*arguments, leave)
        return child

    def run_test(self, payload):
        source = os.memfd_create("input")
        with open(source, "wb", closefd=False) as file:
            file.write(payload + (b"\n" if self.kind == "function" else b""))
        os.lseek(source, 0, 0)
        reading, writing = os.pipe()
        if self.kind == "stdin":
            child = self.fork(0, [source, writing, self.null], run_program, self.program)
        else:
            descriptors = [self.null, self.null, self.null, source, writing]
            child = self.fork(0, descriptors, answer_calls, self.program, self.setup, True)
        os.close(source)
        os.close(writing)
        reason, output = self.watch(child, reading)
        os.close(reading)
        status, used = self.end(child)
        self.clean()
        return reason or self.explain(status, used), output

    def run_assert(self):
        calls, calling = os.pipe()
        answers, answering = os.pipe()

        tester = os.fork()
        if not tester:  # it reads the test itself, so that the program's process, a fork of this one, never has it
            try:
                job = json.loads(receive(self.requests))
                self.layers.confine(1, [self.null, self.null, self.null, answers, calling], self.seconds, self.memory)
                open_streams()
            except BaseException:
                os._exit(NOT_CONFINED)
            run_assert(job, os._exit)
        descriptors = [self.null, self.null, self.null, calls, answering]
        child = self.fork(0, descriptors, answer_calls, self.program, self.setup, False)
        for fd in (calls, calling, answers, answering):
            os.close(fd)
        reason, _ = self.watch(tester, None)
        status, used = self.end(tester)
        failure = self.explain(*self.end(child))
        self.clean()
        verdict = self.explain(status, used)
        if not verdict:
            return "", b""
        if verdict == "lost" or failure == "lost":
            return "lost", b""
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == WRONG:
            return "wrong_output", b""
        return reason or (failure if failure in ("too_slow", "too_much_memory") else verdict), b""

    def watch(self, child, source):
        """(why the child must be ended or "", its output). Returns when it has ended or must be."""
        poll, output, until = select.poll(), bytearray(), time.monotonic() + 2 * self.seconds + 2
        poll.register(self.requests, 0)  # says only that nobody is there any more
        if source is not None:
            os.set_blocking(source, False)
            poll.register(source, select.POLLIN)
        try:
            process = os.pidfd_open(child)
            poll.register(process, select.POLLIN)
            longest = 60
        except (AttributeError, OSError):  # an old kernel: look again and again
            process, longest = os.dup(self.null), 0.005
        try:
            while True:
                left = until - time.monotonic()
                if left <= 0:
                    return "too_slow", b""
                ready = dict(poll.poll(1000 * min(left, longest)))
                if self.requests in ready:
                    os._exit(1)  # the programs die with this process
                has_ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                while source is not None and (source in ready or has_ended):
                    try:
                        data = os.read(source, 65536)
                    except BlockingIOError:
                        break
                    output += data
                    if len(output) > self.cap:
                        return "too_much_output", b""
                    if not data:
                        poll.unregister(source)
                        source = None
                if has_ended:
                    return "", bytes(output)
        finally:
            os.close(process)

    def end(self, child):
        """(its status, the seconds of processor time that it used)."""
        for kill in (os.kill, os.killpg):
            try:
                kill(child, signal.SIGKILL)
            except OSError:
                pass
        _, status, usage = os.wait4(child, 0)
        return status, usage.ru_utime + usage.ru_stime

    def clean(self):
        """End whatever the program has started, and empty its folder."""
        end_orphans()
        if os.listdir(self.layers.folder):
            shutil.rmtree(self.layers.folder, ignore_errors=True)
            os.makedirs(self.layers.folder, 0o755, exist_ok=True)

    def explain(self, status, used):
        """Why a test failed whose process ended so; "" where it did not."""
        if used > self.seconds or (os.WIFSIGNALED(status) and used > math.ceil(self.seconds) - 0.1):
            return "too_slow"  # the kernel kills a process at the next full second, and counts in ticks
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 1
        return {0: "", RAN_OUT: "too_much_memory", NOT_CONFINED: "lost"}.get(code, "crashed")


def end_orphans():
    while True:
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if ended:
            continue
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{name}/stat") as file:
                    parent = file.read().rpartition(")")[2].split()[1]
                if parent == str(os.getpid()):
                    os.kill(int(name), signal.SIGKILL)
            except OSError:
                pass


def receive(fd):
    size = struct.unpack(">I", read_exactly(fd, 4))[0]
    return read_exactly(fd, size)


def read_exactly(fd, size):
    data = bytearray()
    while len(data) < size:
        more = os.read(fd, min(size - len(data), 2**20))
        if not more:
            os._exit(1)
        data += more
    return bytes(data)


def send(fd, body):
    data = memoryview(struct.pack(">I", len(body)) + body)
    while data:
        data = data[os.write(fd, data) :]


def main():
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored by a parent, it would take the exit statuses away
    folder = tempfile.mkdtemp(prefix="grpo-kit-program-")
    try:
        serve(folder)
    finally:  # also where nobody reads what it says
        end_orphans()
        shutil.rmtree(folder, ignore_errors=True)


def serve(folder):
    requests, replies = fcntl.fcntl(0, fcntl.F_DUPFD, 100), fcntl.fcntl(1, fcntl.F_DUPFD, 100)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    null = fcntl.fcntl(null, fcntl.F_DUPFD, 100)
    layers = Layers(folder, json.loads(sys.argv[1]))
    call("prctl", 36, 1, 0, 0, 0)
    if hasattr(sys, "set_int_max_str_digits"):
        sys.set_int_max_str_digits(0)  # programs may print long integers
    trial = os.fork()  # all layers at once
    if not trial:
        try:
            layers.confine(0, [null, null, null], 5, 2**28)
            threading.Thread(target=len, args=("",)).start()
        except BaseException:
            os._exit(NOT_CONFINED)
        os._exit(0)
    hello = {"layers": layers.held, "folder": layers.folder}
    if os.waitpid(trial, 0)[1] != 0:
        hello["error"] = f"its layers do not work together, {layers.held}"
    send(replies, json.dumps(hello).encode())
    gc.collect()
    gc.freeze()  # a fork copies no page for the sake of counting
    waiting = select.poll()
    waiting.register(requests, select.POLLIN)
    status = 0
    while not status and waiting.poll()[0][1] & select.POLLIN:  # else the parent has gone
        runner = os.fork()
        if not runner:
            try:
                Runner(layers, requests, replies, null).serve()
            finally:
                os._exit(1)
        _, status = os.waitpid(runner, 0)


main()
'''
