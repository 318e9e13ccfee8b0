"""How a run asked, sampled and measured its policy, from its own record: `run.json`, its rows, `evaluation/*.json`.

Settings that somebody gives today change nothing of it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from grpo_kit.config import MATH, Policy, RunConfig
from grpo_kit.config.load import keep_finished_settings
from grpo_kit.config.protocols import PROTOCOLS
from grpo_kit.publishing.public_record import list_texts
from grpo_kit.publishing.run_facts import METHODS, list_measurements, name_measurement, read_measurements
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import Run
from grpo_kit.runs.session import load_run_config
from grpo_kit.runs.trained import MEASURED


class Sampling(NamedTuple):
    """How completions were sampled.

    Attributes:
        when: `as it was measured`, or `as in training`.
        temperature, top_p, top_k: as in transformers; 0 switches top_k off, and a temperature of 0 is greedy.
        max_completion_length: tokens.
    """

    when: str
    temperature: float
    top_p: float
    top_k: int
    max_completion_length: int


class Measurement(NamedTuple):
    """An accuracy on held-out problems, and over which weights and with which prompt it was measured.

    Attributes:
        label: `before training`, `after GRPO`.
        weights: `NF4`, or the type of the base's weights.
        thinking: whether the prompt opened a thought.
        temperature: 0 for greedy.
        accuracy, ci95: pass@1 and its 95 % interval.
        n: number of problems.
    """

    label: str
    weights: str
    thinking: bool
    temperature: float
    accuracy: float
    ci95: tuple[float, float]
    n: int


class Training(NamedTuple):
    """What a run's record says of its adapter.

    Attributes:
        policy: what was trained; only where its files lie on this machine comes from today's settings.
        stages: the stages that trained, in their order.
        system: the system turn of all prompts, "" for none, None where it is not known.
        suffix: what stood behind a problem of math; None where it is not known.
        sampling: None where the record has none.
        measured: in the order of the stages.
        left_out: {label of a measurement that does not hold any more: why}.
        remarks: sentences on prompts and figures that are otherwise.
    """

    policy: Policy
    stages: list[str]
    system: str | None
    suffix: str | None
    sampling: Sampling | None
    measured: list[Measurement]
    left_out: dict[str, str]
    remarks: list[str]


def read_training(run: Run) -> Training:
    """What the record of a trained run says.

    Raises:
        FileNotFoundError: the run is not trained, or a file of the training or of a measurement is gone.
        ValueError: a file is damaged, or a stage before the last one was repeated since.
    """
    last, stages, records = run.require_trained(), run.trained_stages(), run.stages()
    settings = [records[name]["settings"] for name in ("data", last) if name in records]
    config = keep_finished_settings(load_run_config(run), settings)
    system, suffix, remarks = _read_prompts(run, config, records, stages)
    if cut := config.policy.thinking_budget:
        tokens = "as many tokens as its row states" if cut == "row" else f"{cut} tokens"
        remarks.append(
            f"A thought was closed by force after {tokens}. Newer copies of llama-server have `--reasoning-budget` for "
            "that, which was not tried, and Ollama has nothing like it."
        )
    found = [(each.stage, each.label, each.report) for each in read_measurements(run)]
    measured = [_read_measurement(records[MEASURED.get(stage, "before")], *rest) for stage, *rest in found]
    for stage, label, report in found:
        name = report["sampling"].get("protocol")
        if stage == last and name in PROTOCOLS:
            remarks.append(
                f"The figures {label} are those of the protocol {name}, which asks without a system turn and puts its "
                "own words behind a problem."
            )
    reports = {stage: report for stage, _, report in found}
    sampling = _read_sampling(reports.get(last), records)
    left_out = {name_measurement(stage): reason for stage, _, reason in list_measurements(run) if reason}
    return Training(config.policy, stages, system, suffix, sampling, measured, left_out, remarks)


def name_weights(policy: Mapping[str, Any]) -> str:
    """The type of a policy's frozen weights.

    Example:
        >>> name_weights({"load_in_4bit": True, "dtype": "float16"})
        'NF4'
    """
    return "NF4" if policy["load_in_4bit"] else policy["dtype"]


def _read_prompts(
    run: Run, config: RunConfig, records: Mapping[str, Any], stages: list[str]
) -> tuple[str | None, str | None, list[str]]:
    """System turn and suffix of the run's prompts, and sentences on rows that were asked otherwise."""
    manifest, data = run.manifest.relative_to(run.path).as_posix(), records.get("data", {})
    trained_on = {records[stage]["read"].get(manifest) for stage in stages}
    if trained_on != {data.get("wrote", {}).get(manifest)}:
        return None, None, ["The run's data was prepared again since, so its record has no longer what it trained on."]
    remarks = [
        f"In {METHODS[stage]} the policy learned from {text.words}, whose prompts may be otherwise."
        for stage in stages
        for text in list_texts(stage, records[stage]["settings"])
        if text.hub or text.is_own
    ]
    system, suffix = config.data.system_prompt, config.data.prompt_suffix
    try:
        run.require_stage("data", "grpo-kit data")
        rows = read_lines(run.data_file("train"))
    except FileNotFoundError:
        return system or None, suffix, [*remarks, "The run's rows are gone; some may have been asked otherwise."]
    turns = [row["prompt"][0]["content"] if row["prompt"][0]["role"] == "system" else "" for row in rows]
    if len(set(turns)) == 1:
        system = turns[0]
    else:
        remarks.append(f"{sum(map(bool, turns)):,} of {len(rows):,} rows had a system turn of their own.")
    thinks = config.policy.enable_thinking
    for count, words in (
        (sum(row.get("enable_thinking", thinks) is not thinks for row in rows), f"with{'out' * thinks} thinking"),
        (sum(row.get("token_budget") is not None for row in rows), "for a thought of so many tokens at most"),
    ):
        if count:
            remarks.append(f"{count:,} of {len(rows):,} rows asked {words}.")
    if others := [name for name in run.environments() if name != MATH]:
        remarks.append(f"Rows of {', '.join(others)} have prompts of their own, some with tools.")
    return system, suffix, remarks


def _read_measurement(record: Mapping[str, Any], label: str, report: Mapping[str, Any]) -> Measurement:
    policy = record["settings"]["policy"]
    thinking = report.get("prompt", {}).get("enable_thinking", policy["enable_thinking"])
    return Measurement(
        label,
        name_weights(policy),
        thinking,
        report["sampling"]["temperature"],
        report["pass@1"],
        tuple(report["ci95"]),
        report["n"],
    )


def _read_sampling(report: Mapping[str, Any] | None, records: Mapping[str, Any]) -> Sampling | None:
    """As the adapter was measured; else as GRPO sampled its completions."""
    names = Sampling._fields[1:]
    if report:
        return Sampling("as it was measured", *(report["sampling"][name] for name in names))
    if "train" in records:
        return Sampling("as in training", *(records["train"]["settings"]["grpo"][name] for name in names))
    return None
