"""The private names of TRL and transformers that the kit uses still exist, and only one folder uses them."""

import inspect
import re
import warnings
from pathlib import Path

import pytest
import transformers
import trl
from trl import chat_template_utils

from grpo_kit import training
from grpo_kit.policy import tool_calls
from grpo_kit.training.trl_internals import versions


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
    assert {"trl": trl.__version__, "transformers": transformers.__version__} == versions.VERSIONS


def test_an_unsupported_version_is_named_with_the_remedy(monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        versions.check_versions()
    monkeypatch.setitem(versions.VERSIONS, "trl", "0.1.0")
    with pytest.warns(UserWarning, match=r"trl is 1\.16\.0; .* pip install trl==0\.1\.0"):
        versions.check_versions()


def test_no_other_file_touches_a_private_name_of_trl_or_transformers():
    names = "|".join(
        ["_metrics", "_n_gpu", "_TRITON_AVAILABLE", "_generate_and_score_completions", "_calculate_rewards",
         "_get_per_token_logps_and_entropies", "_save_checkpoint", "_load_from_checkpoint", "_save_rng_state",
         "_save_scaler", "_save_optimizer_and_scheduler", "_generate_single_turn", "_tool_call_loop",
         "_get_tool_suffix_ids"]
    )  # fmt: skip
    folder = Path(training.__file__).parent
    users = {
        path.relative_to(folder).parts[0]
        for path in folder.rglob("*.py")
        if re.search(rf"\b({names})\b", path.read_text())
    }
    assert users == {"trl_internals"}
