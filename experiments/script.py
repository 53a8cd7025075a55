"""What the scripts with a configuration have in common: command line, run, exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

from distill.config import parse_command_line
from distill.errors import DistillError


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
