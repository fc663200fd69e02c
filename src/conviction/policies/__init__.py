"""Policies: what to start, stop and count. One file per family."""

from conviction.policies.adaptive import AdaptiveConsistency, EarlyStoppingConsistency
from conviction.policies.base import (
    Action,
    Conditions,
    Continue,
    Done,
    Forget,
    Policy,
    Standing,
    Start,
    Stop,
    vote_of,
)
from conviction.policies.deepconf_online import DeepConfHigh, DeepConfLow, DeepConfOnline
from conviction.policies.majority import Majority, Single
from conviction.policies.named import policy, policy_names
from conviction.policies.offline import BestOfN, Borda, DeepConfOffline

__all__ = [
    "Action",
    "AdaptiveConsistency",
    "BestOfN",
    "Borda",
    "Conditions",
    "Continue",
    "DeepConfHigh",
    "DeepConfLow",
    "DeepConfOffline",
    "DeepConfOnline",
    "Done",
    "EarlyStoppingConsistency",
    "Forget",
    "Majority",
    "Policy",
    "Single",
    "Standing",
    "Start",
    "Stop",
    "policy",
    "policy_names",
    "vote_of",
]
