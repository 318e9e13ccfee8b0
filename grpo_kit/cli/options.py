"""The arguments and options of the commands in `main`, each with its help text."""

from pathlib import Path
from typing import Annotated

import typer

from grpo_kit import __version__


def _option(*names: str, help: str, **more: object) -> object:
    return typer.Option(*names, help=help, show_default=False, **more)


# Of `grpo-kit` itself
def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"grpo-kit {__version__}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
]

# Of several commands
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, such as grpo.num_generations=16", show_default=False)
]
Sources = Annotated[
    list[str] | None,
    _option(
        "--config",
        "-c",
        help="a preset (tiny, tiny-environments, tiny-office, t4-4b, t4, t4x2, 24gb, 80gb, deepscaler) or a YAML file; "
        "may be repeated",
    ),
]
RunName = Annotated[str | None, _option("--run", help="the run's name; its folder is runs/NAME")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="print the resolved configuration and what would be done; change nothing")
]
Environments = Annotated[
    bool, typer.Option("--environments", help="on sums, records, instructions and documents at once, then on one alone")
]
Force = Annotated[bool, typer.Option("--force", help="repeat a stage that is done")]
NumProcesses = Annotated[int, typer.Option(min=1, help="share each step between so many processes, one a GPU")]

# ask
Question = Annotated[
    list[str] | None,
    typer.Argument(metavar="QUESTION", help="such as 'What is 47 + 38?'; key=value words are settings"),
]
Thinking = Annotated[
    bool | None,
    _option("--thinking/--no-thinking", help="whether the policy thinks before it answers; default: as the run does"),
]

Budget = Annotated[
    int | None,
    _option("--budget", min=1, help="close a thought after so many tokens; default: as the run does"),
]

# calibrate
Prompts = Annotated[int, typer.Option(help="how many training prompts to answer, at least 1")]

# evaluate
Experts = Annotated[
    bool, typer.Option("--experts", help="also print, layer by layer, how training changed the load of the experts")
]

# score
Problems = Annotated[int, typer.Option(help="how many held-out puzzles; each family gets its share")]
ScoredZip = Annotated[Path | None, _option("--zip", metavar="FILE.zip", help="score this zip, not the run's adapter")]

# tune
SearchWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SETTING=VALUES ...", help="'grpo.learning_rate=log(1e-4,1e-2)', 'lora.r=[8,16,32]', key=value"
    ),
]
ForceSearch = Annotated[bool, typer.Option("--force", help="start the search again from the beginning")]
Trials = Annotated[int, typer.Option(help="number of trials in all")]
Steps = Annotated[int, typer.Option(help="training steps of each trial")]
Every = Annotated[
    int | None,
    _option(help="steps between measurements on the validation split; default: 5, or --steps if that is less"),
]
Grid = Annotated[bool, typer.Option("--grid", help="try every combination of the choices once")]

# package
ZipPath = Annotated[Path | None, _option("--out", help="where to write the zip")]
Adapters = Annotated[
    list[Path] | None,
    _option(
        "--adapter",
        help="package the adapter in this folder, or in a step of verl or NeMo-RL, not the run's; given twice, both "
        "are stacked",
    ),
]
Dtype = Annotated[str | None, _option(help="float32, float16 or bfloat16; default: the adapter's own")]
Ranks = Annotated[str, typer.Option(help="for several ranks: pad to one rank, or declare them in a pattern")]
Stacked = Annotated[
    str, typer.Option(help="layout of a lora_B with all experts: auto, rank-first (PEFT) or expert-first (Unsloth)")
]
OnlyUsed = Annotated[bool, typer.Option("--only-used", help="leave out the pairs that the challenge's scorer drops")]

# handoff
Engine = Annotated[str, typer.Option("--to", help="nemo-rl, verl or trl")]
HandoffFolder = Annotated[Path | None, _option("--out", help="a new folder; default: handoff/ENGINE of the run")]
Merge = Annotated[bool, typer.Option("--merge", help="add the base with the adapter merged into it, in bf16")]

# export
Form = Annotated[str, typer.Option("--to", help="gguf-lora (a small file beside the base's GGUF) or merged")]
ExportedAdapter = Annotated[Path | None, _option("--adapter", help="export this folder, not the run's adapter")]
ExportedBase = Annotated[
    str | None,
    _option(
        "--base",
        metavar="FOLDER | OWNER/NAME",
        help="a folder with the base's files, or its id on the Hub where the run or the adapter does not name it",
    ),
]
ExportFolder = Annotated[Path | None, _option("--out", help="the folder to write; default: export/FORM of the run")]
GgufDtype = Annotated[
    str | None, _option("--dtype", help="of the GGUF's tensors: float32, or float16 for half the size")
]
PlannedExport = Annotated[
    bool, typer.Option("--dry-run", help="say what would be written and how large; change nothing")
]

# plan
DeviceName = Annotated[str | None, _option(help="t4, p100, t4x2, 24gb, 40gb, 80gb or cpu; default: this machine")]
PromptTokens = Annotated[int, typer.Option(help="length of the longest prompt in tokens, tools included")]
PlannedProcesses = Annotated[int, typer.Option(min=1, help="plan for one of so many processes, one a GPU")]

# reproduce, check, rewards audit, rewards judge-check
RepeatedRun = Annotated[str, typer.Argument(metavar="RUN", help="the run to repeat")]
CheckedZip = Annotated[Path, typer.Argument(metavar="FILE.zip", help="the zip to check")]
RewardFile = Annotated[str, typer.Argument(metavar="FILE.py", help="a reward file, or FILE.py:function")]
Pairs = Annotated[
    Path | None,
    _option("--pairs", help="your own pairs in JSON Lines: prompt, chosen, rejected; default: the run's completions"),
]
MostPairs = Annotated[
    int, typer.Option("--limit", min=1, help="judge so many pairs at most; of a file, its first ones")
]
Cases = Annotated[Path | None, _option(help="labelled cases in JSON Lines; default: the kit's own sample")]
