"""Run notebooks as a reader does: with form fields filled in, each in a fresh kernel with its own environment."""

import json
import os
import re
from pathlib import Path

from jupyter_client.provisioning import local_provisioner

from tests.helpers.processes import start

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "notebooks"
NAMES = (
    "00_quickstart", "01_setup", "02_data", "03_training", "04_submit", "05_tuning", "06_environments", "08_stages",
)  # fmt: skip
# Variables that say where a kernel runs, or that would carry over from the test run.
OWN = ("MPLBACKEND", "KAGGLE_KERNEL_RUN_TYPE", "COLAB_RELEASE_TAG", "COV_CORE_SOURCE", "GRPO_KIT_ROOT", "GRPO_KIT_DATA")
DATA = "data.limit=400 data.val_size=20 data.test_size=60"
STEPS = 6
TRAINING = f"grpo.max_steps={STEPS} grpo.per_device_train_batch_size=16 grpo.num_generations=4 grpo.save_steps=1"
ENVIRONMENTS = (
    "data.limit=60 data.val_size=4 data.test_size=16 grpo.eval_steps=0 grpo.max_steps=2 grpo.num_generations=2"
)
ENVIRONMENTS += " grpo.per_device_train_batch_size=8 grpo.resample_budget=0"
STAGES = (
    "data.limit=120 data.val_size=4 data.test_size=24 grpo.per_device_train_batch_size=16 grpo.num_generations=4"
    " grpo.eval_steps=0 sft.max_steps=2 grpo.max_steps=2 dpo.max_steps=2"
)
QUICK = "data.limit=120 data.val_size=4 data.test_size=24 grpo.per_device_train_batch_size=16 grpo.num_generations=4"
QUICK += " grpo.max_steps=2 grpo.eval_steps=0"
SEARCH = {"search": "lora.r=[4,16]", "trials": 2, "steps": 1, "overrides": TRAINING}

# nbclient and nbformat build a grammar when they are imported, which takes seconds, so tests import them when they run.
local_provisioner.launch_kernel = lambda cmd, env, cwd=None, **_: start(cmd[1:], env, cwd)  # cmd[0] is Python


def read_notebook(name):
    import nbformat

    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed_text(notebook):
    """The text that a reader sees under the cells: streams, and the plain text of displayed objects."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


def count_pictures(notebook):
    return sum("image/png" in output.get("data", {}) for cell in code_cells(notebook) for output in cell.outputs)


def kernel_environment(*paths, **variables):
    """Environment variables for a kernel: `paths` and this checkout on Python's path, and no access to the Hub."""
    inherited = {name: value for name, value in os.environ.items() if name not in OWN}
    inherited |= {
        "PYTHONPATH": os.pathsep.join(map(str, (*paths, ROOT))),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    return inherited | {name: str(value) for name, value in variables.items()}


def notebook_client(name, folder, env, **fields):
    """(client, notebook, env) with these `fields` of the form filled in; the kernel runs in `folder`."""
    import nbclient

    notebook = read_notebook(name)
    form = code_cells(notebook)[1]
    for field, value in fields.items():
        line = f"{field} = {value!r}".replace("\\", "\\\\")
        form.source, hits = re.subn(rf"(?m)^{field} = .*?(?=\s*#@param)", line, form.source)
        assert hits == 1, f"{name} has no field {field}"
    folder.mkdir(parents=True, exist_ok=True)
    # By default nbclient gives up waiting for what a busy kernel has printed after 4 s, and goes on without it.
    limits = {"timeout": 300, "iopub_timeout": 120}
    runner = nbclient.NotebookClient(notebook, **limits, resources={"metadata": {"path": str(folder)}})
    return runner, notebook, env


def execute_notebook(name, folder, env, **fields):
    """(the executed notebook, the error that ended it or None)."""
    import nbclient

    runner, notebook, env = notebook_client(name, folder, env, **fields)
    try:
        runner.execute(env=env)
    except nbclient.exceptions.CellExecutionError as error:
        return notebook, error
    return notebook, None


def execute_in_order(folder, env_of, names=NAMES, before=lambda name: None):
    """Run the notebooks in order, each in its own folder with small settings; {name: executed notebook}."""
    fields = {"00_quickstart": {"overrides": QUICK}, "02_data": {"overrides": DATA}}
    fields |= {"03_training": {"overrides": TRAINING}, "05_tuning": SEARCH}
    fields |= {"06_environments": {"overrides": ENVIRONMENTS}, "08_stages": {"overrides": STAGES}}
    executed = {}
    for name in names:
        before(name)
        executed[name], error = execute_notebook(name, folder / name, env_of(name), **fields.get(name, {}))
        assert error is None, f"{name}: {error}"
    return executed


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
