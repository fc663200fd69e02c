"""In what a recording differs from the run that it is to tell something about."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

from conviction.core import Question, Sampling
from conviction.recordings import Pool, PoolMeta, prompt_hash


def mismatches(
    pool: Pool,
    run: PoolMeta,
    asked: Sequence[Question],
    *,
    prompt: Callable[[str], Question],
    needs_confidence: bool,
) -> tuple[str, ...]:
    """What a reader should know before taking a recording for what a run would have been.

    Args:
        pool: The recording.
        run: What would stand in a recording of the run.
        asked: The questions of the run, as the model gets them.
        prompt: Puts the run's prompt around the words of any question.
        needs_confidence: Whether the run's policy reads confidences.

    Returns:
        Whole sentences; none where nothing differs.
    """
    notes: list[str] = []
    different = list(_differences(pool, run, needs_confidence=needs_confidence))
    same_prompt = _same_prompt(pool, prompt)
    if same_prompt is False:
        different.append("another prompt")
    if different:
        notes.append(
            f"The calibration was recorded with {', '.join(different)}: its probabilities may not "
            "hold here."
        )
    if same_prompt is None:
        notes.append(
            "The calibration keeps no words of its questions, so whether they had the prompt of "
            "this run cannot be told."
        )
    hashes = {question.prompt_hash for question in pool.questions if question.gold is not None}
    known = sum(prompt_hash(question) in hashes for question in asked)
    if known:
        which = "This question is" if len(asked) == 1 else f"{known} of {len(asked)} questions are"
        notes.append(
            f"{which} among those of the calibration, which so has seen the right answer: the "
            "probability is better than it would be for others."
        )
    return tuple(notes)


def _differences(pool: Pool, run: PoolMeta, *, needs_confidence: bool) -> Iterator[str]:
    meta = pool.meta
    if meta.model != run.model:
        yield f"the model {meta.model} (here {run.model})"
    if meta.answers != run.answers:
        yield f"answers of the kind {meta.answers} (here {run.answers})"
    if needs_confidence and meta.top_k != run.top_k:
        yield f"k = {meta.top_k} (here {run.top_k})"
    if meta.sampling is None:
        yield "sampling that it does not tell"
    else:
        here = asdict(run.sampling or Sampling())
        for name, value in asdict(meta.sampling).items():
            if value != here[name]:
                yield f"{name} {_plain(value)} (here {_plain(here[name])})"


def _plain(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"


def _same_prompt(pool: Pool, prompt: Callable[[str], Question]) -> bool | None:
    """Whether its questions were asked with this prompt; None if it keeps none of their words."""
    told = [question for question in pool.questions if question.text]
    if not told:
        return None
    return all(prompt_hash(prompt(one.text)) == one.prompt_hash for one in told)
