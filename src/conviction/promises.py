"""What a policy asked to start and has not begun, and what a continued trace begins with."""

import re
from collections import deque
from collections.abc import Mapping

from conviction.core import Trace
from conviction.errors import InvalidSettingError
from conviction.policies.base import Continue, Policy, Start


class Promises:
    """Promised traces, in order.

    They wait as the actions that promised them: a budget costs no memory.

    Args:
        policy: Promises them.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._queue: deque[Start | Continue] = deque()
        self._made = 0

    def __len__(self) -> int:
        return sum(action.count for action in self._queue)

    def add(self, action: Start | Continue) -> None:
        """Let more traces wait.

        Raises:
            InvalidSettingError: the policy exceeds its own budget.
        """
        self._made += action.count
        if self._made > self._policy.budget:
            raise InvalidSettingError(
                tried=f"start {action.count} more traces for {self._policy.name!r}",
                found=f"that exceeds its own budget of {self._policy.budget}",
                remedy="Mend the policy, or raise its budget.",
            )
        self._queue.append(action)

    def next(self) -> Start | Continue:
        """The next trace, taken out; a `Start` stands for one trace, whatever its count."""
        action = self._queue.popleft()
        if isinstance(action, Start) and action.count > 1:
            self._queue.appendleft(Start(action.count - 1, action.gate))
        return action

    def clear(self) -> None:
        """Forget those that wait."""
        self._queue.clear()


def begun(action: Continue, traces: Mapping[int, Trace], policy: Policy) -> tuple[str, int]:
    """What a continued trace begins with.

    Args:
        action: Which trace to continue, and how much of it to keep.
        traces: Those that have ended, by id.
        policy: Who wants it, for errors.

    Returns:
        The text, and about how many tokens that is.

    Raises:
        InvalidSettingError: there is no such complete trace, or it continues another itself.
    """
    trace = traces.get(action.trace)
    if trace is None or not trace.complete or trace.continues is not None:
        raise InvalidSettingError(
            tried=f"continue trace {action.trace} for {policy.name!r}",
            found="it is no complete trace of its own",
            remedy="Mend the policy.",
        )
    prefix = beginning(trace.text, action.keep)
    return prefix, trace.tokens * len(prefix) // max(len(trace.text), 1)


def beginning(text: str, share: float) -> str:
    """The first part of a text, cut where a word ends.

    Args:
        text: What a trace wrote.
        share: How much of it to keep at most, by characters, in (0, 1).

    Returns:
        The longest whole words that fit, without the space behind: models' tokens begin with it.
        Cut within a word if the first is too long, as in writings without spaces.
    """
    most = int(share * len(text))
    ends = (match.end() for match in re.finditer(r"\S+", text))
    return text[: max((end for end in ends if end <= most), default=most)]
