"""A trained run's own right completions as texts to learn from: rejection sampling.

A completion is right where the verifier paid 1.0, as in every evaluation. Of each prompt the shortest are taken, and of
equally long ones the one that was sampled first. Left out are those of a question that several training rows ask, since
`completions.jsonl` keeps no system turn, and those that call a tool, which is wrong where none is offered.
"""

from typing import Any

from grpo_kit.config import MATH, RunConfig
from grpo_kit.policy.chat import completion_text
from grpo_kit.policy.tool_calls import has_call
from grpo_kit.rewards.tools.verdicts import is_right
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import Run, find_run
from grpo_kit.training.sft.conversations import Example, split_thought

Question = tuple[str, str]  # the prompt's last message and the row's answer, as `completions.jsonl` has them


def find_trained(name: str, run: Run) -> Run:
    """The run `name`, beside `run`.

    Raises:
        ValueError: the name is no name of a run, or that of `run`, which has no completions yet.
        FileNotFoundError: it has not trained with GRPO, or its completions or rows are gone.
    """
    other = find_run(name, run.root)
    if "train" not in other.stages():
        if other.path == run.path:
            raise ValueError(
                f"sft.source names run:{name}, the run itself, and GRPO has not trained it yet, so it has no "
                "completions. Name another run that GRPO has trained, or texts from elsewhere."
            )
        raise FileNotFoundError(
            f"sft.source names run:{name}, and GRPO has trained no run of this name in {run.root}. Name a run that it "
            f"has trained, or train this one first (`grpo-kit train --run {name}`)."
        )
    other.require_stage("train", f"grpo-kit train --run {name}")
    return other


def read_right(name: str, run: Run, config: RunConfig) -> tuple[list[Example], list[tuple[str, str]]]:
    """Read the best right completions of a run, at most `sft.completions_per_prompt` different ones of each prompt.

    Args:
        name: the run that sampled them.
        run: the run that is trained.
        config: gives `sft.completions_per_prompt`.

    Returns:
        The texts, in the order of that run's training rows; and (reason, sentence) of each right completion that could
        not be used.

    Raises:
        ValueError: no completion of the run is right; or its completions are damaged.
        FileNotFoundError: as `find_trained`.
    """
    other = find_trained(name, run)
    rows: dict[Question, list[dict[str, Any]]] = {}
    for row in read_lines(other.data_file("train")):
        rows.setdefault((completion_text(row["prompt"][-1:]), str(row.get("answer"))), []).append(row)
    verifiers, left_out = find_verifiers(other), []
    best: dict[Question, list[tuple[int, int, str]]] = {}
    lines = read_lines(other.completions)
    right = 0
    for line in lines:
        if not is_right(line["rewards"].get(verifiers[line.get("environment", MATH)])):
            continue
        right += 1
        question, text = (line["prompt"], str(line.get("answer"))), line["completion"]
        asked = f"{line['prompt'][:60]!r}"
        if question not in rows:
            left_out.append(("unknown prompt", f"{asked} is not among the run's training rows"))
        elif len(rows[question]) > 1:
            left_out.append(("several rows", f"{len(rows[question])} training rows ask {asked} and differ elsewhere"))
        elif line.get("turns"):
            left_out.append(("several turns", "it called tools, and its turns are not read"))
        elif has_call(text):
            left_out.append(("call", f"its reply to {asked} calls a tool, and this source offers none"))
        else:
            best.setdefault(question, []).append((len(text), line["step"], text))
    if not right:
        raise ValueError(
            f"sft.source names run:{name}, and none of its {len(lines)} completions is right, so there is nothing to "
            "learn. Name a run whose groups have right completions, or other texts."
        )
    examples = []
    for question, (row, *_) in rows.items():
        texts = list(dict.fromkeys(text for *_, text in sorted(best.get(question, []))))
        for text in texts[: config.sft.completions_per_prompt]:
            thought, answer = split_thought(text)
            if not answer.strip():
                left_out.append(("empty", "it has a thought and no answer"))
                continue
            reply = {"role": "assistant", "content": answer} | ({"reasoning_content": thought} if thought else {})
            place = f"run {name}, row {row['id']}"
            examples.append(Example(row["prompt"], reply, place, enable_thinking=row.get("enable_thinking")))
    return examples, left_out


def find_verifiers(run: Run) -> dict[str, str]:
    """The name that each environment's verifier has in `completions.jsonl`; its rewards lie side by side, it first."""
    settings = run.stages()["train"]["settings"]
    names, verifiers = list(settings["rewards"]), {}
    for environment in run.environments():
        section = settings["grpo"] if environment == MATH else settings["environments"][environment]
        verifiers[environment], names = names[0], names[len(section["reward_weights"]) :]
    return verifiers
