"""How often real prompts were routed to each expert: where that is written, and read without trust."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

from grpo_kit import config as settings
from grpo_kit.nemotron import base_models
from grpo_kit.policy.model_source import base_model_name, build_config, nf4_folder
from grpo_kit.runs.places import default_nf4_folder

MOST_ROWS = 2**40  # that an expert can have been counted for; more would overflow when they are added up


def routing_path(policy: settings.Policy) -> Path:
    """The file in which `grpo-kit calibrate` writes this policy's routing counts: beside the NF4 checkpoint.

    For a checkpoint that may only be read, such as a mounted input of Kaggle, it is where one of our own would lie.
    """
    if policy.routing:
        return Path(policy.routing)
    folder = nf4_folder(policy)
    if folder.is_dir() and not (folder / "routing.json").is_file() and not os.access(folder, os.W_OK):
        folder = default_nf4_folder(policy.model)
    return folder / "routing.json"


def read_routing_counts(policy: settings.Policy) -> Any:
    """Read how often real prompts were routed to each expert, as counted by `grpo-kit calibrate`.

    Returns:
        int64 counts of shape (layers, experts); None if nothing was counted. So it is, with a warning, where the file
        beside the NF4 checkpoint is damaged or of another model.

    Raises:
        FileNotFoundError: `policy.routing` is set and does not exist.
        ValueError: `policy.routing` is set, and the file is no table of counts or is of another model.
    """
    path = routing_path(policy)
    if not path.is_file():
        if policy.routing:
            raise FileNotFoundError(
                f"policy.routing is {path}, which does not exist. Make it with `grpo-kit calibrate`."
            )
        return None
    try:
        return _read_counts(path, policy)
    except ValueError as error:
        if policy.routing:
            raise
        warnings.warn(f"{error} Until then no expert is placed by it.", stacklevel=2)
        return None


def _read_counts(path: Path, policy: settings.Policy) -> Any:
    """The counts in a file. Raises ValueError if it is damaged, or of another model than the policy's."""
    import torch

    again = "Make it again with `grpo-kit calibrate`, or delete it."
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        hits, name = torch.tensor(content["hits"]), content.get("model", policy.model)
        if hits.dtype != torch.int64 or hits.ndim != 2 or hits.min() < 0 or hits.max() > MOST_ROWS:
            raise ValueError(f"a count is a whole number, 0 to {MOST_ROWS:,}")
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:  # RuntimeError: nested too deeply
        reason = " ".join(str(error).split())[:80]
        raise ValueError(f"{path} is not a table of routing counts ({reason}). {again}") from None
    base = base_model_name(policy)
    is_same = base_models.recognize_bf16(name) == (base_models.recognize_bf16(base) or "")
    if not is_same and name not in (policy.model, base, str(nf4_folder(policy))):
        raise ValueError(f"{path} has the routing counts of {str(name)[:80]!r}; {base!r} is another model. {again}")
    config = build_config(policy)
    if config.model_type == "nemotron_h":
        shape = (config.layers_block_type.count("moe"), config.n_routed_experts)
        if tuple(hits.shape) != shape:
            raise ValueError(
                f"{path} has the routing counts of {hits.shape[0]} layers of {hits.shape[1]} experts; {policy.model} "
                f"has {shape[0]} layers of {shape[1]}. {again}"
            )
    return hits
