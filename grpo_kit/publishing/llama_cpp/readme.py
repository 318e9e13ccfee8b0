"""What the exported folders say: Ollama's Modelfile, and READMEs with the commands of llama.cpp and Ollama."""

import shlex
from collections.abc import Iterable, Sequence

from grpo_kit.config import RunConfig
from grpo_kit.nemotron import base_models
from grpo_kit.publishing.run_facts import METHODS, Measured

LLAMA_CPP = "https://github.com/ggml-org/llama.cpp"
# Others' copies of a base in GGUF, which exist but were not looked into.
PUBLIC = {base_models.PUBLISHED: "unsloth/Nemotron-3-Nano-30B-A3B-GGUF"}
# Nemotron's turns. A finished answer has an empty thought; the next one begins with an open thought.
TEMPLATE = """\
<|im_start|>system
{{ .System }}<|im_end|>
{{ range .Messages }}{{ if ne .Role "system" }}<|im_start|>{{ .Role }}
{{ if eq .Role "assistant" }}<think></think>{{ end }}{{ .Content }}<|im_end|>
{{ end }}{{ end }}<|im_start|>assistant
"""
OPEN, CLOSED = "<think>\n", "<think></think>"
CONVERTER = (
    "llama.cpp's converter misreads a base without experts under transformers 5; its requirements.txt has version 4."
)
OLLAMA = (
    "The Modelfile's TEMPLATE has no tools; use llama-server with --jinja for them.",
    "Nemotron's own template leaves out the thoughts of earlier turns. Whether Ollama keeps them was not tried.",
)
PROMPT_TOKENS = 2048  # left for the prompt beside the longest answer


def make_modelfile(config: RunConfig, is_own: bool) -> str:
    """Ollama's Modelfile beside `base.gguf` and `adapter.gguf`.

    Args:
        config: the run's settings.
        is_own: whether the run trained the adapter; only then it is sampled as the run was measured.

    Example:
        >>> print(make_modelfile(RunConfig(), False).splitlines()[-1])
        PARAMETER stop "<|im_end|>"
    """
    measured = config.evaluation
    template = TEMPLATE + (OPEN if config.policy.enable_thinking else CLOSED)
    text = f'FROM ./base.gguf\nADAPTER ./adapter.gguf\nTEMPLATE """{template}"""\nPARAMETER stop "<|im_end|>"\n'
    if is_own:
        text += f"PARAMETER temperature {measured.temperature}\nPARAMETER top_p {measured.top_p}\n"
        text += f"PARAMETER num_ctx {_context(config)}\n"
    return text


def format_size(nbytes: int) -> str:
    """Bytes as people read them.

    Example:
        >>> format_size(63_132_000_000), format_size(116_640)
        ('58.8 GiB', '113.9 KiB')
    """
    power = max(1, min(3, (max(nbytes, 1).bit_length() - 1) // 10))
    return f"{nbytes / 2 ** (10 * power):,.1f} {'KMG'[power - 1]}iB"


def describe_lora(
    config: RunConfig, name: str, base: str, stages: Sequence[str], digest: str, measured: str, notes: Iterable[str]
) -> str:
    """README.md beside `adapter.gguf`.

    Args:
        config: the run's settings.
        name: of the run or the adapter's folder.
        base: the base's id.
        stages: the stages that trained the adapter; none for an adapter from elsewhere.
        digest: sha256 of adapter.gguf.
        measured: from `describe_measurements`.
        notes: sentences on what was converted and what does not carry over.
    """
    known = PUBLIC.get(base)
    made = f"Others' copies are at https://huggingface.co/{known}, or make" if known else "Make"
    revision = f" --revision {config.policy.revision}" if config.policy.revision else ""
    fetch = (
        f"    hf download {base} --local-dir base{revision}\n"
        if "/" in base and base not in base_models.EMBEDDED
        else ""
    )
    by = f", trained with {' and '.join(METHODS[stage] for stage in stages)}" if stages else ""
    return f"""# {name}: a LoRA for llama.cpp and Ollama

`adapter.gguf` is a LoRA for `{base}`{by}. It needs a GGUF of that base, in any quantisation.
Its sha256 is `{digest}`; `sha256sum -c SHA256SUMS` compares it.

## The base
{made} one with llama.cpp ({LLAMA_CPP}), in an environment of its own with its `requirements.txt`:

{fetch}    python llama.cpp/convert_hf_to_gguf.py base --outfile base-bf16.gguf --outtype bf16
    llama-quantize base-bf16.gguf base-Q4_K_M.gguf Q4_K_M

## llama.cpp
{_serve("base-Q4_K_M.gguf --lora adapter.gguf", config, bool(stages))}
`--lora-scaled adapter.gguf:0.5` in place of `--lora adapter.gguf` adds half of the update.

## Ollama
The Modelfile expects the base beside it as `base.gguf`. Its prompt ends {_ending(config)}, as in training.

    ln -s /path/to/base-Q4_K_M.gguf base.gguf
    ollama create {shlex.quote(name.lower())} -f Modelfile
    ollama run {shlex.quote(name.lower())}

{measured}
## What does not carry over
{_list([*_limits(base), *OLLAMA, *notes])}"""


def describe_merged(
    config: RunConfig, name: str, base: str, is_own: bool, nbytes: int, mtp: bool, measured: str
) -> str:
    """README.md beside `model/`, the base with the adapter merged into it.

    Args:
        config: the run's settings.
        name: of the run or the adapter's folder.
        base: the base's id.
        is_own: whether the run trained the adapter.
        nbytes: size of the model.
        mtp: whether the base has layers for multi-token prediction, which were not trained.
        measured: from `describe_measurements`.
    """
    options, size = " --no-mtp" if mtp else "", format_size(nbytes)
    return f"""# {name}: the merged model

`model/` is `{base}` with the LoRA added, in bf16 and under the published names ({size}).

## GGUF
With llama.cpp ({LLAMA_CPP}), in an environment of its own with its `requirements.txt`. The first file takes {size} too.

    python llama.cpp/convert_hf_to_gguf.py model --outfile merged-bf16.gguf --outtype bf16{options}
    llama-quantize merged-bf16.gguf merged-Q4_K_M.gguf Q4_K_M
{_serve("merged-Q4_K_M.gguf", config, is_own)}
{measured}
## What does not carry over
{_list(_limits(base))}"""


def describe_measurements(config: RunConfig, measured: Sequence[Measured] | None) -> str:
    """The accuracies of an adapter as a section of a README.

    Args:
        config: the run's settings.
        measured: those of the run (`run_facts.read_measurements`); None for an adapter from elsewhere.
    """
    weights = "NF4" if config.policy.load_in_4bit else config.policy.dtype
    if measured is None:
        return "## Not measured\nThe adapter comes from elsewhere; the kit has no measurement of it.\n"
    heading = f"## Measured over {weights} only\n"
    if not measured:
        return f"{heading}The adapter was trained over a base in {weights}, and no accuracy was measured.\n"
    rows = [
        "| {} | {:.3f} | {:.3f} to {:.3f} | {} |\n".format(
            each.label, each.report["pass@1"], *each.report["ci95"], each.report["n"]
        )
        for each in measured
    ]
    return (
        f"{heading}The adapter was trained and measured over a base in {weights}. Over a GGUF's weights it was not,\n"
        "and the accuracy may differ there.\n\n| measured | accuracy | 95 % interval | problems |\n|---|---|---|---|\n"
        + "".join(rows)
    )


def _serve(model: str, config: RunConfig, is_own: bool) -> str:
    measured = config.evaluation
    sampling = f" -c {_context(config)} --temp {measured.temperature} --top-p {measured.top_p}" if is_own else ""
    off = "" if config.policy.enable_thinking else " --chat-template-kwargs '{\"enable_thinking\": false}'"
    return (
        f"\n    llama-server -m {model} --jinja{sampling}{off}\n"
        "    curl http://127.0.0.1:8080/v1/chat/completions -H 'Content-Type: application/json' \\\n"
        '      -d \'{"messages": [{"role": "user", "content": "What is 47 + 38?"}]}\'\n\n'
        f"`--jinja` takes the base's own chat template; the prompt ends {_ending(config)}, as in training.\n"
    )


def _ending(config: RunConfig) -> str:
    if config.policy.enable_thinking:
        return "inside an open `<think>`"
    return "behind an empty thought (`<think></think>`)"


def _context(config: RunConfig) -> int:
    return config.evaluation.max_completion_length + PROMPT_TOKENS


def _limits(base: str) -> list[str]:
    limits = [
        "llama.cpp's logits were compared with transformers' on a tiny Nemotron-H in float32. Nothing was tried with "
        "the 30B, the 4B or a base in 4 bit, nor with Ollama.",
        CONVERTER,
    ]
    if base in base_models.EMBEDDED:
        limits.append(
            "The base is the kit's embedded policy, which is not on the Hub, and llama.cpp's converter refuses its "
            "tokenizer as unknown. The commands hold for a published base."
        )
    return limits


def _list(sentences: Iterable[str]) -> str:
    return "".join(f"- {sentence}\n" for sentence in sentences)
