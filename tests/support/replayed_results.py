"""What policies, driver and lab make of the recordings in `examples/`: it must not change.

Run it to write them anew, after a change that is meant to alter them:

    PYTHONPATH=tests/support python -m replayed_results
"""

import hashlib
import json
from itertools import islice
from math import inf
from pathlib import Path
from typing import Any

import anyio
import numpy as np

from conviction.answers import kind
from conviction.core import Question, Sampling
from conviction.engines.scripted import Script, ScriptedEngine
from conviction.lab import Plan, PoolTraces, replay, study
from conviction.lab.diagnosis import diagnose
from conviction.lab.replay import PlayedTrace
from conviction.policies import policy
from conviction.thinking import deliberate

EXAMPLES = Path(__file__).parents[2] / "examples"
STORED = Path(__file__).parents[1] / "data" / "replayed_results.json"
RECORDINGS = tuple(sorted(path.name for path in EXAMPLES.glob("*.parquet")))
SPECS = (
    "single",
    "majority",
    "adaptive-consistency:wave=4",
    "esc",
    "best-of-n",
    "borda",
    "deepconf-offline:keep=0.5",
    "deepconf-low",
    "deepconf-high",
    "settle",
    "settle-lean",
    "settle-exact",
    "settle-confident:keep=0.9",
)
LIVE_QUESTIONS = 4

Recorded = dict[str, list[PlayedTrace]]
"""The traces of each question."""


def results(recording: str) -> dict[str, Any]:
    """Everything that is held of one recording, as plain JSON types."""
    source = PoolTraces.open(EXAMPLES / recording)
    small = source.only(source.question_ids[:8])
    # Read once: a trace keeps what was measured of it, as it does within a study.
    traces = {question: source.traces(question) for question in source.question_ids}
    compared = study(
        source, Plan(SPECS, budgets=(16,), concurrencies=(1.0, 8.0, inf), repeats=1)
    ).to_dict()
    swept = study(
        small, Plan(("majority", "settle", "deepconf-low"), budgets=(16,), repeats=1, sweep=True)
    ).to_dict()
    return {
        "study": _digest(compared),
        "accuracy": {
            f"{row['spec']} at {row['concurrency']}": row["accuracy"]
            for row in compared["policies"]
        },
        "tokens": {
            f"{row['spec']} at {row['concurrency']}": row["tokens"] for row in compared["policies"]
        },
        "sweep": _digest(swept),
        "diagnosis": _digest(diagnose(small, repeats=2).to_dict()),
        "outcomes": {spec: _digest(_outcomes(source, traces, spec)) for spec in SPECS},
        "verdicts": {spec: _verdicts(traces, spec) for spec in SPECS},
    }


def _digest(values: object) -> str:
    """A number of equal values only: floats are written to their last digit."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _outcomes(source: PoolTraces, traces: Recorded, spec: str) -> list[Any]:
    return [
        [
            [(entry.key, entry.weight, entry.votes) for entry in outcome.tally.entries],
            [outcome.correct, outcome.ended, outcome.tokens, outcome.path],
            [outcome.started, outcome.stopped, outcome.cancelled],
        ]
        for played in traces.values()
        for outcome in [
            replay(
                policy(spec, **_budget(spec)),
                played,
                concurrency=8,
                top_k=source.top_k,
                max_tokens=source.max_tokens,
            )
        ]
    ]


def _budget(spec: str) -> dict[str, int]:
    return {} if spec == "single" else {"budget": 16}


def _verdicts(traces: Recorded, spec: str) -> str:
    """A digest of the driver's verdicts, on an engine that plays the recorded traces."""
    return _digest(
        [
            anyio.run(_live, question, played, spec)
            for question, played in islice(traces.items(), LIVE_QUESTIONS)
        ]
    )


async def _live(question: str, traces: list[PlayedTrace], spec: str) -> list[Any]:
    scripts = [
        Script(f"The answer is {trace.answer.text}." if trace.answer else "", _known(trace))
        for trace in traces
    ]
    # Whole traces as single chunks end in the order of starting.
    engine = ScriptedEngine(scripts, concurrency=4, chunk_tokens=1 << 20)
    verdict = await deliberate(
        Question.ask(question),
        engine=engine,
        policy=policy(spec, **_budget(spec)),
        answers=kind("number"),
        sampling=Sampling(max_tokens=1 << 19),
    )
    return [
        verdict.answer,
        [(entry.text, entry.key, entry.weight, entry.votes) for entry in verdict.tally.entries],
        [verdict.ended, verdict.threshold, verdict.usage.generated, len(verdict.traces)],
        [(trace.seed, trace.finish, trace.tokens) for trace in verdict.traces],
    ]


def _known(trace: PlayedTrace) -> np.ndarray:
    if trace.confidences is None:
        return np.full(trace.tokens, np.nan, np.float32)
    return trace.confidences


if __name__ == "__main__":
    found = {recording: results(recording) for recording in RECORDINGS}
    STORED.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
