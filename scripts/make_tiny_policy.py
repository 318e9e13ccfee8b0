"""Make the embedded policy: a Nemotron-H of half a million parameters, taught to add and subtract on a CPU.

    python scripts/make_tiny_policy.py [FOLDER]

The script draws fresh weights from a fixed seed, trains them for a few minutes on two cores and saves model and
tokenizer (float16, about 1 MB). Without FOLDER it replaces the policy inside the package and prints the new sha256,
which belongs into `grpo_kit/nemotron/tiny.py`. The same seed gives the same weights on the same processor and library
versions only.

The teacher mixes two kinds of replies on purpose. About two of five work the digits out; the others say "looks like"
and a number near the result. So GRPO has something to improve: working the digits out is rewarded, guessing is not.

What differs from Nemotron-3-Nano: bytes as tokens (so any text can be encoded), 8 experts with 2 active instead of 128
and 6, and 4 layers instead of 52.
"""

import json
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import NemotronHConfig, NemotronHForCausalLM, PreTrainedTokenizerFast

from grpo_kit.nemotron import tiny
from grpo_kit.nemotron.checkpoint_files import published_config
from grpo_kit.nemotron.patches import fix_time_step_limit
from grpo_kit.policy.chat import Messages, build_messages, encode_prompt
from grpo_kit.runs.files import hash_of

SEED, STEPS, BATCH_SIZE, LEARNING_RATE = 3407, 1200, 96, 3e-3
WORKING_SHARE = 0.40  # of the teacher's thinking replies that work the digits out
NO_THINKING_SHARE = 1 / 16  # of the prompts that ask for a reply without thinking
SLIPS = (-20, -12, -11, -10, -9, -8, -2, -1, 0, 1, 2, 8, 9, 10, 11, 12, 20)  # by how much a guess is off

# These ids are those of Nemotron's tokenizer, so that code which relies on them can be tested. `<think>` and `</think>`
# are ordinary tokens: a decoder that skips special tokens would hide them from every reward.
SPECIAL_TOKENS = {0: "<unk>", 1: "<s>", 2: "</s>", 10: "<|im_start|>", 11: "<|im_end|>"}
THINKING_TOKENS = {12: "<think>", 13: "</think>"}
FIRST_BYTE_ID = 16
VOCAB_SIZE = FIRST_BYTE_ID + 256

Example = tuple[list[int], ...]  # token ids: what is given, a reply that is learned, what is given behind it, ...

# Nemotron's rules: a system turn always comes first, even if it is empty. The generation prompt opens `<think>`, and
# closes it at once when thinking is off. An assistant turn without thinking gets an empty pair of tags.
CHAT_TEMPLATE = (tiny.FOLDER / "chat_template.jinja").read_text(encoding="utf-8")


def teacher_reply(problem: tiny.Problem, rng: random.Random, working_share: float, thinking: bool = True) -> str:
    """What the teacher replies: the calculation with probability `working_share`, otherwise a guess near the result."""
    if thinking and rng.random() < working_share:
        return f"{problem.working}\n</think>\n\\boxed{{{problem.answer}}}"
    guess = max(0, problem.answer + rng.choice(SLIPS))
    return f"looks like {guess}\n</think>\n\\boxed{{{guess}}}" if thinking else f"\\boxed{{{guess}}}"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build a byte-level tokenizer (272 ids) with Nemotron's special tokens, their ids and its chat template."""
    names = {i: f"<SPECIAL_{i}>" for i in range(FIRST_BYTE_ID)} | SPECIAL_TOKENS | THINKING_TOKENS
    byte_letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {name: i for i, name in names.items()}
    vocab |= {letter: FIRST_BYTE_ID + i for i, letter in enumerate(byte_letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=SPECIAL_TOKENS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    for i in range(FIRST_BYTE_ID):
        tokenizer.add_tokens([AddedToken(names[i], special=i not in THINKING_TOKENS, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|im_end|>", unk_token="<unk>", pad_token="<unk>",
        padding_side="left", clean_up_tokenization_spaces=False, chat_template=CHAT_TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def build_model() -> NemotronHForCausalLM:
    """Draw a fresh model of 0.52 M parameters in float32, with layers Mamba, MoE, attention, MoE.

    Its rows are multiples of 64 values long, as the real model's are. bitsandbytes 0.50 dequantises other lengths
    wrongly on some CPUs.
    """
    config = NemotronHConfig(
        vocab_size=VOCAB_SIZE, hidden_size=128, tie_word_embeddings=False, max_position_embeddings=4096,
        layers_block_type=["linear_attention", "moe", "full_attention", "moe"],
        mamba_num_heads=12, mamba_head_dim=16, ssm_state_size=16, n_groups=2, conv_kernel=4, chunk_size=32,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32,
        n_routed_experts=8, num_experts_per_tok=2, n_shared_experts=1, norm_topk_prob=True,
        moe_intermediate_size=64, moe_shared_expert_intermediate_size=128, routed_scaling_factor=1.0,
        bos_token_id=1, eos_token_id=11, pad_token_id=0,
    )  # fmt: skip
    model = NemotronHForCausalLM(config)
    fix_time_step_limit(model)
    return model


def encode_example(tokenizer: Any, rng: random.Random, working_share: float = WORKING_SHARE) -> Example:
    """Draw one problem; returns the token ids of its prompt and of the teacher's reply."""
    problem, thinking = tiny.draw_problem(rng), rng.random() >= NO_THINKING_SHARE
    reply = teacher_reply(problem, rng, working_share, thinking)
    return encode_pair(tokenizer, build_messages(problem.question), reply, thinking)


def encode_pair(tokenizer: Any, prompt: Messages, reply: str, thinking: bool) -> Example:
    """The token ids of a prompt, and of a reply with its end."""
    prompt_ids = encode_prompt(tokenizer, prompt, thinking)
    return prompt_ids, tokenizer.encode(reply + "<|im_end|>", add_special_tokens=False)


def pad_batch(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """`input_ids`, `labels` (-100 on what is given and on padding) and `attention_mask`, each (batch, longest)."""
    longest = max(sum(map(len, example)) for example in examples)
    input_ids = torch.zeros(len(examples), longest, dtype=torch.long)
    labels, mask = torch.full_like(input_ids, -100), torch.zeros_like(input_ids)
    for i, example in enumerate(examples):
        end = 0
        for number, part in enumerate(example):
            begin, end = end, end + len(part)
            input_ids[i, begin:end] = torch.tensor(part)
            if number % 2:
                labels[i, begin:end] = torch.tensor(part)
        mask[i, :end] = 1
    return {"input_ids": input_ids, "labels": labels, "attention_mask": mask}


def make_policy(folder: Path = tiny.FOLDER, steps: int = STEPS) -> None:
    """Train a fresh model on the teacher's replies for `steps` steps and save model and tokenizer into `folder`."""
    torch.manual_seed(SEED)
    tokenizer, model = build_tokenizer(), build_model()
    train_policy(model, tokenizer, encode_example, steps, BATCH_SIZE)
    save_policy(model, tokenizer, folder, "scripts/make_tiny_policy.py")


def train_policy(
    model: Any,
    tokenizer: Any,
    draw_example: Callable[[Any, random.Random], Example],
    steps: int,
    batch_size: int,
    learning_rate: float = LEARNING_RATE,
    parts: int = 1,
) -> None:
    """Train a model in place for `steps` steps on examples as `encode_example` draws them.

    A batch goes through the model in `parts` of examples with similar lengths, which need less padding.
    """
    rng = random.Random(SEED)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
    )
    started = time.monotonic()
    for step in range(1, steps + 1):
        examples = [draw_example(tokenizer, rng) for _ in range(batch_size)]
        if parts > 1:
            examples.sort(key=lambda example: sum(map(len, example)))
        for part in range(parts):
            batch = pad_batch(examples[part * batch_size // parts : (part + 1) * batch_size // parts])
            loss = model(**batch).loss / parts
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps:
            print(
                f"step {step}/{steps}  loss {loss.item() * parts:.3f}  {time.monotonic() - started:.0f} s", flush=True
            )


def save_policy(model: Any, tokenizer: Any, folder: Path, made_by: str) -> None:
    """Write the model in float16 and the tokenizer into `folder`, so that equal weights give equal files."""
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = folder / "model.safetensors"
    data = save(load_file(weights), {"format": "pt", "made_by": made_by})
    size = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))  # safetensors writes them in any order
    weights.write_bytes(data[:8] + json.dumps(header, separators=(",", ":")).encode().ljust(size - 8) + data[size:])
    config = published_config(json.loads((folder / "config.json").read_text()))
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else tiny.FOLDER
    make_policy(target)
    print(f"{target} is written. sha256 {hash_of(target / 'model.safetensors')}")
