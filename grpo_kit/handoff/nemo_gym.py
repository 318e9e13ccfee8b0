"""The run for NeMo-Gym's servers: rows, manifest, and an overlay on the run's own overlay for NeMo-RL.

The overlay goes to `examples/nemo_gym/run_grpo_nemo_gym.py`. NVIDIA's Gym configuration for the 30B is not its parent:
that one trains all weights with Megatron on 32 nodes. The manifest is for Nemotron's `steps`, which read it by
`data.manifest_path`.
"""

from typing import Any

from grpo_kit.config import MATH
from grpo_kit.data.splits import AGENT
from grpo_kit.environments.gym_rows import write_gym_row
from grpo_kit.environments.task import COLUMNS, Task
from grpo_kit.handoff.bundle import Bundle, chat_turns, reference_answer
from grpo_kit.rewards.tools.routing import environment_of
from grpo_kit.runs.reading import read_json

MODEL_SERVER = "responses_api_models/vllm_model/configs/vllm_model_for_training.yaml"
SERVERS = {  # by environment; each judges the rows whose agent_ref names its agent
    MATH: "resources_servers/math_with_judge/configs/math_with_judge.yaml",
    "structured": "resources_servers/structured_outputs/configs/structured_outputs_json.yaml",
    "instructions": "resources_servers/instruction_following/configs/instruction_following.yaml",
    "documents": "resources_servers/hotpotqa_qa/configs/hotpotqa_qa.yaml",
    "code": "resources_servers/code_gen/configs/code_gen.yaml",
}
JUDGE = {"judge_model_server": {"name": "policy_model"}, "should_use_judge": False}  # math-verify alone decides


def make_gym_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row for the server of its environment; for math: conversation, question, reference answer as text, agent."""
    if (environment := environment_of(row)) != MATH:
        columns = {name: row.get(name) for name in COLUMNS[environment]}
        return write_gym_row(Task(chat_turns(row), columns), environment, row["id"])
    return {
        "id": row["id"],
        "question": str(row["question"]),
        "expected_answer": reference_answer(row),
        "responses_create_params": {"input": chat_turns(row)},
        "agent_ref": AGENT,
    }


def make_manifest(bundle: Bundle) -> dict[str, Any]:
    """The six keys of NVIDIA's data preparation with absolute paths; a split without rows is empty text."""
    own = read_json(bundle.run.manifest)
    paths = {split: str(bundle.out / split / "data.jsonl") if rows else "" for split, rows in bundle.rows.items()}
    return paths | {"mode": "resolve", "source_splits": own["source_splits"], "run_hash": own["run_hash"]}


def make_overlay(bundle: Bundle, above: str) -> dict[str, Any]:
    """What Gym needs besides the run's overlay for NeMo-RL.

    Args:
        bundle: the run.
        above: file name of that overlay, in the same folder.
    """
    environments = bundle.run.environments()
    rows, measured = bundle.rows["val"], bool(bundle.rows["val"] and bundle.config.grpo.eval_steps)
    train, val = (f"{bundle.out}/{split}/data.jsonl" for split in ("train", "val"))
    engine = {"async_engine": True, "expose_http_server": True}
    if any(bundle.prompts_open_thinking("train")):
        # The reply begins inside the thinking; this parser needs no <think> at its beginning.
        engine["http_server_serving_chat_kwargs"] = {"reasoning_parser": "deepseek_r1"}
    return {
        "defaults": above,
        "grpo": {"max_val_samples": None, "val_batch_size": None},  # Gym takes the whole file
        "checkpointing": {"metric_name": "val:total_reward/mean" if measured else None},
        "policy": {"generation": {"top_k": None, "vllm_cfg": engine}},  # Gym's requests have no top_k
        "data": {
            "_override_": True,
            "max_input_seq_length": None,
            "shuffle": not bundle.keeps_order,
            "num_workers": 1,
            "use_multiple_dataloader": False,
            "train": {"data_path": train},
            "validation": {"data_path": val} if rows else None,
            "default": {
                "dataset_name": "NemoGymDataset",
                "env_name": "nemo_gym",
                "prompt_file": None,
                "system_prompt_file": None,
                "processor": "nemo_gym_data_processor",
            },
        },
        "env": {
            "_override_": True,
            "should_use_nemo_gym": True,
            "nemo_gym": {
                "config_paths": [MODEL_SERVER, *(SERVERS[name] for name in environments)],
            }
            | ({"math_with_judge": {"resources_servers": {"math_with_judge": JUDGE}}} if MATH in environments else {}),
        },
    }
