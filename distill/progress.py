"""One style of progress bar for terminals, notebooks and log files."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Mapping
from numbers import Number
from typing import Any, Protocol, Self

from tqdm.std import tqdm

LINE_INTERVAL = 10.0
"""Shortest time in seconds between two lines where the output is not a terminal."""

_BAR_FORMAT = (
    "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
    "[{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"
)
_LINE_FORMAT = _BAR_FORMAT.replace("|{bar}|", "")
_COUNT_FORMAT = "{desc}: {n_fmt} [{elapsed}, {rate_noinv_fmt}{postfix}]"


class ProgressBar(Protocol):
    """What `progress_bar` returns: a tqdm bar or its stand-in; only these members are promised."""

    n: Any

    def update(self, n: float = 1, /) -> bool | None: ...

    def set_postfix(
        self, values: Mapping[str, object] | None = None, /, **kwargs: object
    ) -> None: ...

    def close(self) -> None: ...

    def __enter__(self) -> ProgressBar: ...

    def __exit__(self, *exception: object) -> Any: ...


def progress_bar(
    total: int | None,
    description: str,
    unit: str = "step",
    initial: int = 0,
    disable: bool = False,
) -> ProgressBar:
    """A bar with count, rate, time elapsed and time left, written to standard error.

    In a terminal or a notebook it redraws itself. Elsewhere (a log file, a pipe) it writes whole
    lines: one at the start, at most one every `LINE_INTERVAL` seconds, and one at the end.

    Args:
        total: number of units; None if unknown.
        description: what is being done, in a word or two.
        unit: name of one unit, singular.
        initial: units done before, when a run is resumed; they do not count for the rate.
        disable: show nothing.
    """
    plural = f" {unit}{'es' if unit.endswith(('s', 'x', 'ch', 'sh')) else 's'}"
    notebook = _in_notebook()
    if not (disable or notebook or sys.stderr.isatty()):
        return _LogLines(total, description, plural, initial)
    settings: dict[str, Any] = {
        "total": total,
        "desc": description,
        "unit": plural,
        "initial": initial,
        "disable": disable,
        "bar_format": _COUNT_FORMAT if total is None else _BAR_FORMAT,
        "dynamic_ncols": True,
    }
    if not notebook:
        return tqdm(**settings)
    with warnings.catch_warnings():  # without ipywidgets tqdm warns and falls back to text
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm as tqdm_auto

        return tqdm_auto(**settings)


class _LogLines:
    """The same figures as the bar, as finished lines."""

    def __init__(self, total: int | None, description: str, unit: str, initial: int) -> None:
        self.n: float = initial
        self._total = total
        self._description = description
        self._unit = unit
        self._initial = initial
        self._postfix = ""
        self._start = time.monotonic()
        self._open = True
        self._write()

    def update(self, n: float = 1, /) -> bool:
        self.n += n
        due = time.monotonic() - self._last >= LINE_INTERVAL
        if due:
            self._write()
        return due

    def set_postfix(self, values: Mapping[str, object] | None = None, /, **kwargs: object) -> None:
        items = {**(values or {}), **kwargs}
        self._postfix = ", ".join(
            f"{key}={tqdm.format_num(value) if isinstance(value, Number) else value}"
            for key, value in items.items()
        )

    def close(self) -> None:
        if self._open:
            self._open = False
            self._write()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self) -> None:
        self._last = time.monotonic()
        line = tqdm.format_meter(
            self.n,
            self._total,
            self._last - self._start,
            prefix=self._description,
            unit=self._unit,
            postfix=self._postfix,
            initial=self._initial,
            bar_format=_COUNT_FORMAT if self._total is None else _LINE_FORMAT,
        )
        print(line, file=sys.stderr, flush=True)


def _in_notebook() -> bool:
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return shell is not None and "IPKernelApp" in shell.config
