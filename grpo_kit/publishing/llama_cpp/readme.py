"""The READMEs of exported folders: the commands of llama.cpp and Ollama, the prompt, and what was measured."""

import json
import re
import shlex
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from grpo_kit.nemotron import base_models
from grpo_kit.publishing.base import HUB_ID
from grpo_kit.publishing.escaping import inline, quote
from grpo_kit.publishing.llama_cpp.as_trained import Training, name_weights
from grpo_kit.publishing.llama_cpp.modelfile import count_context, list_limits, name_model
from grpo_kit.publishing.run_facts import METHODS, name_measurement

LLAMA_CPP = "https://github.com/ggml-org/llama.cpp"
# Others' copies of a base in GGUF, which exist but were not looked into.
PUBLIC = {base_models.PUBLISHED: "unsloth/Nemotron-3-Nano-30B-A3B-GGUF"}
CONVERTER = (
    "llama.cpp's converter misreads a base without experts under transformers 5; its requirements.txt has version 4."
)
OLLAMA = (
    "The Modelfile's TEMPLATE has no tools; llama-server with --jinja has.",
    "Nemotron's own template leaves out the thoughts of earlier turns. Whether Ollama keeps them was not tried.",
)
QUESTION = "What is 47 + 38?"


class About(NamedTuple):
    """What both READMEs say of an export.

    Attributes:
        name: of the run or the adapter's folder.
        base: the base's id on the Hub, or the name of its folder.
        revision: of the base, None for none.
        training: from the run's record; None for an adapter from elsewhere.
        notes: sentences on the base, on what was converted, and on what does not carry over.
    """

    name: str
    base: str
    revision: str | None
    training: Training | None
    notes: Sequence[str]

    @property
    def thinking(self) -> bool:
        """Whether the prompt opens a thought; Nemotron's own does by default."""
        return self.training is None or self.training.policy.enable_thinking


def format_size(nbytes: int) -> str:
    """Bytes as people read them.

    Example:
        >>> format_size(63_132_000_000), format_size(116_640)
        ('58.8 GiB', '113.9 KiB')
    """
    power = max(1, min(3, (max(nbytes, 1).bit_length() - 1) // 10))
    return f"{nbytes / 2 ** (10 * power):,.1f} {'KMG'[power - 1]}iB"


def describe_lora(about: About, digest: str) -> str:
    """README.md beside `adapter.gguf`; `digest` is the sha256 of that file."""
    known = PUBLIC.get(about.base)
    made = f"Others' copies are at https://huggingface.co/{known}, or make" if known else "Make"
    revision = f" --revision {shlex.quote(about.revision)}" if about.revision else ""
    is_on_hub = re.fullmatch(HUB_ID, about.base) and about.base not in base_models.EMBEDDED
    fetch = f"    hf download {about.base} --local-dir base{revision}\n" if is_on_hub else ""
    where = "" if fetch else " Here `base` stands for the folder with the base's files."
    stages = about.training.stages if about.training else []
    by = f", trained with {' and '.join(METHODS[stage] for stage in stages)}" if stages else ""
    return f"""# {inline(about.name)}: a LoRA for llama.cpp and Ollama

`adapter.gguf` is a LoRA for {_code(about.base)}{by}. It needs a GGUF of that base, in any quantisation.
Its sha256 is `{digest}`; `sha256sum -c SHA256SUMS` compares it and the other files.

## The prompt
{_describe_prompt(about)}
## The base
{made} one with llama.cpp ({LLAMA_CPP}), in an environment of its own with its `requirements.txt`.{where}

{fetch}    python llama.cpp/convert_hf_to_gguf.py base --outfile base-bf16.gguf --outtype bf16
    llama-quantize base-bf16.gguf base-Q4_K_M.gguf Q4_K_M

## llama.cpp
{_serve("base-Q4_K_M.gguf --lora adapter.gguf", about, "the base's")}
`--lora-scaled adapter.gguf:0.5` in place of `--lora adapter.gguf` adds half of the update.

## Ollama
The Modelfile expects the base beside it as `base.gguf`.

    ln -s /path/to/base-Q4_K_M.gguf base.gguf
{_run_ollama(about)}
{describe_measurements(about.training)}
## What does not carry over
{_list([*_limits(about), *about.notes])}"""


def describe_merged(about: About, nbytes: int, mtp: bool, lost: float) -> str:
    """README.md beside `model/`, the base with the adapter merged into it.

    Args:
        about: what both READMEs say.
        nbytes: size of the model.
        mtp: whether the base has layers for multi-token prediction, which were not trained.
        lost: the error of rounding to bf16 as a share of the update.
    """
    options, size = " --no-mtp" if mtp else "", format_size(nbytes)
    return f"""# {inline(about.name)}: the merged model

`model/` is {_code(about.base)} with the LoRA added, under the published names ({size}). Its matrices are in bf16; what
routers and state-space scans need in float32 (`A_log`, `D`, `dt_bias`, `gate.weight`, `e_score_correction_bias`) keeps
the type that it has in the base. The error of rounding to bf16 is {lost:.1%} of the LoRA's update (Frobenius norms).
`sha256sum -c SHA256SUMS` compares all files.

## The prompt
{_describe_prompt(about)}
## GGUF
With llama.cpp ({LLAMA_CPP}), in an environment of its own with its `requirements.txt`. The first file takes {size} too.

    python llama.cpp/convert_hf_to_gguf.py model --outfile merged-bf16.gguf --outtype bf16{options}
    llama-quantize merged-bf16.gguf merged-Q4_K_M.gguf Q4_K_M

## llama.cpp
{_serve("merged-Q4_K_M.gguf", about, "the merged")}
## Ollama
The Modelfile expects `merged-Q4_K_M.gguf` beside it.

{_run_ollama(about)}
{describe_measurements(about.training)}
## What does not carry over
{_list([*_limits(about), *about.notes])}"""


def describe_measurements(training: Training | None) -> str:
    """The accuracies of an adapter as a section of a README; None stands for an adapter from elsewhere."""
    if training is None:
        return "## Not measured\nThe adapter comes from elsewhere; the kit has no measurement of it.\n"
    trained = f"The adapter was trained over a base in {name_weights(training.policy.identity())}"
    left_out = [f"The accuracy {label} is left out: {reason}." for label, reason in training.left_out.items()]
    if not training.measured:
        none = f"{trained}." if left_out else f"{trained}, and no accuracy was measured."
        return f"## {'No accuracy that still holds' if left_out else 'Not measured'}\n{' '.join([none, *left_out])}\n"
    weights, last = " and ".join(dict.fromkeys(each.weights for each in training.measured)), training.stages[-1]
    is_measured = training.measured[-1].label == name_measurement(last)
    lines = [
        f"## Measured over {weights} only",
        f"{trained} and measured over {weights}. Over a GGUF's weights it was not, and the accuracy may differ there.",
        "",
    ]
    if not is_measured:
        lines = [
            f"## Measured before {METHODS[last]} only",
            f"{trained}. It is the one after {METHODS[last]}, of which there is no accuracy to show. These were "
            f"measured before that, over {weights}.",
            "",
        ]
    lines += [
        "| measured | base | prompt | temperature | accuracy | 95 % interval | problems |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in training.measured:
        low, high = each.ci95
        prompt = "open thought" if each.thinking else "empty thought"
        lines.append(
            f"| {each.label} | {each.weights} | {prompt} | {each.temperature:g} | {each.accuracy:.3f} | {low:.3f} to "
            f"{high:.3f} | {each.n} |"
        )
    lines += ["", *left_out] if left_out else []
    return "\n".join(lines) + "\n"


def _describe_prompt(about: About) -> str:
    training, ending = about.training, _ending(about.thinking)
    if training is None:
        return (
            "The adapter comes from elsewhere. With which system turn, which words behind a question and whether with "
            "thinking it was\ntrained is not known here: the Modelfile and the commands have no such words, and the "
            f"prompt ends {ending}, as\nNemotron's own does unless it is told otherwise.\n"
        )
    parts = [f"The policy was asked by Nemotron's chat template, and the prompt ended {ending}."]
    if training.system is None:
        parts.append("Its system turn is not known any more; the Modelfile and the commands have none.")
    elif training.system:
        parts.append(
            "This was the system turn. The commands send it, and Ollama adds it by itself to what has none:\n\n"
            + quote(training.system, len(training.system))
        )
    else:
        parts.append("It had no system turn.")
    if training.suffix is None:
        parts.append("What stood behind a problem is not known any more; the commands have nothing there.")
    elif training.suffix:
        parts.append(
            "Behind each problem of math stood the following, with nothing between the two. Neither llama-server nor "
            "Ollama adds it by itself: write it behind your question, as the commands do.\n\n"
            + quote(training.suffix, len(training.suffix))
        )
    if training.remarks:
        parts.append(_list(training.remarks).rstrip())
    return "\n\n".join(parts) + "\n"


def _serve(model: str, about: About, whose: str) -> str:
    training, sampling = about.training, ""
    if training and training.sampling:
        used = training.sampling
        sampling = f" -c {count_context(used, training.system, training.suffix)} --temp {used.temperature}"
        sampling += f" --top-p {used.top_p} --top-k {used.top_k} --min-p 0"
    off = "" if about.thinking else " --chat-template-kwargs '{\"enable_thinking\": false}'"
    turns = [{"role": "system", "content": training.system}] if training and training.system else []
    body = json.dumps({"messages": [*turns, {"role": "user", "content": _ask(about)}]})
    return (
        f"\n    llama-server -m {model} --jinja{sampling}{off}\n"
        "    curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        f"      -d {shlex.quote(body)}\n\n"
        f"`--jinja` takes the chat template in {whose} GGUF; Nemotron's prompt then ends {_ending(about.thinking)}"
        f"{', as in training' if training else ''}.\n{_describe_sampling(training)}\n"
    )


def _describe_sampling(training: Training | None) -> str:
    if training is None or training.sampling is None:
        return "How to sample is left to the engines."
    used = training.sampling
    form = "greedy" if not used.temperature else f"temperature {used.temperature:g}"
    return f"Both engines sample {used.when} ({form}, top-p {used.top_p:g}, top-k {used.top_k or 'off'})."


def _run_ollama(about: About) -> str:
    name, off = name_model(about.name), "" if about.thinking else "--think=false "
    return f"    ollama create {name} -f Modelfile\n    ollama run {off}{name} {_quote_for_shell(_ask(about))}\n"


def _ask(about: About) -> str:
    return QUESTION + ((about.training and about.training.suffix) or "")


def _quote_for_shell(text: str) -> str:
    """A text as one word of bash, on one line and in characters that print."""
    if text.isprintable():
        return shlex.quote(text)
    escaped = (f"\\{char}" if char in "\\'" else char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)
    return f"$'{''.join(escaped)}'"


def _ending(thinking: bool) -> str:
    return "inside an open `<think>`" if thinking else "behind an empty thought (`<think></think>`)"


def _code(name: str) -> str:
    return f"`{name}`" if re.fullmatch(r"[A-Za-z0-9 _./+-]+", name) else inline(name)


def _limits(about: About) -> list[str]:
    words = (about.training.system or "", about.training.suffix or "") if about.training else ("", "")
    limits = [
        "llama.cpp's logits were compared with transformers' on a tiny Nemotron-H in float32. Nothing was tried with "
        "the 30B, the 4B or a base in 4 bit, nor with Ollama.",
        CONVERTER,
        *list_limits(about.thinking, *words),
        *OLLAMA,
    ]
    if about.base in base_models.EMBEDDED:
        limits.append(
            "The base is the kit's embedded policy, which is not on the Hub, and llama.cpp's converter refuses its "
            "tokenizer as unknown. The commands hold for a published base."
        )
    return limits


def _list(sentences: Iterable[str]) -> str:
    return "".join(f"- {sentence}\n" for sentence in sentences)
