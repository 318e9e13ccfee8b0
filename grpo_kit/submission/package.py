"""The adapter as `submission.zip`: the two files that the challenge's scorer loads, and nothing else.

What is in a zip, whoever packed it, `inspection` and `outputs` say.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from grpo_kit.config import RunConfig, to_yaml
from grpo_kit.runs.run import Run

MEMBERS = ("adapter_config.json", "adapter_model.safetensors")


def package_adapter(
    config: RunConfig, run: Run, out: Path | None = None, adapters: Sequence[Path] = (), base: str | None = None,
    dtype: str | None = None, ranks: str = "pad", stacked: str = "auto", say: Callable[[str], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:  # fmt: skip
    """Write the run's adapter as a zip with exactly the two files the scorer reads, at its root; returns its path.

    adapters: folders from elsewhere in place of the run's own; several are stacked into one that does what all do together.
    base: the name of the model it goes on; None: the policy's, or of a foreign adapter the one it was trained on.
    dtype: float32, float16 or bfloat16; None keeps what is there. ranks: several ranks are padded to one (`pad`) or declared
    in rank_pattern (`pattern`). stacked: see `adapter_forms.read`. say: told what was converted, and what it lost.
    progress: told (done, total) modules.

    The same adapter gives the same bytes. Raises FileNotFoundError when the run is not trained or a folder is missing,
    ValueError for an adapter the scorer cannot load in any form.
    """
    from grpo_kit.policy.load import base_name
    from grpo_kit.submission.packing import pack

    started, out, folders = time.monotonic(), out or run.submission, [Path(folder) for folder in adapters]
    how = {"dtype": dtype, "ranks": ranks, "stacked": stacked}
    if folders:
        notes = pack(folders, base, out, **how, progress=progress)
    else:
        run.require_stage("train", "grpo-kit train")
        there = out.absolute().as_posix() in run.stages().get("package", {}).get("wrote", {})
        if there and run.is_done("package", how, [run.adapter], config.run.force, derived=True):
            return out
        notes = pack([run.adapter], base or base_name(config.policy), out, **how, progress=progress)
        run.record_stage("package", how, [run.adapter], [out], time.monotonic() - started, to_yaml(config))
    for note in notes if say else ():
        say(note)
    return out
