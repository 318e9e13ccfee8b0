"""A notebook of the kit as a Kaggle kernel: a copy with its form fields filled in, and `kernel-metadata.json`.

Kaggle accepts wrong metadata silently and starts something else: a title that does not match the id creates another
kernel, and Kaggle leaves out a data source in the wrong form. `check_metadata` refuses each of these before anything is
pushed. The notebook in the repository stays as it is; the copy lies in the run's folder.
"""

import difflib
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
from grpo_kit.nemotron.base_models import EMBEDDED, MOUNTED_MODEL, PUBLISHED, recognize_base
from grpo_kit.runs.files import write_text
from grpo_kit.runs.installation import read_install_cell
from grpo_kit.runs.places import kaggle_nf4_folder
from grpo_kit.runs.run import find_run

COMPETITION = "nvidia-nemotron-model-reasoning-challenge"
MODEL = "metric/nemotron-3-nano-30b-a3b-bf16/Transformers/default/1"
METADATA_FILE = "kernel-metadata.json"


@dataclass(frozen=True)
class Accelerator:
    """A machine that Kaggle lends.

    Attributes:
        gpu: part of the name that its GPU reports.
        preset: our preset that suits it.
        note: what to know about it, for messages.
    """

    gpu: str
    preset: str
    note: str = ""


# Kaggle's names, from its client's documentation of February 2026. Today's client says that P100 is retired.
ACCELERATORS = {
    "NvidiaTeslaT4": Accelerator("T4", "t4x2", "two T4"),
    "NvidiaTeslaT4Highmem": Accelerator("T4", "t4", "not open to everyone"),
    "NvidiaTeslaP100": Accelerator("P100", "t4", "retired: Kaggle runs it on NvidiaTeslaT4 instead"),
    "NvidiaL4": Accelerator("L4", "24gb", "four L4; some competitions only"),
    "NvidiaL4X1": Accelerator("L4", "24gb", "some competitions only"),
    "NvidiaTeslaA100": Accelerator("A100", "80gb", "some competitions only"),
    "NvidiaH100": Accelerator("H100", "80gb", "some competitions only"),
    "NvidiaRtxPro6000": Accelerator("RTX PRO 6000", "80gb", "this competition; no internet"),
}
OFFLINE = "NvidiaRtxPro6000"  # "Internet cannot be enabled for this competition with the current accelerator."
SLUG = r"[a-z0-9]+(?:-[a-z0-9]+)*"
OWNED = rf"[A-Za-z0-9][A-Za-z0-9_-]*/{SLUG}"
# {metadata key: (form of each source, the form in words)}
SOURCES = {
    "competition_sources": (SLUG, "a slug"),
    "dataset_sources": (OWNED, "owner/slug"),
    "kernel_sources": (OWNED, "owner/slug"),
    "model_sources": (r"[^/\s]+/[^/\s]+/[^/\s]+/[^/\s]+/[0-9]+", "owner/model/framework/variation/version"),
}
GPU_LINE = "grpo-kit kernel on"  # the first cell prints it before the GPU's name; `run_kernel` looks for it in the log
FIRST_CELL = """\
# Added by `grpo-kit push`. Kaggle may start another machine than the one requested: stop before hours are spent.
import subprocess

REQUESTED, GPU = {requested!r}, {gpu!r}
query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
try:
    gpus = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().splitlines()
except (OSError, subprocess.CalledProcessError):
    gpus = []
print("{gpu_line}", ", ".join(gpus) or "no GPU", flush=True)
if not any(GPU in gpu for gpu in gpus):
    raise RuntimeError(
        f"{{REQUESTED}} was requested, but this machine has {{', '.join(gpus) or 'no GPU'}}. Stopped to save the quota."
    )"""


def find_accelerator(name: str) -> Accelerator:
    """The accelerator called `name`. Raises ValueError, with the nearest name, for one that Kaggle does not have."""
    near = [other for other in ACCELERATORS if name and name.lower() in other.lower()]
    near = near or difflib.get_close_matches(name, ACCELERATORS, n=1, cutoff=0.4)
    hint = f" Did you mean {near[0]}?" if near else ""
    require(name in ACCELERATORS, f"accelerator is {name!r}; Kaggle has {', '.join(ACCELERATORS)}.{hint}")
    return ACCELERATORS[name]


def make_slug(title: str) -> str:
    """The slug, the part of a kernel's address that Kaggle makes from its title.

    >>> make_slug("grpo-kit: 03 Training")
    'grpo-kit-03-training'
    """
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def make_metadata(
    owner: str,
    title: str,
    code_file: str,
    accelerator: str,
    datasets: Sequence[str] = (),
    kernels: Sequence[str] = (),
    models: Sequence[str] = (MODEL,),
    internet: bool = False,
) -> dict[str, Any]:
    """Unchecked metadata of a private notebook for this competition, with every field.

    Args:
        owner: the Kaggle user name.
        title: 5 to 50 characters; the slug in the id is made from it.
        code_file: name of the notebook's file.
        accelerator: Kaggle's name of the machine.
        datasets, kernels: owner/slug of what is mounted.
        models: owner/model/framework/variation/version of what is mounted.
        internet: whether the notebook may use it.

    Source:
        https://github.com/Kaggle/kaggle-api/blob/main/docs/kernels_metadata.md
    """
    return {
        "id": f"{owner}/{make_slug(title)}",
        "title": title,
        "code_file": code_file,
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": True,
        "enable_tpu": False,
        "enable_internet": internet,
        "machine_shape": accelerator,
        "competition_sources": [COMPETITION],
        "model_sources": list(models),
        "dataset_sources": list(datasets),
        "kernel_sources": list(kernels),
    }


def check_metadata(metadata: dict[str, Any], code: str) -> None:
    """Raise ValueError for the first field that Kaggle would refuse or misread.

    Args:
        metadata: every field of `make_metadata`.
        code: the text of the notebook, which must be a notebook without outputs.
    """
    title, name, accelerator = metadata["title"], metadata["id"], metadata["machine_shape"]
    require(
        5 <= len(title) <= 50,
        f"title is {title!r}, {len(title)} characters; Kaggle takes 5 to 50. Choose another run name.",
    )
    require(
        re.fullmatch(OWNED, name) is not None,
        f"id is {name!r}; Kaggle takes owner/slug, the slug in lower case with digits and single hyphens.",
    )
    require(
        name.split("/")[1] == make_slug(title),
        f"id is {name!r}, but Kaggle makes {make_slug(title)!r} of the title {title!r} and would start another kernel. "
        "Make them agree.",
    )
    kind = (metadata["language"], metadata["kernel_type"])
    require(
        kind == ("python", "notebook"),
        f"language and kernel_type are {kind[0]!r} and {kind[1]!r}; set them to 'python' and 'notebook'.",
    )
    find_accelerator(accelerator)
    require(
        metadata["enable_gpu"] is True and metadata["enable_tpu"] is False,
        f"enable_gpu is {metadata['enable_gpu']} and enable_tpu {metadata['enable_tpu']}, but {accelerator} is a GPU. "
        "Set them to true and false.",
    )
    require(
        not (accelerator == OFFLINE and metadata["enable_internet"]),
        f"enable_internet is true; Kaggle refuses internet with {OFFLINE} in this competition. Set it to false and "
        "mount wheels.",
    )
    for key, (form, words) in SOURCES.items():
        for source in metadata[key]:
            require(
                isinstance(source, str) and re.fullmatch(form, source) is not None,
                f"{key} contains {source!r}; it takes {words}, and Kaggle would silently leave this one out.",
            )
        require(len(set(metadata[key])) == len(metadata[key]), f"{key} names a source twice: {metadata[key]}.")
    _check_code(metadata["code_file"], code)


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
    gpu = find_accelerator(accelerator).gpu
    first = FIRST_CELL.format(requested=accelerator, gpu=gpu, gpu_line=GPU_LINE)
    added = {"grpo-kit-machine": first, "grpo-kit-wheels": read_install_cell()}
    content["cells"] = [*(_code_cell(name, text) for name, text in added.items()), *content["cells"]]
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _code_cell(name: str, text: str) -> dict[str, Any]:
    return {"cell_type": "code", "id": name, "metadata": {}, "execution_count": None, "outputs": [], "source": text}


def _check_code(name: str, code: str) -> None:
    """Raise ValueError unless `code` is a notebook without outputs."""
    try:
        cells = json.loads(code)["cells"]
        run = [n for n, cell in enumerate(cells, 1) if cell.get("outputs") or cell.get("execution_count") is not None]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{name} is not a notebook; code_file takes an .ipynb.") from None
    require(name.endswith(".ipynb"), f"code_file is {name!r}; a notebook's name ends in .ipynb.")
    require(
        not run,
        f"{name} holds outputs (cell {run[0] if run else 0}); clear them, because a kernel starts without outputs.",
    )
