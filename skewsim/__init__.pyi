# The public API. `skewsim/__init__.py` reads this list and loads each name when it is first used.
from .diagnose import Diagnosis, diagnose, load_models, load_source
from .engine.rollouts import RolloutEngine, RolloutRequest, Rollouts
from .engine.simulated import SimEngine
from .errors import EngineError, FileFormatError, SkewsimError, UserError
from .learn.corrections import compute_weights
from .learn.look import Look, look_at
from .learn.losses import LossInputs, LossOutputs
from .learn.objectives import compute_advantages, compute_loss
from .learn.trainer import Trainer, train
from .records import StepRecord
from .runs.experiment import Experiment
from .runs.figures import Picture, curves_figure
from .runs.ladder import Ladder, LadderResult
from .runs.recording import RunFolder, read_records
from .scenarios import find_scenario
from .settings import Scenario
from .skew.advise import AdviseReport, advise
from .skew.fitting import fit_profile
from .skew.gate import GateReport, gate
from .skew.metric_table import METRICS
from .skew.metrics import by_probability, skew_metrics
from .skew.placing import Placing, place
from .skew.profile import SkewProfile, load_profile, save_profile, shipped_profiles
from .skew.published import PublishedRun, published_runs
from .skew.sequences import SequenceLog, load_sequences
from .skew.tokens import TokenTable

__version__: str
__all__ = [
    "METRICS",
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
