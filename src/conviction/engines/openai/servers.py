"""Several servers as one engine: what they can do together, and what to know about it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from conviction.engines.base import Capabilities
from conviction.engines.openai.facts import ServerFacts
from conviction.engines.openai.http import HttpClient
from conviction.engines.openai.probe import MOST_TOP_K
from conviction.errors import EngineError, InvalidSettingError


@dataclass(eq=False)
class Server:
    """One server: what speaks to it, and what is known of it.

    Attributes:
        http: Speaks to it.
        facts: What was found out; None until it was asked.
        trouble: Why it is not used; None if it is.
        remembered: Whether the facts are from an earlier run.
    """

    http: HttpClient
    facts: ServerFacts | None = None
    trouble: EngineError | None = None
    remembered: bool = False

    def lose_gate(self) -> None:
        """Ask it for log-probabilities from now on: its gate was there, and is no longer."""
        if self.facts is not None:
            lost = {"gate": False, "channel": False, "stop_token": None}
            self.facts = replace(self.facts, **lost)


def common_capabilities(servers: Sequence[Server], concurrency: int) -> Capabilities:
    """What servers can do together; at least one must work.

    Args:
        servers: All of them, asked.
        concurrency: Traces that each gets at once.

    Raises:
        InvalidSettingError: they serve different models.
    """
    known = [(server.http.base_url, server.facts) for server in servers if server.facts]
    facts = [fact for _, fact in known]
    if len({fact.model for fact in facts}) > 1:
        raise InvalidSettingError(
            tried="think with several servers as one",
            found="they serve different models: "
            + ", ".join(f"{fact.model} at {url}" for url, fact in known),
            remedy="Name a model that all of them serve, or give only servers of one model.",
        )
    weakest = min(facts, key=_most_k)
    return Capabilities(
        model=facts[0].model,
        top_k=_most_k(weakest),
        top_k_reason=weakest.top_k_reason,
        concurrency=concurrency * len(facts),
        context=min((fact.context for fact in facts if fact.context), default=None),
        seeds=all(fact.seeds for fact in facts),
        continues=all(fact.continues for fact in facts),
        gates=all(fact.gate for fact in facts),
        notes=tuple(_notes(servers, _most_k(weakest))),
    )


def _most_k(facts: ServerFacts) -> int:
    """The k that confidences may have: those of a channel need no log-probabilities."""
    return MOST_TOP_K if facts.channel else facts.top_k


def _notes(servers: Sequence[Server], top_k: int) -> Iterator[str]:
    """What to know before trusting or comparing what comes of these servers."""
    for server in servers:
        url, facts = server.http.base_url, server.facts
        if facts is None:
            yield f"{url} is left out: {server.trouble}"
            continue
        if facts.listed and facts.model not in facts.listed:
            yield (
                f"{url} does not list the model {facts.model}, and may answer with another: it "
                f"lists {', '.join(facts.listed[:5])}."
            )
        if 0 < _most_k(facts) < MOST_TOP_K and facts.top_k == top_k:
            yield (
                f"Token confidence is over k = {top_k}, and compares only with such: {url} was "
                f"{facts.top_k_reason}."
            )
        if facts.raw is False and not facts.channel:
            yield (
                f"Log-probabilities of {url} change with the temperature: confidences compare "
                "only between traces of the same sampling."
            )
        if facts.incremental is False:
            yield (
                f"Tokens of {url} arrive in lumps: something holds the stream back, so a trace "
                "that is stopped early may have been generated to its end."
            )
        if facts.frees is False:
            yield f"{url} went on generating after its stream was closed: stopping saves little."
        if server.http.sends_key_in_the_open:
            yield f"The key travels to {url} without TLS, so others may read it."
    if len({server.facts.channel or server.facts.raw for server in servers if server.facts}) > 1:
        yield "Servers differ in how they take log-probabilities: confidences may not compare."
