"""DeepConf offline (METHOD section 3): complete traces, filtered and weighted by confidence."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from conviction.confidence import Metric
from conviction.core import require
from conviction.policies.base import Standing
from conviction.policies.offline import Offline
from conviction.policies.scores import score
from conviction.policies.windows import fitting_window
from conviction.voting import Ballot, threshold_for


@dataclass
class DeepConfOffline(Offline):
    """Let every trace finish, keep the most confident ones, and weigh their votes.

    The paper starts 512, keeps 0.1 or 0.9 of them, and takes a window of 2048.

    Attributes:
        keep: Share of the traces to keep, in (0, 1].
        weighted: Whether a vote weighs as much as its trace's confidence, instead of 1.
    """

    name: ClassVar[str] = "deepconf-offline"

    metric: Metric = Metric.TAIL
    keep: float = 0.1
    weighted: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require("keep", self.keep, low=1e-9, high=1.0)

    def standing(self) -> Standing:
        """The filtered, weighted vote among the traces so far.

        Where no confidence is known, of all of them, unweighted, and a note.
        """
        window = self.window or fitting_window(self._traces)
        scores = np.array([score(trace, self.metric, window) for trace in self._traces])
        threshold = threshold_for(scores, self.keep)
        blind = not np.isfinite(threshold)
        ballot = Ballot()
        for trace, weight in zip(self._traces, scores.tolist(), strict=True):
            if trace.answer and (blind or weight >= threshold):
                ballot.cast(trace.id, trace.answer, weight if self.weighted and not blind else 1.0)
        if not blind:
            return Standing(ballot.tally(), threshold, window)
        note = "No trace had a known confidence; this is the plain majority of all complete traces."
        return Standing(ballot.tally(), None, window, (note,) if self._traces else ())
