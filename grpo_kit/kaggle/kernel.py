"""`kernel-metadata.json`: what a Kaggle kernel is to run, on which accelerator and with what mounted, checked beforehand.

Kaggle takes a wrong one without a word and starts something else: a title whose slug is another makes another kernel, a
source in the wrong form is left out. Each rule here is one of those. Fields as the official client documents them.
"""

import difflib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpo_kit.config.checks import require

COMPETITION = "nvidia-nemotron-model-reasoning-challenge"
MODEL = "metric/nemotron-3-nano-30b-a3b-bf16/Transformers/default/1"
MOUNTED_MODEL = "/kaggle/input/models/metric/nemotron-3-nano-30b-a3b-bf16/transformers/default/1"
FILE = "kernel-metadata.json"


@dataclass(frozen=True)
class Accelerator:
    """A machine that Kaggle lends: what its GPU calls itself, which of our presets suits it, what to know."""

    gpu: str
    preset: str
    note: str = ""


# The names are Kaggle's (its client's documentation of February 2026); the client of today says P100 is retired.
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
OWNED = r"[A-Za-z0-9][A-Za-z0-9_-]*/[a-z0-9]+(?:-[a-z0-9]+)*"


def accelerator(name: str) -> Accelerator:
    """The accelerator called `name`. Raises ValueError, with the nearest name, for one that Kaggle does not have."""
    meant = [known for known in ACCELERATORS if name and name.lower() in known.lower()]
    meant = meant or difflib.get_close_matches(name, ACCELERATORS, n=1, cutoff=0.4)
    hint = f" Did you mean {meant[0]}?" if meant else " Name one of them."
    require(name in ACCELERATORS, f"accelerator is {name!r}; Kaggle knows {', '.join(ACCELERATORS)}.{hint}")
    return ACCELERATORS[name]


def slug(title: str) -> str:
    """What Kaggle makes of a title in an address.

    >>> slug("grpo-kit: 03 Training")
    'grpo-kit-03-training'
    """
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def metadata(
    owner: str, title: str, code_file: str, machine_shape: str, datasets: tuple[str, ...] = (), kernels: tuple[str, ...] = (), models: tuple[str, ...] = (MODEL,)
) -> dict[str, Any]:  # fmt: skip
    """The metadata of a private notebook without internet for this competition, every field in it; not yet checked."""
    return {
        "id": f"{owner}/{slug(title)}",
        "title": title,
        "code_file": code_file,
        "language": "python",
        "kernel_type": "notebook",
        "is_private": True,
        "enable_gpu": True,
        "enable_tpu": False,
        "enable_internet": False,
        "machine_shape": machine_shape,
        "competition_sources": [COMPETITION],
        "model_sources": list(models),
        "dataset_sources": list(datasets),
        "kernel_sources": list(kernels),
    }


def check(told: dict[str, Any], code: str) -> None:
    """Raise ValueError for the first thing in `told` that Kaggle would not take, or would take to mean something else.

    `code`: the text of the notebook, which has to be valid and free of outputs.
    """
    title, name, shape = told["title"], told["id"], told["machine_shape"]
    require(
        5 <= len(title) <= 50,
        f"title is {title!r}, {len(title)} characters; Kaggle takes 5 to 50. Pick another run name.",
    )
    require(
        re.fullmatch(OWNED, name) is not None, f"id is {name!r}; it is written owner/slug, in small letters, digits and hyphens. Write it so."
    )  # fmt: skip
    require(
        name.split("/")[1] == slug(title),
        f"id is {name!r}, but Kaggle makes {slug(title)!r} of the title {title!r} and would start another kernel. Make them agree.",
    )
    require(
        (told["language"], told["kernel_type"]) == ("python", "notebook"),
        f"language and kernel_type are {told['language']!r} and {told['kernel_type']!r}; a notebook of the kit is 'python' and 'notebook'. Set them so.",
    )
    accelerator(shape)
    require(
        told["enable_gpu"] is True and told["enable_tpu"] is False,
        f"enable_gpu is {told['enable_gpu']} and enable_tpu {told['enable_tpu']}; {shape} is a GPU. Set true and false.",
    )
    require(
        not (shape == OFFLINE and told["enable_internet"]),
        f"enable_internet is true; Kaggle refuses internet with {OFFLINE} in this competition. Set it to false and mount wheels.",
    )
    forms = {
        "competition_sources": (r"[a-z0-9]+(?:-[a-z0-9]+)*", "a slug"),
        "dataset_sources": (OWNED, "owner/slug"),
        "kernel_sources": (OWNED, "owner/slug"),
        "model_sources": (r"[^/\s]+/[^/\s]+/[^/\s]+/[^/\s]+/[0-9]+", "owner/model/framework/variation/version"),
    }
    for key, (form, words) in forms.items():
        for source in told[key]:
            require(
                isinstance(source, str) and re.fullmatch(form, source) is not None,
                f"{key} holds {source!r}; it takes {words}, and Kaggle would leave this one out. Write it so.",
            )
        require(len(set(told[key])) == len(told[key]), f"{key} names something twice: {told[key]}. Name it once.")
    _check_notebook(told["code_file"], code)


def check_folder(folder: Path) -> dict[str, Any]:
    """The metadata in `folder`, checked with the notebook beside it. Raises FileNotFoundError, ValueError as `check`."""
    path = folder / FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; `grpo-kit push` writes one. Check the folder.")
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        code = folder / Path(told["code_file"]).name
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not kernel metadata with a code_file; `grpo-kit push` writes it anew.") from None
    missing = metadata("", "", "", "").keys() - told.keys()
    require(not missing, f"{path} lacks {', '.join(sorted(missing))}; `grpo-kit push` writes it anew.")
    if not code.is_file() or code.name != told["code_file"]:
        raise FileNotFoundError(
            f"code_file is {told['code_file']!r}; no such file lies beside {path}. Name a notebook there."
        )
    check(told, code.read_text(encoding="utf-8"))
    return told


def _check_notebook(name: str, code: str) -> None:
    try:
        cells = json.loads(code)["cells"]
        held = [n for n, cell in enumerate(cells) if cell.get("outputs") or cell.get("execution_count") is not None]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{name} is not a notebook; code_file takes an .ipynb. Name one.") from None
    require(name.endswith(".ipynb"), f"code_file is {name!r}; a notebook ends in .ipynb. Name it so.")
    require(not held, f"{name} holds outputs (cell {held[0] + 1 if held else 0}); a kernel starts without. Clear them.")
