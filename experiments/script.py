"""What the scripts with a configuration have in common: command line, run, exit status."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import jax
import yaml

from distill.config import config_to_dict, load_config, parse_command_line, save_config
from distill.errors import ConfigError, DistillError


def run_script(
    config_class: type[Any],
    run: Callable[[Any], object],
    argv: list[str] | None,
    *,
    description: str | None,
    smoke_overrides: Iterable[str],
) -> int:
    """Read the configuration and run; what a user can mend is printed without a traceback."""
    config, _ = parse_command_line(
        config_class, None, argv, description=description, smoke_overrides=smoke_overrides
    )
    try:
        run(config)
    except DistillError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def keep_compilations(folder: Path | None) -> None:
    """Keep what XLA compiles in a folder, and take it from there the next time; None for not."""
    if folder is None:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder.resolve()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def use_devices(count: int) -> tuple[jax.Device, ...]:
    """The devices that share a student, `count` of them; none where it is one.

    Cores of a CPU become devices if JAX has not started yet. XLA hands the small operations of a
    student from core to core, which costs more than it gains: unless `NPROC` says otherwise, it
    gets one thread for each device.

    Raises:
        ConfigError: there are fewer.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if jax.config.jax_platforms == "cpu" and count > (cores or count):  # type: ignore[attr-defined]
        print(f"warning: devices={count} share {cores} cores")
    os.environ.setdefault("NPROC", "1")
    if count == 1:
        return ()
    # Refused once JAX has started; then those that are there must do.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", count)
    found = jax.devices()
    if len(found) < count:
        raise ConfigError(
            f"devices={count}, but JAX has {len(found)} ({found[0].platform}): ask for fewer; in a "
            "process that has used JAX before, set jax_num_cpu_devices at its start"
        )
    return tuple(found[:count])


def command_of(script: str, config: Any) -> str:
    """The command that runs a script with this configuration, for the records."""
    values = config_to_dict(config)
    required = [f.name for f in fields(config) if _has_no_default(f)]
    defaults = config_to_dict(type(config)(**{name: getattr(config, name) for name in required}))
    changed = {k: v for k, v in values.items() if k in required or v != defaults[k]}
    words = [f"{key}={_flow(value)}" for key, value in changed.items()]
    return shlex.join(["python", f"experiments/{script}.py", *words])


def _has_no_default(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _flow(value: Any) -> str:
    """YAML of a value on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("...").strip()


def claim_folder(config: Any, adapt: Callable[[Any], Any] = lambda then: then) -> None:
    """Write the configuration into the output folder, or check that it holds the same one.

    `adapt` takes over from `config` what may differ in the one that is there.
    """
    path = config.output / "config.yaml"
    if path.exists() and adapt(load_config(type(config), path)) != config:
        raise ConfigError(
            f"{config.output} holds a run with other settings (see {path}): choose another folder "
            "with output=..., or delete it"
        )
    if path.exists():
        print(f"continuing the run in {config.output}")
    config.output.mkdir(parents=True, exist_ok=True)
    save_config(config, path)
