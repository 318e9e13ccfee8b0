"""The private names of TRL and transformers that the kit uses still exist and behave as expected."""

import inspect
import logging
import math
import re
import types
import warnings
from pathlib import Path

import datasets
import pytest
import torch
import transformers
import trl
from transformers import TrainerState
from trl import chat_template_utils

from grpo_kit import config
from grpo_kit.data.preparation import prepare
from grpo_kit.nemotron.decoding.linear import own_forward
from grpo_kit.planning import memory
from grpo_kit.policy import tool_calls
from grpo_kit.policy.chat import (
    THINKING_SWITCH,
    build_messages,
    render_prompt,
    template_conversations,
    template_opens_thinking,
)
from grpo_kit.policy.load import load_policy, load_tokenizer
from grpo_kit.rewards.math_answer import math_reward
from grpo_kit.runs.run import find_run
from grpo_kit.training import train, trl_internals
from grpo_kit.training.trl_settings import make_trl_config
from tests.helpers.settings import SMALL


def length_reward(completions, **kwargs):
    return [float(len(c[0]["content"])) for c in completions]


def small(tmp_path, *overrides):
    chosen = config.load_config(["tiny"], [*SMALL, "grpo.max_steps=2", *overrides])
    run = find_run("r", tmp_path / "runs")
    prepare(chosen, run)
    return chosen, run


@pytest.mark.slow
def test_the_overridden_methods_are_still_called_by_those_names():
    grpo = inspect.getsource(trl.GRPOTrainer)
    for call in (
        "self._generate_and_score_completions(generation_batch)",
        "self._calculate_rewards(inputs, prompts, completions, completion_ids_list)",
        "per_token_logps, entropies, aux_loss = self._get_per_token_logps_and_entropies(",
        ") = self._tool_call_loop(\n                prompts, prompt_ids, completion_ids, completions, ",
        "suffix_ids = self._get_tool_suffix_ids(tool_messages)",
        "completion_ids, logprobs = self._generate_single_turn(",
        "post_tool_ids, post_tool_logprobs = self._generate_single_turn(",
        "while idxs_with_tool and iteration_num < self.max_tool_calling_iterations:",
        "return tool_mask, completions, completion_ids, logprobs, tool_call_count, tool_failure_count, tool_images",
        "is_truncated = torch.tensor([ids[-1] not in eos_and_pad for ids in completion_ids], device=device)",
        "self.environments.append(pool[index])",
        """elif not member_name.startswith("_"):""",  # what is a tool
    ):
        assert call in grpo
    # TRL reads replies by the tokenizer's own method, which `tool_calls.install` replaces.
    assert "tokenizer.parse_response(ids, prefix=prefix, tools=tools)" in inspect.getsource(chat_template_utils)
    assert chat_template_utils.nemotron_3_template == tool_calls.RESPONSE_TEMPLATE
    trainer = inspect.getsource(transformers.Trainer)
    for call in (
        "self._save_checkpoint(model, trial)\n            self.control = self.callback_handler.on_save(",
        "self._load_from_checkpoint(resume_from_checkpoint",
        "self._save_rng_state(",
        "self._save_scaler(",
        "self._save_optimizer_and_scheduler(",
    ):
        assert call in trainer
    # The versions these names were read in.
    assert {"trl": trl.__version__, "transformers": transformers.__version__} == trl_internals.VERSIONS


@pytest.fixture
def tokenizer():
    """The embedded policy's with Nemotron's chat template, which takes tools."""
    tokenizer = load_tokenizer(config.Policy())
    tokenizer.chat_template = chat_template_utils.nemotron_3_nano_chat_template
    return tokenizer


def thinking_rows(*settings):
    return [{"prompt": build_messages("6*7?"), "answer": "42", "enable_thinking": setting} for setting in settings]


def test_replies_are_read_where_the_switch_hides_the_template_from_trl(tokenizer):
    template_conversations(tokenizer, thinking_rows(False), True)
    with pytest.raises(ValueError, match="Unrecognized chat template"):
        chat_template_utils.add_response_schema(tokenizer)
    extended = tokenizer.chat_template
    trl_internals.set_response_template(tokenizer)
    assert tokenizer.response_template == chat_template_utils.nemotron_3_template
    assert tokenizer.chat_template == extended and THINKING_SWITCH in extended
    assert chat_template_utils.is_chat_template_prefix_preserving(tokenizer)


def test_lightnings_template_has_the_same_switch_and_reads_replies_alike(tokenizer):
    tokenizer.chat_template = chat_template_utils.nemotron_3_5_lightning_chat_template
    texts = [render_prompt(tokenizer, build_messages("6*7?"), thinking) for thinking in (True, False)]
    assert [text.rpartition("assistant\n")[2] for text in texts] == ["<think>\n", "<think></think>"]
    assert [template_opens_thinking(tokenizer, thinking) for thinking in (True, False)] == [True, False]
    rows = template_conversations(tokenizer, thinking_rows(False, True), True)
    assert [render_prompt(tokenizer, turns, True).endswith("<think></think>") for turns in rows] == [True, False]
    trl_internals.set_response_template(tokenizer)
    assert tokenizer.response_template == chat_template_utils.nemotron_3_template
    assert chat_template_utils.is_chat_template_prefix_preserving(tokenizer)


def test_the_response_template_follows_the_chat_template(tokenizer):
    cases = [
        (load_tokenizer(config.Policy()).chat_template, chat_template_utils.nemotron_3_template),  # the embedded one
        (chat_template_utils.qwen3_chat_template, chat_template_utils.qwen3_template),
        (THINKING_SWITCH + chat_template_utils.qwen3_chat_template, chat_template_utils.qwen3_template),
    ]
    for tokenizer.chat_template, expected in cases:
        tokenizer.response_template = None
        trl_internals.set_response_template(tokenizer)
        assert tokenizer.response_template == expected
    tokenizer.response_template = own = {"fields": {}}
    trl_internals.set_response_template(tokenizer)
    assert tokenizer.response_template is own
    tokenizer.response_template, tokenizer.chat_template = None, "{{ messages[0].content }}"
    with pytest.raises(ValueError, match=r"does not know how to read tool calls.*Set tokenizer\.response_template"):
        trl_internals.set_response_template(tokenizer)


def add(a: int, b: int) -> str:
    """Add two numbers.

    Args:
        a: the first.
        b: the second.
    """
    return str(a + b)


CALL = (
    "<tool_call>\n<function=add>\n<parameter=a>\n40\n</parameter>\n<parameter=b>\n2\n</parameter>\n"
    "</function>\n</tool_call>"
)


@pytest.mark.slow
def test_rows_with_tools_keep_their_own_thinking_and_are_paid(tokenizer, tmp_path):
    """Rows with thinking on, off, and as the run says; each calls a tool, is told 42, and answers 42."""
    rows = thinking_rows(True, False, None)
    conversations = template_conversations(tokenizer, rows, True)
    columns = [
        {"prompt": turns, "answer": "42", "prompt_opened_think": i != 1} for i, turns in enumerate(conversations)
    ]
    model, _ = load_policy(config.Policy())
    seen = []

    def watching_reward(completions, **batch):
        seen.append(completions)
        return math_reward(completions, **batch)

    args = trl.GRPOConfig(
        str(tmp_path), max_steps=1, num_generations=2, per_device_train_batch_size=6, max_completion_length=400,
        bf16=False, use_cpu=True, report_to="none", save_strategy="no", chat_template_kwargs={"enable_thinking": True},
    )  # fmt: skip
    trainer = trl_internals.OpenGRPOTrainer(
        model=model, reward_funcs=[watching_reward], args=args, train_dataset=datasets.Dataset.from_list(columns),
        processing_class=tokenizer, tools=[add],
    )  # fmt: skip
    prompts = []

    def generate(prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        texts = [tokenizer.decode(ids) for ids in prompt_ids]
        prompts.append(texts)
        thoughts = ["I add.\n</think>\n" if text.endswith("<think>\n") else "" for text in texts]
        answers = [r"\boxed{42}" if "<tool_response>" in text else CALL for text in texts]
        replies = [f"{thought}{answer}<|im_end|>" for thought, answer in zip(thoughts, answers, strict=True)]
        return [tokenizer.encode(reply, add_special_tokens=False) for reply in replies], None

    trainer._generate_single_turn = generate
    batch = trainer.sample_batch([row for row in columns for _ in range(2)])
    first, second = prompts
    for texts in (first, second):
        assert [text.endswith("<think></think>") for text in texts] == [False, False, True, True, False, False]
    assert all("<tool_response>\n42\n</tool_response>" in text for text in second)
    assert [[turn["role"] for turn in turns] for turns in seen[0]] == [["assistant", "tool", "assistant"]] * 6
    assert trainer.reward_table.flatten().tolist() == [1.0] * 6 and len(batch["advantages"]) == 6


@pytest.mark.parametrize("name", ["embedded", "nemotron_3_nano", "nemotron_3_5_lightning"])
def test_results_stand_between_two_turns_as_trl_puts_them_there(name):
    """Training takes TRL's tokens, evaluation the kit's."""
    tokenizer = load_tokenizer(config.Policy())
    if name != "embedded":
        tokenizer.chat_template = getattr(chat_template_utils, f"{name}_chat_template")
    results = [{"role": "tool", "name": "add", "content": text} for text in ("42", "é <b>")]
    for thinking in (True, False):
        trainer = types.SimpleNamespace(
            processing_class=tokenizer, _tokenizer=tokenizer, chat_template=None, _is_vlm=False,
            chat_template_kwargs={"enable_thinking": thinking},
        )  # fmt: skip
        theirs = trl.GRPOTrainer._get_tool_suffix_ids(trainer, results)
        assert tool_calls.encode_results(tokenizer, results, thinking) == theirs


def test_vllm_samples_turns_as_trl_lets_it(monkeypatch):
    """With vLLM a trainer of TRL has no `generation_config`."""
    monkeypatch.setattr(trl.GRPOTrainer, "_generate_single_turn", lambda self, ids, *more: (ids, more))
    trainer = object.__new__(trl_internals.OpenGRPOTrainer)
    trainer.use_vllm = True
    assert trainer._generate_single_turn([[1, 2]], None, {}, 4) == ([[1, 2]], (None, {}, 4))


def test_an_unsupported_version_is_named_with_the_remedy(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trl_internals.check_versions()
    monkeypatch.setitem(trl_internals.VERSIONS, "trl", "0.1.0")
    with pytest.warns(UserWarning, match=r"trl is 1\.16\.0; .* pip install trl==0\.1\.0"):
        trl_internals.check_versions()


def test_no_other_file_touches_a_private_name_of_trl_or_transformers():
    names = "|".join(
        ["_metrics", "_n_gpu", "_TRITON_AVAILABLE", "_generate_and_score_completions", "_calculate_rewards",
         "_get_per_token_logps_and_entropies", "_save_checkpoint", "_load_from_checkpoint", "_save_rng_state",
         "_save_scaler", "_save_optimizer_and_scheduler", "_generate_single_turn", "_tool_call_loop",
         "_get_tool_suffix_ids"]
    )  # fmt: skip
    users = {
        path.name
        for path in Path(train.__file__).parent.rglob("*.py")
        if re.search(rf"\b({names})\b", path.read_text())
    }
    assert users == {"trl_internals.py"}


def test_trl_still_keeps_its_log_under_the_name_that_we_clear(tmp_path):
    chosen, run = small(tmp_path)
    trainer = train.make_trainer(chosen, run, [length_reward] * 2)
    trainer.figures["ours"].append(0.5)
    trainer.log({"loss": 1.0})
    assert trainer.figures == {} and trainer.state.log_history[-1]["ours"] == 0.5


@pytest.fixture
def log_probs(monkeypatch):
    """TRL's module of log-probs, restored afterwards."""
    from trl.kernels import chunked_logprob

    for name in ("TOKEN_CHUNK_SIZE", "_TRITON_AVAILABLE"):  # a name that has moved fails here
        monkeypatch.setattr(chunked_logprob, name, getattr(chunked_logprob, name))
    return chunked_logprob


# what CUDA answers (None: no GPU), whether TRL has Triton, then: whether it may use it, and its tile's tokens
@pytest.mark.parametrize(
    ("capability", "has_triton", "uses_triton", "tokens"),
    [
        ((7, 5), True, False, 512),  # a T4: installed, but not for it
        ((7, 5), False, False, 512),
        ((8, 0), True, True, 4096),  # an A100: TRL as it is
        ((9, 0), False, False, 512),  # a GPU without Triton installed holds the float32 copies, too
        (None, True, True, 512),  # on a CPU TRL does not use it anyway
    ],
)
def test_log_probs_are_computed_in_the_dtype_of_the_machine(
    monkeypatch, log_probs, capability, has_triton, uses_triton, tokens
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    log_probs.TOKEN_CHUNK_SIZE, log_probs._TRITON_AVAILABLE = 4096, has_triton
    trl_internals.fit_log_probs()
    assert {"triton": uses_triton, "tokens": tokens} == {
        "triton": log_probs._TRITON_AVAILABLE,
        "tokens": log_probs.TOKEN_CHUNK_SIZE,
    }
    assert log_probs._use_triton(torch.device("cuda")) == uses_triton  # the one place that TRL asks


@pytest.mark.parametrize("tile", [1, 7, 64, 512])
def test_log_probs_and_gradients_are_the_same_in_smaller_tiles(log_probs, tile):
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(200, 32, generator=generator), torch.randn(300, 32, generator=generator)
    targets, results = torch.randint(300, (200,), generator=generator), []
    for tokens in (4096, tile):
        log_probs.TOKEN_CHUNK_SIZE, x = tokens, hidden.clone().requires_grad_()
        logps, entropy, *_ = log_probs.ChunkedLogProbFunction.apply(
            x, head, None, targets, 0.7, 128, None, 1.0, ("entropy",)
        )
        (logps * torch.arange(200)).sum().backward()
        results.append((logps.detach(), entropy.detach(), x.grad))
    for large, tiled in zip(*results):
        assert (large - tiled).abs().max() <= 1e-5 * large.abs().max()


@pytest.mark.slow
def test_training_sets_the_tile(tmp_path, log_probs):
    log_probs.TOKEN_CHUNK_SIZE = 4096
    chosen, run = small(tmp_path)
    train.make_trainer(chosen, run, [length_reward] * 2)
    assert log_probs.TOKEN_CHUNK_SIZE == memory.TILE_TOKENS


def test_a_second_gpu_does_not_double_the_batch(tmp_path, monkeypatch):
    chosen = config.load_config(["t4x2"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    from transformers import TrainingArguments

    theirs = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=2, report_to="none")
    theirs._n_gpu = torch.cuda.device_count()  # as transformers sets it where there are GPUs
    assert theirs.train_batch_size == 4
    args = make_trl_config(chosen, tmp_path)
    assert args.train_batch_size == 2 and args.n_gpu <= 1


def test_the_state_of_a_checkpoint_is_json_also_after_a_step_without_a_finite_gradient(tmp_path, monkeypatch):
    trainer = types.SimpleNamespace(
        state=TrainerState(global_step=2, log_history=[{"step": 2, "grad_norm": math.nan, "loss": math.inf}]),
        accelerator=types.SimpleNamespace(unwrap_model=lambda model: model), model=None, save_extra=lambda folder: None,
        **{f"_save_{name}": lambda folder: None for name in ("optimizer_and_scheduler", "scaler", "rng_state")},
    )  # fmt: skip
    monkeypatch.setattr(trl_internals.lora, "save_adapter", lambda *_: None)
    trl_internals.ResumableTrainer.write_checkpoint(trainer, tmp_path, "base")
    text = (tmp_path / "trainer_state.json").read_text()
    assert '"loss": null' in text and "NaN" not in text and "Infinity" not in text
    assert TrainerState.load_from_json(tmp_path / "trainer_state.json").global_step == 2


def test_the_decoder_is_told_that_the_fused_head_leaves_sampling_as_it_is():
    model, _ = load_policy(config.Policy())
    trl.trainer.utils.add_fused_lm_head(model)
    assert own_forward(model) is not None
    trl_internals.leave_sampling(model)
    assert own_forward(model) is None
    trl_internals.leave_sampling(torch.nn.Linear(1, 1))  # a model without the head


def test_trl_does_not_print_a_whole_row_where_nothing_is_judged():
    logger = logging.getLogger("trl.trainer.grpo_trainer")
    for text, is_shown in (
        ("[RANK 0] All reward functions returned None for the following kwargs:", False),
        ("x", True),
    ):
        assert bool(logger.filter(logging.makeLogRecord({"msg": text}))) is is_shown
