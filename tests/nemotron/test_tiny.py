"""The embedded policy: its problems, its tokenizer, its parts, and that the weights belong to the script."""

import json
import random

import pytest
from safetensors import safe_open

from grpo_kit.nemotron import tiny

USER = [{"role": "user", "content": "What is 47 + 38?"}]


@pytest.fixture(scope="module")
def tokenizer(tiny_policy):
    return tiny_policy[1]


@pytest.mark.parametrize(
    ("left", "sign", "right", "said"),
    [
        (47, "+", 38, "7+8=15 4+3+1=8"),  # a carry
        (41, "+", 38, "1+8=9 4+3=7"),  # none
        (95, "+", 78, "5+8=13 9+7+1=17"),  # three digits
        (50, "+", 50, "0+0=0 5+5=10"),
        (52, "-", 38, "12-8=4 5-3-1=1"),  # a borrow
        (58, "-", 32, "8-2=6 5-3=2"),  # none
        (33, "-", 33, "3-3=0 3-3=0"),  # nothing is left
        (40, "-", 31, "10-1=9 4-3-1=0"),
    ],
)
def test_the_working_is_digit_by_digit(left, sign, right, said):
    assert tiny.working(tiny.Problem(left, sign, right)) == said


def test_the_working_determines_the_answer():
    rng = random.Random(1)
    for _ in range(500):
        drawn = tiny.problem(rng)
        ones, tens = (int(part.split("=")[1]) for part in tiny.working(drawn).split())
        assert 10 * tens + ones % 10 == drawn.answer >= 0


def test_rows_are_distinct_and_the_same_for_the_same_seed():
    rows = tiny.rows(2000, seed=3)
    assert len({row["prompt"] for row in rows}) == 2000
    assert rows == tiny.rows(2000, seed=3) != tiny.rows(2000, seed=4)
    for row in rows[:50]:
        left, sign, right = row["prompt"].removeprefix("What is ").removesuffix("?").split()
        assert int(row["answer"]) == (int(left) + int(right) if sign == "+" else int(left) - int(right))


@pytest.mark.parametrize("count", [0, -1, 12_196])
def test_more_rows_than_exist_are_refused(count):
    with pytest.raises(ValueError, match=f"{count} rows.*12195"):
        tiny.rows(count, seed=0)


def test_all_rows_that_exist_can_be_had():
    assert len(tiny.rows(12_195, seed=0)) == 12_195


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
    assert max(ids, default=0) < tiny.VOCAB_SIZE


def test_special_tokens_have_nemotrons_ids_and_thinking_stays_visible(tokenizer):
    assert tokenizer.encode("<|im_start|><|im_end|><think></think>", add_special_tokens=False) == [10, 11, 12, 13]
    assert tokenizer.decode([12, 13, 11], skip_special_tokens=True) == "<think></think>"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, tokenizer.padding_side) == (11, 0, "left")


@pytest.mark.parametrize(
    ("messages", "options", "rendered"),
    [
        # the generation prompt opens the thinking, after an empty system turn
        (USER, {}, "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nWhat is 47 + 38?<|im_end|>\n<|im_start|>assistant\n<think>\n"),
        # thinking off: opened and closed at once
        (USER, {"enable_thinking": False}, "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nWhat is 47 + 38?<|im_end|>\n<|im_start|>assistant\n<think></think>"),
        # a system message takes the system turn
        ([{"role": "system", "content": "Be brief."}, *USER], {}, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is 47 + 38?<|im_end|>\n<|im_start|>assistant\n<think>\n"),
        # an answer without thinking gets an empty pair of tags
        ([*USER, {"role": "assistant", "content": "85"}], {"add_generation_prompt": False}, "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nWhat is 47 + 38?<|im_end|>\n<|im_start|>assistant\n<think></think>85<|im_end|>\n"),
        # one that closes its thinking is left as it is
        ([*USER, {"role": "assistant", "content": "hm\n</think>\n85"}], {"add_generation_prompt": False}, "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nWhat is 47 + 38?<|im_end|>\n<|im_start|>assistant\nhm\n</think>\n85<|im_end|>\n"),
    ],
)  # fmt: skip
def test_the_chat_template_behaves_like_nemotrons(tokenizer, messages, options, rendered):
    assert (
        tokenizer.apply_chat_template(messages, tokenize=False, **{"add_generation_prompt": True, **options})
        == rendered
    )


def test_the_shipped_tokenizer_is_the_scripts(tokenizer):
    built = tiny.build_tokenizer()
    assert built.get_vocab() == tokenizer.get_vocab() and built.chat_template == tokenizer.chat_template


def test_the_weights_belong_to_this_script():
    with safe_open(tiny.FOLDER / "model.safetensors", "pt") as weights:
        assert weights.metadata()["script_sha256"] == tiny.script_hash(), "make it anew: python -m grpo_kit.tiny"


def test_the_policy_fits_into_two_megabytes():
    assert sum(path.stat().st_size for path in tiny.FOLDER.iterdir()) < 2_000_000


def test_it_has_every_part_of_nemotron_h(tiny_policy):
    model = tiny_policy[0]
    assert type(model).__module__ == "transformers.models.nemotron_h.modeling_nemotron_h"
    assert model.config.layers_block_type == ["linear_attention", "moe", "full_attention", "moe"]
    assert (model.config.n_routed_experts, model.config.num_experts_per_tok, model.config.n_shared_experts) == (8, 2, 1)
    assert model.lm_head.weight.data_ptr() != model.get_input_embeddings().weight.data_ptr()
    assert 0.4e6 < sum(p.numel() for p in model.parameters()) < 0.6e6


def test_it_is_stored_under_the_published_names_in_16_bit():
    with safe_open(tiny.FOLDER / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
        assert {weights.get_slice(name).get_dtype() for name in names} == {"F16"}
    assert "backbone.layers.1.mixer.experts.7.up_proj.weight" in names
    assert "backbone.layers.0.mixer.in_proj.weight" in names and "lm_head.weight" in names


def test_the_warm_up_script_runs_and_writes_a_policy_that_loads(tmp_path):
    from grpo_kit import config
    from grpo_kit.policy.load import load_policy

    tiny.make(tmp_path, steps=2)
    model, tokenizer = load_policy(config.Policy(model=str(tmp_path)))
    assert model.config.vocab_size == len(tokenizer) == 272
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float16"


def test_untrained_it_both_works_out_and_guesses(trained):
    _, run = trained
    said = [p["completions"][0] for p in json.loads((run.evaluation / "before.json").read_text())["problems"]]
    guessed = sum(text.startswith("looks like") for text in said)
    assert 0.3 * len(said) < guessed < 0.9 * len(said)
