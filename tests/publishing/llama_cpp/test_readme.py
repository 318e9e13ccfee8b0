"""Ollama's prompt is the chat template's, and the READMEs say what was measured and what was not."""

import re

import pytest

from grpo_kit import config
from grpo_kit.nemotron import base_models
from grpo_kit.policy.load import load_tokenizer
from grpo_kit.publishing.llama_cpp import readme
from grpo_kit.publishing.run_facts import Measured


def ollama_prompt(modelfile, messages):
    """What Go's templates make of the TEMPLATE of a Modelfile; only the forms that it uses are known here."""
    template = re.search(r'TEMPLATE """(.*?)"""', modelfile, re.DOTALL)[1]
    start, loop, end = re.fullmatch(
        r'(.*){{ range \.Messages }}{{ if ne \.Role "system" }}(.*){{ end }}{{ end }}(.*)', template, re.DOTALL
    ).groups()
    system = "".join(message["content"] for message in messages if message["role"] == "system")
    prompt = start.replace("{{ .System }}", system)
    for message in messages:
        if message["role"] != "system":
            thought = r"\1" if message["role"] == "assistant" else ""
            turn = re.sub(r'{{ if eq \.Role "assistant" }}(.*?){{ end }}', thought, loop)
            prompt += turn.replace("{{ .Role }}", message["role"]).replace("{{ .Content }}", message["content"])
    assert "{{" not in prompt + end
    return prompt + end


def say(role, content):
    return {"role": role, "content": content}


@pytest.mark.parametrize("thinks", [True, False])
@pytest.mark.parametrize(
    "messages",
    [
        [say("user", "What is 1 + 1?")],
        [say("system", "Be brief."), say("user", "What is 1 + 1?")],
        [say("user", "1 + 1?"), say("assistant", "2"), say("user", "2 + 2?")],
    ],
)
def test_ollamas_prompt_is_that_of_the_chat_template(thinks, messages):
    chosen = config.RunConfig(policy=config.Policy(enable_thinking=thinks))
    tokenizer = load_tokenizer(chosen.policy)
    expected = tokenizer.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinks
    )
    assert ollama_prompt(readme.make_modelfile(chosen, True), messages) == expected


def test_an_adapter_trained_in_4_bit_says_so_before_its_figures():
    policy = config.Policy(model=base_models.PUBLISHED, dtype="float16", load_in_4bit=True, revision="abc")
    chosen = config.RunConfig(policy=policy)
    text = readme.describe_lora(chosen, "Mine", base_models.PUBLISHED, ["sft", "train"], "0" * 64, "MEASURED\n", ["x."])
    assert f"hf download {base_models.PUBLISHED} --local-dir base --revision abc\n" in text
    assert "trained with SFT and GRPO" in text and "unsloth/Nemotron-3-Nano-30B-A3B-GGUF" in text
    assert "llama-server -m base-Q4_K_M.gguf --lora adapter.gguf --jinja -c 2560 --temp 1.0 --top-p 1.0\n" in text
    assert "ollama create mine -f Modelfile" in text and text.endswith("- x.\n") and "\n\nMEASURED\n" in text


def test_without_thinking_both_engines_are_told_so():
    chosen = config.RunConfig(policy=config.Policy(enable_thinking=False))
    text = readme.describe_merged(chosen, "m", "grpo-kit/tiny", True, 1 << 20, False, "")
    assert "--chat-template-kwargs '{\"enable_thinking\": false}'" in text and "(1.0 MiB)" in text
    assert "refuses its tokenizer" in text and "hf download" not in text
    assert '<|im_start|>assistant\n<think></think>"""' in readme.make_modelfile(chosen, True)


@pytest.mark.parametrize(("in_4bit", "weights"), [(True, "NF4"), (False, "float16")])
def test_the_figures_stand_with_the_weights_over_which_they_were_measured(in_4bit, weights):
    chosen = config.RunConfig(policy=config.Policy(load_in_4bit=in_4bit, dtype="float16"))
    report = {"pass@1": 0.5, "ci95": [0.4, 0.6], "n": 9}
    text = readme.describe_measurements(chosen, [Measured(stage, report, None) for stage in ("", "train")])
    assert text.startswith(
        f"## Measured over {weights} only\nThe adapter was trained and measured over a base in {weights}."
    )
    rows = ["| before training | 0.500 | 0.400 to 0.600 | 9 |", "| after GRPO | 0.500 | 0.400 to 0.600 | 9 |"]
    assert text.splitlines()[-2:] == rows


def test_a_run_that_was_not_measured_says_over_what_it_was_trained():
    assert readme.describe_measurements(config.RunConfig(), []) == (
        "## Measured over float32 only\nThe adapter was trained over a base in float32, and no accuracy was measured.\n"
    )
