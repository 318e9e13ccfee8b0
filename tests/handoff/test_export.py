"""One folder per engine, complete or absent; every configuration key has a row; bad input is one sentence."""

import json
import re
import shlex
import shutil
from dataclasses import fields, is_dataclass, replace
from typing import get_type_hints

import pytest
from omegaconf import OmegaConf
from typer.testing import CliRunner

from grpo_kit import config
from grpo_kit.cli.main import app
from grpo_kit.handoff import export, merging
from grpo_kit.runs import files
from grpo_kit.runs.run import find_run


def everything(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


@pytest.fixture(scope="module")
def bundles(trained, tmp_path_factory):
    """{engine: its folder}, of the small run."""
    chosen, run = trained
    folder = tmp_path_factory.mktemp("bundles")
    return {to: export.export_run(chosen, run, to, folder / to) for to in export.ENGINES}


def keys_of(section=config.RunConfig, above=""):
    """Every key a configuration can have, from the classes alone; `grpo.stages` with the keys of a stage."""
    hints = get_type_hints(section)
    keys = set()
    for field in fields(section):
        name, kind = f"{above}{field.name}", hints[field.name]
        is_whole = name in export.WHOLE_SECTIONS
        keys |= keys_of(kind, f"{name}.") if is_dataclass(kind) and not is_whole else {name}
        if kind == list[config.Stage]:
            keys |= keys_of(config.Stage, f"{name}.")
    return keys


@pytest.mark.parametrize("to", export.ENGINES)
def test_the_table_has_every_key_and_no_other(to):
    table = export.read_key_table(to)
    assert set(table) == keys_of()
    assert all(re.fullmatch(r"nothing: \w.{5,}|[\w., ]+(; .+)?", text) for text in table.values())


def theirs(to):
    """{our key: the engine's names}, of the keys that have one."""
    table = {key: text for key, text in export.read_key_table(to).items() if not text.startswith("nothing")}
    return {key: text.partition(";")[0].split(", ") for key, text in table.items()}


def test_settings_that_the_table_names_for_nemo_rl_are_in_the_overlay(bundles):
    overlay = OmegaConf.load(bundles["nemo-rl"] / "nemo_rl" / "grpo_v06.yaml")
    missing = object()
    overlay_keys = [name for names in theirs("nemo-rl").values() for name in names]
    assert [name for name in overlay_keys if OmegaConf.select(overlay, name, default=missing) is missing] == []


def test_settings_that_the_table_names_for_verl_are_in_its_script(bundles):
    words = shlex.split((bundles["verl"] / "run.sh").read_text().replace("\\\n", " ").partition("main_ppo ")[2])
    set_there = {word.partition("=")[0].lstrip("+") for word in words}
    assert [name for names in theirs("verl").values() for name in names if name not in set_there] == []


def test_settings_that_the_table_names_for_trl_are_in_its_script(bundles):
    text = (bundles["trl"] / "train.py").read_text()
    assert [name for names in theirs("trl").values() for name in names if not re.search(rf"\b{name} ?=", text)] == []


@pytest.mark.parametrize("to", export.ENGINES)
def test_the_readme_has_a_row_for_every_key_with_the_run_s_value(bundles, trained, to):
    text = (bundles[to] / "README.md").read_text()
    rows = dict(re.findall(r"^\| (\w+\.[\w.]+|environments|sft|dpo|judge) \| (.*?) \|", text, re.M))
    assert set(rows) == keys_of()
    assert (rows["grpo.max_steps"], rows["grpo.num_generations"], rows["run.name"]) == ("4", "4", trained[0].run.name)
    assert "4 of 4 steps" in text and "220 train" in text


def test_the_adapter_is_the_run_s_and_names_the_base_that_travels_with_it(bundles, trained):
    _, run = trained
    for folder in bundles.values():
        assert (folder / "adapter/adapter_model.safetensors").read_bytes() == (
            run.adapter / "adapter_model.safetensors"
        ).read_bytes()
        saved = json.loads((folder / "adapter/adapter_config.json").read_text())
        assert (
            saved["base_model_name_or_path"] == str(folder / "base") and (folder / "base/model.safetensors").is_file()
        )


def test_a_reward_other_than_the_trained_one_is_named(bundles):
    # The fixture trained with its own function as the second reward.
    for folder in bundles.values():
        text = (folder / "README.md").read_text()
        assert "The reward reasoning_format_reward is not the one" in text and "The reward math_reward" not in text


@pytest.mark.parametrize("to", export.ENGINES)
def test_the_readme_says_what_was_run_and_what_was_not(bundles, to):
    text = (bundles[to] / "README.md").read_text()
    assert re.search(r"\n(For|Run by us|.*[Rr]un by us).*", text) and "ot run" in text and "GPU" in text


@pytest.fixture
def copied(trained, tmp_path):
    """A copy of the small run, which tests damage."""
    chosen, run = trained
    shutil.copytree(run.path, tmp_path / "runs" / run.name)
    return chosen, find_run(run.name, tmp_path / "runs")


def no_adapter(run):
    shutil.rmtree(run.adapter)


def other_adapter(run):
    path = run.adapter / "adapter_config.json"
    path.write_text(path.read_text() + "\n")


def unfinished(run):
    notes = json.loads(run.notes.read_text())
    del notes["stages"]["train"]
    run.notes.write_text(json.dumps(notes))


def filled(run):
    (run.path / "handoff" / "trl").mkdir(parents=True)
    (run.path / "handoff" / "trl" / "mine.txt").write_text("x")


def a_file(run):
    (run.path / "handoff").mkdir()
    (run.path / "handoff" / "trl").write_text("x")


@pytest.mark.parametrize(
    ("damage", "to", "kind", "message"),
    [
        (unfinished, "trl", FileNotFoundError, r"no finished stage 'train'.*`grpo-kit train` first"),
        (no_adapter, "trl", FileNotFoundError, r"adapter, written by stage 'train', is gone"),
        (other_adapter, "trl", ValueError, r"adapter is not as stage 'train' wrote it.*`grpo-kit train`"),
        (filled, "trl", FileExistsError, r"not an empty folder.*--out"),
        (a_file, "trl", FileExistsError, r"not an empty folder.*--out"),
        (lambda run: run.data_file("val").unlink(), "trl", FileNotFoundError, r"val.*is gone.*grpo-kit data"),
        (lambda run: None, "nemo_rl", ValueError, r"'nemo_rl'.*Did you mean nemo-rl\?"),
    ],
)
def test_bad_input_is_refused_in_a_sentence_and_nothing_is_left(copied, damage, to, kind, message):
    chosen, run = copied
    damage(run)
    before = everything(run.path)
    with pytest.raises(kind, match=message):
        export.export_run(chosen, run, to)
    assert everything(run.path) == before


def test_too_little_disk_space_raises_before_anything_is_written(copied, monkeypatch):
    chosen, run = copied
    before = everything(run.path.parent)
    monkeypatch.setattr(
        merging.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6)
    )
    monkeypatch.setattr(files, "new_folder", lambda path: pytest.fail("a folder was begun"))
    with pytest.raises(
        OSError, match=r"takes 0\.25 GiB and the disk of .* has 0\.00 GiB free; nothing was written.*--out"
    ):
        export.export_run(chosen, run, "nemo-rl", merge=True)
    assert everything(run.path.parent) == before


def test_an_interrupted_export_leaves_nothing(copied, monkeypatch):
    chosen, run = copied
    before = everything(run.path)
    monkeypatch.setattr(export, "make_readme", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        export.export_run(chosen, run, "trl", merge=True)
    assert everything(run.path) == before


@pytest.mark.parametrize(
    ("shares", "says"),
    [
        ({"groups/all_right": 0.25, "groups/all_wrong": 0.125}, "last 10 steps 25% of the groups were right"),
        ({"groups/all_right": 0.9, "groups/all_wrong": 0.0}, "Most of each step would be lost.** Export a run with ha"),
        ({"groups/all_right": 0.1, "groups/all_wrong": 0.8}, "Export a run with easier problems"),
        ({"groups/all_right": 0.2, "groups/all_wrong": None}, "20% of the groups were right throughout and 0% wrong"),
        ({}, None),  # a record of an earlier version
    ],
)  # fmt: skip
def test_the_readme_says_what_is_left_to_learn(copied, tmp_path, shares, says):
    chosen, run = copied
    run.metrics.write_text("".join(json.dumps({"step": n, "seconds": 1.0} | shares) + "\n" for n in range(1, 31)))
    text = (export.export_run(chosen, run, "verl", tmp_path / "o") / "README.md").read_text()
    assert says in text if says else "left to learn" not in text
    assert ("Most of each step" in text) == (sum(filter(None, shares.values())) > 0.5)


@pytest.mark.parametrize(("to", "name"), [("verl", "a${b}"), ("nemo-rl", "a\nb")])
def test_a_folder_that_the_engine_s_settings_cannot_name_is_refused(trained, tmp_path, to, name):
    with pytest.raises(ValueError, match=r"has '\$\{' or a line end.*Name another folder with --out"):
        export.export_run(*trained, to, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_an_existing_empty_folder_is_accepted(copied, tmp_path):
    (tmp_path / "there").mkdir()
    folder = export.export_run(*copied, "verl", tmp_path / "there")
    assert (folder / "run.sh").is_file() and not list(tmp_path.glob(".there*"))


def test_a_link_to_another_disk_is_followed(copied, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk/here")
    assert export.export_run(*copied, "verl", tmp_path / "link") == tmp_path / "disk/here"
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk/here/run.sh").is_file()
    assert [path.name for path in (tmp_path / "disk").iterdir()] == ["here"] and not list(tmp_path.glob(".*"))


def test_the_export_of_a_stopped_run_says_how_many_steps_it_took(copied, tmp_path):
    chosen, run = copied
    more = replace(chosen, grpo=replace(chosen.grpo, max_steps=9))
    assert "4 of 9 steps" in (export.export_run(more, run, "verl", tmp_path / "o") / "README.md").read_text()


def test_a_missing_base_model_is_named(copied, monkeypatch):
    chosen, run = copied
    elsewhere = replace(chosen, policy=replace(chosen.policy, model="nobody/none"))
    with pytest.raises(FileNotFoundError, match=r"'nobody/none' has no safetensors.*policy\.model=FOLDER"):
        export.export_run(elsewhere, run, "nemo-rl", merge=True)


@pytest.mark.slow
def test_on_the_command_line(copied, monkeypatch):
    _, run = copied
    monkeypatch.setenv("GRPO_KIT_ROOT", str(run.root))

    def call(*words):
        done = CliRunner().invoke(app, ["handoff", "--run", run.name, *words])
        return done.exit_code, " ".join(done.output.split())

    status, output = call("--to", "trl")
    assert (
        status == 0 and f"{run.path}/handoff/trl/README.md" in output.replace(" ", "") or "README.md says how" in output
    )
    assert (run.path / "handoff/trl/train.py").is_file()
    assert call("--to", "trl")[0] == 2 and "not an empty folder" in call("--to", "trl")[1]
    assert call("--to", "ray")[0] == 2
    monkeypatch.setattr(merging.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    assert call("--to", "verl", "--merge")[0] == 1
    shutil.rmtree(run.adapter)
    status, output = call("--to", "verl")
    assert status == 2 and output.startswith("error: ") and "is gone" in output


@pytest.mark.slow
def test_a_path_with_brackets_is_printed_as_it_is(trained, tmp_path, monkeypatch):
    _, run = trained
    monkeypatch.setenv("GRPO_KIT_ROOT", str(tmp_path / "[z]"))
    shutil.copytree(run.path, tmp_path / "[z]" / run.name)
    out = tmp_path / "[red]" / "[/]"
    for words, printed in (
        (["handoff", "--to", "trl", "--out", str(out)], [str(out), f"{out}/README.md"]),
        (["package", "--out", f"{out}/new/s.zip"], [f"{out}/new is new", f"{out}/new/s.zip (0."]),
        (["package", "--out", f"{out}/s.zip", "--dry-run"], [f"{tmp_path}/[z]/{run.name}", f"# writes {out}/s.zip"]),
    ):
        done = CliRunner().invoke(app, [words[0], "--run", run.name, *words[1:]])
        assert done.exit_code == 0 and all(text in done.output for text in printed), done.output


@pytest.mark.parametrize("to", ["verl", "trl"])
def test_the_command_of_the_way_back_packs_what_the_engine_trained(bundles, trained, tmp_path, to):
    text = (bundles[to] / "README.md").read_text()
    words = shlex.split(re.search(r"^    grpo-kit package (.+)$", text, re.M)[1])
    folder = words[words.index("--adapter") + 1].replace("global_step_N", "global_step_4")
    assert words[-1] == "policy.model=tiny" and folder.startswith(f"{bundles[to]}/")
    shutil.copytree(trained[1].adapter, tmp_path / "step" / ("actor/lora_adapter" if to == "verl" else ""))
    done = CliRunner().invoke(
        app, ["package", "--adapter", str(tmp_path / "step"), *words[2:], "--out", str(tmp_path / "s.zip")]
    )
    assert done.exit_code == 0 and (tmp_path / "s.zip").is_file(), done.output
