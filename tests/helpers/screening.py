"""Runs whose training rows are right with known chances, and the rewards that judge them."""

import json

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import find_run

FEW = ["data.val_size=0", "data.test_size=1", "evaluation.batch_size=12"]


def right_reward(completions, **columns):
    """Stands in for a verifier: `right` is right; a gold of `none` cannot be used."""
    pairs = zip(completions, columns["answer"], strict=True)
    return [None if gold == "none" else float(turns[0]["content"] == "right") for turns, gold in pairs]


def wrong_reward(completions, **columns):
    return [0.0] * len(completions)


def prepared(tmp_path, chances, *overrides, answers=None, name="r"):
    """(config, run) whose training rows are right with these chances; a row more is there, and one is held out."""
    path = tmp_path / f"{name}.jsonl"
    lines = [
        {"prompt": f"{c} {i}", "answer": (answers or {}).get(i, "1")} for i, c in enumerate([*chances, chances[-1]])
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    chosen = config.load_config(["tiny"], [f"data.source={path}", *FEW, *overrides])
    run = find_run(name, tmp_path / "runs")
    prepare(chosen, run)
    return chosen, run


def chance_of(row):
    return float(row["prompt"][-1]["content"].split()[0])


def by_id(run):
    return {line["id"]: line for line in read_lines(run.screening)[1:]}
