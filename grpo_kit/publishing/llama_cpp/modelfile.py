"""Ollama's Modelfile: the prompt of Nemotron's chat template, the run's system turn, and its sampling.

Ollama 0.22.1 and later recognises a Nemotron-H and writes the same prompt without TEMPLATE; SYSTEM counts in both.
"""

import re
from typing import Any

from grpo_kit.policy.chat import build_messages, render_prompt
from grpo_kit.publishing.llama_cpp.as_trained import Sampling

# Nemotron's turns. A finished answer has an empty thought; the next one begins with an open thought.
TEMPLATE = """\
<|im_start|>system
{{ .System }}<|im_end|>
{{ range .Messages }}{{ if ne .Role "system" }}<|im_start|>{{ .Role }}
{{ if eq .Role "assistant" }}<think></think>{{ end }}{{ .Content }}<|im_end|>
{{ end }}{{ end }}<|im_start|>assistant
"""
OPEN, CLOSED = "<think>\n", "<think></think>"
PROMPT_TOKENS = 2048  # left for a question beside the longest answer


def make_modelfile(
    files: dict[str, str], thinking: bool = True, system: str = "", sampling: Sampling | None = None, context: int = 0
) -> str:
    """The text of a Modelfile.

    Args:
        files: {`FROM` or `ADAPTER`: a file beside the Modelfile}.
        thinking: whether the prompt ends in an open thought.
        system: the system turn, which a request may replace.
        sampling: temperature and limits; None for Ollama's own.
        context: tokens of prompt and answer, from `count_context`.

    Example:
        >>> print(make_modelfile({"FROM": "base.gguf"}, system="Be brief.").splitlines()[-2])
        SYSTEM \"""Be brief.\"""
    """
    template = TEMPLATE + (OPEN if thinking else CLOSED)
    lines = [f"{word} ./{name}" for word, name in files.items()]
    if system and not _fits_quotes(system):
        # Such a text can only stand in the template, as a constant of Go.
        template = template.replace("{{ .System }}", f"{{{{ or .System {_write_constant(system)} }}}}")
    lines.append(f'TEMPLATE """{template}"""')
    if system and _fits_quotes(system):
        lines.append(f'SYSTEM """{system}"""')
    lines.append('PARAMETER stop "<|im_end|>"')
    if sampling:
        # Ollama has 40 for top_k, and older versions a penalty of 1.1 for repetitions.
        values = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k, "min_p": 0.0}
        values |= {"repeat_penalty": 1.0, "num_ctx": context}
        lines += [f"PARAMETER {name} {value}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def is_template_of(tokenizer: Any, thinking: bool, system: str, suffix: str) -> bool:
    """Whether TEMPLATE writes a question as a tokenizer's chat template does, with these words around it."""
    asked = build_messages("QUESTION", suffix, system)
    mine = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{asked[-1]['content']}<|im_end|>\n"
    mine += f"<|im_start|>assistant\n{OPEN if thinking else CLOSED}"
    return render_prompt(tokenizer, asked, thinking) == mine


def list_limits(thinking: bool, system: str, suffix: str) -> list[str]:
    """Sentences on what Ollama does otherwise with the words of a run.

    Source: create.go, renderer.go and nemotron3nano.go of https://github.com/ollama/ollama, as of 2026-08-21.
    """
    own = "Ollama 0.22.1 and later writes a Nemotron-H's prompt itself, without the Modelfile's TEMPLATE."
    limits = [own if thinking else f"{own} There a request needs think=false, or the policy thinks."]
    if system and not _fits_quotes(system):
        limits.append(
            "SYSTEM of a Modelfile cannot hold the system turn, so TEMPLATE has it. Where Ollama passes over TEMPLATE, "
            "send the system turn with each request."
        )
    if suffix != suffix.rstrip():
        limits.append("There it takes blanks off the end of a question, and the words behind a problem end with some.")
    if re.search("/(no_)?think", f"{system}{suffix}".replace("</think>", "")):
        limits.append("There it obeys /think and /no_think, which the words of the run hold, and takes them out.")
    return limits


def count_context(sampling: Sampling, *words: str | None) -> int:
    """Tokens of a context for the longest answer, a question, and `words` around it; no token is less than a byte.

    Example:
        >>> count_context(Sampling("as it was measured", 1.0, 1.0, 0, 512), "Be brief.")
        2569
    """
    return sampling.max_completion_length + PROMPT_TOKENS + sum(len((text or "").encode()) for text in words)


def name_model(name: str) -> str:
    """A name that Ollama accepts for a model: at most 80 small letters, digits, '.', '-' and '_'.

    Example:
        >>> name_model("Mine (2)"), name_model("../...")
        ('mine-2', 'adapter')
    """
    return re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:80] or "adapter"


def _fits_quotes(text: str) -> bool:
    """Whether Ollama reads a text between threefold quotation marks as it is.

    Such a value ends with the first line that ends with three of them; there are no escapes. What does not print is
    left out, apart from tabs and line ends.
    """
    return not re.search(r'"""\s*\n', text) and all(char.isprintable() or char in "\t\n" for char in text)


def _write_constant(text: str) -> str:
    """A text as a constant of Go's templates, in ASCII."""
    escaped = (f"\\{char}" if char in '"\\' else char if " " <= char <= "~" else f"\\U{ord(char):08x}" for char in text)
    return f'"{"".join(escaped)}"'
