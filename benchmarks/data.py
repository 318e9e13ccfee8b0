"""Rows a second and peak memory of the data stage at 10k, 100k and 1M rows, and whether a killed one goes on.

    python benchmarks/data.py [--quick] [--record]

The rows are made up: word problems of 40 to 60 words from a vocabulary of 20,000, of which one in twenty is repeated, one in
twenty is a near duplicate, one in a hundred gives one of 2,000 evaluation problems away and one in a hundred is a proof.
Each size is prepared in a process of its own (read, cleaned, golds tried on math_reward, decontaminated, deduplicated,
split, written). Finding near duplicates is also done with datasketch where that is installed (pip install datasketch),
in turns with the kit's, on the same problems. Then a preparation is killed once half of its steps are done, and repeated.
--quick ends within a minute: 2k, 5k and 10k rows. --record appends the figures to notes/benchmarks.md.
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
from grpo_kit.runs.files import hash_of, read_lines, write_lines

CHILD = """
import json, resource, sys, time
from grpo_kit import config, data, reward_files, workspace
rows, held, root, name = sys.argv[1:]
chosen = config.load_config(["tiny"], [f"data.source={rows}", "data.decontaminate=[math500]", f"data.paths.math500={held}"])
marks = []
started = time.perf_counter()
manifest = data.prepare(
    chosen, workspace.find_run(name, root), reward_files.load_reward("math_answer.py:math_reward"),
    lambda step, steps, what: marks.append((what, time.perf_counter())))
ended = time.perf_counter()
marks.append(("end", ended))
seconds = {what: round(after - begun, 1) for (what, begun), (_, after) in zip(marks, marks[1:])}
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
print(json.dumps({"seconds": ended - started, "mib": peak, "steps": seconds, "dropped": manifest["dropped"], "rows": manifest["rows"]}))
"""


def problems(count, seed=0):
    """`count` made-up problems, the evaluation problems among them given by the same seed."""
    rng = random.Random(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["".join(rng.choices(letters, k=rng.randint(3, 9))) for _ in range(20_000)]

    def one():
        return " ".join(rng.choices(words, k=rng.randint(38, 58))) + f" {rng.randint(2, 999)} {rng.choice(words)}?"

    held = [one() for _ in range(2000)]
    recent = [one()]
    yield held
    for _ in range(count):
        kind = rng.random()
        if kind < 0.05:
            text = rng.choice(recent).upper()
        elif kind < 0.10:
            near = rng.choice(recent).split()
            near[rng.randrange(len(near))] = rng.choice(words)
            text = " ".join(near)
        elif kind < 0.11:
            text = f"{rng.choice(words)} " + rng.choice(held)
        elif kind < 0.12:
            text = f"Prove that {one()}".rstrip("?") + "."
        else:
            text = one()
            recent[rng.randrange(len(recent)) if len(recent) == 1000 else len(recent) :] = [text]
        yield text


def write(folder, count):
    """(rows, evaluation problems) as two JSONL files; a repeated problem has the gold it had."""
    made = problems(count)
    held = next(made)
    rows = ({"problem": text, "answer": str(sum(map(ord, text.casefold()[:40])) % 1000)} for text in made)
    write_lines(folder / f"{count}.jsonl", rows)
    write_lines(folder / f"held-{count}.jsonl", ({"problem": text, "answer": "1"} for text in held))
    return folder / f"{count}.jsonl", folder / f"held-{count}.jsonl"


def prepare(folder, paths, name):
    """What the child says of preparing these rows as run `name`."""
    words = [sys.executable, "-c", CHILD, *map(str, paths), str(folder / "runs"), name]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def killed(folder, paths, name):
    """Kill a preparation by SIGKILL once it has decontaminated; which steps it had finished."""
    words = [sys.executable, "-c", CHILD, *map(str, paths), str(folder / "runs"), name]
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kept = folder / "runs" / name / ".data"
    while child.poll() is None and not list(kept.glob("*/leaks.jsonl")):
        time.sleep(0.01)
    child.kill()
    child.wait()
    return sorted(path.stem for path in kept.glob("*/*.jsonl"))


def by_datasketch(texts):
    """Pairs that share a bucket of datasketch's MinHashLSH at the kit's threshold, as its documentation shows."""
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
    asked = report.arguments(__doc__)
    sizes = (2000, 5000, 10_000) if asked.quick else (10_000, 100_000, 1_000_000)
    rows, figures = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for size in sizes:
            paths = write(folder, size)
            found = prepare(folder, paths, f"whole-{size}")
            rows.append({
                "what": "the data stage", "rows": f"{size:,}", "seconds": f"{found['seconds']:.1f}",
                "rows a second": f"{size / found['seconds']:,.0f}", "peak, MiB": f"{found['mib']:,.0f}",
                "seconds by step": ", ".join(f"{step} {seconds}" for step, seconds in found["steps"].items()),
            })  # fmt: skip
            figures |= {f"rows_per_s_{size}": round(size / found["seconds"]), f"peak_mib_{size}": round(found["mib"])}
            print(f"{size:,} rows: {json.dumps(found)}", file=sys.stderr)
        paths = (folder / f"{sizes[1]}.jsonl", folder / f"held-{sizes[1]}.jsonl")
        finished = killed(folder, paths, "killed")
        found = prepare(folder, paths, "killed")
        same = hash_of(folder / "runs/killed/data") == hash_of(folder / f"runs/whole-{sizes[1]}/data")
        rows.append({
            "what": f"killed after {', '.join(finished)}; again", "rows": f"{sizes[1]:,}", "seconds": f"{found['seconds']:.1f}",
            "rows a second": "", "peak, MiB": f"{found['mib']:,.0f}", "seconds by step": "the same bytes" if same else "OTHER BYTES",
        })  # fmt: skip
        figures |= {"killed_again_s": round(found["seconds"], 1), "killed_same_bytes": same}
        texts = [row["problem"] for row in read_lines(folder / f"{sizes[0 if asked.quick else 1]}.jsonl")]
    finders = {"near duplicates, the kit": lambda some: len(duplicates.find_near_pairs(some))}
    if importlib.util.find_spec("datasketch"):
        finders["near duplicates, datasketch"] = by_datasketch
    seconds, pairs = dict.fromkeys(finders, 0.0), dict.fromkeys(finders, 0)
    part = len(texts) // 4
    for turn in range(4):
        for name, find in list(finders.items())[:: 1 if turn % 2 == 0 else -1]:
            started = time.perf_counter()
            pairs[name] += find(texts[turn * part : (turn + 1) * part])
            seconds[name] += time.perf_counter() - started
    for name in finders:
        rows.append({
            "what": name, "rows": f"{len(texts):,}", "seconds": f"{seconds[name]:.1f}", "rows a second": f"{len(texts) / seconds[name]:,.0f}",
            "peak, MiB": "", "seconds by step": f"{pairs[name]:,} pairs",
        })  # fmt: skip
    if len(seconds) == 2:
        figures["times_datasketch"] = round(
            seconds["near duplicates, datasketch"] / seconds["near duplicates, the kit"], 1
        )
    figures["benchmark_peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
    report.finish("data", rows, figures, asked.record)


if __name__ == "__main__":
    main()
