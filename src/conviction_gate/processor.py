"""The plugin that vLLM loads: one class for both of its interfaces.

Runner V1 tells which requests stand in which row when that changes; runner V2 gives each request a
slot, and tells with every step which row is whose. vLLM takes one class per entry point, and each
runner refuses classes of the other's interface, so this one has both.
"""

import logging
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as FirstInterface

from conviction_gate.arguments import check, obstacle, read
from conviction_gate.first_runner import FirstRunner
from conviction_gate.holding import Holding
from conviction_gate.second_runner import SecondRunner

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SecondInterface
else:
    try:
        from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SecondInterface
    except ImportError:  # vLLM up to 0.30

        class SecondInterface:
            """There is none yet."""


_log = logging.getLogger("vllm.conviction_gate")


class ConfidenceGate(FirstInterface, SecondInterface):
    """Stops traces whose group confidence falls below their threshold, inside vLLM.

    See `conviction_gate.names` for what a request says. A trace that is stopped draws the reserved
    token in the place of the token at which its window fell too low, so it has as many tokens as
    `conviction.Gate.stop_position` tells, and `stop_reason` is that token.

    Where vLLM's settings leave no way to follow a trace, it does nothing.
    """

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Refuse wrong arguments when a request is admitted.

        Raises:
            ValueError: naming the argument.
        """
        check(sampling_params)

    def __init__(
        self,
        vllm_config: Any,
        device_or_states: Any,
        is_pin_memory: bool | None = None,  # noqa: FBT001  # vLLM's signature
    ) -> None:
        self._first: FirstRunner | None = None
        self._second: SecondRunner | None = None
        self._told = False
        self._obstacle = obstacle(vllm_config)
        if self._obstacle:
            # Whoever wants a gate is refused at admission; all others are served as ever.
            return
        ranks = vllm_config.parallel_config.tensor_parallel_size
        reporting = ranks == 1 or get_tensor_model_parallel_rank() == 0
        if is_pin_memory is None:
            states = device_or_states
            requests, device = states.max_num_reqs, torch.device(states.device)
            self._second = SecondRunner(states, Holding(requests, device, reporting=reporting))
        else:
            requests, device = (
                vllm_config.scheduler_config.max_num_seqs,
                torch.device(device_or_states),
            )
            self._first = FirstRunner(Holding(requests, device, reporting=reporting))

    def is_argmax_invariant(self) -> bool:
        """Whether the likeliest token stays: not where a trace is stopped."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Runner V1: follow the requests through the rows of the batch."""
        if self._first is not None:
            self._first.update(batch_update)
        elif batch_update is not None:
            for _, params, _, _ in batch_update.added:
                self._warn(params)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Runner V2: take the request of a slot; whether it concerns the gate."""
        if self._second is None:
            self._warn(sampling_params)
            return False
        return self._second.add(req_idx, sampling_params)

    def apply_staged_writes(self) -> None:
        """Runner V2: bring to the device what `add_request` brought."""
        if self._second is not None:
            self._second.flush()

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Measure the rows and stop traces; the same tensor, changed in place."""
        if self._first is not None:
            self._first.apply(logits)
        elif self._second is not None:
            self._second.apply(logits, ctx)
        return logits

    def _warn(self, params: Any) -> None:
        """Say once that there is no gate, if a request that wants one came through all the same."""
        if not self._told and read(params) is not None:
            self._told = True
            _log.warning(
                "conviction: a request asks for the gate, and there is none: %s. Its trace is "
                "neither measured nor stopped",
                self._obstacle,
            )
