"""The sections of a card: what was measured, samples, how to load the adapter, how and on what it was trained."""

from collections.abc import Mapping, Sequence
from string import Template
from typing import Any, NamedTuple

from grpo_kit.adapters import scorer
from grpo_kit.config import RunConfig
from grpo_kit.data.recipes import GENERATED
from grpo_kit.publishing.base import Base
from grpo_kit.publishing.escaping import code, inline, quote
from grpo_kit.publishing.public_record import SECTIONS, list_texts, public_settings
from grpo_kit.publishing.run_facts import METHODS, UNKNOWN, Example, Measured, Source

RECORD = "run.json"
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
vllm serve $base --enable-lora --max-lora-rank 32 --lora-modules $name=$repo
```"""


class Facts(NamedTuple):
    """Everything that a card says.

    Attributes:
        repo: USER/REPO.
        config: the run's configuration.
        base: the model that the adapter belongs to.
        records: {stage: its record in `run.json`} of the stages that trained, in their order.
        modules: names of the modules that have a LoRA pair, with the shapes of A and B.
        sources, measured, examples: from `run_facts`.
        manifest: `data/manifest.json`.
    """

    repo: str
    config: RunConfig
    base: Base
    records: dict[str, dict[str, Any]]
    modules: Mapping[str, Sequence[tuple[int, ...]]]
    sources: list[Source]
    measured: list[Measured]
    examples: list[Example]
    manifest: dict[str, Any]

    @property
    def is_nemotron(self) -> bool:
        """Whether the adapter belongs to a Nemotron-H, whose layers are mixers."""
        return any(".mixer." in name for name in self.modules)

    @property
    def trained(self) -> Measured | None:
        """The measurement of the published adapter, None where there is none."""
        last = list(self.records)[-1]
        return next((each for each in self.measured if each.stage == last), None)


def describe_results(facts: Facts) -> list[str]:
    if not facts.measured:
        return ["The run was not measured, neither before nor after training, so there is no accuracy to show."]
    lines = [
        "| policy | pass@1 | 95 % interval | change | its 95 % interval | problems | tokens | cut off |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in facts.measured:
        report, change = each.report, each.change
        low, high = report["ci95"]
        cells = [each.label, f"{report['pass@1']:.3f}", f"{low:.3f} to {high:.3f}"]
        cells += ["", ""]
        if change:
            ends = (100 * edge for edge in change["difference_ci95"])
            cells[-2:] = [f"{100 * change['difference']:+.1f} points", "{:+.1f} to {:+.1f}".format(*ends)]
        cells += [
            f"{report['n']:,}",
            f"{report.get('mean_tokens', 0):.1f}",
            f"{100 * report.get('truncated', 0):.1f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    paragraphs = ["\n".join(lines)]
    if facts.trained is None:
        last = METHODS[list(facts.records)[-1]]
        paragraphs.append(f"The published adapter, the one after {last}, was **not measured**.")
    elif facts.trained.change:
        paragraphs.append(facts.trained.change["words"])
    else:
        paragraphs.append(
            "The untrained policy was not measured with the same settings, so there is no difference to show."
        )
    paragraphs.append(_describe_sampling(facts))
    return [*paragraphs, *_groups(facts)]


def _describe_sampling(facts: Facts) -> str:
    report = facts.measured[-1].report
    sampling, samples = report["sampling"], report["sampling"]["num_generations"]
    thinking = "with" if report.get("prompt", {}).get("enable_thinking") else "without"
    form = "greedy" if not sampling["temperature"] else f"at temperature {sampling['temperature']:g}"
    return (
        f"pass@1 is the share of right answers over held-out problems, {samples} "
        f"{'sample' if samples == 1 else 'samples'} a problem {form}, at most {sampling['max_completion_length']:,} "
        f"tokens, {thinking} thinking, sampled by {inline(sampling['engine'])}. *Change* compares with the untrained "
        "policy, problem by problem. *Tokens* is the mean length of a completion."
    )


def _groups(facts: Facts) -> list[str]:
    """Accuracies by environment and family, as far as the last measurement has several."""
    paragraphs = []
    for kind in ("environment", "family"):
        named = facts.measured[-1].report.get("by", {}).get(kind)
        if named:
            lines = [f"| {kind} | pass@1 {facts.measured[-1].label} | 95 % interval | problems |", "|---|---|---|---|"]
            for name, part in named.items():
                low, high = part["ci95"]
                lines.append(f"| {inline(name)} | {part['pass@1']:.3f} | {low:.3f} to {high:.3f} | {part['n']:,} |")
            paragraphs.append("\n".join(lines))
    return paragraphs


def describe_samples(facts: Facts) -> list[str]:
    if not facts.examples:
        is_hidden = facts.trained and any(source.licence == UNKNOWN for source in facts.sources)
        sentence = "None is shown: the kit does not know the licence of the held-out problems."
        return ["## Samples", sentence] if is_hidden else []
    parts = [
        "## Samples",
        "Held-out problems, not picked by hand: in the order of the evaluation, the first of each kind whose data has "
        "a known licence.",
    ]
    for example in facts.examples:
        parts += [f"**{example.title}.** The problem, and its answer:", quote(f"{example.problem}\n\n{example.answer}")]
        if example.before is not None:
            parts += ["Before training:", quote(example.before)]
        parts += ["After training:", quote(example.after)]
    return parts


def describe_loading(facts: Facts) -> list[str]:
    config, base, repo = facts.config, facts.base, facts.repo
    has_out_proj = any(name.endswith(".out_proj") for name in facts.modules)
    fields = {
        "base": base.name,
        "revision": repr(base.revision),
        "repo": repo,
        "name": repo.partition("/")[2],
        "dtype": config.policy.dtype,
        "thinking": config.policy.enable_thinking,
        "length": config.evaluation.max_completion_length,
        "mamba": MAMBA if has_out_proj else "",
        "mamba_import": "\nfrom peft.tuners import tuners_utils" if has_out_proj else "",
    }
    measured = "" if config.policy.load_in_4bit else f" (the run itself had the base in {config.policy.dtype})"
    here = Template(IN_4_BIT).substitute(fields | {"base": base.name.removeprefix("grpo-kit/")})
    parts = [f"In 4 bit with grpo-kit{measured}:", here, "In transformers and PEFT:"]
    if any(scorer.is_routed(name) for name in facts.modules):
        parts.append(
            "transformers keeps all experts of a layer in one weight, and this adapter has a pair for each routed "
            "expert, so PEFT alone has no place for them. Load it with grpo-kit."
        )
    else:
        parts.append(Template(IN_TRANSFORMERS).substitute(fields))
    parts += [
        "In vLLM:",
        Template(IN_VLLM).substitute(fields),
        _describe_vllm(facts),
        _describe_prompt(facts),
    ]
    return parts


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
    config = facts.config
    thinking = "ends in an open `<think>`" if config.policy.enable_thinking else "asks for an answer without thinking"
    parts = [f"The tokenizer and chat template of this repository are those of the training: its prompt {thinking}."]
    if config.data.system_prompt:
        parts.append(f"The system turn was:\n\n{quote(config.data.system_prompt)}")
    if config.data.prompt_suffix:
        parts.append(f"Behind each problem stood:\n\n{quote(config.data.prompt_suffix)}")
    return " ".join(parts[:1]) + "".join(f"\n\n{part}" for part in parts[1:])


def describe_training(facts: Facts) -> list[str]:
    parts = []
    for stage, record in facts.records.items():
        settings, environment = record["settings"], record.get("environment", {})
        texts = ", ".join(text.words for text in list_texts(stage, settings))
        steps = f"{record['steps']:,} steps" if record.get("steps") else "trained"
        machine = environment.get("gpu") or f"{environment.get('cpus')} processor cores, no GPU"
        versions = environment.get("packages") or {}
        libraries = ", ".join(
            f"{name} {versions[name]}" for name in ("torch", "transformers", "trl", "peft") if versions.get(name)
        )
        parts.append(
            f"**{METHODS[stage]}**: {steps} in {record['seconds']:,.0f} s on {inline(machine)}"
            f"{f', from {texts}' if texts else ''}; {libraries}."
        )
        public = public_settings(settings)
        chosen = {**public.get("lora", {}), **public.get(SECTIONS[stage], {}), "seed": public.get("seed")}
        rows = [
            f"| {code(key)} | {code(_value(value))} |" for key, value in chosen.items() if value not in (None, [], {})
        ]
        parts.append("\n".join(["| setting | value |", "|---|---|", *rows]))
    return parts


def _value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_value(item)}" for key, item in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def describe_data(facts: Facts) -> list[str]:
    lines = ["| source | licence | rows | sha256 |", "|---|---|---|---|"]
    for source in facts.sources:
        link = (
            f"[{inline(source.name)}](https://huggingface.co/datasets/{source.hub})"
            if source.hub
            else inline(source.name)
        )
        about = f"{link} ({GENERATED[source.name]})" if source.name in GENERATED else link
        rows = "" if source.rows is None else f"{source.rows:,}"
        digests = ", ".join(f"`{digest[:16]}`" for digest in source.digests)
        lines.append(f"| {about} | {inline(source.licence)} | {rows} | {digests} |")
    rows = facts.manifest["rows"]
    counts = ", ".join(f"{count:,} for {name}" for name, count in rows.items())
    digests = ", ".join(f"{name} `{digest[:16]}`" for name, digest in facts.manifest["sha256"].items())
    return [
        "\n".join(lines),
        f"After cleaning and splitting: {counts}. No wording is in two of these splits. sha256 of the rows: {digests}; "
        f"all digits are in `{RECORD}`.",
    ]
