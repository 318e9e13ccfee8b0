"""A notebook of the kit as a Kaggle kernel: its form fields filled in, and a first cell that looks at the machine.

The notebook in the repository stays as it is; what is pushed is a copy in the run's folder, beside its metadata.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_kit import config as configuration
from grpo_kit.config.checks import require
from grpo_kit.kaggle import wheels
from grpo_kit.kaggle.kernel import FILE, MODEL, MOUNTED_MODEL, accelerator, check, slug
from grpo_kit.kaggle.kernel import metadata as metadata_kernel
from grpo_kit.runs.files import write_text
from grpo_kit.runs.run import find_run

SEEN = "grpo-kit kernel on"  # what the first cell prints before the GPU's name; `kernel_run` looks for it in the log

FIRST_CELL = """\
# Put here by `grpo-kit push`. Kaggle may start another machine than was asked for: see, and stop before hours are spent.
import subprocess

ASKED, GPU = {asked!r}, {gpu!r}
query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
try:
    gpus = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip().splitlines()
except (OSError, subprocess.CalledProcessError):
    gpus = []
print("{seen}", ", ".join(gpus) or "no GPU", flush=True)
if not any(GPU in gpu for gpu in gpus):
    raise RuntimeError(f"{{ASKED}} was asked for; this is {{', '.join(gpus) or 'no GPU'}}. Stopped to save the quota.")"""


@dataclass(frozen=True)
class Kernel:
    """What is to be pushed: the metadata and the notebook's text, and where they are to lie."""

    folder: Path
    metadata: dict[str, Any]
    code: str

    @property
    def content(self) -> str:
        """sha256 of what is pushed: the same content is the same push."""
        return hashlib.sha256((json.dumps(self.metadata, sort_keys=True) + self.code).encode()).hexdigest()

    def write(self) -> None:
        """Write both files, each in one step."""
        write_text(self.folder / self.metadata["code_file"], self.code)
        write_text(self.folder / FILE, json.dumps(self.metadata, indent=2, ensure_ascii=False) + "\n")


def find_notebook(name: str) -> Path:
    """The notebook meant by `03_training`, `03_training.ipynb` or a path. Raises FileNotFoundError, with those there are."""
    here = Path(__file__).resolve().parents[2] / "notebooks"
    wanted = name if name.endswith(".ipynb") else f"{name}.ipynb"
    for path in (Path(wanted), Path("notebooks") / wanted, here / wanted):
        if path.is_file():
            return path
    known = sorted(path.stem for path in (*Path("notebooks").glob("[0-9]*.ipynb"), *here.glob("[0-9]*.ipynb")))
    there = f" There are {', '.join(dict.fromkeys(known))}." if known else " Run it in a checkout of the kit."
    raise FileNotFoundError(f"No notebook {wanted} here or in notebooks/.{there}")


def kernel(
    owner: str, notebook: Path, machine_shape: str, root: Path, run: str | None = None, preset: str | None = None,
    overrides: Sequence[str] = (), datasets: Sequence[str] = (), kernels: Sequence[str] = (),
) -> Kernel:  # fmt: skip
    """The notebook as a kernel of `owner`, checked, not yet written.

    `preset`: without one, what suits the accelerator. `datasets`: what is mounted; without any, the owner's wheels, as
    `grpo-kit wheels` names them. `kernels`: whose output is mounted, an earlier run's. Raises ValueError for settings, sources or a notebook that would fail on Kaggle.
    """
    preset = preset or accelerator(machine_shape).preset
    require(
        preset in configuration.preset_names(),
        f"--config is {preset!r}; a kernel has no file of yours, so it takes a preset: {', '.join(configuration.preset_names())}.",
    )
    datasets = datasets or [f"{owner}/{wheels.dataset()}"]  # without internet, wheels there must be
    own_model = any(text.startswith("policy.model=") for text in overrides)
    tiny = configuration.load_config([preset], overrides).policy.model == "tiny"
    if not (tiny or own_model):
        overrides = [f"policy.model={MOUNTED_MODEL}", *overrides]
    require(
        not any(" " in text for text in overrides),
        f"The notebook parts its overrides at spaces, and {next((t for t in overrides if ' ' in t), '')!r} holds one. Write it without.",
    )
    find_run(run or preset, root)
    title = f"grpo-kit {notebook.stem.replace('_', ' ')}" + (f" {run}" if run else "")
    models = () if tiny else (MODEL,)
    told = metadata_kernel(owner, title, notebook.name, machine_shape, tuple(datasets), tuple(kernels), models)
    code = fill(
        notebook, {"preset": preset, "run_name": run or preset, "overrides": " ".join(overrides)}, machine_shape
    )
    check(told, code)
    return Kernel(root / (run or preset) / "kaggle" / slug(title), told, code)


def fill(notebook: Path, settings: dict[str, str], machine_shape: str) -> str:
    """The notebook's text with `settings` in its form fields and the kernel's own cells in front.

    Raises ValueError for a file that is no notebook, and for a setting that has not exactly one form field.
    """
    try:
        held = json.loads(notebook.read_text(encoding="utf-8"))
        cells = [cell for cell in held["cells"] if cell["cell_type"] == "code"]
        texts = ["".join(cell["source"]) for cell in cells]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{notebook} is not a notebook. Build it again with `make notebooks`.") from None
    for name, value in settings.items():
        field = re.compile(rf"^{name} = .*?(?=\s*#\s?@param)", re.MULTILINE)
        require(
            sum(len(field.findall(text)) for text in texts) == 1,
            f"{notebook} has not exactly one form field `{name} = ...  #@param`; push fills it in. Add it to the settings cell.",
        )
        texts = [field.sub(lambda _, n=name, v=value: f"{n} = {json.dumps(v)}", text) for text in texts]
    for cell, text in zip(cells, texts):
        cell["source"] = text
    asked = accelerator(machine_shape)
    first = FIRST_CELL.format(asked=machine_shape, gpu=asked.gpu, seen=SEEN)
    held["cells"] = [_cell("grpo-kit-machine", first), _cell("grpo-kit-wheels", wheels.INSTALL_CELL), *held["cells"]]
    return json.dumps(held, indent=1, ensure_ascii=False) + "\n"


def _cell(name: str, text: str) -> dict[str, Any]:
    return {"cell_type": "code", "id": name, "metadata": {}, "execution_count": None, "outputs": [], "source": text}
