"""The plugin that vLLM loads: one class for both of its interfaces.

Runner V1 tells which requests stand in which row when that changes; runner V2 gives each request a
slot, and tells with every step which row is whose. vLLM takes one class per entry point, and each
runner refuses classes of the other's interface, so this one has both.
"""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from vllm.distributed.parallel_state import get_tensor_model_parallel_rank
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as FirstInterface
from vllm.v1.sample.logits_processor.interface import MoveDirectionality

from conviction_gate.arguments import Arguments, check, read
from conviction_gate.reports import Entry, Report
from conviction_gate.rows import Rows

if TYPE_CHECKING:
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SecondInterface
else:
    try:
        from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as SecondInterface
    except ImportError:  # vLLM up to 0.30

        class SecondInterface:
            """There is none yet."""


_log = logging.getLogger("vllm.conviction_gate")


@dataclass(eq=False, slots=True)
class _Held:
    """A request whose window is held.

    Attributes:
        key: What it is found by when it comes back.
        params: Its parameters, held so that no others get their address, which may be the key.
        wanted: Its arguments.
        slot: Where its window is.
        report: Its report.
        output: Its tokens so far: the list that vLLM goes on to fill.
        young: Whether its prompt may still be in the making, so that its last token may not count.
        computed: Tokens that it had when its last confidence was computed.
    """

    key: object
    params: Any
    wanted: Arguments
    slot: int
    report: Report | None
    output: list[int]
    young: bool = True
    computed: int = -1


class ConfidenceGate(FirstInterface, SecondInterface):
    """Stops traces whose group confidence falls below their threshold, inside vLLM.

    See `conviction_gate.names` for what a request says. A trace that is stopped draws the reserved
    token in the place of the token at which its window fell too low, so it has as many tokens as
    `conviction.Gate.stop_position` tells, and `stop_reason` is that token.

    Under speculative decoding it does nothing: drafts that are rejected would count as tokens.
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
        self._first: _Batch | None = None
        self._second: _Slots | None = None
        if vllm_config.speculative_config is not None:
            # Whoever wants a gate is refused at admission; all others are served as ever.
            _log.warning("conviction: speculative decoding is on, so there is no gate")
            return
        ranks = vllm_config.parallel_config.tensor_parallel_size
        rank = get_tensor_model_parallel_rank() if ranks > 1 else 0
        if is_pin_memory is None:
            device = torch.device(device_or_states.device)
            rows = Rows(device_or_states.max_num_reqs, device, rank=rank, ranks=ranks)
            self._second = _Slots(device_or_states, rows)
        else:
            # As many may be away as run.
            slots = 2 * vllm_config.scheduler_config.max_num_seqs
            rows = Rows(slots, torch.device(device_or_states), rank=rank, ranks=ranks)
            self._first = _Batch(slots, rows)

    def is_argmax_invariant(self) -> bool:
        """Whether the likeliest token stays: not where a trace is stopped."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Runner V1: follow the requests through the rows of the batch."""
        if self._first is not None:
            self._first.update(batch_update)

    def add_request(self, req_idx: int, sampling_params: Any) -> bool:
        """Runner V2: take the request of a slot; whether it concerns the gate."""
        return self._second is not None and self._second.add(req_idx, sampling_params)

    def apply_staged_writes(self) -> None:
        """Runner V2: bring to the device what `add_request` brought."""
        if self._second is not None:
            self._second.rows.windows.flush()

    def apply(self, logits: torch.Tensor, ctx: Any = None) -> torch.Tensor:
        """Measure the rows and stop traces; the same tensor, changed in place."""
        if self._first is not None:
            self._first.apply(logits)
        elif self._second is not None:
            self._second.apply(logits, ctx)
        return logits


class _Batch:
    """Runner V1's batch: which request stands in which row.

    A request that leaves the batch may come back: vLLM takes out whoever is preempted, or not
    computed in a step, and does not say whether it has ended. So windows of those that left are
    kept while there is room, the longest absent giving way first.
    """

    def __init__(self, slots: int, rows: Rows) -> None:
        self._rows = rows
        self._free = list(range(slots))
        self._running: dict[int, _Held] = {}
        self._absent: dict[object, _Held] = {}
        self._young: list[_Held] = []
        self._reported: list[tuple[int, _Held]] = []

    def update(self, change: Any) -> None:
        """Take what has changed, and see whether the last tokens of the young ones counted."""
        if self._young:
            self._look_at_the_young()
        if change is None:
            return
        concerned = bool(self._running)
        for row in change.removed:
            self._remove(row)
        for row, params, _, output in change.added:
            self._remove(row)
            wanted = read(params)
            if wanted is not None:
                self._running[row] = self._hold(wanted, params, output)
        for origin, target, direction in change.moved:
            self._move(origin, target, swap=direction == MoveDirectionality.SWAP)
        if concerned or self._running:
            self._rows.windows.flush()
            self._set_rows()

    def apply(self, logits: torch.Tensor) -> None:
        if not self._running:
            return
        for held in self._young:
            held.computed = len(held.output)
        entries: list[Entry] = [
            (held.report, place, len(held.output))
            for place, held in self._reported
            if held.report is not None
        ]
        self._rows.step(logits, entries)

    def _look_at_the_young(self) -> None:
        undone: list[int] = []
        grown = False
        for held in self._young:
            if held.computed < 0:
                continue
            if len(held.output) > held.computed:
                held.young, grown = False, True
            else:
                undone.append(held.slot)
            held.computed = -1
        if undone:
            self._rows.windows.take_back(undone)
        if grown:
            self._young = [held for held in self._young if held.young]

    def _hold(self, wanted: Arguments, params: Any, output: list[int]) -> _Held:
        key = wanted.trace or id(params)
        held, report = self._absent.pop(key, None), self._rows.open_report(wanted)
        if held is not None and held.wanted == wanted and output:
            held.output, held.young, held.report = output, True, report
            return held
        if held is not None:
            self._free.append(held.slot)
        if not self._free:
            self._free.append(self._absent.pop(next(iter(self._absent))).slot)
        slot = self._free.pop()
        self._rows.begin(slot, wanted, len(output), report)
        return _Held(key, params, wanted, slot, report, output)

    def _remove(self, row: int) -> None:
        held = self._running.pop(row, None)
        if held is None:
            return
        if held.report is not None:
            self._rows.reports.close(held.report)
            held.report = None
        if not held.wanted.window or held.key in self._absent:
            self._free.append(held.slot)  # Of two traces with one id, one can be found again.
        else:
            self._absent[held.key] = held

    def _move(self, origin: int, target: int, *, swap: bool) -> None:
        moved, other = self._running.pop(origin, None), self._running.pop(target, None)
        if moved is not None:
            self._running[target] = moved
        if other is not None and swap:
            self._running[origin] = other

    def _set_rows(self) -> None:
        rows = sorted(self._running)
        held = [self._running[row] for row in rows]
        self._rows.set(rows, [one.slot for one in held], [one.wanted for one in held])
        self._young = [one for one in held if one.young]
        self._reported = [(place, one) for place, one in enumerate(held) if one.report]


class _Slots:
    """Runner V2's slots: it says with every step which row belongs to which."""

    def __init__(self, states: Any, rows: Rows) -> None:
        self.rows = rows
        self._states = states
        self._wanted: list[Arguments | None] = [None] * states.max_num_reqs
        self._reports: dict[int, Report] = {}
        self._last: tuple[list[int], list[int]] | None = None

    def add(self, slot: int, params: Any) -> bool:
        if (report := self._reports.pop(slot, None)) is not None:
            self.rows.reports.close(report)
        self._last = None
        wanted = self._wanted[slot] = read(params)
        if wanted is None:
            return False
        seen = int(self._states.prefill_len.np[slot]) - int(self._states.prompt_len.np[slot])
        report = self.rows.open_report(wanted)
        self.rows.begin(slot, wanted, seen, report)
        if report is not None:
            self._reports[slot] = report
        return True

    def apply(self, logits: torch.Tensor, ctx: Any) -> None:
        slots: list[int] = ctx.idx_mapping_np.tolist()
        if logits.shape[0] != len(slots):
            raise RuntimeError("conviction: drafts are in the batch, though none were to be")
        if not any(self._wanted[slot] for slot in slots):
            return
        lengths: list[int] = ctx.seq_lens_upper_bound_np.tolist()
        whole, prompts = self._states.prefill_len.np, self._states.prompt_len.np
        # A row before the end of its prompt brings no token.
        rows = [
            row
            for row, slot in enumerate(slots)
            if self._wanted[slot] is not None and lengths[row] >= whole[slot]
        ]
        chosen = [slots[row] for row in rows]
        if (rows, chosen) != self._last:
            wanted = [one for slot in chosen if (one := self._wanted[slot]) is not None]
            self.rows.set(rows, chosen, wanted)
            self._last = (rows, chosen)
        entries: list[Entry] = [
            (self._reports[slot], place, lengths[row] - int(prompts[slot]))
            for place, (row, slot) in enumerate(zip(rows, chosen, strict=True))
            if slot in self._reports
        ]
        self.rows.step(logits, entries)
