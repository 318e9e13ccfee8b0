"""The training rows as the trainer takes them."""

import math
from collections.abc import Sequence
from typing import Any

from grpo_kit.config import RunConfig
from grpo_kit.data import curriculum
from grpo_kit.environments.worlds.loading import Worlds
from grpo_kit.evaluation import screening
from grpo_kit.planning import memory
from grpo_kit.policy.chat import (
    completion_text,
    encode_prompt,
    prompts_open_thinking,
    render_prompt,
    template_conversations,
)
from grpo_kit.rewards.tools.routing import environment_of
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import Run
from grpo_kit.training.grpo.environment_sampler import find_shares


def training_rows(
    config: RunConfig, run: Run, tokenizer: Any, screened: bool | None = None, parts: Sequence[int] = ()
) -> list[dict[str, Any]]:
    """The rows that a run trains on, in their order.

    Args:
        config: the run's configuration.
        run: a run whose data is prepared.
        tokenizer: the policy's, whose chat template writes the prompt.
        screened: whether the screened rows are taken, in the order of the curriculum; None: where the run has them.
        parts: each `grpo.max_steps` that the run was trained with earlier, ascending. Screened rows keep the order of
            those parts; a curriculum over the further steps follows.

    Returns:
        The rows of the data file. `prompt` is the list of messages with the row's options, as the template takes them;
        `prompt_opened_think`, for rewards, says whether the prompt ends inside an open `<think>`.

    Raises:
        ValueError: the rows have changed since they were screened.
        FileNotFoundError: the data or the screened rows are gone.
    """
    if screened is None:
        screened = screening.is_screened(run)
    if screened:
        pool, ends = read_lines(run.screened), [prompts_in_run(config, steps) for steps in (*parts, None)]
        sigma, seed, rows = config.screening.sigma, config.run.seed, []
        shares = find_shares(list(dict.fromkeys(map(environment_of, pool))), config.data.mix)
        for name, share in shares.items():  # each has a curriculum of its own, as long as its share of the prompts
            own = [row for row in pool if environment_of(row) == name]
            cuts = [math.ceil(share * end) for end in ends]
            lengths = [end - start for start, end in zip([0, *cuts], cuts) if end > start]
            rows += [row for length in lengths for row in curriculum.order_rows(own, length, sigma, seed)]
    else:
        rows = read_lines(run.data_file("train"))
    thinking = config.policy.enable_thinking
    prompts = template_conversations(tokenizer, rows, thinking)
    opened = prompts_open_thinking(tokenizer, rows, thinking)
    columns = dict.fromkeys(key for row in rows for key in row)  # the rows of another environment lack some
    return [
        dict.fromkeys(columns) | row | {"prompt": messages, "prompt_opened_think": opens}
        for row, messages, opens in zip(rows, prompts, opened, strict=True)
    ]


def order_of_draw(config: RunConfig, screened: bool) -> str:
    """How prompts are drawn: `grpo.draw`, except that screened rows replace `useful` by their own order."""
    return "in_order" if screened and config.grpo.draw == "useful" else config.grpo.draw


def prompts_in_run(config: RunConfig, steps: int | None = None) -> int:
    """How many prompts all steps take, a repeated prompt counted each time, replacements of flat groups not counted."""
    grpo = config.grpo
    per_step = grpo.per_device_train_batch_size * grpo.gradient_accumulation_steps // grpo.num_generations
    return -(-(steps or grpo.max_steps) // grpo.num_iterations) * per_step


def longest_prompts(config: RunConfig, tokenizer: Any, rows: list[dict[str, Any]], worlds: Worlds) -> list[list[int]]:
    """Token ids of the longest prompts, the longest first, as many as a step samples at most.

    What a row's world adds to its prompt, its tools and its text, counts. Candidates are the longest by characters, of
    each environment with a world and of the other rows; tokens are counted for those only. Fewer rows are repeated.
    """
    count = memory.sampled_at_once(config.grpo) // config.grpo.num_generations
    thinking, ids = config.policy.enable_thinking, []
    by_world: dict[str | None, list[dict[str, Any]]] = {}
    for row in rows:
        name = environment_of(row)
        by_world.setdefault(name if name in worlds.classes else None, []).append(row)
    for own in by_world.values():
        for row in sorted(own, key=lambda row: -len(completion_text(row["prompt"])))[: max(count, 64)]:
            _, prompt = worlds.begin(row, row["prompt"])
            ids.append(encode_prompt(tokenizer, prompt, thinking, worlds.tools_of(row)))
    ids.sort(key=len, reverse=True)
    return [ids[i % len(ids)] for i in range(count)]


def longest_row(config: RunConfig, run: Run, tokenizer: Any) -> int:
    """Tokens of the longest row of GRPO: the longest training prompt, and a completion of full length.

    Args:
        config: gives `grpo.max_completion_length`, or that of the longest context stage.
        run: a run whose data is prepared.
        tokenizer: the policy's.
    """
    thinking = config.policy.enable_thinking
    prompts = [
        render_prompt(
            tokenizer, row["prompt"], thinking if row.get("enable_thinking") is None else row["enable_thinking"]
        )
        for row in read_lines(run.data_file("train"))
    ]
    lengths = [stage.max_completion_length for stage in config.grpo.stages] or [config.grpo.max_completion_length]
    return max(map(len, tokenizer(prompts, add_special_tokens=False)["input_ids"])) + max(lengths)
