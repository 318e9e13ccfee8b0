"""The embedded policy: a Nemotron-H in miniature that learns to think on a laptop.

It has every part of Nemotron-3-Nano (Mamba-2, attention, routed experts with a shared one, untied head, the
chat template that opens `<think>` in the prompt) in half a million parameters, reads bytes instead of words, and
knows one thing: sums and differences of two-digit numbers. It was taught a mixture on purpose. In about two
answers of five it works the digits out, in the others it says "looks like" and a number near the truth. GRPO has
something real to find: working pays, guessing does not.

What differs from the real model: bytes for tokens (so any text encodes), 8 experts with 2 active in place of 128
and 6, 4 layers in place of 52. Made again from nothing, seeded, in a few minutes on two cores, by

    python -m grpo_kit.nemotron.tiny [FOLDER]
"""

import hashlib
import json
import math
import random
import sys
import time
from pathlib import Path
from typing import NamedTuple

from grpo_kit.nemotron.patches import fix_time_step_limit

FOLDER = Path(__file__).with_name("tiny_policy")

# The ids of Nemotron's tokenizer, so that code which relies on them can be tried here. `<think>` and `</think>` are
# ordinary tokens, not "special" ones: a decoder that skips special tokens would hide them from every reward.
SPECIAL = {0: "<unk>", 1: "<s>", 2: "</s>", 10: "<|im_start|>", 11: "<|im_end|>"}
THINK = {12: "<think>", 13: "</think>"}
FIRST_BYTE = 16
VOCAB_SIZE = FIRST_BYTE + 256

# Nemotron's rules: a system turn always stands first, be it empty; the generation prompt opens `<think>` (and closes
# it at once when thinking is off); an assistant turn that shows no thinking gets an empty pair of tags.
CHAT_TEMPLATE = """\
{%- set thinking = enable_thinking if enable_thinking is defined else true -%}
{%- set has_system = messages and messages[0]['role'] == 'system' -%}
<|im_start|>system
{{ messages[0]['content'] if has_system else '' }}<|im_end|>
{% for message in (messages[1:] if has_system else messages) -%}
{%- set bare = message['role'] == 'assistant' and '<think>' not in message['content']
    and '</think>' not in message['content'] -%}
<|im_start|>{{ message['role'] }}
{{ '<think></think>' if bare else '' }}{{ message['content'] }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{{ '<think>\\n' if thinking else '<think></think>' }}
{%- endif -%}
"""

WARM_UP = {"seed": 3407, "steps": 1200, "batch": 96, "learning_rate": 3e-3, "works_it_out": 0.40}


class Problem(NamedTuple):
    """One sum or difference: `left` and `right` in 10..99, `sign` "+" or "-", never a negative result."""

    left: int
    sign: str
    right: int

    @property
    def question(self) -> str:
        return f"What is {self.left} {self.sign} {self.right}?"

    @property
    def answer(self) -> int:
        return self.left + self.right if self.sign == "+" else self.left - self.right


def problem(rng: random.Random) -> Problem:
    """Draw a problem; differences are turned round so that the result is 0 or more."""
    left, sign, right = rng.randint(10, 99), rng.choice("+-"), rng.randint(10, 99)
    return Problem(max(left, right), sign, min(left, right)) if sign == "-" else Problem(left, sign, right)


def rows(count: int, seed: int) -> list[dict[str, str]]:
    """`count` distinct problems as `{"prompt", "answer"}`, the same for the same seed; at most 12,195 exist.

    Raises ValueError when more are asked for than there are (8,100 sums, 4,095 ordered differences).
    """
    if not 1 <= count <= 12_195:
        raise ValueError(
            f"{count} rows of tiny sums were asked for; between 1 and 12195 distinct ones exist. Set data.limit so."
        )
    rng, found = random.Random(f"sums {seed}"), {}
    while len(found) < count:
        drawn = problem(rng)
        found[drawn.question] = {"prompt": drawn.question, "answer": str(drawn.answer)}
    return list(found.values())


def working(drawn: Problem) -> str:
    """Digit by digit, ones first, carry or borrow written out: `7+8=15 4+3+1=8`."""
    (tens, ones), (right_tens, right_ones) = divmod(drawn.left, 10), divmod(drawn.right, 10)
    if drawn.sign == "+":
        carry = (ones + right_ones) // 10
        above = f"{tens}+{right_tens}" + ("+1" if carry else "")
        return f"{ones}+{right_ones}={ones + right_ones} {above}={tens + right_tens + carry}"
    borrow = int(ones < right_ones)
    ones += 10 * borrow
    above = f"{tens}-{right_tens}" + ("-1" if borrow else "")
    return f"{ones}-{right_ones}={ones - right_ones} {above}={tens - right_tens - borrow}"


def reply(drawn: Problem, rng: random.Random, works_it_out: float, thinking: bool = True) -> str:
    """What the teacher says: the working with probability `works_it_out`, else a guess that is off by a slip."""
    if thinking and rng.random() < works_it_out:
        return f"{working(drawn)}\n</think>\n\\boxed{{{drawn.answer}}}"
    slip = rng.choice([-20, -12, -11, -10, -9, -8, -2, -1, 0, 1, 2, 8, 9, 10, 11, 12, 20])
    guess = max(0, drawn.answer + slip)
    return f"looks like {guess}\n</think>\n\\boxed{{{guess}}}" if thinking else f"\\boxed{{{guess}}}"


def build_tokenizer():
    """A byte-level tokenizer (272 ids) with Nemotron's special tokens, their ids and its chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = {i: f"<SPECIAL_{i}>" for i in range(FIRST_BYTE)} | SPECIAL | THINK
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {name: i for i, name in names.items()} | {c: FIRST_BYTE + i for i, c in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token=SPECIAL[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    ordinary = set(THINK.values())
    for i in range(FIRST_BYTE):
        tokenizer.add_tokens([AddedToken(names[i], special=names[i] not in ordinary, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|im_end|>", unk_token="<unk>", pad_token="<unk>",
        padding_side="left", clean_up_tokenization_spaces=False, chat_template=CHAT_TEMPLATE,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def build_model():
    """A freshly drawn `NemotronHForCausalLM` of 0.52 M parameters, fp32: Mamba, MoE, attention, MoE.

    Rows are multiples of 64 long, as the real model's are: bitsandbytes 0.50 on a CPU dequantises others wrongly.
    """
    from transformers import NemotronHConfig, NemotronHForCausalLM

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


def script_hash() -> str:
    """sha256 of this file, kept in the weights' header: weights and script belong together."""
    return hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def make(folder: Path = FOLDER, steps: int = WARM_UP["steps"]) -> None:
    """Teach the mixture to a fresh model and save model and tokenizer (fp16, about 1 MB) into `folder`."""
    import torch
    from safetensors.torch import load_file, save_file

    torch.manual_seed(WARM_UP["seed"])
    rng = random.Random(WARM_UP["seed"])
    tokenizer, model = build_tokenizer(), build_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=WARM_UP["learning_rate"], betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / 50) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
    )
    started = time.monotonic()
    for step in range(1, steps + 1):
        batch = [_example(tokenizer, rng) for _ in range(WARM_UP["batch"])]
        longest = max(len(prompt) + len(said) for prompt, said in batch)
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        labels = torch.full_like(ids, -100)
        mask = torch.zeros_like(ids)
        for i, (prompt, said) in enumerate(batch):
            end = len(prompt) + len(said)
            ids[i, :end] = torch.tensor(prompt + said)
            labels[i, len(prompt) : end] = torch.tensor(said)
            mask[i, :end] = 1
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if step % 50 == 0 or step == steps:
            print(f"warm-up {step}/{steps}  loss {loss.item():.3f}  {time.monotonic() - started:.0f} s", flush=True)

    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    weights = folder / "model.safetensors"
    header = {"format": "pt", "made_by": "python -m grpo_kit.nemotron.tiny", "script_sha256": script_hash()}
    save_file(load_file(weights), weights, metadata=header)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _example(tokenizer, rng: random.Random) -> tuple[list[int], list[int]]:
    """Token ids of one prompt and of the teacher's reply; one prompt in 16 asks for no thinking."""
    drawn, thinking = problem(rng), rng.random() >= 1 / 16
    messages = [{"role": "user", "content": drawn.question}]
    prompt = tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, enable_thinking=thinking, tokenize=False
    )
    said = reply(drawn, rng, WARM_UP["works_it_out"], thinking) + "<|im_end|>"
    return tokenizer.encode(prompt, add_special_tokens=False), tokenizer.encode(said, add_special_tokens=False)


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER)
