"""Loading of a configuration: presets, YAML files and `key=value` overrides, merged by OmegaConf and checked."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException, ValidationError

from grpo_kit.config.arguments import OneOrMore, as_texts
from grpo_kit.config.checks import suggest_nearest
from grpo_kit.config.environments import Environment
from grpo_kit.config.lora import split_targets
from grpo_kit.config.schema import RunConfig

PRESETS = Path(__file__).with_name("presets")
# The types of keys, the containers first: what a value must be, and an example for a key without a default.
TYPES = {
    list: ("a list", "[a,b]"), dict: ("a mapping", "{a: b}"), bool: ("true or false", "true"),
    int: ("a whole number", "10"), float: ("a number", "0.5"), str: ("a text", '"a text"'),
}  # fmt: skip
ABSENT = object()
LARGEST = 1 << 20  # bytes of a YAML file
ITEMS = {int: " of whole numbers", float: " of numbers", str: " of texts"}


def load_config(sources: OneOrMore = "tiny", overrides: str | Iterable[str] = ()) -> RunConfig:
    """Load a configuration.

    Args:
        sources: the name of a preset (`tiny`, `tiny-environments`, `tiny-office`, `t4-4b`, `t4`, `t4x2`, `24gb`,
            `80gb`, `deepscaler`), the path of a YAML file, or a list of these, of which a later one replaces the keys
            of an earlier one.
        overrides: a setting as `section.key=value`, or a list of these; they replace those of the sources.

    Returns:
        The configuration with every key, checked.

    Raises:
        ValueError: a preset, a key or a value is not valid, or a value refers to something else as `${...}`. The
            message names the most similar valid name.
        FileNotFoundError: a YAML file does not exist.
        TypeError: `sources` or `overrides` are not texts.

    Example:
        >>> from grpo_kit import load_config
        >>> load_config("tiny", "grpo.num_generations=16").grpo.num_generations
        16
    """
    sources = as_texts("sources", sources, '["tiny"]')
    overrides = as_texts("overrides", overrides, '["grpo.max_steps=200"]')
    layers = [*map(_read_layer, sources), *map(_read_override, overrides)]
    for layer in layers:
        _refuse_references(OmegaConf.to_container(layer, resolve=False))
        _refuse_unknown_keys(layer)
        _list_targets(layer)
    try:
        # First with each other: merged into the schema one by one, a later layer would replace an environment whole.
        return OmegaConf.to_object(OmegaConf.merge(_schema(), OmegaConf.merge(*layers)))
    except ValidationError as error:
        key = re.sub(r"\[.*", "", error.full_key or "")  # of an item of a list, the key of the list
        values = [OmegaConf.select(layer, key, default=ABSENT) for layer in layers]
        given = [value for value in values if value is not ABSENT] if key else []
        reason = str(error).splitlines()[0]
        raise ValueError(_describe_wrong_type(key, given[-1] if given else ABSENT, reason)) from None
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

    Raises:
        ValueError: a value refers to another one, or to the environment, as `${...}`.

    Example:
        >>> keep_finished_settings(load_config(["tiny"]), [{"data": {"test_size": 9}, "seed": 1}]).data.test_size
        9
    """
    names = {section.name for section in fields(RunConfig)}
    sections = [{name: values for name, values in settings.items() if name in names} for settings in finished]
    layers = [OmegaConf.create(layer) for layer in sections] + [OmegaConf.from_dotlist(list(overrides))]
    for layer in layers:
        _refuse_references(OmegaConf.to_container(layer, resolve=False))
        _list_targets(layer)
    environments = {"environments": asdict(config)["environments"]}
    merged = OmegaConf.merge(OmegaConf.structured(config), OmegaConf.merge(environments, *layers))
    return OmegaConf.to_object(merged)


def to_yaml(config: RunConfig) -> str:
    """The configuration as YAML, keys in a fixed order. `run.force`, which is meant for one command, is left out."""
    sections = asdict(config)
    del sections["run"]["force"]
    return OmegaConf.to_yaml(OmegaConf.create(sections))


def preset_names() -> list[str]:
    """Names of the presets that ship with the package, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def missing_keys(path: Path) -> list[str]:
    """The keys that a YAML file lacks of those that `to_yaml` writes, in their order.

    Raises:
        ValueError: the file is not readable.
    """
    layer = OmegaConf.to_container(_read_layer(str(path)), resolve=False)
    present = {f"{name}.{key}" for name, keys in layer.items() if isinstance(keys, dict) for key in keys} | set(layer)
    return [name for name in _all_keys() if ".".join(name.split(".")[:2]) not in present and name != "run.force"]


@cache
def _schema() -> DictConfig:
    """Every key with its type and default; merging copies it. Making it takes most of the time of loading."""
    return OmegaConf.structured(RunConfig)


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
            raise FileNotFoundError(f"{path} does not exist. Name a preset ({names}) or an existing YAML file.")
        if path.stat().st_size > LARGEST:
            raise ValueError(f"{path} has more than {LARGEST} bytes, too many for a configuration. Name another file.")
    try:
        layer = OmegaConf.load(path)
    except Exception as error:  # the errors of YAML have no common built-in base
        reason = " ".join(str(error).split())
        if "node expansion exceeds" in reason:  # OmegaConf recommends to lift its limit
            reason = "its aliases (*name) stand for more values than a configuration can have"
        raise ValueError(f"{path} is not readable YAML: {reason}. Correct it.") from None
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
    except Exception:  # YAML's scanner and OmegaConf's grammar raise unrelated types
        raise ValueError(
            f"{text!r} cannot be read: its value is not valid YAML. Close every bracket and quotation mark; write a "
            f"list as '{key}=[a,b]', and a text that contains brackets or a colon as '{key}=\"a: b\"'."
        ) from None


def _list_targets(layer: DictConfig) -> DictConfig:
    """Put a list where `lora.target_modules` is one text."""
    key = "lora.target_modules"
    if isinstance(text := OmegaConf.select(layer, key), str):
        OmegaConf.update(layer, key, split_targets(text))
    return layer


def _describe_wrong_type(key: str, value: Any, reason: str = "") -> str:
    """A sentence on a value that has another type than its key: the value, the type in plain words, and an example."""
    default, hint = OmegaConf.select(_schema(), key), RunConfig
    for name in key.split("."):
        named = get_args(hint)[1] if get_origin(hint) is dict else object  # the keys of a mapping are the user's
        hint = get_type_hints(hint).get(name, object) if is_dataclass(hint) else named
    hints = (hint, get_origin(hint), *get_args(hint))  # of an optional type, the type is among the arguments
    kind = next((kind for kind in TYPES if kind in hints), None)
    if key.startswith("data.mix."):
        name = key.removeprefix("data.mix.").partition(":")[0]
        return (
            f"data.mix has no number for {name}; it gives each environment its share. Write 'data.mix={{{name}: 1}}', "
            "with a space behind each colon."
        )
    if not key or kind is None or value is ABSENT:
        return f"{key or 'A value'} has a wrong type: {reason}. Correct the file or the override."
    given = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    words, example = TYPES[kind]
    if kind is list:
        words += next((text for item, text in ITEMS.items() if item in hints), "")
        default = default or ([1.0] if float in hints else [])
        example = f"[{','.join(map(str, default))}]" if default else example
    elif kind in (int, float) and default is not None:
        example = default
    return f"{key} is {given!r}; it must be {words}. Write '{key}={example}'."


def _refuse_references(value: Any, name: str = "") -> None:
    """Refuse `${...}`, with which OmegaConf would put a key of the environment into the files of the run."""
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_references(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for item in value:
            _refuse_references(item, name)
    elif isinstance(value, str) and "${" in value:
        raise ValueError(
            f"{name} is {value!r}; a setting must not refer to the environment or to other settings with ${{...}}, "
            "because what it refers to, such as a key, would be written into the run's files. Write the value itself."
        )


def _refuse_unknown_keys(layer: DictConfig, schema: type = RunConfig, prefix: str = "") -> None:
    types = get_type_hints(schema)
    for key in layer:
        name = f"{prefix}{key}"
        if key not in types:
            node = layer._get_node(key)
            while OmegaConf.is_dict(node) and len(node):  # of an unknown section, its key may have a name here
                name, node = f"{name}.{next(iter(node))}", node._get_node(next(iter(node)))
            keys = [*(f"{prefix}{known}" for known in types), *_all_keys()]
            remedy = suggest_nearest(name, keys) or " `grpo-kit train --dry-run` prints them all."
            raise ValueError(f"{name} is not a key of the configuration.{remedy}")
        if types[key] == dict[str, Environment]:
            _refuse_unknown_rewards(name, layer._get_node(key))
        elif is_dataclass(types[key]):
            section = layer._get_node(key)  # layer[key] would resolve a missing value instead
            if not OmegaConf.is_dict(section):
                raise ValueError(
                    f"{name} is a section and has no value itself. Set its keys, such as "
                    f"{name}.{fields(types[key])[0].name}=..."
                )
            _refuse_unknown_keys(section, types[key], f"{name}.")
        else:
            _refuse_containers(name, layer._get_node(key), types[key])


def _refuse_containers(name: str, node: Any, kind: Any) -> None:
    """Raise ValueError for a mapping in place of a list, or the reverse, and for a structure within a mapping.

    OmegaConf raises a TypeError of its own for the first, and takes the second.
    """
    kinds = (get_origin(kind), *map(get_origin, get_args(kind)))
    if (OmegaConf.is_dict(node) and list in kinds) or (OmegaConf.is_list(node) and dict in kinds):
        raise ValueError(_describe_wrong_type(name, node))
    for key in node if OmegaConf.is_dict(node) else ():
        if OmegaConf.is_config(item := node._get_node(key)):
            raise ValueError(_describe_wrong_type(f"{name}.{key}", item))


def _refuse_unknown_rewards(name: str, section: Any) -> None:
    """Raise ValueError unless `environments`, which is called `name`, is a section of sections with known keys."""
    if not OmegaConf.is_dict(section):
        raise ValueError(
            f"{name} is {section}; it holds a section for each environment. Write "
            f"'{name}.NAME.reward_funcs=[FILE.py:function]'."
        )
    for environment in section:
        if not OmegaConf.is_dict(own := section._get_node(environment)):
            raise ValueError(
                f"{name}.{environment} is {own}; it is a section with the keys of one environment. Write "
                f"'{name}.{environment}.reward_funcs=[FILE.py:function]'."
            )
        _refuse_unknown_keys(own, Environment, f"{name}.{environment}.")


def _all_keys(schema: type = RunConfig, prefix: str = "") -> Iterator[str]:
    for name, kind in get_type_hints(schema).items():
        if is_dataclass(kind):
            yield from _all_keys(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
