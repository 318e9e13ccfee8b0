"""Let the untrained and the trained policy read the same texts, and write down how each loads the experts.

The texts are held-out prompts, each with the untrained policy's own completion from `evaluation/before.json`. Both
policies read every token of them, so that "the choice of this token changed" has a meaning. The untrained policy is the
trained one with its adapter switched off, in the same forward pass: nothing but the LoRA differs between the two.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from grpo_kit.adapters.folder import AdapterFolder
from grpo_kit.config import Policy
from grpo_kit.evaluation.problem_sets import Problem
from grpo_kit.nemotron import patches
from grpo_kit.nemotron.placement.relief import with_relief
from grpo_kit.nemotron.placement.tiered_layers import find_tiered_layers
from grpo_kit.planning import calibrate, expert_load
from grpo_kit.policy.generate import TransformersEngine
from grpo_kit.runs import activity
from grpo_kit.runs.files import to_json, write_text
from grpo_kit.runs.reading import read_json
from grpo_kit.runs.run import Run

TEXTS = 32  # problems, spread evenly over those that are measured
LONGEST = 1024  # tokens of a text that are read


def build_texts(run: Run, tokenizer: Any, problems: Sequence[Problem], prompts: Sequence[list[int]]) -> list[list[int]]:
    """Token ids of the fixed texts: up to TEXTS prompts with the completions that the untrained policy gave.

    Args:
        run: the run.
        tokenizer: the policy's.
        problems: the problems that are measured.
        prompts: token ids of the prompt of each.

    Returns:
        At most LONGEST tokens a text; none where the run has not measured the untrained policy on these problems.

    Raises:
        ValueError: `before.json` is damaged.
    """
    if "before" not in run.stages():
        return []
    run.require_stage("before", "grpo-kit evaluate")
    before = {
        problem["id"]: problem["completions"] for problem in read_json(run.evaluation / "before.json")["problems"]
    }
    pairs = [(ids, before[p.row["id"]][0]) for p, ids in zip(problems, prompts, strict=True) if before.get(p.row["id"])]
    spread = [pairs[place * len(pairs) // TEXTS] for place in range(TEXTS)] if len(pairs) > TEXTS else pairs
    return [(ids + tokenizer(text, add_special_tokens=False)["input_ids"])[:LONGEST] for ids, text in spread]


def write_load(policy: Policy, run: Run, stage: str, engine: Any, adapter: Path, texts: list[list[int]]) -> list[Path]:
    """Write `evaluation/<stage>_experts.json` where the policy has experts whose choices can be compared.

    There is nothing to write where it has none, where vLLM holds the policy, or where the adapter's pairs on experts
    were added to unquantised weights, so that no adapter can be switched off.

    Args:
        policy: the run's.
        run: the run.
        stage: the measurement of a trained policy, such as `after`.
        engine: that samples with the trained policy.
        adapter: its folder.
        texts: from `build_texts`.

    Returns:
        The files that were written, for the record.
    """
    path, model = run.evaluation / f"{stage}_experts.json", getattr(engine, "model", None)
    if not (
        isinstance(engine, TransformersEngine) and texts and patches.find_routers(model) and _is_apart(model, adapter)
    ):
        path.unlink(missing_ok=True)  # of another measurement
        return []
    activity.announce("comparing the load of the experts")
    routers = list(patches.find_routers(model).values())
    choices = []
    for switch in (model.disable_adapter if hasattr(model, "disable_adapter") else nullcontext, nullcontext):
        with switch():
            choices.append(with_relief(model, lambda: expert_load.record_choices(model, texts), "sampling"))
    old, new = (expert_load.count_choices(side, routers[0].num_experts) for side in choices)
    changed, overlap = expert_load.compare_choices(*choices)
    zero, pairs = expert_load.count_zero_pairs(model)
    tiered = list(find_tiered_layers(model).values())
    load = calibrate.summarise_hits(policy, new, len(texts)) | {
        "stage": stage,
        "tokens": choices[0].shape[1],
        "texts_sha256": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
        "top_k": choices[0].shape[2],
        "layers": expert_load.number_layers(model),
        "hits_before": old.tolist(),
        "changed": changed,
        "overlap": overlap,
        "on_host": [sorted(layer.on_host) for layer in tiered] or [[] for _ in routers],
        "lora_pairs": pairs,
        "lora_pairs_zero": zero,
    }
    write_text(path, to_json(load) + "\n")
    return [path]


def _is_apart(model: Any, adapter: Path) -> bool:
    """Whether the base is as it was: pairs on unquantised experts are added to their weights."""
    on_experts = any(re.search(r"\.experts\.", key) for key in AdapterFolder(adapter, "attach").entries)
    return bool(find_tiered_layers(model)) or not on_experts
