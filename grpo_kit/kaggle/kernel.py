"""A notebook of the kit as a Kaggle kernel: a copy with its form fields filled in, and its metadata.

The notebook in the repository stays as it is; the copy lies in the run's folder.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grpo_kit import config as configuration
from grpo_kit.config.checks import require
from grpo_kit.config.form import join_settings
from grpo_kit.kaggle import wheels
from grpo_kit.kaggle.accelerators import OFFLINE, find_accelerator, make_first_cell
from grpo_kit.kaggle.kernel_metadata import METADATA_FILE, MODEL, check_metadata, make_metadata, make_slug
from grpo_kit.nemotron.base_models import EMBEDDED, MOUNTED_MODEL, PUBLISHED, recognize_base
from grpo_kit.runs.files import write_text
from grpo_kit.runs.installation import read_install_cell
from grpo_kit.runs.places import kaggle_nf4_folder
from grpo_kit.runs.run import find_run


@dataclass(frozen=True)
class Kernel:
    """What is pushed: the metadata, the notebook's text, and the folder where both are written."""

    folder: Path
    metadata: dict[str, Any]
    code: str

    @property
    def content(self) -> str:
        """sha256 of what is pushed: equal hashes mean that nothing has changed."""
        return hashlib.sha256((json.dumps(self.metadata, sort_keys=True) + self.code).encode()).hexdigest()

    def write(self) -> None:
        """Write both files, each in one step."""
        write_text(self.folder / self.metadata["code_file"], self.code)
        write_text(self.folder / METADATA_FILE, json.dumps(self.metadata, indent=2, ensure_ascii=False) + "\n")


def find_notebook(name: str) -> Path:
    """The notebook called `03_training` or `03_training.ipynb`, or a path. Raises FileNotFoundError with all names."""
    kit = Path(__file__).resolve().parents[2] / "notebooks"
    file = name if name.endswith(".ipynb") else f"{name}.ipynb"
    for path in (Path(file), Path("notebooks") / file, kit / file):
        if path.is_file():
            return path
    names = sorted(path.stem for path in (*Path("notebooks").glob("[0-9]*.ipynb"), *kit.glob("[0-9]*.ipynb")))
    hint = f" There are {', '.join(dict.fromkeys(names))}." if names else " Run it in a checkout of the kit."
    raise FileNotFoundError(f"No notebook {file} here or in notebooks/.{hint}")


def find_next_notebook(path: Path) -> str:
    """The name of the notebook that goes on where this one ends; search and environments go back to the training."""
    later = sorted(other.stem for other in path.parent.glob("0[1-5]*.ipynb") if other.stem > path.stem)
    return later[0] if later else "03_training"


def build_kernel(
    owner: str,
    notebook: Path,
    accelerator: str,
    root: Path,
    run: str | None = None,
    preset: str | None = None,
    overrides: Sequence[str] = (),
    datasets: Sequence[str] = (),
    kernels: Sequence[str] = (),
) -> Kernel:
    """The notebook as a kernel, checked but not yet written.

    The 30B is mounted. Another model of the Hub is downloaded, and its kernels may use the internet for that. What
    `01_setup` quantises becomes part of its output, so that later kernels mount it and need not make it again.

    Args:
        owner: the Kaggle user name.
        notebook: the notebook's file.
        accelerator: Kaggle's name of the machine.
        root: the folder of all runs; the kernel goes into `NAME/kaggle/SLUG` there.
        run: name of the run, on Kaggle as here; the preset's name by default.
        preset: name of a preset; None: the one that suits the accelerator.
        overrides: settings as `key=value`.
        datasets: owner/slug of what is mounted; the owner's wheels by default, as `grpo-kit wheels` names them.
        kernels: owner/slug of kernels whose output is mounted, such as that of an earlier run.

    Raises:
        ValueError: settings, sources or the notebook would fail on Kaggle.
    """
    preset = preset or find_accelerator(accelerator).preset
    presets = configuration.preset_names()
    require(
        preset in presets,
        f"--config is {preset!r}; Kaggle does not have your files, so a kernel takes a preset: {', '.join(presets)}.",
    )
    datasets = datasets or [f"{owner}/{wheels.dataset_name()}"]  # there is no internet, so wheels must be mounted
    policy = configuration.load_config([preset], overrides).policy
    base, local = recognize_base(policy.model), policy.model.startswith("/")
    if base == PUBLISHED and not any(text.startswith("policy.model=") for text in overrides):
        policy = replace(policy, model=MOUNTED_MODEL)
        overrides = [f"policy.model={MOUNTED_MODEL}", *overrides]
    internet = not (local or base in (PUBLISHED, *EMBEDDED))
    require(
        not (internet and accelerator == OFFLINE),
        f"policy.model is {policy.model}, which a kernel downloads from the Hub, and {OFFLINE} has no internet. Take "
        "--accelerator NvidiaTeslaT4, or mount the model and give its folder as policy.model.",
    )
    if notebook.stem == "01_setup" and policy.load_in_4bit and policy.nf4_folder is None:
        folder = kaggle_nf4_folder(policy.model, {"KAGGLE_KERNEL_RUN_TYPE": "Batch"})
        overrides = [*overrides, f"policy.nf4_folder={folder}"]
    name = find_run(run or preset, root).name
    title = f"grpo-kit {notebook.stem.replace('_', ' ')}" + (f" {run}" if run else "")
    models = (MODEL,) if base == PUBLISHED or local else ()
    metadata = make_metadata(owner, title, notebook.name, accelerator, datasets, kernels, models, internet)
    form = {"preset": preset, "run_name": name, "overrides": join_settings(overrides)}
    code = fill_notebook(notebook, form, accelerator)
    check_metadata(metadata, code)
    return Kernel(root / name / "kaggle" / make_slug(title), metadata, code)


def fill_notebook(notebook: Path, form: dict[str, str], accelerator: str) -> str:
    """The notebook's text with `form` in its form fields and two cells in front: the machine check and the wheels.

    Raises:
        ValueError: the file is not a notebook, or a field does not occur exactly once in it.
    """
    try:
        content = json.loads(notebook.read_text(encoding="utf-8"))
        cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
        texts = ["".join(cell["source"]) for cell in cells]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{notebook} is not a notebook. Build it again with `make notebooks`.") from None
    for name, value in form.items():
        field = re.compile(rf"^{name} = .*?(?=\s*#\s?@param)", re.MULTILINE)
        require(
            sum(len(field.findall(text)) for text in texts) == 1,
            f"{notebook} does not have exactly one form field `{name} = ...  #@param`, which push fills in. "
            "Add it to the settings cell.",
        )
        texts = [field.sub(lambda _, n=name, v=value: f"{n} = {json.dumps(v)}", text) for text in texts]
    for cell, text in zip(cells, texts):
        cell["source"] = text
    added = {"grpo-kit-machine": make_first_cell(accelerator), "grpo-kit-wheels": read_install_cell()}
    content["cells"] = [*(_code_cell(name, text) for name, text in added.items()), *content["cells"]]
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _code_cell(name: str, text: str) -> dict[str, Any]:
    return {"cell_type": "code", "id": name, "metadata": {}, "execution_count": None, "outputs": [], "source": text}
