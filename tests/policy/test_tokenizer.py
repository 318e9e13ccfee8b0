"""A prepared tokenizer shows its thinking tags to rewards, under the same ids."""

from grpo_kit import config
from grpo_kit.policy.load import load_tokenizer
from grpo_kit.policy.tokenizer import prepare_tokenizer


def test_a_tokenizer_that_hides_the_closing_tag_is_mended():
    from tokenizers import AddedToken

    tokenizer = load_tokenizer(config.Policy())
    tokenizer.add_tokens(
        [AddedToken(tag, special=True, normalized=False) for tag in ("<think>", "</think>")], special_tokens=True
    )
    assert tokenizer.decode([13], skip_special_tokens=True) == ""
    mended = prepare_tokenizer(tokenizer)
    assert mended.decode([12, 13, 11], skip_special_tokens=True) == "<think></think>"
    assert mended.encode("<think></think>é", add_special_tokens=False)[:2] == [12, 13]
    assert (mended.chat_template, mended.pad_token_id, mended.eos_token_id) == (tokenizer.chat_template, 0, 11)
