"""The READMEs: the policy is asked as it was trained, and the figures stand with what they were measured on."""

import json
import re
import shlex
import subprocess

import pytest

from grpo_kit.config import Policy
from grpo_kit.nemotron import base_models
from grpo_kit.nemotron.nf4_checkpoint import KEPT_IN_FLOAT32
from grpo_kit.publishing.llama_cpp import readme
from grpo_kit.publishing.llama_cpp.as_trained import Measurement, Sampling, Training

SAMPLING = Sampling("as it was measured", 0.7, 0.9, 0, 512)
NF4 = Policy(model=base_models.PUBLISHED, dtype="float16", load_in_4bit=True)


def about(base=base_models.PUBLISHED, revision=None, name="Mine", notes=(), **training):
    """What a README says of a run that was trained with SFT and GRPO in NF4, with changes."""
    fields = {
        "policy": NF4,
        "stages": ["sft", "train"],
        "system": "",
        "suffix": "",
        "sampling": SAMPLING,
        "left_out": {},
    }
    return readme.About(
        name, base, revision, Training(**(fields | {"measured": [], "remarks": []} | training)), list(notes)
    )


def words_of(command, text):
    """The words of a command of a README, as bash splits them."""
    block = re.search(rf"    {re.escape(command)}(?:.*\\\n)*.*", text)[0]
    script = 'for word in "$@"; do printf "%s\\0" "$word"; done'
    shell = f"set -- {block.strip()}\n{script}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"})
    return done.stdout.decode().split("\0")[:-1]


def test_an_adapter_trained_in_4_bit_has_the_commands_of_its_base():
    text = readme.describe_lora(about(revision="abc", notes=["x."]), "0" * 64)
    assert f"hf download {base_models.PUBLISHED} --local-dir base --revision abc\n" in text
    assert "trained with SFT and GRPO" in text and "unsloth/Nemotron-3-Nano-30B-A3B-GGUF" in text
    assert (
        "-m base-Q4_K_M.gguf --lora adapter.gguf --jinja -c 2560 --temp 0.7 --top-p 0.9 --top-k 0 --min-p 0\n" in text
    )
    assert "Both engines sample as it was measured (temperature 0.7, top-p 0.9, top-k off)." in text
    assert "ollama create mine -f Modelfile" in text and text.endswith("- x.\n")
    assert "It had no system turn." in text and "Behind each problem" not in text


def test_without_thinking_both_engines_are_told_so():
    facts = about("grpo-kit/tiny", policy=Policy(enable_thinking=False))
    text = readme.describe_merged(facts, 1 << 20, False, 0.017)
    assert "--chat-template-kwargs '{\"enable_thinking\": false}'" in text and "(1.0 MiB)" in text
    assert "ollama run --think=false mine 'What is 47 + 38?'\n" in text and "needs think=false" in text
    assert "refuses its tokenizer" in text and "hf download" not in text
    assert "rounding to bf16 is 1.7% of the LoRA's update" in text
    assert text.count("behind an empty thought (`<think></think>`)") == 2


# words before and behind a problem that must reach both engines as they are
WORDS = [
    ("Be brief.", "\nPut it in \\boxed{}."),
    ('It\'s `code` and $HOME, !history, "quoted"', " don't; $(rm -rf x) `y`"),
    ("two\n\nlines\twith ```\nfences\n```", "\r\n\u202e\u00a0\\n\x07'"),
    ("漢字 👍", "ünï — 漢字"),
]


@pytest.mark.parametrize(("system", "suffix"), WORDS)
def test_the_commands_send_the_words_of_the_training(system, suffix):
    facts = about(system=system, suffix=suffix)
    for text in (readme.describe_lora(facts, "0" * 64), readme.describe_merged(facts, 1, False, 0.0)):
        *_, body = words_of("curl", text)
        assert json.loads(body) == {
            "messages": [
                {"role": "system", "content": system},
                {"role": "user", "content": "What is 47 + 38?" + suffix},
            ]
        }
        assert words_of("ollama run", text) == ["ollama", "run", "mine", "What is 47 + 38?" + suffix]
        assert "Neither llama-server nor Ollama adds it by itself" in " ".join(text.split())
        assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", text) and "more characters" not in text
        outside = re.sub(r"(?ms)^(`{3,})text\n.*?^\1$|^ {4,}.*?$", "", text)
        assert system not in outside and suffix not in outside and "fences" not in outside


def test_a_context_has_room_for_the_words_of_the_training():
    text = readme.describe_lora(about(system="x" * 3000, suffix="ü"), "0" * 64)
    assert f"-c {512 + 2048 + 3000 + 2} " in text


def test_what_is_not_known_any_more_is_not_said_to_be_absent():
    text = readme.describe_lora(about(system=None, suffix=None, remarks=["Gone."], sampling=None), "0" * 64)
    assert (
        "Its system turn is not known any more" in text and "What stood behind a problem is not known any more" in text
    )
    assert "- Gone.\n" in text and "--temp" not in text and "How to sample is left to the engines." in text


def test_an_adapter_from_elsewhere_is_not_said_to_be_asked_as_in_training():
    facts = readme.About("a|b` #", "org/base", None, None, ["The base is org/base by the word of its exporter."])
    for text in (readme.describe_lora(facts, "0" * 64), readme.describe_merged(facts, 1, False, 0.0)):
        assert "as in training" not in text and "as it was measured" not in text and "--temp" not in text
        assert "whether with thinking it was\ntrained is not known here" in text
        assert "## Not measured\nThe adapter comes from elsewhere" in text and "Measured over" not in text
        assert text.startswith("# a\\|b\\` \\#: ") and "by the word of its exporter" in text
    assert "`adapter.gguf` is a LoRA for `org/base`. It" in readme.describe_lora(facts, "0" * 64)


def test_a_base_with_an_odd_name_stays_within_its_line():
    text = readme.describe_lora(about(base="x`\n# y"), "0" * 64)
    assert "is a LoRA for x\\` \\# y, trained" in text and "hf download" not in text


def measured(label, weights="NF4", thinking=True, temperature=1.0):
    return Measurement(label, weights, thinking, temperature, 0.5, (0.4, 0.6), 9)


def test_the_figures_stand_with_the_weights_and_the_prompt_of_their_measurement():
    rows = [measured("before training"), measured("after SFT"), measured("after GRPO", "float32", False, 0.0)]
    text = readme.describe_measurements(about(measured=rows).training)
    assert text.startswith(
        "## Measured over NF4 and float32 only\n"
        "The adapter was trained over a base in NF4 and measured over NF4 and float32."
    )
    assert text.splitlines()[-3:] == [
        "| before training | NF4 | open thought | 1 | 0.500 | 0.400 to 0.600 | 9 |",
        "| after SFT | NF4 | open thought | 1 | 0.500 | 0.400 to 0.600 | 9 |",
        "| after GRPO | float32 | empty thought | 0 | 0.500 | 0.400 to 0.600 | 9 |",
    ]


def test_figures_of_an_earlier_stage_are_not_those_of_the_adapter():
    facts = about(measured=[measured("before training"), measured("after SFT")], left_out={"after GRPO": "it is old"})
    lines = readme.describe_measurements(facts.training).splitlines()
    assert lines[:2] == [
        "## Measured before GRPO only",
        "The adapter was trained over a base in NF4. It is the one after GRPO, of which there is no accuracy to show. "
        "These were measured before that, over NF4.",
    ]
    assert lines[-3].startswith("| after SFT |") and lines[-1] == "The accuracy after GRPO is left out: it is old."
    text = readme.describe_measurements(about(measured=[measured("after SFT")]).training)
    assert "measured over" not in text and "left out" not in text and "no accuracy to show" in text


def test_figures_that_do_not_hold_any_more_are_not_said_to_be_missing():
    text = readme.describe_measurements(
        about(left_out={"before training": "it is old", "after GRPO": "so is it"}).training
    )
    assert text == (
        "## No accuracy that still holds\nThe adapter was trained over a base in NF4. The accuracy before training is "
        "left out: it is old. The accuracy after GRPO is left out: so is it.\n"
    )


def test_each_command_says_of_which_files_it_speaks():
    lora, merged = readme.describe_lora(about(), "0" * 64), readme.describe_merged(about(), 1, False, 0.0)
    assert "`--jinja` takes the chat template in the base's GGUF" in lora and "`base` stands for" not in lora
    assert "`--jinja` takes the chat template in the merged GGUF" in merged
    assert "Its matrices are in bf16; what\nrouters and state-space scans need in float32 (`A_log`, " in merged
    for name in KEPT_IN_FLOAT32:
        assert f"`{name.removeprefix('mixer.')}`" in merged
    local = readme.describe_lora(about(base="mine"), "0" * 64)
    assert "Here `base` stands for the folder with the base's files.\n\n    python llama.cpp/convert" in local


def test_a_run_that_was_not_measured_says_over_what_it_was_trained():
    assert readme.describe_measurements(about().training) == (
        "## Not measured\nThe adapter was trained over a base in NF4, and no accuracy was measured.\n"
    )


def test_a_revision_is_one_word_of_the_shell():
    text = readme.describe_lora(about(revision="a; rm -rf x"), "0" * 64)
    command = re.search("hf download.*", text)[0]
    assert shlex.split(command)[-1] == "a; rm -rf x"
