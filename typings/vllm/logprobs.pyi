class Logprob:
    logprob: float
    rank: int | None
