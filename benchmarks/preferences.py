"""What do pairs teach after a few steps of GRPO? Right answers, and to leave tools alone that nobody offered.

Two embedded policies. `tiny` takes six steps of GRPO on sums and then learns from the pairs of their groups.
`tiny-office`, which was taught to call two tools, gets requests without tools. Its groups are drawn by a GRPO whose
learning rate is next to nothing, with the reward `no_calls.py`. Each learns four times from the same groups: with
NeMo-RL's SFT weight, without the SFT term, with that term alone (beta is next to nothing), and, as a control, with a
coin that decides which of a pair is preferred.
The figures are differences on held-out prompts that both measurements share, with 95 % intervals, seed by seed.
"""

import json
import random
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import report

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.environments.tiny_tasks import ask_purchase, draw_purchase
from grpo_kit.evaluation import calls, changes, evaluate
from grpo_kit.rewards.tools.loading import load_reward
from grpo_kit.runs.files import write_lines
from grpo_kit.runs.reading import read_json, read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.runs.texts import format_change
from grpo_kit.training import train
from grpo_kit.training.preferences.prefer import prefer

BOTH = ["data.val_size=10", "grpo.resample_budget=0", "grpo.eval_steps=0", "run.report_to=[]"]
SUMS = [*BOTH, "data.limit=1400", "data.test_size=400", "grpo.max_steps=6"]
LENGTH = 120  # a reply with a call takes some 80 tokens
REQUESTS = [
    *BOTH, "policy.model=tiny-office", "data.test_size=400", "grpo.max_steps=6", "grpo.per_device_train_batch_size=256",
    "grpo.learning_rate=1e-9", "grpo.reward_funcs=[no_calls.py]", "grpo.reward_weights=[1.0]",
    "evaluation.verifier=no_calls.py", f"grpo.max_completion_length={LENGTH}",
    f"evaluation.max_completion_length={LENGTH}",
]  # fmt: skip
WAYS = {
    "NeMo-RL's weight 0.2": [], "no SFT term": ["dpo.sft_loss_weight=0"], "SFT term alone": ["dpo.beta=1e-9"],
    "by a coin": None,
}  # fmt: skip


def open_trial(task: str, seed: int, folder: Path) -> tuple[Any, Any]:
    """(config, run) with the groups that GRPO has drawn, and measured after it."""
    settings = list(SUMS)
    if task == "requests":
        rng = random.Random(seed)
        texts = dict.fromkeys(ask_purchase(draw_purchase(rng)).prompt[-1]["content"] for _ in range(2500))
        write_lines(folder / "requests.jsonl", ({"prompt": text, "answer": "0"} for text in texts))
        settings = [*REQUESTS, f"data.source={folder / 'requests.jsonl'}"]
    chosen = config.load_config(["tiny"], [*settings, f"run.seed={seed}"])
    run = find_run("trial", folder / "runs")
    prepare(chosen, run)
    train.train(chosen, run, [load_reward(name) for name in chosen.grpo.reward_funcs])
    evaluate.measure(chosen, run, "after")
    return chosen, run


def toss(run: Any, folder: Path, seed: int) -> Path:
    """The pairs of a run as a file in which a coin says which reply is preferred."""
    rng, rows = random.Random(seed), []
    for pair in read_lines(run.path / "prefer/pairs.jsonl"):
        replies = [pair["chosen"], pair["rejected"]]
        rng.shuffle(replies)
        rows.append({"prompt": pair["prompt"], "chosen": replies[0], "rejected": replies[1]})
    write_lines(folder / "coin.jsonl", rows)
    return folder / "coin.jsonl"


def learn(chosen: Any, run: Any, way: str, folder: Path, seed: int) -> dict[str, Any]:
    """What a copy of the run learns from its pairs: a row of the table."""
    settings = WAYS[way]
    if settings is None:
        settings = [f"dpo.source={toss(find_run('trial', folder / list(WAYS)[0]), folder, seed)}"]
    shutil.copytree(run.path, folder / way / run.name)
    own = find_run(run.name, folder / way)
    dpo = config.load_config(["tiny"], settings).dpo
    last = prefer(replace(chosen, dpo=dpo), own)
    evaluate.measure(replace(chosen, dpo=dpo), own, "after_prefer")
    before, after = (read_json(own.evaluation / f"{name}.json")["problems"] for name in ("after", "after_prefer"))
    scores = changes.compare_scores(*({each["id"]: each["score"] for each in side} for side in (before, after)))
    changed = calls.compare_calls(before, after)["undeclared"]
    summary = json.loads((own.path / "prefer/summary.json").read_text())
    return {
        "beta": dpo.beta, "scores": scores, "calls": changed, "summary": summary, "last": last,
        "before": sum(each["score"] for each in before) / len(before),
        "after": sum(each["score"] for each in after) / len(after),
    }  # fmt: skip


def show(change: dict[str, Any], key: str = "difference_ci95") -> str:
    points, low, high = (format_change(100 * each) for each in (change["difference"], *change[key]))
    return f"{points} ({low} to {high})"


def main() -> None:
    options = report.arguments(__doc__)
    seeds, tasks = ((1,), ("sums",)) if options.quick else ((1, 2, 3), ("sums", "requests"))
    rows, figures = [], {}
    for task in tasks:
        for seed in seeds:
            folder = Path(tempfile.mkdtemp())
            chosen, run = open_trial(task, seed, folder)
            for way in WAYS:
                result = learn(chosen, run, way, folder, seed)
                summary, last = result["summary"], result["last"]
                rows.append(
                    {
                        "task": task,
                        "seed": seed,
                        "learned": way,
                        "pairs": ", ".join(f"{count} {kind}" for kind, count in summary["kinds"].items()),
                        "chosen less rejected, tokens": f"{summary['difference']:+.1f}",
                        "right before": f"{result['before']:.3f}",
                        "right after": f"{result['after']:.3f}",
                        "points (95 %)": show(result["scores"]),
                        "calls, points (95 %)": show(result["calls"]),
                        "margin": f"{last['rewards/margins'] / result['beta'] * chosen.dpo.beta:+.2f}",
                        "chosen, nats": f"{last['rewards/chosen'] / result['beta']:+.1f}",
                    }
                )
                figures.setdefault(f"{task}, {way}", []).append(round(100 * result["scores"]["difference"], 1))
    report.finish("preferences", rows, figures, options.record)


if __name__ == "__main__":
    main()
