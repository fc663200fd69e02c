# ruff: noqa: RUF001  # words and signs of many scripts
"""Words that stand where an answer should, but are none: refusals, placeholders, first steps.

"Cannot be determined", "none of the above" and "no solution" are answers; "I cannot determine it"
is a refusal.
"""

import re

_PLACEHOLDER = re.compile(
    r"""[\W_]{0,20}(?: (?:your|the|my|final|correct|insert|put)? [ _]? (?:final[ _])? (?:answer
      |result)s? (?:[ ]here)?
      | n/a | tbd | todo | \\[lc]?dots | 정답 | 답 | 答案 ) [\W_]*
    | [?.…_\s–—·"']+""",
    re.IGNORECASE | re.VERBOSE,
)
_CANNOT = (
    r"(?:can[’']?t|cannot|can[ ]not|could[ ]not|couldn[’']t|am[ ]unable[ ]to|am[ ]not[ ]able[ ]to)"
)
_FINDING = (
    r"(?:determine|answer|find|solve|provide|give|tell|say|conclude|identify|help|assist"
    r"|decide|calculate"
    r"|compute|choose|verify|access|confirm|select|pick|make|complete|proceed|see)"
)
_REFUSAL = re.compile(
    rf"""
    \b(?:I|we)[ ](?:(?:really|simply|just|unfortunately|therefore|still
    |also)[ ])?{_CANNOT}[ ](?:\w{{1,20}}ly[ ])?{_FINDING}\b
  | \bI(?:[ ]a|[’'])m[ ](?:\w{{1,24}}[ ])?(?:unable|not[ ]able)[ ]to\b
  | \bI(?:[ ]a|[’'])m[ ](?:\w{{1,20}}ly[ ])?(?:not[ ](?:\w{{1,24}}[ ])?(?:sure|certain)|unsure
  |uncertain)\b
  | \bI[ ](?:do[ ]not|don[’']t)[ ](?:really[ ])?(?:know|have)(?:$|[.,;]|[ ](?:the|which|what
  |enough|how[ ]to|this|any)\b)
  | ^(?:{_CANNOT}|unable[ ]to)[ ]{_FINDING}\b
  | \b(?:impossible|not[ ]possible)[ ]to[ ](?:determine|answer|tell|say|find|know|give)\b
  | \b(?:not[ ]enough|insufficient)[ ](?:\w{{1,24}}[ ])?(?:information|data|context
  |details?)[ ](?:\w{{1,24}}[ ]){{0,3}}?to[ ]\w
  | \b(?:answer|question|problem)[ ](?:cannot|can[’']?t|can[ ]not)[ ]be\b
  | ^(?:error|exception|traceback|warning)\b\s*[:(\[]
  | ^(?:I[’']?m[ ]sorry|I[ ]am[ ]sorry|sorry\b[,.!]|I[ ]apologi[sz]e|as[ ]an[ ]ai\b)
  | 알[ ]수[ ]없(?:습니다|어요|네요|다$|었) | 모르겠 | 모릅니다 | 잘[ ]모르
  | (?:답할|답변할|대답할|풀[ ]?|결정할|판단할
  |구할)[ ]?수[ ]없(?:습니다|어요|다$)
  | 정보가[ ]부족
  | \bich[ ](?:weiß|kann)\b.{{0,60}}\bnicht\b | \bje[ ]ne[ ](?:sais|peux)\b
  | ^no[ ](?:lo[ ])?sé\b | \bno[ ]puedo[ ](?:determinar|responder|saber) | \bnão[ ](?:sei
  |posso)\b | \bnon[ ](?:lo[ ])?so\b
  | 我(?:不知道|无法|不能|不确定|無法) | ^不知道 | 无法(?:回答|给出|解答) | 無法回答
  | [わ分]かりません | 答えられません | (?:判断|お答え|回答)できません
    """,
    re.IGNORECASE | re.VERBOSE,
)
_FIRST_STEPS = re.compile(
    r"""(?:[Ll]et[’']?s|[Ll]et[ ](?:me|us))[ ][a-z]
      | (?:[Ww]e|I)(?:[ ](?:need|have|must|can|will|should|first|know|are|start|want|use|get|may
      |see|would|could
          |also|now|think|am)|[’'](?:ll|ve|d|re))[ ][a-z]
      | (?:[Tt]o|[Ii]n[ ]order[ ]to)[ ](?:find|solve|determine|calculate|compute|answer|get|do
      |figure|work|see|begin)\b
      | [Ff]irst(?:ly)?,[ ] | [Ss]tep[ ](?:1|one|by)\b | [Bb]y[ ](?:following|using)\b
      | (?:as|in|at)[ ](?:follows|the[ ]form|the[ ]box|shown|stated|given)\b
      | (?:not|a[ ]bit|simple|clear|obvious|straightforward|tricky|unclear|simply[ ]put)\W*$""",
    re.VERBOSE,
)
_LONGEST_REFUSAL = 600


def cannot_answer(answer: str) -> bool:
    """Whether text found in the place of an answer says that there is none, or holds none."""
    if len(answer) > _LONGEST_REFUSAL:
        return False
    return bool(
        _PLACEHOLDER.fullmatch(answer) or _FIRST_STEPS.match(answer) or _REFUSAL.search(answer)
    )
