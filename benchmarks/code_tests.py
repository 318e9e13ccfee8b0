"""What a program costs in code_tests beside `subprocess`, and what 2,000 of them leave behind.

    python benchmarks/code_tests.py [--quick] [--record]

The sides take turns, one program at a time, so that both meet the same load: the kit's verdict, and what a user would
write, `subprocess.run` of `python -I -S` (and of plain Python) for each test with a time limit and no protection. The
programs need next to no time of their own. Processor time is counted too, because a busy machine stretches the clock.
Then a mix of right, wrong, broken and hostile programs goes through
`code_tests_reward`, as in a training; memory, processes, folders and descriptors are counted before and after. The bar
is 40 ms a program beyond its own time. --quick ends within a minute; --record appends the figures, with date and
hardware, to notes/benchmarks.md.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import report

from grpo_kit.rewards import code_tests
from grpo_kit.rewards.code_tests import code_tests_reward, code_tests_verdict

SUM = "print(sum(map(int, input().split())))"
ADD = "def add(a, b):\n    return a + b"
BAR_MS = 40


def stdin(count: int) -> str:
    inputs, outputs = [f"{n} 4\n" for n in range(count)], [f"{n + 4}\n" for n in range(count)]
    return json.dumps({"kind": "stdin", "inputs": inputs, "outputs": outputs})


def fence(program: str) -> str:
    return f"```python\n{program}\n```"


def by_kit(program: str, tests: str) -> None:
    assert code_tests_verdict(fence(program), tests).reward == 1.0, program


def by_subprocess(*options: str) -> Callable[[str, str], None]:
    def judge(program: str, tests: str) -> None:
        row = json.loads(tests)
        for given, expected in zip(row["inputs"], row["outputs"]):
            done = subprocess.run(
                [sys.executable, *options, "-c", program], input=given, capture_output=True, text=True, timeout=10
            )
            assert done.stdout.split() == expected.split(), done.stderr

    return judge


SIDES = {"kit": by_kit, "python -I -S": by_subprocess("-I", "-S"), "python": by_subprocess()}
WORKLOADS = {  # the program, its tests
    "one test": (SUM, stdin(1)),
    "ten tests": (SUM, stdin(10)),
}
KIT_ONLY = {
    "a function": (ADD, json.dumps({"kind": "function", "name": "add", "inputs": [[3, 4]], "outputs": [7]})),
    "an assert": (ADD, json.dumps({"kind": "asserts", "code": ["assert add(3, 4) == 7"], "setup": ""})),
}


def processor_ms() -> float:
    """Processor time of this process, of children that have ended, and of servers with what they have run."""
    ticks = 0
    for server in code_tests._program_servers:
        fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[11:15]))
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = time.process_time() + ended.ru_utime + ended.ru_stime + ticks / os.sysconf("SC_CLK_TCK")
    return 1000 * used


def measure(rounds: int) -> list[dict]:
    rows = []
    for name, (program, tests) in (WORKLOADS | KIT_ONLY).items():
        sides = SIDES if name in WORKLOADS else {"kit": by_kit}
        spent: dict[str, list[float]] = {side: [] for side in sides}
        used = dict.fromkeys(sides, 0.0)
        for _ in range(rounds):
            for side, judge in sides.items():
                began, before = time.perf_counter(), processor_ms()
                judge(program, tests)
                spent[side].append(1000 * (time.perf_counter() - began))
                time.sleep(0.02)  # the last process ends after its verdict
                used[side] += processor_ms() - before
        for side, times in spent.items():
            rows.append(
                {
                    "program": name, "side": side, "programs": len(times), "p50, ms": f"{statistics.median(times):.1f}",
                    "p90, ms": f"{statistics.quantiles(times, n=10)[-1]:.1f}",
                    "processor, ms": f"{used[side] / rounds:.1f}",
                }
            )  # fmt: skip
    return rows


MIX = [  # as a policy writes them, and worse
    (SUM, 1.0), (SUM, 1.0), (SUM, 1.0), (SUM, 1.0), ("print(8)", 0.0), ("print(", 0.0), ("1 / 0", 0.0),
    ("x = bytearray(2**36)", 0.0), ("print('7' * 10**7)", 0.0), ("import os\nos.fork()\nprint(7)", 0.0),
    ("import os\nos.kill(os.getppid(), 9)", 0.0), ("open('x', 'w').write('7')", 0.0),
    ("import threading as t, time\nfor _ in range(9): t.Thread(target=time.sleep, args=[9], daemon=True).start()", 0.0),
    ("import os\nos.close(1)\nos._exit(0)", 0.0), ("import ctypes\nctypes.string_at(0)", 0.0),
]  # fmt: skip


def count_leftovers() -> Counter:
    """What this process and its servers hold: memory in MiB, processes, folders, descriptors."""
    servers = {server.process.pid for server in code_tests._program_servers}
    held: Counter = Counter(
        folders=len(list(Path(tempfile.gettempdir()).glob("grpo-kit-program-*"))),
        descriptors=len(list(Path("/proc/self/fd").iterdir())),
        mib=rss_mib(os.getpid()),
        server_mib=max(map(rss_mib, servers)),
        server_descriptors=max(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in servers),
    )
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            held["processes"] += int(path.read_text().rpartition(")")[2].split()[1]) in {os.getpid(), *servers}
        except OSError:
            continue
    return held


def rss_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def run_many(count: int) -> dict:
    """Figures of `count` programs; the first hundred fill caches before anything is counted."""
    programs, due = zip(*(MIX[n % len(MIX)] for n in range(count)))
    tests = json.dumps({"kind": "stdin", "inputs": ["3 4\n"], "outputs": ["7\n"]})
    assert code_tests_reward(list(map(fence, programs[:100])), [tests] * 100) == list(due[:100])
    time.sleep(0.5)
    before, began = count_leftovers(), time.perf_counter()
    for start in range(0, count, 64):
        batch = list(map(fence, programs[start : start + 64]))
        rewards = code_tests_reward(batch, [tests] * len(batch))
        assert rewards == list(due[start : start + 64]), "a program was judged otherwise"
    seconds = time.perf_counter() - began
    time.sleep(0.5)  # the last programs' processes end after their verdicts
    after = count_leftovers()
    figures = {
        f"{name}_{when}": round(held[name], 1)
        for name in before
        for when, held in (("before", before), ("after", after))
    }
    return {"programs": count, "programs_per_s": round(count / seconds, 1)} | figures


def main() -> None:
    options = report.arguments(__doc__)
    os.environ["GRPO_KIT_RUN_PROGRAMS"] = "anyway"
    layers = code_tests_reward.describe()
    print(", ".join(f"{name}: {text}" for name, text in layers.items()))
    rows = measure(10 if options.quick else 40)
    kit = {row["program"]: row for row in rows if row["side"] == "kit"}
    single = [row for name, row in kit.items() if name != "ten tests"]
    figures = {
        "ms_a_program": max(float(row["p50, ms"]) for row in single),
        "bar_ms": BAR_MS,
        "processor_ms_a_program": max(float(row["processor, ms"]) for row in single),
        "processor_ms_subprocess": float(rows[1]["processor, ms"]),
        "load": round(os.getloadavg()[0], 1),
        "layers": sum(text == "holds" for text in layers.values()),
        **run_many(300 if options.quick else 2000),
    }
    report.finish("code_tests", rows, figures, options.record)


if __name__ == "__main__":
    main()
