"""What the kit adds to a step of TRL: the same model, data and settings through a bare script and through the kit.

The two take turns, several rounds each, every round from the same seed. The prompts differ, because the kit draws its
own. A step is timed from its beginning to the beginning of the next, writing of metrics and completions included. The
bar is a ratio of 1.05.
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
from grpo_kit.rewards.tools import loading
from grpo_kit.runs.run import find_run
from grpo_kit.training import train


class Clock(TrainerCallback):
    """Seconds between the beginnings of consecutive steps; the first step, which warms up, is left out."""

    def __init__(self):
        self.begun = []

    def on_step_begin(self, *args, **kwargs):
        self.begun.append(time.perf_counter())

    def steps(self):
        return [b - a for a, b in zip(self.begun[1:], self.begun[2:])]


def main():
    options = report.arguments(__doc__)
    rounds, steps = (2, 12) if options.quick else (6, 22)
    equal = ["grpo.resample_budget=0", "grpo.draw=shuffled", "run.report_to=[none]"]  # the same work for both
    settings = config.load_config(["tiny"], [f"grpo.max_steps={steps}", *equal])
    run = find_run("overhead", tempfile.mkdtemp())
    prepare(settings, run)
    rewards = [loading.load_reward(spec) for spec in settings.grpo.reward_funcs]
    builders = {"bare TRL": bare.trainer, "grpo_kit.training.train": train.make_trainer}
    seconds = {name: [] for name in builders}
    for number in range(rounds):
        for name, build in list(builders.items())[:: 1 if number % 2 == 0 else -1]:
            trainer, clock = build(settings, run, rewards), Clock()
            trainer.add_callback(clock)
            trainer.train()
            seconds[name] += clock.steps()
    median = {name: statistics.median(times) for name, times in seconds.items()}
    ratio = median["grpo_kit.training.train"] / median["bare TRL"]
    rows = [
        {
            "trainer": name,
            "median step, ms": f"{1e3 * median[name]:.1f}",
            "steps": len(times),
            "min, ms": f"{1e3 * min(times):.1f}",
        }
        for name, times in seconds.items()
    ]
    report.finish("trainer_overhead", rows, {"ratio": round(ratio, 4), "bar": 1.05}, options.record)


if __name__ == "__main__":
    main()
