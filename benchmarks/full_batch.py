"""Completions of unequal length: a batch that stays full against one batch after the other, and against all at once.

The embedded policy completes prompts greedily, to lengths that are drawn once: log-normal with the longest about ten
times the shortest, as a reasoning model's are. All ways use the same decoder, and in all of them finished rows leave
the batch. Counted are the decoding steps and the rows in them.

An evaluation has 256 prompts and room for 8 at a time. A step with replacements has a group of 8 and a spare one, and
room for both, since training needs more memory than sampling does. So the question there is whether the spare group
should wait for places; it should not.
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import report

from grpo_kit import config
from grpo_kit.nemotron import tiny
from grpo_kit.nemotron.decoding import one_token
from grpo_kit.policy import continuous_batch, generate
from grpo_kit.policy.chat import build_messages, encode_prompt
from grpo_kit.policy.load import load_policy

PROMPTS, QUICK_PROMPTS, ROWS = 256, 64, 8
MEDIAN, SPREAD, SHORTEST, LONGEST = 40, 0.6, 12, 120  # tokens; the spread is of the logarithm
ROUNDS, QUICK_ROUNDS = 5, 1


def main() -> None:
    import numpy as np

    arguments = report.arguments(__doc__)
    count = QUICK_PROMPTS if arguments.quick else PROMPTS
    model, tokenizer = load_policy(config.Policy())
    prompts = [encode_prompt(tokenizer, build_messages(row["prompt"]), True) for row in tiny.draw_rows(count, 1)]
    lengths = np.random.default_rng(1).lognormal(np.log(MEDIAN), SPREAD, count).clip(SHORTEST, LONGEST)
    limits = [round(length) for length in lengths]

    def sample(size: int, together: int) -> list[list[int]]:
        """`size` prompts in one call, `together` of them at a time."""
        return [
            completion
            for start in range(0, count, size)
            for completion in continuous_batch.sample_rows(
                model, prompts[start : start + size], limits[start : start + size], [], 0, together, do_sample=False
            )
        ]

    ways = {  # name: prompts in a call, prompts at a time; the first of each pair is what it is compared with
        "evaluation, batch after batch": (ROWS, ROWS),
        "evaluation, stays full": (generate.BATCHES * ROWS, ROWS),
        "step, both groups at once": (2 * ROWS, 2 * ROWS),
        "step, the spare one waits": (2 * ROWS, ROWS),
    }
    seconds, steps, completions = {way: [] for way in ways}, {}, {}
    for number in range(QUICK_ROUNDS if arguments.quick else ROUNDS):
        for way, sizes in list(ways.items())[:: 1 if number % 2 == 0 else -1]:
            started = time.process_time()
            with count_steps() as rows:
                completions[way] = sample(*sizes)
            seconds[way].append(time.process_time() - started)
            steps[way] = [len(rows), sum(rows)]
    medians = {way: statistics.median(times) for way, times in seconds.items()}
    table = [
        {
            "way": way,
            "decoding steps": taken,
            "rows in a step": f"{rows / taken:.2f} of {ways[way][1]}",
            "processor s": f"{medians[way]:.2f}",
            "tokens": sum(map(len, completions[way])),
        }
        for way, (taken, rows) in sorted(steps.items())
    ]
    names, figures = list(ways), {"same_tokens": len({str(drawn) for drawn in completions.values()}) == 1}
    for name, before, now in (("evaluation", *names[:2]), ("step", *names[2:])):
        figures[f"{name}_steps_ratio"] = round(steps[now][0] / steps[before][0], 3)
        figures[f"{name}_seconds_ratio"] = round(medians[now] / medians[before], 3)
    report.finish("full_batch", table, figures | {"prompts": count}, arguments.record)


class count_steps:
    """Counts the rows of each decoding step."""

    def __enter__(self) -> list[int]:
        self.step, rows = one_token.Decoder.step, []

        def step(decoder, tokens):
            rows.append(len(tokens))
            return self.step(decoder, tokens)

        one_token.Decoder.step = step
        return rows

    def __exit__(self, *_) -> None:
        one_token.Decoder.step = self.step


if __name__ == "__main__":
    main()
