"""In a notebook no message speaks of commands and options: each string of the package is reworded, and checked."""

import ast
import re

import pytest

from grpo_kit.display import notebook_words
from grpo_kit.display.notebook_words import reword
from grpo_kit.runs.texts import name_functions
from tests.helpers.settings import ROOT

# What only the command line, or a file that it writes, shows.
ELSEWHERE = re.compile(
    r"/(cli|handoff|llama_cpp)/|kaggle/(wheels|kernel|run_kernel|accelerators)|runs/processes|notebook_words|rewards/tools/audit"
)


def strings_of_the_package():
    """[(file, line, text)] of the strings of the package but docstrings; what an f-string fills in is X."""
    for path in sorted((ROOT / "grpo_kit").rglob("*.py")):
        name = path.relative_to(ROOT).as_posix()
        if ELSEWHERE.search(name):
            continue
        tree = ast.parse(path.read_text())
        inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                inner |= {id(part) for part in ast.walk(node) if part is not node}
                text = "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            if id(node) not in inner:
                yield name, node.lineno, text


@pytest.mark.slow
def test_no_message_that_a_notebook_can_show_names_a_command_or_an_option():
    texts = list(strings_of_the_package())
    assert len([text for _, _, text in texts if "grpo-kit " in text or "--" in text]) > 50
    for name, line, text in texts:
        shown = re.sub(r"`(!grpo-kit|!pip|hf|kaggle)\b[^`]*`", "", reword(text))
        wrong = re.search(r"grpo-kit [a-z]|(?<![\w-])--[a-z]|(?<![\w-])-[cr] |same command", shown)
        assert not wrong or "\n" in text, f"{name}:{line}: {shown}"


def test_every_cell_that_is_named_exists():
    for sentence in notebook_words.CELLS.values():
        cells = re.findall(r"\*(.+?)\*.*?(\d\d_\w+)", sentence) or [("", *re.findall(r"\d\d_\w+", sentence))]
        for heading, *names in cells:
            text = (ROOT / f"notebooks/src/{names[0]}.py").read_text() if names else ""
            assert not heading or f"\n# ## {heading}\n" in text


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("Run `grpo-kit data` and then `grpo-kit train`.", "Run notebook 02_data and then notebook 03_training."),
        (name_functions("Run `grpo-kit data` first."), "Run notebook 02_data first."),
        ("`grpo-kit train --dry-run` prints them all.", "`notebook.show_settings(config)` prints them all."),
        ("Make it with `grpo-kit calibrate`.", "Make it with `!grpo-kit calibrate` in a cell."),
        ("`pip install --upgrade 'x>=2'`", "`!pip install --upgrade 'x>=2'` in a cell"),
        ("Use --force (run.force=true) to replace it.", "Use `run.force=true` in the field `overrides` to replace it."),
        ("or --run (run.name) for a new run.", "or the field `run_name` for a new run."),
        ("`hf download x --local-dir F`, or --out", "`hf download x --local-dir F`, or the argument `out`"),
        ("Grow. grpo-kit package writes true.", "Grow. The cell *Pack* of notebook 04_submit writes true."),
        ("See grpo-kit's notes; a-c -c- x --- y", "See grpo-kit's notes; a-c -c- x --- y"),
    ],
)  # fmt: skip
def test_a_command_or_an_option_becomes_a_cell_or_a_field(sentence, words):
    assert reword(sentence) == words


def test_an_error_of_the_kit_is_reworded_in_a_cell_and_others_are_not(tmp_path):
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell()
    shell.InteractiveTB.set_mode("Minimal")
    notebook_words.reword_errors(shell)
    shell.run_cell("from grpo_kit.runs.run import Run; from pathlib import Path")
    ours = shell.run_cell(f"Run(Path({str(tmp_path)!r}), 'r').require_stage('train', 'grpo-kit train')", silent=True)
    assert str(ours.error_in_exec).endswith("Run notebook 02_data and then notebook 03_training first.")
    assert isinstance(ours.error_in_exec, FileNotFoundError)
    other = shell.run_cell("raise ValueError('use --force')")
    assert str(other.error_in_exec) == "use --force"
