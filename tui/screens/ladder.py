"""Ladder: the reference, initial V1 and the four fixes one by one, as small multiples over a table."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Grid

from skewsim.records import tenth
from skewsim.scenarios import LADDER
from tui.actions import bindings
from tui.chart import ChartCurve
from tui.driver import Driver
from tui.lab import Lab
from tui.panel import TextLine
from tui.playback import Playback, Track
from tui.plot import Picture, Plot
from tui.series import Series
from tui.shell import ShellScreen
from tui.shows import LADDER_STEPS, rungs
from tui.views import REWARD, Look

_COLUMNS = (
    ("reward", "reward/mean"),
    ("entropy", "policy/entropy"),
    ("clip", "update/clip_rate"),
    ("k3", "skew/kl_k3"),
    ("abs skew", "skew/logprob_diff_mean"),
    ("lag", "lag/mean"),
)


def table(tracks: list[Track], look: Look, *, width: int) -> Text:
    """Means over the last tenth of the steps shown, and how each rung stands to the reference."""
    columns = _COLUMNS if width >= 100 else tuple(c for c in _COLUMNS if c[0] in ("reward", "clip", "k3", "lag"))
    text = Text(no_wrap=True)
    text.append(
        f"{'':<17}" + "".join(f"{title:>9}" for title, _ in columns) + "  against the reference\n", style="bold"
    )
    for track in tracks:
        window = tenth(len(track.series))
        cells = [track.series.now(key, window) for _, key in columns]
        text.append(f"{track.name:<17}", style=look.colour(track.letter))
        text.append("".join(f"{'-' if c is None else f'{c:.3g}':>9}" for c in cells))
        text.append(f"  {standing(track, tracks[0])}\n")
    return text


def standing(track: Track, reference: Track) -> str:
    """How a rung compares with the reference: identical in every number, or by how much its reward differs."""
    if track.note:
        return track.note
    if track is reference or not len(track.series):
        return ""
    count = min(len(track.series), len(reference.series))
    mine, theirs = (t.series.values(REWARD.key)[:, :count] for t in (track, reference))
    mine_k3, theirs_k3 = (t.series.values("skew/kl_k3")[:, :count] for t in (track, reference))
    if np.array_equal(mine, theirs, equal_nan=True) and np.array_equal(mine_k3, theirs_k3, equal_nan=True):
        return "identical bit for bit"
    gap = float(np.nanmean(mine[:, -tenth(count) :]) - np.nanmean(theirs[:, -tenth(count) :]))
    return f"reward {gap:+.3f}"


class LadderScreen(ShellScreen):
    """Runs while it is shown; the curves of Explore pause meanwhile."""

    BINDINGS: ClassVar[list[BindingType]] = bindings("page")
    where = "page"
    help_title = "Ladder"
    help_text = (
        "The order in which the migration was repaired. Each rung has the fixes of the one before and one more. "
        "Every chart shows the rung (its letter) and the reference (r). All share prompts and random numbers, so a "
        "rung whose settings equal the reference's coincides with it to the last bit. The objective and the seed "
        "are Explore's; the rest is as in the command `skewsim ladder`."
    )

    def __init__(self, lab: Lab) -> None:
        super().__init__()
        self._lab = lab
        self._was_playing = lab.driver.playing
        speed = float("inf") if lab.archive is None else lab.driver.speed
        self._specs = rungs(lab.yours.trainer.objective, lab.seeds)
        tracks = (
            Track(spec.name, letter, 6 if letter == "v" else 0, spec.scenario, Series(spec.seeds))
            for spec, letter in zip(self._specs, "rvpdih", strict=True)
        )
        self.playback = Playback(
            Driver(lab.driver.train, speed=speed, goes_on=False), {track.name: track for track in tracks}
        )

    @property
    def _tracks(self) -> list[Track]:
        return list(self.playback.tracks.values())

    def compose(self) -> ComposeResult:
        yield TextLine("headline")
        with Grid(id="rungs"):
            for i in range(len(LADDER)):
                yield Plot(REWARD, look=self.shell.look, id=f"rung-{i}")
        yield TextLine("table")
        yield self.shell.footer()

    def on_mount(self) -> None:
        self._lab.driver.play(False)
        self.playback.driver.restart(self._specs)
        self.playback.driver.start()
        self.redraw()

    def on_unmount(self) -> None:
        self.playback.driver.stop(0.1)
        if self._was_playing:
            self._lab.driver.play(True)

    def tick(self) -> bool:
        """Take in what the ladder's own driver has computed."""
        return self.playback.tick()

    def redraw(self) -> None:
        look, lab = self.shell.look, self._lab
        step = self.playback.step + 1
        head = Text(" Ladder ", style="bold reverse", no_wrap=True)
        settings = f", seeds {len(lab.seeds)}, settings of skewsim ladder" if lab.archive is None else f"   {lab.live}"
        head.append(
            f"  {lab.yours.trainer.objective}, step {step} of {LADDER_STEPS}{settings}", style="not bold not reverse"
        )
        self.query_one("#headline", TextLine).show(head)
        for i, track in enumerate(self._tracks):
            shown = [self._tracks[0], track] if i else [track]
            curves = [ChartCurve(t.letter, t.series.steps, t.series.mean(REWARD.key), t.dash) for t in shown]
            value = track.series.now(REWARD.key, 5)
            title = f"{track.name}  {'-' if value is None else f'{value:.2f}'}"
            self.query_one(f"#rung-{i}", Plot).show(Picture(REWARD, curves, titles=(title,)), look)
        self.query_one("#table", TextLine).show(table(self._tracks, look, width=self.size.width))

    def action_do(self, id: str) -> None:
        getattr(self, f"do_{id}")()

    def do_back(self) -> None:
        self.shell.close(self)

    def do_page_down(self) -> None:
        self.query_one("#table").focus()

    do_page_up = do_page_down
