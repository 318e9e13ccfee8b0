"""Opens the run that the fields of a notebook's form describe, and says where another notebook is.

A notebook starts on a fresh machine and asks no questions: without Google Drive or secrets it goes on.
"""

import os
from collections.abc import Mapping

from grpo_kit.config import RunConfig, load_config
from grpo_kit.config.form import split_settings
from grpo_kit.display import console
from grpo_kit.display.notebook_words import reword, reword_errors
from grpo_kit.notebook.fields import require_switch, require_text
from grpo_kit.runs import session
from grpo_kit.runs.installation import REPOSITORY
from grpo_kit.runs.places import detect_place, mount_drive
from grpo_kit.runs.run import Run, find_run

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
        TypeError: a field has a value of another type.
    """
    from IPython import get_ipython

    reword_errors(get_ipython())
    fields = {"preset": (preset, AUTO), "run_name": (run_name, ""), "overrides": (overrides, "grpo.max_steps=60")}
    for field, (value, example) in (fields | {"tracker": (tracker, "none")}).items():
        require_text(field, value, example)
    require_switch("use_drive", use_drive)
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
