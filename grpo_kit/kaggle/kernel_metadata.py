"""`kernel-metadata.json`, and what Kaggle would refuse or misread in it.

Kaggle accepts wrong metadata silently and starts something else: a title that does not match the id creates another
kernel, and Kaggle leaves out a data source in the wrong form. `check_metadata` refuses each of these before anything is
pushed.
"""

import json
import re
from collections.abc import Sequence
from typing import Any

from grpo_kit.config.checks import require
from grpo_kit.kaggle.accelerators import OFFLINE, find_accelerator

COMPETITION = "nvidia-nemotron-model-reasoning-challenge"
MODEL = "metric/nemotron-3-nano-30b-a3b-bf16/Transformers/default/1"
METADATA_FILE = "kernel-metadata.json"
SLUG = r"[a-z0-9]+(?:-[a-z0-9]+)*"
OWNED = rf"[A-Za-z0-9][A-Za-z0-9_-]*/{SLUG}"
# {metadata key: (form of each source, the form in words)}
SOURCES = {
    "competition_sources": (SLUG, "a slug"),
    "dataset_sources": (OWNED, "owner/slug"),
    "kernel_sources": (OWNED, "owner/slug"),
    "model_sources": (r"[^/\s]+/[^/\s]+/[^/\s]+/[^/\s]+/[0-9]+", "owner/model/framework/variation/version"),
}


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
