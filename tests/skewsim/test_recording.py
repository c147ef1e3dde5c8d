"""A run folder loses no step and repeats none, whatever moment a kill comes at."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from skewsim.cli.main import main
from skewsim.errors import FileFormatError, UserError
from skewsim.learn.trainer import Trainer, TrainState
from skewsim.records import StepRecord
from skewsim.runs.checkpoint import Checkpoint, fitting, read_checkpoint, write_checkpoint
from skewsim.runs.recording import (
    CHECKPOINT,
    PREVIOUS,
    STEPS,
    SUMMARY,
    RunFolder,
    read_records,
    read_summary,
    record,
    summarise,
)
from skewsim.settings import Scenario, parse_scenario
from skewsim.share import load_toml, to_toml

SMALL = parse_scenario(
    {
        "name": "small",
        "steps": 6,
        "policy": "random",
        "task": {"response_length": 4, "pool_size": 4, "reward": "partial"},
        "engine": {"lag": 2, "update_at_token": 2, "enable_prefix_caching": True},
        "trainer": {"num_prompts": 2, "num_generations": 2},
    }
)
SEEDS = (0, 1)


def open_folder(path: Path, scenario: Scenario = SMALL, *, resume: bool = False) -> RunFolder:
    return RunFolder(path, scenario, seeds=SEEDS, engine="sim", resume=resume)


def go(
    path: Path, scenario: Scenario = SMALL, *, resume: bool = False, stop_after: int | None = None, every: int = 1
) -> None:
    """Record a run, from its checkpoint on if it is resumed; after ``stop_after`` steps stop as if killed."""
    folder = open_folder(path, scenario, resume=resume)
    trainer = Trainer(scenario, seeds=SEEDS, state=folder.load_state())
    for count, _ in enumerate(record(trainer, folder, steps=scenario.steps, checkpoint_every=every), start=1):
        if count == stop_after:
            folder._lock.release()
            return


def timeless(path: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (path / STEPS).read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("time/")} for row in rows]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("undisturbed") / "run"
    go(path)
    return path


def test_every_member_and_step_is_recorded_once_in_order(undisturbed: Path) -> None:
    assert [(row["step"], row["seed"]) for row in timeless(undisturbed)] == [(k, s) for k in range(6) for s in SEEDS]
    assert load_toml(undisturbed / "scenario.toml") == SMALL


def test_the_summary_holds_the_means_of_the_last_tenth(undisturbed: Path) -> None:
    summary = read_summary(undisturbed)
    assert (summary["status"], summary["engine"], summary["seeds"]) == ("finished", "sim", [0, 1])
    last = timeless(undisturbed)[-1]
    assert summary["members"][1]["last_tenth"]["reward/partial"] == last["reward/partial"]
    assert summary["members"][1]["steps"] == 6


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_a_run_stopped_anywhere_and_resumed_equals_an_undisturbed_one(
    tmp_path: Path, undisturbed: Path, stop_after: int, every: int
) -> None:
    go(tmp_path / "run", stop_after=stop_after, every=every)
    go(tmp_path / "run", resume=True, every=every)
    assert timeless(tmp_path / "run") == timeless(undisturbed)


def test_lines_past_the_checkpoint_and_half_lines_are_cut_off_on_resume(tmp_path: Path, undisturbed: Path) -> None:
    go(tmp_path / "run", stop_after=2)
    with (tmp_path / "run" / STEPS).open("a") as file:
        file.write('{"step": 2, "scenario": "small", "seed": 0}\n{"step": 2, "scen')
    go(tmp_path / "run", resume=True)
    assert timeless(tmp_path / "run") == timeless(undisturbed)


def test_a_kill_before_the_first_checkpoint_starts_anew(tmp_path: Path, undisturbed: Path) -> None:
    go(tmp_path / "run", stop_after=2)
    (tmp_path / "run" / CHECKPOINT).unlink()
    go(tmp_path / "run", resume=True)
    assert timeless(tmp_path / "run") == timeless(undisturbed)


def test_resuming_a_finished_run_changes_no_step(tmp_path: Path, undisturbed: Path) -> None:
    go(tmp_path / "run")
    before = (tmp_path / "run" / STEPS).read_bytes()
    go(tmp_path / "run", resume=True)
    assert (tmp_path / "run" / STEPS).read_bytes() == before


def test_a_finished_run_can_be_made_longer(tmp_path: Path, undisturbed: Path) -> None:
    go(tmp_path / "run", SMALL.with_values({"steps": 3}))
    go(tmp_path / "run", resume=True)
    assert timeless(tmp_path / "run") == timeless(undisturbed)


def test_a_process_killed_again_and_again_leaves_the_records_of_an_undisturbed_run(tmp_path: Path) -> None:
    scenario = SMALL.with_values({"steps": 24})
    (tmp_path / "small.toml").write_text(to_toml(scenario))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["skewsim.learn.trainer", "skewsim.cli.simulate", "safetensors.torch"])
    command = ["run", str(tmp_path / "small.toml"), "--seeds", "2", "--resume", "--out"]
    moments, kills = random.Random(7), 0
    while True:
        child = context.Process(target=main, args=([*command, str(tmp_path / "killed")],))
        child.start()
        if kills < 5:
            wait_for_progress(tmp_path / "killed" / STEPS)
        child.join(moments.uniform(0, 0.15) if kills < 5 else None)
        if not child.is_alive():
            break
        child.kill()
        child.join()
        kills += 1
    assert child.exitcode == 0
    assert kills >= 3
    go(tmp_path / "undisturbed", scenario)
    assert timeless(tmp_path / "killed") == timeless(tmp_path / "undisturbed")


def wait_for_progress(steps: Path) -> None:
    """Wait until a run has changed its file of steps."""
    before = steps.stat().st_mtime_ns if steps.exists() else 0
    until = time.monotonic() + 30
    while time.monotonic() < until and (not steps.exists() or steps.stat().st_mtime_ns == before):
        time.sleep(0.005)


def test_records_read_back_equal_those_written_and_a_live_last_line_is_left_out(tmp_path: Path) -> None:
    rows = [StepRecord(k, "s", 0, {"reward/mean": k / 7, "skew/pearson": None}, ["a: 1 -> 2"]) for k in range(3)]
    with open_folder(tmp_path / "run") as folder:
        folder.append(rows)
        with (tmp_path / "run" / STEPS).open("a") as file:
            file.write('{"step": 3, "scenario": "s"')
        assert list(read_records(tmp_path / "run")) == rows


def test_numbers_that_are_not_finite_become_null_in_the_files(tmp_path: Path) -> None:
    rows = [StepRecord(0, "s", 0, {"reward/mean": float("nan"), "skew/bias": float("inf")}, diverged="loss is nan")]
    with open_folder(tmp_path / "run") as folder:
        folder.append(rows)
    (written,) = timeless(tmp_path / "run")
    assert (written["reward/mean"], written["skew/bias"]) == (None, None)
    assert read_summary(tmp_path / "run")["members"][0]["diverged"] == "loss is nan"


def test_the_summary_of_a_member_without_numbers_is_null() -> None:
    rows = [StepRecord(0, "s", 0, {"reward/mean": None})]
    assert summarise(rows)["members"][0]["last_tenth"] == {"reward/mean": None}


def refused(path: Path, *, resume: bool, scenario: Scenario = SMALL) -> str:
    with pytest.raises(UserError) as caught:
        go(path, scenario, resume=resume)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def contents(path: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in path.iterdir()}


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with open_folder(tmp_path / "run"):
        assert "in use by another process" in refused(tmp_path / "run", resume=True)


def test_a_folder_with_something_in_it_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "is not empty" in refused(tmp_path, resume=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["notes.txt"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    assert "is a file" in refused(tmp_path / "run", resume=False)


def test_a_folder_of_another_scenario_or_other_seeds_is_refused(tmp_path: Path) -> None:
    go(tmp_path / "run", stop_after=1)
    other = SMALL.with_values({"engine.lag": 1})
    assert "another scenario" in refused(tmp_path / "run", resume=True, scenario=other)
    with pytest.raises(UserError, match="seeds"):
        RunFolder(tmp_path / "run", SMALL, seeds=(5,), engine="sim", resume=True)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        (CHECKPOINT, b"", "checkpoint"),
        (CHECKPOINT, b"\x80\x04K\x01.", "checkpoint"),
        (STEPS, b"", "shorter than its checkpoint"),
        (SUMMARY, b'{"schema_version": 99}', "schema_version=99 is from a later skewsim; this one reads up to 1"),
        (SUMMARY, b"{", "not a run's summary"),
        ("scenario.toml", b"schema_version = 99", "schema_version=99 is not known"),
        ("scenario.toml", b"steps = ", "is not a TOML file"),
    ],
)
def test_a_damaged_or_later_file_is_one_clear_error(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    go(tmp_path / "run", stop_after=2)
    (tmp_path / "run" / name).write_bytes(content)
    before = contents(tmp_path / "run")
    assert says in refused(tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == before


def test_a_record_says_its_schema_version_and_one_that_does_not_is_of_the_first(tmp_path: Path) -> None:
    path, row = tmp_path / "steps.jsonl", StepRecord(0, "s", 0, {"reward/mean": 0.5})
    line = row.to_json()
    assert line["schema_version"] == 1
    path.write_text("".join(json.dumps(each) + "\n" for each in (line, {**line, "schema_version": 1})))
    assert list(read_records(path)) == [row, row]
    del line["schema_version"]
    path.write_text(json.dumps(line) + "\n")
    assert list(read_records(path)) == [row]


@pytest.mark.parametrize(
    ("version", "says"), [(2, "schema_version=2 is from a later skewsim"), ("x", "schema_version='x' is not known")]
)
def test_a_record_of_another_schema_version_is_one_line_that_names_it(tmp_path: Path, version: Any, says: str) -> None:
    path = tmp_path / "steps.jsonl"
    path.write_text(json.dumps({"schema_version": version, "what": "only a later program knows"}) + "\n")
    with pytest.raises(FileFormatError, match=says) as caught:
        list(read_records(path))
    assert "line 1" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", [b"[]\n", b"{}\n", b"\x80\x04K\x01.\n", b'{"schema_version": 99}\n'])
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "steps.jsonl").write_bytes(line)
    with pytest.raises(FileFormatError, match="line 1"):
        list(read_records(tmp_path / "steps.jsonl"))


def altered(content: bytes, rng: random.Random) -> bytes:
    """The same bytes with one to three of them changed."""
    changed = bytearray(content)
    for place in rng.sample(range(len(content)), rng.randint(1, 3)):
        changed[place] ^= rng.randint(1, 255)
    return bytes(changed)


def corrupt_and_resume(whole: Path, undisturbed: Path, place: Path, numbers: range) -> dict[str, int]:
    """Alter a few bytes of a killed run and resume it: refused with the part's name and nothing touched, or equal."""
    ended = {"refused": 0, "equal": 0}
    for number in numbers:
        rng = random.Random(number)
        path = place / str(number)
        shutil.copytree(whole, path)
        name = rng.choice((CHECKPOINT, CHECKPOINT, STEPS, PREVIOUS, SUMMARY, "scenario.toml"))
        (path / name).write_bytes(altered((path / name).read_bytes(), rng))
        before = contents(path)
        try:
            go(path, resume=True)
        except UserError as error:
            said = str(error)
            assert contents(path) == before, f"{number}: a refused run was touched"
            assert "\n" not in said
            assert name in said or name == SUMMARY, f"{number}: {said}"
            ended["refused"] += 1
        else:
            assert timeless(path) == timeless(undisturbed), f"{number}: {name} was altered, and the run is another"
            ended["equal"] += 1
        shutil.rmtree(path)
    return ended


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("killed") / "run"
    go(path, stop_after=SMALL.steps - 1)
    return path


def test_a_few_altered_bytes_are_refused_by_name_or_change_nothing(
    killed: Path, undisturbed: Path, tmp_path: Path
) -> None:
    assert corrupt_and_resume(killed, undisturbed, tmp_path, range(20))["refused"] >= 10


@pytest.mark.slow
def test_two_hundred_corruptions_are_refused_by_name_or_change_nothing(
    killed: Path, undisturbed: Path, tmp_path: Path
) -> None:
    assert corrupt_and_resume(killed, undisturbed, tmp_path, range(1000, 1200))["refused"] >= 100


def test_an_altered_checkpoint_is_refused_with_the_one_before_it_and_that_one_leads_to_the_same_run(
    killed: Path, undisturbed: Path, tmp_path: Path
) -> None:
    path = shutil.copytree(killed, tmp_path / "run")
    content = bytearray((path / CHECKPOINT).read_bytes())
    content[-5] ^= 1
    (path / CHECKPOINT).write_bytes(content)
    said = refused(path, resume=True)
    assert "its part" in said
    assert f"mv {path / PREVIOUS} {path / CHECKPOINT}" in said
    (path / PREVIOUS).rename(path / CHECKPOINT)
    go(path, resume=True)
    assert timeless(path) == timeless(undisturbed)


def test_a_checkpoint_is_a_file_that_the_safetensors_library_reads_and_checks(tmp_path: Path) -> None:
    path = tmp_path / CHECKPOINT
    tensors = {
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "count": torch.tensor([2**40, -1]),
        "flags": torch.tensor([True, False, True]),
        "half": torch.tensor([[1.0, -2.0]], dtype=torch.bfloat16),
        "turned": torch.arange(6.0).reshape(2, 3).T,
    }
    write_checkpoint(path, tmp_path / "previous", Checkpoint(TrainState(tensors, {"step": 1}), 7, 9))
    read = {"library": load_file(path), "checked": read_checkpoint(path).state.tensors}
    for found in read.values():
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor)


def test_a_checkpoint_without_checksums_still_resumes(killed: Path, undisturbed: Path, tmp_path: Path) -> None:
    path = shutil.copytree(killed, tmp_path / "run")
    with safe_open(path / CHECKPOINT, framework="pt") as file:
        note = json.loads(file.metadata()["skewsim"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    old = {key: note[key] for key in ("schema_version", "length", "meta")}
    save_file(tensors, path / CHECKPOINT, metadata={"skewsim": json.dumps(old)})
    go(path, resume=True)
    assert timeless(path) == timeless(undisturbed)


def test_a_step_that_is_infinite_is_of_no_run(tmp_path: Path) -> None:
    trainer = Trainer(SMALL, seeds=SEEDS)
    state = trainer.state()
    state.meta["step"] = float("inf")
    with pytest.raises(FileFormatError, match="does not fit this run"), fitting(tmp_path, state):
        Trainer(SMALL, seeds=SEEDS, state=state)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *itertools.product(("policy", "adam.step", "adam.exp_avg", "adam.exp_avg_sq"), ("missing", "shape", "dtype")),
        ("published.0", "shape"),  # it need not be there: a checkpoint has the versions that the engine may ask for
    ],
)
def test_a_state_without_a_tensor_or_with_another_kind_of_one_is_of_no_run(
    tmp_path: Path, name: str, kind: str
) -> None:
    state = Trainer(SMALL, seeds=SEEDS).state()
    assert name in state.tensors
    if kind == "missing":
        del state.tensors[name]
    else:
        old = state.tensors[name]
        state.tensors[name] = old.reshape(1, *old.shape) if kind == "shape" else old.double()
    with pytest.raises(FileFormatError, match="does not fit this run"), fitting(tmp_path, state):
        Trainer(SMALL, seeds=SEEDS, state=state)


def test_a_bad_row_is_found_before_anything_is_cut(killed: Path, tmp_path: Path) -> None:
    path = shutil.copytree(killed, tmp_path / "run")
    lines = (path / STEPS).read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"seed"', b'"sead"')
    (path / STEPS).write_bytes(b"".join(lines) + b"a half line")
    before = contents(path)
    assert "steps.jsonl, line 2 is not a step record" in refused(path, resume=True)
    assert contents(path) == before


def test_what_a_killed_writer_left_is_removed_when_a_writer_next_opens_the_folder(killed: Path, tmp_path: Path) -> None:
    path = shutil.copytree(killed, tmp_path / "run")
    left = path / f".{CHECKPOINT}.{os.getpid()}.0123abcd"  # of this very process's number: the lock says who writes
    left.write_bytes(b"half")
    (path / ".notes").write_bytes(b"mine")
    go(path, resume=True)
    assert not left.exists()
    assert (path / ".notes").exists()
