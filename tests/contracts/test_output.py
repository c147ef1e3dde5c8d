"""What programs outside read from stdout, and what people read, is as promised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skewsim.cli.main import COMMANDS, main, unfolded
from skewsim.scenarios import ALONE, LADDER, SCENARIOS
from skewsim.share import from_toml
from skewsim.skew.metrics import METRICS

SMALL = [
    part
    for value in ("policy=random", "task.response_length=4", "trainer.num_prompts=2", "trainer.num_generations=2")
    for part in ("--set", value)
]
RUNG_KEYS = {
    "name",
    "reward_final",
    "reward_band",
    "entropy_final",
    "clip_rate",
    "kl_k3",
    "logprob_diff_mean",
    "lag",
    "inside_reference_band",
    "identical_to_reference",
    "diverged",
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def strict(text: str) -> Any:
    """Parse JSON that has no NaN in it."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def output(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[str, str]:
    assert main(arguments) == 0
    captured = capfd.readouterr()
    return captured.out, captured.err


def test_run_json_is_a_record_a_line_with_the_metric_keys(capfd: pytest.CaptureFixture[str]) -> None:
    out, _ = output(capfd, "run", "initial_v1", *SMALL, "--steps", "3", "--seeds", "2", "--json")
    rows = [strict(line) for line in out.splitlines()]
    assert [(row["step"], row["seed"]) for row in rows] == [(k, s) for k in range(3) for s in range(2)]
    keys = set(rows[-1]) - {"step", "scenario", "seed", "events", "diverged", "sources", "schema_version"}
    assert keys <= set(METRICS)
    assert {"reward/mean", "skew/kl_k3", "skew/logprob_diff_mean", "ratio/ess", "update/clip_rate", "lag/mean"} <= keys


def test_run_plain_names_every_number(capfd: pytest.CaptureFixture[str]) -> None:
    out, _ = output(capfd, "run", "v0_reference", *SMALL, "--steps", "1", "--plain")
    first = out.splitlines()[0]
    assert first.startswith("step 0, scenario v0_reference, seed 0, reward/mean ")
    assert all(f"{key} " in first for key in ("skew/kl_k3", "policy/entropy", "optim/grad_norm"))


def test_off_a_terminal_words_go_to_stderr_without_escape_codes(capfd: pytest.CaptureFixture[str]) -> None:
    out, err = output(capfd, "run", "v0_reference", *SMALL, "--steps", "20")
    assert len(err.splitlines()) == 10
    assert "\x1b" not in out + err


def test_ladder_json_is_one_object_with_the_promised_keys(capfd: pytest.CaptureFixture[str]) -> None:
    out, err = output(capfd, "ladder", "--objective", "gspo", *SMALL, "--steps", "3", "--seeds", "2", "--json")
    result = strict(out)
    assert out.count("\n") == 1
    assert set(result) == {"objective", "seeds", "steps", "rungs"}
    assert (result["objective"], result["seeds"], result["steps"]) == ("gspo", 2, 3)
    assert [rung["name"] for rung in result["rungs"]] == [*LADDER, *ALONE]
    assert all(set(rung) == RUNG_KEYS and len(rung["reward_band"]) == 2 for rung in result["rungs"])
    assert result["rungs"][len(LADDER) - 1]["identical_to_reference"] is True
    assert result["rungs"][1]["identical_to_reference"] is False
    assert "figure: runs/ladder-gspo/ladder.png" in err
    assert all(Path(f"runs/ladder-gspo/{name}.png").stat().st_size > 10_000 for name in ("ladder", "faults"))
    assert strict(Path("runs/ladder-gspo/ladder.json").read_text()) == result


@pytest.mark.slow
def test_a_ladder_resumed_from_a_checkpoint_gives_the_ladder_of_an_undisturbed_one(
    capfd: pytest.CaptureFixture[str],
) -> None:
    climb = ["ladder", *SMALL, "--seeds", "2", "--checkpoint-every", "1", "--json"]
    whole, _ = output(capfd, *climb, "--steps", "4", "--out", "whole")
    output(capfd, *climb, "--steps", "2", "--out", "parts")
    resumed, _ = output(capfd, *climb, "--steps", "4", "--out", "parts", "--resume")
    assert strict(resumed) == strict(whole)


@pytest.mark.slow
def test_a_second_ladder_gets_a_folder_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    Path("runs/ladder-grpo").mkdir(parents=True)
    _, err = output(capfd, "ladder", *SMALL, "--steps", "1", "--seeds", "1", "--plain")
    assert "runs/ladder-grpo-2/ladder.png" in err


@pytest.mark.parametrize("objective", ["grpo", "gspo"])
def test_the_counter_lessons_are_a_ladder_of_their_own(objective: str, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["ladder", "--counter-lessons", "--objective", objective, *SMALL, "--steps", "1", "--seeds", "1"]
    out, _ = output(capfd, *arguments, "--json")
    names = [rung["name"] for rung in strict(out)["rungs"]]
    assert names[0] in ("raw_fixed", "heads_fp32")
    assert len(names) >= 3


@pytest.mark.slow
def test_a_ladder_folder_holds_the_rungs_side_by_side(capfd: pytest.CaptureFixture[str]) -> None:
    output(capfd, "ladder", *SMALL, "--steps", "2", "--seeds", "1", "--out", "climb", "--json")
    rows = [json.loads(line) for line in Path("climb/steps.jsonl").read_text().splitlines()]
    assert [(row["step"], row["scenario"]) for row in rows] == [
        (k, name) for k in range(2) for name in (*LADDER, *ALONE)
    ]


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_a_named_scenario_prints_as_toml_and_as_a_share_string_that_run_takes(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    text, _ = output(capfd, "scenarios", name)
    assert from_toml(text) == SCENARIOS[name].scenario(name)
    word, _ = output(capfd, "scenarios", name, "--share")
    again, _ = output(capfd, "scenarios", word.strip())
    assert again == text


def test_every_setting_is_listed_with_a_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    out, _ = output(capfd, "scenarios", "--settings")
    lines = out.splitlines()
    assert all(text.startswith("    ") and text.strip() for text in lines[1::2])
    paths = [line.partition(" = ")[0] for line in lines[::2]]
    assert {"engine.logprobs_mode", "trainer.correction.weight", "skew.profile", "steps"} <= set(paths)


def test_a_run_resumes_on_the_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    run = ["run", "v0_reference", *SMALL, "--steps", "3", "--json"]
    whole, _ = output(capfd, *run, "--out", "a")
    output(capfd, *run[:-2], "1", "--json", "--out", "b")
    rest, _ = output(capfd, *run, "--out", "b", "--resume")

    def timeless(text: str) -> list[dict[str, Any]]:
        return [{k: v for k, v in json.loads(line).items() if k != "time/step_s"} for line in text.splitlines()]

    assert timeless(rest) == timeless(whole)[1:]
    assert timeless(Path("b/steps.jsonl").read_text()) == timeless(whole)


@pytest.fixture
def log(tmp_path: Path) -> str:
    """Five logged sequences, healthy but for a constant."""
    rng = np.random.default_rng(0)
    lines = []
    for _ in range(5):
        engine = np.log(rng.uniform(0.1, 0.9, 40))
        row = {"prompt_token_ids": [1, 2], "token_ids": rng.integers(0, 50, 40).tolist()}
        row |= {"engine_logprobs": engine.tolist(), "trainer_logprobs": (engine + 0.05).tolist()}
        lines.append(json.dumps(row))
    (tmp_path / "log.jsonl").write_text("\n".join(lines))
    return "log.jsonl"


def test_an_imported_log_passes_or_fails_the_gate_by_exit_code(log: str, capfd: pytest.CaptureFixture[str]) -> None:
    out, _ = output(capfd, "import", log, "--out", "table.npz")
    assert out == "table.npz: 200 tokens\n"
    assert main(["gate", "table.npz", "--max", "logprob_diff_mean=0.1"]) == 0
    capfd.readouterr()
    assert main(["gate", "table.npz", "--max", "logprob_diff_mean=0.01", "--json"]) == 1
    check, *counts = strict(capfd.readouterr().out)["checks"]
    assert check["value"] == pytest.approx(0.05)
    assert [(count["metric"], count["passed"]) for count in counts] == [("nonfinite", True), ("placeholder", True)]


def test_diagnose_json_has_the_promised_keys(log: str, capfd: pytest.CaptureFixture[str]) -> None:
    found = strict(output(capfd, "diagnose", log, "--json")[0])
    assert set(found) == {
        *(
            "verdict",
            "layer",
            "causes",
            "kind",
            "kind_text",
            "normal",
            "usual",
            "like",
            "odd_one_out",
            "agreement",
            "values",
        ),
        *("where", "notes"),
    }
    assert all(set(cause) == {"name", "layer", "explained", "evidence", "fix"} for cause in found["causes"])
    text, _ = output(capfd, "diagnose", log)
    assert text.startswith(f"verdict: {found['verdict']}")


def test_advise_json_has_the_promised_keys_and_the_published_row(capfd: pytest.CaptureFixture[str]) -> None:
    found = strict(output(capfd, "advise", "--sigma", "0.0449", "--length", "1506", "--json")[0])
    assert (found["sigma"], found["length"]) == (0.0449, 1506)
    for row in found["rows"]:
        assert {"framework", "rule", "setting", "ess"} <= set(row)
        assert len({"clipped", "kept"} & set(row)) == 1
    (verl,) = [row for row in found["rows"] if (row["framework"], row["rule"]) == ("verl", "geometric rejection")]
    assert verl["kept"] == pytest.approx(0.46, abs=0.01)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_is_folded_where_the_terminal_ends_whatever_the_lines_of_its_source(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert main([name, "--help"]) == 0
    rows = [line[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert all(len(row) - len(row.lstrip()) < 6 for row in rows)  # each begins with a name, none goes on with a text


def test_a_docstring_loses_the_folds_of_its_paragraphs_and_nothing_else() -> None:
    text = "One\ntwo.\n\nThree.\n\nParameters\n----------\nfirst\n    Four\n    five.\nsecond\n    Six."
    once = "One two.\n\nThree.\n\nParameters\n----------\nfirst\n    Four five.\nsecond\n    Six."
    assert unfolded(text) == unfolded(once) == once
