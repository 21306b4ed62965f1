"""On a real screen: widths, wrapped tables, the line that changes, and a reader that has gone."""

import fcntl
import io
import os
import pty
import re
import select
import struct
import termios

import pytest

from mlops_nb.commands.execute import Lines
from mlops_nb.commands.grammar import Command, Option, parse
from mlops_nb.commands.terminal import Terminal, plain_table, width_of
from mlops_nb.core.errors import UsageError


@pytest.fixture
def screen(monkeypatch):
    """A terminal of 60 columns, and a function that reads what it shows."""
    monkeypatch.setenv("TERM", "xterm")
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
    with open(side, "w", encoding="utf-8") as stream:
        yield Terminal(stream), lambda: read_until_quiet(main)
    os.close(main)


def read_until_quiet(descriptor: int) -> str:
    """All that a terminal shows: several writes may come in several pieces."""
    shown = b""
    while select.select([descriptor], [], [], 0.2)[0]:
        shown += os.read(descriptor, 65536)
    return shown.decode()


def plain(text: str) -> list[str]:
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;]*[a-zA-Z]", "", text).replace("\r", "").split("\n")]


def test_a_table_that_fits_is_plain_and_one_that_does_not_is_wrapped(screen):
    terminal, shown = screen
    terminal.table(["run", "auc"], [["a-1", "0.91"]], right=[1])
    assert plain(shown())[:2] == ["run   auc", "a-1  0.91"]
    words = " ".join(f"word{n}" for n in range(30))
    terminal.table(["run", "why"], [[terminal.state("done"), words + " [not markup]"]])
    lines = plain(shown())
    assert max(map(width_of, lines)) <= 60 and len(lines) > 6
    told = " ".join(" ".join(lines).split())
    assert "✓ done" in told and "word29" in told and "[not markup]" in told


def test_the_passing_line_is_cut_to_the_screen_and_goes_away(screen):
    terminal, shown = screen
    terminal.passing("▶ running  train  " + "x" * 100)
    assert width_of(plain(shown())[0]) <= 59
    terminal.line("✓ done  train")
    assert shown().startswith("\r\x1b[2K✓ done  train")


def test_a_dumb_terminal_gets_neither_colours_nor_passing_lines(screen, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    terminal, shown = screen
    plainer = Terminal(terminal.stream)
    plainer.passing("nothing")
    plainer.line(plainer.state("failed"))
    assert shown() == "✗ failed\r\n"


def test_no_cell_of_a_piped_table_is_cut():
    [head, row] = plain_table(["name", "empty", "text"], [["a", "", "y" * 500]])
    assert head == "name  text" and row.endswith("y" * 500)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--limit"], "option --limit needs a value, NUMBER"),
        (["-n", "3.5"], "--limit is '3.5'"),
        (["--force=no"], "option --force takes no value"),
        (["--forcr"], "there is no option '--forcr'"),
        (["-x"], "there is no option '-x'"),
        (["one", "two"], "'one' is one word too many"),
    ],
)
def test_each_mistake_in_options_has_its_sentence(words, message):
    options = (Option(("-n", "--limit"), "", "NUMBER", int), Option(("--force",), ""))
    with pytest.raises(UsageError) as raised:
        parse(Command("demo", "", "", "", options=options), words)
    assert message in raised.value.message and raised.value.hint


def replay(text: str) -> list[str]:
    """What stands on the screen after a text with carriage returns, erased lines and steps upwards."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;]*[a-zA-Z]|\r|\n|[^\x1b\r\n]+", text):
        if part == "\x1b[2K":
            lines[row] = ""
        elif part == "\x1b[1A":
            row -= 1
        elif part == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif part == "\r":
            column = 0
        elif not part.startswith("\x1b"):
            lines[row] = lines[row][:column] + part
            column = len(lines[row])
    return [line.rstrip() for line in lines]


def test_each_step_in_progress_has_a_line_that_changes_where_it_stands(screen):
    terminal, shown = screen
    lines = Lines(terminal)
    lines.width = 15
    for model in ("forest", "linear"):
        lines.step_started("train", 1, 2, ["never run"], variant={"train.model": model})
    lines.progress("train", 3, 9, "Fit", variant={"train.model": "forest"})
    lines.tick()
    first, second = replay(text := shown())
    assert first.startswith("▶ running  train[model=forest]") and first.endswith("cell 3 of 9 · Fit")
    assert second.startswith("▶ running  train[model=linear]") and second.endswith("never run")
    ended = {"step": "train", "variant": {"train.model": "forest"}, "state": "done", "seconds": 1.0, "reasons": ["new"]}
    lines.step_finished(ended)
    done, running = replay(text + shown())
    assert done.startswith("✓ done     train[model=forest]")
    assert re.sub(r"\d\.\d s", "", running) == re.sub(r"\d\.\d s", "", second)


def test_more_steps_than_the_screen_has_lines(screen):
    terminal, shown = screen
    terminal.passing(*(f"step {number}" for number in range(40)))
    lines = replay(shown())
    assert len(lines) == 23 and lines[-1] == "… and 18 more"
    terminal.clear()
    assert terminal.size() == (60, 24)


def test_what_steers_a_terminal_is_taken_out_of_what_is_shown():
    stream = io.StringIO()
    Terminal(stream).line("a\x1b[2Jb\x07c\u202ed", "\x1b[31mred\x1b[0m")
    assert stream.getvalue() == "a\ufffd[2Jb\ufffdc\ufffdd  \x1b[31mred\x1b[0m\n"
