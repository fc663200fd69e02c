"""What a process of the lab sees of its environment; in a module of its own, as it must pickle."""

import os


def names_of_variables(source: object, question: str) -> list[str]:
    """Names of the environment variables of the process that does the work."""
    del source, question
    return list(os.environ)
