"""`import skewsim`: its names, pinned, and that they cost nothing until they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import skewsim
from skewsim.moved import MOVED

NAMES = [
    "AdviseReport",
    "Diagnosis",
    "EngineError",
    "Experiment",
    "FileFormatError",
    "GateReport",
    "Ladder",
    "LadderResult",
    "Look",
    "LossInputs",
    "LossOutputs",
    "METRICS",
    "Picture",
    "Placing",
    "PublishedRun",
    "RolloutEngine",
    "RolloutRequest",
    "Rollouts",
    "RunFolder",
    "Scenario",
    "SequenceLog",
    "SimEngine",
    "SkewProfile",
    "SkewsimError",
    "StepRecord",
    "TokenTable",
    "Trainer",
    "UserError",
    "advise",
    "by_probability",
    "compute_advantages",
    "compute_loss",
    "compute_weights",
    "curves_figure",
    "diagnose",
    "find_scenario",
    "fit_profile",
    "gate",
    "load_models",
    "load_profile",
    "load_sequences",
    "load_source",
    "look_at",
    "place",
    "published_runs",
    "read_records",
    "save_profile",
    "shipped_profiles",
    "skew_metrics",
    "train",
]
RELIED_ON = {
    "objectives": "LossInputs LossOutputs compute_loss compute_advantages OBJECTIVES",
    "corrections": "compute_weights",
    "metrics": "skew_metrics METRICS",
    "profile": "SkewProfile fit_profile load_profile save_profile",
    "tokens": "TokenTable",
    "engine": "SimEngine RolloutEngine RolloutRequest Rollouts WeightUpdate",
    "trainer": "Trainer train",
    "sweep": "Ladder Ensemble Relay",
    "recording": "RunFolder record read_records",
    "advise": "advise",
    "gate": "gate",
    "published": "judge place",
}


def test_the_public_names_are_these() -> None:
    assert sorted(skewsim.__all__) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_of_them_is_there(name: str) -> None:
    assert getattr(skewsim, name) is not None


def test_importing_the_package_loads_nothing_large() -> None:
    code = "import sys, skewsim; print({'torch', 'numpy', 'scipy', 'pydantic', 'rich', 'cyclopts'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("module", RELIED_ON)
def test_what_programs_relied_on_is_importable_where_it_was(module: str) -> None:
    names = RELIED_ON[module].split()
    code = f"from skewsim.{module} import {', '.join(names)}"
    exec(code, {})


@pytest.mark.parametrize("module", MOVED)
def test_an_old_address_says_where_a_name_that_never_was_there_is_not(module: str) -> None:
    with pytest.raises(ImportError, match="cannot import name"):
        exec(f"from skewsim.{module} import nothing_of_the_kind", {})


def test_a_package_can_be_called_for_its_function() -> None:
    import skewsim.diagnose  # an imported submodule becomes an attribute of its package

    with pytest.raises(AttributeError):
        skewsim.diagnose(None)  # it got as far as the function
