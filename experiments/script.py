"""What the scripts with a configuration have in common: command line, run, exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from distill.config import load_config, parse_command_line, save_config
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


def claim_folder(config: Any) -> None:
    """Write the configuration into the output folder, or check that it holds the same one."""
    path = config.output / "config.yaml"
    if path.exists() and load_config(type(config), path) != config:
        raise ConfigError(
            f"{config.output} holds a run with other settings (see {path}): choose another folder "
            "with output=..., or delete it"
        )
    if path.exists():
        print(f"continuing the run in {config.output}")
    config.output.mkdir(parents=True, exist_ok=True)
    save_config(config, path)
