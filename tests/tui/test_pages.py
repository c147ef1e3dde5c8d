"""The screens that look closer, from made-up rollouts and scripted curves."""

from __future__ import annotations

import asyncio
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from textual import events
from textual.geometry import Size
from textual.widgets import OptionList

import skewsim
from skewsim.catalogue import OBJECTIVES
from skewsim.diagnose.causes import Cause, Diagnosis, found
from skewsim.errors import UserError
from skewsim.learn.losses import LossInputs
from skewsim.learn.objectives import compute_loss
from skewsim.runs.recording import RunFolder
from skewsim.settings import Scenario
from tui.driver import TrackSpec
from tui.files import curves_csv
from tui.folders import find_runs, open_run, summary_line
from tui.lab import initial_v1_for, opening, reference_for
from tui.measuring import Measuring
from tui.process import Watch
from tui.screens.advise import share_outside
from tui.screens.diagnose import here, report
from tui.screens.formula import explain
from tui.screens.tokens import histogram
from tui.shell import Options
from tui.snapshot import Snapshot
from tui.sweeps import find_sweeps, sweep_line
from tui.views import Look
from tui.worker import loss_source, work_out

from .conftest import StageMaker
from .profiles import make_profile
from .scripted import scripted
from .snapshots import snapshot
from .stagecraft import on_stage
from .sweeps import make_sweep_folder

ROOT = Path(__file__).parents[2]
OF_FORM = {"gspo/paper": {"trainer.gspo_form": "paper"}, "rloo/clipped": {"trainer.epsilon": 0.2}}
"""What chooses a form, beside its objective's name."""


def of_form(key: str) -> Scenario:
    return Scenario().with_values({"trainer.objective": key.partition("/")[0], **OF_FORM.get(key, {})})


def rollout(scenario: Scenario, trainer: list[float], *, engine: float, advantage: float) -> Snapshot:
    """One sequence, worked out."""
    shape = (1, len(trainer))
    shot = Snapshot(
        step=0,
        scenario=scenario,
        loss=loss_source(scenario),
        prompt_ids=np.zeros(1, np.int64),
        prompts=np.zeros((1, 1), np.int64),
        tokens=np.zeros(shape, np.int64),
        mask=np.ones(shape, bool),
        engine_logprobs=np.full(shape, engine),
        trainer_logprobs=np.array([trainer]),
        square_mass=np.exp(2 * np.array([trainer])),
        weight_versions=np.zeros(shape, np.int64),
        rewards=np.ones(1),
        advantages=np.array([advantage]),
    )
    return work_out(shot)


def trained_on(shot: Snapshot) -> float:
    """The loss that the trainer takes on a snapshot."""
    inputs = LossInputs(
        trainer_logprobs=torch.tensor(shot.trainer_logprobs),
        old_logprobs=torch.tensor(shot.old_logprobs),
        engine_logprobs=torch.tensor(shot.engine_logprobs),
        mask=torch.tensor(shot.mask).double(),
        advantages=torch.tensor(shot.advantages),
        group_ids=torch.zeros(1, dtype=torch.int64),
    )
    return float(compute_loss(inputs, shot.scenario.trainer).loss)


@pytest.mark.parametrize("key", OBJECTIVES)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.1, 6.0])
def test_the_formula_screen_works_out_the_loss_that_the_trainer_takes(key: str, advantage: float, ratio: float) -> None:
    shot = rollout(of_form(key), [-2.5 + math.log(ratio)], engine=-2.5, advantage=advantage)
    assert shot.worked is not None
    assert shot.worked.loss == pytest.approx(trained_on(shot), abs=1e-9)
    text = explain(shot, shot.worked, Look()).plain
    assert OBJECTIVES[key].formula in text
    assert f"loss                              {shot.worked.loss:+.4f}" in text
    named = {"none": None, "engine": "mismatch ratio", "old": "update ratio"}[OBJECTIVES[key].ratio]
    assert re.findall(rf"(\w+ ratio) +{ratio:.4f}", text) == ([named] if named else [])
    assert Snapshot.from_json(json.loads(json.dumps(shot.to_json()))).worked == shot.worked


@pytest.mark.parametrize(("key", "ratio"), [("gspo/paper", math.exp(0.2)), ("rloo/clipped", math.exp(0.6))])
def test_where_the_clip_looks_at_sequences_the_formula_screen_does_too(key: str, ratio: float) -> None:
    shot = rollout(of_form(key), [-1.0, -1.9, -2.0], engine=-1.8333333333333333, advantage=-1.0)
    assert shot.worked is not None
    assert shot.worked.clipped == pytest.approx(ratio)
    assert shot.worked.loss == pytest.approx(ratio) == trained_on(shot)
    assert "its whole sequence enters" in explain(shot, shot.worked, Look()).plain
    assert "Update ratios of sequences" in histogram(shot, Look(), width=80).plain


@pytest.mark.parametrize("key", OBJECTIVES)
def test_the_formula_screen_shows_the_source_of_the_loss(key: str) -> None:
    source = loss_source(of_form(key))
    file, _, line = source.where.partition(":")
    lines = (ROOT / file).read_text().splitlines()
    assert lines[int(line) - 1] == source.code.splitlines()[0]
    assert source.code.startswith("def ")


_NEW_OBJECTIVE = """
from skewsim import catalogue
catalogue.OBJECTIVES["mine"] = catalogue.ObjectiveForm("loss = -2 A lp_t", "nowhere", ratio="none", clip="none")
from skewsim.learn import objectives
from skewsim.learn.advantages import batch_centered
def mine(batch, settings):
    return objectives.Terms(-2 * batch.advantages * batch.logprobs)
objectives.OBJECTIVES["mine"] = objectives.Objective(mine, "token", batch_centered)
import inspect, sys
import tui.worker
tui.worker.inspect.getsourcelines = lambda function: (["def mine"], 1)
from skewsim.settings import Scenario
from tests.tui.snapshots import snapshot
from tui.controls import selectors
from tui.screens.advise import share_outside
from tui.screens.formula import explain
from tui.screens.tokens import histogram
from tui.views import Look
(control,) = (c for c in selectors() if c.id == "objective")
scenario = Scenario()
while scenario.trainer.objective != "mine":
    scenario = control.moved(scenario, 1)
shot = snapshot(scenario)
print(explain(shot, shot.worked, Look()).plain, histogram(shot, Look(), width=80).plain, share_outside(scenario, .1, 9))
"""


@pytest.mark.slow
def test_an_objective_that_only_the_table_and_the_trainer_know_is_on_explore_and_on_every_page() -> None:
    done = subprocess.run([sys.executable, "-c", _NEW_OBJECTIVE], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mine   loss = -2 A lp_t" in done.stdout
    assert "this objective has no clip" in done.stdout


def test_the_histogram_counts_what_the_clip_would_change() -> None:
    shot = snapshot(noise=0.5)
    ratios = shot.ratios[shot.mask]
    outside = float(((ratios < 0.8) | (ratios > 1.2)).mean())
    assert f"outside the clip bounds: {outside:.1%}" in histogram(shot, Look(), width=80).plain


def test_recomputed_old_logprobs_put_every_first_ratio_at_one() -> None:
    shot = snapshot(Scenario().with_values({"trainer.old_logprobs": "recompute"}))
    assert np.array_equal(shot.ratios, np.ones_like(shot.ratios))


def test_advise_reproduces_the_share_of_healthy_sequences_inside_gspos_paper_clip() -> None:
    gspo = Scenario().with_values({"trainer.objective": "gspo", "trainer.gspo_form": "paper"})
    assert 1 - share_outside(gspo, 0.0449, 1506) == pytest.approx(0.16, abs=0.01)


@on_stage
async def test_advise_moves_with_noise_and_length(stage: StageMaker) -> None:
    async with stage(size=(120, 40), steps=1) as s:
        await s.press("a", "right", "up")
        assert "sigma 0.06 nats, 2048 tokens" in s.text()
        await s.press("left", "left", "down", "down")
        assert "sigma 0.031 nats, 1024 tokens" in s.text()


@on_stage
async def test_a_profile_is_shown_compared_and_used_as_the_noise_source(stage: StageMaker, tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_profile(tmp_path / f"{name}.json")
    async with stage(size=(120, 40), steps=2) as s:
        s.app.profiles = tuple(str(tmp_path / f"{name}.json") for name in ("one", "two"))
        s.app.explore.profiles_changed()
        await s.press("p")
        assert "one (measured)" in s.text()
        assert "published bf16" in s.text()
        await s.press("c", "right")
        assert "sigma_z" in s.text()
        await s.press("enter", "escape")
        assert s.lab.yours.skew.profile == s.app.profiles[1]
        assert "two" in s.text()
        await s.press("u")
        assert s.lab.yours.skew.profile is None


@on_stage
async def test_the_ladder_runs_its_six_rungs_beside_the_lab(stage: StageMaker) -> None:
    async with stage(size=(120, 40), steps=1) as s:
        await s.press("g")
        async with asyncio.timeout(120):
            while "step 100 of 100" not in s.text():
                await asyncio.sleep(0.05)
                s.app.tick()
                await s.settle()
        assert "identical bit for bit" in s.text()
        await s.press("escape")


@on_stage
async def test_a_replay_goes_forward_and_backward_through_the_live_path(stage: StageMaker) -> None:
    async with stage(steps=0) as s:
        specs = [
            TrackSpec(name, Scenario(name=name, steps=30), (0,), taped=True, train=scripted)
            for name in ("yours", "other")
        ]
        s.lab.replay("replay of run-1", specs)
        await s.advance(20)
        assert "replay of run-1" in s.text()
        await s.press("comma", "comma")
        async with asyncio.timeout(120):
            while s.lab.step != 17:
                s.lab.tick()
                await asyncio.sleep(0.01)
        await s.press("backspace")
        async with asyncio.timeout(120):
            while s.lab.step > 5:
                s.app.tick()
                await asyncio.sleep(0.02)
        await s.press("0", "space")
        assert s.lab.replaying is None


def test_an_empty_or_missing_run_folder_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UserError) as caught:
            open_run(path)
        assert "\n" not in str(caught.value)


@on_stage
async def test_every_number_on_the_charts_is_in_the_export(stage: StageMaker) -> None:
    async with stage(steps=7) as s:
        lines = curves_csv(s.lab).splitlines()
        assert lines[1].startswith("curve,seed,step,")
        header = lines[1].split(",")
        last = dict(zip(header, lines[-1].split(","), strict=True))
        assert last["curve"] == "yours"
        assert float(last["reward/mean"]) == pytest.approx(s.lab.tracks["yours"].series.now("reward/mean"), rel=1e-4)


def test_measuring_survives_the_failure_of_its_child(tmp_path: Path) -> None:
    script = "import sys; print('loading', file=sys.stderr); sys.exit(3)"
    measuring = Measuring("base", tmp_path, command=(sys.executable, "-c", script))
    seen: list[str] = []
    asyncio.run(measuring.run(lambda: seen.append(measuring.line)))
    assert measuring.line == "measuring failed (exit code 3): loading"
    assert not measuring.running
    assert "measuring: loading" in seen
    missing = Measuring("base", tmp_path, command=(str(tmp_path / "no-such-program"),))
    asyncio.run(missing.run(lambda: None))
    assert missing.line.startswith("measuring failed")


def test_a_measured_profile_is_found_when_the_child_ends_well(tmp_path: Path) -> None:
    script = "import sys, pathlib; pathlib.Path(sys.argv[-1], 'profile.json').write_text('{}')"
    measuring = Measuring("base --engine x", tmp_path, command=(sys.executable, "-c", script))
    asyncio.run(measuring.run(lambda: None))
    assert measuring.profile == tmp_path / "profile.json"
    with pytest.raises(UserError, match="measure"):
        Measuring("base 'unclosed", tmp_path)


@on_stage
async def test_diagnose_names_the_cause_of_the_newest_step_and_of_a_file(stage: StageMaker, tmp_path: Path) -> None:
    async with stage(size=(120, 40), steps=2) as s:
        s.app.lens.latest = snapshot(sequences=64, noise=0.0)
        await s.press("d")
        async with asyncio.timeout(120):
            while "Verdict" not in s.text():
                await asyncio.sleep(0.05)
                await s.settle()
        assert "Verdict: healthy" in s.text()
        await s.press("enter", *str(tmp_path / "none.npz"), "enter")
        async with asyncio.timeout(120):
            while "none.npz:" not in s.text() and "no such" not in s.text().lower():
                await asyncio.sleep(0.05)
                await s.settle()
        await s.press("escape")


@pytest.mark.parametrize(
    "key", ["l", "r", *(pytest.param(k, marks=pytest.mark.slow) for k in ("colon", "i", "x", "question_mark"))]
)
@on_stage
async def test_a_dialog_that_is_closed_twice_takes_no_other_screen_with_it(stage: StageMaker, key: str) -> None:
    async with stage(steps=1) as s:
        await s.press(key)
        dialog = s.app.screen
        assert dialog is not s.app.explore
        dialog.dismiss()
        dialog.dismiss()
        await s.settle()
        assert s.app.screen is s.app.explore


@on_stage
async def test_a_lesson_that_is_chosen_twice_is_started_once(stage: StageMaker) -> None:
    async with stage(steps=1) as s:
        await s.press("l")
        chosen = s.app.screen.query_one(OptionList)
        for _ in range(2):
            chosen.action_select()
        await s.settle()
        player = s.app.player
        assert player is not None
        assert s.app.screen is s.app.explore
        await s.settle()
        assert s.app.player is player


@pytest.mark.parametrize("key", ["a", *(pytest.param(key, marks=pytest.mark.slow) for key in ("", "g", "l"))])
@on_stage
async def test_two_sizes_under_way_at_once_do_not_chase_each_other(stage: StageMaker, key: str) -> None:
    async with stage(steps=1) as s:
        if key:
            await s.press(key)
        screen, seen = s.app.screen, 0
        laid_out = screen._screen_resized

        def count(size: Size) -> None:
            nonlocal seen
            seen += 1
            assert seen < 50
            laid_out(size)

        screen._screen_resized = count  # type: ignore[method-assign]
        for size in (Size(70, 20), Size(80, 24)):
            screen.post_message(events.Resize(size, size))
            screen.call_later(lambda: None)  # one right after the other would be taken for one
        await s.settle()
        assert screen.size == s.app.size == Size(80, 24)


def test_diagnose_says_which_key_here_mends_a_cause() -> None:
    off = opening()
    mended = reference_for(off)
    assert here("stale_kv", off) == "press 2 in the charts: defaults on"
    assert here("stale_kv", mended) == ""
    assert here("stale_weights", off) == "press 3 in the charts: in-flight on"
    assert here("stale_weights", mended.with_values({"engine.lag": 8})) == "turn lag down; it is 8"
    assert here("unknown", mended.with_values({"skew.noise": "normal", "skew.scale": 0.2})).startswith(
        "turn noise down"
    )


def test_a_cause_that_hardly_adds_to_the_skew_is_named_without_a_share() -> None:
    causes = (Cause("stale_kv", 0.99, "seen", "mend it"), Cause("head_dtype", 0.001, "seen", "mend it"))
    text = report(Diagnosis(causes, 100, 10, 1.0), Look()).plain
    assert "explains 99%" in text
    assert "head_dtype  is there too, and hardly adds to the skew" in text
    assert "less than" not in text


@pytest.mark.parametrize("key", ["t", "f"])
@on_stage
async def test_a_page_that_opens_on_a_paused_run_shows_the_step_just_done(stage: StageMaker, key: str) -> None:
    class Paused(Watch):
        def glance(self) -> None:
            self.latest = snapshot()

    async with stage(steps=42) as s:
        s.app.lens = Paused()
        await s.press(key)
        async with asyncio.timeout(60):
            while "step 41 of yours" not in s.text():
                await s.settle()


@on_stage
async def test_tokens_of_long_ago_are_not_shown_as_the_newest(stage: StageMaker) -> None:
    async with stage(steps=2) as s:
        s.app.lens.latest = snapshot()
        await s.press("t")
        assert "step 41 of yours" in s.text()
        await s.press("escape")
        await s.advance(45)
        await s.press("t")
        assert "The next step's tokens appear here" in s.text()


@pytest.mark.parametrize("key", ["t", "f", "d"])
@on_stage
async def test_what_looks_at_tokens_says_that_a_replay_has_none(stage: StageMaker, key: str) -> None:
    async with stage() as s:
        s.app.lens.latest = snapshot()
        s.lab.replay("replay of run-1", [TrackSpec("yours", Scenario(steps=30), (0,), taped=True, train=scripted)])
        await s.advance(3)
        await s.press(key)
        assert "A run folder has each step's numbers, not its tokens." in s.text()


def kept(path: Path, scenario: Scenario, seeds: tuple[int, ...], steps: int = 3) -> None:
    """A run folder as the app's trainer leaves one."""
    with RunFolder(path, scenario, seeds=seeds) as folder:
        for records in islice(scripted(scenario, seeds), steps):
            folder.append(records)


def test_a_kept_run_is_replayed_with_those_of_its_own_settings_and_seeds_only(tmp_path: Path) -> None:
    yours = opening()
    slower = yours.with_values({"trainer.learning_rate": 1e-4})
    kept(tmp_path / "run-001", yours, (0,))
    kept(tmp_path / "reference-001", reference_for(slower), (0,))
    kept(tmp_path / "reference-002", reference_for(yours), (0, 1))
    (tmp_path / "reference-003").mkdir()
    assert [spec.name for spec in open_run(tmp_path / "run-001")] == ["yours"]
    kept(tmp_path / "initial_v1-001", initial_v1_for(yours), (0,))
    for number, steps in ((4, 2), (5, 9), (6, 4)):
        kept(tmp_path / f"reference-00{number}", reference_for(yours), (0,), steps)
    found = open_run(tmp_path / "run-001")
    assert [spec.name for spec in found] == ["reference", "initial_v1", "yours"]
    assert found[0].train is not None
    assert len(list(found[0].train(yours, (0,)))) == 9, "the longest"
    assert find_runs(tmp_path) == [tmp_path / "run-001"], "they are not runs to choose from"
    kept(tmp_path / "mine" / "initial_v1-007", initial_v1_for(yours), (0,))
    assert tmp_path / "mine" / "initial_v1-007" in find_runs(tmp_path), "somebody's own"


def test_a_run_that_was_killed_is_not_said_to_be_running(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run-001", opening(), seeds=(0,))
    with folder:
        assert summary_line(folder.path).endswith("(running)")
        folder._lock.release()  # as when its process dies
        assert summary_line(folder.path).endswith("(interrupted)")
    assert summary_line(folder.path).endswith("(finished)")
    assert summary_line(tmp_path).endswith("(no summary)")


@pytest.mark.parametrize(
    ("shares", "first"),
    [((0.7, 0.1), "stale_weights"), ((0.45, 0.35), "raw_logprobs")],
    ids=["what hurts most", "the same within the error: by layer"],
)
def test_causes_are_listed_in_the_order_to_mend_them_with_what_is_left(shares: tuple[float, float], first: str) -> None:
    names = ("stale_weights", "raw_logprobs")
    causes = tuple(found(name, share, "seen") for name, share in zip(names, shares, strict=True))
    text = report(Diagnosis(causes, 700, 64, 0.5), Look()).plain
    other = next(name for name in names if name != first)
    assert text.index(f"{first}  ") < text.index(f"{other}  ")
    assert f"Verdict: {first}" in text
    assert "in the order in which to mend them" in text
    assert "20% of the mean square skew is explained by none of this" in text
    assert "Published" not in text


def test_a_diagnosis_says_where_its_rms_stands_among_published_runs() -> None:
    like = skewsim.place("rms", 0.046, dtype="bfloat16", model_kind="dense").to_json()
    text = report(Diagnosis((found("healthy", 1.0, "seen"),), 700, 64, 0.046, like=like), Look()).plain
    assert "\nPublished: rms 0.046: between Qwen3-1.7B (0.0449) and SmolLM2-135M-Instruct here (0.047)" in text


def test_a_value_that_is_no_number_has_no_share_and_takes_none_from_the_rest() -> None:
    missing = replace(found("placeholder_logprobs", 1.0, "1 value"), sized=False)
    text = report(Diagnosis((missing, found("different_context", 0.9, "seen")), 700, 64, 0.2), Look()).plain
    assert "placeholder_logprobs  no share" in text
    assert "10% of the mean square skew is explained by none of this" in text


@pytest.mark.parametrize("keys", ["i", *(pytest.param(keys, marks=pytest.mark.slow) for keys in ("r tab", "x enter"))])
@on_stage
async def test_what_is_typed_is_no_markup(stage: StageMaker, keys: str) -> None:
    """Brackets in a wrong answer were once read as a markup tag in the error that quotes it."""
    async with stage(steps=1) as s:
        await s.press(*keys.split(), "left_square_bracket", "slash", "b", "right_square_bracket", "enter")
        assert "[/b]" in s.text()
        s.app.say("[/b] is said")
        await s.settle()
        assert s.app.is_running


@on_stage
async def test_a_run_folder_may_have_any_name(
    stage: StageMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kept(Path("[bold]") / "run-001", opening(), (0,))
    async with stage(steps=1, options=Options(out=Path("."))) as s:
        await s.press("r")
        assert "[bold]/run-001  (finished)" in s.text()


@pytest.mark.parametrize("key", ["t", *(pytest.param(key, marks=pytest.mark.slow) for key in "fd")])
@on_stage
async def test_a_snapshot_that_goes_away_while_it_is_drawn_harms_nothing(stage: StageMaker, key: str) -> None:
    """A reset deletes it in the driver's thread: here every second access finds none."""

    class Flickering(Watch):
        looks = 0

        @property
        def latest(self) -> Snapshot | None:  # type: ignore[override]
            self.looks += 1
            return snapshot() if self.looks % 2 else None

        @latest.setter
        def latest(self, value: Snapshot | None) -> None:
            pass

    async with stage(steps=1) as s:
        for offset in (0, 1):
            s.app.lens = Flickering()
            s.app.lens.looks = offset
            await s.press(key)
            for _ in range(3):
                await s.settle()
            assert s.app.is_running
            await s.leave()


@on_stage
async def test_a_key_that_comes_after_the_end_was_asked_for_does_nothing(stage: StageMaker) -> None:
    async with stage(size=(120, 40), steps=3) as s:
        await s.press("p")
        page, noise = s.app.screen, s.lab.yours.skew.noise
        s.app.exit()
        await page.query_children("*").remove()  # as the end does, while keys and clicks are still under way
        s.app.redraw()
        page.redraw()  # type: ignore[attr-defined]
        assert not await s.app.run_action("do('use')", page)
        await s.app.on_event(events.Key("u", "u"))
        assert s.lab.yours.skew.noise == noise


@on_stage
async def test_a_sweeps_map_moves_its_cursor_and_opens_a_cells_curves(stage: StageMaker, tmp_path: Path) -> None:
    make_sweep_folder(tmp_path / "sweep-made-up")
    async with stage(options=Options(out=tmp_path)) as s:
        await s.press("r")
        s.app.screen.query_one(OptionList).highlighted = 0
        s.app.screen.query_one(OptionList).focus()
        await s.press("enter")
        assert "Where" not in s.text()
        assert "learning_rate 0.0001, lag 0, objective grpo" in s.text()
        await s.press("down", "left")  # nothing is there
        assert "learning_rate 0.0001, lag 0, objective grpo" in s.text()
        await s.press("right", "right", "right", "up", "n")
        assert "learning_rate 0.003, lag 2, objective gspo" in s.text()
        assert "2 of 4 collapsed" in s.text()
        await s.press("v")
        assert "Reward at the end" in s.text()
        await s.press("enter")
        assert s.app.screen is s.app.explore
        assert s.lab.replaying == "a cell of sweep-made-up"
        async with asyncio.timeout(60):
            while s.lab.step < 39:
                await asyncio.sleep(0.01)
                s.lab.tick()
        assert s.lab.main is not None
        assert s.lab.main.series.values("reward/mean").shape == (4, 40)
        assert s.lab.main.scenario.trainer.learning_rate == 0.003
        await s.settle()
        assert "computed: nothing" not in s.text(), "a cell does not say what of it was computed"


def test_a_folder_that_is_no_sweep_is_refused_in_the_list_of_runs(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/sweep.toml").write_text("[[axis")
    assert find_sweeps(tmp_path) == []
    (tmp_path / "broken/parts").mkdir()
    assert find_sweeps(tmp_path) == [tmp_path / "broken"]
    assert "no status" in sweep_line(tmp_path / "broken")
