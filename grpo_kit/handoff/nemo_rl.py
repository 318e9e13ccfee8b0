"""The run for NVIDIA NeMo-RL: rows, prompt file, an overlay for each of two schemas, and NeMo-Gym's rows and command.

Formats and defaults were read in the source of NeMo-RL v0.6.0, v0.7.0 and main of August 2026, in the documentation of
v0.8.0, and in Nemotron's `steps`, which are pinned to v0.6.0. Nothing of it was run with NeMo-RL here.
"""

import json
import shlex
from typing import Any

from omegaconf import OmegaConf

from grpo_kit.handoff import nemo_gym
from grpo_kit.handoff.bundle import Bundle, Part, chat_turns, reference_answer
from grpo_kit.handoff.nemo_overlay import BLOCK, HOME, make_overlay, previous_weights, starting_model
from grpo_kit.runs.files import write_lines, write_text

MERGE_STAGE = '''"""Merge a stage's adapter into the model it started from: python merge_stage.py BASE ADAPTER OUT"""

import sys

from peft import PeftModel
from peft.tuners import tuners_utils
from transformers import AutoModelForCausalLM, AutoTokenizer

base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype="bfloat16")
tuners_utils._check_lora_target_modules_mamba = lambda *args, **kwargs: None  # merging runs no kernel that skips a LoRA
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
AutoTokenizer.from_pretrained(base).save_pretrained(out)
'''


def write_files(bundle: Bundle) -> tuple[str, list[str]]:
    """Fill the bundle's folder. Returns (how to start, as Markdown; sentences on what does not carry over)."""
    with_budget = any(row.get("token_budget") for row in bundle.rows["train"])
    prompt = make_prompt_file(bundle, "" if with_budget else bundle.config.data.prompt_suffix)
    write_text(bundle.folder / "nemo_rl" / "prompt.txt", prompt)
    for split in ("train", "val"):
        if bundle.rows[split]:
            rows = [make_math_row(row, with_budget) for row in bundle.rows[split]]
            write_lines(bundle.folder / "nemo_rl" / f"{split}.jsonl", rows)
    for split, rows in bundle.rows.items():
        if rows:
            write_lines(bundle.folder / split / "data.jsonl", map(nemo_gym.make_gym_row, rows))
    write_text(bundle.folder / "manifest.json", json.dumps(nemo_gym.make_manifest(bundle), indent=2) + "\n")
    commands = []
    for part in bundle.parts():
        for version in BLOCK:
            text = _head(bundle, version) + OmegaConf.to_yaml(make_overlay(bundle, version, part))
            write_text(bundle.folder / "nemo_rl" / _file(part, version), text)
        name = f"gym{part.name and '_' + part.name}.sh"
        write_text(bundle.folder / "nemo_rl" / name, nemo_gym.make_script(bundle, part))
        commands += _commands(bundle, part, name)
    if len(bundle.parts()) > 1:
        write_text(bundle.folder / "nemo_rl" / "merge_stage.py", MERGE_STAGE)
    return "\n".join(commands), _not_carried(bundle)


def make_prompt_file(bundle: Bundle, suffix: str) -> str:
    r"""The text into which NeMo-RL puts each problem by `str.format`: braces are doubled, backslashes stay.

    Its math processor makes one user turn and no system turn, so the system prompt opens that turn.
    """
    system = bundle.config.data.system_prompt
    above, below = (text.replace("{", "{{").replace("}", "}}") for text in (system and f"{system}\n\n", suffix))
    return f"{above}{{}}{below}"


def make_math_row(row: dict[str, Any], full_turn: bool = False) -> dict[str, str]:
    """A row for `ResponseDataset`: the problem, or with `full_turn` the user's whole turn, and the reference answer."""
    problem = chat_turns(row)[-1]["content"] if full_turn else str(row["question"])
    return {"input": problem, "output": reference_answer(row)}


def _file(part: Part, version: str) -> str:
    return f"grpo_{version}{part.name and '_' + part.name}.yaml"


def _head(bundle: Bundle, version: str) -> str:
    if version == "v08":
        return (
            "# For NeMo-RL v0.8, guessed from its documentation: training continues from the adapter on the base.\n"
            "# The KL reference is the adapter as it starts.\n"
        )
    head = "# For NeMo-RL v0.6, v0.7 and main of August 2026: a fresh LoRA on the merged model.\n"
    if bundle.merge:
        return head
    return f"{head}# model/ is NOT here: export again with --merge. The base alone would lose what was trained.\n"


def _commands(bundle: Bundle, part: Part, gym: str) -> list[str]:
    """Markdown lines: how to start this part, and how to make a model of the stage before."""
    lines, parts = [f"### {part.name or 'The run'}: {part.steps} steps", ""], bundle.parts()
    here = shlex.quote(f"{bundle.out}/nemo_rl")
    if part != parts[0]:
        base = starting_model(bundle, parts[parts.index(part) - 1])
        weights = shlex.quote(previous_weights(bundle, part))
        lines += [
            "v0.8 continues from the adapter that the stage before saved (`restore_from`). Up to v0.7, merge it first,",
            "with this line or with `nemotron steps run convert/merge_lora`:",
            "",
            f"    python {here}/merge_stage.py {shlex.quote(base)} {weights}/model {weights}/hf",
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
    sentences = [
        "The rewards are NeMo-RL's own: math-verify compares the last box with the reference answer, in `env.math` or "
        "in Gym's math server. Ours are not exported.",
        "The optimiser state, the step counter and the pass rates of prompts are not exported; steps count from 0.",
        f"The cluster is written as {bundle.gpus} GPUs of one node, the most up to 8 that share "
        f"{bundle.completions_per_step} completions evenly. Memory and parallelism were not computed. With tensor "
        "parallelism, set lora_cfg.use_triton=false.",
        "LoRA needs NeMo-RL's DTensor path, which has no 4-bit base; routed experts may not accept a LoRA there.",
        "`grpo_v08*.yaml` is a guess: the configuration of v0.8 was never seen, only its documentation.",
    ]
    if not bundle.merge:
        sentences.append(
            "Up to v0.7 NeMo-RL cannot continue from an adapter: `grpo_v06*.yaml` and `gym*.sh` need `model/`, which "
            "--merge writes."
        )
    if config.data.system_prompt:
        sentences.append(
            "NeMo-RL's math processor has no system turn: in `nemo_rl/` the system prompt opens the user's turn. Gym's "
            "rows keep it."
        )
    if config.grpo.stages:
        sentences.append(
            "A stage ends after its steps, whatever the next one's `enter` says; its length is that of prompt and "
            "completion together. NVIDIA's DeepScaleR recipe makes 16 updates from each batch of 1,024 completions; "
            "this run makes one, so that the clip has no effect. For theirs, append "
            "`policy.train_global_batch_size=64 loss_fn.force_on_policy_ratio=false`. It also sets tensor parallelism "
            "2 from 16K on and validates on AIME 2024 with 16 answers each."
        )
    if config.grpo.num_iterations > 1:
        sentences.append(f"grpo.num_iterations {config.grpo.num_iterations}: NeMo-RL trains on a batch once.")
    return sentences
