"""Policies, driver and lab come to the same, bit for bit, on the recordings in `examples/`."""

import json

import pytest
from replayed_results import RECORDINGS, STORED, results


@pytest.mark.parametrize("recording", RECORDINGS)
def test_recordings_come_to_the_stored_results(recording: str) -> None:
    stored = json.loads(STORED.read_text())
    assert results(recording) == stored[recording]


def test_every_recording_has_stored_results() -> None:
    assert sorted(json.loads(STORED.read_text())) == sorted(RECORDINGS)
