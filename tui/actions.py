"""One registry of everything a key can do: bindings, footer, palette, help and the keymap file all come from it.

An action is carried out by the method `do_<id>` of the screen or the app named by `where`. No key needs ctrl. The
file `keymap.toml` in the user's configuration folder gives an action other keys:

    [keys]
    pause = "p,space"
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_config_path
from textual.binding import Binding, BindingType

from skewsim.border import load_toml_data
from skewsim.errors import UserError, shown
from tui.controls import FIXES


@dataclass(frozen=True)
class Action:
    """`keys` are Textual key names, comma separated; `footer` puts it into the bottom line; `argument` is passed on.

    `other` names the action of the opposite direction, whose keys the bottom line shows with these.
    """

    id: str
    keys: str
    title: str
    help: str
    where: str = "app"
    footer: bool = False
    argument: str | None = None
    other: str | None = None

    @property
    def call(self) -> str:
        return f"do('{self.id}')"


_FIX_ACTIONS = tuple(
    Action(
        f"fix_{fix.id}",
        str(i),
        fix.label,
        f"Switch fix {i} on or off: {fix.names}.",
        "explore",
        argument=fix.id,
    )
    for i, fix in enumerate(FIXES, 1)
)

ACTIONS: tuple[Action, ...] = (
    *_FIX_ACTIONS,
    Action("fix_all", "5", "All fixes", "Switch all four fixes on; if they are, all four off.", "explore"),
    Action(
        "objective",
        "o",
        "Objective",
        "GRPO, GSPO, PPO, REINFORCE. While only fixes were switched, each starts at its own opening point.",
        "explore",
    ),
    Action("pause", "space", "Pause", "Play or pause. While paused, toggles wait for the next step.", footer=True),
    Action("step", "full_stop", "Step", "One step, then pause.", footer=True),
    Action("faster", "plus,equals_sign", "Faster", "More steps a second, up to as fast as this machine goes."),
    Action("slower", "minus", "Slower", "Fewer steps a second."),
    Action("reset", "0", "Reset", "All curves from step 0, with the settings as they are now.", "explore", True),
    Action("seed", "n", "Seed", "A new seed: other prompts, other samples, the same settings.", "explore", True),
    Action(
        "twin", "c", "Twin", "A twin of yours, the focused setting apart, and the difference below.", "explore", True
    ),
    Action("band", "b", "Band", "Five seeds instead of one: the mean, and the range as a band.", "explore"),
    Action("undo", "u", "Undo", "Take back the last toggle.", "explore", True),
    Action("metric", "v", "View", "The next metric in the chart below the reward.", "explore", True),
    Action("metric_back", "V", "View back", "The previous metric in the chart below the reward.", "explore"),
    Action("hide", "h", "Hide", "Hide one curve after the other; then show all again.", "explore"),
    Action("smooth", "w", "Smooth", "Draw the mean of the last five steps, or every step as it is.", "explore"),
    Action("more", "x", "More", "Every setting of engine, skew and trainer, beyond this screen.", "explore", True),
    Action(
        "go_back",
        "j",
        "Replay from here",
        "After stepping back: yours goes on from there with the switches as they are now. What it was stays, as w.",
        "explore",
    ),
    Action("back_step", "comma", "Step back", "One step back; in a live run j then goes on from there."),
    Action("skip_back", "left_square_bracket", "Ten back", "Ten steps back."),
    Action("skip", "right_square_bracket", "Ten on", "Ten steps on again."),
    Action("backward", "backspace", "Backward", "In a replay: play backward, or forward again."),
    Action("tokens", "t", "Tokens", "This step's sequences, update ratios and skew by probability."),
    Action("formula", "f", "Formula", "The objective with this step's numbers in it, and where the code stands."),
    Action("profile", "p", "Profile", "Measured skew profiles: look at one, compare two, use one as the noise source."),
    Action("diagnose", "d", "Diagnose", "What causes the skew: ranked, with proof and fix; of this step or of a file."),
    Action("advise", "a", "Advise", "What default thresholds do to healthy data at your noise level and length."),
    Action("ladder", "g", "Ladder", "The reference, initial V1 and the four fixes one by one, side by side."),
    Action("runs", "r", "Runs", "Open a run folder and replay it, or the map of a sweep."),
    Action("lessons", "l", "Lessons", "Eleven lessons of about five minutes."),
    Action("markers", "m", "Markers", "Draw with braille dots or with plain ASCII letters."),
    Action("theme", "k", "Theme", "Dark or light."),
    Action("help", "f1,question_mark", "Help", "Explain what is focused, and list the keys.", footer=True),
    Action("palette", "colon,ctrl+p", "Palette", "Everything that can be done now, by name."),
    Action("screenshot", "s", "Picture", "Save this screen as an SVG picture."),
    Action("export", "e", "Export", "Save every number on the chart as a CSV table, with the share string."),
    Action("share", "y", "Share", "Copy the share string: these settings, also on the command line."),
    Action("paste", "i", "Enter share", "Type or paste a share string or the name of a scenario."),
    Action("restore", "z", "Last state", "Take up the settings that the last session ended with."),
    Action("quit", "q,ctrl+c", "Quit", "Leave; the share string stays behind in the shell.", footer=True),
    Action("back", "escape", "Back", "Back to the curves.", "page", True),
    Action("page_down", "pagedown", "Page down", "Scroll down.", "page"),
    Action("page_up", "pageup", "Page up", "Scroll up.", "page"),
    Action("sigma_down", "left", "Less noise", "Advise: a smaller noise level.", "advise"),
    Action("sigma_up", "right", "Noise", "Advise: a larger noise level.", "advise", True, other="sigma_down"),
    Action("length_down", "down", "Shorter", "Advise: shorter responses.", "advise"),
    Action("length_up", "up", "Length", "Advise: longer responses.", "advise", True, other="length_down"),
    Action(
        "advise_profile", "enter", "Profile", "Advise: the next measured profile instead of a sigma.", "advise", True
    ),
    Action("previous", "left", "Previous", "Profile: the one before.", "profile"),
    Action("next", "right", "Next", "Profile: the one after.", "profile", True, other="previous"),
    Action("compare", "c", "Compare", "Profile: keep this one beside the others, or stop.", "profile", True),
    Action("use", "enter", "Use", "Profile: make it the noise source of yours.", "profile", True),
    Action("again", "n", "Newest", "Diagnose: look at the newest step.", "diagnose", True),
    Action("open", "enter", "Open", "Diagnose: a token table or JSON lines.", "diagnose", True),
    Action("map_left", "left", "Left", "Map: the cell to the left.", "map"),
    Action("map_right", "right", "Across", "Map: the cell to the right.", "map", True, other="map_left"),
    Action("map_down", "down", "Down", "Map: the cell below.", "map"),
    Action("map_up", "up", "Up", "Map: the cell above.", "map", True, other="map_down"),
    Action("map_view", "v", "Number", "Map: collapse, final reward, or steps to the collapse.", "map", True),
    Action("map_panel", "n", "Panel", "Map: the next value of the further axes.", "map"),
    Action("map_open", "enter", "Curves", "Map: the curves of this cell, in Explore.", "map", True),
    Action("measure", "n", "Measure", "Profile: measure a real engine now, in a process of its own.", "profile", True),
)

REVERSING = ("back_step", "skip_back", "skip", "backward")
"""Possible only where what is shown is recorded or kept."""
SCREENS = ("explore", "advise", "profile", "diagnose", "map")
"""Screens with keys of their own; the app's and a page's keys are valid on each."""


def bindings(where: str) -> list[BindingType]:
    """Textual bindings of one screen (or of the app), in the order of the registry."""
    return [Binding(a.keys, a.call, a.title, show=a.footer, id=a.id) for a in ACTIONS if a.where == where]


def valid_on(screen: str) -> list[Action]:
    """The actions whose keys mean something on a screen."""
    shared = ("app",) if screen == "explore" else ("app", "page")
    return [action for action in ACTIONS if action.where in (*shared, screen)]


def is_hidden(action: Action, hidden: frozenset[str]) -> bool:
    """Whether a teacher has hidden the key, the control it turns, or one of those that it turns together."""
    together = {fix.id for fix in FIXES} if action.id == "fix_all" else set()
    return bool({action.id, action.argument, *together} & hidden)


def by_id(id: str) -> Action:
    return next(action for action in ACTIONS if action.id == id)


def key_text(keys: str) -> str:
    """Keys as people write them."""
    names = {
        "full_stop": ".",
        "plus": "+",
        "minus": "-",
        "equals_sign": "=",
        "question_mark": "?",
        "colon": ":",
        "comma": ",",
        "left_square_bracket": "[",
        "right_square_bracket": "]",
    }
    return " ".join(names.get(key, key.upper() if key == "f1" else key) for key in keys.split(","))


def load_keymap(path: Path | None = None) -> dict[str, str]:
    """Other keys for some actions, from the user's keymap file. Raises UserError for an unknown action or a clash."""
    path = path or user_config_path("skewsim") / "keymap.toml"
    if not path.exists():
        return {}
    keys = load_toml_data(path).get("keys", {})
    if not isinstance(keys, dict):
        raise UserError(f"{path}: keys={shown(repr(keys), 40)}: allowed is a table [keys] of actions and their keys")
    known = {action.id for action in ACTIONS}
    for id, text in keys.items():
        if id not in known:
            raise UserError(f"{path}: unknown action {shown(id, 40)}; allowed: {', '.join(sorted(known))}")
        if not isinstance(text, str) or not text:
            raise UserError(f'{path}: {id}={shown(repr(text), 40)}: must be keys as text, as in pause = "p,space"')
    for screen in SCREENS:
        taken: dict[str, str] = {}
        for action in valid_on(screen):
            for key in keys.get(action.id, action.keys).split(","):
                if key in taken:
                    raise UserError(f"{path}: key {key} means both {taken[key]} and {action.id}")
                taken[key] = action.id
    return dict(keys)
