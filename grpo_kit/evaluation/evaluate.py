"""Measure held-out accuracy before and after each stage that trains, and compare.

A problem's score is the share of its samples that the verifier gives reward 1. `evaluation/before.json`,
`after_sft.json`, `after.json` (GRPO) and `after_prefer.json` keep every completion; `evaluation/report.json` compares
the untrained policy with the last one, and each stage with the one before, and says whether they differ.
Samples are saved to `<stage>.partial.jsonl` in portions of a few batches, so that an interrupted measurement can
resume.
"""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grpo_kit.config import Evaluation, Policy, RunConfig, to_yaml
from grpo_kit.config.protocols import PROTOCOLS
from grpo_kit.environments.worlds.loading import Worlds, load_worlds
from grpo_kit.evaluation import calls, expert_choices, intervals, modes, problem_sets, results
from grpo_kit.evaluation.portions import Progress, sample_portions
from grpo_kit.evaluation.problem_sets import Problem
from grpo_kit.planning import calibrate, expert_load
from grpo_kit.policy import episodes, generate, tool_calls, vllm_engine
from grpo_kit.policy.chat import check_chat_template, prompts_open_thinking, render_prompt
from grpo_kit.policy.episodes import sample_completions
from grpo_kit.policy.generate import Sample
from grpo_kit.policy.thinking_budget import require_room
from grpo_kit.rewards.tools.calling import Reward, call_reward
from grpo_kit.rewards.tools.loading import answer_reader
from grpo_kit.rewards.tools.routing import describe_verifier, environment_of, make_verifier
from grpo_kit.runs.files import hash_of, list_differences, to_json, write_text
from grpo_kit.runs.reading import read_json
from grpo_kit.runs.reward_layers import print_layers
from grpo_kit.runs.run import Run
from grpo_kit.runs.session import require_config_and_run, require_run
from grpo_kit.runs.texts import name_functions
from grpo_kit.runs.trained import MEASURED, measured_after


@dataclass(frozen=True)
class Measurement:
    """What to measure, where it differs from the run's own policy, problems and settings.

    Attributes:
        stage: name of the stage in `run.json` and of the file `evaluation/<stage>.json`.
        adapter: folder of the adapter to load; None measures the base policy.
        source: the file that `adapter` was unpacked from, recorded as read instead of it; None if there is none.
        problems: the problems to ask; None asks those of `evaluation.sets`.
        settings: how to sample and judge; None takes the run's `evaluation` section.
        policy: how the policy thinks; None takes the run's `policy` section.
        engine: the engine whose way of loading `adapter` is imitated, recorded with the settings; "" for none.
        counts_thinking: whether the tokens of thinking of each completion are kept.
    """

    stage: str
    adapter: Path | None = None
    source: Path | None = None
    problems: list[Problem] | None = None
    settings: Evaluation | None = None
    policy: Policy | None = None
    engine: str = ""
    counts_thinking: bool = False


def measure(
    config: RunConfig,
    run: Run,
    stage: str,
    verifier: Reward | str | Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure the policy's accuracy on held-out problems, before or after training.

    A stage that is finished with the same settings is not repeated, and an interrupted one resumes.

    Args:
        config: the run's configuration; its `evaluation` section says which problems, how many samples and how long.
        run: the run, as `open_run` returns it.
        stage: "before" measures the untrained policy, "after" the policy after GRPO, "after_sft" and "after_prefer"
            that after the stages `sft` and `prefer`.
        verifier: the reward function that judges answers, 1 for a right one, or the path of its file; None loads
            `evaluation.verifier`.
        progress: called with (samples drawn, samples in all) each time that some are finished.

    Returns:
        What `evaluation/<stage>.json` holds: `pass@1` in [0, 1], its 95 % interval `ci95`, the number of problems `n`,
        pass@k and majority vote under `measures`, under `calls` the share of completions that call a tool where none is
        declared and where some are, accuracy by environment, set, source and family under `by`,
        `mean_tokens` per completion, the share `truncated`, `seconds`, and every problem with its completions under
        `problems`. For `evaluation.modes` also `modes`, which the file does not hold: the figures of each mode
        (`modes.summarise`). Of a trained policy with experts, `evaluation/<stage>_experts.json` has their load (see
        `planning.expert_load`).

    Raises:
        ValueError: `stage` is neither; no reference answer can be used, or a judge rewards all rows; the stage is
            finished with other settings; a verifier refuses to run on this machine.
        FileNotFoundError: the run has no data, or the stage that is measured is not finished.
        TypeError: an argument has another type.

    Example:
        >>> from grpo_kit import measure, open_run
        >>> config, run = open_run(name="first")
        >>> measure(config, run, "before")["pass@1"]  # doctest: +SKIP
        0.42
    """
    require_config_and_run(config, run)
    trained = measured_after(stage)
    run.require_stage("data", "grpo-kit data")
    if trained:
        run.require_stage(trained, f"grpo-kit {trained}")
    if problem_sets.is_only_judged(config, run):
        raise ValueError(
            f"A judge rewards the environment {run.environments()[0]}. It knows better and worse, not right and wrong, "
            "so there is no accuracy to measure. Go on without `grpo-kit evaluate`, or name problems with answers in "
            "evaluation.sets."
        )
    measurement = Measurement(stage, adapter=run.stage_files(trained).adapter if trained else None)
    verifier = make_verifier(config, problem_sets.list_environments(config, run), verifier)
    open_engine = modes.open_once()
    report = run_measurement(config, run, measurement, verifier, progress, open_engine)
    if config.evaluation.modes:
        problems, figures = problem_sets.load_problems(config, run), {}
        for mode in modes.in_order(config.evaluation.modes):
            own = replace(
                measurement,
                stage=modes.name_of(stage, mode),
                problems=[modes.problem_in(problem, mode) for problem in problems],
                policy=modes.policy_of(config.policy, mode),
                counts_thinking=True,
            )
            measured = run_measurement(config, run, own, verifier, progress, open_engine)
            figures[mode] = modes.summarise(measured, mode, config.run.seed)
        report["modes"] = {mode: figures[mode] for mode in config.evaluation.modes}
    return report


def compare(run: Run) -> dict[str, Any]:
    """Compare the accuracies before and after training, problem by problem.

    Args:
        run: a run that is measured before its training and after its last stage.

    Returns:
        What `evaluation/report.json` holds: `before` and `after` (the last stage's) as measured, without their
        problems; `difference` (after minus before, in [-1, 1]), its 95 % interval `difference_ci95`, whether it is
        `real`, and all of it as `words`; the same by environment, set, source and family under `by`, where there are
        several; `environments`, sentences on which environments gained and which lost; `experts`, sentences on the load
        of the experts, if there are any; `stages`, for each measured policy from the untrained one on its `pass@1`,
        `ci95` and the difference from the one before; `calls`, sentences on what each stage did to calls of tools that
        nobody offered, and on what `prefer` did to accuracy; `modes`, the comparison in each mode of thinking
        (`modes.compare_modes`); `seconds` over all stages.

    Raises:
        FileNotFoundError: one of the two is not measured yet.
        ValueError: the two were measured with different settings.
        TypeError: `run` is not a run.

    Example:
        >>> from grpo_kit import compare, open_run
        >>> config, run = open_run(name="first")
        >>> compare(run)["difference"]  # doctest: +SKIP
        0.56
    """
    require_run(run)
    run.require_stage("before", "grpo-kit evaluate")
    last = MEASURED[run.require_trained()]
    run.require_stage(last, "grpo-kit evaluate")
    stages = run.stages()
    if changes := list_differences(stages["before"]["settings"], stages[last]["settings"]):
        raise ValueError(
            f"Before and after of run {run.name!r} were measured with different settings ({'; '.join(changes[:3])}), "
            "which would be part of their difference. "
            + name_functions("Measure both again with `grpo-kit evaluate --force`.")
        )
    reports = {
        side: read_json(run.evaluation / f"{name}.json") for side, name in (("before", "before"), ("after", last))
    }
    before, after = ({problem["id"]: problem for problem in report["problems"]} for report in reports.values())
    scores = ({key: problem["score"] for key, problem in side.items()} for side in (before, after))
    seconds = {name: note["seconds"] for name, note in stages.items()}
    report = {
        **{name: {key: value for key, value in side.items() if key != "problems"} for name, side in reports.items()},
        **intervals.compare_scores(*scores),
        "by": (groups := results.compare_groups(before, after)),
        "environments": results.describe_environments(groups.get("environment", {})),
        "experts": _describe_load(run),
        "stages": (rows := _compare_stages(run)),
        "calls": [sentence for row in rows for sentence in row.get("sentences", [])],
        "modes": modes.compare_modes(run, "before", last),
        "seconds": round(sum(seconds.values()), 2),
        "seconds_by_stage": seconds,
    }
    engines = [side["sampling"]["engine"] for side in reports.values()]
    if engines[0] != engines[1]:
        by = f" Before was sampled by {engines[0]} and after by {engines[1]}"
        report["words"] += f"{by}; part of the difference may come from that."
    drawn = [side["sampling"] for side in reports.values()]
    if drawn[0].get("portion") != drawn[1].get("portion") and drawn[1]["temperature"] > 0:
        report["words"] += (
            " The two were measured by versions of the kit that draw other completions from the same seed. "
            + name_functions("To leave this out of the difference, measure both with `grpo-kit evaluate --force`.")
        )
    write_text(run.evaluation / "report.json", to_json(report, indent=2) + "\n")
    return report


def _describe_load(run: Run) -> list[str]:
    """What training did to the load of the experts, in sentences; none where it was not measured."""
    path = expert_load.find_load_file(run)
    return expert_load.describe_load(expert_load.read_load(path), path) if path else []


def _compare_stages(run: Run) -> list[dict[str, Any]]:
    """The measured policies in the order of their training, each compared with the one before it.

    One that was measured with other settings than the untrained policy is left out.
    """
    records, table, previous = run.stages(), [], []
    for name in ("before", *(MEASURED[stage] for stage in run.trained_stages())):
        if name not in records or list_differences(records["before"]["settings"], records[name]["settings"]):
            continue
        run.require_stage(name, "grpo-kit evaluate")
        report = read_json(run.evaluation / f"{name}.json")
        problems = report["problems"]
        row = {"measurement": name} | {key: report[key] for key in ("pass@1", "ci95", "n", "mean_tokens", "truncated")}
        if previous:
            row |= intervals.compare_scores(*({each["id"]: each["score"] for each in p} for p in (previous, problems)))
            row["calls"] = calls.compare_calls(previous, problems)
            row["sentences"] = results.describe_preferences(row) + calls.describe_calls(row["calls"], name)
        table.append(row)
        previous = problems
    return table


def run_measurement(
    config: RunConfig,
    run: Run,
    measurement: Measurement,
    verifier: Reward,
    progress: Progress | None = None,
    open_engine: modes.OpenEngine | None = None,
) -> dict[str, Any]:
    """Sample, judge and summarise one measurement; write and return `evaluation/<stage>.json` as `measure` does."""
    started, config_yaml = time.monotonic(), to_yaml(config)
    evaluation = measurement.settings or config.evaluation
    config = replace(config, evaluation=evaluation, policy=measurement.policy or config.policy)
    stage, adapter, problems = measurement.stage, measurement.adapter, measurement.problems
    settings = {
        "policy": config.policy.identity(),
        "evaluation": evaluation.identity(),
        "seed": config.run.seed,
        "verifier": describe_verifier(verifier),
        "sets": problem_sets.hash_sets(config) if problems is None else problem_sets.hash_problems(problems),
    }
    if measurement.engine:
        settings["engine"] = measurement.engine
    environments = (
        problem_sets.list_environments(config, run) if problems is None else [environment_of(p.row) for p in problems]
    )
    worlds = load_worlds(config, dict.fromkeys(environments))
    settings |= worlds.describe()
    reads = [run.manifest, *([measurement.source or adapter] if adapter else [])]
    path, partial = run.evaluation / f"{stage}.json", run.evaluation / f"{stage}.partial.jsonl"
    if run.is_done(stage, settings, reads, config.run.force, derived=True):
        with suppress(OSError):  # of a process that was killed when it had recorded the stage
            partial.unlink()
        return read_json(path)

    layers = print_layers([verifier])
    with run.lock(stage):
        problems = problem_sets.load_problems(config, run) if problems is None else problems
        protocol = PROTOCOLS.get(evaluation.protocol or "")
        thinking = protocol.enable_thinking if protocol else config.policy.enable_thinking
        max_model_len = protocol.max_model_len if protocol else None
        check_chat_template(config.policy, (problem.prompt for problem in problems))
        placed = replace(config, policy=calibrate.use_counts_of(run, config.policy))
        cuts_thoughts = config.policy.thinking_budget is not None and not protocol
        if worlds.classes or cuts_thoughts:
            unused = replace(evaluation, use_vllm=False)
            placed = replace(placed, evaluation=unused)
        engine, engine_reason = (open_engine or vllm_engine.open_engine)(placed, adapter, max_model_len)
        engine.counts_thinking = measurement.counts_thinking
        if worlds.classes:
            tool_calls.require_nemotron(engine.tokenizer)
            engine_reason = "vLLM samples no completions of several turns here"
        elif cuts_thoughts:
            engine_reason = "thoughts are cut (policy.thinking_budget), which vLLM is not told to"
        tries = evaluation.num_generations

        def begin(number: int) -> episodes.Start:
            problem = problems[number // tries]
            budget = config.policy.budget_of(problem.row) if cuts_thoughts else None
            return episodes.start(engine.tokenizer, problem.prompt, thinking, problem.row, worlds, budget)

        starts = [begin(number) for number in range(0, tries * len(problems), tries)]
        budgets, limit = [each.budget for each in starts], evaluation.max_completion_length
        require_room(engine.tokenizer, budgets, limit, "evaluation.max_completion_length")
        prompts = [each.prompt_ids for each in starts for _ in range(tries)]
        generate.completion_limits(prompts, evaluation, max_model_len)  # fails here for a prompt that is too long
        compares = adapter is not None and stage in MEASURED.values()
        texts = expert_choices.build_texts(run, engine.tokenizer, problems, prompts[::tries]) if compares else []
        sampling = {
            "engine": engine.name,
            "engine_why": engine_reason,
            "protocol": evaluation.protocol,
            "sets": evaluation.sets,
            "num_generations": evaluation.num_generations,
            "temperature": evaluation.temperature,
            "top_p": evaluation.top_p,
            "top_k": evaluation.top_k,
            "max_completion_length": evaluation.max_completion_length,
            "max_model_len": max_model_len,
            "batch_size": evaluation.batch_size,
            "portion": generate.BATCHES * evaluation.batch_size,
            "seed": config.run.seed,
        }
        depends_on = [sampling, config.policy.identity(), prompts, [hash_of(adapter)] if adapter else []]
        depends_on += [worlds.describe()] if worlds.classes else []
        samples, seconds_before, hits = sample_portions(
            engine, prompts, evaluation.batch_size, config.run.seed, depends_on, partial, progress, stage == "before",
            *([begin, worlds.most_turns] if worlds.classes or cuts_thoughts else []),
        )  # fmt: skip

        judged = _judge_problems(verifier, engine.tokenizer, problems, samples, tries, thinking, worlds)
        report = {
            **results.summarise_problems(judged, config.run.seed),
            "calls": calls.summarise_calls(judged, config.run.seed),
            "samples": len(samples),
            "mean_tokens": sum(s.tokens for s in samples) / len(samples),
            "truncated": sum(not s.finished for s in samples) / len(samples),
            "seconds": round(seconds_before + time.monotonic() - started, 2),
            "sampling": sampling,
            "prompt": {
                "rendered": render_prompt(
                    engine.tokenizer, problems[0].prompt, thinking, worlds.tools_of(problems[0].row)
                ),
                "add_generation_prompt": True,
                "enable_thinking": thinking,
            },
            "problems": judged,
        }
        wrote = [path, *_write_counts(config, run, hits, len(problems))] if stage == "before" else [path]
        if compares:
            wrote += expert_choices.write_load(config.policy, run, stage, engine, adapter, texts)
        write_text(path, to_json(report, indent=1, ensure_ascii=False) + "\n")
        run.record_stage(stage, settings, reads, wrote, report["seconds"], config_yaml, **layers)
        partial.unlink(missing_ok=True)
    return report


def _write_counts(config: RunConfig, run: Run, hits: Any, prompts: int) -> list[Path]:
    """Write which experts the untrained policy uses, by which later stages place them; returns the file, if any."""
    if hits is None:
        run.routing.unlink(missing_ok=True)  # of another measurement
        return []
    write_text(run.routing, to_json(calibrate.summarise_hits(config.policy, hits, prompts)) + "\n")
    return [run.routing]


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
    judged = _judge_problems(verifier, tokenizer, problems, samples, tries, thinking, worlds)
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


def _judge_problems(
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
