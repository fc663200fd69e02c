# Of vLLM what `conviction_gate` uses; it is no dependency of this package.

from enum import Enum

class MoveDirectionality(Enum):
    UNIDIRECTIONAL = 1
    SWAP = 2

class LogitsProcessor: ...
