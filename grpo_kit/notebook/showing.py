"""What a notebook shows of the stages of a run, where more is needed than an output of `display/`."""

from collections.abc import Callable, Mapping
from typing import Any

from grpo_kit.config import RunConfig
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import Run


def show_progress(things: str) -> Callable[..., None]:
    """A function that rewrites one line under the cell, "12 of 500 answers"; call it with (done, total, note).

    A cell that ends without a call found its work done; the line then says so.
    """
    from IPython import get_ipython
    from IPython.display import Pretty, display

    line = display(Pretty("starting, loading the policy ..."), display_id=True)
    shell, calls = get_ipython(), []

    def update(done: int, total: int, note: str = "") -> None:
        calls.append(done)
        line.update(Pretty(f"{done} of {total} {things}" + (f", {note}" if note else "")))

    def finish(result: Any) -> None:
        shell.events.unregister("post_run_cell", finish)
        if not calls and result.success:
            line.update(Pretty(f"the {things} are there already"))

    if shell:
        shell.events.register("post_run_cell", finish)
    return update


def read_rows(run: Run, split: str) -> list[dict[str, Any]]:
    """The problems of `train`, `val` or `test`, one dict each, with `id`, `prompt`, `answer` and `source`."""
    run.require_stage("data", "grpo-kit data")
    return read_lines(run.data_file(split))


def show_secrets() -> None:
    """Print where Kaggle's and Hugging Face's credentials were found; never the credentials."""
    from grpo_kit.kaggle import credentials

    print(credentials.describe_credentials())


def show_difficulty(config: RunConfig, run: Run, verifier: Callable[..., Any]) -> None:
    """Show prompt lengths in tokens and pass rates in [0, 1] of training problems; `tiny` tries 32 of them first."""
    from IPython.display import display

    from grpo_kit.display import data_funnel
    from grpo_kit.environments.worlds.loading import load_worlds
    from grpo_kit.evaluation.screening import estimate_pass_rates
    from grpo_kit.policy.chat import make_token_counter

    asked = [(row, row["prompt"]) for row in read_rows(run, "train")]
    prompts = load_worlds(config, run.environments()).open_prompts(asked)
    lengths = sorted(make_token_counter(config.policy)(*prompts))
    display(data_funnel.draw_prompts(lengths, estimate_pass_rates(config, run, verifier)))
    print(f"shortest prompt {lengths[0]} tokens, median {lengths[len(lengths) // 2]}, longest {lengths[-1]}")
    reply = config.grpo.max_completion_length
    print(f"longest prompt and longest reply together: {lengths[-1]} + {reply} = {lengths[-1] + reply} tokens")


def show_trl_settings(config: RunConfig, run: Run) -> Any:
    """Show this run's settings under TRL's names; returns the complete `trl.GRPOConfig`."""
    import pandas
    from IPython.display import display

    from grpo_kit.training import trl_settings

    arguments = trl_settings.make_trl_config(config, run.path / "checkpoints")
    values = {name: str(arguments.to_dict()[name]) for name in trl_settings.trl_arguments(config)}
    display(pandas.DataFrame({"value": values}))
    return arguments


def show_tracker(config: RunConfig, run: Run, tracker: str) -> None:
    """Show TensorBoard under the cell, or say where the figures that a training sends to `tracker` can be seen."""
    from grpo_kit.training import trackers

    if tracker == "tensorboard" and tracker in config.run.report_to:
        trackers.show_tensorboard(run.path)
    elif tracker in config.run.report_to:
        print(trackers.PLACES[tracker])
    else:
        print(f"The figures are on the board and in {run.path}.")


def show_comparison(report: Mapping[str, Any]) -> None:
    """Print what `compare` returned as four sentences: before, after, the change, and whether it is real."""
    from grpo_kit.evaluation.compare import describe_comparison

    print(describe_comparison(report))


def show_judge(config: RunConfig, run: Run, limit: int = 100) -> None:
    """Measure the run's judge on at most `limit` pairs of its own completions, and show what was found."""
    from grpo_kit.display.terminal.checks import print_judge
    from grpo_kit.evaluation.judge.check import check_judge

    print_judge(check_judge(config, run, limit=limit))
