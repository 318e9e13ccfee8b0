"""Make a tokenizer fit for training: it can pad, and rewards see its thinking tags."""

import json
import tempfile
from pathlib import Path
from typing import Any


def prepare_tokenizer(tokenizer: Any) -> Any:
    """Give a tokenizer a padding token, and make its thinking tags ordinary tokens with the same ids.

    TRL decodes completions without special tokens. If `</think>` were special, no reward could see it.

    Args:
        tokenizer: a transformers tokenizer; a padding token may be added to it.

    Returns:
        `tokenizer` itself, or a copy with ordinary thinking tags where they were special.
    """
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    closing_ids = tokenizer.encode("</think>", add_special_tokens=False)
    if tokenizer.decode(closing_ids, skip_special_tokens=True) == "</think>":
        return tokenizer
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            path = Path(folder, name)
            path.write_text(json.dumps(_with_ordinary_tags(json.loads(path.read_text()))))
        return AutoTokenizer.from_pretrained(folder, padding_side="left")


def _with_ordinary_tags(node: Any) -> Any:
    """A tokenizer's JSON in which the thinking tags are not special and are in no list of special tokens."""
    tags = ("<think>", "</think>")
    if isinstance(node, list):
        return [_with_ordinary_tags(item) for item in node]
    if not isinstance(node, dict):
        return node
    node = {key: _with_ordinary_tags(value) for key, value in node.items()}
    for key in ("extra_special_tokens", "additional_special_tokens"):
        if isinstance(node.get(key), list):
            node[key] = [name for name in node[key] if name not in tags]
    return node | {"special": False} if node.get("content") in tags else node
