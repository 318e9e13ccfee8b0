"""The notebooks: built from their sources, with the promised structure, and run one after another on the tiny policy.

Covered: the five in order, each in its own kernel and folder, sharing only the run; 03 killed midway, run again, and
once more when it is done; each without the stage that it needs. Colab and Kaggle are in `test_notebook_places`, a
browser is in `test_board_in_browser`. Not covered: Colab's and Kaggle's own machines, and the 30B.
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
import subprocess
import sys
import threading
import time
import types
import zipfile
from concurrent.futures import ThreadPoolExecutor

import nbclient
import pytest

from grpo_kit.notebook import REPOSITORY
from tests.helpers.kernels import (
    FOLDER,
    NAMES,
    ROOT,
    STEPS,
    TRAINING,
    chain,
    client,
    code,
    environment,
    execute,
    lines,
    pictures,
    printed,
    read,
)  # fmt: skip

COLAB = f"https://colab.research.google.com/github/{REPOSITORY}/blob/main/notebooks/{{}}.ipynb"
KAGGLE = f"https://kaggle.com/kernels/welcome?src=https://github.com/{REPOSITORY}/blob/main/notebooks/{{}}.ipynb"
FIELDS = {"preset": "raw", "run_name": "string", "overrides": "string", "use_drive": "boolean"}
MORE = {"04_submit": {"submit": "boolean"}, "05_tuning": {"search": "string", "trials": "integer", "steps": "integer"}}
# Cells that take long for the 30B, by what they call.
LONG = (
    "load_policy(", "sample_reply(", "sample_group(", "prepare_data(", "show_difficulty(", "measure(",
    "board.during(", "check(", "tune(",
)  # fmt: skip

every = pytest.mark.parametrize("name", NAMES)


def prose(name):
    return "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")


# What a notebook is made of


@pytest.fixture(scope="module")
def builder():
    spec = importlib.util.spec_from_file_location("notebook_builder", FOLDER / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_each_notebook_has_a_source_and_each_source_a_notebook():
    assert sorted(p.stem for p in FOLDER.glob("*.ipynb")) == list(NAMES)
    assert sorted(p.stem for p in (FOLDER / "src").glob("*.py")) == list(NAMES)


@every
def test_notebook_is_what_its_source_builds(builder, name):
    built = builder.build(FOLDER / "src" / f"{name}.py")
    assert (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8") == built, "run `make notebooks` and commit both"


@every
def test_the_repository_has_one_name_and_it_stands_in_one_place(name):
    assert REPOSITORY not in (FOLDER / "src" / f"{name}.py").read_text(encoding="utf-8")
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert "REPOSITORY" not in text and set(re.findall(r"github(?:\.com)?/([\w-]+/[\w-]+)", text)) == {REPOSITORY}


@every
def test_notebook_holds_no_output_and_nothing_of_the_machine_that_built_it(name):
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    whole = json.loads(text)
    assert set(whole["metadata"]) == {"colab", "kernelspec", "language_info"}
    assert whole["metadata"]["kernelspec"]["name"] == "python3"
    assert len({cell["id"] for cell in whole["cells"]}) == len(whole["cells"])
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code(read(name)))
    assert not re.findall(r"/(?:home|Users|root|tmp|work|mnt|var|content)/|[A-Z]:\\\\Users", text)


@every
def test_opening_has_title_goal_hardware_minutes_and_both_badges(name):
    top = read(name).cells[0].source
    assert top.startswith(f"# {int(name[:2])} · ")
    assert re.search(r"\| Goal \| Hardware \| Minutes \|\n\|---\|---\|---\|\n\| \S.+ \| \S.+ \| \d.+ \|", top)
    for badge, link in (("colab-badge.svg", COLAB), ("open-in-kaggle.svg", KAGGLE)):
        assert f"{badge})]({link.format(name)})" in top


@every
def test_the_form_has_its_fields_the_preset_first_and_each_once(name):
    install, form, *others = code(read(name))
    assert form.source.startswith("#@title Settings") and form.metadata.cellView == install.metadata.cellView == "form"
    fields = re.findall(r"^(\w+) = (.+?)  #@param (.+)$", form.source, flags=re.MULTILINE)
    expected = FIELDS | MORE.get(name, {})
    assert [field for field, _, _ in fields] == list(expected)
    assert len(form.source.splitlines()) == 1 + len(fields)  # nothing but the title and the form
    for field, value, kind in fields:
        assert kind == f'{{type:"{expected[field]}"}}' or field == "preset"
        kinds = {"string": str, "boolean": bool, "integer": int, "raw": str}
        assert type(ast.literal_eval(value)) is kinds[expected[field]]
    choices = json.loads(fields[0][2])
    presets = {path.stem for path in (ROOT / "grpo_kit/config/presets").glob("*.yaml")}
    assert fields[0][1] == '"auto"' and choices[0] == "auto" and set(choices[1:]) <= presets
    assert not any("#@param" in cell.source for cell in others)


def test_the_install_cell_is_one_and_the_same():
    assert len({code(read(name))[0].source for name in NAMES}) == 1


def test_the_install_cell_keeps_the_images_own_and_shows_nothing_but_a_failure(monkeypatch, capsys):
    asked, answer = [], subprocess.CompletedProcess([], 0, "", "")
    versions = {"Torch": "2.10.0+cu128", "numpy": "2.0.2", "Pillow": "11.3.0", "pandas": "2.2.2"}
    installed = [type("Distribution", (), {"name": n, "version": v}) for n, v in versions.items()]
    cell = compile(code(read("01_setup"))[0].source, "install", "exec")
    kernel = {"get_ipython": lambda: types.SimpleNamespace(InteractiveTB=types.SimpleNamespace(set_mode=modes.append))}
    modes = []
    exec(cell, kernel)  # here already: nothing is run
    assert modes == ["Minimal"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: installed)
    monkeypatch.setattr(subprocess, "run", lambda words, **_: asked.append(words) or answer)
    exec(cell, kernel)
    assert asked == [
        [sys.executable, "-m", "pip", "install", "-q", f"git+https://github.com/{REPOSITORY}",
         "torch==2.10.0+cu128", "numpy==2.0.2", "pillow==11.3.0"],
    ]  # fmt: skip
    assert capsys.readouterr() == ("", "")
    answer.returncode, answer.stderr = 1, "ERROR: No matching distribution\n"
    with pytest.raises(
        RuntimeError, match=r"pip could not install the kit\. Check the network; .+ settings\. ERROR: No matching"
    ):
        exec(cell, kernel)


@every
def test_cells_are_short_and_prose_stands_between_them(name):
    cells = read(name).cells
    assert not [cell.source for cell in cells if cell.cell_type == "code" and len(cell.source.splitlines()) > 25]
    assert not [a.source for a, b in zip(cells, cells[1:]) if a.cell_type == b.cell_type == "code"]


@every
def test_every_step_says_what_to_see_long_ones_how_long_and_the_end_what_to_try(name):
    cells = read(name).cells
    steps = [at for at, cell in enumerate(cells) if cell.cell_type == "code"][2:]  # after install and settings
    assert all(cells[at + 1].source.startswith("**You should see**") for at in steps)
    long = [at for at in steps if any(call in cells[at].source for call in LONG)]
    assert all("**Takes**" in cells[at - 1].source for at in long)
    assert cells[-1].source.startswith("## Your turn")


@every
def test_a_notebook_calls_the_package_and_has_no_logic_of_its_own(name):
    for cell in code(read(name))[2:]:
        source = re.sub(r"^%.*$", "", cell.source, flags=re.MULTILINE)
        tree = compile(source, name, "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        logic = ast.FunctionDef | ast.ClassDef | ast.If | ast.Try | ast.While | ast.Lambda
        assert not [node for node in ast.walk(tree) if isinstance(node, logic)], cell.source
        assert "input(" not in source and "getpass" not in source


@every
def test_what_does_not_work_yet_is_said(name):
    text = " ".join(prose(name).split())
    assert "tested with small models on a CPU only" in text and "nothing has been run on a T4 so far" in text


@every
def test_links_to_other_notebooks_lead_somewhere(name):
    near = re.findall(r"\]\((\d\d_\w+)\.ipynb\)", prose(name))
    far = re.findall(r"\((https://colab\.research\.google\.com/github/[^)]+)\)", prose(name))
    assert set(near) == set(NAMES) - {name}
    assert set(far) <= {COLAB.format(other) for other in NAMES}


# The libraries' keywords


def calls(path_or_text):
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


def accepts(module, name, method, keyword):
    target = getattr(importlib.import_module(module), name)
    signature = inspect.signature(getattr(target, method) if method else target)
    return keyword in signature.parameters or any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())


def test_every_keyword_passed_to_trl_peft_and_transformers_exists_in_the_pinned_versions():
    pins = dict(re.findall(r"^(transformers|trl|peft)==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    assert {name: importlib.metadata.version(name) for name in pins} == pins and len(pins) == 3
    texts = [path.read_text() for path in (ROOT / "grpo_kit").rglob("*.py")]
    texts += [re.sub(r"^%.*$", "", "\n".join(c.source for c in code(read(name))), flags=re.M) for name in NAMES]
    used = {call for text in texts for call in calls(text)}
    assert {("trl", "GRPOConfig", "", "ignore_data_skip"), ("peft", "LoraConfig", "", "target_modules")} <= used
    assert [call for call in sorted(used) if not accepts(*call)] == []


def test_every_setting_of_every_preset_is_one_of_trls_or_ours():
    from trl import GRPOConfig

    from grpo_kit import config
    from grpo_kit.training import trl_settings

    known = set(inspect.signature(GRPOConfig).parameters)
    for preset in config.preset_names():
        assert set(trl_settings.trl_arguments(config.load_config([preset]))) <= known
    assert accepts("trl", "GRPOConfig", "", "no_such_key") is False  # the check can fail


# What a notebook does


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(folder, {name: executed}) of the five in order, and of 03 again: `killed` midway, `resumed`, `finished`."""
    folder = tmp_path_factory.mktemp("machine")
    env, other = (environment(GRPO_KIT_ROOT=folder / place / "runs") for place in ("straight", "killed"))
    executed = chain(folder, lambda name: env, NAMES[:2])
    shutil.copytree(folder / "straight", folder / "killed")
    with ThreadPoolExecutor(2) as both:
        rest = both.submit(chain, folder, lambda name: env, NAMES[2:])
        again = both.submit(_killed_and_again, folder / "killed", other)
        return folder, executed | rest.result() | again.result()


def _killed_and_again(folder, env):
    metrics = folder / "runs/tiny/metrics.jsonl"
    runner, notebook, env = client("03_training", folder / "03 killed", env, overrides=TRAINING)

    def kill():
        while not metrics.is_file() or len(metrics.read_text().splitlines()) < 3:
            time.sleep(0.01)
        os.kill(runner.km.provisioner.process.pid, signal.SIGKILL)

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(nbclient.exceptions.DeadKernelError):
        runner.execute(env=env)
    before = metrics.read_text().splitlines()[:2], json.loads((folder / "runs/tiny/run.json").read_text())["stages"]
    tensors, results = folder / "runs/tiny/adapter/adapter_model.safetensors", {"killed": before}
    assert not tensors.exists()
    for name in ("resumed", "finished"):
        executed, error = execute("03_training", folder / f"03 {name}", env, overrides=TRAINING)
        assert error is None
        results[name] = executed, tensors.stat().st_mtime_ns
    return results


def test_01_shows_the_machine_the_plan_and_one_reply_and_writes_nothing(done):
    text = printed(done[1]["01_setup"])
    assert re.search(r"transformers +│ 5\.23\.0 +│.*ok", text)
    assert re.search(r"^Kaggle +\S", text, re.MULTILINE) and re.search(r"^Hugging Face \S", text, re.MULTILINE)
    assert pictures(done[1]["01_setup"]) == 2 and "It fits this machine" in text
    assert "534,116 parameters" in text
    assert re.search(r"<\|im_start\|>assistant\n<think>\n", text)  # the template has opened it
    assert re.search(r"thinks : \S.*\nanswers: \\boxed\{\d+\}", text)
    assert text.count("not yet") == 5


def test_02_prepares_data_and_counts_it(done):
    folder, notebooks = done
    manifest = json.loads((folder / "straight/runs/tiny/data/manifest.json").read_text())
    assert manifest["rows"] == {"train": 320, "val": 20, "test": 60}
    text = printed(notebooks["02_data"])
    assert "tiny-sums: sums and differences of two numbers, made by the kit (licence: cc0-1.0)" in text
    assert "0 problems are in both train and test" in text
    assert len(re.findall(r"^ *\d+\. What is \d+ [+-] \d+\?\n +answer: \d+$", text, flags=re.MULTILINE)) == 10
    assert "median 47" in text
    assert "320 rows to train on, 20 val, 60 test; dropped: none" in text
    assert pictures(notebooks["02_data"]) == 2  # the funnel; lengths and pass rates


def test_02_shows_the_funnel_the_leaks_and_ten_rows_of_each_of_two_sources(tmp_path):
    (tmp_path / "math").mkdir()
    sample = ROOT / "data/gsm8k_sample.jsonl"
    first = json.loads(sample.read_text().splitlines()[0])["question"]
    (tmp_path / "math/math500_test.jsonl").write_text(json.dumps({"problem": first, "answer": "72"}))
    rows = [
        f'{{"problem": "Add {n} and {n * n}, then halve it {word}.", "answer": "{n}"}}'
        for n, word in enumerate("abcdefghijklmno", 3)
    ]
    (tmp_path / "mine.jsonl").write_text("\n".join([*rows, rows[0]]))
    wanted = f"data.source={sample},{tmp_path / 'mine.jsonl'} data.val_size=5 data.test_size=20"
    env = environment(GRPO_KIT_ROOT=tmp_path / "runs", GRPO_KIT_DATA=tmp_path)
    notebook, error = execute("02_data", tmp_path, env, overrides=wanted)
    text = printed(notebook)
    assert error is None
    assert "math500: 1 of 1 problems were in the sources; removed" in text
    assert "not checked against aime2024" in text and "214 rows" not in text
    assert f"gsm8k_sample.jsonl, line 1: leaked, equal (math500: {first[:20]}" in text
    assert "mine.jsonl, line 16: repeated problem (equals mine.jsonl, line 1)" in text
    assert len(re.findall(r"^ *\d+\. .+\n +answer: \d+$", text, flags=re.MULTILINE)) == 20
    assert pictures(notebook) == 2


def tables(notebook):
    """Rows of every HTML table under the cells: {first column: the others}."""
    html = "".join(o.get("data", {}).get("text/html", "") for cell in code(notebook) for o in cell.outputs)
    rows = re.findall(r"<tr>\s*<th>(.*?)</th>(.*?)</tr>", html, flags=re.DOTALL)
    return {case: re.findall(r"<td>(.*?)</td>", cells, flags=re.DOTALL) for case, cells in rows}


def test_03_pays_each_failure_mode_as_the_prose_says(done):
    paid = {case: cells[-2:] for case, cells in tables(done[1]["03_training"]).items() if len(cells) == 4}
    assert paid == {
        "right": ["1.0", "1.0"],
        "right, written differently": ["1.0", "1.0"],  # 85.0
        "wrong": ["0.0", "1.0"],  # in good form
        "no box": ["0.0", "1.0"],
        "right without thinking": ["1.0", "0.0"],
        "cut off while thinking": ["0.0", "0.0"],
        "the reference answer is empty": ["None", "1.0"],  # skipped, not punished
    }


def test_03_trains_and_shows_the_settings_that_trl_gets_and_the_curve(done):
    folder, notebooks = done
    run, text = folder / "straight/runs/tiny", printed(notebooks["03_training"])
    assert (run / "adapter/adapter_model.safetensors").stat().st_size > 10_000
    assert len(lines(run / "metrics.jsonl")) == STEPS
    settings = tables(notebooks["03_training"])
    assert settings["max_steps"] == [str(STEPS)] and settings["num_generations"] == ["4"]  # as in the form
    assert f"The page is {run / 'report.html'}." in text and (run / "report.html").is_file()
    assert f"UTC: {STEPS} steps in " in text
    assert "def math_reward(" in text
    assert pictures(notebooks["03_training"]) == 1


def test_03_names_every_alarm_there_is():
    from grpo_kit.training import alarms

    table = prose("03_training").partition("## When an alarm appears")[2].partition("##")[0]
    assert len(re.findall(r"^\| (?!Alarm |---)", table, flags=re.MULTILINE)) == len(alarms.RULES)


def test_03_killed_midway_goes_on_when_run_again_and_ends_with_the_same_adapter_bit_for_bit(done):
    folder, notebooks = done
    rows, stages = notebooks["killed"]
    assert "train" not in stages and "before" in stages
    run = folder / "killed/runs/tiny"
    assert (run / "metrics.jsonl").read_text().splitlines()[:2] == rows  # not taken again
    assert [row["step"] for row in lines(run / "metrics.jsonl")] == list(range(1, STEPS + 1))
    adapters = [folder / place / "runs/tiny/adapter/adapter_model.safetensors" for place in ("straight", "killed")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_03_once_more_finds_its_work_done(done):
    (resumed, written), (finished, then) = done[1]["resumed"], done[1]["finished"]
    assert f"UTC: {STEPS} steps in " in printed(finished) and printed(resumed)
    assert written == then


def test_04_finds_the_settings_of_the_run_and_says_before_and_after_in_words(done):
    folder, notebooks = done
    run = folder / "straight/runs/tiny"
    report = json.loads((run / "evaluation/report.json").read_text())
    assert report["before"]["n"] == report["after"]["n"] == 60
    text = printed(notebooks["04_submit"])
    low, high = report["after"]["ci95"]
    assert f"After: {report['after']['pass@1']:.1%} of 60 held-out problems solved;" in text
    assert f"the true rate lies between {low:.1%} and {high:.1%}." in text and " ".join(
        report["words"].split()
    ) in " ".join(text.split())
    assert pictures(notebooks["04_submit"]) == 1
    assert f"max_steps: {STEPS}\n" in (run / "config.yaml").read_text()  # given to 03 only


def test_04_packs_a_zip_that_passes_the_check_and_sends_nothing(done):
    folder, notebooks = done
    with zipfile.ZipFile(folder / "straight/submission/submission.zip") as archive:
        assert archive.namelist() == ["adapter_config.json", "adapter_model.safetensors"]
    text = printed(notebooks["04_submit"])
    assert "fatal" not in text and "equal the trained policy's" in text
    assert "is not submitted: It is an adapter for the embedded tiny policy." in text and "Nothing was sent." in text


def test_05_tries_settings_and_says_what_moved(done):
    folder, notebooks = done
    result = json.loads((folder / "straight/runs/tiny/tune/tune.json").read_text())
    text = printed(notebooks["05_tuning"])
    assert len(result["trials"]) == 2 and "lora.r                   4 or 16" in text
    assert result["words"] in text and re.search(r"^lora\.r: .+ 2 trials", text, re.MULTILINE)
    assert pictures(notebooks["05_tuning"]) == 1
    assert text.rstrip().endswith(" ".join(result["best"]["overrides"]))


@every
def test_a_reader_sees_no_warnings(done, name):
    outputs = [output for cell in code(done[1][name]) for output in cell.outputs]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert "Warning" not in printed(done[1][name])


def test_without_the_stage_before_it_one_sentence_and_a_link_explain_and_nothing_runs_on(tmp_path):
    missing = {
        "03_training": ("data", "02_data"),
        "04_submit": ("before", "03_training"),
        "05_tuning": ("data", "02_data"),
    }

    def alone(name):
        return execute(name, tmp_path / name, environment(GRPO_KIT_ROOT=tmp_path / "runs"))

    with ThreadPoolExecutor(2) as both:
        executed = dict(zip(missing, both.map(alone, missing)))
    for name, (stage, remedy) in missing.items():
        notebook, error = executed[name]
        assert error.ename == "FileNotFoundError"
        assert error.evalue.startswith(f"Run 'tiny' has no finished stage '{stage}'")
        assert f"Run `notebook {remedy}.ipynb` first." in error.evalue
        ran = [cell for cell in code(notebook) if cell.execution_count]
        assert len(ran) == 3  # install, settings, open the run
        *_, shown, raised = ran[-1].outputs
        assert f"[{remedy}]({remedy}.ipynb)" in shown.data["text/markdown"]
        assert len("\n".join(raised.traceback).splitlines()) <= 2  # the sentence, no trace
        assert list((tmp_path / name).iterdir()) == []
