"""What does SFT on solvers' traces bring before GRPO? The challenge's numeral and unit families, in small numbers.

Four policies are measured on the same held-out puzzles, greedily, as the challenge's scorer decodes: untrained, after
SFT on the traces of the run's training rows, after GRPO on top of it, and after GRPO alone with the same settings. The
embedded policy `tiny-environments` plays, because `tiny` has never seen most letters; it has seen no puzzle. GRPO
samples at a temperature of 0.5 and learns at a tenth of the embedded preset's rate: at 1e-3 it forgot in 10 steps what
SFT had taught it (0.635 to 0.105). The bar: SFT gains.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import report

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.evaluation import evaluate
from grpo_kit.evaluation.changes import compare_scores
from grpo_kit.rewards.tools import loading
from grpo_kit.runs.reading import read_json, read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.runs.texts import format_change
from grpo_kit.training import train
from grpo_kit.training.sft.sft import sft

SETTINGS = [
    "policy.model=tiny-environments", "data.source=tiny-puzzles", "data.limit=1200", "data.val_size=50",
    "data.test_size=200", "run.report_to=[]", "evaluation.temperature=0", "evaluation.max_completion_length=190",
    "lora.r=32", "lora.lora_alpha=64", "lora.target_modules=all-linear",
    "sft.per_device_train_batch_size=8", "sft.gradient_accumulation_steps=1", "sft.learning_rate=5e-3",
    "grpo.max_completion_length=190", "grpo.temperature=0.5", "grpo.eval_steps=0", "grpo.resample_budget=1",
    "grpo.per_device_train_batch_size=32", "grpo.learning_rate=1e-4",
]  # fmt: skip


def main():
    options = report.arguments(__doc__)
    lengths = ["sft.max_steps=40", "grpo.max_steps=2", "data.test_size=40"] if options.quick else []
    chosen = config.load_config("tiny", [*SETTINGS, "sft.max_steps=700", "grpo.max_steps=15", *lengths])
    root = Path(tempfile.mkdtemp())
    both, alone = find_run("both", root), find_run("alone", root)
    prepare(chosen, both)
    shutil.copytree(both.path, alone.path)
    rewards = [loading.load_reward(spec) for spec in chosen.grpo.reward_funcs]
    seconds, measured = {}, {}

    def timed(name, work):
        began = time.process_time()
        work()
        seconds[name] = round(time.process_time() - began)

    def measure(name, run, stage):
        measured[name] = evaluate.measure(chosen, run, stage)

    measure("untrained", both, "before")
    timed("SFT", lambda: sft(chosen, both))
    measure("SFT", both, "after_sft")
    timed("SFT, then GRPO", lambda: train.train(chosen, both, rewards))
    measure("SFT, then GRPO", both, "after")
    timed("GRPO alone", lambda: train.train(chosen, alone, rewards))
    measure("GRPO alone", alone, "after")

    scores = {
        name: {problem["id"]: problem["score"] for problem in result["problems"]} for name, result in measured.items()
    }
    before_of = {"SFT": "untrained", "SFT, then GRPO": "SFT", "GRPO alone": "untrained"}
    rows, changes = [], {}
    for name, result in measured.items():
        row = {
            "policy": name,
            "right": f"{result['pass@1']:.3f}",
            "95 %": "{:.3f} to {:.3f}".format(*result["ci95"]),
            "change": "",
            "95 % of it": "",
        }
        if name in before_of:
            change = compare_scores(scores[before_of[name]], scores[name])
            changes[name] = change
            row["change"] = format_change(change["difference"], 3)
            row["95 % of it"] = " to ".join(format_change(end, 3) for end in change["difference_ci95"])
        row |= {family: f"{share:.3f}" for family, share in by_family(both, scores[name]).items()}
        row |= {"tokens": f"{result['mean_tokens']:.0f}", "cut off": f"{result['truncated']:.0%}"}
        rows.append(row | {"processor s": seconds.get(name, "")})
    folder = both.stage_files("sft").folder
    weakest, texts = read_json(folder / "weakest.json"), read_json(folder / "rows.json")
    figures = {
        "texts": texts["rows"],
        "tokens_of_a_text": texts["tokens"]["median"],
        "greedy": round(weakest["greedy"], 3),
        "lowest_logprob": weakest["lowest"],
        "last_loss": round(read_lines(both.stage_files("sft").metrics)[-1]["loss"], 4),
        "sft_gains": changes["SFT"]["difference_ci95"][0] > 0,
        "grpo_gains_after_sft": changes["SFT, then GRPO"]["difference_ci95"][0] > 0,
        "grpo_alone_gains": changes["GRPO alone"]["difference_ci95"][0] > 0,
        "bar": "SFT gains",
    }
    report.finish("stages", rows, figures, options.record)


def by_family(run, scores):
    """{family: share of its held-out puzzles that are right}."""
    from grpo_kit.data.puzzles import classify_prompt

    right = {}
    for row in read_lines(run.data_file("test")):
        right.setdefault(classify_prompt(row["prompt"][-1]["content"]), []).append(scores[row["id"]])
    return {family: sum(own) / len(own) for family, own in sorted(right.items())}


if __name__ == "__main__":
    main()
