"""Accuracy on held-out rows while a policy trains."""

from typing import Any

from grpo_kit.config import RunConfig
from grpo_kit.evaluation.intervals import mean_interval
from grpo_kit.evaluation.scores import score_rows
from grpo_kit.rewards.tools.calling import Reward
from grpo_kit.rewards.tools.routing import environment_of
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import Run


def measure_held_out(config: RunConfig, run: Run, model: Any, tokenizer: Any, verifier: Reward) -> dict[str, Any]:
    """Accuracy on the validation rows with its 95 % interval; empty without rows (`data.val_size=0`) or golds.

    Where there are several environments, also the accuracy and interval of each, as `held_out/NAME`.
    """
    rows = read_lines(run.data_file("val"))
    scores = score_rows(model, tokenizer, rows, verifier, config) if rows else {}
    by_environment: dict[str, list[float]] = {}
    for row in rows:
        if scores[row["id"]] is not None:
            by_environment.setdefault(environment_of(row), []).append(scores[row["id"]])
    judged = [score for own in by_environment.values() for score in own]
    figures = {"held_out": judged} if judged else {}
    if len(by_environment) > 1:
        figures |= {f"held_out/{name}": own for name, own in by_environment.items()}
    means = {name: sum(values) / len(values) for name, values in figures.items()}
    return means | {f"{name}_ci95": list(mean_interval(values)) for name, values in figures.items()}
