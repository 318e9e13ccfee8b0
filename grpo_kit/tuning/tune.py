"""Which settings learn best in a few steps? Short trainings of the run's own policy on its own rows, by Optuna.

Every trial is trained for the same steps from the same seed and measured on the same validation problems every few
steps; one that lies below the median of the others there is broken off. The search is a SQLite file in the run folder
(`tune/study.db`), so a search that was broken off goes on; each trial leaves its metrics and completions beside it. The
only file that knows Optuna. One process searches at a time.
"""

import itertools
import json
import math
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from grpo_kit import config as configuration
from grpo_kit.evaluation import evaluate, intervals
from grpo_kit.rewards.tools.loading import fingerprint, load_reward
from grpo_kit.runs.files import hash_of, list_differences, read_lines, write_text
from grpo_kit.runs.run import Run
from grpo_kit.training import train
from grpo_kit.tuning import report
from grpo_kit.tuning.space import Axis, parse_search

OnTrial = Callable[[int, int, str], None]


class Trial(Run):
    """A trial's own folder, inside the run's, with the run's rows."""

    def __init__(self, run: Run, number: int) -> None:
        super().__init__(run.path / "tune", f"trial_{number:03}")
        self.manifest, self.data_file = run.manifest, run.data_file


def tune(
    config: configuration.RunConfig, run: Run, axes: Mapping[str, Axis] | Sequence[str], trials: int = 12,
    steps: int = 30, every: int = 5, grid: bool = False, on_trial: OnTrial | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Search for the settings that learn best, by short trainings. An interrupted search continues.

    Args:
        config: the run's configuration. If its own values are in the search space, they are the first trial.
        run: a run with data; the search writes into its folder `tune/` only.
        axes: the settings to search, such as `["grpo.learning_rate=log(1e-4,1e-2)", "lora.r=[8,16]"]`, or what
            `space.parse_search` makes of them.
        trials: number of trials in all; those of an interrupted search count.
        steps: training steps of each trial.
        every: training steps between two measurements on the validation rows.
        grid: try every combination of the choices once; `trials` is then ignored.
        on_trial: called with (finished trials, trials in all, note) after each trial.

    Returns:
        What `tune/tune.json` holds: `trials`, the best first, each with its `overrides`, its `accuracy` in [0, 1] and the
        95 % interval `ci95`; the `best` of them; and `words`, which compares it with the run's own settings.
        `tune/tune.png` shows the trials.

    Raises:
        ValueError: a setting that cannot be searched, numbers that do not fit, a run without validation rows, or a
            search that was started with different settings.
        FileNotFoundError: the run has no data.

    Example:
        >>> tune(config, run, ["lora.r=[8,16]"], trials=4)["best"]["overrides"]     # doctest: +SKIP
        ['lora.r=16']
    """
    import optuna

    run.require_stage("data", "grpo-kit data")
    if trials < 1 or steps < 1 or not 1 <= every <= steps:
        raise ValueError(
            f"--trials is {trials}, --steps {steps}, --every {every}; a search takes at least one trial of one step, measured at "
            "least once. Give 1 or more each, and --every at most --steps."
        )
    if not isinstance(axes, Mapping):
        axes, single_values = parse_search(axes)
        if single_values:
            raise ValueError(
                f"{single_values[0]!r} has one value, so there is nothing to search. Set it in the configuration instead."
            )
    config = _with(config, [f"grpo.max_steps={steps}"])
    settings = _checked(config, run, axes, steps, every, grid)
    folder = run.path / "tune"
    if config.run.force:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{(folder / 'study.db').absolute()}", study_name=run.name, direction="maximize", load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=steps // 3),
    )  # fmt: skip
    if other := list_differences(study.user_attrs.get("settings", settings), settings):
        raise ValueError(
            f"The search of run {run.name!r} was begun otherwise ({'; '.join(other[:3])}). Begin anew with --force, or name another run."
        )
    study.set_user_attr("settings", settings)
    if grid:
        trials = math.prod(len(axis.choices) for axis in axes.values())
    _enqueue(study, config, axes, grid)

    def show() -> int:
        done, values = len(_finished(study)), [t.value for t in _finished(study) if t.value is not None]
        if on_trial:
            on_trial(done, trials, f"best so far {max(values):.2f}" if values else "")
        return done

    while (done := show()) < trials:
        study.sampler = _sampler(config.run.seed, done, trials)
        study.optimize(
            lambda trial: _accuracy_of(trial, config, run, axes, steps, every), n_trials=1, catch=torch.OutOfMemoryError
        )
        torch.cuda.empty_cache()
    return _result(study, config, run, axes)


def _accuracy_of(
    trial: Any, config: configuration.RunConfig, run: Run, axes: Mapping[str, Axis], steps: int, every: int
) -> float:
    """Train one trial; its accuracy, by problem the mean of the later half of its measurements.

    Raises Optuna's TrialPruned when it lies below the median on the way.
    """
    import optuna

    overrides = [f"{key}={axis.suggest(trial, key)}" for key, axis in axes.items()]
    chosen = _with(config, overrides)
    trial.set_user_attr("overrides", overrides)
    verifier, rows = load_reward(chosen.evaluation.verifier), read_lines(run.data_file("val"))
    own = trial.user_attrs.get("own", False)
    measured: list[dict[str, float | None]] = []

    def on_step(row: dict[str, Any]) -> None:
        step = row["step"]
        if step % every and step != steps:
            return
        model = trainer.accelerator.unwrap_model(trainer.model)
        measured.append(evaluate.score_rows(model, trainer.processing_class, rows, verifier, chosen))
        if (accuracy := _mean(measured[-1])) is None:
            raise ValueError(f"The verifier could use none of {len(rows)} validation golds. Check evaluation.verifier.")
        trial.report(accuracy, step)
        if step < steps and not own and trial.should_prune():  # the run's own values are what others are compared with
            raise optuna.TrialPruned

    rewards = [load_reward(spec) for spec in chosen.grpo.reward_funcs]
    try:
        trainer = train.make_trainer(chosen, Trial(run, trial.number), rewards, on_step)
        trainer.train()
    except torch.OutOfMemoryError:
        trial.set_user_attr("no_room", True)
        raise
    finally:
        last = measured[len(measured) // 2 :]  # one measurement is too noisy to choose by
        scores = {key: _mean(dict(enumerate(m[key] for m in last))) for key in (last[0] if last else ())}
        trial.set_user_attr("scores", scores)
    return _mean(scores)


def _mean(scores: Mapping[Any, float | None]) -> float | None:
    """The mean of the scores that there are; None where no gold could be used."""
    known = [score for score in scores.values() if score is not None]
    return sum(known) / len(known) if known else None


def _sampler(seed: int, done: int, trials: int) -> Any:
    """What proposes the next trial: the first half is spread evenly over the space, the others lie where it was good.

    A space-filling sequence keeps its place in the study's file; the other sampler is seeded by how many trials are done,
    or a search that goes on would repeat its draws.
    """
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if done < max(1, trials // 2):
            return optuna.samplers.QMCSampler(
                scramble=True, seed=seed, warn_asynchronous_seeding=False, warn_independent_sampling=False
            )
    return optuna.samplers.TPESampler(seed=seed + done, n_startup_trials=0)


def _finished(study: Any) -> list[Any]:
    """Trials that need no more work: through, broken off below the median, or without room in memory."""
    return [t for t in study.trials if t.state.name in ("COMPLETE", "PRUNED") or "no_room" in t.user_attrs]


def _enqueue(study: Any, config: configuration.RunConfig, axes: Mapping[str, Axis], grid: bool) -> None:
    """Put in line what is to come first: trials that were killed, the run's own values, a grid's combinations."""
    import optuna

    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if set(trial.params) == set(axes):
            study.enqueue_trial(trial.params, user_attrs={"own": trial.user_attrs.get("own", False)})
    waiting = study.get_trials(states=[optuna.trial.TrialState.WAITING])
    known = [t.params for t in _finished(study)] + [t.system_attrs["fixed_params"] for t in waiting]
    whole = OmegaConf.structured(config)
    own = {key: OmegaConf.select(whole, key) for key in axes}
    if all(axis.holds(own[key]) for key, axis in axes.items()):
        asked = {key: axis.param(own[key]) for key, axis in axes.items()}
        if asked not in known:
            study.enqueue_trial(asked, user_attrs={"own": True})
            known.append(asked)
    if grid:
        for values in itertools.product(*(axis.choices for axis in axes.values())):
            if (asked := dict(zip(axes, values, strict=True))) not in known:
                study.enqueue_trial(asked)


def _result(study: Any, config: configuration.RunConfig, run: Run, axes: Mapping[str, Axis]) -> dict[str, Any]:
    rows = []
    for trial in _finished(study):
        scores = [s for s in trial.user_attrs.get("scores", {}).values() if s is not None]
        rows.append(
            {
                "trial": trial.number, "state": trial.state.name.lower(), "own": bool(trial.user_attrs.get("own")),
                "overrides": trial.user_attrs.get("overrides", []), "step": max(trial.intermediate_values, default=0),
                "accuracy": sum(scores) / len(scores) if scores else None,
                "ci95": list(intervals.mean_interval(scores, config.run.seed)) if scores else None,
                "curve": sorted(trial.intermediate_values.items()),
                "seconds": round(trial.duration.total_seconds(), 1),
            }
        )  # fmt: skip
    rows.sort(key=lambda row: (row["state"] != "complete", -(row["accuracy"] or 0)))
    found = {"trials": rows, "best": rows[0], "words": _words(study, rows)}
    write_text(run.path / "tune" / "tune.json", json.dumps(found, indent=1) + "\n")
    aside = run.path / "tune" / ".tune.partial.png"
    report.picture(found, axes).savefig(aside, dpi=120)
    aside.replace(aside.with_name("tune.png"))
    return found


def _words(study: Any, rows: Sequence[dict[str, Any]]) -> str:
    """Whether the best trial is better than the run's own values, and what that is worth."""
    best, own = rows[0], next((row for row in rows if row["own"]), None)
    if best["state"] != "complete" or (own and own["state"] != "complete"):
        return "Nothing can be compared: the run's own values or all trials found no room in memory."
    if own is None:
        return "The run's own values do not lie on the axes, so there is nothing to compare the best trial with."
    if own is best:
        return "No trial did better than the run's own values."
    scores = {t.number: t.user_attrs["scores"] for t in study.trials if t.number in (best["trial"], own["trial"])}
    said = intervals.compare_scores(
        scores[own["trial"]], scores[best["trial"]], ("with the run's own values", f"with trial {best['trial']}")
    )
    return f"{said['words']} It is the best of {len(rows)}, chosen on these problems, and so looks better than it is."


def _checked(
    config: configuration.RunConfig, run: Run, axes: Mapping[str, Axis], steps: int, every: int, grid: bool
) -> dict[str, Any]:
    """What the search is of, once all that can be checked before it begins is."""
    if ranges := [key for key, axis in axes.items() if axis.kind != "choice"] if grid else []:
        raise ValueError(
            f"{ranges[0]} is a range, and a grid takes choices. Write {ranges[0]}=[a,b,c], or leave out --grid."
        )
    for values in itertools.islice(itertools.product(*(axis.ends() for axis in axes.values())), 10_000):
        _with(config, [f"{key}={value}" for key, value in zip(axes, values, strict=True)])
    if not read_lines(run.data_file("val")):
        raise ValueError("The run has no validation rows to measure trials on. Prepare data with data.val_size=100.")
    told = {key: value for key, value in asdict(config).items() if key != "run"}
    rewards = {spec: fingerprint(load_reward(spec)) for spec in [*config.grpo.reward_funcs, config.evaluation.verifier]}
    return {
        **told, "seed": config.run.seed, "data": hash_of(run.manifest), "rewards": rewards, "every": every, "grid": grid,
        "space": {key: repr(axis) for key, axis in axes.items()},
    }  # fmt: skip


def _with(config: configuration.RunConfig, overrides: Sequence[str]) -> configuration.RunConfig:
    try:
        return configuration.keep_finished_settings(config, [], overrides)
    except OmegaConfBaseException as error:
        configuration.load_config(["tiny"], overrides)  # says it better: which key, and which was meant
        raise ValueError(f"{', '.join(overrides)} does not fit: {str(error).splitlines()[0]}. Correct it.") from None
