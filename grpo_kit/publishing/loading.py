"""The section of a card on loading the adapter, here in 4 bit, in transformers and in vLLM, and on asking it."""

import shlex
from string import Template

from grpo_kit.adapters import scorer
from grpo_kit.publishing.escaping import quote
from grpo_kit.publishing.public_record import RECORD
from grpo_kit.publishing.run_facts import Facts

LONGEST_PROMPT = 20_000  # characters of a system prompt on the card, which a reader needs whole
DOWNLOAD = "from huggingface_hub import snapshot_download\n\n"
IN_4_BIT = """\
```python
from pathlib import Path

from huggingface_hub import snapshot_download

from grpo_kit import load_policy
from grpo_kit.adapters.lora import attach_adapter
from grpo_kit.config import Policy

policy = Policy(model="$base", revision=$revision, dtype="$dtype", load_in_4bit=True)
model, tokenizer = load_policy(policy)
model = attach_adapter(model, Path(snapshot_download("$repo")))
```"""
IN_TRANSFORMERS = """\
```python
from peft import PeftModel$mamba_import
from transformers import AutoModelForCausalLM, AutoTokenizer
$mamba
model = AutoModelForCausalLM.from_pretrained("$base", revision=$revision, dtype="$dtype", device_map="auto")
model = PeftModel.from_pretrained(model, "$repo").eval()
tokenizer = AutoTokenizer.from_pretrained("$repo")

messages = [{"role": "user", "content": "What is 47 + 38?"}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, enable_thinking=$thinking, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs.to(model.device), max_new_tokens=$length)
print(tokenizer.decode(output[0][inputs["input_ids"].shape[1] :]))
```"""
MAMBA = """
# PEFT refuses a LoRA on Mamba's out_proj, which a fused kernel skips in training; generating calls out_proj itself.
tuners_utils._check_lora_target_modules_mamba = lambda *args, **kwargs: None
"""
IN_VLLM = """\
```sh
vllm serve $base$pinned --enable-lora --max-lora-rank 32 --lora-modules $name=$repo
```"""


def describe_loading(facts: Facts) -> list[str]:
    config, base, repo = facts.config, facts.base, facts.repo
    has_out_proj = any(name.endswith(".out_proj") for name in facts.modules)
    fields = {
        "base": base.name.removeprefix("grpo-kit/") if base.is_embedded else base.name,
        "revision": repr(base.revision),
        "pinned": f" --revision {shlex.quote(base.revision)}" if base.revision else "",
        "repo": repo,
        "name": repo.partition("/")[2],
        "dtype": config.policy.dtype,
        "thinking": config.policy.enable_thinking,
        "length": _longest_answer(facts),
        "mamba": MAMBA if has_out_proj else "",
        "mamba_import": "\nfrom peft.tuners import tuners_utils" if has_out_proj else "",
    }
    measured = "" if config.policy.load_in_4bit else f" (the run itself had the base in {config.policy.dtype})"
    parts = [f"In 4 bit with grpo-kit{measured}:", Template(IN_4_BIT).substitute(fields)]
    if base.is_embedded:
        lines = Template(IN_4_BIT).substitute(fields).replace(DOWNLOAD, "")
        parts[1] = lines.replace(f'snapshot_download("{repo}")', '"publish"')
        parts[0] += " `publish` is this folder."
        return [
            *parts,
            "transformers, PEFT and vLLM load a base from the Hub, which does not have this one. The card of an "
            "adapter that can be published has their commands here.",
            _describe_prompt(facts),
        ]
    parts.append("In transformers and PEFT:")
    if any(scorer.is_routed(name) for name in facts.modules):
        parts.append(
            "transformers keeps all experts of a layer in one weight, and this adapter has a pair for each routed "
            "expert, so PEFT alone has no place for them. Load it with grpo-kit."
        )
    else:
        parts.append(Template(IN_TRANSFORMERS).substitute(fields))
    return [
        *parts,
        "In vLLM:",
        Template(IN_VLLM).substitute(fields),
        _describe_vllm(facts),
        _describe_prompt(facts),
    ]


def _longest_answer(facts: Facts) -> int:
    """Tokens of an answer at most, as the adapter was measured, else as it was trained."""
    trained = facts.records.get("train", {}).get("settings", {}).get("grpo", {}).get("max_completion_length")
    if facts.trained:
        return facts.trained.report["sampling"]["max_completion_length"]
    return trained or facts.config.grpo.max_completion_length


def _describe_vllm(facts: Facts) -> str:
    used, total = scorer.count_used(facts.modules)
    served = "The adapter was not served by vLLM when this card was written."
    if not facts.is_nemotron:
        return served
    if used == total:
        return f"{scorer.ENGINE} uses all {total:,} LoRA parameters of this adapter. {served}"
    return (
        f"{scorer.ENGINE} uses {used:,} of {total:,} LoRA parameters: it drops those on shared experts without a "
        f"message. vLLM 0.20.0 and later use them. {served}"
    )


def _describe_prompt(facts: Facts) -> str:
    data, thinks = facts.config.data, facts.config.policy.enable_thinking
    thinking = "ends in an open `<think>`" if thinks else "asks for an answer without thinking"
    parts = [f"The tokenizer and chat template of this repository are those of the training: its prompt {thinking}."]
    if data.no_thinking or data.budgeted:
        parts[0] += (
            f" {data.no_thinking:.0%} of the training rows asked for an answer without thinking, and "
            f"{data.budgeted:.0%} stated a budget of tokens for it."
        )
    words = {"The system turn was": data.system_prompt, "Behind each problem stood": data.prompt_suffix}
    parts += [f"{what}:\n\n{quote(text, LONGEST_PROMPT)}" for what, text in words.items() if text]
    if any(words.values()):
        parts.append(f"Ask in the same way; `{RECORD}` has the exact characters under `prompt`.")
    return "\n\n".join(parts)
