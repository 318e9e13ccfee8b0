"""Ollama's prompt is the chat template's, whatever the system turn holds.

The reader of Modelfiles here follows Ollama's rules in its own words. `notes/sharing.md` says how Ollama's own parser
and Go's templates were tried.
"""

import codecs
import itertools
import re

import pytest

from grpo_kit.config import Policy
from grpo_kit.policy.chat import build_messages, render_prompt
from grpo_kit.policy.load import load_tokenizer
from grpo_kit.publishing.llama_cpp import modelfile
from grpo_kit.publishing.llama_cpp.as_trained import Sampling


def read_modelfile(text):
    """{word: its values}, by Ollama's rules.

    A value in threefold quotation marks ends at the first line that ends with them; what does not print is left out.
    """
    found, text = {}, iter(text)
    while word := "".join(itertools.takewhile(lambda char: char != " ", text)).strip():
        value, is_open = "", True
        while is_open:
            char = next(text)
            read = value.strip()
            is_closed = len(read) >= 6 and read.endswith('"""')
            is_open = char not in "\r\n" or (read.startswith('"""') and not is_closed)
            value += char if char in "\r\n\t" or char.isprintable() else ""
        found.setdefault(word, []).append(read[3:-3] if read.startswith('"""') else read)
    return found


def ollama_prompt(text, messages):
    """What Ollama asks: Go's rendering of the TEMPLATE, of which only the forms that it uses are known here."""
    commands = read_modelfile(text)
    (template,) = commands["TEMPLATE"]
    start, loop, end = re.fullmatch(
        r'(.*){{ range \.Messages }}{{ if ne \.Role "system" }}(.*){{ end }}{{ end }}(.*)', template, re.DOTALL
    ).groups()
    system = "".join(message["content"] for message in messages if message["role"] == "system")
    system = system or "".join(commands.get("SYSTEM", []))
    before, constant, after = re.fullmatch(r'(.*){{ (?:or )?\.System ?(".*")? ?}}(.*)', start, re.DOTALL).groups()
    default = codecs.decode(constant[1:-1], "unicode_escape") if constant else ""
    prompt = before + (system or default) + after
    for message in messages:
        if message["role"] != "system":
            thought = r"\1" if message["role"] == "assistant" else ""
            turn = re.sub(r'{{ if eq \.Role "assistant" }}(.*?){{ end }}', thought, loop)
            prompt += turn.replace("{{ .Role }}", message["role"]).replace("{{ .Content }}", message["content"])
    return prompt + end


def say(role, content):
    return {"role": role, "content": content}


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(Policy())


@pytest.mark.parametrize("thinks", [True, False])
@pytest.mark.parametrize(
    "messages",
    [
        [say("user", "What is 1 + 1?")],
        [say("system", "Be brief."), say("user", "What is 1 + 1?")],
        [say("user", "1 + 1?"), say("assistant", "2"), say("user", "2 + 2?")],
    ],
)
def test_ollamas_prompt_is_that_of_the_chat_template(tokenizer, thinks, messages):
    text = modelfile.make_modelfile({"FROM": "base.gguf"}, thinks)
    assert ollama_prompt(text, messages) == render_prompt(tokenizer, messages, thinks)
    assert modelfile.is_template_of(tokenizer, thinks, "Be brief.", "\nAnswer:")


# system turns, and whether SYSTEM can hold them
SYSTEMS = [
    ("Be brief.", True),
    ('Say "yes" or """no""".', True),
    ('ends with "', True),
    ('"""', True),
    ('Write a docstring:\n    """Text."""', True),
    ("two\n\nlines, {{ .System }}, {{ end }}, \\n and \\", True),
    ("SYSTEM x\nFROM other\n# PARAMETER temperature 9", True),
    ("  blanks around\t\n", True),
    ("漢字, ü, 👍 and <|im_end|>", True),
    ('A line that ends with """\nand another', False),
    ('"""  \nfirst', False),
    ("one\r\ntwo", False),
    ("a\u00a0b", False),  # a blank that does not print
    ("turned \u202eround", False),
    ("bell \x07", False),
    ("👩\u200d👧", False),
]


@pytest.mark.parametrize("thinks", [True, False])
def test_the_system_turn_reaches_the_prompt_whatever_it_holds(tokenizer, thinks):
    for system, fits in SYSTEMS:
        text = modelfile.make_modelfile({"FROM": "base.gguf"}, thinks, system)
        asked = build_messages("1 + 1?", "\nAnswer:", system)
        assert ollama_prompt(text, asked[1:]) == render_prompt(tokenizer, asked, thinks), system
        commands = read_modelfile(text)
        assert ("SYSTEM" in commands) == fits and commands["FROM"] == ["./base.gguf"], system
        assert len(commands["PARAMETER"]) == 1, system
        own = [say("system", "Mine."), *asked[1:]]  # of a request, which counts more
        assert ollama_prompt(text, own) == render_prompt(tokenizer, own, thinks), system


@pytest.mark.parametrize(
    ("thinks", "system", "suffix", "sentences"),
    [
        (True, "Be brief.", " Go:", []),
        (False, "", "", ["There a request needs think=false"]),
        (True, "a\u00a0b", "", ["send the system turn with each request"]),
        (True, "", "\nGo:\n", ["takes blanks off the end of a question"]),
        (True, "Close </think>.", "/no_think", ["obeys /think and /no_think"]),
        (True, "Close </think>.", "", []),
    ],
)
def test_what_a_later_ollama_does_otherwise_is_said(thinks, system, suffix, sentences):
    first, *more = modelfile.list_limits(thinks, system, suffix)
    assert first.startswith("Ollama 0.22.1 and later writes a Nemotron-H's prompt itself")
    found = [first, *more] if not thinks else more
    assert len(found) == len(sentences) and all(part in text for part, text in zip(sentences, found))


def test_sampling_names_what_ollama_would_set_otherwise():
    sampling = Sampling("as it was measured", 0.7, 0.9, 0, 40)
    text = modelfile.make_modelfile({"FROM": "base.gguf", "ADAPTER": "adapter.gguf"}, True, "", sampling, 2088)
    assert read_modelfile(text)["PARAMETER"] == [
        'stop "<|im_end|>"', "temperature 0.7", "top_p 0.9", "top_k 0", "min_p 0.0", "repeat_penalty 1.0",
        "num_ctx 2088",
    ]  # fmt: skip
    assert text.startswith("FROM ./base.gguf\nADAPTER ./adapter.gguf\nTEMPLATE ")
    assert modelfile.count_context(sampling) == 2088 and modelfile.count_context(sampling, "ü", None) == 2090


def test_a_template_that_trims_the_system_turn_is_not_ours(tokenizer):
    kept = tokenizer.chat_template
    tokenizer.chat_template = kept.replace("{{ messages[0]['content'] if", "{{ messages[0]['content'] | trim if")
    assert tokenizer.chat_template != kept
    try:
        assert modelfile.is_template_of(tokenizer, True, "Be brief.", "")
        assert not modelfile.is_template_of(tokenizer, True, "Be brief. ", "")
    finally:
        tokenizer.chat_template = kept


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Sums", "sums"), ("-._x", "x"), ("a/b:c d", "a-b-c-d"), ("é", "adapter"), ("y" * 100, "y" * 80), ("", "adapter")],
)
def test_ollama_accepts_the_name(name, expected):
    assert modelfile.name_model(name) == expected
