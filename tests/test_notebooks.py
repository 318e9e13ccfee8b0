"""The notebooks: built from their sources, shaped as promised, and run one after another on the tiny policy.

Covered: the four in order, each in its own kernel with only the run folder between them; 03 again when it is done; 03
and 04 without what they need. Not covered: Colab's and Kaggle's own machines.
"""

import importlib.util
import json
import re
import zipfile
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
NAMES = ("01_setup", "02_data", "03_training", "04_submit")
COLAB = "https://colab.research.google.com/github/grpo-kit/grpo-kit/blob/main/notebooks/{}.ipynb"
KAGGLE = "https://kaggle.com/kernels/welcome?src=https://github.com/grpo-kit/grpo-kit/blob/main/notebooks/{}.ipynb"
STEPS, HELD_OUT = 40, 200

every = pytest.mark.parametrize("name", NAMES)


def read(name):
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook):
    """What a reader sees as text under the cells: streams and plain forms of what was displayed."""
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


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
def test_notebook_holds_no_output_and_nothing_of_the_machine_that_built_it(name):
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    whole = json.loads(text)
    assert set(whole["metadata"]) == {"colab", "kernelspec", "language_info"}
    assert whole["metadata"]["kernelspec"]["name"] == "python3"
    assert len({cell["id"] for cell in whole["cells"]}) == len(whole["cells"])
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code(read(name)))
    assert not re.findall(r"/(?:home|Users|root|tmp|work|mnt|var)/|[A-Z]:\\\\Users", text)


@every
def test_opening_has_title_goal_badges_install_and_form(name):
    notebook = read(name)
    top, (install, form, *_) = notebook.cells[0].source, code(notebook)
    assert top.startswith(f"# {int(name[:2])} · ")
    assert "| Goal | Hardware | Time |" in top
    assert f"({COLAB.format(name)})" in top and f"({KAGGLE.format(name)})" in top
    assert install.source.startswith("#@title Install") and 'find_spec("grpo_kit") is None' in install.source
    fields = re.findall(r"^(\w+) = .*#@param", form.source, flags=re.MULTILINE)
    assert fields == ["preset", "run_name", "overrides"]
    assert form.metadata.cellView == install.metadata.cellView == "form"


@every
def test_cells_are_short_and_prose_stands_between_them(name):
    cells = read(name).cells
    too_long = [cell.source for cell in cells if cell.cell_type == "code" and len(cell.source.splitlines()) > 25]
    assert not too_long
    neighbours = [(a.source, b.source) for a, b in zip(cells, cells[1:]) if a.cell_type == b.cell_type == "code"]
    assert not neighbours


@every
def test_every_step_says_what_to_see_and_the_end_says_what_to_try(name):
    cells = read(name).cells
    steps = [at for at, cell in enumerate(cells) if cell.cell_type == "code"][2:]  # after install and settings
    assert all(cells[at + 1].source.startswith("**You should see**") for at in steps)
    assert cells[-1].source.startswith("## Your turn")


@every
def test_what_does_not_work_yet_is_said(name):
    prose = " ".join(" ".join(cell.source.split()) for cell in read(name).cells if cell.cell_type == "markdown")
    assert "tested with small models on a CPU only" in prose and "nothing has been run on a T4 so far" in prose


@every
def test_links_to_other_notebooks_lead_somewhere(name):
    prose = "\n".join(cell.source for cell in read(name).cells if cell.cell_type == "markdown")
    near = re.findall(r"\]\((\d\d_\w+)\.ipynb\)", prose)
    far = re.findall(r"\((https://colab\.research\.google\.com/github/[^)]+)\)", prose)
    assert near and set(near) < set(NAMES)
    assert set(far) <= {COLAB.format(other) for other in NAMES}


# What a notebook does


def execute(name, folder, overrides=""):
    """(the executed notebook, the error that ended it or None); a fresh kernel whose working folder is `folder`."""
    notebook = read(name)
    form = code(notebook)[1]
    assert 'overrides = ""' in form.source
    form.source = form.source.replace('overrides = ""', f"overrides = {overrides!r}")
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}})
    try:
        client.execute()
    except nbclient.exceptions.CellExecutionError as error:
        return notebook, error
    return notebook, None


@pytest.fixture(scope="module")
def kernels():
    """The environment kernels inherit: this checkout's package, no network, the plotting that notebooks have."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("HF_HUB_OFFLINE", "1")
        for name in ("MPLBACKEND", "KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG", "COV_CORE_SOURCE"):
            patch.delenv(name, raising=False)
        yield patch


@pytest.fixture(scope="module")
def chain(kernels, tmp_path_factory):
    """The four in order; settings are given once, where they matter, and remembered by the run afterwards."""
    folder = tmp_path_factory.mktemp("machine")
    kernels.setenv("GRPO_KIT_ROOT", str(folder / "runs"))
    given = {"02_data": f"data.test_size={HELD_OUT}", "03_training": f"grpo.max_steps={STEPS}"}
    done = {}
    for name in NAMES:
        done[name], error = execute(name, folder, given.get(name, ""))
        assert error is None, f"{name}: {error}"
    return folder, done


def test_01_shows_one_reply_with_thinking_and_answer_apart_and_writes_nothing(chain):
    said = printed(chain[1]["01_setup"])
    assert "534,116 parameters" in said
    assert re.search(r"<\|im_start\|>assistant\n<think>\n", said)  # the template has opened it
    assert re.search(r"thinks : \S.*\nanswers: \\boxed\{\d+\}", said)
    assert said.count("not yet") == 5


def test_02_prepares_data_and_counts_it(chain):
    folder, done = chain
    manifest = json.loads((folder / "runs/tiny/data/manifest.json").read_text())
    assert manifest["rows"] == {"train": 3700, "val": 100, "test": HELD_OUT}
    said = printed(done["02_data"])
    assert "0 problems are in both train and test" in said
    assert len(re.findall(r"^ *\d+\. What is \d+ [+-] \d+\?\n +gold: \d+$", said, flags=re.MULTILINE)) == 10
    assert "median 47" in said
    assert "3700 rows to train on, 100 val, 200 test; dropped: none" in said
    assert pictures(done["02_data"]) == 2  # the funnel; lengths and pass rates


def test_02_shows_the_funnel_the_leaks_and_ten_rows_of_each_of_two_sources(kernels, tmp_path):
    kernels.setenv("GRPO_KIT_ROOT", str(tmp_path / "runs"))
    kernels.setenv("GRPO_KIT_DATA", str(tmp_path))
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
    notebook, error = execute("02_data", tmp_path, wanted)
    said = printed(notebook)
    assert error is None
    assert "1 of the 1 problems of math500 stood in the sources, and were kept out" in said
    assert "not checked against aime2024" in said and "214 rows" not in said
    assert f"gsm8k_sample.jsonl, line 1: leaked, equal (math500: {first[:20]}" in said
    assert "mine.jsonl, line 16: repeated problem (equals mine.jsonl, line 1)" in said
    assert len(re.findall(r"^ *\d+\. .+\n +gold: \d+$", said, flags=re.MULTILINE)) == 20
    assert pictures(notebook) == 2


def test_03_pays_each_failure_mode_as_the_prose_says(chain):
    table = next(o for cell in code(chain[1]["03_training"]) for o in cell.outputs if "reasoning_format_reward</th>" in o.get("data", {}).get("text/html", ""))  # fmt: skip
    rows = re.findall(r"<tr>\s*<th>(.*?)</th>(.*?)</tr>", table.data["text/html"], flags=re.DOTALL)
    paid = {case: re.findall(r"<td>(.*?)</td>", cells)[-2:] for case, cells in rows}
    assert paid == {
        "right": ["1.0", "1.0"],
        "right, written otherwise": ["1.0", "1.0"],  # 85.0
        "wrong": ["0.0", "1.0"],  # in good form
        "no box": ["0.0", "1.0"],
        "right without thinking": ["1.0", "0.0"],
        "cut off while thinking": ["0.0", "0.0"],
        "the gold is empty": ["None", "1.0"],  # skipped, not punished
    }


def test_03_trains_and_shows_each_step_and_the_curve(chain):
    folder, done = chain
    run, said = folder / "runs/tiny", printed(done["03_training"])
    assert (run / "adapter/adapter_model.safetensors").stat().st_size > 10_000
    assert len((run / "metrics.jsonl").read_text().splitlines()) == STEPS
    assert re.search(rf"max_steps +{STEPS}\n", said)  # TRL was told what the form said
    assert f"page lies in {folder / 'runs/tiny/report.html'}" in said and (run / "report.html").is_file()
    assert f"UTC: {STEPS} steps in " in said
    assert "def math_reward(" in said
    assert pictures(done["03_training"]) == 1


def test_04_finds_the_settings_of_the_run_and_reports_a_gain(chain):
    folder, done = chain
    report = json.loads((folder / "runs/tiny/evaluation/report.json").read_text())
    assert report["before"]["n"] == report["after"]["n"] == HELD_OUT
    assert report["before"]["ci95"][1] < report["after"]["ci95"][0]
    said = printed(done["04_submit"])
    assert f"After: {report['after']['pass@1']:.1%} of {HELD_OUT} held-out problems solved;" in said
    assert re.search(r"before +thinks .*looks like \d+", said) and re.search(r"after +thinks .*=", said)
    assert pictures(done["04_submit"]) == 1
    assert f"max_steps: {STEPS}\n" in (folder / "runs/tiny/config.yaml").read_text()  # given to 03 only


def test_04_packs_a_zip_that_passes_every_check(chain):
    folder, done = chain
    with zipfile.ZipFile(folder / "submission/submission.zip") as archive:
        assert archive.namelist() == ["adapter_config.json", "adapter_model.safetensors"]
    said = printed(done["04_submit"])
    assert len(re.findall(r"^ok   ", said, flags=re.MULTILINE)) == 5 and "fatal" not in said
    assert "outputs equal the trained policy's" in said


@every
def test_a_reader_sees_no_warnings(chain, name):
    outputs = [output for cell in code(chain[1][name]) for output in cell.outputs]
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert "Warning" not in printed(chain[1][name])


def test_03_again_on_a_fresh_kernel_finds_its_work_done(chain, kernels):
    folder, _ = chain
    kernels.setenv("GRPO_KIT_ROOT", str(folder / "runs"))  # another test may have set its own
    tensors = folder / "runs/tiny/adapter/adapter_model.safetensors"
    written = tensors.stat().st_mtime_ns
    again, error = execute("03_training", folder)
    assert error is None
    assert f"UTC: {STEPS} steps in " in printed(again)
    assert tensors.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("name", "missing", "remedy"),
    [("03_training", "data", "02_data.ipynb"), ("04_submit", "before", "03_training.ipynb")],
)
def test_without_the_stage_before_it_one_sentence_explains_and_nothing_runs_on(
    kernels, tmp_path, name, missing, remedy
):
    kernels.setenv("GRPO_KIT_ROOT", str(tmp_path / "runs"))
    notebook, error = execute(name, tmp_path)
    assert error.ename == "FileNotFoundError"
    assert error.evalue.startswith(f"Run 'tiny' has no finished stage '{missing}'")
    assert f"Run `notebook {remedy}` first." in error.evalue
    ran = [cell for cell in code(notebook) if cell.execution_count]
    assert len(ran) == 3  # install, settings, open the run
    shown = ran[-1].outputs[-1]
    assert len("\n".join(shown.traceback).splitlines()) <= 2  # the sentence, no trace
    assert list(tmp_path.iterdir()) == []


def pictures(notebook):
    return sum("image/png" in output.get("data", {}) for cell in code(notebook) for output in cell.outputs)
