"""Progress bars: whole lines in log files, one redrawn line in terminals."""

from __future__ import annotations

import io
import re
import sys
import types

import pytest

from distill import progress
from distill.progress import progress_bar

Capture = pytest.CaptureFixture[str]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds on the clock of the bar, as the only item of a list."""
    now = [100.0]
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_log_gets_whole_lines_at_the_stated_interval(capsys: Capture, clock: list[float]) -> None:
    with progress_bar(100, "training") as bar:
        for _ in range(100):
            clock[0] += 0.5
            bar.set_postfix({"loss": 0.123456})
            bar.update(1)
    output = capsys.readouterr().err
    assert "\r" not in output
    lines = output.splitlines()
    # 50 s of work: the start, five intervals of 10 s, the end.
    assert len(lines) == 7
    assert lines[0].startswith("training:   0% 0/100 [00:00<?")
    assert lines[1] == "training:  20% 20/100 [00:10<00:40,  2.00 steps/s, loss=0.123]"
    assert lines[-1] == "training: 100% 100/100 [00:50<00:00,  2.00 steps/s, loss=0.123]"


def test_slow_work_is_still_given_as_a_rate(capsys: Capture, clock: list[float]) -> None:
    bar = progress_bar(4, "labelling", unit="structure")
    clock[0] += 20
    bar.update(1)
    bar.close()
    assert capsys.readouterr().err.splitlines()[1].endswith("[00:20<01:00,  0.05 structures/s]")


def test_resumed_run_does_not_count_earlier_units_in_its_rate(
    capsys: Capture, clock: list[float]
) -> None:
    bar = progress_bar(100, "training", unit="batch", initial=50)
    clock[0] += 10
    bar.update(10)
    assert capsys.readouterr().err.splitlines()[-1] == (
        "training:  60% 60/100 [00:10<00:40,  1.00 batches/s]"
    )
    bar.close()


def test_unknown_total(capsys: Capture, clock: list[float]) -> None:
    with progress_bar(None, "reading", unit="frame") as bar:
        clock[0] += 2
        bar.update(10)
    assert capsys.readouterr().err.splitlines()[-1] == "reading: 10 [00:02,  5.00 frames/s]"


def test_closing_twice_writes_once_and_an_error_still_closes(capsys: Capture) -> None:
    bar = progress_bar(3, "x")
    with pytest.raises(RuntimeError), bar:
        bar.update(2)
        raise RuntimeError
    bar.close()
    assert [line.split()[2] for line in capsys.readouterr().err.splitlines()] == ["0/3", "2/3"]


def test_disabled_bar_is_silent(capsys: Capture) -> None:
    with progress_bar(3, "x", disable=True) as bar:
        bar.update(3)
        bar.set_postfix(loss=1.0)
    assert capsys.readouterr().err == ""


def test_terminal_redraws_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress_bar(10, "running", initial=2) as bar:
        bar.update(8)
        bar.set_postfix({"T": "300 K"})
    assert terminal.getvalue().count("\n") == 1
    last = terminal.getvalue().rstrip().rsplit("\r", 1)[-1]
    assert re.match(r"running: 100%\|.*\| 10/10 \[00:00<00:00, .* steps/s, T=300 K\]", last)


def test_notebook_without_widgets_falls_back_without_a_warning(
    capsys: Capture, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    shell = types.SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with progress_bar(2, "cell") as bar:
        bar.update(2)
    assert "2/2" in capsys.readouterr().err
    assert not recwarn.list
