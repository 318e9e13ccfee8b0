"""One resolved configuration per run: preset, then YAML files, then `key=value`, checked before anything starts.

OmegaConf merges; the sections and their checks are `schema`'s, and can be had from here.
"""

from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from grpo_kit.config.checks import suggest_nearest
from grpo_kit.config.schema import Columns, Data, Evaluation, Grpo, Lora, Policy, Run, RunConfig, Stage

__all__ = [
    "Columns", "Data", "Evaluation", "Grpo", "Lora", "Policy", "Run", "RunConfig", "Stage", "load_config", "keep_finished_settings", "to_yaml",
]  # fmt: skip
PRESETS = Path(__file__).with_name("presets")


def load_config(
    sources: list[str] | tuple[str, ...] = ("tiny",), overrides: list[str] | tuple[str, ...] = ()
) -> RunConfig:
    """Merge presets and YAML files left to right, then `key=value` overrides, and check the result.

    `sources`: preset names (`tiny`, `t4`, `t4x2`, `24gb`, `80gb`, `deepscaler`) or paths of YAML files.
    Raises ValueError for an unknown preset, key or unfit value, FileNotFoundError for a missing file.

    >>> load_config(["tiny"], ["grpo.num_generations=16"]).grpo.num_generations
    16
    """
    layers = [_read_layer(source) for source in sources] + [_read_override(text) for text in overrides]
    for layer in layers:
        _refuse_unknown_keys(layer)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(RunConfig), *layers)
        return OmegaConf.to_object(merged)
    except ValidationError as error:
        key = f"{error.full_key} " if error.full_key else ""
        raise ValueError(
            f"{key}does not fit: {str(error).splitlines()[0]}. Give a value of the type the preset shows."
        ) from None
    except OmegaConfBaseException as error:
        raise ValueError(f"The configuration cannot be merged: {str(error).splitlines()[0]}.") from None


def keep_finished_settings(
    config: RunConfig, finished: list[dict[str, Any]], overrides: list[str] | tuple[str, ...] = ()
) -> RunConfig:
    """`config` with the sections that finished stages were made with, save where an override names another value.

    `finished`: the settings of those stages, as `asdict` gave them; keys that are no section are passed over.
    """
    known = {f.name for f in fields(RunConfig)}
    sections = [{name: values for name, values in settings.items() if name in known} for settings in finished]
    merged = OmegaConf.merge(OmegaConf.structured(config), *sections, OmegaConf.from_dotlist(list(overrides)))
    return OmegaConf.to_object(merged)


def to_yaml(config: RunConfig) -> str:
    """The resolved configuration as YAML, every key in a fixed order; `run.force`, meant for one command, stays out."""
    whole = asdict(config)
    del whole["run"]["force"]
    return OmegaConf.to_yaml(OmegaConf.create(whole))


def preset_names() -> list[str]:
    """Names of the presets that ship with the package."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _read_layer(source: str) -> Any:
    path = PRESETS / f"{source}.yaml"
    if source not in preset_names():
        path = Path(source)
        if path.suffix not in (".yaml", ".yml"):
            near = suggest_nearest(source, preset_names())
            raise ValueError(
                f"{source!r} is neither a preset nor a .yaml file; the presets are {', '.join(preset_names())}.{near}"
            )
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} does not exist; -c takes a preset ({', '.join(preset_names())}) or an existing YAML file."
            )
    try:
        layer = OmegaConf.load(path)
    except Exception as error:  # YAML's own errors have no common built-in base
        raise ValueError(f"{path} is not readable YAML: {' '.join(str(error).split())}. Correct it.") from None
    if not OmegaConf.is_dict(layer):
        raise ValueError(
            f"{path} holds no mapping; a configuration is sections with keys, such as 'grpo:'. Correct it."
        )
    return layer


def _read_override(text: str) -> Any:
    key, equals, _ = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(
            f"{text!r} is not an override; overrides are written key=value, such as grpo.num_generations=16."
        )
    try:
        return OmegaConf.from_dotlist([text])
    except Exception as error:  # YAML's scanner and OmegaConf's grammar raise unrelated types
        raise ValueError(f"{text!r} cannot be read: {' '.join(str(error).split())}. Quote the value.") from None


def _refuse_unknown_keys(layer: Any, schema: type = RunConfig, prefix: str = "") -> None:
    known = get_type_hints(schema)
    for key in layer:
        name = f"{prefix}{key}"
        if key not in known:
            near = suggest_nearest(name, _all_keys())
            raise ValueError(
                f"{name} is not a key of the configuration.{near or ' `grpo-kit train --dry-run` prints them all.'}"
            )
        if is_dataclass(known[key]):
            inner = layer._get_node(key)
            if not OmegaConf.is_dict(inner):
                raise ValueError(f"{name} is a section; it takes keys, such as {name}.{fields(known[key])[0].name}=...")
            _refuse_unknown_keys(inner, known[key], f"{name}.")


def _all_keys(schema: type = RunConfig, prefix: str = "") -> list[str]:
    keys = []
    for name, kind in get_type_hints(schema).items():
        keys += _all_keys(kind, f"{prefix}{name}.") if is_dataclass(kind) else [f"{prefix}{name}"]
    return keys
