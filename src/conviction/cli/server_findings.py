"""What the doctor finds out about servers of completions."""

from collections.abc import Iterator

from conviction.cli.findings import Finding
from conviction.cli.server import ServerOptions, facts_folder
from conviction.engines.openai.facts import FactsCache, ServerFacts
from conviction.engines.openai.probe import MOST_TOP_K
from conviction.engines.openai.servers import Server
from conviction.errors import EngineError, InvalidSettingError

_UNBUFFER = (
    "Something between holds the stream back (a proxy?): go around it, or switch its buffering "
    "off; early stopping saves nothing otherwise."
)
_WITHOUT = "Without them, policies that need none work, such as the default and --policy majority."


async def examine(options: ServerOptions, model: str | None) -> list[Finding]:
    """Ask each server afresh what it does, and keep that for later runs.

    Args:
        options: The servers, at least one.
        model: Name of the model; None for the first that a server lists.
    """
    engine = options.servers(model)
    assert engine is not None  # noqa: S101  # the caller looked at base_url
    together: list[Finding] = []
    async with engine:
        try:
            await engine.capabilities()
        except EngineError:
            pass  # Each server tells its own trouble below.
        except InvalidSettingError as error:
            together.append(Finding("together", error.found, ok=False, remedy=error.remedy))
    cache = FactsCache(facts_folder())
    for server in engine.servers:
        if server.facts is not None:
            cache.save(server.http.base_url, options.route, server.facts)
    return [*(line for server in engine.servers for line in _findings(server)), *together]


def _findings(server: Server) -> Iterator[Finding]:
    url, facts = server.http.base_url, server.facts
    if facts is None:
        trouble = server.trouble
        assert trouble is not None  # noqa: S101  # a server that was asked has one or the other
        yield Finding(
            "server", f"{trouble.tried}: {trouble.found}", ok=False, remedy=trouble.remedy
        )
        return
    software = f" ({facts.software})" if facts.software else ""
    yield Finding("server", f"{url}{software}", ok=True, value=url)
    yield _model(facts)
    context = f"{facts.context:,} tokens" if facts.context else "it does not say"
    yield Finding("context", context, value=facts.context)
    yield _logprobs(facts)
    if facts.top_k:
        yield _taken(facts)
    yield _seeds(facts)
    yield _arrival(facts)
    yield _freeing(facts)
    yield Finding("continuing", _CONTINUING[facts.continues], value=facts.continues)
    yield Finding("vLLM's arguments", _ARGUMENTS[facts.vllm_arguments], value=facts.vllm_arguments)
    if facts.gate is not None:
        yield from _gate(facts)
    if server.http.sends_key_in_the_open:
        yield Finding(
            "key",
            "it travels without TLS, so others on the way may read it",
            ok=False,
            remedy="Use an address that begins with https://.",
        )


_CONTINUING = {
    True: "goes on with a trace whose beginning it is given",
    False: "does not go on with a trace whose beginning it is given",
    None: "could not be told: it does not count its prompts' tokens",
}

_ARGUMENTS = {
    True: "take effect",
    False: "do not take effect",
    None: "could not be told without log-probabilities",
}


def _model(facts: ServerFacts) -> Finding:
    others = len(facts.listed) - (facts.model in facts.listed)
    found = f"{facts.model}, and {others} more" if others else facts.model
    if facts.listed and facts.model not in facts.listed:
        known = ", ".join(facts.listed[:5]) + (", …" if len(facts.listed) > 5 else "")
        found = f"{facts.model}, which it does not list; it lists {known}"
    return Finding("model", found, value=facts.model)


def _logprobs(facts: ServerFacts) -> Finding:
    what, k = "log-probabilities", facts.top_k
    if k == MOST_TOP_K:
        return Finding(what, f"{k} a token, as the paper's k", ok=True, value=k)
    found = f"{k or 'none'}: it was {facts.top_k_reason}"
    remedy = f"Confidences are over k = {k}, and compare only with such." if k else _WITHOUT
    return Finding(what, found, ok=k > 0, remedy=remedy, value=k)


def _taken(facts: ServerFacts) -> Finding:
    found, ok, remedy = {
        None: ("before or after temperature: could not be told", None, ""),
        True: ("before temperature and filters (raw)", True, ""),
        False: ("after temperature", None, "Compare confidences only within one sampling."),
    }[facts.raw]
    return Finding("taken", found, ok=ok, remedy=remedy, value=facts.raw)


def _seeds(facts: ServerFacts) -> Finding:
    found, ok = {
        None: ("could not be told: all draws were alike", None),
        True: ("one seed gave one trace, another gave another", True),
        False: ("the same seed gave different traces", None),
    }[facts.seeds]
    return Finding("seeds", found, ok=ok, value=facts.seeds)


def _arrival(facts: ServerFacts) -> Finding:
    found = {
        None: "too short to tell whether tokens come one by one",
        True: "tokens come as they are generated",
        False: "tokens come in lumps",
    }[facts.incremental]
    remedy = "" if facts.incremental is not False else _UNBUFFER
    return Finding("stream", found, ok=facts.incremental, remedy=remedy, value=facts.incremental)


def _gate(facts: ServerFacts) -> Iterator[Finding]:
    if not facts.gate:
        why = f"does not work: {facts.gate_reason}" if facts.gate_reason else "is not loaded there"
        yield Finding("gate", f"{why}; traces are stopped from here", value=False)
        return
    found = f"stops traces inside the server, by the token {facts.stop_token}"
    yield Finding("gate", found, ok=True, value=facts.stop_token)
    way = (
        "confidences come through a file on this machine, without log-probabilities"
        if facts.channel
        else "none reaches us, so confidences come by log-probabilities"
    )
    yield Finding("the gate's channel", way, ok=facts.channel or None, value=facts.channel)


def _freeing(facts: ServerFacts) -> Finding:
    after = facts.tokens_after_close
    tokens = "" if after is None else f"; {after} tokens came after it"
    found = {
        None: "could not be told (no metrics, or the trace ended too soon)",
        True: f"frees the server{tokens}",
        False: f"does not free the server within 5 s{tokens}",
    }[facts.frees]
    remedy = "" if facts.frees is not False else "Early stopping saves little there."
    return Finding("closing the stream", found, ok=facts.frees, remedy=remedy, value=facts.frees)
