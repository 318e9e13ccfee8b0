"""Loading of a configuration: presets, YAML files and `key=value` overrides, merged by OmegaConf and checked."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from grpo_kit.config.checks import suggest_nearest
from grpo_kit.config.schema import RunConfig

PRESETS = Path(__file__).with_name("presets")


def load_config(sources: Sequence[str] = ("tiny",), overrides: Sequence[str] = ()) -> RunConfig:
    """Load a configuration.

    Args:
        sources: names of presets (`tiny`, `t4`, `t4x2`, `24gb`, `80gb`, `deepscaler`) or paths of YAML files. A later
            one replaces the keys of an earlier one.
        overrides: single settings as `section.key=value`, which replace those of the sources.

    Returns:
        The configuration with every key, checked.

    Raises:
        ValueError: a preset, a key or a value is not valid. The message names the most similar valid name.
        FileNotFoundError: a YAML file does not exist.

    Example:
        >>> load_config(["tiny"], ["grpo.num_generations=16"]).grpo.num_generations
        16
    """
    layers = [*map(_read_layer, sources), *map(_read_override, overrides)]
    for layer in layers:
        _refuse_unknown_keys(layer)
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), *layers))
    except ValidationError as error:
        key = f"{error.full_key} " if error.full_key else ""
        reason = str(error).splitlines()[0]
        raise ValueError(f"{key}does not fit: {reason}. Give a value of the type that the preset has there.") from None
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"The configuration cannot be merged: {reason}. Correct the file or the override.") from None


def keep_finished_settings(
    config: RunConfig, finished: Sequence[Mapping[str, Any]], overrides: Sequence[str] = ()
) -> RunConfig:
    """Replace sections by those that finished stages of the run were made with.

    Args:
        config: the configuration as it was loaded.
        finished: the settings of each finished stage, as `run.json` has them; keys that are not sections are ignored.
        overrides: as in `load_config`; they win, so that the stage itself can object to a changed setting.

    Returns:
        The configuration with which the run can continue.

    Example:
        >>> keep_finished_settings(load_config(["tiny"]), [{"data": {"test_size": 9}, "seed": 1}]).data.test_size
        9
    """
    names = {section.name for section in fields(RunConfig)}
    sections = [{name: values for name, values in settings.items() if name in names} for settings in finished]
    merged = OmegaConf.merge(OmegaConf.structured(config), *sections, OmegaConf.from_dotlist(list(overrides)))
    return OmegaConf.to_object(merged)


def to_yaml(config: RunConfig) -> str:
    """The configuration as YAML, keys in a fixed order. `run.force`, which is meant for one command, is left out."""
    sections = asdict(config)
    del sections["run"]["force"]
    return OmegaConf.to_yaml(OmegaConf.create(sections))


def preset_names() -> list[str]:
    """Names of the presets that ship with the package, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def _read_layer(source: str) -> DictConfig:
    names = ", ".join(preset_names())
    path = PRESETS / f"{source}.yaml"
    if source not in preset_names():
        path = Path(source)
        if path.suffix not in (".yaml", ".yml"):
            raise ValueError(
                f"{source!r} is neither a preset nor a .yaml file; the presets are {names}."
                f"{suggest_nearest(source, preset_names())}"
            )
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist; -c takes a preset ({names}) or an existing YAML file.")
    try:
        layer = OmegaConf.load(path)
    except Exception as error:  # the errors of YAML have no common built-in base
        raise ValueError(f"{path} is not readable YAML: {' '.join(str(error).split())}. Correct it.") from None
    if not OmegaConf.is_dict(layer):
        raise ValueError(
            f"{path} is not a mapping; a configuration has sections with keys, such as 'grpo:'. Correct it."
        )
    return layer


def _read_override(text: str) -> DictConfig:
    key, equals, _ = text.partition("=")
    if not equals or not key.strip():
        raise ValueError(
            f"{text!r} is not an override; overrides are written key=value, such as grpo.num_generations=16."
        )
    try:
        return OmegaConf.from_dotlist([text])
    except Exception as error:  # YAML's scanner and OmegaConf's grammar raise unrelated types
        raise ValueError(f"{text!r} cannot be read: {' '.join(str(error).split())}. Quote the value.") from None


def _refuse_unknown_keys(layer: DictConfig, schema: type = RunConfig, prefix: str = "") -> None:
    types = get_type_hints(schema)
    for key in layer:
        name = f"{prefix}{key}"
        if key not in types:
            remedy = suggest_nearest(name, list(_all_keys())) or " `grpo-kit train --dry-run` prints them all."
            raise ValueError(f"{name} is not a key of the configuration.{remedy}")
        if is_dataclass(types[key]):
            section = layer._get_node(key)  # layer[key] would resolve a missing value instead
            if not OmegaConf.is_dict(section):
                raise ValueError(
                    f"{name} is a section and has no value itself. Set its keys, such as "
                    f"{name}.{fields(types[key])[0].name}=..."
                )
            _refuse_unknown_keys(section, types[key], f"{name}.")


def _all_keys(schema: type = RunConfig, prefix: str = "") -> Iterator[str]:
    for name, kind in get_type_hints(schema).items():
        if is_dataclass(kind):
            yield from _all_keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
