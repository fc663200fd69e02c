"""Any policy on recorded traces: replayed in seconds, measured with intervals."""

from conviction.lab.calibration import Calibration, calibrate
from conviction.lab.candidates import Candidate
from conviction.lab.comparison import Row
from conviction.lab.replay import Outcome, PlayedTrace, replay
from conviction.lab.sources import PoolTraces, TracesInMemory, TraceSource
from conviction.lab.statistics import Bootstrap, Estimate, auroc
from conviction.lab.study import Plan, Study, study
from conviction.lab.trials import Trials, run_trials

__all__ = [
    "Bootstrap",
    "Calibration",
    "Candidate",
    "Estimate",
    "Outcome",
    "Plan",
    "PlayedTrace",
    "PoolTraces",
    "Row",
    "Study",
    "TraceSource",
    "TracesInMemory",
    "Trials",
    "auroc",
    "calibrate",
    "replay",
    "run_trials",
    "study",
]
