"""Measure held-out accuracy before training and after each stage that trains.

`evaluation/before.json`, `after_sft.json`, `after.json` (GRPO) and `after_prefer.json` keep every completion. Samples
are saved to `<stage>.partial.jsonl` in portions of a few batches, so that an interrupted measurement can resume.
"""

import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grpo_kit.config import Evaluation, Policy, RunConfig, to_yaml
from grpo_kit.config.protocols import PROTOCOLS
from grpo_kit.environments.worlds.loading import load_worlds
from grpo_kit.evaluation import calls, expert_choices, modes, problem_sets, results
from grpo_kit.evaluation.portions import Progress, sample_portions
from grpo_kit.evaluation.problem_sets import Problem
from grpo_kit.evaluation.scores import judge_problems
from grpo_kit.planning import calibrate
from grpo_kit.policy import episodes, generate, tool_calls, vllm_engine
from grpo_kit.policy.chat import check_chat_template, render_prompt
from grpo_kit.policy.thinking_budget import require_room
from grpo_kit.rewards.tools.calling import Reward
from grpo_kit.rewards.tools.routing import describe_verifier, environment_of, make_verifier
from grpo_kit.runs.files import hash_of, to_json, write_text
from grpo_kit.runs.reading import read_json
from grpo_kit.runs.reward_layers import print_layers
from grpo_kit.runs.run import Run
from grpo_kit.runs.session import require_config_and_run
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
        ValueError: `stage` is none of these; no reference answer can be used, or a judge rewards all rows; the stage is
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
            figures[mode] = modes.summarise(measured, mode)
        report["modes"] = {mode: figures[mode] for mode in config.evaluation.modes}
    return report


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

        judged = judge_problems(verifier, engine.tokenizer, problems, samples, tries, thinking, worlds)
        report = {
            **results.summarise_problems(judged),
            "calls": calls.summarise_calls(judged),
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
