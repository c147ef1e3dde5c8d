"""A configuration is read as its framework reads it, and the traps named are the ones it is in: no more, no fewer."""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.configs import FRAMEWORKS, ConfigReport, check_config, read_configuration
from harness.configs.frameworks import FIELDS
from harness.configs.traps import TRAPS
from skewsim.cli.main import main
from skewsim.diagnose.causes import FIX
from skewsim.errors import UserError

VERL = """set -x
max_response_length={length}
ROLLOUT=(
    actor_rollout_ref.rollout.name=vllm
    actor_rollout_ref.rollout.temperature=0.7
    {line}
)
python3 -m verl.trainer.main_ppo data.max_response_length=${{max_response_length}} "${{ROLLOUT[@]}}" "$@"
"""
TRL = "from trl import GRPOConfig\nargs = GRPOConfig(\n    use_vllm=True,\n    max_completion_length=256,\n    {line}\n)\n"
PRIME = "[orchestrator.train.sampling]\nmax_completion_tokens = 512\n{line}\n[inference.vllm]\n{engine}\n"
SLIME = "GRPO_ARGS=(\n   --rollout-max-response-len 2048\n   {line}\n)\npython3 train.py ${{GRPO_ARGS[@]}}\n"
NEMO = """grpo:
  async_grpo: {{enabled: {asynchronous}, in_flight_weight_updates: true}}
loss_fn:
  use_importance_sampling_correction: true
policy:
  model_name: Qwen/Qwen2.5-1.5B
  max_total_sequence_length: 512
  generation:
    backend: vllm
    temperature: {temperature}
    vllm_cfg: {{precision: bfloat16{engine}}}
"""
OPENRLHF = "python3 -m openrlhf.cli.train_ppo_ray \\\n   --rollout.max_new_tokens 4096 \\\n   {line}\n"
SERVE = "vllm serve Qwen/Qwen3-8B --generation-config vllm --no-enable-prefix-caching \\\n  {line}\n"
PROCESSED = "--logprobs-mode processed_logprobs"


def verl(line: str, length: int = 512) -> tuple[str, str]:
    return "run.sh", VERL.format(line=line, length=length)


def trl(line: str) -> tuple[str, str]:
    return "train.py", TRL.format(line=line)


def prime(line: str = "", engine: str = "") -> tuple[str, str]:
    return "rl.toml", PRIME.format(line=line, engine=engine)


def slime(line: str) -> tuple[str, str]:
    return "run.sh", SLIME.format(line=line)


def miles(line: str) -> tuple[str, str]:
    return "run.sh", "# /root/miles\n" + SLIME.format(line=line)


def nemo(engine: str = "", temperature: float = 1.0, asynchronous: str = "false") -> tuple[str, str]:
    return "grpo.yaml", NEMO.format(engine=engine, temperature=temperature, asynchronous=asynchronous)


def openrlhf(line: str) -> tuple[str, str]:
    return "run.sh", OPENRLHF.format(line=line)


def serve(line: str) -> tuple[str, str]:
    return "serve.sh", SERVE.format(line=line)


def report(folder: Path, file: tuple[str, str], vllm: str | None = None) -> ConfigReport:
    path = folder / file[0]
    path.write_text(file[1])
    return check_config([path], vllm=vllm)


def traps(found: ConfigReport) -> dict[str, str]:
    return {each.trap: each.certainty for each in found.findings}


GEOMETRIC = (
    "algorithm.rollout_correction.rollout_rs=seq_mean_k1 algorithm.rollout_correction.rollout_rs_threshold={bounds}"
)
ICEPOP = "algorithm.rollout_correction.rollout_is=token algorithm.rollout_correction.rollout_is_threshold=0.5_5.0"
SUMMED = "algorithm.rollout_correction.rollout_is=sequence"
TOKENS = "algorithm.rollout_correction.rollout_rs=token_k1 algorithm.rollout_correction.rollout_rs_threshold={bounds}"
IN_TRAP = [
    ("raw_logprobs", "is", verl("actor_rollout_ref.rollout.logprobs_mode=raw_logprobs"), "0.18.1"),
    ("raw_logprobs", "is", nemo(", logprobs_mode: raw_logprobs", temperature=0.6), None),
    ("raw_logprobs", "is", nemo(temperature=0.6), "0.18.1"),
    ("raw_logprobs", "may be", nemo(temperature=0.6), None),
    ("raw_logprobs", "may be", serve("--max-model-len 4096"), "0.18.1"),
    ("raw_logprobs", "is", slime("--rollout-temperature 0.8\n)\nexport SGLANG_RETURN_ORIGINAL_LOGPROB=1\nX=(\n"), None),
    ("raw_logprobs", "is", prime("temperature = 0.8", 'logprobs_mode = "raw_logprobs"'), None),
    ("logits_for_logprobs", "is", serve("--logprobs-mode raw_logits"), None),
    ("truncated_sampling", "is", verl("actor_rollout_ref.rollout.top_p=0.9"), None),
    ("truncated_sampling", "is", trl("top_k=50,"), None),
    ("truncated_sampling", "is", trl('generation_kwargs={"min_p": 0.1},'), None),
    ("truncated_sampling", "is", slime("--rollout-top-k 40"), None),
    ("truncated_sampling", "is", miles("--rollout-top-p 0.9"), None),
    ("truncated_sampling", "is", openrlhf("--rollout.top_p 0.95"), None),
    ("truncated_sampling", "is", prime("[orchestrator.train.sampling.extra_body]\ntop_k = 20"), None),
    ("one_sided_penalty", "is", trl("repetition_penalty=1.05,"), None),
    ("one_sided_penalty", "may be", serve("--override-generation-config '{\"repetition_penalty\": 1.1}'"), None),
    ("generation_config", "may be", ("s.sh", "vllm serve Qwen/Qwen3-8B\n"), None),
    ("generation_config", "may be", nemo(", expose_http_server: true"), None),
    ("temperature_mismatch", "is", trl("temperature=0.9, generation_kwargs=dict(temperature=0.6),"), None),
    ("temperature_range", "is", slime("--rollout-temperature 0"), None),
    ("temperature_range", "is", trl("temperature=2.5,"), "0.32.0"),
    ("temperature_range", "may be", trl("temperature=2.5,"), "0.22.0"),
    ("prefix_cache_kept", "may be", ("s.sh", "vllm serve Qwen/Qwen3-8B --enable-prefix-caching\n"), "0.18.1"),
    ("update_in_flight", "is", nemo(asynchronous="true"), None),
    ("update_in_flight", "is", miles("--pause-generation-mode in_place"), None),
    ("update_in_flight", "is", miles("--pause-generation-mode abort"), None),
    ("sleep_loses_weights", "may be", trl("vllm_enable_sleep_mode=True,"), None),
    ("one_sided_fp32_head", "is", trl("cast_lm_head_to_fp32=True,"), None),
    ("one_sided_fp32_head", "is", serve('--hf-overrides \'{"head_dtype": "float32"}\''), "0.18.1"),
    ("one_sided_fp32_head", "may be", serve('--hf-overrides \'{"head_dtype": "float32"}\''), "0.32.0"),
    ("quantized_rollout", "is", verl("actor_rollout_ref.rollout.quantization=fp8"), None),
    ("quantized_rollout", "may be", ("n.yaml", nemo()[1].replace("bfloat16", "fp8")), None),
    ("quantized_rollout", "may be", slime("--hf-checkpoint /root/Qwen3-4B-FP8"), None),
    ("fp8_kv_cache", "is", slime("--sglang-kv-cache-dtype fp8_e4m3"), None),
    ("fp8_kv_cache", "is", verl("+actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_dtype=fp8"), None),
    ("moe_without_replay", "may be", verl("actor_rollout_ref.model.path=Qwen/Qwen3-30B-A3B"), None),
    ("dropout_in_trainer", "is", slime("--attention-dropout 0.1"), None),
    ("dropout_in_trainer", "is", trl(")\nlora = LoraConfig(lora_dropout=0.05"), None),
    ("cascade_attention", "may be", verl("actor_rollout_ref.rollout.n=8"), "0.10.2"),
    ("no_correction", "may be", verl("actor_rollout_ref.model.path=Qwen/Qwen3-30B-A3B"), None),
    (
        "weight_without_effect",
        "is",
        verl(f"{ICEPOP} algorithm.rollout_correction.bypass_mode=True"),
        None,
    ),
    ("bounds_exclude_one", "is", verl(TOKENS.format(bounds="1.1_2.0")), None),
    ("bounds_upside_down", "may be", verl(GEOMETRIC.format(bounds="0.99_1.0001"), 8192), None),
    ("bounds_below_noise", "may be", verl(GEOMETRIC.format(bounds="0.999_1.001"), 1506), None),
    ("summed_weight", "may be", verl(SUMMED, 8192), None),
    ("summed_weight", "may be", ("t.py", trl("")[1].replace("256", "8192")), None),
]
CLEAN = [
    (verl("actor_rollout_ref.rollout.n=8"), "0.18.1"),
    (verl("actor_rollout_ref.model.path=deepseek-ai/DeepSeek-R1-Distill-Qwen-7B"), "0.32.0"),
    (verl(f"{ICEPOP} algorithm.rollout_correction.bypass_mode=False"), "0.18.1"),
    (verl(GEOMETRIC.format(bounds="0.99_1.01"), 4096), "0.18.1"),
    (verl(f"{SUMMED} algorithm.rollout_correction.rollout_is_batch_normalize=true", 8192), "0.18.1"),
    (trl("temperature=0.7,"), "0.18.1"),
    (("t.py", trl("")[1].replace("256", "arguments.length")), "0.18.1"),
    (trl("vllm_importance_sampling_mode='token_truncate',"), None),
    (prime("temperature = 0.7"), "0.18.1"),
    (slime("--rollout-temperature 0.8 --rollout-top-p 0.9 --attention-dropout 0.0 --hidden-dropout 0.0"), None),
    (miles("--pause-generation-mode retract"), None),
    (nemo(", logprobs_mode: processed_logprobs", temperature=0.6), "0.18.1"),
    (nemo(temperature=1.0), "0.18.1"),
    (openrlhf("--rollout.temperature 0.7 --algo.advantage.is_correction_enable"), "0.18.1"),
    (serve(PROCESSED), "0.32.0"),
]


@pytest.mark.parametrize(("trap", "certainty", "file", "vllm"), IN_TRAP, ids=lambda value: str(value)[:24])
def test_a_configuration_in_a_trap_is_told_so(
    trap: str, certainty: str, file: tuple[str, str], vllm: str | None, tmp_path: Path
) -> None:
    found = report(tmp_path, file, vllm)
    assert traps(found).get(trap) == certainty, found.to_text()
    assert all(each.change and each.source.startswith("https://") for each in found.findings)


def test_every_trap_has_a_configuration_that_is_in_it() -> None:
    assert {trap for trap, *_ in IN_TRAP} == set(TRAPS)


@pytest.mark.parametrize(("file", "vllm"), CLEAN, ids=lambda value: str(value)[:24])
def test_a_configuration_in_no_trap_is_left_in_peace(file: tuple[str, str], vllm: str | None, tmp_path: Path) -> None:
    found = report(tmp_path, file, vllm)
    assert not found.findings, found.to_text()
    assert set(found.looked_at) == set(TRAPS)


def test_a_finding_names_the_line_and_the_line_to_change_in_the_files_own_syntax(tmp_path: Path) -> None:
    changes = {}
    for file in (
        verl("actor_rollout_ref.rollout.top_p=0.9"),
        trl("top_p=0.9,"),
        prime("[orchestrator.train.sampling.extra_body]\ntop_p = 0.9"),
        miles("--rollout-top-p 0.9"),
        openrlhf("--rollout.top_p 0.9"),
    ):
        found = report(tmp_path, file)
        finding = next(each for each in found.findings if each.trap == "truncated_sampling")
        assert finding.line is not None
        assert "0.9" in file[1].splitlines()[finding.line - 1]
        changes[found.framework] = finding.change
    assert changes == {
        "verl": "actor_rollout_ref.rollout.top_p=1.0",
        "TRL": "top_p=1.0",
        "prime-rl": "[orchestrator.train.sampling.extra_body] top_p = 1.0",
        "Miles": "--rollout-top-p 1.0",
        "OpenRLHF": "--rollout.top_p 1.0",
    }


def test_the_suggested_verl_bounds_hold_healthy_data_when_put_through_verls_own_rule(tmp_path: Path) -> None:
    length, sigma = 1506, 0.0449
    found = report(tmp_path, verl(GEOMETRIC.format(bounds="0.999_1.001"), length))
    change = next(each.change for each in found.findings if each.trap == "bounds_below_noise")
    low, high = map(float, change.rpartition("=")[2].split("_"))
    generator = np.random.default_rng(0)
    log_ratio = generator.normal(-(sigma**2) / 2, sigma / np.sqrt(length), 100_000)  # means of healthy sequences
    k1 = -log_ratio  # verl compares -log rho with the logarithms of the two numbers
    assert np.mean((k1 < np.log(low)) | (k1 > np.log(high))) < 0.005
    assert np.mean((k1 < np.log(0.999)) | (k1 > np.log(1.001))) > 0.3


def test_variables_defaults_and_conditions_of_a_script_are_followed(tmp_path: Path) -> None:
    script = """TOP_P=${TOP_P:-0.9}
    QUANT=${QUANT:-}
    if [ "${QUANT}" = fp8 ]; then
        EXTRA=(actor_rollout_ref.rollout.quantization=fp8)
    fi
    if [ -f "$SOMEWHERE" ]; then
        MORE=(actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_dtype=fp8)
    fi
    python -m verl.trainer.main_ppo actor_rollout_ref.rollout.top_p=${TOP_P} \\
        actor_rollout_ref.rollout.temperature=$1 # actor_rollout_ref.rollout.top_k=5
    """
    found = report(tmp_path, ("run.sh", script))
    assert traps(found) == {"truncated_sampling": "is", "fp8_kv_cache": "may be", "no_correction": "may be"}
    assert any("temperature (line 10: $1)" in note for note in found.notes)


def test_a_base_file_and_references_are_followed(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(nemo(", logprobs_mode: raw_logprobs")[1])
    (tmp_path / "recipe.yaml").write_text(
        "defaults: base.yaml\npolicy:\n  t: 0.5\n  generation:\n    temperature: ${policy.t}\n    max_new_tokens: ${.n}\n    n: 7\n"
    )
    config = read_configuration([tmp_path / "recipe.yaml"])
    assert (config.number("temperature"), config.number("length")) == (0.5, 7)
    raw = next(each for each in check_config([tmp_path / "recipe.yaml"]).findings if each.trap == "raw_logprobs")
    assert raw.where == "base.yaml:11"


def test_a_recipe_whose_base_is_missing_says_so_and_is_not_judged_by_what_is_not_there(tmp_path: Path) -> None:
    text = "defaults: gone.yaml\n" + nemo(temperature=0.5)[1]
    found = report(tmp_path, ("recipe.yaml", text), "0.18.1")
    assert "raw_logprobs" not in traps(found)
    assert any("gone.yaml" in note for note in found.notes)


def test_prime_rls_three_files_are_one_configuration(tmp_path: Path) -> None:
    (tmp_path / "orch.toml").write_text("[train.sampling]\ntemperature = 0.5\n[model]\nname = 'm'\n")
    (tmp_path / "infer.toml").write_text("[vllm]\nlogprobs_mode = 'raw_logprobs'\n")
    (tmp_path / "train.toml").write_text("[model]\nname = 'm'\n")
    found = check_config([tmp_path / f"{part}.toml" for part in ("train", "orch", "infer")])
    assert found.framework == "prime-rl"
    assert traps(found) == {"raw_logprobs": "is"}


def test_slimes_mis_file_is_read_with_its_script(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text(slime("--use-tis")[1])
    (tmp_path / "mis.yaml").write_text(
        "use_rs: true\nrs_level: geometric\nrs_lower_bound: 0.9999\nrs_upper_bound: 1.0001\ntis_level: token\n"
    )
    found = check_config([tmp_path / "run.sh", tmp_path / "mis.yaml"])
    bounds = next(each for each in found.findings if each.trap == "bounds_below_noise")
    assert (bounds.where, bounds.certainty) == ("mis.yaml:4", "may be")
    assert "2048 tokens" in bounds.what
    assert bounds.change.startswith("rs_lower_bound: 0.99")


@pytest.mark.parametrize(
    ("file", "framework", "said"),
    [
        (("x.yaml", "a: 1\n"), None, "no framework that is known"),
        (("x.yaml", "a: [1\n"), "verl", "no YAML"),
        (
            ("x.yaml", "a: 1\nb: c: 2\n"),
            "verl",
            r"no YAML file: line 2, column 5: mapping values are not allowed here$",
        ),
        (("x.toml", "a ="), "prime-rl", "not a TOML"),
        (("x.py", "GRPOConfig("), None, "no Python"),
        (("x.sh", "vllm serve m"), "verk", "framework='verk' is not known"),
        (("sft.sh", "--rollout-batch-size 1 --loss-type sft_loss"), None, "not for reinforcement learning"),
    ],
)
def test_what_is_no_configuration_is_one_line(
    file: tuple[str, str], framework: str | None, said: str, tmp_path: Path
) -> None:
    (tmp_path / file[0]).write_text(file[1])
    with pytest.raises(UserError, match=said) as caught:
        check_config([tmp_path / file[0]], framework=framework)
    assert "\n" not in str(caught.value)


def test_a_misspelt_key_is_not_judged_and_the_report_asks_whether_another_was_meant(tmp_path: Path) -> None:
    (tmp_path / "right.yaml").write_text(text := "actor_rollout_ref: {rollout: {name: vllm, top_p: 0.9}}\n")
    (tmp_path / "wrong.yaml").write_text(text.replace("top_p", "topp"))
    right, wrong = (check_config([tmp_path / f"{name}.yaml"], framework="verl") for name in ("right", "wrong"))
    assert "truncated_sampling" in {each.trap for each in right.findings}
    assert "truncated_sampling" not in {each.trap for each in wrong.findings}
    asked = "misspelt? actor_rollout_ref.rollout.topp (line 1) for actor_rollout_ref.rollout.top_p"
    assert asked in wrong.notes
    assert "misspelt?" in wrong.to_text()
    assert asked in wrong.to_markdown()
    assert not any("misspelt" in note for note in right.notes)


def test_a_version_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no version"):
        report(tmp_path, serve(PROCESSED), "newest")


@given(
    framework=st.sampled_from(FRAMEWORKS),
    content=st.binary(max_size=300),
    suffix=st.sampled_from([".yaml", ".toml", ".sh", ".py"]),
)
def test_any_bytes_are_read_or_refused_in_one_line(
    framework: str, content: bytes, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    _survives(tmp_path_factory, content, suffix, framework)


names = st.sampled_from([name for fields in FIELDS.values() for field in fields.values() for name in field.names])
values = st.one_of(
    st.sampled_from(["0.999_1.001", "_", "1e400", "-1", "nan", "true", "null", "[[]]", "{}", "${a.b}", "$X", "''"]),
    st.text(string.printable, max_size=12),
)
templates = st.sampled_from([("{n}: {v}\n", ".yaml"), ("{n} = {v}\n", ".toml"), ("--{n} {v} {n}={v}\n", ".sh")])


@given(framework=st.sampled_from(FRAMEWORKS), rows=st.lists(st.tuples(names, values), max_size=8), template=templates)
def test_any_value_of_a_known_setting_is_read_or_refused_in_one_line(
    framework: str, rows: list[tuple[str, str]], template: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = "".join(template[0].format(n=name, v=value) for name, value in rows)
    _survives(tmp_path_factory, text.encode(), template[1], framework)


@pytest.mark.parametrize(
    ("content", "suffix"),
    [
        ("a: " + "[" * 5000, ".yaml"),
        ("a: &a [*a, *a]\n", ".yaml"),
        ("".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9 if i else ['1'])}]\n" for i in range(12)), ".yaml"),
        ("a = " + "[" * 3000, ".toml"),
        ("GRPOConfig(a=" + "(" * 3000, ".py"),
        ("GRPOConfig(a=" + "-" * 30000 + "1)", ".py"),
        ("X=" + "${" * 3000, ".sh"),
        ("A=$B$B$B\nB=$A$A\n--rollout-top-p $A\n", ".sh"),
        ('"' * 4001, ".sh"),
    ],
    ids=str,
)
def test_deep_endless_and_unclosed_files_are_read_or_refused_in_one_line(
    content: str, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    for framework in FRAMEWORKS:
        _survives(tmp_path_factory, content.encode(), suffix, framework)


def _survives(factory: pytest.TempPathFactory, content: bytes, suffix: str, framework: str) -> None:
    path = factory.getbasetemp() / f"fuzz{suffix}"
    path.write_bytes(content)
    try:
        found = check_config([path], framework=framework, vllm="0.18.1")
    except UserError as error:
        said = str(error)
        assert "\n" not in said
        return
    json.dumps(found.to_json(), allow_nan=False)
    assert all(
        len(line) <= 80 or line.startswith(("  source:", "  change to:", "    "))
        for line in found.to_text().splitlines()
    )
    found.to_markdown()


def test_the_command_says_it_as_text_json_and_markdown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run.sh"
    path.write_text(verl("actor_rollout_ref.rollout.top_p=0.9")[1])
    assert main(["check", "--config", str(path), "--vllm", "0.18.1"]) == 1
    text = capsys.readouterr().out
    assert "TRAP: truncated_sampling" in text
    assert "run.sh:6" in text
    assert main(["check", "--config", str(path), "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert data["traps"][0]["line"] == 6
    assert main(["check", "--config", str(path), "--markdown"]) == 1
    assert "| is | `truncated_sampling` |" in capsys.readouterr().out
    path.write_text(verl("")[1])
    assert main(["check", "--config", str(path)]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--vllm", "0.18.1"], "needs --config"),
        (["log.jsonl", "--config", "run.sh"], "by itself"),
        (["--config", "nothing.sh"], "no such file"),
        (["--config", "run.sh", "--json", "--markdown"], "one of them"),
    ],
)
def test_a_mistaken_command_is_one_line_and_exit_code_2(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.sh").write_text(verl("")[1])
    assert main(["check", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_the_page_lists_every_trap_with_what_it_does_and_its_source() -> None:
    page = (Path(__file__).parents[2] / "docs" / "configurations.md").read_text()
    table = page.partition("<!-- traps: begin -->")[2].partition("<!-- traps: end -->")[0]
    rows = [
        f"| `{name}` | {trap.what} | <{trap.source}> | {', '.join(f'`{cause}`' for cause in trap.causes)} |"
        for name, trap in TRAPS.items()
    ]
    assert table.strip().splitlines()[2:] == rows


def test_what_a_trap_is_called_in_a_log_is_a_cause_that_a_diagnosis_knows() -> None:
    assert {cause for trap in TRAPS.values() for cause in trap.causes} <= set(FIX)
