"""Searches with Optuna for the settings that learn best in a few steps.

Each trial trains the run's own policy on its own rows, for the same steps from the same seed, and is measured on the
same validation problems every few steps; a trial below the median of the others is stopped early. The search is a
SQLite file in the run folder (`tune/study.db`), so an interrupted search continues; each trial leaves its metrics and
completions beside it. One process searches at a time.
"""

import itertools
import math
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from grpo_kit import config as configuration
from grpo_kit.config.arguments import as_texts, require_type
from grpo_kit.evaluation.judge.check import list_judges, require_checked
from grpo_kit.evaluation.scores import score_rows
from grpo_kit.rewards.tools.loading import fingerprint, load_reward
from grpo_kit.rewards.tools.routing import make_verifier
from grpo_kit.runs import activity
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.records import list_changed_settings
from grpo_kit.runs.run import Run
from grpo_kit.runs.session import require_config_and_run
from grpo_kit.training import train
from grpo_kit.tuning.outcome import draw_result, finished_trials, next_number, save_result
from grpo_kit.tuning.space import Axis, parse_search
from grpo_kit.tuning.study import describe_damage, name_study, study_address

OnTrial = Callable[[int, int, str], None]
ShouldStop = Callable[[], bool]


class _Stopped(Exception):
    """The trial ends because the search was asked to stop."""


class Trial(Run):
    """A trial's own folder, inside the run's, with the run's rows and its counts of experts."""

    def __init__(self, run: Run, number: int) -> None:
        super().__init__(run.path / "tune", f"trial_{number:03}")
        self.manifest, self.data_file, self.routing = run.manifest, run.data_file, run.routing
        self.judge, self.verdicts = run.judge, run.verdicts


def tune(
    config: configuration.RunConfig, run: Run, axes: str | Iterable[str] | Mapping[str, Axis], trials: int = 12,
    steps: int = 30, every: int | None = None, grid: bool = False, on_trial: OnTrial | None = None,
    should_stop: ShouldStop | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Search for the settings that learn best, by short trainings. An interrupted search continues.

    Args:
        config: the run's configuration. If its own values are in the search space, they are the first trial.
        run: a run with data; the search writes into its folder `tune/` only.
        axes: the setting to search, or a list of settings, such as
            `["grpo.learning_rate=log(1e-4,1e-2)", "lora.r=[8,16]"]`; or what `tuning.space.parse_search` makes of them.
        trials: number of trials in all; those of an interrupted search count.
        steps: training steps of each trial.
        every: training steps between two measurements on the validation rows; None: 5, or `steps` if that is less.
        grid: try every combination of the choices once; `trials` is then ignored.
        on_trial: called with (finished trials, trials in all, note) after each trial.
        should_stop: called after each training step; when it returns True, the search keeps the finished trials and
            ends. The trial that it was in is made again when the search continues.

    Returns:
        What `tune/tune.json` holds: `trials`, the best first, each with its `overrides`, its `accuracy` in [0, 1] and
        the 95 % interval `ci95`; the `best` of them; and `words`, which compares it with the run's own settings.
        `tune/tune.png` shows the trials. The file is renewed after each trial, the picture at the end. A search that
        was stopped before its first trial ended has no trials, and its best no overrides.

    Raises:
        ValueError: a setting that cannot be searched, numbers that do not fit, a run without validation rows, or a
            search that was started with different settings.
        FileNotFoundError: the run has no data.
        TypeError: an argument has another type.

    Example:
        >>> from grpo_kit import open_run, tune
        >>> config, run = open_run(name="first")
        >>> tune(config, run, "lora.r=[8,16]", trials=4)["best"]["overrides"]  # doctest: +SKIP
        ['lora.r=16']
    """
    require_config_and_run(config, run)
    for name, value in (("trials", trials), ("steps", steps), ("every", 1 if every is None else every)):
        require_type(name, value, int, "a whole number", f"Write {name}=12.")
    every = min(5, steps) if every is None else every
    run.require_stage("data", "grpo-kit data")
    if trials < 1 or steps < 1 or not 1 <= every <= steps:
        raise ValueError(
            f"--trials is {trials}, --steps {steps}, --every {every}; a search takes at least one trial of one step, "
            "measured at least once. Give 1 or more each, and --every at most --steps."
        )
    if not axes:
        parse_search(())  # says what a search needs
    if not isinstance(axes, Mapping):
        axes, single_values = parse_search(as_texts("axes", axes, '["lora.r=[8,16]"]'))
        if single_values:
            raise ValueError(
                f"{single_values[0]!r} has one value, so there is nothing to search. Set it in the configuration "
                "instead."
            )
    config = _override(config, [f"grpo.max_steps={steps}"])
    settings = _check_search(config, run, axes, steps, every, grid)
    with run.lock("tune"), name_study(run.path / "tune" / "study.db"):
        return _search(
            config, run, axes, settings, trials, steps, every, grid, on_trial, should_stop or (lambda: False)
        )


def _search(
    config: configuration.RunConfig, run: Run, axes: Mapping[str, Axis], settings: dict[str, Any], trials: int,
    steps: int, every: int, grid: bool, on_trial: OnTrial | None, should_stop: ShouldStop,
) -> dict[str, Any]:  # fmt: skip
    """Run the trials that are left, and write the result."""
    import optuna

    folder = run.path / "tune"
    if config.run.force:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "study.db"
    if path.is_file() and not path.stat().st_size and any(folder.glob("trial_*")):  # SQLite would begin a new one
        raise ValueError(describe_damage(path, "it is empty"))
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # it warns of every trial that is stopped or needs more memory
    study = optuna.create_study(
        storage=study_address(path), study_name=run.name, direction="maximize",
        load_if_exists=True, pruner=optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=steps // 3),
    )  # fmt: skip
    if changes := list_changed_settings(study.user_attrs.get("settings", settings), settings):
        raise ValueError(
            f"The search of run {run.name!r} was started with different settings ({'; '.join(changes[:3])}). Use "
            "--force to start again, or --run for another run."
        )
    study.set_user_attr("settings", settings)
    if grid:
        trials = math.prod(len(axis.choices) for axis in axes.values())
    _enqueue_trials(study, config, axes, grid)

    def report_progress() -> int:
        finished = finished_trials(study)
        values = [trial.value for trial in finished if trial.value is not None]
        if finished:
            save_result(study, run)
        if on_trial:
            on_trial(len(finished), trials, f"best so far {max(values):.2f}" if values else "")
        return len(finished)

    while (done := report_progress()) < trials and not should_stop():
        study.sampler = _make_sampler(config.run.seed, done, trials)
        study.optimize(
            lambda trial: _run_trial(trial, config, run, axes, steps, every, should_stop), n_trials=1,
            catch=(torch.OutOfMemoryError, _Stopped),
        )  # fmt: skip
        torch.cuda.empty_cache()
    return draw_result(study, run, axes)


def _run_trial(
    trial: Any, config: configuration.RunConfig, run: Run, axes: Mapping[str, Axis], steps: int, every: int,
    should_stop: ShouldStop,
) -> float:  # fmt: skip
    """Train one trial and return its accuracy: the mean over problems of the later half of its measurements.

    Raises Optuna's TrialPruned when the trial is below the median on the way, and _Stopped when the search is to stop;
    that trial is queued again.
    """
    import optuna

    overrides = [f"{key}={axis.suggest(trial, key)}" for key, axis in axes.items()]
    settings = _override(config, overrides)
    trial.set_user_attr("overrides", overrides)
    trial.set_user_attr("number", number := next_number(trial.study))
    verifier, rows = make_verifier(settings, run.environments()), read_lines(run.data_file("val"))
    own = trial.user_attrs.get("own", False)
    measurements: list[dict[str, float | None]] = []

    def on_step(row: dict[str, Any]) -> None:
        step = row["step"]
        activity.announce(f"trial {number}, step {step} of {steps}")
        if step < steps and should_stop():
            raise _Stopped
        if step % every and step != steps:
            return
        model = trainer.accelerator.unwrap_model(trainer.model)
        measurements.append(score_rows(model, trainer.processing_class, rows, verifier, settings))
        if (accuracy := _mean(measurements[-1])) is None:
            raise ValueError(
                f"The verifier could use none of {len(rows)} reference answers. Check evaluation.verifier."
            )
        trial.report(accuracy, step)
        # The run's own values are what the others are compared with, so they are not stopped early.
        if step < steps and not own and trial.should_prune():
            raise optuna.TrialPruned

    rewards = [load_reward(spec) for spec in settings.grpo.reward_funcs]
    try:
        trainer = train.make_trainer(settings, Trial(run, number), rewards, on_step)
        trainer.train()
    except torch.OutOfMemoryError:
        trial.set_user_attr("no_room", True)
        raise
    except _Stopped:
        trial.study.enqueue_trial(trial.params, user_attrs={"own": own})
        raise
    finally:
        later = measurements[len(measurements) // 2 :]  # one measurement is too noisy to choose by
        scores = {
            problem: _mean({i: m[problem] for i, m in enumerate(later)}) for problem in (later[0] if later else ())
        }
        trial.set_user_attr("scores", scores)
    return _mean(scores)


def _mean(scores: Mapping[Any, float | None]) -> float | None:
    """The mean of the scores that are not None; None where there is none, because no answer could be used."""
    usable = [score for score in scores.values() if score is not None]
    return sum(usable) / len(usable) if usable else None


def _make_sampler(seed: int, done: int, trials: int) -> Any:
    """Optuna's sampler for the next trial: the first half spreads evenly over the space, the rest go where it was good.

    The space-filling sequence keeps its place in the study's file. The other sampler is seeded by the number of
    finished trials; with one seed a continued search would repeat its draws.
    """
    import optuna

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if done < max(1, trials // 2):
            return optuna.samplers.QMCSampler(
                scramble=True, seed=seed, warn_asynchronous_seeding=False, warn_independent_sampling=False
            )
    return optuna.samplers.TPESampler(seed=seed + done, n_startup_trials=0)


def _enqueue_trials(study: Any, config: configuration.RunConfig, axes: Mapping[str, Axis], grid: bool) -> None:
    """Queue what comes first: trials that were killed, the run's own values, and with `grid` every combination."""
    import optuna

    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
        if set(trial.params) == set(axes):
            study.enqueue_trial(trial.params, user_attrs={"own": trial.user_attrs.get("own", False)})
    waiting = study.get_trials(states=[optuna.trial.TrialState.WAITING])
    present = [t.params for t in finished_trials(study)] + [t.system_attrs["fixed_params"] for t in waiting]
    structured = OmegaConf.structured(config)
    own = {key: OmegaConf.select(structured, key) for key in axes}
    if all(axis.holds(own[key]) for key, axis in axes.items()):
        params = {key: axis.param(own[key]) for key, axis in axes.items()}
        if params not in present:
            study.enqueue_trial(params, user_attrs={"own": True})
            present.append(params)
    if grid:
        for values in itertools.product(*(axis.choices for axis in axes.values())):
            params = dict(zip(axes, values, strict=True))
            if params not in present:
                study.enqueue_trial(params)


def _check_search(
    config: configuration.RunConfig, run: Run, axes: Mapping[str, Axis], steps: int, every: int, grid: bool
) -> dict[str, Any]:
    """Check all that can be checked before the first trial; returns what the search is made with."""
    if ranges := [key for key, axis in axes.items() if axis.kind != "choice"] if grid else []:
        raise ValueError(
            f"{ranges[0]} is a range, and a grid takes choices. Write {ranges[0]}=[a,b,c], or leave out --grid."
        )
    for values in itertools.islice(itertools.product(*(axis.ends() for axis in axes.values())), 10_000):
        _override(config, [f"{key}={value}" for key, value in zip(axes, values, strict=True)])
    if not read_lines(run.data_file("val")):
        raise ValueError("The run has no validation rows to measure trials on. Prepare data with data.val_size=100.")
    judges = list_judges(config, run)
    require_checked(config, run, [load_reward(spec) for spec in judges])
    sections = {key: value for key, value in asdict(config).items() if key != "run"}
    specs = [spec for name in run.environments() for spec in config.rewards_of(name).reward_funcs]
    rewards = {spec: fingerprint(load_reward(spec)) for spec in [*specs, config.evaluation.verifier]}
    return {
        **sections, "seed": config.run.seed, "data": hash_of(run.manifest), "rewards": rewards, "every": every,
        "grid": grid, "space": {key: repr(axis) for key, axis in axes.items()},
    }  # fmt: skip


def _override(config: configuration.RunConfig, overrides: Sequence[str]) -> configuration.RunConfig:
    try:
        return configuration.keep_finished_settings(config, [], overrides)
    except OmegaConfBaseException as error:
        configuration.load_config(["tiny"], overrides)  # says it better: which key, and which was meant
        raise ValueError(f"{', '.join(overrides)} does not fit: {str(error).splitlines()[0]}. Correct it.") from None
