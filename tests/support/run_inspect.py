"""Runs an evaluation of inspect_ai through a server, in an environment that has inspect_ai.

python run_inspect.py BASE_URL MODEL LOG_FOLDER
"""

import json
import sys

from inspect_ai import Task, eval  # noqa: A004  # its name
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import get_model
from inspect_ai.scorer import match
from inspect_ai.solver import generate

QUESTIONS = 20


def main(base_url: str, model: str, folder: str) -> None:
    """Ask, score, and print what came of it as JSON."""
    samples = [
        Sample(input=f"What is {number} + {number}?", target=str(2 * number))
        for number in range(1, QUESTIONS + 1)
    ]
    task = Task(dataset=MemoryDataset(samples), solver=generate(), scorer=match(numeric=True))
    served = get_model(f"openai-api/conviction/{model}", base_url=base_url, api_key="none")
    (log,) = eval(task, model=served, log_dir=folder, display="none")
    scores = log.results.scores[0].metrics if log.results else {}
    usage = next(iter(log.stats.model_usage.values()))
    told = {
        "status": log.status,
        "samples": len(log.samples or ()),
        "accuracy": scores["accuracy"].value if "accuracy" in scores else None,
        "output_tokens": usage.output_tokens,
        "error": log.error.message if log.error else None,
    }
    print(json.dumps(told))  # noqa: T201  # what the test reads


if __name__ == "__main__":
    main(*sys.argv[1:])
