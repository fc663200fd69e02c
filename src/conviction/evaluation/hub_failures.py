"""What keeps a data set of the hub from being read, as errors that say what to do."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NoReturn

from conviction.errors import ConvictionError, DownloadError, InvalidSettingError

_MOST_LISTED = 20
_MOST_CHARACTERS = 200
_DOWNLOAD = "Or download a file of it (.jsonl, .csv or .parquet), and name that in its place."


class HubFailures:
    """The errors of reading one data set.

    Args:
        name: Owner and name of the data set.
        address: Its address, as it was given.
        datasets: The library that reads it.
        client: The library that asks the hub.
    """

    def __init__(self, name: str, address: str, datasets: Any, client: Any) -> None:
        self._tried = f"read {address}"
        self._name = name
        self._page = f"{client.constants.ENDPOINT}/datasets/{name}"
        self._datasets = datasets
        self._client = client

    @contextmanager
    def explained(self) -> Generator[None]:
        """Turn what the libraries report into an error that says what to do."""
        try:
            yield
        except ConvictionError:
            raise
        except Exception as error:  # noqa: BLE001  # the libraries' errors have no common base
            self._explain(error)

    def refuse_choice(self, what: str, wanted: str | None, names: Sequence[str]) -> NoReturn:
        """Refuse a subset or split that there is not, or that was not chosen among several."""
        listed = ", ".join(names[:_MOST_LISTED]) or "none"
        if len(names) > _MOST_LISTED:
            listed += f", and {len(names) - _MOST_LISTED} more"
        if wanted is None:
            self._refuse(f"it has several {what}s: {listed}", f"Name one of them: --{what}.")
        self._refuse(
            f"it has no {what} {wanted!r}; it has {listed}", f"Name one of them: --{what}."
        )

    def refuse_program(self, file: str) -> NoReturn:
        """Refuse a data set that needs a program of its own."""
        copy = f"{self._page}/tree/refs%2Fconvert%2Fparquet"
        self._refuse(
            f"it needs a program of its own, {file}, and programs of data sets are never run",
            f"Download a file of its Parquet copy, and name that in its place: {copy}",
        )

    def refuse_offline(self, subset: str | None) -> NoReturn:
        """Refuse to go on without a copy where the hub must not be asked."""
        what = f"no copy of its subset {subset!r}" if subset else "no single copy of it"
        self._refuse(
            f"HF_HUB_OFFLINE forbids to ask the hub, and {what} is on disk",
            "Run the command once without HF_HUB_OFFLINE and without --limit, which keeps a copy. "
            + _DOWNLOAD,
        )

    def refuse_other_copy(self, commit: str) -> NoReturn:
        """Refuse a copy that may not be of the revision that was asked for."""
        self._refuse(
            f"HF_HUB_OFFLINE forbids to ask the hub, and the copy on disk is of commit {commit}",
            f"Name that one, hf://{self._name}@{commit}, or go without HF_HUB_OFFLINE.",
        )

    def failed(self, found: str) -> DownloadError:
        """An error for what may work at another time."""
        remedy = f"Try again; with HF_HUB_OFFLINE=1 a copy on disk is used. {_DOWNLOAD}"
        return DownloadError(tried=self._tried, found=found, remedy=remedy)

    def text(self, error: BaseException) -> str:
        """An error of a library on one line, without the user's token."""
        line = next(iter(str(error).strip().splitlines()), "")[:_MOST_CHARACTERS].rstrip(".: ")
        text = f"{type(error).__name__}: {line}" if line else type(error).__name__
        token = self._client.get_token()
        return text.replace(token, "…") if token else text

    def _explain(self, error: Exception) -> NoReturn:
        errors, library = self._client.errors, self._datasets.exceptions
        causes = _causes(error)
        login = "log in with `hf auth login` or set HF_TOKEN"
        if _among(causes, errors.GatedRepoError):
            self._refuse(
                "it is gated: the hub shows it to those whom its owner lets in",
                f"Ask for access on {self._page}, and {login}.",
            )
        if _among(causes, errors.RevisionNotFoundError):
            self._refuse("it has no such revision", f"Its commits: {self._page}/commits/main")
        if _among(causes, (errors.RepositoryNotFoundError, library.DatasetNotFoundError)):
            self._refuse(
                "the hub has no such data set, or it is private",
                f"Look at its name. For a private one, {login}.",
            )
        if _among(causes, errors.HFValidationError):
            self._refuse("no data set can have this name", "Write hf://OWNER/NAME.")
        if answer := _among(causes, errors.HfHubHTTPError):
            status = answer.response.status_code
            if status in (401, 403):
                self._refuse(f"the hub does not let us (status {status})", f"Rather {login}.")
            raise self.failed(f"the hub answered with status {status}") from None
        empty = import_module(f"{self._datasets.__name__}.data_files").EmptyDatasetError
        if _among(causes, (library.DataFilesNotFoundError, empty)):
            files = f"{self._page}/tree/main"
            self._refuse("it holds no file that can be read", f"Look at its files: {files}")
        raise self.failed(f"it cannot be read ({self.text(causes[-1])})") from None

    def _refuse(self, found: str, remedy: str) -> NoReturn:
        raise InvalidSettingError(tried=self._tried, found=found, remedy=remedy) from None


def _causes(error: BaseException) -> list[BaseException]:
    """An error and what led to it, as far as that is told."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None and cause not in causes:
        causes.append(cause)
    return causes


def _among(causes: Sequence[BaseException], kinds: Any) -> Any:
    return next((cause for cause in causes if isinstance(cause, kinds)), None)
