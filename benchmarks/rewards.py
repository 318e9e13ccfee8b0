"""How right and how fast math_reward is beside math-verify, TRL and verl, and whether its memory stays constant.

    python benchmarks/rewards.py [--quick] [--record]

Each workload is a list of distinct (reply, reference answer) pairs. The judges take turns of 25 pairs in one process:
the kit, math-verify (parse, parse, verify with its default timeouts, in the main thread), TRL's accuracy_reward, and
verl's math_verify.compute_score, where verl is installed. verl's file is loaded alone, since the package needs more
than a verdict does, and its process pool forks instead of spawning. No pair comes twice, so the kit's cache of verdicts
does not help it. Accuracy is counted on the labelled rows of ../shared/data/answer_checking: the kit in the main thread
and in a worker thread, the others in the main thread, which their time limits need. --quick ends within a minute and
takes every tenth labelled row; --record appends the figures, with date and hardware, to notes/benchmarks.md. MATH-500
and the labelled rows are read from ../shared (or GRPO_KIT_SHARED).
"""

import contextlib
import importlib.util
import json
import logging
import multiprocessing
import os
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import report

from grpo_kit.rewards import math_answer
from grpo_kit.rewards.math_answer import math_verdict, prestart

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("GRPO_KIT_SHARED", REPOSITORY.parent / "shared"))
TURN = 25  # pairs that one side judges before the other does
Pair = tuple[str, str]


def integers(count: int) -> Iterator[Pair]:
    """Boxed integers, every third one wrong."""
    for n in range(1000, 1000 + count):
        yield rf"So she has \boxed{{{n + (n % 3 == 0)}}} of them.", str(n)


def math500() -> list[dict]:
    path = SHARED / "data" / "math" / "math500_test.jsonl"
    if not path.is_file():
        print(f"{path} is absent: the workloads from MATH-500 are left out")
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def long_replies(rows: list[dict], count: int) -> Iterator[Pair]:
    """MATH solutions without their boxes, up to 13,000 characters, then a boxed integer."""
    texts = [row["solution"].replace(r"\boxed", "") for row in rows]
    for n in range(count):
        text, i = "", n
        while len(text) < 13_000:
            text, i = text + texts[i % len(texts)] + "\n", i + 1
        ending = rf"Thus the answer is $\boxed{{{n}}}$."
        yield text[: 13_000 - len(ending)] + ending, str(n)


SYMBOLIC = [  # two spellings of one answer; N, M and K stand for n, n squared and n + 1
    ("(x+N)^2", "x^2+2*N*x+M"),
    (r"\frac{1}{x+N}+\frac{1}{x-N}", r"\frac{2x}{x^2-M}"),
    (r"\frac{x^2-M}{x-N}", "x+N"),
    (r"N\sqrt{2}", r"\sqrt{2\cdot M}"),
    (r"\frac{N}{\sqrt{M+1}}", r"\frac{N\sqrt{M+1}}{M+1}"),
    (r"2\sin(Nx)\cos(Nx)", r"\sin(2\cdot Nx)"),
    (r"N-2\sin^2 x", r"\cos 2x+N-1"),
    (r"\sec^2 x+N", r"\tan^2 x+K"),
    (r"\ln\frac{x^2+N}{N}", r"\ln(x^2+N)-\ln N"),
    (r"\frac{\ln K}{\ln 2}", r"\log_2 K"),
    ("(e^x+N)^2", r"e^{2x}+2\cdot N\cdot e^x+M"),
    ("y=Nx+3", "Nx-y+3=0"),
    (r"\frac{x^2}{N}+\frac{y^2}{N}=1", "x^2+y^2=N"),
    ("(a-b)(a^2+ab+b^2)+N", "a^3-b^3+N"),
    ("(N+i)(N-2i)", r"M+2-N\cdot i"),
    (r"\frac{N\pi}{4}+\frac{\pi}{4}", r"\frac{K\pi}{4}"),
    (r"2^{x+1}+N", r"2\cdot 2^x+N"),
    (r"\frac{\sqrt{x}+N}{\sqrt{x}}", r"1+\frac{N}{\sqrt{x}}"),
]


def symbolic(count: int) -> Iterator[Pair]:
    """Algebra that no exact rule decides: polynomials, fractions, roots, trigonometry, logarithms, equations.

    Each second turn through the forms has wrong answers: one number of the gold differs.
    """
    for n in range(count):
        number = n // len(SYMBOLIC) + 3
        reply, gold = SYMBOLIC[n % len(SYMBOLIC)]
        for name, value in (("N", number), ("M", number**2), ("K", number + 1)):
            reply = reply.replace(name, str(value))
            gold = gold.replace(name, str(value + number % 2))
        yield rf"So it is $\boxed{{{reply}}}$.", gold


def kit(reply: str, gold: str) -> bool:
    return math_verdict(reply, gold).reward == 1.0


def anchor(reply: str) -> str:
    """A reply that is a bare formula between dollar signs, where the other judges look for it."""
    bare = not re.search(r"[$\n]|\\boxed|\\[(\[]|####|<answer>", reply) and not re.search(
        r"(?<!\\)\b[A-Za-z]{4,}", reply
    )
    return f"${reply}$" if bare else reply


def math_verify_judge() -> Callable[[str, str], bool]:
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)

    return lambda reply, gold: bool(verify(parse(anchor_gold(gold)), parse(anchor(reply))))


def anchor_gold(gold: str) -> str:
    return gold if "$" in gold or "boxed" in gold else f"${gold}$"


def trl_judge() -> Callable[[str, str], bool]:
    from trl.rewards import accuracy_reward

    def judge(reply: str, gold: str) -> bool:
        return accuracy_reward([[{"role": "assistant", "content": anchor(reply)}]], [anchor_gold(gold)])[0] == 1.0

    return judge


def verl_judge() -> Callable[[str, str], bool] | None:
    """verl's reward for math, None where verl is not installed."""
    package = importlib.util.find_spec("verl")
    if package is None:
        print("verl is not installed: left out")
        return None
    path = Path(package.submodule_search_locations[0]) / "utils" / "reward_score" / "math_verify.py"
    spec = importlib.util.spec_from_file_location("verl_math_verify", path)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module._pool = ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork"))  # it finds the module there

    def judge(reply: str, gold: str) -> bool:
        with contextlib.redirect_stdout(None):
            return module.compute_score(anchor(reply), gold) == 1.0

    return judge


def accuracy(judges: dict[str, Callable], step: int) -> Iterator[dict]:
    """For each file of labelled rows and each judge: the share of right verdicts and what is wrong, by kind."""
    for path in sorted((SHARED / "data" / "answer_checking").glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()][::step]
        for name, judge in judges.items():
            math_answer._compare_answers.cache_clear()
            wrong: Counter = Counter()
            slowest = 0.0
            for row in rows:
                due = row["equal"] if "equal" in row else row["reward"] == 1
                began = time.perf_counter()
                if judge(row["pred"], str(row["gold"])) != due:
                    wrong["refused" if due else "paid", row.get("kind") or row.get("category")] += 1
                slowest = max(slowest, time.perf_counter() - began)
            faults = Counter(fault for fault, _ in wrong.elements())
            yield {
                "file": path.stem, "rows": len(rows), "judge": name,
                "right, %": f"{100 - 100 * wrong.total() / len(rows):.1f}", "wrong ones paid": faults["paid"],
                "right ones refused": faults["refused"], "slowest, s": f"{slowest:.1f}",
                "faults by kind": ", ".join(f"{kind} {n}" for (_, kind), n in wrong.most_common(4)),
            }  # fmt: skip


def in_worker_thread(judge: Callable[[str, str], bool]) -> Callable[[str, str], bool]:
    pool = ThreadPoolExecutor(1)
    return lambda reply, gold: pool.submit(judge, reply, gold).result()


def alternate(judges: dict[str, Callable], pairs: list[Pair]) -> dict[str, list[float]]:
    """Seconds of each verdict, by judge."""
    seconds: dict[str, list[float]] = {name: [] for name in judges}
    for start in range(0, len(pairs), TURN):
        for name, judge in judges.items():
            for reply, gold in pairs[start : start + TURN]:
                began = time.perf_counter()
                judge(reply, gold)
                seconds[name].append(time.perf_counter() - began)
    return seconds


def rss_mib(pid: int) -> float:
    """Resident memory of a process in MiB, 0 where /proc is missing."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def list_session(leader: int) -> list[int]:
    """The child and its fork, which share most of their memory."""
    stats = Path("/proc").glob("[0-9]*/stat")
    return [int(path.parent.name) for path in stats if path.read_text().rpartition(")")[2].split()[3] == str(leader)]


def memory(verdicts: int) -> dict[str, float]:
    """MiB of this process and of the child after a fifth of the verdicts, and after all of them.

    All pairs are distinct, two in 100 are symbolic, and the child decides one of them. The first fifth fills the
    caches, whose size is bounded.
    """
    algebra = symbolic(verdicts)
    figures = {}
    for n in range(verdicts):
        reply, gold = rf"\boxed{{\frac{{{n}}}{{7}}}}", f"{n + n % 2}/7"
        if n % 50 == 0:
            reply, gold = next(algebra) if n % 100 else (rf"\boxed{{\lfloor x+{n}\rfloor}}", rf"\lfloor x\rfloor+{n}")
        math_verdict(reply, gold)
        if n + 1 in (verdicts // 5, verdicts):
            when = "after_a_fifth" if n + 1 < verdicts else "after_all"
            figures |= {
                f"process_{when}_mib": rss_mib(os.getpid()),
                f"child_{when}_mib": max(map(rss_mib, list_session(math_answer._child.process.pid))),
            }
    return {"memory_verdicts": verdicts} | {name: round(mib, 1) for name, mib in figures.items()}


def main() -> None:
    options = report.arguments(__doc__)
    size = 1 if options.quick else 10
    answers = math500()
    workloads = {"integers": list(integers(500 * size))}
    if answers:
        workloads["math500"] = [(rf"\boxed{{{row['answer']}}}", row["answer"]) for row in answers]
        workloads["long_replies"] = list(long_replies(answers, 50 * size))
    workloads["symbolic"] = list(symbolic(36 * size))
    judges = {"kit": kit, "math_verify": math_verify_judge(), "trl": trl_judge()}
    if verl := verl_judge():
        judges["verl"] = verl
    prestart()
    for judge in judges.values():  # the first call of each imports
        judge(r"\boxed{\sqrt{49}}", "7")
    graders = {"kit": kit, "kit, in a thread": in_worker_thread(kit), **judges}
    if rows := list(accuracy(graders, 10 if options.quick else 1)):
        paid = sum(row["wrong ones paid"] for row in rows if row["judge"] == "kit")
        report.finish(
            "rewards_accuracy",
            rows,
            {"labelled_rows": sum(r["rows"] for r in rows) // len(graders), "paid": paid},
            options.record,
        )

    rows, total, p99, symbolic_ms = [], dict.fromkeys(judges, 0.0), 0.0, {}
    for name, pairs in workloads.items():
        for judge, seconds in alternate(judges, pairs).items():
            cuts = [1e3 * cut for cut in statistics.quantiles(seconds, n=100)]
            rows.append(
                {
                    "workload": name, "pairs": len(pairs), "judge": judge,
                    "verdicts a second": f"{len(seconds) / sum(seconds):,.0f}",
                    "p50, ms": f"{cuts[49]:.3f}", "p99, ms": f"{cuts[98]:.3f}",
                    "slowest, ms": f"{1e3 * max(seconds):.1f}",
                }
            )  # fmt: skip
            if name == "symbolic":
                symbolic_ms[judge] = (1e3 * sum(seconds), cuts[98])
            else:
                total[judge] += sum(seconds)
                p99 = max(p99, cuts[98]) if judge == "kit" else p99
    figures = {
        "integers_per_s": float(rows[0]["verdicts a second"].replace(",", "")),
        "times_math_verify": round(total["math_verify"] / total["kit"], 1),
        "largest_p99_ms": round(p99, 3),
        "symbolic_times_math_verify": round(symbolic_ms["math_verify"][0] / symbolic_ms["kit"][0], 1),
        "symbolic_p99_ms": round(symbolic_ms["kit"][1], 3),
        **memory(10_000 * size),
    }
    report.finish("rewards", rows, figures, options.record)


if __name__ == "__main__":
    main()
