"""The run for NVIDIA NeMo-RL: rows, prompt file and an overlay for either schema, and the rows and command of NeMo-Gym.

Formats, defaults and traps as read in NeMo-RL v0.6.0, v0.7.0 and main of August 2026, in the documentation of v0.8.0, and in
Nemotron's `steps`, which are pinned to v0.6.0. Nothing of it was run here.
"""

import json
import shlex
from typing import Any

from omegaconf import OmegaConf

from grpo_kit.handoff import nemo_gym
from grpo_kit.handoff.bundle import Bundle, Part, gold, turns
from grpo_kit.handoff.nemo_overlay import BLOCK, HOME, before, overlay, start_of
from grpo_kit.runs.files import write_lines, write_text

MERGE_STAGE = '''"""What a stage has trained, merged into what it began with: python merge_stage.py BASE ADAPTER OUT"""

import sys

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype="bfloat16")
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
AutoTokenizer.from_pretrained(base).save_pretrained(out)
'''


def write(bundle: Bundle) -> tuple[str, list[str]]:
    """Fill the bundle's folder; returns (how to start it, Markdown; what does not carry over, sentences)."""
    with_budget = any(row.get("token_budget") for row in bundle.rows["train"])
    prompt = prompt_file(bundle, "" if with_budget else bundle.config.data.prompt_suffix)
    write_text(bundle.aside / "nemo_rl" / "prompt.txt", prompt)
    for split in ("train", "val"):
        if bundle.rows[split]:
            rows = [math_row(row, with_budget) for row in bundle.rows[split]]
            write_lines(bundle.aside / "nemo_rl" / f"{split}.jsonl", rows)
    for split, rows in bundle.rows.items():
        if rows:
            write_lines(bundle.aside / split / "data.jsonl", map(nemo_gym.row_of, rows))
    write_text(bundle.aside / "manifest.json", json.dumps(nemo_gym.manifest(bundle), indent=2) + "\n")
    commands = []
    for part in bundle.parts():
        for version in BLOCK:
            path = f"nemo_rl/{_file(part, version)}"
            write_text(bundle.aside / path, _head(bundle, version) + OmegaConf.to_yaml(overlay(bundle, version, part)))
        name = f"gym{part.name and '_' + part.name}.sh"
        write_text(bundle.aside / "nemo_rl" / name, nemo_gym.script(bundle, part))
        commands += _commands(bundle, part, name)
    if len(bundle.parts()) > 1:
        write_text(bundle.aside / "nemo_rl" / "merge_stage.py", MERGE_STAGE)
    return "\n".join(commands), _not_carried(bundle)


def prompt_file(bundle: Bundle, suffix: str) -> str:
    r"""The text NeMo-RL formats each problem into, by `str.format`: braces doubled, a backslash as it is.

    Its math processor makes one user turn and no system turn; a system text opens that turn.
    """
    system = bundle.config.data.system_prompt
    above, below = (text.replace("{", "{{").replace("}", "}}") for text in (system and f"{system}\n\n", suffix))
    return f"{above}{{}}{below}"


def math_row(row: dict[str, Any], whole: bool = False) -> dict[str, str]:
    """A row for `ResponseDataset`: the problem (with `whole` the user's turn as it was) and its gold, both text."""
    return {"input": turns(row)[-1]["content"] if whole else str(row["question"]), "output": gold(row)}


def _file(part: Part, version: str) -> str:
    return f"grpo_{version}{part.name and '_' + part.name}.yaml"


def _head(bundle: Bundle, version: str) -> str:
    if version == "v08":
        return (
            "# For NeMo-RL v0.8: goes on from the adapter on the base. The KL reference is the adapter as it begins.\n"
        )
    lacks = (
        ""
        if bundle.merge
        else "\n# model/ is NOT here: write the bundle again with --merge. The base alone would forget what was trained."
    )
    return f"# For NeMo-RL v0.6, v0.7 and main of August 2026: a fresh LoRA on the merged model.{lacks}\n"


def _commands(bundle: Bundle, part: Part, gym: str) -> list[str]:
    """Markdown: how this part is started, and what makes a model of the stage before for it."""
    lines, parts = [f"### {part.name or 'The run'}: {part.steps} steps", ""], bundle.parts()
    here = shlex.quote(f"{bundle.out}/nemo_rl")
    if part != parts[0]:
        began, weights = start_of(bundle, parts[parts.index(part) - 1]), before(bundle, part)
        lines += [
            "v0.8 goes on from the adapter that the stage before has saved (`restore_from`). Up to v0.7 it is merged first,",
            "by this line or by `nemotron steps run convert/merge_lora`:",
            "",
            f"    python {here}/merge_stage.py {shlex.quote(began)} {shlex.quote(weights)}/model {shlex.quote(weights)}/hf",
            "",
        ]
    run = f"cd {HOME} && uv run examples/run_grpo.py --config {here}"
    return lines + [
        f"    {run}/{_file(part, 'v06')}   # v0.6, v0.7; needs model/ (--merge)",
        f"    {run}/{_file(part, 'v08')}   # v0.8",
        f"    sh {here}/{gym}   # through NeMo-Gym; needs model/ (--merge)",
        "",
    ]


def _not_carried(bundle: Bundle) -> list[str]:
    config = bundle.config
    found = [
        "Rewards are NeMo-RL's own: math-verify on the last box against the gold, by `env.math`, and Gym's math server; ours stay here.",
        "Optimiser state, the step counter and the book of pass rates stay here; the engine counts from 0.",
        f"The cluster is written as {bundle.gpus} GPUs of one node, the most up to 8 that share {bundle.batch} completions evenly; "
        "memory and parallelism were not computed. With tensor parallelism set lora_cfg.use_triton=false.",
        "LoRA needs NeMo-RL's DTensor path; it has no 4-bit base, and routed experts may not take one there.",
    ]
    if not bundle.merge:
        found.append(
            "Up to v0.7 NeMo-RL cannot go on from an adapter: `grpo_v06*.yaml` and `gym*.sh` need `model/`, which --merge writes."
        )
    if config.data.system_prompt:
        found.append(
            "NeMo-RL's math processor has no system turn: in `nemo_rl/` the system text opens the user's; Gym's rows keep it."
        )
    if config.grpo.stages:
        found.append(
            "Stages begin when their steps are over, whatever their `enter`; a stage's length is prompt and completion together. "
            "NVIDIA's DeepScaleR recipe takes 16 updates from each batch of 1,024 completions, where this run takes one and the "
            "clip never binds: for theirs append `policy.train_global_batch_size=64 loss_fn.force_on_policy_ratio=false`. It "
            "also sets tensor parallelism 2 from 16K on and validates on AIME 2024, 16 times each."
        )
    if config.grpo.num_iterations > 1:
        found.append(f"grpo.num_iterations {config.grpo.num_iterations}: a batch is trained on once there.")
    return found
