"""Write down which keys NeMo-RL's configurations have in each version: tests/handoff/nemo_rl_keys.txt.

    python scripts/record_nemo_rl.py v0.6.0=FOLDER v0.7.0=FOLDER main=FOLDER

Each FOLDER is NeMo-RL's source in that version. The keys are those of the configurations on which the bundles are put,
and of Gym's for the 30B. A line is a key, the type of its value, and the versions that have it. No text of theirs is
copied. Values that refer to others are resolved, as NeMo-RL does before it checks them.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from grpo_kit.handoff import nemo_megatron, nemo_overlay
from grpo_kit.runs.files import write_text

TARGET = Path(__file__).parents[1] / "tests" / "handoff" / "nemo_rl_keys.txt"
GYM = f"{nemo_overlay.HOME}/examples/nemo_gym/grpo_nanov3.yaml"
CONFIGS = (nemo_overlay.BASE, nemo_overlay.RECIPE, nemo_megatron.RECIPE, GYM)


def load(path: Path) -> Any:
    """A configuration over those that its `defaults` name."""
    config = OmegaConf.load(path)
    above = config.pop("defaults", [])
    parents = [above] if isinstance(above, str) else above
    return OmegaConf.merge(*(load(path.parent / parent) for parent in parents), config)


def list_keys(tree: Any, above: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, type of its value), for sections too."""
    for key, value in tree.items():
        yield f"{above}{key}", type(value).__name__
        if isinstance(value, dict):
            yield from list_keys(value, f"{above}{key}.")


def record(folders: dict[str, Path]) -> str:
    """The lines of the file.

    Args:
        folders: {version: folder of NeMo-RL's source}.
    """
    for name, function in {"mul": lambda a, b: a * b, "add": lambda a, b: a + b, "div": lambda a, b: a / b}.items():
        OmegaConf.register_resolver(name, function, replace=True)
    found: dict[str, dict[str, set[str]]] = {}
    for version, folder in folders.items():
        for config in CONFIGS:
            tree = OmegaConf.to_container(load(folder / Path(config).relative_to(nemo_overlay.HOME)), resolve=True)
            for key, kind in list_keys(tree):
                found.setdefault(key, {}).setdefault(version, set()).add(kind)
    lines = []
    for key, versions in sorted(found.items()):
        kinds = sorted(set().union(*versions.values()))
        lines.append(f"{key} {'|'.join(kinds)} {' '.join(versions)}\n")
    return "".join(lines)


if __name__ == "__main__":
    chosen = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if not chosen:
        raise SystemExit(f"Give VERSION=FOLDER for each version to write down. {__doc__}")
    write_text(TARGET, record({version: Path(folder) for version, folder in chosen.items()}))
    print(f"{TARGET} is written.")
