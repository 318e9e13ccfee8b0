"""Rows a second and peak memory of the data stage at 10k, 100k and 1M rows, and whether a killed one goes on.

    python benchmarks/data.py [--quick] [--record]

The rows are synthetic word problems of 40 to 60 words from a vocabulary of 20,000. One in twenty repeats an earlier
problem, one in twenty is a near duplicate, one in a hundred contains one of 2,000 evaluation problems, and one in a
hundred asks for a proof. A process of its own prepares each size: it reads, cleans, tries each reference answer on
math_reward, removes evaluation problems and duplicates, splits and writes. If datasketch is installed (pip install
datasketch), it searches for near duplicates in turns with the kit, on the same problems. At the end a preparation is
killed when half of its steps are done, and repeated. --quick ends within a minute: 2k, 5k and 10k rows. --record
appends the figures to notes/benchmarks.md.
"""

import importlib.util
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import report

from grpo_kit.data import duplicates, ngrams
from grpo_kit.runs.files import hash_of, write_lines
from grpo_kit.runs.reading import read_lines

CHILD = """
import json, resource, sys, time
from grpo_kit.config import load_config
from grpo_kit.data import prepare
from grpo_kit.rewards.tools.loading import load_reward
from grpo_kit.runs.run import find_run
rows, evaluation, root, name = sys.argv[1:]
overrides = [f"data.source={rows}", "data.decontaminate=[math500]", f"data.paths.math500={evaluation}"]
marks = []
started = time.perf_counter()
manifest = prepare(
    load_config(["tiny"], overrides), find_run(name, root), load_reward("math_answer.py:math_reward"),
    lambda step, steps, label: marks.append((label, time.perf_counter())))
ended = time.perf_counter()
marks.append(("end", ended))
seconds = {label: round(after - begun, 1) for (label, begun), (_, after) in zip(marks, marks[1:])}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
figures = {"seconds": ended - started, "mib": peak, "steps": seconds}
print(json.dumps(figures | {"dropped": manifest["dropped"], "rows": manifest["rows"]}))
"""


def make_problems(count, seed=0):
    """First the list of evaluation problems, then `count` training problems, by the seed."""
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(3, 9))) for _ in range(20_000)]

    def one():
        return " ".join(rng.choices(words, k=rng.randint(38, 58))) + f" {rng.randint(2, 999)} {rng.choice(words)}?"

    evaluation = [one() for _ in range(2000)]
    recent = [one()]
    yield evaluation
    for _ in range(count):
        kind = rng.random()
        if kind < 0.05:
            text = rng.choice(recent).upper()
        elif kind < 0.10:
            near = rng.choice(recent).split()
            near[rng.randrange(len(near))] = rng.choice(words)
            text = " ".join(near)
        elif kind < 0.11:
            text = f"{rng.choice(words)} " + rng.choice(evaluation)
        elif kind < 0.12:
            text = f"Prove that {one()}".rstrip("?") + "."
        else:
            text = one()
            recent[rng.randrange(len(recent)) if len(recent) == 1000 else len(recent) :] = [text]
        yield text


def write_problems(folder, count):
    """Write training rows and evaluation problems; returns the two paths. A repeated problem has the same answer."""
    problems = make_problems(count)
    evaluation = next(problems)
    rows = ({"problem": text, "answer": str(sum(map(ord, text.casefold()[:40])) % 1000)} for text in problems)
    paths = folder / f"{count}.jsonl", folder / f"evaluation-{count}.jsonl"
    write_lines(paths[0], rows)
    write_lines(paths[1], ({"problem": text, "answer": "1"} for text in evaluation))
    return paths


def run_preparation(folder, paths, name):
    """The figures that a child process prints after it prepared these rows as run `name`."""
    command = [sys.executable, "-c", CHILD, *map(str, paths), str(folder / "runs"), name]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def kill_preparation(folder, paths, name):
    """Kill a preparation (SIGKILL) after it removed evaluation problems; returns the names of its finished steps."""
    command = [sys.executable, "-c", CHILD, *map(str, paths), str(folder / "runs"), name]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    steps = folder / "runs" / name / ".data"
    while child.poll() is None and not list(steps.glob("*/leaks.jsonl")):
        time.sleep(0.01)
    child.kill()
    child.wait()
    return sorted(path.stem for path in steps.glob("*/*.jsonl"))


def count_pairs_with_datasketch(texts):
    """How many pairs share a bucket of datasketch's MinHashLSH, at the kit's threshold."""
    import datasketch

    index = datasketch.MinHashLSH(threshold=duplicates.THRESHOLD, num_perm=128)
    pairs = 0
    for number, text in enumerate(texts):
        tokens = ngrams.split_tokens(text)
        minhash = datasketch.MinHash(num_perm=128)
        minhash.update_batch([" ".join(tokens[i : i + 3]).encode() for i in range(len(tokens) - 2)])
        pairs += len(index.query(minhash))
        index.insert(number, minhash)
    return pairs


def main():
    options = report.arguments(__doc__)
    sizes = (2000, 5000, 10_000) if options.quick else (10_000, 100_000, 1_000_000)
    rows, figures = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for size in sizes:
            paths = write_problems(folder, size)
            run_figures = run_preparation(folder, paths, f"whole-{size}")
            rows.append({
                "what": "the data stage", "rows": f"{size:,}", "seconds": f"{run_figures['seconds']:.1f}",
                "rows a second": f"{size / run_figures['seconds']:,.0f}", "peak, MiB": f"{run_figures['mib']:,.0f}",
                "seconds by step": ", ".join(f"{step} {seconds}" for step, seconds in run_figures["steps"].items()),
            })  # fmt: skip
            figures |= {
                f"rows_per_s_{size}": round(size / run_figures["seconds"]),
                f"peak_mib_{size}": round(run_figures["mib"]),
            }
            print(f"{size:,} rows: {json.dumps(run_figures)}", file=sys.stderr)
        paths = (folder / f"{sizes[1]}.jsonl", folder / f"evaluation-{sizes[1]}.jsonl")
        finished = kill_preparation(folder, paths, "killed")
        run_figures = run_preparation(folder, paths, "killed")
        same = hash_of(folder / "runs/killed/data") == hash_of(folder / f"runs/whole-{sizes[1]}/data")
        rows.append({
            "what": f"killed after {', '.join(finished)}; again", "rows": f"{sizes[1]:,}",
            "seconds": f"{run_figures['seconds']:.1f}",
            "rows a second": "", "peak, MiB": f"{run_figures['mib']:,.0f}",
            "seconds by step": "the same bytes" if same else "OTHER BYTES",
        })  # fmt: skip
        figures |= {"killed_again_s": round(run_figures["seconds"], 1), "killed_same_bytes": same}
        texts = [row["problem"] for row in read_lines(folder / f"{sizes[0 if options.quick else 1]}.jsonl")]
    finders = {"near duplicates, the kit": lambda some: len(duplicates.find_near_pairs(some))}
    if importlib.util.find_spec("datasketch"):
        finders["near duplicates, datasketch"] = count_pairs_with_datasketch
    seconds, pairs = dict.fromkeys(finders, 0.0), dict.fromkeys(finders, 0)
    part = len(texts) // 4
    for turn in range(4):
        for name, find in list(finders.items())[:: 1 if turn % 2 == 0 else -1]:
            started = time.perf_counter()
            pairs[name] += find(texts[turn * part : (turn + 1) * part])
            seconds[name] += time.perf_counter() - started
    for name in finders:
        rows.append({
            "what": name, "rows": f"{len(texts):,}", "seconds": f"{seconds[name]:.1f}",
            "rows a second": f"{len(texts) / seconds[name]:,.0f}",
            "peak, MiB": "", "seconds by step": f"{pairs[name]:,} pairs",
        })  # fmt: skip
    if len(seconds) == 2:
        figures["times_datasketch"] = round(
            seconds["near duplicates, datasketch"] / seconds["near duplicates, the kit"], 1
        )
    figures["benchmark_peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
    report.finish("data", rows, figures, options.record)


if __name__ == "__main__":
    main()
