"""The adapter as `submission.zip`: the two files that the challenge's scorer loads, and nothing else.

What is in a zip, whoever packed it, `inspection` and `outputs` say.
"""

import json
import shutil
import time
import zipfile
from pathlib import Path

from grpo_kit import workspace
from grpo_kit.config import RunConfig, to_yaml

MEMBERS = ("adapter_config.json", "adapter_model.safetensors")


def package(config: RunConfig, run: workspace.Run, out: Path | None = None) -> Path:
    """Write the run's adapter as a zip with exactly the two files the scorer reads, at its root; returns its path.

    The same adapter gives the same bytes. Raises FileNotFoundError when the run is not trained.
    """
    from grpo_kit.policy import base_name

    run.need("train", "grpo-kit train")
    started, out = time.monotonic(), out or run.submission
    there = out.absolute().as_posix() in run.stages().get("package", {}).get("wrote", {})
    if there and run.is_done("package", {}, [run.adapter], config.run.force, derived=True):
        return out
    adapter = json.loads((run.adapter / MEMBERS[0]).read_text())
    adapter["base_model_name_or_path"] = base_name(config.policy)
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = out.with_name(f".{out.name}.partial")
    try:
        with zipfile.ZipFile(aside, "w") as archive, (run.adapter / MEMBERS[1]).open("rb") as tensors:
            archive.writestr(_member(MEMBERS[0]), json.dumps(adapter, indent=2, sort_keys=True) + "\n")
            with archive.open(_member(MEMBERS[1]), "w", force_zip64=True) as target:
                shutil.copyfileobj(tensors, target, 1 << 20)
        aside.replace(out)
    finally:
        aside.unlink(missing_ok=True)
    run.note("package", {}, [run.adapter], [out], time.monotonic() - started, to_yaml(config))
    return out


def _member(name: str) -> zipfile.ZipInfo:
    """A zip entry without this moment's time or this machine's flags: the same adapter gives the same bytes."""
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.compress_type = zipfile.ZIP_STORED  # weights do not get smaller, and deflating them takes minutes
    info.external_attr = 0o644 << 16
    return info
