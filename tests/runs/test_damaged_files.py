"""Every command on a finished run with a damaged file: one sentence with the file and the remedy, and no trace.

The tests run the commands in this process. `python -m tests.runs.test_damaged_files` prints the table of all files,
damages and commands.
"""

import json
import re
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

import pytest
from typer.testing import CliRunner

from grpo_kit.cli.main import app
from grpo_kit.runs.files import hash_of
from tests.helpers.settings import SMALL

FILES = (
    "run.json", "config.yaml", "metrics.jsonl", "completions.jsonl", "forecast.json", "evaluation/before.json",
    "evaluation/after.json", "data/manifest.json", "data/train/data.jsonl", "data/test/data.jsonl", "screening.jsonl",
    "data/train/screened.jsonl", "adapter/adapter_model.safetensors", "adapter/adapter_config.json",
    "evaluation/probe.safetensors", "tune/study.db",
)  # fmt: skip
COMMANDS = {
    "data": ["data"], "screen": ["screen"], "train": ["train"], "evaluate": ["evaluate"], "report": ["report"],
    "package": ["package", "--out", "{out}/x.zip"], "check": ["check", "{root}/x.zip"],
    "handoff": ["handoff", "--to", "trl", "--out", "{out}/handoff"],
    "tune": ["tune", "lora.r=[4,8]", "--trials", "2", "--steps", "1"], "reproduce": ["reproduce"],
}  # fmt: skip


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


DAMAGES = {
    "cut": cut,
    "flipped": flip,
    "empty": lambda path: path.write_bytes(b""),
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
        COMMANDS["tune"],
    ):
        result = CliRunner().invoke(app, [*words, "--run", "r"])
        assert result.exit_code == 0, (words, result.output, result.exception)


def run_command(words: list[str], root: Path) -> tuple[int, str]:
    """(exit status, the sentence or the trace) of a command on the run `r` in `root`, as a user types it there."""
    patch = pytest.MonkeyPatch()
    patch.setenv("GRPO_KIT_ROOT", str(root / "runs"))
    patch.setenv("COLUMNS", "10000")
    patch.chdir(root)
    words = [word.format(root=root, out=root / "out") for word in words]
    try:
        result = CliRunner().invoke(app, [*words, "--run", "r"])
    finally:
        patch.undo()
    if result.exception and not isinstance(result.exception, SystemExit):
        return -1, "".join(traceback.format_exception(result.exception))
    lines = [line for line in result.output.splitlines() if line.startswith("error: ")]
    return result.exit_code, " ".join(lines).replace(f"{root}/", "").removeprefix("error: ")


def try_damage(finished: Path, name: str, damage: str, command: str, root: Path) -> tuple[int, str, bool]:
    """(exit status, sentence, whether the damaged file was left as it was) of one command on a copy of the run."""
    shutil.copytree(finished, root)
    path = root / "runs/r" / name
    DAMAGES[damage](path)
    before = hash_of(path)
    status, sentence = run_command(COMMANDS[command], root)
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
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, trained):
    """The folder of a small finished run `r`, as the fixture `trained` has it."""
    root = tmp_path_factory.mktemp("finished")
    shutil.copytree(trained[1].path, root / "runs/r")
    return root


@pytest.mark.parametrize(("name", "damage", "command", "sentence"), CASES)
def test_a_damaged_file_is_named_and_nothing_is_written_over_it(tmp_path, finished, name, damage, command, sentence):
    status, text, unchanged = try_damage(finished, name, damage, command, tmp_path / "copy")
    assert status == 2 and unchanged, text
    assert re.match(sentence, text) and re.search("Put back a copy of it|Move it away", text), text


def main() -> None:
    """Print a line of JSON for each file, damage and command; arguments choose among them, and name a finished run."""
    commands = sys.argv[1].split(",") if len(sys.argv) > 1 else COMMANDS
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
