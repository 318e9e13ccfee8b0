"""grpo-kit trains Nemotron-3-Nano-30B-A3B with GRPO on one GPU, and a tiny model of the same architecture on a laptop.

The public names; `help(grpo_kit.train)` and the like describe one of them:

    open_run      Open a run, a new one or one that exists; returns its configuration and the run.
    load_config   Load a configuration from presets, YAML files and settings.
    plan          Say whether a run fits a machine, before anything is downloaded.
    load_reward   Load a reward function from its file.
    audit_reward  Report what a reward pays for labelled cases.
    prepare_data  Write the run's training, validation and test problems.
    screen        Keep the training problems of medium difficulty.
    load_policy   Load the model without an adapter, and its tokenizer.
    measure       Measure the accuracy before or after training.
    sft           Train a LoRA adapter on texts first, such as the solvers' traces of puzzles.
    train         Train a LoRA adapter with GRPO.
    prefer        Train it further on pairs of its own completions (DPO).
    Board         The live board of a run in a notebook.
    compare       Compare the accuracies before and after training.
    tune          Search for the settings that learn best, by short trainings.
    package       Write the adapter as submission.zip.
    check         Check a zip, its files and its outputs.
    submit        Submit a zip once and wait for its score.

Each is loaded when it is first used, so `import grpo_kit` is quick and does not load torch. The whole chain, small
enough for half a minute on two processor cores:

```python
from grpo_kit import check, compare, measure, open_run, package, prepare_data, train

config, run = open_run("tiny", ["data.test_size=60", "grpo.max_steps=5"], name="first")
prepare_data(config, run, config.evaluation.verifier)
measure(config, run, "before")
train(config, run, config.grpo.reward_funcs)
measure(config, run, "after")
print(compare(run)["words"])
zip_path = package(config, run)
print([finding.what for finding in check(zip_path, config.policy, run.result.probe)])
```

The command line (`grpo-kit --help`) and the notebooks call the same functions. Rewards are files to copy; they lie in
`grpo_kit/rewards/`.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
__all__ = [
    "Board", "audit_reward", "check", "compare", "load_config", "load_policy", "load_reward", "measure", "open_run",
    "package", "plan", "prefer", "prepare_data", "screen", "sft", "submit", "train", "tune",
]  # fmt: skip

if TYPE_CHECKING:  # for editors and type checkers; at run time `__getattr__` imports one name at a time
    from grpo_kit.config import load_config
    from grpo_kit.data.preparation import prepare as prepare_data
    from grpo_kit.display.board import Board
    from grpo_kit.evaluation.compare import compare
    from grpo_kit.evaluation.evaluate import measure
    from grpo_kit.evaluation.screening import screen
    from grpo_kit.kaggle.submit import submit
    from grpo_kit.planning.plan import plan
    from grpo_kit.policy.load import load_policy
    from grpo_kit.rewards.tools.audit import audit_reward
    from grpo_kit.rewards.tools.loading import load_reward
    from grpo_kit.runs.session import open_run
    from grpo_kit.submission.output_check import check_submission as check
    from grpo_kit.submission.package import package_adapter as package
    from grpo_kit.training.preferences.prefer import prefer
    from grpo_kit.training.sft.sft import sft
    from grpo_kit.training.train import train
    from grpo_kit.tuning.tune import tune

# Public name: the module that defines it, and its name there.
_HOMES = {
    "Board": ("grpo_kit.display.board", "Board"),
    "audit_reward": ("grpo_kit.rewards.tools.audit", "audit_reward"),
    "check": ("grpo_kit.submission.output_check", "check_submission"),
    "compare": ("grpo_kit.evaluation.compare", "compare"),
    "load_config": ("grpo_kit.config", "load_config"),
    "load_policy": ("grpo_kit.policy.load", "load_policy"),
    "load_reward": ("grpo_kit.rewards.tools.loading", "load_reward"),
    "measure": ("grpo_kit.evaluation.evaluate", "measure"),
    "open_run": ("grpo_kit.runs.session", "open_run"),
    "package": ("grpo_kit.submission.package", "package_adapter"),
    "plan": ("grpo_kit.planning.plan", "plan"),
    "prefer": ("grpo_kit.training.preferences.prefer", "prefer"),
    "prepare_data": ("grpo_kit.data.preparation", "prepare"),
    "screen": ("grpo_kit.evaluation.screening", "screen"),
    "sft": ("grpo_kit.training.sft.sft", "sft"),
    "submit": ("grpo_kit.kaggle.submit", "submit"),
    "train": ("grpo_kit.training.train", "train"),
    "tune": ("grpo_kit.tuning.tune", "tune"),
}

# Memory that is reserved on a GPU can then grow in place, and less of it lies idle in pieces. PyTorch reads the setting
# when it is imported or first uses a GPU; all of the kit comes after this line. A value that the user has set stays.
if not {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"} & os.environ.keys():
    os.environ["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name)
    module, attribute = _HOMES[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
