"""The environment of processes that are started here: without the keys of this one.

Other programs of the same user can read the environment of a process, and what a child logs or
reports may quote it. Children that need a key get it on a pipe.
"""

import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager

_SECRET = re.compile(
    r"(?:^|_)(?:API_?KEYS?|KEYS?|TOKENS?|SECRETS?|CREDENTIALS?|PASSPHRASE)$|PASSW(?:OR)?D$",
    re.IGNORECASE,
)


def child_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables of an environment whose names are not those of keys, tokens or passwords."""
    return {name: value for name, value in environment.items() if not _SECRET.search(name)}


@contextmanager
def secrets_hidden(*kept: str) -> Generator[None]:
    """An `os.environ` without secrets, for what starts processes and takes no environment.

    Args:
        kept: Beginnings of the names of variables that stay.
    """
    secret = [one for one in os.environ if _SECRET.search(one) and not one.startswith(kept)]
    hidden = {one: os.environ[one] for one in secret}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)
