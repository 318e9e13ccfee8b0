"""How soon is the embedded policy right in 85 of 100? A bare TRL script with its defaults, the same with our settings, the kit.

Held-out accuracy is measured on the validation problems every few steps, with the clock stopped; seconds are of training alone.
A run that does not get there in the steps given counts with all its seconds, which flatters it. The three take turns, seed
by seed. Bars: the kit takes at most half the seconds of the bare script; its groups teach in 0.9 of cases or more where
groups drawn by chance fall below 0.6.
"""

import statistics
import sys
import tempfile
import time
from pathlib import Path

import datasets
from transformers import PrinterCallback, TrainerCallback, set_seed

sys.path.insert(0, str(Path(__file__).parent))
import report

from grpo_kit import config, data, evaluate, policy, reward_files, train, workspace

GOAL, LOOK = 0.85, 4  # accuracy; steps between looks


class Watch(TrainerCallback):
    """Accuracy by seconds of training; ends the run once it is GOAL."""

    def __init__(self, chosen, run, verifier, tokenizer):
        self.look = lambda model: evaluate.scores(
            model, tokenizer, workspace.read_lines(run.rows("val")), verifier, chosen
        )
        self.seconds, self.since, self.reached, self.flat = 0.0, 0.0, None, []

    def on_step_begin(self, args, state, control, **kwargs):
        self.since = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "frac_reward_zero_std" in logs:
            self.flat.append(1 - logs.get("useful/share", 1 - logs["frac_reward_zero_std"]))

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.seconds += time.perf_counter() - self.since
        if self.reached is None and state.global_step % LOOK == 0:
            scores = [score for score in self.look(model).values() if score is not None]
            model.train()
            self.accuracy = sum(scores) / len(scores)
            if self.accuracy >= GOAL:
                self.reached = (state.global_step, self.seconds)


def bare(chosen, run, rewards, defaults):
    """What a user would write with TRL and PEFT alone; with `defaults`, TRL's own for all that is not a size."""
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    model, tokenizer = policy.load_policy(chosen.policy)
    rows = [{"prompt": row["prompt"], "answer": row["answer"]} for row in workspace.read_lines(run.rows("train"))]
    args = train.to_trl(chosen, run.path / "bare")
    if defaults:
        args = GRPOConfig(
            output_dir=str(run.path / "bare"), max_steps=chosen.grpo.max_steps, num_generations=8, per_device_train_batch_size=64,
            max_completion_length=40, seed=chosen.run.seed, bf16=False, report_to="none", logging_steps=1, save_strategy="no",
            disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
    set_seed(chosen.run.seed)
    trainer = GRPOTrainer(
        model=model, reward_funcs=rewards, args=args, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer,
        peft_config=LoraConfig(
            r=chosen.lora.r, lora_alpha=chosen.lora.lora_alpha, target_modules=list(chosen.lora.target_modules), task_type="CAUSAL_LM"
        ),
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def main():
    asked = report.arguments(__doc__)
    seeds, steps = ((1,), 8) if asked.quick else ((1, 2, 3), 40)
    builders = {
        "bare TRL, its defaults": lambda *given: bare(*given, defaults=True),
        "bare TRL, our settings": lambda *given: bare(*given, defaults=False),
        "grpo_kit": train.make_trainer,
    }
    found = {name: [] for name in builders}
    for seed in seeds:
        for name, build in builders.items():
            options = [f"grpo.max_steps={steps}", "grpo.resample_budget=3", f"run.seed={seed}", "run.report_to=[none]"]
            chosen = config.load_config(["tiny"], options)
            run = workspace.open_run("learning", tempfile.mkdtemp())
            data.prepare(chosen, run)
            rewards = [reward_files.load_reward(spec) for spec in chosen.grpo.reward_funcs]
            trainer = build(chosen, run, rewards)
            watch = Watch(chosen, run, rewards[0], trainer.processing_class)
            trainer.add_callback(watch)
            trainer.train()
            found[name].append(watch)
    rows = []
    for name, watches in found.items():
        reached = [watch.reached for watch in watches if watch.reached]
        to_goal = [watch.reached[1] if watch.reached else watch.seconds for watch in watches]
        rows.append(
            {
                "trainer": name, f"reached {GOAL}": f"{len(reached)} of {len(watches)}",
                "steps": "/".join(str(watch.reached[0]) if watch.reached else f">{steps}" for watch in watches),
                "median seconds": f"{statistics.median(to_goal):.1f}",
                "groups that teach": f"{1 - statistics.mean(f for watch in watches for f in watch.flat):.3f}",
            }
        )  # fmt: skip
    kit, plain = float(rows[2]["median seconds"]), float(rows[0]["median seconds"])
    figures = {
        "ratio": round(kit / plain, 3),
        "bar": 0.5,
        "teach": rows[2]["groups that teach"],
        "by chance": rows[1]["groups that teach"],
    }
    report.finish("learning", rows, figures, asked.record)


if __name__ == "__main__":
    main()
