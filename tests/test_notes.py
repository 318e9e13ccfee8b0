"""The pages are true: their tables hold what the plan computes today, their examples run, and what they name exists."""

import bisect
import dataclasses
import doctest
import functools
import importlib.util
import re
import sys
from pathlib import Path

import click
import pytest
import typer

from grpo_kit import config
from grpo_kit.cli.main import app
from grpo_kit.config.checks import REFUSED
from grpo_kit.planning import machines
from grpo_kit.planning.fit import assess_fit
from grpo_kit.planning.model_size import Architecture
from grpo_kit.planning.plan import KEYS, vary_setting
from grpo_kit.runs.run import Run
from tests.helpers.processes import start
from tests.helpers.settings import ROOT

README, T4, METHOD, SCALE = ROOT / "README.md", *(ROOT / "notes" / f"{name}.md" for name in ("t4", "method", "scale"))
PAGES = [
    README,
    *sorted((ROOT / "notes").glob("*.md")),
    ROOT / "data" / "README.md",
    ROOT / "submission" / "README.md",
    ROOT / "CONTRIBUTING.md",
]
# Pages with dates say what was there on their day.
CURRENT = [page for page in PAGES if page.name not in ("benchmarks.md", "daily_log.md")]
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def load_benchmark(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def hardware():
    return load_benchmark("hardware")


@pytest.fixture(scope="module")
def more_gpus(hardware):
    return load_benchmark("more_gpus")


def read_table(page: Path, name: str) -> list[dict[str, str]]:
    """The rows of the table after the mark of this name."""
    lines = re.search(rf"<!-- {name}: .*-->\n((?:\|.*\n)*)", page.read_text())[1].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(head, row, strict=True)) for row in rows]


def assert_same_table(rows: list[dict[str, str]], expected: list[dict[str, str]]) -> None:
    """Words must be equal and numbers within 1 %, because other versions of torch count a few bytes more or fewer."""
    assert len(rows) == len(expected)
    for row, expected_row in zip(rows, expected):
        assert row.keys() == expected_row.keys()
        for name, cell in expected_row.items():
            assert NUMBER.sub("#", row[name]) == NUMBER.sub("#", cell), name
            values = ([float(n.replace(",", "")) for n in NUMBER.findall(text)] for text in (row[name], cell))
            assert next(values) == pytest.approx(next(values), rel=0.01), (row, name)


@pytest.mark.parametrize(
    "name", [pytest.param("fits", marks=pytest.mark.slow), "settings", "refused", "times", "hours"]
)
def test_the_tables_of_the_hardware_page_are_what_the_plan_computes(hardware, name):
    computed = hardware.fits(hardware.plans(search=False)) if name == "fits" else getattr(hardware, name)()
    assert_same_table(read_table(T4, name), computed)


def test_the_hardware_table_of_the_readme_is_what_the_plan_computes(hardware):
    assert_same_table(read_table(README, "hardware"), hardware.short())


def test_the_first_table_of_the_readme_repeats_the_computed_one():
    """Each computed row has the tokens and the hours of the row with the same preset and card."""
    short = re.search(r"^\| you have .*\n\|[-|]+\n((?:\|.*\n)+)", README.read_text(), re.MULTILINE)[1].splitlines()
    computed = {(row["model, card"], row["preset"]): row for row in read_table(README, "hardware")}
    for line in short[1:]:
        card, trains, tokens, preset, hours = (cell.strip() for cell in line.strip("|").split("|"))
        row = computed[f"{'4B' if '-4B' in trains else '30B'}, {card.split(',')[0]}", preset]
        assert (tokens, hours) == (row["tokens"], row["100 steps"]), line
    assert len(short) == 6 and "10 to 26 s by machine, **measured**" in short[0]


@pytest.mark.slow
def test_the_largest_settings_on_the_page_fit_and_larger_ones_do_not(hardware):
    """Two plans per value show that it fits and the next possible one does not. The search itself takes minutes."""
    rows = {(m.preset, m.device): row for m, row in zip(hardware.MACHINES, read_table(T4, "largest"), strict=True)}
    for (preset, device), row in rows.items():
        settings, machine = config.load_config([preset]), machines.find_device(device)
        model = Architecture.of(settings.policy)
        for key in KEYS:
            value = int(row[f"`{key}`"].split()[0])
            value_of = lambda m, a=settings, k=key: getattr(vary_setting(a, k, m).grpo, k)  # noqa: E731
            m = bisect.bisect_left(range(2**16), value, key=value_of)
            assert value_of(m) == value  # the key can have this value
            fits = [assess_fit(model, vary_setting(settings, key, n), machine, 256).fits for n in (m, m + 1)]
            assert fits == [True, False], (preset, device, key)


def test_two_machines_with_the_same_preset_and_device_have_equal_rows(hardware):
    rows = read_table(T4, "largest")
    assert [row["machine"] for row in rows] == [machine.name for machine in hardware.MACHINES]
    assert list(rows[-1].values())[1:] == list(rows[-2].values())[1:]  # A100 80 GB and H100


@pytest.mark.parametrize("name", ["two T4", "same step", "more prompts"])
def test_the_tables_of_the_page_on_several_gpus_are_what_the_plan_computes(more_gpus, name):
    assert_same_table(read_table(SCALE, name), more_gpus.TABLES[name]())


def test_an_exchange_sends_the_gradients_once_with_2_gpus_and_almost_twice_with_64(more_gpus, monkeypatch):
    monkeypatch.setattr(more_gpus, "waited", lambda: 0.25)
    gradients = 4 * 16 * 571_584  # float32, r, and in + out of the preset's matrices
    for count, times in ((2, 1.0), (8, 1.75), (64, 1.96875)):
        seconds = more_gpus.exchange(more_gpus.planned(count, count), 50.0)
        assert seconds == pytest.approx(0.25 + times * gradients / 50e9, abs=1e-9)
    assert more_gpus.exchange(more_gpus.planned(1, 1), 50.0) == 0.0


def test_the_page_on_several_gpus_quotes_the_last_measurement_and_the_refusal_of_the_plan(more_gpus):
    text = " ".join(SCALE.read_text().split())
    last = (ROOT / "notes" / "benchmarks.md").read_text().split("\n### scale, ")[-1]
    figures = dict(re.findall(r"(\w+) ([\d.]+|True)", last.split("\n\n")[2]))
    exchanges = re.search(r"^\| two .* (\d+) \|$", last, re.MULTILINE)[1]
    assert f"made {float(figures['times_one']):.2f} steps" in text
    assert f"made {float(figures['times_at_best']):.2f};" in text
    assert f"{float(figures['waiting']):.1%}".replace("%", " %") in text and f"{exchanges} exchanges per step" in text
    assert text.count(f"{more_gpus.waited() * 1e3:.0f} ms") == 2 and figures["same_tokens"] == "True"
    with pytest.raises(ValueError) as refused:
        more_gpus.planned(64, 1)
    assert f"*{refused.value}*" in text
    assert "Every figure for a GPU on this page is computed; none was measured" in text


def test_a_table_replaces_only_the_one_after_its_mark(hardware, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- x: here -->\n| old |\n|---|\n\n| another |\n")
    for _ in range(2):
        hardware.put(page, "x", [{"a": "1", "b": "2"}])
        assert page.read_text() == "before\n<!-- x: here -->\n| a | b |\n|---|---|\n| 1 | 2 |\n\n| another |\n"
    with pytest.raises(ValueError, match="0 marks named y"):
        hardware.put(page, "y", [{"a": "1"}])


def test_the_methods_formulas_are_what_the_code_computes():
    failed, tried = doctest.testfile(str(METHOD), module_relative=False)
    assert failed == 0 and tried >= 25


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_exists(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), target


def all_commands() -> dict[str, click.Command]:
    """{words after `grpo-kit`: command}, including the commands of groups, without hidden ones."""
    commands = {}

    def walk(group: click.Group, words: str) -> None:
        for name, command in group.commands.items():
            if command.hidden:
                continue
            path = f"{words}{name}"
            commands[path] = command
            if hasattr(command, "commands"):  # typer brings a click of its own
                walk(command, f"{path} ")

    walk(typer.main.get_command(app), "")
    return commands


def mentioned_commands(page: Path) -> list[str]:
    """Every `grpo-kit ...` on a page: indented lines without their comment, and code spans in sentences."""
    text = page.read_text()
    lines = [line.partition("#")[0] for line in text.splitlines() if line.startswith("    grpo-kit ")]
    return [command.strip() for command in [*lines, *re.findall(r"`(grpo-kit [^`]+)`", text)]]


@functools.cache
def files_of_the_kit() -> tuple[str, ...]:
    folders = ("grpo_kit", "tests", "notebooks", "benchmarks", "scripts", "data", "submission", ".ci")
    return tuple(f"/{path.relative_to(ROOT).as_posix()}" for name in folders for path in (ROOT / name).rglob("*"))


def lost_files(text: str) -> list[str]:
    """Paths of code and presets with a folder, as `data/cells.py`, that no file of the kit ends with."""
    paths = re.findall(r"(?<![\w./*:-])((?:[\w-]+/)+[\w-]+\.(?:py\.txt|py|cu|yaml|ipynb))\b", text)
    placeholders = re.compile(r"NAME|NN_")
    return [p for p in paths if not placeholders.search(p) and not any(f.endswith(f"/{p}") for f in files_of_the_kit())]


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_that_a_page_names_exists(page):
    assert lost_files(page.read_text()) == []


def test_a_file_that_moved_is_found():
    text = "`data/cells.py` and `kaggle/no_such_file.py` beside notebooks/src/NN_name.py, runs/install_cell.py.txt."
    assert lost_files(text) == ["kaggle/no_such_file.py"]


SETTINGS = config.load_config(["tiny"])
SECTIONS = "|".join(field.name for field in dataclasses.fields(SETTINGS))


def lost_settings(text: str) -> list[str]:
    """Settings, as `grpo.max_steps`, that the configuration does not have; its refused ones and names of files pass."""
    lost = []
    for key in re.findall(rf"(?<![\w./:-])((?:{SECTIONS})(?:\.[a-z_0-9]+)+)(?![\w(])", text):
        section, value = key.split(".")[0], SETTINGS
        for part in key.split("."):
            if dataclasses.is_dataclass(value):
                value = getattr(value, part, lost)
        is_file = key.rpartition(".")[2] in ("json", "jsonl", "md", "py", "sh", "yaml")
        is_object = section == "run" and hasattr(Run, key.split(".")[1])  # `run.is_done`
        if value is lost and not (is_file or is_object or key in REFUSED):
            lost.append(key)
    return lost


@pytest.mark.parametrize("page", CURRENT, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_setting_that_a_page_names_exists(page):
    assert lost_settings(page.read_text()) == []


def test_a_setting_that_was_renamed_is_found():
    text = "`grpo.max_steps=5`, `grpo.max_step`, data.mix.math, policy.modle=x, run.is_done, run.json, run.nmae"
    assert lost_settings(text) == ["grpo.max_step", "policy.modle", "run.nmae"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_on_a_page_exists_with_its_options(page):
    commands = all_commands()
    for line in mentioned_commands(page):
        words = line.split()[1:]
        name = " ".join(words[:2]) if " ".join(words[:2]) in commands else words[0]
        if name.startswith("-"):
            continue
        assert name in commands, line
        options = {option for parameter in commands[name].params for option in (*parameter.opts, "--help")}
        options |= {option for parameter in commands[name].params for option in parameter.secondary_opts}
        assert {word.split("=")[0] for word in words if re.match(r"--?[a-z]", word)} <= options, line


def test_every_command_has_help():
    from typer.testing import CliRunner

    for name in all_commands():
        result = CliRunner().invoke(app, [*name.split(), "--help"])
        assert result.exit_code == 0 and "Usage" in result.output, name


def test_the_readme_shows_every_command_except_rewards_and_demo():
    words = [line.split()[1:3] for line in mentioned_commands(README)]
    shown = {" ".join(pair) for pair in words} | {pair[0] for pair in words}
    assert set(all_commands()) - shown - {"rewards", "demo"} == set()


@pytest.mark.slow
def test_the_readme_example_of_a_copied_reward_trains(tmp_path):
    """The unchanged block runs below the pasted reward file, with the embedded policy and rows of this test."""
    (block,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(list(filter(None, block.splitlines()))) == 5
    pasted = (ROOT / "grpo_kit" / "rewards" / "math_answer.py").read_text()
    setup = f"""
from datasets import Dataset
model = {str(ROOT / "grpo_kit" / "nemotron" / "tiny_policy")!r}
questions = [(f"What is {{a}} + {{a}}?", str(2 * a)) for a in range(10, 18)]
rows = Dataset.from_list([{{"prompt": [{{"role": "user", "content": q}}], "answer": a}} for q, a in questions])
"""
    cell = f"{pasted}\n{setup}\n{block}\nassert trainer.state.global_step == 1\n"
    process = start(["-W", "ignore", "-c", cell], cwd=tmp_path)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed[-2000:]
    assert "[1.0, 0.0]" in printed
