"""What nobody foresaw is one line, a report and exit code 70; interrupts and closed streams end a command quietly."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from skewsim.cli import main as command_line
from skewsim.cli.fault import scrubbed
from skewsim.cli.main import main
from skewsim.errors import LONGEST_LINE, printable, shown
from tests.conftest import Faults

SECRET = "hf_0123456789abcdef"


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Let the command `scenarios` raise this."""

    def install(error: BaseException) -> None:
        def fail(*words: str) -> None:
            raise error

        monkeypatch.setattr(command_line, "_call", fail)

    return install


@pytest.mark.parametrize(
    "error",
    [
        ZeroDivisionError("nobody\nforesaw \x1b[2Jthis"),
        MemoryError(),
        RecursionError("deep"),
        KeyError("x"),
        ValueError(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_nobody_foresaw_is_one_line_a_report_and_exit_code_70(
    error: Exception,
    broken: Callable[[BaseException], None],
    faults: Faults,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    broken(error)
    assert main(["scenarios", f"--token={SECRET}", "http://me:word@host/v1"]) == 70
    out, err = capfd.readouterr()
    (report,) = faults.reports()
    assert out == ""
    assert err.rstrip("\n").isprintable()
    assert err.startswith(f"skewsim: a fault in skewsim: {type(error).__name__}")
    assert err.endswith(f"; report: {report}\n")
    text = report.read_text()
    assert "Traceback" in text
    assert "skewsim: " in text
    assert "python: " in text
    assert "command: skewsim scenarios --token=*** http://***@host/v1" in text
    assert SECRET not in text
    assert "me:word" not in text
    assert printable(text) == text


def test_the_traceback_is_shown_on_request(
    broken: Callable[[BaseException], None],
    faults: Faults,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SKEWSIM_DEBUG", "1")
    broken(ZeroDivisionError("nobody foresaw this"))
    assert main(["scenarios"]) == 70
    err = capfd.readouterr().err
    assert err.startswith("Traceback")
    assert faults.reports()


def test_a_report_that_cannot_be_written_is_said_and_old_ones_go(
    broken: Callable[[BaseException], None],
    faults: Faults,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for number in range(30):
        (faults.folder / f"fault-2000{number:04}.txt").write_text("old")
    broken(ZeroDivisionError())
    assert main(["scenarios"]) == 70
    assert len(faults.reports()) == 20
    monkeypatch.setenv("SKEWSIM_STATE", "/dev/null/nowhere")
    assert main(["scenarios"]) == 70
    assert "report: none, it could not be written" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "kept"),
    [("a b", "a b"), ("api_key=abc x", "api_key=*** x"), ("https://u:p@h/x", "https://***@h/x"), ("token", "token")],
)
def test_secrets_of_a_command_line_are_left_out(text: str, kept: str) -> None:
    assert scrubbed(text) == kept


def test_text_from_outside_is_one_printable_line_of_bounded_length() -> None:
    evil = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x202E, 0x200B, 0xD800])) + "é漢"
    assert printable(evil).replace("\n", "").isprintable()
    assert printable(evil).endswith("é漢")
    assert shown("a\nb\x1b") == "a b\\x1b"
    assert len(shown("x" * 10**6)) <= LONGEST_LINE + 5
    assert shown("ab" * 50, 30).startswith("abab")


def child(*arguments: str, **options: object) -> subprocess.Popen[bytes]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "start_new_session": True} | options
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import sys; from skewsim.cli.main import main; print('up', flush=True); sys.exit(main())"
    return subprocess.Popen([sys.executable, "-c", code, *arguments], **pipes)  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize("after", [0.15, 0.4, 0.9])
def test_six_interrupts_during_the_start_end_quietly_with_130(after: float, tmp_path: Path) -> None:
    process = child("run", "v0_reference", "--steps", "100000", cwd=tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(after)
    for _ in range(6):
        process.send_signal(signal.SIGINT)
        time.sleep(0.02)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert b"Traceback" not in err
    assert b"Exception ignored" not in err
    assert err.count(b"\n") == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_traceback_and_no_file_takes_its_place(closed: str, tmp_path: Path) -> None:
    words = f"{sys.executable} -m skewsim.cli scenarios {closed}"
    done = subprocess.run(["bash", "-c", words], capture_output=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0
    assert done.stderr == b""
    assert (b"v0_reference" in done.stdout) is (">&-" not in closed.replace("2>&-", ""))
    assert os.listdir(tmp_path) == []


def test_a_full_device_is_one_line() -> None:
    words = f"{sys.executable} -m skewsim.cli scenarios --settings > /dev/full"
    done = subprocess.run(["bash", "-c", words], capture_output=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"Exception ignored" not in done.stderr
