"""The embedded policy as it is shipped: its problems, its tokenizer, its parts and its weights."""

import hashlib
import json

import pytest
from safetensors import safe_open

from grpo_kit.nemotron import tiny

USER = [{"role": "user", "content": "What is 47 + 38?"}]
WEIGHTS = tiny.FOLDER / "model.safetensors"


@pytest.fixture(scope="module")
def tokenizer(tiny_policy):
    return tiny_policy[1]


def test_rows_are_distinct_and_the_same_for_the_same_seed():
    rows = tiny.draw_rows(2000, seed=3)
    assert len({row["prompt"] for row in rows}) == 2000
    assert rows == tiny.draw_rows(2000, seed=3) != tiny.draw_rows(2000, seed=4)
    for row in rows[:50]:
        left, sign, right = row["prompt"].removeprefix("What is ").removesuffix("?").split()
        result = int(left) + int(right) if sign == "+" else int(left) - int(right)
        assert int(row["answer"]) == result >= 0


@pytest.mark.parametrize("count", [0, -1, 12_196])
def test_more_rows_than_exist_are_refused(count):
    with pytest.raises(ValueError, match=f"data.limit is {count}; .*1 to 12195 distinct"):
        tiny.draw_rows(count, seed=0)


@pytest.mark.slow
def test_all_rows_that_exist_can_be_drawn():
    assert len(tiny.draw_rows(12_195, seed=0)) == 12_195


@pytest.mark.parametrize(
    "text",
    [
        "plain",
        "tabs\tand\nnew lines \r\n",
        "é € 😀 中文 \u202e",
        "\x00\x01\x7f",
        "",
        "  spaces  ",
        "<think>\nx</think>\n\\boxed{1}",
    ],
)
def test_every_text_encodes_and_comes_back(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text
    assert max(ids, default=0) < len(tokenizer) == 272


def test_special_tokens_have_nemotrons_ids_and_thinking_stays_visible(tokenizer):
    assert tokenizer.encode("<|im_start|><|im_end|><think></think>", add_special_tokens=False) == [10, 11, 12, 13]
    assert tokenizer.decode([12, 13, 11], skip_special_tokens=True) == "<think></think>"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.padding_side) == (11, 0, "left")


SYSTEM_TURN = "<|im_start|>system\n{}<|im_end|>\n".format
USER_TURN = "<|im_start|>user\nWhat is 47 + 38?<|im_end|>\n"


@pytest.mark.parametrize(
    ("messages", "options", "rendered"),
    [
        # the generation prompt opens the thinking, after an empty system turn
        (USER, {}, SYSTEM_TURN("") + USER_TURN + "<|im_start|>assistant\n<think>\n"),
        # thinking off: opened and closed at once
        (USER, {"enable_thinking": False}, SYSTEM_TURN("") + USER_TURN + "<|im_start|>assistant\n<think></think>"),
        # a system message takes the system turn
        ([{"role": "system", "content": "Be brief."}, *USER], {},
         SYSTEM_TURN("Be brief.") + USER_TURN + "<|im_start|>assistant\n<think>\n"),
        # an answer without thinking gets an empty pair of tags
        ([*USER, {"role": "assistant", "content": "85"}], {"add_generation_prompt": False},
         SYSTEM_TURN("") + USER_TURN + "<|im_start|>assistant\n<think></think>85<|im_end|>\n"),
        # an answer that closes its thinking is left as it is
        ([*USER, {"role": "assistant", "content": "hm\n</think>\n85"}], {"add_generation_prompt": False},
         SYSTEM_TURN("") + USER_TURN + "<|im_start|>assistant\nhm\n</think>\n85<|im_end|>\n"),
    ],
)  # fmt: skip
def test_the_chat_template_behaves_like_nemotrons(tokenizer, messages, options, rendered):
    options = {"add_generation_prompt": True, **options}
    assert tokenizer.apply_chat_template(messages, tokenize=False, **options) == rendered


def test_the_weights_are_those_that_the_package_expects():
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() == tiny.SHA256["tiny"]


def test_the_policy_fits_into_two_megabytes():
    assert sum(path.stat().st_size for path in tiny.FOLDER.iterdir()) < 2_000_000


def test_it_has_every_part_of_nemotron_h(tiny_policy):
    model = tiny_policy[0]
    assert type(model).__module__ == "transformers.models.nemotron_h.modeling_nemotron_h"
    assert model.config.layers_block_type == ["linear_attention", "moe", "full_attention", "moe"]
    assert (model.config.n_routed_experts, model.config.num_experts_per_tok, model.config.n_shared_experts) == (8, 2, 1)
    assert model.lm_head.weight.data_ptr() != model.get_input_embeddings().weight.data_ptr()
    assert 0.4e6 < sum(p.numel() for p in model.parameters()) < 0.6e6


def test_its_config_has_the_form_that_vllm_and_older_transformers_read():
    saved = json.loads((tiny.FOLDER / "config.json").read_text())
    assert (saved["hybrid_override_pattern"], saved["num_hidden_layers"]) == ("ME*E", 4)
    assert not [key for key in saved if key.endswith("layers_block_type")]
    assert not [key for key, value in saved.items() if isinstance(value, dict | list) and key != "architectures"]


def test_it_is_stored_under_the_published_names_in_16_bit():
    with safe_open(WEIGHTS, "pt") as weights:
        names = set(weights.keys())
        assert {weights.get_slice(name).get_dtype() for name in names} == {"F16"}
    assert "backbone.layers.1.mixer.experts.7.up_proj.weight" in names
    assert "backbone.layers.0.mixer.in_proj.weight" in names and "lm_head.weight" in names


def test_untrained_it_both_works_out_and_guesses(trained):
    _, run = trained
    replies = [p["completions"][0] for p in json.loads((run.evaluation / "before.json").read_text())["problems"]]
    guesses = sum(text.startswith("looks like") for text in replies)
    assert 0.3 * len(replies) < guesses < 0.9 * len(replies)
