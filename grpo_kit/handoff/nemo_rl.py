"""The run for NVIDIA NeMo-RL: rows, prompt file, overlays, NeMo-Gym's rows, and the script that picks an overlay.

NeMo-RL v0.6.0, v0.7.0 and main of August 2026 read the overlays with their own loader and schema; no training was run
with NeMo-RL here.
"""

import json
import shlex
import warnings
from pathlib import Path
from string import Template
from typing import Any

from omegaconf import OmegaConf

from grpo_kit.config import MATH
from grpo_kit.handoff import nemo_gym, nemo_megatron, nemo_overlay
from grpo_kit.handoff.bundle import Bundle, Part, chat_turns, reference_answer
from grpo_kit.handoff.nemo_overlay import BLOCK, HOME, make_overlay, previous_weights, starting_model
from grpo_kit.nemotron import tiny
from grpo_kit.rewards.tools.routing import environment_of
from grpo_kit.runs.files import write_lines, write_text

SCRIPT = Path(__file__).with_name("nemo_run.sh.txt")
SHOWN = (
    "Run by us, on a CPU: the configuration loader, Hydra parser and schema of v0.6.0, v0.7.0 and main of 2026-08-22 "
    "took the overlays for them and refused those for v0.8; the data loaders of v0.6.0 and main took both kinds of "
    "rows. Not run: a training with NeMo-RL, its vLLM, any GPU; v0.8 at all. Of v0.8 its documentation and NVIDIA's "
    "recipe were read, and the code that takes an adapter."
)
MERGE_STAGE = '''"""Merge a stage's adapter into the model it started from: python merge_stage.py BASE ADAPTER OUT"""

import shutil
import sys
from pathlib import Path

from peft import PeftModel
from peft.tuners import tuners_utils
from transformers import AutoModelForCausalLM, AutoTokenizer

base, adapter, out = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(base, dtype="bfloat16")
tuners_utils._check_lora_target_modules_mamba = lambda *args, **kwargs: None  # merging runs no kernel that skips a LoRA
PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(out)
AutoTokenizer.from_pretrained(base).save_pretrained(out)
shutil.copy(Path(base, "config.json"), out)  # what this transformers writes for a Nemotron-H, vLLM may refuse
'''


def write_files(bundle: Bundle) -> tuple[str, list[str]]:
    """Fill the bundle's folder. Returns (how to start, as Markdown; sentences on what does not carry over).

    Warns where the bundle lacks a merged model that its overlays start from.
    """
    if not bundle.merge:
        warnings.warn(f"{_missing_model(bundle)} {merge_command(bundle)}", stacklevel=2)
    with_budget = any(row.get("token_budget") for row in bundle.rows["train"])
    prompt = make_prompt_file(bundle, "" if with_budget else bundle.config.data.prompt_suffix)
    write_text(bundle.folder / "nemo_rl" / "prompt.txt", prompt)
    for split in ("train", "val"):
        if rows := [make_math_row(row, with_budget) for row in bundle.rows[split] if environment_of(row) == MATH]:
            write_lines(bundle.folder / "nemo_rl" / f"{split}.jsonl", rows)
    for split, rows in bundle.rows.items():
        if rows:
            write_lines(bundle.folder / split / "data.jsonl", map(nemo_gym.make_gym_row, rows))
    write_text(bundle.folder / "manifest.json", json.dumps(nemo_gym.make_manifest(bundle), indent=2) + "\n")
    for part in bundle.parts():
        for version in BLOCK:
            overlay = make_overlay(bundle, version, part)
            _write_overlay(bundle, "grpo", part, version, overlay)
            _write_overlay(bundle, "gym", part, version, nemo_gym.make_overlay(bundle, _file("grpo", part, version)))
    if nemo_megatron.fits_megatron(bundle):
        (part,) = bundle.parts()
        _write_overlay(bundle, "megatron", part, "", nemo_megatron.make_overlay(bundle, part))
    write_text(bundle.folder / "nemo_rl" / "run.sh", make_script(bundle))
    if len(bundle.parts()) > 1:
        write_text(bundle.folder / "nemo_rl" / "merge_stage.py", MERGE_STAGE)
    return _start(bundle), _not_carried(bundle)


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


def make_script(bundle: Bundle) -> str:
    """The script that starts NeMo-RL with the overlay for the version that is installed, or says why it does not."""
    stages = " ".join(part.name for part in bundle.parts() if part.name)
    values = {"home": HOME, "out": shlex.quote(str(bundle.out)), "stages": stages, "first": stages.partition(" ")[0]}
    values["merge"] = shlex.quote(merge_command(bundle))
    return Template(SCRIPT.read_text(encoding="utf-8")).substitute(values)


def merge_command(bundle: Bundle) -> str:
    """The command that writes this bundle with its merged model, into a new folder beside it."""
    out = bundle.out.with_name(f"{bundle.out.name}-merged")
    return shlex.join(
        ["grpo-kit", "handoff", "--run", bundle.run.name, "--to", "nemo-rl", "--merge", "--out", str(out)]
    )


def way_back(bundle: Bundle) -> tuple[str, str]:
    """The adapters for `grpo-kit package`, and what to know about them."""
    parts, restores = bundle.parts(), nemo_overlay.can_restore(bundle)
    steps = [f"{nemo_overlay.results_folder(bundle, part)}/step_{part.steps if part.name else 'N'}" for part in parts]
    words = " ".join(f"--adapter {shlex.quote(folder)}" for folder in [f"{bundle.out}/adapter", *steps])
    if len(parts) == 1:
        remark = "A new LoRA is trained on the merged model, so both are added up."
        return words, remark + " v0.8 continues the run's adapter: leave the first one out there." * restores
    of_v08 = "the run's: give the last one alone" if restores else "the first stage's: give the run's and the last one"
    return words, (
        "Up to v0.7 each stage trains a new LoRA on the merged model before it, so all are added up. v0.8 continues "
        f"{of_v08} there."
    )


def _missing_model(bundle: Bundle) -> str:
    some = "the overlays for NeMo-RL up to v0.7 and for Megatron start" if nemo_overlay.can_restore(bundle) else ""
    return f"model/ is missing, from which {some or 'every overlay starts'}. This command writes a folder with it:"


def _first_overlays(bundle: Bundle) -> list[dict[str, Any]]:
    """The overlays of the whole run or its first stage, one for each schema."""
    return [make_overlay(bundle, version, bundle.parts()[0]) for version in BLOCK]


def _file(kind: str, part: Part, version: str) -> str:
    return "_".join(filter(None, (kind, version, part.name))) + ".yaml"


def _write_overlay(bundle: Bundle, kind: str, part: Part, version: str, overlay: dict[str, Any]) -> None:
    about = {
        "v06": "NeMo-RL v0.6, v0.7 and main of August 2026. v0.8 refuses it: there dtensor_cfg is automodel_cfg.",
        "v08": "NeMo-RL v0.8. Older versions refuse it: Interpolation key 'policy.automodel_cfg...' not found.",
        "": "Megatron in NeMo-RL v0.6, v0.7, main of August 2026 and v0.8.",
    }[version]
    model = overlay["policy"].get("model_name")
    restored = overlay["policy"].get(BLOCK.get(version, ""), {}).get("lora_cfg", {}).get("restore_from")
    head = f"# {kind} for {about}\n" + (f"# model: {model}\n" if model else "")  # which run.sh looks for
    if restored:
        head += "# Training continues from the adapter, which is the KL reference as it starts.\n"
    elif model == str(bundle.out / "model"):
        head += "# A fresh LoRA on the merged model.\n"
        if not bundle.merge:
            head += "# model/ is NOT here (see README.md). The base alone would lose what was trained.\n"
    write_text(bundle.folder / "nemo_rl" / _file(kind, part, version), head + OmegaConf.to_yaml(overlay))


def _start(bundle: Bundle) -> str:
    """How to start, as Markdown."""
    here, parts, nemotron = shlex.quote(f"{bundle.out}/nemo_rl"), bundle.parts(), nemo_overlay.is_nemotron(bundle)
    gpus, environments = nemo_overlay.count_gpus(bundle), bundle.run.environments()
    lines = [] if bundle.merge else [f"**{_missing_model(bundle)}**", "", f"    {merge_command(bundle)}", ""]
    lines += [
        f"For NeMo-RL v0.6, v0.7, main of August 2026 and v0.8 in {HOME} (image nvcr.io/nvidia/nemo-rl), and "
        f"{gpus} GPU{'s' * (gpus > 1)} of one node. `run.sh` picks the overlay for the version that it finds there; "
        "each overlay is refused by the versions that it is not for. Further arguments are passed on as overrides.",
        "",
    ]
    for part in parts:
        if part.name:
            lines += [f"### {part.name}: {part.steps} steps", ""]
        if part != parts[0]:
            base = starting_model(bundle, parts[parts.index(part) - 1])
            weights = shlex.quote(previous_weights(bundle, part))
            lines += [
                "v0.8 continues from the adapter that the stage before saved (`restore_from`). Up to v0.7, merge it "
                "first, with this line or with `nemotron steps run convert/merge_lora`:",
                "",
                f"    python {here}/merge_stage.py {shlex.quote(base)} {weights}/model {weights}/hf",
                "",
            ]
        stage = part.name and f" {part.name}"
        if environments == [MATH]:
            lines += [f"    sh {here}/run.sh grpo{stage}       # math-verify inside NeMo-RL"]
            lines += [f"    sh {here}/run.sh gym{stage}        # the same through NeMo-Gym's math server"]
        else:
            servers = f"the servers of NeMo-Gym for {', '.join(environments)}"
            lines += [f"    sh {here}/run.sh gym{stage}        # {servers}"]
            if MATH in environments:
                lines += [f"    sh {here}/run.sh grpo{stage}       # the rows of math alone, inside NeMo-RL"]
        if nemo_megatron.fits_megatron(bundle):
            nodes = nemo_megatron.count_nodes(bundle)
            lines += [f"    sh {here}/run.sh megatron   # Megatron, {nodes} node{'s' * (nodes > 1)} of 8 GPUs"]
        lines += [""]
    return "\n".join(lines + [SHOWN, ""] + (_about_nemotron(bundle) if nemotron else []))


def _about_nemotron(bundle: Bundle) -> list[str]:
    """What NVIDIA's recipes decide for a Nemotron-H, and what Megatron does otherwise, as Markdown."""
    lines = [
        "The overlays are put on NVIDIA's LoRA recipes for the 30B, `grpo-nanov3-30BA3B-2n8g-*-lora.yaml`: "
        "transformers' model, no packing, vLLM over 4 GPUs with 70 % of each, one sequence at a time. NVIDIA runs them "
        "on two nodes of eight H100; memory was not computed for fewer.",
    ]
    if bundle.config.policy.model in tiny.FOLDERS:
        lines += ["The embedded policy needs one GPU: append `cluster.gpus_per_node=1`; vLLM is not spread here."]
    if not nemo_megatron.fits_megatron(bundle):
        lines += [
            "There is no overlay for Megatron: it needs a base with routed experts, a run without stages, a step whose "
            f"completions 4 divides, and a LoRA on other modules than {nemo_overlay.UNTRAINED}."
        ]
        return [*lines, ""]
    converter = f"cd {HOME} && uv run --extra mcore python examples/converters/convert_lora_to_hf.py"
    return [
        *lines,
        "",
        "Megatron takes more nodes by `cluster.num_nodes=N` where 4 N divides the step's completions; on Slurm start "
        "it through NeMo-RL's `ray.sub`. It trains one pair for all experts of a GPU, not one for each. Its adapter "
        "comes back by",
        "",
        f"    {converter} --adapter-only --base-ckpt BASE --adapter-ckpt WEIGHTS/iter_0000000 --hf-model-name "
        f"{shlex.quote(str(bundle.out / 'model'))} --hf-ckpt-path OUT",
        "",
        "where BASE is the checkpoint that NeMo-RL made of model/ before the first step; OUT is then the second "
        "`--adapter` of *Back to the kit*.",
        "",
    ]


def _not_carried(bundle: Bundle) -> list[str]:
    config, nemotron = bundle.config, nemo_overlay.is_nemotron(bundle)
    sentences = [
        "The rewards are NeMo-RL's own: math-verify compares the last box with the reference answer, in `env.math` or "
        "in Gym's math server. Ours are not exported.",
        "The optimiser state, the step counter and the pass rates of prompts are not exported; steps count from 0.",
    ]
    if bundle.run.environments() != [MATH]:
        sentences.append(
            "Beside math, NeMo-Gym's servers pay by their own rules: structured output without `expected`, documents "
            "by the answer without the cited ones, programs by their outputs without a row's checker and limits, in a "
            "process that can read the expected ones. Every step has the run's shares of the environments, because the "
            "training rows lie in that order and are not shuffled; flat groups are not replaced."
        )
    if not nemotron:
        sentences.append(
            f"The cluster is written as {bundle.gpus} GPUs of one node, the most up to 8 that share "
            f"{bundle.completions_per_step} completions evenly. Memory and parallelism were not computed. With tensor "
            "parallelism, set lora_cfg.use_triton=false."
        )
    if nemotron and not nemo_overlay.can_restore(bundle):
        sentences.append(
            f"{nemo_overlay.UNTRAINED} is not trained further: Mamba's kernel there gives its LoRA no gradient. What "
            "the run taught it is in the merged model, from which v0.8 starts too, because it refuses an adapter with "
            "more modules than it trains."
        )
    if nemotron and nemo_megatron.trains_experts(bundle):
        sentences.append("Routed experts get a LoRA in `megatron.yaml` only; elsewhere they are one tensor per layer.")
    starts = {overlay["policy"]["model_name"] for overlay in _first_overlays(bundle)}
    if str(bundle.out / "model") in starts:
        sentences.append(
            "A fresh LoRA on the merged model does not fit the base. *Back to the kit* adds it to the run's adapter."
        )
    if config.grpo.loss_type == "cispo":
        sentences.append("NeMo-RL v0.6 has no CISPO and refuses the overlays (loss_fn.disable_ppo_ratio not found).")
    if config.grpo.top_k:
        sentences.append("Gym's requests have no top_k; `gym_*.yaml` samples without it.")
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
