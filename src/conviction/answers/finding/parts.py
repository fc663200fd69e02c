# ruff: noqa: RUF001  # words and signs of many scripts
"""The final part of a trace: what is left without reasoning, turn markers and special tokens.

Reasoning stands between marks, which differ by model family: `<think>`, `[THINK]`,
`<seed:think>`, `◁think▷`, `<|begin_of_thought|>`, the channels of gpt-oss, and so on. A closing
mark without an opening one ends reasoning that began in the prompt. Reasoning that is never closed
has no final part after it.
"""

import re
from typing import NamedTuple

MOST_CHARACTERS = 65_536
"""An answer is looked for in that many characters at the end of the final part."""

_THOUGHT = (
    "(?:[a-z]{1,12}[:_]|ant)?"
    "(?:think|thinking|thoughts?|reasoning|reflection|scratchpad|monologue|analysis)"
)
_CHANNEL = r"(?:<\|constrain\|>[^<\n]{0,80})?<\|message\|>"
# The first character stands alone, so that `re` skips to the next one of its kind.
_MARK = re.compile(
    rf"""
    [<\[◁] (?=[a-z/|｜ ]) (?:
      (?P<closing>
        \s? / (?: {_THOUGHT} \s? [>▷] | think \] )
      | \|? / {_THOUGHT} \|>
      | \| (?: end _ (?:of_)? {_THOUGHT} | {_THOUGHT} _end ) \|>
      | \| (?:begin|start) _ (?:of_)? (?:solution|response|answer) \|>
      | BEGIN[ ]FINAL[ ]RESPONSE\]
      | unused95> | \|im_start\|>answer\b
      | \|channel\|> [ ]{{0,4}} final [^<\n]{{0,80}} {_CHANNEL}
      )
    | (?P<opening>
        {_THOUGHT} \s? [>▷] | think \]
      | \| (?: {_THOUGHT} | (?:begin|start) _ (?:of_)? {_THOUGHT} | {_THOUGHT} _(?:start
      |begin) ) \|>
      | unused94> (?:thought)? | \|im_start\|>think\b
      | \|channel\|> [^<\n]{{1,80}} {_CHANNEL}
      )
    | (?P<end>
        \| (?: im_end | eo[tm]_id | eo[tsd] | end(?!\|><\|start\|>assistant) | return | pad
             | end_?of_?(?:text|turn|solution)
             | end_of_turn_token | end_response | (?:end_?of_?)?user
             | (?: im_start | start | start_header_id ) \|>user (?: <\|end_header_id )? ) \|>
      | [|｜] (?: end[▁_]of[▁_]sentence | user ) [|｜]>
      | /s> | eos> | end_of_turn> | start_of_turn>user | turn\|> | pad>
      | \|endofturn\|\] | END[ ]FINAL[ ]RESPONSE\] | EOS\] | INST\]
      )
    | (?: \| (?: im_start | start | start_header_id ) \|> (?:assistant)? | start_of_turn> (?:model)?
        | \| (?: end_header_id | assistant | im_sep | begin_of_text ) \|> | [|｜]Assistant[|｜]>
        | bos> | s> | unk> | /INST\] | \|assistant\|\] | \|/?[a-z0-9_ .:-]{{1,40}}\|> )
    )
    """,
    re.IGNORECASE | re.VERBOSE,
)
# How gpt-oss's channels read once a server has left out their special tokens.
_BARE_CHANNELS = re.compile(r"\s{0,20}analysis(?=[A-Z])")
_BARE_FINAL = "assistantfinal"
# Zero-width and direction marks. The two joiners stay: words of some scripts hold them.
_INVISIBLE = re.compile("[\0\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class Parts(NamedTuple):
    """What an answer is looked for in."""

    final: str
    """The end of the final part; blank where reasoning was never closed and nothing precedes it."""
    everything: str
    """The end of the text as a whole, reasoning included."""


def parts(text: str) -> Parts:
    """The final part and the whole of a trace's text, each cut to its last `MOST_CHARACTERS`."""
    whole = _plain(text)
    return Parts(_final(whole)[-MOST_CHARACTERS:], whole[-MOST_CHARACTERS:])


def _plain(text: str) -> str:
    """The text with line feeds at the ends of lines and without invisible characters."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.isascii() and "\0" not in text:
        return text
    return _SURROGATE.sub("\N{REPLACEMENT CHARACTER}", _INVISIBLE.sub("", text))


def _final(text: str) -> str:
    """The last stretch outside of reasoning that holds anything, up to the end of the turn."""
    found = ""
    pieces: list[str] = []
    start, reasoning = _bare_channels(text)
    for mark in _MARK.finditer(text, start):
        kind = mark.lastgroup
        if not reasoning:
            pieces.append(text[start : mark.start()])
        start = mark.end()
        if kind == "closing":
            # Without an opening mark, all before it was reasoning, too.
            if not reasoning:
                found = ""
            pieces, reasoning = [], False
        elif kind is not None and not reasoning:
            whole = _joined(pieces)
            if whole and kind == "end":
                return whole
            found, pieces, reasoning = whole or found, [], kind == "opening"
    if not reasoning:
        pieces.append(text[start:])
        found = _joined(pieces) or found
    return found


def _joined(pieces: list[str]) -> str:
    whole = "".join(pieces)
    return whole if whole and not whole.isspace() else ""


def _bare_channels(text: str) -> tuple[int, bool]:
    """Where the text to look at starts, and whether reasoning goes on there."""
    if not _BARE_CHANNELS.match(text):
        return 0, False
    final = text.rfind(_BARE_FINAL)
    return (0, True) if final < 0 else (final + len(_BARE_FINAL), False)
