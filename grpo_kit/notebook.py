"""What the notebooks use besides the public names: opening a run from form fields, and showing what a stage returned.

A notebook starts on a fresh machine and asks no questions: without Google Drive or secrets it goes on. Each function
imports the libraries that it needs, because some take seconds to import.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from grpo_kit.config import RunConfig, load_config
from grpo_kit.config.form import split_settings
from grpo_kit.display import console
from grpo_kit.display.notebook_output import (
    show_alarms,
    show_completions,
    show_curves,
    show_data,
    show_environments,
    show_example,
    show_experts,
    show_findings,
    show_funnel,
    show_group,
    show_machine,
    show_modes,
    show_pairs,
    show_plan,
    show_reply,
    show_settings,
    show_sources,
    show_stages,
    show_tasks,
    show_traces,
    show_trials,
    show_weakest,
)
from grpo_kit.display.notebook_words import reword, reword_errors
from grpo_kit.runs import session
from grpo_kit.runs.installation import REPOSITORY
from grpo_kit.runs.places import detect_place, mount_drive
from grpo_kit.runs.reading import read_lines
from grpo_kit.runs.run import Run, find_run

__all__ = [
    "ask",
    "open_from_form",
    "publish",
    "open_search_board",
    "read_rows",
    "render_prompt",
    "require_stage",
    "sample_group",
    "sample_reply",
    "show_alarms",
    "show_comparison",
    "show_completions",
    "show_curves",
    "show_data",
    "show_difficulty",
    "show_effects",
    "show_environments",
    "show_experts",
    "show_example",
    "show_findings",
    "show_funnel",
    "show_group",
    "show_judge",
    "show_machine",
    "show_modes",
    "show_optuna",
    "show_pairs",
    "show_plan",
    "show_progress",
    "show_reply",
    "show_search_space",
    "show_secrets",
    "show_settings",
    "show_sources",
    "show_stages",
    "show_tasks",
    "show_traces",
    "show_tracker",
    "show_trials",
    "show_trl_settings",
    "show_weakest",
    "submit_zip",
]
AUTO = "auto"
MIXED = "data.source=gsm8k,structured,instructions,documents"
PUZZLES = "data.source=puzzles"
FEW = ("sft.max_steps=12", "grpo.max_steps=8", "dpo.max_steps=10", "data.test_size=300", "evaluation.batch_size=150")
QUICK = ("grpo.max_steps=30", "data.test_size=100")
QUICK += ("grpo.max_completion_length=1024", "evaluation.max_completion_length=1024")
LINKS = {
    "colab": "https://colab.research.google.com/github/{0}/blob/main/notebooks/{1}.ipynb",
    "kaggle": "https://kaggle.com/kernels/welcome?src=https://github.com/{0}/blob/main/notebooks/{1}.ipynb",
    "local": "{1}.ipynb",
}
ADD_INPUT = "On Kaggle, add that notebook's output as an input of this one: Add Input, Your Work."


# Opening a run


def notebook_link(name: str, environ: Mapping[str, str] = os.environ) -> str:
    """The link that opens the notebook `name`, such as `02_data`, in the same place as this one; else its file name."""
    return LINKS[detect_place(environ) if REPOSITORY else "local"].format(REPOSITORY, name)


def open_from_form(
    preset: str,
    run_name: str = "",
    overrides: str = "",
    use_drive: bool = True,
    environments: bool = False,
    puzzles: bool = False,
    quick: bool = False,
    tracker: str = "none",
) -> tuple[RunConfig, Run]:
    """Open the run that the form describes, print which of its stages are done, and return (config, run).

    What loading the policy would download is printed too, before anything is downloaded. "auto" takes the 4B where the
    GPU has room for it. The preset of the 30B for that GPU is only named, because only a person should choose such a
    download.

    Args:
        preset: a preset's name, or "auto": the settings of the run if it exists, else `t4-4b` on a GPU of 16 GB or
            more, else `tiny`.
        run_name: the run's name; if empty, `run.name` among the overrides, else the preset's name.
        overrides: `section.key=value`, separated by spaces; a value with spaces stands in quotes or brackets.
        use_drive: on Colab, ask for Google Drive first, so that the run is kept when the session ends.
        environments: train on several environments: "auto" takes `tiny-environments` instead of `tiny`, and every other
            preset gets the sources of MIXED, unless the overrides name others.
        puzzles: train on what solvers explain: every preset but `tiny`, whose sums are worked out digit by digit, gets
            the puzzles of the challenge, unless the overrides name other sources. The stages of `tiny` get the few
            steps of FEW, so that each leaves something to the next.
        quick: a short run: every preset but `tiny`, which is short, gets the settings of QUICK; with `t4-4b` the plan
            then computes less than two hours on a T4.
        tracker: who else gets the figures of a training, `tensorboard`, `trackio` or `wandb`, where it is installed and
            has its key; else a sentence says why not.

    Raises:
        ValueError: an unknown preset or key, a value that does not fit, or a run name that is not a folder name.
    """
    from IPython import get_ipython

    reword_errors(get_ipython())
    console.print_warnings_plainly()
    if use_drive and detect_place() == "colab":
        print(mount_drive())
    words = split_settings(overrides)
    settings = dict(word.split("=", 1) for word in words)
    name, sources = run_name.strip() or settings.get("run.name", ""), (preset,)
    if preset == AUTO and name and ((run := find_run(name)).config.exists() or run.stages()):
        sources = ()
    elif preset == AUTO:
        sources = (_choose_preset(),)
    if environments and sources:
        sources = ("tiny-environments",) if sources == ("tiny",) else sources
        if sources != ("tiny-environments",):
            name = name or f"{sources[0]}-environments"
            words = [MIXED, *words]
    if puzzles and sources:
        words = [*(FEW if sources == ("tiny",) else [PUZZLES]), *words]
        name = name or f"{sources[0]}-stages"
    if quick and sources:
        words = [*(() if sources == ("tiny",) else QUICK), *words]
        name = name or f"{sources[0]}-quickstart"
    if tracker != "none":
        from grpo_kit.training.trackers import choose_trackers

        names, sentence = choose_trackers(tracker)
        print(reword(sentence))
        words = [f"run.report_to=[{','.join(names)}]", *words]
    config, run = session.open_run(sources, words, name or sources[0])
    print(session.describe_run(run))
    from grpo_kit.policy.nf4_source import describe_download

    if download := describe_download(config.policy):
        print(download)
    return config, run


def _choose_preset() -> str:
    """The preset that "auto" takes on this machine; for a GPU, what the 30B model would download is printed."""
    from grpo_kit.planning.machines import auto_preset, suggest_preset, this_device
    from grpo_kit.policy.nf4_source import describe_download

    device = this_device()
    preset, larger = auto_preset(device), suggest_preset(device)
    if preset != "tiny":
        print(
            f"auto takes the preset {preset}, Nemotron-3-Nano-4B. {device.name} has room for the 30B model too: choose "
            f"the preset {larger} for it. {describe_download(load_config([larger]).policy)}"
        )
    return preset


def require_stage(run: Run, stage: str, notebook: str) -> None:
    """Raise FileNotFoundError unless the run has finished `stage`; show a link to the `notebook` that does it."""
    from IPython.display import Markdown, display

    link = notebook_link(notebook)
    try:
        run.require_stage(stage, f"notebook {link}")
    except FileNotFoundError:
        more = f" {ADD_INPUT}" if detect_place() == "kaggle" else ""
        display(Markdown(f"Run **[{notebook}]({link})** first, then this notebook again.{more}"))
        raise


def show_progress(things: str) -> Callable[..., None]:
    """A function that rewrites one line under the cell, "12 of 500 answers"; call it with (done, total, note)."""
    from IPython.display import Pretty, display

    line = display(Pretty("starting, loading the policy ..."), display_id=True)

    def update(done: int, total: int, note: str = "") -> None:
        line.update(Pretty(f"{done} of {total} {things}" + (f", {note}" if note else "")))

    return update


def read_rows(run: Run, split: str) -> list[dict[str, Any]]:
    """The problems of `train`, `val` or `test`, one dict each, with `id`, `prompt`, `answer` and `source`."""
    run.require_stage("data", "grpo-kit data")
    return read_lines(run.data_file(split))


# Notebook 1: the machine, the plan, the policy


def show_secrets() -> None:
    """Print where Kaggle's and Hugging Face's credentials were found; never the credentials."""
    from grpo_kit.kaggle import credentials

    print(credentials.describe_credentials())


def render_prompt(tokenizer: Any, config: RunConfig, problem: str) -> str:
    """The text that the policy reads when it is asked `problem`, chat template included."""
    from grpo_kit.policy import chat

    return chat.render_prompt(tokenizer, _conversation(config, problem), config.policy.enable_thinking)


def sample_reply(model: Any, tokenizer: Any, config: RunConfig, problem: str) -> Any:
    """One reply to `problem`, sampled as in the evaluation: `text`, length in `tokens`, and whether it `finished`."""
    return _sample(model, tokenizer, config, config.evaluation, problem, 1)[0]


def sample_group(model: Any, tokenizer: Any, config: RunConfig, problem: str) -> list[Any]:
    """A group of `grpo.num_generations` replies to `problem`, sampled as in the training."""
    from grpo_kit.evaluation.screening import training_sampling

    return _sample(model, tokenizer, config, training_sampling(config), problem, config.grpo.num_generations)


def _conversation(config: RunConfig, problem: str) -> list[dict[str, str]]:
    from grpo_kit.policy.chat import build_messages

    return build_messages(problem, config.data.prompt_suffix, config.data.system_prompt)


def _sample(model: Any, tokenizer: Any, config: RunConfig, evaluation: Any, problem: str, count: int) -> list[Any]:
    from grpo_kit.policy.episodes import sample_completions

    conversations, thinking = [_conversation(config, problem)] * count, config.policy.enable_thinking
    budgets = [config.policy.budget_of()] * count
    return sample_completions(model, tokenizer, conversations, evaluation, config.run.seed, thinking, budgets=budgets)


def ask(config: RunConfig, run: Run, question: str, thinking: bool | None = None) -> None:
    """Show how the untrained and the trained policy answer a question, side by side, while they write.

    The policy is loaded for the first question and stays loaded for the next ones.

    Args:
        config: the run's configuration.
        run: the run; without a finished training only the untrained policy answers.
        question: any question.
        thinking: whether the policy thinks before it answers; None: as the run is configured.

    Raises:
        ValueError: the question is empty, or too long for an answer.
    """
    from grpo_kit.display.replies import NotebookReplies
    from grpo_kit.evaluation import ask as asking
    from grpo_kit.policy.chat import template_opens_thinking

    asking.require_question(question)
    trained = [run.stages()[stage] for stage in run.trained_stages()]
    wanted = repr((run.path, config.policy, trained))
    if wanted not in _loaded:
        _loaded.clear()  # the memory holds one policy
        _loaded[wanted] = asking.load_trained(config, run)
    model, tokenizer = _loaded[wanted]
    thinking = config.policy.enable_thinking if thinking is None else thinking
    shown = NotebookReplies(question, template_opens_thinking(tokenizer, thinking))
    shown.finish(asking.ask(model, tokenizer, config, question, thinking, shown.show))


_loaded: dict[str, tuple[Any, Any]] = {}  # {what was loaded: (model, tokenizer)}, at most one


# Notebook 2: the data


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


# Notebooks 3 and 4: training, results, the zip


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
    from grpo_kit.evaluation.intervals import describe_comparison

    print(describe_comparison(report))


def show_judge(config: RunConfig, run: Run, limit: int = 100) -> None:
    """Measure the run's judge on at most `limit` pairs of its own completions, and show what was found."""
    from grpo_kit.display import terminal
    from grpo_kit.evaluation.judge_check import check_judge

    terminal.print_judge(check_judge(config, run, limit=limit))


def submit_zip(zip_path: Path, message: str, send: bool) -> None:
    """Submit the zip to the challenge and print its score; without `send`, print what would be sent."""
    from grpo_kit.kaggle.submit import submit

    try:
        score = submit(zip_path, message, dry_run=not send)
    except ValueError as error:
        if send:
            raise
        print(f"{reword(str(error))}\nNothing was sent.")
        return
    if score:
        print(f"{score} on the public leaderboard")


def publish(config: RunConfig, run: Run, to: str, private: bool, send: bool, base: str = "") -> None:
    """Put the adapter on the Hugging Face Hub as `to`, USER/REPO; without `send`, show its files and its card.

    `base` is the id on the Hub of a base that lies in a local folder.
    """
    from IPython.display import Markdown, display

    from grpo_kit.publishing.publish import publish as publish_run

    published = publish_run(config, run, to, private, dry_run=not send, base=base.strip() or None)
    for path in published.files:
        print(f"{path.stat().st_size:>14,} bytes  {path.name}")
    if send:
        display(Markdown(f"[{published.address}]({published.address})"))
        return
    card = (published.folder / "README.md").read_text(encoding="utf-8")
    display(Markdown(card.split("\n---\n", 1)[1]))  # without its metadata, which the Hub shows as fields
    print("Nothing was sent.")


# Notebook 5: the search over settings


def show_search_space(search: str) -> list[str]:
    """Print each setting to search and its values, and return the settings; `search` is `key=log(a,b) key=[a,b,c]`."""
    from grpo_kit.tuning import space

    settings = split_settings(search)
    axes, _ = space.parse_search(settings)
    for key, axis in axes.items():
        print(f"{key:<24}", " or ".join(axis.choices) or f"{axis.low:g} to {axis.high:g}, {axis.kind}")
    return settings


def open_search_board(run: Run, trials: int) -> Any:
    """Show a board for a search over settings, with a button that stops it; returns a `tuning.board.SearchBoard`."""
    from IPython.display import display

    from grpo_kit.tuning.board import SearchBoard

    board = SearchBoard(run, trials)
    display(board)
    return board


def show_optuna(run: Run) -> None:
    """Show Optuna's own pictures of the search: the accuracy of trial after trial, and by each setting."""
    from IPython.display import Image, display

    from grpo_kit.tuning import report, study

    for picture in report.draw_optuna(study.load_study(run)):
        display(Image(picture))


def show_effects(result: Mapping[str, Any], run: Run) -> None:
    """Show the search as a chart, and print for each setting whether it changed the accuracy."""
    from IPython.display import Image, display

    from grpo_kit.tuning import report

    display(Image(run.path / "tune" / "tune.png"))
    print("\n".join(report.describe_effects(result)))
