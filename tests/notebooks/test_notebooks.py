"""The notebooks: built from their sources, with the promised structure, and run one after another on the tiny policy.

Covered: all eight in order, each in its own kernel and folder, sharing only the run; 03 killed midway, run again, and a
third time after it finished; each without the stage that it needs. `test_notebook_places` imitates Colab and Kaggle,
`test_board_in_browser` uses a browser. Not covered: the real machines of Colab and Kaggle, and the 30B.
"""

import ast
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import os
import re
import shutil
import signal
import threading
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import grpo_kit
from grpo_kit.runs.installation import REPOSITORY, read_install_cell
from tests.helpers.kernels import (
    FOLDER,
    NAMES,
    ROOT,
    STEPS,
    TRAINING,
    code_cells,
    count_pictures,
    execute_in_order,
    execute_notebook,
    kernel_environment,
    notebook_client,
    printed_text,
    read_jsonl,
    read_notebook,
)  # fmt: skip
from tests.notebooks.test_gallery import check_gallery, find_wide_pages, load_gallery

FEW_STEPS = (
    "From the tests: the notebooks on the tiny policy with few steps, as their forms say; `make gallery` makes all."
)
OWNED = "ada/kit"  # as an owner would set it
COLAB = f"https://colab.research.google.com/github/{OWNED}/blob/main/notebooks/{{}}.ipynb"
KAGGLE = f"https://kaggle.com/kernels/welcome?src=https://github.com/{OWNED}/blob/main/notebooks/{{}}.ipynb"
FIELDS = {"preset": "raw", "run_name": "string", "overrides": "string", "use_drive": "boolean"}
MORE = {
    "03_training": {"tracker": "raw"},
    "04_submit": {"submit": "boolean", "publish": "boolean", "publish_to": "string"},
}
MORE |= {"05_tuning": {"search": "string", "trials": "integer", "steps": "integer"}}
# Calls that take long with the 30B.
LONG = (
    "load_policy(", "sample_reply(", "sample_group(", "prepare_data(", "show_difficulty(", "measure(",
    "board.during(", "check(", "notebook.ask(",
)  # fmt: skip

every_notebook = pytest.mark.parametrize("name", NAMES)


def markdown_text(name):
    return "\n".join(cell.source for cell in read_notebook(name).cells if cell.cell_type == "markdown")


# The contents of the notebooks


@pytest.fixture(scope="module")
def builder():
    spec = importlib.util.spec_from_file_location("notebook_builder", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_notebook_has_a_source_and_each_source_a_notebook():
    assert sorted(p.stem for p in FOLDER.glob("*.ipynb")) == list(NAMES)
    assert sorted(p.stem for p in (FOLDER / "src").glob("*.py")) == list(NAMES)


@every_notebook
def test_a_notebook_is_what_its_source_builds(builder, name):
    built = builder.build(FOLDER / "src" / f"{name}.py")
    assert (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8") == built, "run `make notebooks` and commit both"


@every_notebook
def test_without_an_owner_a_notebook_names_no_repository_and_no_address(builder, name):
    text = builder.build(FOLDER / "src" / f"{name}.py", "")
    for word in ("github", "REPOSITORY", "badge", "in Colab]", "RELEASE_ADDRESS"):
        assert word not in text, word
    assert 'RELEASE = \\"\\"' in text


@every_notebook
def test_with_an_owner_badges_links_and_the_pinned_release_follow(builder, name):
    text = builder.build(FOLDER / "src" / f"{name}.py", OWNED)
    assert set(re.findall(r"github(?:\.com)?/([\w-]+/[\w-]+)", text)) == {OWNED}
    assert "REPOSITORY" not in text and "RELEASE_ADDRESS" not in text
    release = f"https://github.com/{OWNED}/releases/download/v{grpo_kit.__version__}/grpo_kit-{grpo_kit.__version__}-"
    assert text.count(f"{release}py3-none-any.whl") == 1
    top = json.loads(text)["cells"][0]["source"]
    for badge, link in (("colab-badge.svg", COLAB), ("open-in-kaggle.svg", KAGGLE)):
        assert f"{badge})]({link.format(name)})" in "".join(top)
    links = re.findall(r"\((https://colab\.research\.google\.com/github/[^)]+)\)", text)
    assert len(links) == 2 and set(links) <= {COLAB.format(other) for other in NAMES}


def test_the_readme_links_to_the_gallery_with_an_owner_and_without(builder):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert builder.link_notebooks(readme) == readme, "run `make notebooks`"
    without, owned = (
        builder.link_notebooks(readme, owner).partition(builder.START)[2].partition(builder.END)[0]
        for owner in ("", "Ada/kit")
    )
    assert "](notes/gallery.md)" in without and "`make gallery`" in without and "://" not in without
    assert "](https://ada.github.io/kit/)" in owned and "](notes/gallery.md)" in owned
    assert re.findall(r"github(?:\.com)?/(\w+/\w+)/blob", owned) == ["Ada/kit"] * 2
    assert f"colab-badge.svg)]({COLAB.format('00_quickstart').replace(OWNED, 'Ada/kit')})" in owned
    assert "REPOSITORY" not in owned and "PAGES" not in owned
    for owner in ("", "Ada/kit", "Ada/ada.github.io"):  # the same again, whatever stood there before
        text = builder.link_notebooks(builder.link_notebooks(readme, owner))
        assert text == builder.link_notebooks(readme)
    assert "](https://ada.github.io/)" in builder.link_notebooks(readme, "Ada/ada.github.io")
    assert "    git clone ADDRESS grpo-kit && cd grpo-kit " in builder.link_notebooks(readme, "")
    assert "ADDRESS" in without and "ADDRESS" not in builder.link_notebooks(readme, "Ada/kit")
    assert "    git clone https://github.com/Ada/kit grpo-kit && " in builder.link_notebooks(readme, "Ada/kit")
    with pytest.raises(ValueError, match="README.md has no lines"):
        builder.link_notebooks(readme.replace(builder.END, ""))
    with pytest.raises(ValueError, match="README.md has 0 lines `    git clone"):
        builder.link_notebooks(readme.replace("git clone", "git fetch"))


def test_an_owner_that_github_would_not_take_is_refused_before_anything_is_written(builder, monkeypatch, capsys):
    readme, source = (ROOT / "README.md").read_text(encoding="utf-8"), FOLDER / "src/00_quickstart.py"
    for wrong in ("ada", "ada/", "/kit", "ada/kit/", "a b/c", "ada/k t", "https://github.com/ada/kit", "ada/kit.git",
                  "ada/kit/main", "ada/..", "-ada/kit", "ada/kit)", "ada/kit\n", "ädä/kit", " ada/kit"):  # fmt: skip
        for make in (lambda owner: builder.build(source, owner), lambda owner: builder.link_notebooks(readme, owner)):
            with pytest.raises(
                ValueError, match="^REPOSITORY in .* is .*; it is an owner and a name on GitHub. Write it"
            ):
                make(wrong)
    for right in ("", "ada/grpo-kit", "A-1/k_i.t", "ada/ada.github.io"):
        builder.require_repository(right)
    written = []
    monkeypatch.setattr(type(ROOT), "write_text", lambda path, *_, **__: written.append(path))
    monkeypatch.setattr(builder.link_notebooks, "__defaults__", ("ada",))
    with pytest.raises(SystemExit) as ended:
        builder.main()
    assert (ended.value.code, written) == (2, []) and capsys.readouterr().err.startswith("error: REPOSITORY in ")


def test_the_workflow_of_the_pages_builds_and_serves_the_gallery():
    import yaml

    workflow = yaml.safe_load((ROOT / ".github/workflows/pages.yml").read_text(encoding="utf-8"))
    build, deploy = workflow["jobs"]["build"], workflow["jobs"]["deploy"]
    assert "make gallery" in [step.get("run") for step in build["steps"]]
    assert build["steps"][-1]["uses"].startswith("actions/upload-pages-artifact@")
    assert build["steps"][-1]["with"] == {"path": "notebooks/gallery"}
    assert "GALLERY := notebooks/gallery\n" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert deploy["needs"] == "build" and deploy["steps"][-1]["uses"].startswith("actions/deploy-pages@")
    assert workflow["permissions"] == {"contents": "read"}  # only the job that serves may do more
    assert deploy["permissions"] == {"pages": "write", "id-token": "write"}


def test_the_owner_is_set_in_one_place():
    assert REPOSITORY == "" or re.fullmatch(r"[\w-]+/[\w.-]+", REPOSITORY)
    for path in [*(FOLDER / "src").glob("*.py"), *(ROOT / "grpo_kit").rglob("*.py"), FOLDER / "build.py"]:
        assert "grpo-kit/grpo-kit" not in path.read_text(encoding="utf-8"), path


@every_notebook
def test_a_notebook_holds_no_output_and_no_path_of_the_machine_that_built_it(name):
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert set(notebook["metadata"]) == {"colab", "kernelspec", "language_info"}
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code_cells(read_notebook(name)))
    text = text.replace("/content/drive/MyDrive/", "")  # where the install cell looks
    assert not re.findall(r"/(?:home|Users|root|tmp|work|mnt|var|content)/|[A-Z]:\\\\Users", text)


@every_notebook
def test_a_notebook_opens_with_title_goal_hardware_and_minutes(name):
    top = read_notebook(name).cells[0].source
    assert top.startswith(f"# {int(name[:2])} · ")
    assert re.search(r"\| Goal \| Hardware \| Minutes \|\n\|---\|---\|---\|\n\| \S.+ \| \S.+ \| \d.+ \|", top)


@every_notebook
def test_the_form_has_each_of_its_fields_once_and_the_preset_first(name):
    install, form, *others = code_cells(read_notebook(name))
    assert form.source.startswith("#@title Settings") and form.metadata.cellView == install.metadata.cellView == "form"
    fields = re.findall(r"^(\w+) = (.+?)  #@param (.+)$", form.source, flags=re.MULTILINE)
    expected = FIELDS | MORE.get(name, {})
    assert [field for field, _, _ in fields] == list(expected)
    assert len(form.source.splitlines()) == 1 + len(fields)  # nothing but the title and the form
    for field, value, kind in fields:
        assert kind == f'{{type:"{expected[field]}"}}' or expected[field] == "raw"
        kinds = {"string": str, "boolean": bool, "integer": int, "raw": str}
        assert type(ast.literal_eval(value)) is kinds[expected[field]]
    choices = json.loads(fields[0][2])
    presets = {path.stem for path in (ROOT / "grpo_kit/config/presets").glob("*.yaml")}
    assert fields[0][1] == '"auto"' and choices[0] == "auto" and set(choices[1:]) <= presets
    asking = [cell for cell in others if "#@param" in cell.source]
    assert len(asking) == (name in ("00_quickstart", "03_training", "04_submit"))
    assert all(re.findall(r"^(\w+) = .+  #@param", cell.source, re.M) == ["question", "thinking"] for cell in asking)


def test_the_install_cell_is_the_same_in_every_notebook():
    cell = read_install_cell().replace("# @title", "#@title")
    assert {code_cells(read_notebook(name))[0].source for name in NAMES} == {cell}


@every_notebook
def test_cells_are_short(name):
    shown = code_cells(read_notebook(name))[1:]  # Colab hides the code of the install cell
    assert not [cell.source for cell in shown if len(cell.source.splitlines()) > 25]
    assert read_notebook(name).cells[-1].source.startswith("## Your turn")


@pytest.mark.parametrize("name", NAMES[1:])  # the quickstart has its words in the cells
def test_every_step_says_what_to_see_and_slow_steps_say_how_long_they_take(name):
    cells = read_notebook(name).cells
    step_cells = [index for index, cell in enumerate(cells) if cell.cell_type == "code"][2:]  # not install, settings
    assert all(cells[index + 1].source.startswith("**You should see**") for index in step_cells)
    slow_cells = [index for index in step_cells if any(call in cells[index].source for call in LONG)]
    assert all("**Takes**" in cells[index - 1].source for index in slow_cells)
    assert not [a.source for a, b in zip(cells, cells[1:]) if a.cell_type == b.cell_type == "code"]


@every_notebook
def test_a_notebook_calls_the_package_and_has_no_logic_of_its_own(name):
    for cell in code_cells(read_notebook(name))[2:]:
        source = re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE)
        tree = compile(source, name, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        logic = ast.FunctionDef | ast.ClassDef | ast.If | ast.Try | ast.While | ast.Lambda
        assert not [node for node in ast.walk(tree) if isinstance(node, logic)], cell.source
        assert "input(" not in source and "getpass" not in source


@every_notebook
def test_every_notebook_says_what_has_not_been_tested(name):
    text = " ".join(markdown_text(name).split())
    assert "tested with small models on a CPU only" in text and "nothing has been run on a T4 so far" in text


@every_notebook
def test_links_to_other_notebooks_exist(name):
    local_links = re.findall(r"\]\((\d\d_\w+)\.ipynb\)", markdown_text(name))
    assert set(local_links) == set(NAMES) - {name}


def test_00_has_13_cells_and_trains_after_300_words_at_most():
    cells = read_notebook("00_quickstart").cells
    training = next(index for index, cell in enumerate(cells) if "board.during(" in cell.source)
    texts = [cell.source if cell.cell_type == "markdown" else comments_of(cell) for cell in cells[: training + 1]]
    words = [word for text in texts for word in text.split()]
    assert len([word for word in words if any(map(str.isalnum, word)) and "](" not in word]) <= 300
    assert len(cells) <= 13 and len(code_cells(read_notebook("00_quickstart"))) == 8


def comments_of(cell):
    """The comments that a reader sees of a code cell: no titles and fields, and nothing of the installation."""
    return (
        ""
        if cell.source.startswith("#@title Install")
        else "\n".join(re.findall(r"^# (.+)$", cell.source, flags=re.MULTILINE))
    )


def test_00_says_in_each_cell_what_to_see_and_how_long_it_takes():
    for cell in code_cells(read_notebook("00_quickstart"))[2:]:
        assert "You should see" in comments_of(cell), cell.source
        assert "Takes" in comments_of(cell) or not any(call in cell.source for call in LONG), cell.source


# Keywords of the libraries


def library_calls(path_or_text):
    """(function or class, keyword) of every call of a name that is imported from TRL, PEFT or transformers."""
    tree = ast.parse(path_or_text)
    owners = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("trl", "peft", "transformers")
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            method = isinstance(node.func, ast.Attribute)  # a constructor such as AutoTokenizer.from_pretrained
            base = node.func.value if method else node.func
            if isinstance(base, ast.Name) and base.id in owners:
                yield from ((*owners[base.id], node.func.attr if method else "", k.arg) for k in node.keywords if k.arg)


def accepts_keyword(module, name, method, keyword):
    target = getattr(importlib.import_module(module), name)
    signature = inspect.signature(getattr(target, method) if method else target)
    return keyword in signature.parameters or any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())


@pytest.mark.slow
def test_every_keyword_passed_to_trl_peft_and_transformers_exists_in_the_pinned_versions():
    pins = dict(re.findall(r"^(transformers|trl|peft)==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert {name: importlib.metadata.version(name) for name in pins} == pins and len(pins) == 3
    texts = [path.read_text() for path in (ROOT / "grpo_kit").rglob("*.py")]
    texts += [
        re.sub(r"^%.*$", "", "\n".join(c.source for c in code_cells(read_notebook(name))), flags=re.M) for name in NAMES
    ]
    used = {call for text in texts for call in library_calls(text)}
    assert {("trl", "GRPOConfig", "", "ignore_data_skip"), ("peft", "LoraConfig", "", "target_modules")} <= used
    assert [call for call in sorted(used) if not accepts_keyword(*call)] == []


def test_every_trl_setting_of_every_preset_exists_in_trl():
    from trl import GRPOConfig

    from grpo_kit import config
    from grpo_kit.training import trl_settings

    trl_parameters = set(inspect.signature(GRPOConfig).parameters)
    for preset in config.preset_names():
        assert set(trl_settings.trl_arguments(config.load_config([preset]))) <= trl_parameters
    assert accepts_keyword("trl", "GRPOConfig", "", "no_such_key") is False  # the check can fail


# The notebooks executed


@pytest.fixture(scope="module")
def executed_notebooks(tmp_path_factory):
    """(folder, {name: executed notebook}) of all in order; of 03 also `killed` midway, `resumed`, `finished`."""
    folder = tmp_path_factory.mktemp("machine")
    env, killed_env = (kernel_environment(GRPO_KIT_ROOT=folder / place / "runs") for place in ("straight", "killed"))
    executed = execute_in_order(folder, lambda name: env, NAMES[:3])
    shutil.copytree(folder / "straight", folder / "killed")
    with ThreadPoolExecutor(2) as executor:
        straight_run = executor.submit(execute_in_order, folder, lambda name: env, NAMES[3:])
        resumed_run = executor.submit(_kill_and_run_again, folder / "killed", killed_env)
        return folder, executed | straight_run.result() | resumed_run.result()


def _kill_and_run_again(folder, env):
    metrics = folder / "runs/tiny/metrics.jsonl"
    from nbclient.exceptions import DeadKernelError

    runner, notebook, env = notebook_client("03_training", folder / "03 killed", env, overrides=TRAINING)

    def kill():
        while not metrics.is_file() or len(metrics.read_text().splitlines()) < 3:
            time.sleep(0.01)
        os.kill(runner.km.provisioner.process.pid, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(DeadKernelError):
        runner.execute(env=env)
    before = metrics.read_text().splitlines()[:2], json.loads((folder / "runs/tiny/run.json").read_text())["stages"]
    tensors, results = folder / "runs/tiny/adapter/adapter_model.safetensors", {"killed": before}
    assert not tensors.exists()
    for name in ("resumed", "finished"):
        executed, error = execute_notebook("03_training", folder / f"03 {name}", env, overrides=TRAINING)
        assert error is None
        results[name] = executed, tensors.stat().st_mtime_ns
    return results


def test_00_goes_from_rows_to_a_checked_zip_in_a_run_of_its_own(executed_notebooks):
    folder, notebooks = executed_notebooks
    text, run = printed_text(notebooks["00_quickstart"]), folder / "straight/runs/tiny-quickstart"
    assert len(re.findall(r"^What is \d+ [+-] \d+\? → \d+$", text, re.MULTILINE)) == 8
    assert "\n[1.0, 0.0]\n" in text
    assert re.search(r"^\d+\.\d% before, \d+\.\d% after\. (The|No) difference is (real|shown)[:.]", text, re.MULTILINE)
    assert "fatal" not in text and "equal the trained policy's" in text
    assert set(json.loads((run / "run.json").read_text())["stages"]) == {"data", "before", "train", "after", "package"}


def test_01_shows_the_machine_the_plan_and_one_reply_and_finishes_no_stage(executed_notebooks):
    text = printed_text(executed_notebooks[1]["01_setup"])
    assert re.search(r"transformers +│ 5\.23\.0 +│.*ok", text)
    assert re.search(r"^Kaggle +\S", text, re.MULTILINE) and re.search(r"^Hugging Face \S", text, re.MULTILINE)
    assert count_pictures(executed_notebooks[1]["01_setup"]) == 2 and "It fits this machine" in text
    assert "534,116 parameters" in text
    assert re.search(r"<\|im_start\|>assistant\n<think>\n", text)  # the template opens the thinking
    assert re.search(r"thinks : \S.*\nanswers: \\boxed\{\d+\}", text)
    assert text.count("not yet") == 5


def test_02_prepares_data_and_counts_it(executed_notebooks):
    folder, notebooks = executed_notebooks
    manifest = json.loads((folder / "straight/runs/tiny/data/manifest.json").read_text())
    assert manifest["rows"] == {"train": 320, "val": 20, "test": 60}
    text = printed_text(notebooks["02_data"])
    assert "tiny-sums: sums and differences of two numbers, made by the kit (licence: cc0-1.0)" in text
    assert "0 problems are in both train and test" in text
    assert len(re.findall(r"^ *\d+\. What is \d+ [+-] \d+\?\n +answer: \d+$", text, flags=re.MULTILINE)) == 10
    assert "median 47" in text
    assert "320 rows to train on, 20 val, 60 test; dropped: none" in text
    assert count_pictures(notebooks["02_data"]) == 2  # the funnel; lengths and pass rates


@pytest.mark.slow
def test_02_shows_the_funnel_the_leaks_and_ten_rows_of_each_source(tmp_path):
    (tmp_path / "math").mkdir()
    sample = ROOT / "data/gsm8k_sample.jsonl"
    first = json.loads(sample.read_text().splitlines()[0])["question"]
    (tmp_path / "math/math500_test.jsonl").write_text(json.dumps({"problem": first, "answer": "72"}))
    rows = [
        f'{{"problem": "Add {n} and {n * n}, then halve it {word}.", "answer": "{n}"}}'
        for n, word in enumerate("abcdefghijklmno", 3)
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join([*rows, rows[0]]))
    overrides = f"data.source={sample},{tmp_path / 'mine.jsonl'} data.val_size=5 data.test_size=20"
    env = kernel_environment(GRPO_KIT_ROOT=tmp_path / "runs", GRPO_KIT_DATA=tmp_path)
    notebook, error = execute_notebook("02_data", tmp_path, env, overrides=overrides)
    text = printed_text(notebook)
    assert error is None
    assert "math500: 1 of 1 problems were in the sources; removed" in text
    assert "not checked against aime2024" in text and "214 rows" not in text
    assert f"gsm8k_sample.jsonl, line 1: leaked, equal (math500: {first[:20]}" in text
    assert "mine.jsonl, line 16: repeated problem (equals mine.jsonl, line 1)" in text
    assert len(re.findall(r"^ *\d+\. .+\n +answer: \d+$", text, flags=re.MULTILINE)) == 20
    assert count_pictures(notebook) == 2


def table_rows(notebook):
    """{first column: the other columns} of the rows of every HTML table under the cells."""
    html = "".join(o.get("data", {}).get("text/html", "") for cell in code_cells(notebook) for o in cell.outputs)
    rows = re.findall(r"<tr>\s*<th>(.*?)</th>(.*?)</tr>", html, flags=re.DOTALL)
    return {case: re.findall(r"<td>(.*?)</td>", cells, flags=re.DOTALL) for case, cells in rows}


def test_03_gives_each_failure_mode_the_reward_that_its_text_states(executed_notebooks):
    _, notebooks = executed_notebooks
    rewards = {case: cells[-2:] for case, cells in table_rows(notebooks["03_training"]).items() if len(cells) == 4}
    assert rewards == {
        "right": ["1.0", "1.0"],
        "right, written differently": ["1.0", "1.0"],  # 85.0
        "wrong": ["0.0", "1.0"],  # its format is right
        "no answer": ["0.0", "1.0"],
        "right without thinking": ["1.0", "0.0"],
        "cut off while thinking": ["0.0", "0.0"],
        "the reference answer is empty": ["None", "1.0"],  # skipped, neither right nor wrong
    }


def test_03_trains_and_shows_the_settings_that_trl_gets_and_the_curve(executed_notebooks):
    folder, notebooks = executed_notebooks
    run, text = folder / "straight/runs/tiny", printed_text(notebooks["03_training"])
    assert (run / "adapter/adapter_model.safetensors").stat().st_size > 10_000
    assert len(read_jsonl(run / "metrics.jsonl")) == STEPS
    settings = table_rows(notebooks["03_training"])
    assert settings["max_steps"] == [str(STEPS)] and settings["num_generations"] == ["4"]  # as in the form
    assert f"The page is {run / 'report.html'}." in text and (run / "report.html").is_file()
    assert f"{STEPS} steps in " in text
    assert "def math_reward(" in text
    assert count_pictures(notebooks["03_training"]) == 1


def test_03_explains_every_alarm():
    from grpo_kit.training import alarms

    table = markdown_text("03_training").partition("## When an alarm appears")[2].partition("##")[0]
    assert len(re.findall(r"^\| (?!Alarm |---)", table, flags=re.MULTILINE)) == len(alarms.RULES)


def test_03_killed_midway_continues_when_run_again_and_gives_the_same_adapter_bit_for_bit(executed_notebooks):
    folder, notebooks = executed_notebooks
    rows, stages = notebooks["killed"]
    assert "train" not in stages and "before" in stages
    run = folder / "killed/runs/tiny"
    assert (run / "metrics.jsonl").read_text().splitlines()[:2] == rows  # these steps were not repeated
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == list(range(1, STEPS + 1))
    adapters = [folder / place / "runs/tiny/adapter/adapter_model.safetensors" for place in ("straight", "killed")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_03_run_again_after_it_finished_trains_nothing(executed_notebooks):
    _, notebooks = executed_notebooks
    (resumed, written_at), (finished, written_again_at) = notebooks["resumed"], notebooks["finished"]
    assert f"{STEPS} steps in " in printed_text(finished) and printed_text(resumed)
    assert written_at == written_again_at


def test_04_finds_the_settings_of_the_run_and_reports_the_scores_in_words(executed_notebooks):
    folder, notebooks = executed_notebooks
    run = folder / "straight/runs/tiny"
    report = json.loads((run / "evaluation/report.json").read_text())
    assert report["before"]["n"] == report["after"]["n"] == 60
    text = printed_text(notebooks["04_submit"])
    low, high = report["after"]["ci95"]
    assert f"After: {report['after']['pass@1']:.1%} of 60 held-out problems solved;" in text
    assert f"the true rate lies between {low:.1%} and {high:.1%}." in text and " ".join(
        report["words"].split()
    ) in " ".join(text.split())
    assert count_pictures(notebooks["04_submit"]) == 2  # the accuracies; the curves on the card
    assert f"max_steps: {STEPS}\n" in (run / "config.yaml").read_text()  # only the form of 03 had it


def test_04_packs_a_zip_that_passes_the_check_and_sends_nothing(executed_notebooks):
    folder, notebooks = executed_notebooks
    with zipfile.ZipFile(folder / "straight/submission/submission.zip") as archive:
        assert archive.namelist() == ["adapter_config.json", "adapter_model.safetensors"]
    text = printed_text(notebooks["04_submit"])
    assert "fatal" not in text and "equal the trained policy's" in text
    assert "is not submitted: The adapter is for the embedded tiny policy." in text and "Nothing was sent." in text
    assert re.search(r"^.*\d bytes .*adapter_model\.safetensors", text, re.MULTILINE)


@pytest.mark.parametrize("name", ["00_quickstart", "03_training", "04_submit"])
def test_both_replies_to_a_question_are_shown_with_their_thinking_folded(executed_notebooks, name):
    cell = code_cells(executed_notebooks[1][name])[-1]
    (page,) = [output.data["text/html"] for output in cell.outputs if "text/html" in output.get("data", {})]
    assert re.search(r">untrained: \d+ tokens, (ended by itself|cut off)<.+>trained: \d+ tokens", page, re.DOTALL)
    assert "What is 84 - 37?" in page and page.count("<summary") == 2


def test_05_tries_settings_and_reports_their_effect(executed_notebooks):
    folder, notebooks = executed_notebooks
    result = json.loads((folder / "straight/runs/tiny/tune/tune.json").read_text())
    text = printed_text(notebooks["05_tuning"])
    assert len(result["trials"]) == 2 and "lora.r                   4 or 16" in text
    assert result["words"] in text and re.search(r"^lora\.r: .+ 2 trials", text, re.MULTILINE)
    assert count_pictures(notebooks["05_tuning"]) == 3  # two of Optuna's, one of the kit's
    cell = next(cell for cell in code_cells(notebooks["05_tuning"]) if "show_trials" in cell.source)
    page = cell.outputs[0].data["text/html"]
    assert page.count('class="interval"') == 2 and "best" in page and "the run&#39;s own" in page
    assert text.rstrip().endswith(" ".join(result["best"]["overrides"]))


def test_06_calls_each_reward_trains_on_all_and_says_what_became_of_each(executed_notebooks):
    folder, notebooks = executed_notebooks
    text, runs = printed_text(notebooks["06_environments"]), folder / "straight/runs"
    for name in ("math", "structured", "instructions", "documents"):
        assert (
            text.count(f"== {name}\n") == 1 and len(re.findall(rf"^{name} (?:gained|lost|shows no)", text, re.M)) == 2
        )
    assert len(re.findall(r"^Of 4 environments: ", text, re.MULTILINE)) == 2
    assert re.search(r"^right, wrong document .+ 0\.0$", text, re.MULTILINE)
    assert re.search(r"^another value .+ 1\.0$", text, re.MULTILINE)  # by NVIDIA's rule
    assert count_pictures(notebooks["06_environments"]) == 2
    drawn = {line["environment"] for line in read_jsonl(runs / "tiny-environments-alone/completions.jsonl")}
    assert drawn == {"structured"}
    drawn = {line["environment"] for line in read_jsonl(runs / "tiny-environments/completions.jsonl")}
    assert drawn == {"math", "structured", "instructions", "documents"}


def test_08_trains_one_adapter_in_three_stages_and_compares_them(executed_notebooks):
    folder, notebooks = executed_notebooks
    text, run = printed_text(notebooks["08_stages"]), folder / "straight/runs/tiny-stages"
    assert len(re.findall(r"^sums · What is .+\n  thinks : \d.+\n  answers: .boxed\{\d+\}$", text, re.MULTILINE)) == 3
    assert re.search(r"greedy decoding writes \d+% of \d+ texts whole", text)
    assert len(re.findall(r"^  prefer: .+\n  reject: .+$", text, re.MULTILINE)) >= 1
    assert re.findall(r"^ (before|after sft|after prefer|after) +\d\.\d{3} ", text, re.MULTILINE) == [
        "before", "after sft", "after", "after prefer"
    ]  # fmt: skip
    assert count_pictures(notebooks["08_stages"]) == 1
    assert "fatal" not in text and "equal the trained policy's" in text
    assert re.findall(r"^ (on|off|cut8) change ", text, re.MULTILINE) == ["on", "off", "cut8"]
    assert "load of the experts" in text and "agrees with the known winner" in text
    assert read_jsonl(run / "metrics.jsonl")[-1]["step"] == read_jsonl(run / "prefer/metrics.jsonl")[-1]["step"] == 2


def test_the_gallery_of_these_notebooks_is_complete(executed_notebooks, tmp_path):
    folder, notebooks = executed_notebooks
    target = Path(os.environ.get("GRPO_KIT_GALLERY") or tmp_path / "gallery")
    executed, machine = {name: notebooks[name] for name in NAMES}, [str(folder), str(ROOT)]
    load_gallery().write_gallery(target, executed, machine, FEW_STEPS)
    check_gallery(target, NAMES, machine)
    assert find_wide_pages(target, tmp_path / "browser") == {}


@every_notebook
def test_a_notebook_shows_no_warnings(executed_notebooks, name):
    outputs = [output for cell in code_cells(executed_notebooks[1][name]) for output in cell.outputs]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    text = printed_text(executed_notebooks[1][name])
    text = re.sub(r"^Warning: [\w, ]+ fell while ", "", text, flags=re.MULTILINE)  # what 06 may find in a training
    assert "Warning" not in text


@pytest.mark.slow
def test_a_notebook_without_its_previous_stage_stops_with_one_sentence_and_a_link(tmp_path):
    missing = {
        "03_training": ("data", "02_data"),
        "04_submit": ("before", "03_training"),
        "05_tuning": ("data", "02_data"),
    }

    def execute_alone(name):
        return execute_notebook(name, tmp_path / name, kernel_environment(GRPO_KIT_ROOT=tmp_path / "runs"))

    with ThreadPoolExecutor(2) as executor:
        executed = dict(zip(missing, executor.map(execute_alone, missing)))
    for name, (stage, remedy) in missing.items():
        notebook, error = executed[name]
        assert error.ename == "FileNotFoundError"
        assert error.evalue.startswith(f"Run 'tiny' has no finished stage '{stage}'")
        assert f"`notebook {remedy}.ipynb` first." in error.evalue
        ran = [cell for cell in code_cells(notebook) if cell.execution_count]
        assert len(ran) == 3  # install, settings, open the run
        *_, shown, raised = ran[-1].outputs
        assert f"[{remedy}]({remedy}.ipynb)" in shown.data["text/markdown"]
        assert len("\n".join(raised.traceback).splitlines()) <= 2  # one sentence, no traceback
        assert list((tmp_path / name).iterdir()) == []
