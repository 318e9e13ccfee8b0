"""How soon does the embedded policy solve sums? Compares TRL with its defaults, TRL with the kit's settings, the kit.

Accuracy is measured on the 500 test problems every few steps, with the clock stopped; seconds are the process's own of
training alone, which other work on the machine does not stretch. A run that does not get there in the steps given
counts with all its seconds, which flatters it: `not_reached` names those whose ratios are therefore bounds. The three
take turns, seed by seed, at the preset's settings. Bars: to 0.85 the kit takes at most half the seconds of the bare
script, and to what the demo ends at fewer than either; its groups teach in 0.9 of cases or more where groups drawn by
chance fall below 0.6.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

from transformers import TrainerCallback

sys.path.insert(0, str(Path(__file__).parent))
import bare
import report

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.evaluation.scores import score_rows
from grpo_kit.rewards.tools import loading
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run
from grpo_kit.training import train

GOALS, LOOK = (0.85, 0.97), 4  # accuracies: the bar's, the demo's; steps between looks


class Watch(TrainerCallback):
    """Accuracy by seconds of training."""

    def __init__(self, settings, run, verifier, tokenizer):
        self.look = lambda model: score_rows(model, tokenizer, read_lines(run.data_file("test")), verifier, settings)
        self.seconds, self.since, self.curve, self.taught = 0.0, 0.0, [], []

    def on_step_begin(self, args, state, control, **kwargs):
        self.since = time.process_time()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "frac_reward_zero_std" in logs:
            self.taught.append(logs.get("groups/with_gradient", 1 - logs["frac_reward_zero_std"]))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seconds += time.process_time() - self.since
        if state.global_step % LOOK == 0 or state.global_step == state.max_steps:
            scores = [score for score in self.look(model).values() if score is not None]
            model.train()
            self.curve.append((state.global_step, self.seconds, sum(scores) / len(scores)))

    def to(self, goal):
        """(step, seconds) of the first look at `goal` or above; step None and all seconds where there is none."""
        return next(((step, s) for step, s, right in self.curve if right >= goal), (None, self.seconds))


def main():
    options = report.arguments(__doc__)
    seeds, steps = ((1,), 8) if options.quick else ((1, 2, 3), 40)
    builders = {
        "bare TRL, its defaults": lambda *given: bare.trainer(*given, args=bare.defaults(*given[:2])),
        "bare TRL, our settings": bare.trainer,
        "grpo_kit": train.make_trainer,
        "grpo_kit, nothing replaced": train.make_trainer,
    }
    watches_of = {name: [] for name in builders}
    for seed in seeds:
        for name, build in builders.items():
            overrides = [f"grpo.max_steps={steps}", "grpo.eval_steps=0", f"run.seed={seed}", "run.report_to=[none]"]
            overrides += ["grpo.resample_budget=0"] if name.endswith("replaced") else []
            settings = config.load_config(["tiny"], overrides)
            run = find_run("learning", tempfile.mkdtemp())
            prepare(settings, run)
            rewards = [loading.load_reward(spec) for spec in settings.grpo.reward_funcs]
            trainer = build(settings, run, rewards)
            watch = Watch(settings, run, rewards[0], trainer.processing_class)
            trainer.add_callback(watch)
            trainer.train()
            watches_of[name].append(watch)
    rows, seconds = [], {}
    for name, watches in watches_of.items():
        row = {"trainer": name}
        for goal in GOALS:
            reached = [watch.to(goal) for watch in watches]
            seconds[name, goal] = statistics.median(s for _, s in reached)
            row[f"steps to {goal}"] = "/".join(f">{steps}" if step is None else str(step) for step, _ in reached)
            row[f"median s to {goal}"] = f"{seconds[name, goal]:.1f}"
        row["accuracy at the end"] = "/".join(f"{watch.curve[-1][2]:.3f}" for watch in watches)
        row["groups that teach"] = f"{statistics.mean(t for watch in watches for t in watch.taught):.3f}"
        row["least in 10 steps"] = f"{min(least(watch.taught) for watch in watches):.3f}"
        rows.append(row)
    defaults, ours, kit, lazy = watches_of
    figures = {
        "ratio": round(seconds[kit, GOALS[0]] / seconds[defaults, GOALS[0]], 3),
        "bar": 0.5,
        "ratio_to_our_settings": round(seconds[kit, GOALS[0]] / seconds[ours, GOALS[0]], 3),
        "demo_ratio_to_our_settings": round(seconds[kit, GOALS[1]] / seconds[ours, GOALS[1]], 3),
        "demo_ratio_nothing_replaced": round(seconds[lazy, GOALS[1]] / seconds[ours, GOALS[1]], 3),
        "not_reached": [
            f"{name}: {goal}"
            for name, watches in watches_of.items()
            for goal in GOALS
            if any(watch.to(goal)[0] is None for watch in watches)
        ],
        "teach": rows[2]["groups that teach"],
        "by chance": rows[1]["groups that teach"],
    }
    report.finish("learning", rows, figures, options.record)


def least(shares, window=10):
    """The smallest mean over so many steps in a row."""
    return min(statistics.mean(shares[i : i + window]) for i in range(max(1, len(shares) - window + 1)))


if __name__ == "__main__":
    main()
