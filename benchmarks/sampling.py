"""Sampling a batch of groups: the kit's loop against transformers' own `generate`, on the embedded policy.

The two take turns on the same prompts, each round from one seed, so both draw the same completions. Prompts are one line
with the question in it (`short`), or the same behind worked examples, as few-shot prompts are (`long`).
Bar: no slower than transformers where nothing can be saved (`alone`: every prompt once, all of one length).
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import report

from grpo_kit import config
from grpo_kit.nemotron import tiny
from grpo_kit.policy.load import load_policy

# prompts x completions of each, worked examples before the question, whether every completion has the full length
WORK = {"short": (8, 8, 0, False), "long": (8, 8, 8, False), "alone": (64, 1, 0, True)}


def ask(tokenizer, prompts, times, shots, seed):
    """Left-padded ids and mask, every prompt `times` in a row, as TRL has them."""
    drawn, texts = tiny.draw_rows(prompts * (shots + 1), seed), []
    for i in range(0, len(drawn), shots + 1):
        *shown, last = drawn[i : i + shots + 1]
        said = "".join(f"{row['prompt']} {row['answer']}\n" for row in shown) + last["prompt"]
        texts += [[{"role": "user", "content": said}]] * times
    return tokenizer.apply_chat_template(
        texts, add_generation_prompt=True, return_dict=True, padding=True, return_tensors="pt"
    )


def main():
    import torch

    asked = report.arguments(__doc__)
    rounds = 5 if asked.quick else 40
    model, tokenizer = load_policy(config.Policy())
    loops = {"transformers": type(model).generate, "grpo_kit": lambda model, **how: model.generate(**how)}
    rows, figures = [], {}
    for work, (prompts, times, shots, full) in WORK.items():
        seconds, drawn, equal, seen = {name: [] for name in loops}, {}, True, []
        how = {"max_new_tokens": 40, "do_sample": True, "pad_token_id": 0} | ({"suppress_tokens": [11]} if full else {})
        for number in range(rounds + 1):
            batch = ask(tokenizer, prompts, times, shots, number)
            for name, loop in list(loops.items())[:: 1 if number % 2 == 0 else -1]:
                torch.manual_seed(number)
                started = time.perf_counter()
                drawn[name] = loop(model, **batch, **how)
                seconds[name].append(time.perf_counter() - started)
                if name == "grpo_kit":
                    seen.append(model.last_sampling)
            equal &= torch.equal(*drawn.values())
        median = {name: statistics.median(times[1:]) for name, times in seconds.items()}  # the first round warms up
        ratio = statistics.median(a / b for a, b in zip(seconds["grpo_kit"][1:], seconds["transformers"][1:]))
        of_all, run = sum(s.row_steps_of_all for s in seen), sum(s.row_steps for s in seen)
        figures |= {f"{work}_ratio": round(ratio, 3), f"{work}_row_steps": round(run / of_all, 3)}
        for name, value in median.items():
            kit = name == "grpo_kit"
            rows.append({
                "work": work, "loop": name, "median, ms": f"{1e3 * value:.1f}",
                "prompts read": sum(s.prompts if kit else s.rows for s in seen), "row-steps": run if kit else of_all,
                "tokens": sum(s.tokens for s in seen), "same tokens": equal,
            })  # fmt: skip
    report.finish("sampling", rows, {**figures, "rounds": rounds, "bar_alone": 1.05}, asked.record)


if __name__ == "__main__":
    main()
