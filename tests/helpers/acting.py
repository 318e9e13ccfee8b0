"""A run of sums and of the counter's world, whose replies follow a script: the embedded policy cannot call tools."""

import json
from pathlib import Path

import trl

from grpo_kit.config import load_config
from grpo_kit.data.preparation import prepare
from grpo_kit.policy import generation_loop
from grpo_kit.policy.generate import TransformersEngine
from grpo_kit.runs.run import find_run
from tests.helpers import counter_world
from tests.helpers.counter_world import call, results_in, turn

WORLD = Path(counter_world.__file__)
SETTINGS = [
    "data.limit=40", "data.test_size=8", "data.val_size=4", "grpo.max_steps=2", "grpo.num_generations=4",
    "grpo.per_device_train_batch_size=16", "grpo.resample_budget=0", "grpo.max_completion_length=400",
    "evaluation.max_completion_length=400", "grpo.eval_steps=0", "grpo.reward_weights=[1.0]",
    "grpo.reward_funcs=[math_answer.py]", f"environments.counter.reward_funcs=['{WORLD}:end_reward']",
    f"environments.counter.environment_factory='{WORLD}:Counter'", "run.report_to=[]",
]  # fmt: skip


def make_rows(folder, count=40):
    """A file of `count` tasks in the counter's world."""
    path = folder / "counter.jsonl"
    lines = [
        {"environment": "counter", "prompt": counter_world.PROMPT.format(goal), "goal": goal}
        for goal in range(1, count + 1)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def settings_of(folder, *overrides, sources="tiny-sums,"):
    """What `prepared` sets."""
    return [*SETTINGS, f"data.source={sources}{make_rows(folder)}", *overrides]


def prepared(folder, *overrides, sources="tiny-sums,"):
    """(config, run) with prepared rows of sums, half of them, and of the counter."""
    chosen = load_config(["tiny"], settings_of(folder, *overrides, sources=sources))
    run = find_run("r", folder / "runs")
    prepare(chosen, run)
    return chosen, run


def reply_to(text, number):
    """What the policy says to a prompt, as the `number`-th of its batch: the right acts, or wrong ones."""
    if "Add up to" not in text:
        left, sign, right = text.split("What is ")[1].split("?")[0].split()
        answer = int(left) + int(right) * (1 if sign == "+" else -1)
        return turn(said=rf"\boxed{{{answer + number % 2}}}")
    goal, results = int(text.split("Add up to ")[1].split(".")[0]), results_in(text)
    if len(results) == 1:
        return turn(said="done")
    if not results:
        return turn(call("look"), call("add", n=goal // 2), thought="half")
    if len(results) == 2:
        return turn(call("add", n=goal - goal // 2 + number % 2))
    return turn(said="done")


def short_reply_to(text, number):
    """The same with one call."""
    if "Add up to" not in text or results_in(text):
        return reply_to(text, number)
    return turn(call("add", n=int(text.split("Add up to ")[1].split(".")[0]) + number % 2))


def follow_script(monkeypatch, script=reply_to):
    """Let training draw the tokens of `script(prompt, number)`, through the policy's own passes; returns the prompts.

    Each call of the sampler appends the texts of its prompts to the list.
    """
    plain, plain_draw, calls = trl.GRPOTrainer._generate_single_turn, generation_loop.draw_tokens, []
    waiting: list[list[int]] = []

    def generate(self, prompt_ids, *args, **kwargs):
        tokenizer = self.processing_class
        texts = [tokenizer.decode(ids) for ids in prompt_ids]
        calls.append(texts)
        replies = [tokenizer.encode(script(text, i), add_special_tokens=False) for i, text in enumerate(texts)]
        waiting[:] = [list(column) for column in zip(*(pad(reply, max(map(len, replies))) for reply in replies))]
        outcome = plain(self, prompt_ids, *args, **kwargs)
        waiting.clear()
        return outcome

    def draw(probabilities, part_of):
        if not waiting:
            return plain_draw(probabilities, part_of)
        return probabilities.new_tensor(waiting.pop(0)).long()

    monkeypatch.setattr(trl.GRPOTrainer, "_generate_single_turn", generate)
    monkeypatch.setattr(generation_loop, "draw_tokens", draw)
    return calls


def pad(ids, length):
    return ids + [0] * (length - len(ids))


def follow_script_in_evaluation(monkeypatch, script=reply_to):
    """Let the engine of evaluations say what `script(prompt, number)` says; returns [(prompts, limits, seed)]."""
    calls = []

    def sample_ids(self, prompt_ids, limits, seed, streamer=None, on_finish=None, budgets=None):
        texts = [self.tokenizer.decode(ids) for ids in prompt_ids]
        calls.append((texts, limits, seed))
        replies = [self.tokenizer.encode(script(text, i), add_special_tokens=False) for i, text in enumerate(texts)]
        return [reply[:limit] for reply, limit in zip(replies, limits, strict=True)]

    monkeypatch.setattr(TransformersEngine, "sample_ids", sample_ids)
    return calls
