"""The app shows no control character of what comes from outside, and a crash is one line and exit code 70."""

from __future__ import annotations

import base64
import json
import os
import zlib
from pathlib import Path

import pytest
from textual.widgets import Input

from skewsim.cli.main import main
from skewsim.errors import UserError
from skewsim.settings import Scenario
from skewsim.share import to_share
from tests.tui.conftest import StageMaker
from tests.tui.terminal import SMALL_RUN, TUI, Terminal
from tui.files import any_scenario, last_state
from tui.launch import build
from tui.screens.prompt import Prompt

pytestmark = pytest.mark.anyio

EVIL = "\x1b]52;c;cHduZWQ=\x07\x1b[2J\x9b31m\u202e[bold]x"


def share_of(text: str) -> str:
    packed = zlib.compress(json.dumps({text: 1}).encode(), 9)
    return "skew1-" + base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def acted_on(text: str) -> list[str]:
    """The characters of a screen that a terminal would act on."""
    return [c for c in text if not c.isprintable() and c not in "\n"]


async def test_no_control_character_reaches_the_screen_from_a_message_a_share_string_or_a_file_name(
    stage: StageMaker, tmp_path: Path
) -> None:
    run = tmp_path / f"run{EVIL.replace('/', '')}"
    run.mkdir()
    (run / "steps.jsonl").write_text("")
    async with stage() as s:
        s.app.say(f"said {EVIL}")
        assert "said" in s.text()
        assert acted_on(s.text()) == []
        s.app.push_screen(Prompt(f"title {EVIL}", s.app._enter))
        await s.pilot.pause()
        prompt = s.app.screen
        prompt.query_one(Input).value = share_of(EVIL)
        await s.pilot.press("enter")
        await s.pilot.pause()
        assert "unknown setting" in s.text()
        assert "[bold]" in s.text()
        assert acted_on(s.text()) == []
        s.app.say(f"noticed {EVIL}")
        await s.pilot.pause()
        assert acted_on(s.text()) == []
    async with stage() as s:
        from tui.screens.runs import RunsScreen

        s.app.push_screen(RunsScreen(s.app.lab, tmp_path))
        await s.pilot.pause()
        assert "run" in s.text()
        assert acted_on(s.text()) == []


@pytest.mark.parametrize(
    "typed", ["9" * 4301, "[" * 1000, "{a=" * 500, "1e39", "é\x1b[2J", "x" * 5000, '"' + "a" * 300, "\u0661"]
)
async def test_whatever_is_typed_for_a_setting_is_a_line_under_it(stage: StageMaker, typed: str) -> None:
    async with stage() as s:
        await s.pilot.press("x")
        await s.pilot.pause()
        screen = s.app.screen
        control = screen._controls["trainer.epsilon_high"]  # type: ignore[attr-defined]
        with pytest.raises(UserError, match="epsilon_high") as caught:
            screen._type(control, typed)  # type: ignore[attr-defined]
        assert len(str(caught.value)) < 500


def test_a_last_state_that_is_damaged_is_left_alone_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKEWSIM_STATE", str(tmp_path))
    with pytest.raises(UserError, match="no last state"):
        last_state()
    for content in (b"\xff\xfe", b"skew1-abc", b"", b"x" * 10_000, share_of("a.b").encode()):
        (tmp_path / "last").write_bytes(content)
        with pytest.raises(UserError, match="cannot be taken up") as caught:
            last_state()
        assert "\n" not in str(caught.value)
        app = build("last", None)
        assert "cannot be taken up" in app.lab.heard
    (tmp_path / "last").write_text(to_share(Scenario()))
    assert any_scenario("last") == Scenario()


@pytest.mark.parametrize("text", ['keys = "p"\n', "keys = [1]\n", "a" + ".b" * 40_000 + "=1\n", "x=" + "[" * 900])
def test_a_keymap_that_is_none_is_one_line(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "skewsim").mkdir()
    (tmp_path / "skewsim" / "keymap.toml").write_text(text)
    assert main(["tui"]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "keymap.toml" in err


@pytest.mark.slow
def test_bytes_that_are_no_text_are_left_out_and_the_app_goes_on(tmp_path: Path) -> None:
    with Terminal((*TUI, SMALL_RUN), home=tmp_path) as terminal:
        terminal.wait_for("computed: engine", seconds=90)
        os.write(terminal._fd, b"\xff\xfe\xc3(\x80")
        terminal.pump(1.0)
        terminal.type("q")
        assert terminal.end(seconds=60) == 0
        assert b"Traceback" not in terminal.output


def test_a_crash_of_the_app_is_one_line_with_a_report_and_exit_code_70(tmp_path: Path) -> None:
    code = """
import sys
from skewsim.cli.main import main
from tui.app import SkewsimApp
def broken(self):
    raise ZeroDivisionError("nobody foresaw this")
SkewsimApp.do_markers = broken
sys.argv = ["skewsim", "tui"]
sys.exit(main())
"""
    with Terminal((TUI[0], "-c", code), home=tmp_path) as terminal:
        terminal.wait_for("computed: engine", seconds=90)
        terminal.type("m")
        status = terminal.end(seconds=60)
        assert status == 70
        text = terminal.output.decode(errors="replace")
        assert "Traceback" not in text
        assert "a fault in skewsim: ZeroDivisionError: nobody foresaw this; report: " in text
    (report,) = (tmp_path / "state" / "skewsim").glob("fault-*.txt")
    assert "nobody foresaw this" in report.read_text()
    assert "command: skewsim tui" in report.read_text()
