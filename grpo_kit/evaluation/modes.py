"""Accuracy and thinking by mode: with thinking on, off, and within budgets, on the same held-out problems.

A mode of `evaluation.modes` is one of

- `on` and `off`: the chat template's `enable_thinking`;
- a number of tokens, such as 128: thinking is on, and the prompt states the budget as training rows do;
- `cut` and a number, such as `cut128`: thinking is on, and a thought of so many tokens is closed by force.

Each is a measurement of its own beside the run's, `evaluation/before_off.json` for example, and is resumed and
recognised as the others are. The run's own measurement does not depend on the modes.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from grpo_kit.config import Policy, RunConfig
from grpo_kit.data.splits import state_budget
from grpo_kit.evaluation import changes
from grpo_kit.evaluation.intervals import lengths_interval, mean_interval
from grpo_kit.evaluation.problem_sets import Problem
from grpo_kit.policy import vllm_engine
from grpo_kit.runs.files import list_differences
from grpo_kit.runs.reading import read_json
from grpo_kit.runs.run import Run

Report = dict[str, Any]
OpenEngine = Callable[[RunConfig, Path | None, int | None], tuple[Any, str]]


def budget_of_mode(mode: str) -> int | None:
    """Tokens of thinking in a mode, None in `on` and `off`.

    >>> [budget_of_mode(mode) for mode in ("on", "off", "128", "cut64")]
    [None, None, 128, 64]
    """
    return int(mode.removeprefix("cut")) if mode not in ("on", "off") else None


def name_of(stage: str, mode: str) -> str:
    """The name of the measurement of a mode."""
    return f"{stage}_{mode}"


def policy_of(policy: Policy, mode: str) -> Policy:
    """The run's policy in a mode. Its own `enable_thinking` and `thinking_budget` do not matter."""
    forced = str(budget_of_mode(mode)) if mode.startswith("cut") else None
    return replace(policy, enable_thinking=mode != "off", thinking_budget=forced)


def problem_in(problem: Problem, mode: str) -> Problem:
    """A problem as a mode asks it. Options of the row itself are left out."""
    row = {name: value for name, value in problem.row.items() if name not in ("enable_thinking", "token_budget")}
    prompt = [{key: value for key, value in turn.items() if key != "enable_thinking"} for turn in problem.prompt]
    if mode.isdigit():
        row, prompt = row | {"token_budget": int(mode)}, state_budget(prompt, int(mode))
    return problem._replace(prompt=prompt, row=row)


def open_once() -> OpenEngine:
    """`vllm_engine.open_engine` for measurements of one policy, which loads it once; two engines are never held."""
    held: dict[bool, tuple[Any, str]] = {}

    def open_engine(config: RunConfig, adapter: Path | None, max_model_len: int | None) -> tuple[Any, str]:
        key = config.evaluation.use_vllm
        if key not in held:
            held.clear()
            held[key] = vllm_engine.open_engine(config, adapter, max_model_len)
        return held[key]

    return open_engine


def in_order(modes: list[str]) -> list[str]:
    """The modes that may be sampled by vLLM first, so that among them the policy is loaded twice at most."""
    return sorted(modes, key=lambda mode: mode.startswith("cut"))


def summarise(report: Report, mode: str) -> Report:
    """The figures of a mode.

    Args:
        report: what the measurement of the mode has written.
        mode: its name.

    Returns:
        `pass@1` with `ci95` over `n` problems; `thinking`, mean tokens of thinking in a completion, with
        `thinking_ci95`; for a mode with a budget `within`, the share of completions whose thought ends within it, with
        `within_ci95`.
    """
    lengths = [sum(each) / len(each) for each in (problem["thinking"] for problem in report["problems"])]
    figures = {key: report[key] for key in ("pass@1", "ci95", "n")}
    figures |= {
        "thinking": sum(lengths) / len(lengths),
        "thinking_ci95": list(lengths_interval(lengths, 0.0, max(lengths))),
    }
    if (budget := budget_of_mode(mode)) is not None:
        kept = [
            sum(length <= budget and "</think>" in text for length, text in zip(p["thinking"], p["completions"]))
            / len(p["thinking"])
            for p in report["problems"]
        ]
        figures |= {"within": sum(kept) / len(kept), "within_ci95": list(mean_interval(kept))}
    return figures


def compare_modes(run: Run, before: str, after: str) -> dict[str, Report]:
    """Compare two measured policies of a run in each mode, problem by problem.

    Args:
        run: the run.
        before, after: the names of the two measurements, such as `before` and `after_sft`.

    Returns:
        {mode: `before` and `after` as `summarise` makes them; the difference in accuracy as `changes.compare_scores`
        makes it, without its sentence; `thinking_difference` in tokens, with `thinking_difference_ci95`}. A mode that
        is measured on one side only, or with other settings, is left out.

    Raises:
        ValueError, FileNotFoundError: a file was changed or is gone.
    """
    stages, compared = run.stages(), {}
    for name in stages:
        mode = name.removeprefix(name_of(before, ""))
        other = name_of(after, mode)
        if mode == name or other not in stages or not is_mode(mode):
            continue
        if list_differences(stages[name]["settings"], stages[other]["settings"]):
            continue
        for stage in (name, other):
            run.require_stage(stage, "grpo-kit evaluate")
        reports = [read_json(run.evaluation / f"{stage}.json") for stage in (name, other)]
        old, new = ({problem["id"]: problem for problem in report["problems"]} for report in reports)
        compared[mode] = dict(zip(("before", "after"), (summarise(report, mode) for report in reports)))
        compared[mode] |= changes.compare_scores(*({key: p["score"] for key, p in side.items()} for side in (old, new)))
        del compared[mode]["words"]
        lengths = [[sum(side[key]["thinking"]) / len(side[key]["thinking"]) for key in old] for side in (old, new)]
        compared[mode] |= {
            "thinking_difference": (sum(lengths[1]) - sum(lengths[0])) / len(old),
            "thinking_difference_ci95": list(changes.length_difference_interval(*lengths)),
        }
    return compared


def is_mode(text: str) -> bool:
    """Whether a text is the name of a mode."""
    return text in ("on", "off") or text.removeprefix("cut").isdigit()
