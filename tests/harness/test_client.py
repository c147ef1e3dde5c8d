"""A worker that dies, hangs or sends nonsense gives one clear error; rows are kept and no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from harness.client import Limits, WorkerClient, _Watch
from harness.idleness import Idleness
from skewsim.errors import EngineError, UserError

FAKE = Path(__file__).with_name("fake_worker.py")


def start(**limits: float) -> WorkerClient:
    """A worker that is ready. Only the limits given are short, so that no other limit ends it on a busy machine."""
    client = WorkerClient([sys.executable, "-u", str(FAKE)], limits=Limits(**limits))
    client.call("init")
    return client


def gone(pid: int) -> bool:
    for _ in range(1200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.05)
    return False


def test_rows_arrive_one_by_one_and_the_result_at_the_end() -> None:
    client = start()
    stream = client.stream("generate")
    assert next(stream)["id"] == 0
    assert next(stream)["id"] == 1
    with pytest.raises(StopIteration) as end:
        next(stream)
    assert end.value.value["steps"] == 2
    client.close()
    assert gone(client.pid)


@pytest.mark.parametrize(
    ("how", "limits", "said"),
    [
        (
            "die",
            {},
            "ended with exit code 3 during generate; its last words: ValueError: the fake worker was told to die",
        ),
        ("hang", {"idle_s": 1.0}, "is alive and has done nothing for 1 s during generate"),
        ("spin", {"progress_s": 1.5}, "made no progress for 1.5 s during generate"),
        ("freeze", {"silence_s": 1.5}, "gave no sign of life for 1.5 s during generate"),
        ("rubbish", {}, "answered what is no message: 'INFO 11-22 loading weights' during generate"),
        ("array", {}, "answered what is no message: '[1, 2]' during generate"),
    ],
)
def test_a_failing_worker_is_one_clear_error_and_the_rows_before_it_are_kept(
    how: str, limits: dict[str, float], said: str
) -> None:
    client = start(**limits)
    stream = client.stream("generate", how=how)
    assert next(stream)["id"] == 0
    with pytest.raises(EngineError) as caught:
        next(stream)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert gone(client.pid)
    with pytest.raises(EngineError, match="is closed"):
        client.call("generate")


@pytest.mark.parametrize("how", ["die", "rubbish"])
def test_a_worker_that_fails_while_starting_is_one_clear_error(how: str) -> None:
    client = WorkerClient([sys.executable, "-u", str(FAKE)])
    with pytest.raises(EngineError, match="during init"):
        client.call("init", how=how)
    assert gone(client.pid)


def test_a_worker_that_freezes_while_starting_is_found_out_by_its_silence_long_before_a_start_takes_too_long() -> None:
    limits = Limits(init_s=600.0, start_silence_s=1.5)
    client = WorkerClient([sys.executable, "-u", str(FAKE)], limits=limits)
    with pytest.raises(EngineError, match=r"gave no sign of life for 1\.5 s during init"):
        client.call("init", how="freeze")
    assert gone(client.pid)


@pytest.mark.parametrize("when", ["start", "load"])
def test_a_worker_that_waits_for_ever_while_starting_is_found_out_by_its_idleness_long_before_that(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if when == "start":
        monkeypatch.setenv("FAKE_START", "hang")
    client = WorkerClient([sys.executable, "-u", str(FAKE)], limits=Limits(init_s=600.0, idle_s=1.0))
    with pytest.raises(EngineError, match="is alive and has done nothing for 1 s during init"):
        client.call("init", how="hang")
    assert gone(client.pid)


@pytest.mark.parametrize(
    "work", ["while True: pass", "while True: open('/dev/zero', 'rb').read(1 << 20); time.sleep(0.1)"]
)
def test_a_worker_whose_child_computes_or_reads_is_not_idle(work: str) -> None:
    child = subprocess.Popen(
        ["sh", "-c", f'"{sys.executable}" -c "import time\n{work}" & wait'], start_new_session=True
    )
    try:
        assert not idle(child.pid, seconds=1.0)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def test_a_process_that_only_sleeps_is_idle() -> None:
    child = subprocess.Popen(["sh", "-c", "sleep 60 & wait"], start_new_session=True)
    try:
        assert idle(child.pid, seconds=1.0)
    finally:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def test_where_the_system_does_not_say_what_threads_ran_nothing_is_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in ("7", "8"):
        (tmp_path / number / "task" / number).mkdir(parents=True)
        (tmp_path / number / "stat").write_text(f"{number} (python) S 1 7 7 0")
        (tmp_path / number / "io").write_text("rchar: 5")
    (tmp_path / "8" / "task" / "8" / "schedstat").write_text("0 0 0")
    monkeypatch.setattr("harness.idleness._PROC", tmp_path)
    clock = Clock()
    monkeypatch.setattr("harness.idleness.time", clock)
    assert not idle(7, seconds=0.6, clock=clock)
    (tmp_path / "8" / "task" / "8" / "schedstat").write_text("9 0 1")
    assert idle(7, seconds=0.6, clock=clock)
    (tmp_path / "7" / "stat").write_text("7 (python) D 1 7 7 0")
    assert not idle(7, seconds=0.6, clock=clock)
    (tmp_path / "7" / "stat").write_text("7 (python) S 1 7 7 0")
    assert idle(7, seconds=0.6, clock=clock)
    (tmp_path / "8" / "task" / "8" / "stat").write_text("8 (a (b) c) R 7 7 7 0")
    assert not idle(7, seconds=0.6, clock=clock), "it runs on a core that the host of this machine has taken away"
    thread, glances = tmp_path / "8" / "task" / "8" / "stat", iter(["R", "R", "S"])

    def glance(seconds: float) -> None:
        if seconds < 0.1:  # between two looks at the states
            thread.write_text(f"8 (python) {next(glances, 'S')} 7 7 7 0")
        clock.now += seconds

    monkeypatch.setattr(clock, "sleep", glance)
    assert idle(7, seconds=0.6, clock=clock), "it only polls"
    monkeypatch.setattr("harness.idleness._PROC", tmp_path / "none")
    assert not idle(7, seconds=0.6, clock=clock)


class Clock:
    """A clock that moves only when somebody sleeps by it."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def idle(session: int, *, seconds: float, clock: Any = time) -> bool:
    idleness, until = Idleness(session), clock.monotonic() + 2.5 * seconds
    while clock.monotonic() < until:
        if idleness.lasts(seconds):
            return True
        clock.sleep(0.1)
    return False


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"silence_s": 1.0}, "gave no sign of life for 1 s"),
        ({"progress_s": 1.0}, "made no progress for 1 s"),
        ({"idle_s": 1.0}, "is alive and has done nothing for 1 s"),
    ],
)
def test_time_in_which_this_process_was_stopped_does_not_count_against_a_worker(
    limits: dict[str, float], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "7" / "task" / "7").mkdir(parents=True)
    for name, text in {"stat": "7 (python) S 1 7 7 0", "io": "rchar: 5", "task/7/schedstat": "9 0 1"}.items():
        (tmp_path / "7" / name).write_text(text)
    monkeypatch.setattr("harness.idleness._PROC", tmp_path)
    clock = Clock()
    monkeypatch.setattr("harness.idleness.time", clock)
    monkeypatch.setattr("harness.client.time", clock)
    watch = _Watch(7, Limits(**({"silence_s": 99.0, "progress_s": 99.0, "idle_s": 99.0} | limits)), ready=True)

    def turns(count: int, seconds: float) -> str | None:
        for _ in range(count):
            clock.sleep(seconds)
            watch.listen()
            if found := watch.verdict():
                return found
        return None

    assert turns(4, 0.2) is None
    assert turns(1, 60.0) is None
    assert turns(4, 0.2) is None
    assert turns(10, 0.2) == said


def test_a_worker_killed_from_outside_is_named_with_its_signal() -> None:
    client = start(silence_s=60.0, idle_s=60.0)
    stream = client.stream("generate", how="hang")
    assert next(stream)["id"] == 0
    os.kill(client.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="was killed by SIGKILL during generate"):
        next(stream)
    assert gone(client.pid)


def test_a_stopped_process_is_found_out_by_its_silence() -> None:
    client = start(silence_s=1.0)
    stream = client.stream("generate", how="hang")
    next(stream)
    os.kill(client.pid, signal.SIGSTOP)
    with pytest.raises(EngineError, match="no sign of life"):
        next(stream)
    assert gone(client.pid)


def test_a_worker_that_does_not_read_its_command_is_found_out_by_its_silence() -> None:
    client = start(silence_s=1.0)
    os.kill(client.pid, signal.SIGSTOP)
    more_than_a_pipe_holds = list(range(100_000))
    with pytest.raises(EngineError, match="no sign of life for 1 s during generate"):
        client.call("generate", requests=more_than_a_pipe_holds)
    assert gone(client.pid)


def test_what_the_worker_started_is_ended_with_it() -> None:
    stream = start().stream("generate", how="spawn")
    next(stream)
    child = next(stream)["cached"]
    with pytest.raises(EngineError, match="exit code 1"):
        next(stream)
    assert gone(child)


def test_a_refused_command_is_an_error_and_ends_the_worker() -> None:
    client = start()
    with pytest.raises(EngineError, match="refused generate: ValueError: no such dtype"):
        client.call("generate", how="refuse")
    assert gone(client.pid)


@pytest.mark.parametrize("limit", ["silence_s", "idle_s", "progress_s"])
def test_what_the_worker_said_while_the_caller_was_busy_counts_before_any_judgement(limit: str) -> None:
    client = start(**{limit: 1.0})
    stream = client.stream("generate")
    for _ in range(2):
        next(stream)
        time.sleep(1.5)
    with pytest.raises(StopIteration):
        next(stream)
    client.close()


def test_closing_twice_does_no_harm_and_a_caller_who_stops_listening_ends_the_worker() -> None:
    client = start()
    stream = client.stream("generate", how="hang")
    next(stream)
    stream.close()
    assert gone(client.pid)
    client.close()
    client.close()


def test_a_program_that_does_not_exist_is_one_clear_error() -> None:
    with pytest.raises(EngineError, match="cannot be started: /no/such/python: No such file"):
        WorkerClient(["/no/such/python", "worker.py"])


@pytest.mark.parametrize("ending", ["sys.exit(0)", "raise RuntimeError('x')", "os.kill(os.getpid(), 9)"])
def test_no_worker_outlives_the_process_that_started_it(ending: str) -> None:
    code = (
        "import os, sys\n"
        "from harness.client import WorkerClient\n"
        f"client = WorkerClient([sys.executable, '-u', {str(FAKE)!r}])\n"
        "client.call('init')\n"
        "print(client.pid, flush=True)\n"
        f"{ending}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert gone(int(done.stdout))


def test_a_time_limit_that_is_no_number_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKEWSIM_ENGINE_TIMEOUT", "soon")
    with pytest.raises(UserError, match="SKEWSIM_ENGINE_TIMEOUT='soon': allowed are seconds above 0"):
        Limits()
