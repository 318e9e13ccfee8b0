"""Sampling groups of completions: the kit's loop against transformers' own `generate`, on the embedded policy.

The two alternate on the same prompts. Each round starts from one seed, so both draw the same completions. Prompts are
one line with the question (`short`), or the question after worked examples, like few-shot prompts (`long`).
Bar: not slower than transformers where nothing can be saved (`alone`: each prompt once, all completions of one length).
"""

import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
import report

from grpo_kit import config
from grpo_kit.nemotron import tiny
from grpo_kit.policy.chat import build_messages
from grpo_kit.policy.load import load_policy

QUICK_ROUNDS, ROUNDS = 5, 40


class Work(NamedTuple):
    """What is sampled: prompts, completions of each, worked examples in a prompt, whether all have the full length."""

    prompts: int
    completions: int
    examples: int
    full_length: bool


WORKS = {"short": Work(8, 8, 0, False), "long": Work(8, 8, 8, False), "alone": Work(64, 1, 0, True)}


def make_batch(tokenizer, work, seed):
    """Left-padded ids and mask, each prompt as often in a row as it has completions, as TRL orders them."""
    rows, conversations = tiny.draw_rows(work.prompts * (work.examples + 1), seed), []
    for start in range(0, len(rows), work.examples + 1):
        *examples, last = rows[start : start + work.examples + 1]
        text = "".join(f"{row['prompt']} {row['answer']}\n" for row in examples) + last["prompt"]
        conversations += [build_messages(text)] * work.completions
    return tokenizer.apply_chat_template(
        conversations, add_generation_prompt=True, return_dict=True, padding=True, return_tensors="pt"
    )


def main():
    import torch

    arguments = report.arguments(__doc__)
    rounds = QUICK_ROUNDS if arguments.quick else ROUNDS
    model, tokenizer = load_policy(config.Policy())
    loops = {"transformers": type(model).generate, "grpo_kit": lambda model, **settings: model.generate(**settings)}
    rows, figures = [], {}
    for name, work in WORKS.items():
        seconds, sequences, equal, stats = {loop: [] for loop in loops}, {}, True, []
        settings = {"max_new_tokens": 40, "do_sample": True, "pad_token_id": 0}
        if work.full_length:
            settings["suppress_tokens"] = [11]  # the end token
        for number in range(rounds + 1):
            batch = make_batch(tokenizer, work, number)
            for loop, generate in list(loops.items())[:: 1 if number % 2 == 0 else -1]:
                torch.manual_seed(number)
                started = time.perf_counter()
                sequences[loop] = generate(model, **batch, **settings)
                seconds[loop].append(time.perf_counter() - started)
                if loop == "grpo_kit":
                    stats.append(model.last_sampling)
            equal &= torch.equal(*sequences.values())
        median = {loop: statistics.median(times[1:]) for loop, times in seconds.items()}  # the first round warms up
        ratio = statistics.median(a / b for a, b in zip(seconds["grpo_kit"][1:], seconds["transformers"][1:]))
        all_steps, row_steps = sum(s.row_steps_of_all for s in stats), sum(s.row_steps for s in stats)
        figures |= {f"{name}_ratio": round(ratio, 3), f"{name}_row_steps": round(row_steps / all_steps, 3)}
        for loop, value in median.items():
            ours = loop == "grpo_kit"
            rows.append({
                "work": name, "loop": loop, "median, ms": f"{1e3 * value:.1f}",
                "prompts read": sum(s.prompts if ours else s.rows for s in stats),
                "row-steps": row_steps if ours else all_steps,
                "tokens": sum(s.tokens for s in stats), "same tokens": equal,
            })  # fmt: skip
    report.finish("sampling", rows, {**figures, "rounds": rounds, "bar_alone": 1.05}, arguments.record)


if __name__ == "__main__":
    main()
