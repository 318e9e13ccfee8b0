"""Score completions with the verifier: a problem's score is the share of its samples that get reward 1."""

from collections.abc import Sequence
from typing import Any

from grpo_kit.config import RunConfig
from grpo_kit.environments.worlds.loading import Worlds, load_worlds
from grpo_kit.evaluation import calls, results
from grpo_kit.evaluation.problem_sets import Problem
from grpo_kit.policy.chat import prompts_open_thinking
from grpo_kit.policy.episodes import sample_completions
from grpo_kit.policy.generate import Sample
from grpo_kit.rewards.tools.calling import Reward, call_reward
from grpo_kit.rewards.tools.loading import answer_reader
from grpo_kit.rewards.tools.routing import environment_of


def score_rows(
    model: Any, tokenizer: Any, rows: Sequence[dict[str, Any]], verifier: Reward, config: RunConfig
) -> dict[str, float | None]:
    """Score held-out rows with a policy in memory, for example in the middle of a training.

    Args:
        model: the policy; its training mode and torch's random state stay as they are.
        tokenizer: the policy's tokenizer.
        rows: data rows with `id`, `prompt` and `answer`.
        verifier: the reward function that judges answers.
        config: its `evaluation` section says how to sample.

    Returns:
        {row id: score in [0, 1]}, None where the verifier cannot use the reference answer.
    """
    evaluation, thinking, tries = config.evaluation, config.policy.enable_thinking, config.evaluation.num_generations
    problems = [Problem("", row["prompt"], {k: v for k, v in row.items() if k != "prompt"}) for row in rows]
    repeated, worlds = [row for row in rows for _ in range(tries)], load_worlds(config, set(map(environment_of, rows)))
    samples = sample_completions(
        model, tokenizer, [row["prompt"] for row in repeated], evaluation, config.run.seed, thinking,
        budgets=[config.policy.budget_of(row) for row in repeated],
        **{"rows": repeated, "worlds": worlds} if worlds.classes else {},
    )  # fmt: skip
    judged = judge_problems(verifier, tokenizer, problems, samples, tries, thinking, worlds)
    return {problem["id"]: problem["score"] for problem in judged}


def call_verifier(
    verifier: Reward,
    tokenizer: Any,
    rows: Sequence[dict[str, Any]],
    samples: Sequence[Sample],
    enable_thinking: bool,
    worlds: Worlds | None = None,
) -> list[float | None]:
    """The reward of each row's sample. The verifier is called as TRL calls it; a column that a row lacks is None.

    Where rows have worlds, the verifier also gets `environments`: each row's, as its sample left it. The recorded calls
    bring it there, so it makes no difference whether the sample was drawn now or before an interruption.
    """
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "prompt"))
    more = {}
    if worlds and worlds.classes:
        pairs = zip(rows, samples, strict=True)
        more["environments"] = [worlds.replay(row, row["prompt"], sample.turns) for row, sample in pairs]
    return call_reward(
        verifier,
        completions=[s.turns or [{"role": "assistant", "content": s.text}] for s in samples],
        prompts=[row["prompt"] for row in rows],
        prompt_opened_think=prompts_open_thinking(tokenizer, rows, enable_thinking),
        **{key: [row.get(key) for row in rows] for key in columns},
        **more,
    )


def judge_problems(
    verifier: Reward,
    tokenizer: Any,
    problems: list[Problem],
    samples: list[Sample],
    tries: int,
    thinking: bool,
    worlds: Worlds,
) -> list[dict[str, Any]]:
    """Each problem with its samples and rewards; with a majority vote if the verifier can read final answers."""
    rows = [problem.row | {"prompt": problem.prompt} for problem in problems for _ in range(tries)]
    rewards = call_verifier(verifier, tokenizer, rows, samples, thinking, worlds)
    answers, read_answer = None, answer_reader(verifier) if tries > 1 else None
    if read_answer:
        columns = [{key: value for key, value in row.items() if key not in ("prompt", "answer")} for row in rows]
        opened = prompts_open_thinking(tokenizer, rows, thinking)
        answers = [
            read_answer(s.text, **row | {"prompt_opened_think": o})
            for s, row, o in zip(samples, columns, opened, strict=True)
        ]
    slices = [slice(start, start + tries) for start in range(0, len(samples), tries)]
    return [
        results.judge_problem(problem, samples[part], rewards[part], answers[part] if answers else None)
        | calls.mark_calls(problem, samples[part], worlds.tools_of(problem.row))
        for problem, part in zip(problems, slices, strict=True)
    ]
