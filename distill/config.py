"""Configurations: frozen dataclasses, read from YAML, overridden by `key=value`.

    @dataclass(frozen=True)
    class TrainingConfig:
        learning_rate: float = 1e-3

    config = load_config(TrainingConfig, "train.yaml", ["learning_rate=3e-4"])

Fields may be `bool`, `int`, `float`, `str`, `Path`, enums (written by name), `Literal`, other
dataclasses, and lists, tuples, dictionaries and unions of these. Values are not bent into shape:
apart from whole numbers, which are also floats (and `1e5`, which is also an int), a value of
another type is refused. Relative paths are left as they were written. A configuration that is
invalid as a whole says so by raising `ValueError` in its `__post_init__`.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import os
import re
import tempfile
import types
import typing
from collections.abc import Hashable, Iterable, Iterator, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import yaml

from distill.errors import ConfigError


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]


Config = TypeVar("Config", bound=_Dataclass)


def load_config(
    cls: type[Config], path: str | os.PathLike[str] | None = None, overrides: Iterable[str] = ()
) -> Config:
    """Read a configuration of type `cls`.

    Args:
        cls: a dataclass; fields without a default must be given by the file or an override.
        path: YAML file. None means the defaults of `cls`.
        overrides: `dotted.key=value` strings, applied in order; the value is read as YAML.
            A list replaces the former one; `key={a: 1}` changes only `a`.

    Raises:
        ConfigError: the file is missing or malformed, or a key is unknown, missing or of the
            wrong type.
    """
    tree = _defaults(cls)
    if path is not None:
        tree = _lay_over(cls, tree, _read(Path(path)), "", str(path))
    for override in overrides:
        tree = _lay_over(cls, tree, _parse_override(override), "", f"override {override!r}")
    return _build(cls, tree, "", "defaults" if path is None else str(path))


def config_to_dict(config: _Dataclass) -> dict[str, Any]:
    """The configuration as dictionaries, lists, numbers and strings, ready for YAML or JSON."""
    return {field.name: _plain(getattr(config, field.name)) for field in _fields(config)}


def save_config(config: _Dataclass, path: str | os.PathLike[str]) -> None:
    """Write the configuration as YAML; `load_config(type(config), path)` gives it back.

    The file appears whole or not at all.
    """
    target = Path(path)
    text = yaml.dump(config_to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes files that only the owner can read
        os.replace(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def parse_command_line(
    cls: type[Config],
    default_config: str | os.PathLike[str] | None,
    argv: Sequence[str] | None = None,
    *,
    description: str | None = None,
    smoke_overrides: Iterable[str] = (),
) -> tuple[Config, argparse.Namespace]:
    """The command line of a script: `[--config FILE] [--smoke] [key=value ...]`.

    Args:
        cls: type of the configuration.
        default_config: file read without `--config`; None means the defaults of `cls`.
        argv: arguments without the program name; None means those of the process.
        description: first lines of `--help`.
        smoke_overrides: applied with `--smoke`, before the overrides of the command line.

    Returns:
        The configuration, and the namespace with `config`, `smoke` and `overrides`. A mistake in
        the configuration ends the program with status 2 and the message of the `ConfigError`.
    """
    parser = argparse.ArgumentParser(
        description=description, epilog="keys: " + ", ".join(_leaf_keys(cls))
    )
    parser.add_argument(
        "--config",
        type=Path,
        default=default_config,
        metavar="FILE",
        help="YAML configuration (default: %(default)s)",
    )
    parser.add_argument(
        "--smoke", action="store_true", help="shortest run that still passes through every step"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="override a field, for example training.learning_rate=1e-3",
    )
    namespace = parser.parse_intermixed_args(argv)
    overrides = [*(smoke_overrides if namespace.smoke else ()), *namespace.overrides]
    try:
        return load_config(cls, namespace.config, overrides), namespace
    except ConfigError as error:
        parser.error(str(error))


# Reading and writing YAML


class _Loader(yaml.SafeLoader):
    """YAML in which `1e-3` is a number and a key may occur only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for index, key in enumerate(keys):
            if key in keys[:index]:
                mark = node.value[index][0].start_mark
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} occurs twice", mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes the strings that `_Loader` would read as numbers."""


for _yaml_class in (_Loader, _Dumper):
    _yaml_class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )


def _read(path: Path) -> dict[Any, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.load(text, Loader=_Loader)
    except FileNotFoundError:
        raise ConfigError(f"configuration file {path} does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration file {path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"configuration file {path} is not valid YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"configuration file {path} must hold `key: value` lines, not {tree!r}")
    return tree


def _parse_override(override: str) -> Any:
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts) or key != "".join(key.split()):
        raise ConfigError(
            f"override {override!r} must have the form key=value, "
            "for example training.learning_rate=1e-3"
        )
    try:
        value: Any = yaml.load(text, Loader=_Loader) if text.strip() else ""
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: its value is not valid YAML: {error}") from error
    for part in reversed(parts):
        value = {part: value}
    return value


# Between trees and dataclasses. A tree is a dictionary with one entry per field of its dataclass
# (less those that have no value yet); it becomes the dataclass at the very end, so that checks in
# `__post_init__` see the whole and not what some of the overrides have made of it.


def _defaults(cls: Any) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for field in _fields(cls):
        if field.default is not dataclasses.MISSING:
            tree[field.name] = _tree(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            tree[field.name] = _tree(field.default_factory())
    return tree


def _tree(value: Any) -> Any:
    if _is_instance(value):
        return {field.name: _tree(getattr(value, field.name)) for field in _fields(value)}
    return value


def _lay_over(annotation: Any, base: Any, value: Any, path: str, source: str) -> Any:
    """`value`, checked against its type, over the tree or value `base`."""

    def refuse() -> ConfigError:
        return ConfigError(
            f"{source}: {path or 'the whole'} must be {_type_name(annotation)}, not {value!r}"
        )

    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return _lay_over_union(annotation, base, value, path, source, refuse())
    if dataclasses.is_dataclass(annotation):
        if not isinstance(value, dict):
            raise refuse()
        tree = dict(base) if isinstance(base, dict) else _defaults(annotation)
        hints = _hints(annotation)
        for key, item in value.items():
            inner = f"{path}.{key}" if path else str(key)
            if key not in hints:
                raise ConfigError(f"{source}: unknown key {inner}{_suggest(key, hints, path)}")
            tree[key] = _lay_over(hints[key], tree.get(key), item, inner, source)
        return tree
    if origin is dict:
        if not isinstance(value, dict):
            raise refuse()
        merged = dict(base) if isinstance(base, dict) else {}
        for key, item in value.items():
            inner = f"{path}.{key}"
            key = _lay_over(arguments[0], None, key, f"a key of {path}", source)
            merged[key] = _item(arguments[1], _tree(merged.get(key)), item, inner, source)
        return merged
    if origin in (list, tuple):
        if not isinstance(value, list):
            raise refuse()
        if origin is tuple and arguments[-1] is not Ellipsis:
            if len(arguments) != len(value):
                raise refuse()
            item_types = arguments
        else:
            item_types = (arguments[0],) * len(value)
        return origin(
            _item(item_type, None, item, f"{path}[{index}]", source)
            for index, (item_type, item) in enumerate(zip(item_types, value, strict=True))
        )
    if origin is typing.Literal:
        if any(value == choice and type(value) is type(choice) for choice in arguments):
            return value
        raise refuse()
    return _scalar(annotation, value, refuse())


def _lay_over_union(
    annotation: Any, base: Any, value: Any, path: str, source: str, refusal: ConfigError
) -> Any:
    choices = [choice for choice in typing.get_args(annotation) if choice is not type(None)]
    if value is None and len(choices) < len(typing.get_args(annotation)):
        return None
    for choice in choices:
        try:
            return _lay_over(choice, base, value, path, source)
        except ConfigError as error:
            # A mistake deeper inside deserves its own message.
            if len(choices) == 1 and isinstance(value, dict | list):
                raise error
    raise refusal


def _item(annotation: Any, base: Any, value: Any, path: str, source: str) -> Any:
    """An item of a list or dictionary; unlike a field it is built at once."""
    item = _lay_over(annotation, base, value, path, source)
    return _build(annotation, item, path, source)


def _scalar(annotation: Any, value: Any, refusal: ConfigError) -> Any:
    if annotation is Any:
        return value
    if annotation is float and type(value) in (int, float):
        return float(value)
    if annotation is int and type(value) is float and value.is_integer():
        return int(value)
    if annotation in (bool, int, str) and type(value) is annotation:
        return value
    if annotation is Path and isinstance(value, str) and value:
        return Path(value)
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        if isinstance(value, str) and value in annotation.__members__:
            return annotation[value]
        raise refusal
    if annotation in (bool, int, float, str, Path):
        raise refusal
    raise TypeError(f"a configuration cannot hold a field of type {_type_name(annotation)}")


def _build(annotation: Any, value: Any, path: str, source: str) -> Any:
    """The dataclass that a tree describes; every other value unchanged."""
    cls = next((cls for cls in _union(annotation) if dataclasses.is_dataclass(cls)), None)
    if cls is None or not isinstance(value, dict):
        return value
    hints = _hints(cls)
    fields = {}
    for field in _fields(cls):
        inner = f"{path}.{field.name}" if path else field.name
        if field.name not in value:
            raise ConfigError(f"{source}: {inner} has no default and must be given")
        fields[field.name] = _build(hints[field.name], value[field.name], inner, source)
    try:
        return typing.cast(Any, cls)(**fields)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{source}: {path + ': ' if path else ''}{error}") from error


def _plain(value: Any) -> Any:
    if _is_instance(value):
        return config_to_dict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.name
    return str(value) if isinstance(value, Path) else value


# Types and their names


def _fields(config: Any) -> list[dataclasses.Field[Any]]:
    return [field for field in dataclasses.fields(config) if field.init]


def _hints(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in _fields(cls)}


def _is_instance(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _union(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _type_name(annotation: Any) -> str:
    choices = _union(annotation)
    if len(choices) > 1:
        names = [_type_name(choice) for choice in choices if choice is not type(None)]
        return " or ".join([*names, "null"] if len(names) < len(choices) else names)
    if typing.get_origin(annotation) is typing.Literal:
        return "one of " + ", ".join(repr(choice) for choice in typing.get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "one of " + ", ".join(annotation.__members__)
    if dataclasses.is_dataclass(annotation):
        return "a group with the keys " + ", ".join(_hints(annotation))
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def _suggest(key: Any, valid: Iterable[str], path: str) -> str:
    names = list(valid)
    near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
    hint = f"; did you mean {path + '.' if path else ''}{near[0]}?" if near else ";"
    return f"{hint} valid here: {', '.join(names)}"


def _leaf_keys(cls: Any, path: str = "") -> Iterator[str]:
    for name, annotation in _hints(cls).items():
        inner = next((item for item in _union(annotation) if dataclasses.is_dataclass(item)), None)
        if inner is None:
            yield path + name
        else:
            yield from _leaf_keys(inner, f"{path}{name}.")
