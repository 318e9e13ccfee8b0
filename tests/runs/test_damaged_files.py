"""Every command on a finished run with a damaged file: one sentence with the file and the remedy, and no trace.

The tests run the commands in this process. `python -m tests.runs.test_damaged_files` prints the table of all files,
damages and commands.
"""

import contextlib
import csv
import io
import json
import random
import re
import shutil
import sys
import tempfile
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grpo_kit import Board, compare, load_config, notebook
from grpo_kit.cli.main import app
from grpo_kit.config.protocols import PROTOCOLS
from grpo_kit.data import puzzles
from grpo_kit.rewards.tools.loading import load_reward
from grpo_kit.runs.files import hash_of
from grpo_kit.runs.run import find_run
from tests.helpers.settings import SMALL

FILES = (
    "run.json", "config.yaml", "metrics.jsonl", "completions.jsonl", "forecast.json", "evaluation/before.json",
    "evaluation/after.json", "evaluation/after_experts.json", "data/manifest.json", "data/train/data.jsonl",
    "data/test/data.jsonl", "screening.jsonl", "data/dropped.jsonl", "data/train/screened.jsonl",
    "evaluation/report.json", "evaluation/score.json", "adapter/adapter_model.safetensors",
    "adapter/adapter_config.json", "evaluation/probe.safetensors", "tune/study.db",
)  # fmt: skip
RUN = ["--run", "r"]
SCORE = ["score", "data.paths.nemotron_challenge={root}/train.csv", "--problems", "3", *RUN]
COMMANDS = {
    "data": ["data", *RUN], "screen": ["screen", *RUN], "train": ["train", *RUN], "evaluate": ["evaluate", *RUN],
    "report": ["report", *RUN], "package": ["package", "--out", "{out}/x.zip", *RUN],
    "check": ["check", "{root}/x.zip", *RUN], "reproduce": ["reproduce", "r"],
    "score": SCORE, "score a zip": [*SCORE, "--zip", "{root}/x.zip"],
    "tune": ["tune", "lora.r=[4,8]", "--trials", "2", "--steps", "1", *RUN],
    "calibrate": ["calibrate", "policy.load_in_4bit=true", "--prompts", "2", *RUN],
} | {
    f"handoff {words}": ["handoff", "--to", *words.split(), "--out", "{out}/handoff", *RUN]
    for words in ("trl", "verl", "nemo-rl", "verl --merge")
}  # fmt: skip


def show_board(run):
    """What the board says where it cannot be drawn."""
    head = Board(run).head.value
    if "cannot be drawn" in head:
        raise ValueError(re.sub("<[^>]*>The board cannot be drawn.<[^>]*> ", "", head))


# What the notebooks call on a finished run, each with (configuration, run) as the first cell opened them.
NOTEBOOK = {
    "open_from_form": lambda config, run: notebook.open_from_form("auto", "r"),
    "require_stage": lambda config, run: notebook.require_stage(run, "data", "02_data"),
    "read_rows": lambda config, run: notebook.read_rows(run, "train"),
    "show_funnel": lambda config, run: notebook.show_funnel(MANIFEST, run),
    "show_difficulty": lambda config, run: notebook.show_difficulty(config, run, load_reward(VERIFIER)),
    "show_trl_settings": lambda config, run: notebook.show_trl_settings(config, run),
    "show_alarms": lambda config, run: notebook.show_alarms(run),
    "show_curves": lambda config, run: notebook.show_curves(run),
    "show_completions": lambda config, run: notebook.show_completions(run),
    "show_example": lambda config, run: notebook.show_example(run),
    "show_comparison": lambda config, run: notebook.show_comparison(compare(run)),
    "Board": lambda config, run: show_board(run),
}


VERIFIER = "math_answer.py:math_reward"
MANIFEST = {"read": 1, "funnel": [], "rows": {"train": 1, "val": 0, "test": 0}}  # as `prepare_data` returned it
OPENED = load_config(["tiny"], [*SMALL, "data.pass_rate=[0,1]", "screening.num_generations=4"])


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def flip(path: Path) -> None:
    """Change one byte in the middle of the file, a sign of JSON or YAML if there is one near."""
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    place = next((i for i in range(middle, len(data)) if data[i] in b':"'), middle)
    data[place] ^= 0x80
    path.write_bytes(data)


def deepen(path: Path) -> None:
    path.write_text('{"a":' * 200_000)


def into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def randomise(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(5000))


DAMAGES = {
    "cut": cut,
    "flipped": flip,
    "empty": lambda path: path.write_bytes(b""),
    "binary": randomise,
    "a list": lambda path: path.write_text("[1, 2]\n"),
    "deep": deepen,
    "a folder": into_folder,
    "deleted": lambda path: path.unlink(),
}


def make_run(root: Path) -> None:
    """A small finished run `r` in `root/runs`, screened, packed as `root/x.zip`, with a search."""
    places = [f"run.root={root}/runs", "data.pass_rate=[0,1]", "screening.num_generations=4"]
    for words in (
        ["data", "-c", "tiny", *SMALL, *places],
        ["screen"],
        ["train"],
        ["evaluate"],
        ["package", "--out", f"{root}/x.zip"],
    ):
        status, sentence = run_command([*words, *RUN], root)
        assert status == 0, (words, sentence)
    write_train_csv(root)
    for name in ("score", "tune"):
        status, sentence = run_command(COMMANDS[name], root)
        assert status == 0, (name, sentence)


def write_train_csv(root: Path) -> None:
    """A train.csv of a dozen puzzles for `score`."""
    with (root / "train.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["id", "prompt", "answer"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(puzzles.make_rows(12, seed=5))


def run_command(words: list[str], root: Path) -> tuple[int, str]:
    """(exit status, the sentence or the trace) of a command on the run `r` in `root`, as a user types it there."""
    patch = pytest.MonkeyPatch()
    patch.setenv("GRPO_KIT_ROOT", str(root / "runs"))
    patch.setenv("COLUMNS", "10000")
    patch.chdir(root)
    protocol = PROTOCOLS["challenge"]  # with 24 tokens in place of 7,680: the tiny policy cannot solve puzzles
    cut = replace(protocol, evaluation=protocol.evaluation | {"max_completion_length": 24})
    patch.setitem(PROTOCOLS, "challenge", cut)
    words = [word.format(root=root, out=root / "out") for word in words]
    try:
        result = CliRunner().invoke(app, words)
    finally:
        patch.undo()
    if result.exception and not isinstance(result.exception, SystemExit):
        return -1, "".join(traceback.format_exception(result.exception))
    lines = [line for line in result.output.splitlines() if line.startswith("error: ")]
    return result.exit_code, " ".join(lines).replace(f"{root}/", "").removeprefix("error: ")


def call_notebook(name: str, root: Path) -> tuple[int, str]:
    """(2 for a sentence, 1 for another exception, 0 for none; the text) of one of the notebooks' functions."""
    patch = pytest.MonkeyPatch()
    patch.setenv("GRPO_KIT_ROOT", str(root / "runs"))
    patch.chdir(root)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            NOTEBOOK[name](OPENED, find_run("r"))
    except (ValueError, FileNotFoundError) as error:
        is_sentence = type(error) in (ValueError, FileNotFoundError) and str(error).endswith(".")
        text = str(error) if is_sentence else "".join(traceback.format_exception(error))
        return 2 if is_sentence else 1, text.replace(f"{root}/", "")
    except Exception as error:
        return 1, "".join(traceback.format_exception(error))
    finally:
        patch.undo()
    return 0, ""


def try_damage(finished: Path, name: str, damage: str, command: str, root: Path) -> tuple[int, str, bool]:
    """(exit status, sentence, whether the damaged file was left as it was) of one command on a copy of the run."""
    shutil.copytree(finished, root)
    path = root / "runs/r" / name
    DAMAGES[damage](path)
    before = hash_of(path)
    status, sentence = call_notebook(command, root) if command in NOTEBOOK else run_command(COMMANDS[command], root)
    return status, sentence, hash_of(path) == before


# One case for each kind of file; the last column is what the sentence begins with.
CASES = [
    ("run.json", "cut", "report", r"runs/r/run\.json, line \d+, is damaged: it is not JSON"),
    ("run.json", "a folder", "train", r"runs/r/run\.json is a folder"),
    ("run.json", "deleted", "data", r"runs/r/run\.json is gone, and runs/r/adapter is there"),
    ("config.yaml", "deleted", "train", r"runs/r/config\.yaml, which has the settings of run 'r', is gone"),
    ("config.yaml", "empty", "evaluate", r"runs/r/config\.yaml is damaged: policy\.model is missing"),
    ("config.yaml", "flipped", "report", r"runs/r/config\.yaml is not readable YAML"),
    ("config.yaml", "a list", "package", r"runs/r/config\.yaml is not a mapping"),
    ("metrics.jsonl", "flipped", "report", r"runs/r/metrics\.jsonl, line \d+, is damaged: it is not UTF-8"),
    ("metrics.jsonl", "a list", "train", r"runs/r/metrics\.jsonl, line 1, is damaged: it is a list"),
    ("completions.jsonl", "flipped", "report", r"runs/r/completions\.jsonl, line \d+, is damaged"),
    ("forecast.json", "deep", "report", r"runs/r/forecast\.json is damaged: it is nested too deeply"),
    ("evaluation/before.json", "empty", "evaluate", r"runs/r/evaluation/before\.json is damaged: it is empty"),
    ("evaluation/after.json", "a folder", "report", r"runs/r/evaluation/after\.json is a folder"),
    ("data/manifest.json", "cut", "train", r"runs/r/data/manifest\.json, line \d+, is damaged"),
    ("data/train/data.jsonl", "empty", "train", r"runs/r/data/train/data\.jsonl is not as stage 'data' wrote it"),
    ("data/test/data.jsonl", "flipped", "evaluate", r"runs/r/data/test/data\.jsonl, line \d+, is damaged"),
    ("adapter/adapter_model.safetensors", "flipped", "package", r"runs/r/adapter is not as stage 'train' wrote it"),
    ("run.json", "binary", "score", r"runs/r/run\.json, line 1, is damaged: it is not UTF-8"),
    ("data/manifest.json", "cut", "score", r"runs/r/data/manifest\.json, line \d+, is damaged"),
    ("data/train/data.jsonl", "a folder", "score", r"runs/r/data/train/data\.jsonl is a folder"),
    ("config.yaml", "binary", "reproduce", r"runs/r/config\.yaml is not readable YAML"),
    ("run.json", "a list", "reproduce", r"runs/r/run\.json is damaged: it is a list, not a JSON object"),
    ("data/train/data.jsonl", "cut", "reproduce", r"runs/r/data/train/data\.jsonl, line \d+, is damaged"),
    ("metrics.jsonl", "a list", "reproduce", r"runs/r/metrics\.jsonl, line 1, is damaged: it is a list"),
    ("data/train/data.jsonl", "flipped", "calibrate", r"runs/r/data/train/data\.jsonl, line \d+, is damaged"),
    ("data/manifest.json", "empty", "tune", r"runs/r/data/manifest\.json is damaged: it is empty"),
    ("run.json", "cut", "handoff nemo-rl", r"runs/r/run\.json, line \d+, is damaged: it is not JSON"),
    (
        "data/test/data.jsonl",
        "a list",
        "handoff trl",
        r"runs/r/data/test/data\.jsonl, line 1, is damaged: it is a list",
    ),
    ("adapter/adapter_config.json", "binary", "handoff verl --merge", r"runs/r/adapter is not as stage 'train' wrote"),
    ("run.json", "cut", "open_from_form", r"runs/r/run\.json, line \d+, is damaged: it is not JSON"),
    ("data/train/data.jsonl", "empty", "read_rows", r"runs/r/data/train/data\.jsonl is not as stage 'data' wrote it"),
    (
        "data/train/data.jsonl",
        "empty",
        "show_difficulty",
        r"runs/r/data/train/data\.jsonl is not as stage 'data' wrote",
    ),
    ("data/dropped.jsonl", "a list", "show_funnel", r"runs/r/data/dropped\.jsonl, line 1, is damaged: it is a list"),
    ("metrics.jsonl", "a folder", "show_alarms", r"runs/r/metrics\.jsonl is a folder"),
    ("metrics.jsonl", "empty", "show_curves", r"runs/r/metrics\.jsonl is damaged: it has no step"),
    ("evaluation/report.json", "a list", "show_curves", r"runs/r/evaluation/report\.json is damaged: it is a list"),
    ("completions.jsonl", "deleted", "show_completions", r"runs/r/completions\.jsonl does not exist"),
    (
        "evaluation/after.json",
        "deep",
        "show_example",
        r"runs/r/evaluation/after\.json is damaged: it is nested too dee",
    ),
    (
        "evaluation/before.json",
        "deleted",
        "show_comparison",
        r"runs/r/evaluation/before\.json, written by stage .* gone",
    ),
    ("completions.jsonl", "a folder", "Board", r"runs/r/completions\.jsonl is a folder"),
    ("metrics.jsonl", "flipped", "Board", r"runs/r/metrics\.jsonl, line \d+, is damaged: it is not UTF-8"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, trained):
    """The folder of a small finished run `r`, as the fixture `trained` has it."""
    root = tmp_path_factory.mktemp("finished")
    shutil.copytree(trained[1].path, root / "runs/r")
    write_train_csv(root)
    return root


@pytest.mark.slow
@pytest.mark.parametrize(("name", "damage", "command", "sentence"), CASES)
def test_a_damaged_file_is_named_and_nothing_is_written_over_it(tmp_path, finished, name, damage, command, sentence):
    status, text, unchanged = try_damage(finished, name, damage, command, tmp_path / "copy")
    assert status == 2 and unchanged, text
    assert re.match(sentence, text) and re.search("Put back a copy of it|Move it away|to make it again", text), text


def main() -> None:
    """Print a line of JSON for each file, damage and command; arguments choose among them, and name a finished run."""
    commands = sys.argv[1].split(",") if len(sys.argv) > 1 else [*COMMANDS, *NOTEBOOK]
    files = sys.argv[2].split(",") if len(sys.argv) > 2 else FILES
    damages = sys.argv[3].split(",") if len(sys.argv) > 3 else DAMAGES
    with tempfile.TemporaryDirectory() as folder:
        finished = Path(sys.argv[4]) if len(sys.argv) > 4 else Path(folder) / "finished"
        if not finished.exists():
            make_run(finished)
        for name in files:
            for damage in damages:
                for command in commands:
                    root = Path(folder) / "copy"
                    outcome = try_damage(finished, name, damage, command, root)
                    shutil.rmtree(root)
                    print(json.dumps([name, damage, command, *outcome]), flush=True)


if __name__ == "__main__":
    main()
