"""Every error that conviction raises on purpose, as one tree.

    ConvictionError
    ├── UsageError                 a setting or an input is wrong: nothing was started (exit code 2)
    │   ├── InvalidSettingError
    │   ├── UnknownNameError
    │   ├── PluginError
    │   └── MissingExtraError
    ├── EngineError                an engine could not do what was asked
    │   ├── EngineStartError
    │   ├── EngineUnavailableError
    │   │   └── TemporarilyUnavailableError
    │   ├── ContextOverflowError
    │   ├── MissingLogprobsError
    │   ├── CannotContinueError
    │   └── StreamError            one trace's stream broke; other traces go on
    ├── ModelError                 a model file is missing, broken or cannot be fetched
    │   ├── DownloadError
    │   ├── HashMismatchError
    │   └── NotAChatModelError
    ├── AnswerError                comparing answers failed as a whole
    ├── RecordingError             a pool of recorded traces cannot be read or written
    ├── AllTracesFailedError       no trace came to an end
    │   └── NothingGeneratedError  the run ended before the first token
    ├── ServerStartError           our own server cannot listen where it was told to
    └── RefusedError               our own server takes no more requests just now
        ├── OverloadedError
        └── ShuttingDownError

An error says what was tried, what was found and what to do.
"""

from collections.abc import Sequence

from conviction.display import listed, one_line


class ConvictionError(Exception):
    """Base of all errors that conviction raises on purpose.

    Its texts may hold words of a server: they are kept on one line, control characters shown.

    Args:
        tried: What was attempted, as in "open model.gguf".
        found: What happened instead; may be empty where `tried` says it all.
        remedy: What the reader can do about it; a whole sentence.
    """

    exit_code = 1

    def __init__(self, *, tried: str, found: str, remedy: str) -> None:
        self.tried = one_line(tried)
        self.found = one_line(found)
        self.remedy = one_line(remedy)
        super().__init__(f"{self.problem}. {self.remedy}")

    @property
    def problem(self) -> str:
        """What is wrong, without the remedy; it does not end in a full stop."""
        return f"{self.tried}: {self.found}".rstrip(".") if self.found else self.tried

    def __reduce__(self) -> tuple[object, ...]:
        """Errors cross process borders (workers, Ray), so they must pickle."""
        return Exception.__new__, (type(self), *self.args), vars(self)


class UsageError(ConvictionError):
    """A setting or an input is wrong; nothing was started."""

    exit_code = 2


class InvalidSettingError(UsageError):
    """A value lies outside of what a setting accepts."""


class UnknownNameError(UsageError):
    """A name (of a policy, a model, an answer kind, an engine) is not registered."""


class PluginError(UsageError):
    """An installed package brings a policy, answer kind or engine that cannot be used."""


class MissingExtraError(UsageError):
    """An optional dependency is needed and not installed."""


class EngineError(ConvictionError):
    """An engine could not do what was asked of it."""


class EngineStartError(EngineError):
    """An engine did not start."""


class EngineUnavailableError(EngineError):
    """An engine cannot be reached, or refuses us.

    Attributes:
        busy: Whether it works, but has too much to do.
        wait: Seconds that it asks us to wait; None where it names none.
    """

    busy: bool = False
    wait: float | None = None


class TemporarilyUnavailableError(EngineUnavailableError):
    """An engine cannot be reached or is too busy just now; the same request may work later."""


class ContextOverflowError(EngineError):
    """The prompt and the tokens asked for do not fit the model's context."""


class MissingLogprobsError(EngineError):
    """A policy needs token confidence and the engine gives no log-probabilities."""


class CannotContinueError(EngineError):
    """A policy continues traces and the engine does not go on with a given beginning."""


class StreamError(EngineError):
    """The stream of one trace broke; other traces are not affected."""


class ModelError(ConvictionError):
    """A model file is missing, broken or cannot be fetched."""


class DownloadError(ModelError):
    """A model could not be fetched from any of its sources, or a data set from the hub."""


class HashMismatchError(ModelError):
    """A file is not the one whose sha256 was expected."""


class NotAChatModelError(ModelError):
    """A file is not GGUF, is cut short, or does not hold a chat model."""


class AnswerError(ConvictionError):
    """Comparing answers failed as a whole."""


class RecordingError(ConvictionError):
    """A pool of recorded traces cannot be read or written."""


class AllTracesFailedError(ConvictionError):
    """No trace came to an end.

    Attributes:
        causes: The distinct reasons; the message names the first few.
        engine: What the engine last failed with, where it says; its traces may not have heard.
    """

    def __init__(
        self, *, tried: str, causes: Sequence[str], remedy: str, engine: EngineError | None = None
    ) -> None:
        self.causes = tuple(dict.fromkeys(causes))
        self.engine = engine
        super().__init__(tried=tried, found=listed(self.causes), remedy=remedy)


class NothingGeneratedError(AllTracesFailedError):
    """A run ended before a single token was generated, so there is no verdict.

    Attributes:
        ended: Why it ended, as in `Verdict.ended`: "time", "interrupted", …
    """

    def __init__(
        self,
        *,
        tried: str,
        causes: Sequence[str],
        remedy: str,
        ended: str,
        engine: EngineError | None = None,
    ) -> None:
        self.ended = ended
        super().__init__(tried=tried, causes=causes, remedy=remedy, engine=engine)
        if ended == "interrupted":
            self.exit_code = 130

    @property
    def unexplained(self) -> bool:
        """Whether nothing is known to have failed, so that the engine may only be slow."""
        return self.engine is None and len(self.causes) == 1


class ServerStartError(ConvictionError):
    """Our own server cannot listen where it was told to."""


class RefusedError(ConvictionError):
    """Our own server takes no more requests just now; nothing was started."""


class OverloadedError(RefusedError):
    """Too many requests wait already.

    Attributes:
        retry_after: Seconds after which it may be worth to ask again.
        own: Whether these requests are of the same client.
    """

    def __init__(
        self, *, tried: str, found: str, remedy: str, retry_after: int = 1, own: bool = False
    ) -> None:
        self.retry_after = retry_after
        self.own = own
        super().__init__(tried=tried, found=found, remedy=remedy)


class ShuttingDownError(RefusedError):
    """The server was told to end."""
