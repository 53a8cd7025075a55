"""The command `distill`: what is here, for a terminal."""

from __future__ import annotations

import argparse

import distill


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; returns the exit status."""
    parser = argparse.ArgumentParser(prog="distill", description=distill.__doc__)
    parser.add_argument("--version", action="version", version=distill.__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("teachers", help="list the teachers that can be named")
    parser.parse_args(argv)
    # Imported here, so that --help and --version do not wait for jax.
    from distill.teachers.listing import format_teachers, list_teachers

    print(format_teachers(list_teachers()))
    return 0
