"""The kernel says what torch says; run by Triton's interpreter, on the CPU."""

import numpy as np
import pytest
import torch

from conviction_gate import kernel, rows
from conviction_gate.arguments import Arguments
from conviction_gate.confidence import plain_confidences
from conviction_gate.reports import Entry, Report
from conviction_gate.windows import Windows


def _compare(logits: torch.Tensor, ks: torch.Tensor) -> None:
    wanted = plain_confidences(logits, ks, int(ks.max()))
    found = kernel.fused_confidences(logits, ks, int(ks.max()))
    known = torch.isfinite(wanted)
    assert torch.equal(torch.isfinite(found), known)
    torch.testing.assert_close(found[known], wanted[known], atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("vocabulary", [1, 7, 64, 65, 4095, 4096, 4097, 13_000])
def test_it_says_what_torch_says(vocabulary: int, dtype: torch.dtype) -> None:
    torch.manual_seed(vocabulary)
    logits = (torch.randn(3, vocabulary) * 4).to(dtype)
    _compare(logits, torch.tensor([1, 20, 33]))


def test_equal_logits_are_all_counted() -> None:
    logits = torch.zeros(2, 9000)
    logits[1, ::3] = 2.0
    _compare(logits, torch.tensor([20, 20]))


def test_the_largest_may_stand_all_together_or_all_apart() -> None:
    torch.manual_seed(4)
    logits = torch.randn(2, 9000)
    logits[0, 4080:4100] += 9.0
    logits[1, 5::440] += 9.0
    _compare(logits, torch.tensor([20, 20]))


def test_logits_far_below_zero_beside_a_part_that_is_masked_are_known() -> None:
    logits = torch.randn(1, 9000) - 150.0
    logits[:, :4096] = float("-inf")
    _compare(logits, torch.tensor([20]))


def test_rows_of_a_wider_tensor_are_read_where_they_lie() -> None:
    torch.manual_seed(5)
    wide = torch.randn(4, 6000)
    _compare(wide[::2, 500:5500], torch.tensor([20, 3]))


def test_each_row_has_its_own_k_wherever_it_lies() -> None:
    torch.manual_seed(7)
    columns = torch.tensor([[20, 9], [3, 1], [11, 2], [1, 60]])
    _compare(torch.randn(4, 5000), columns[:, 0])


def test_what_is_masked_or_no_number_makes_its_own_row_unknown() -> None:
    torch.manual_seed(6)
    logits = torch.randn(5, 5000)
    logits[0, 4999] = float("nan")
    logits[1, 10:] = float("-inf")  # Ten are left of twenty.
    logits[2, 25:] = float("-inf")
    logits[3, :] = float("-inf")
    _compare(logits, torch.tensor([20, 20, 20, 20, 20]))
    found = kernel.fused_confidences(logits, torch.full((5,), 20), 20)
    assert np.isfinite(found.numpy()).tolist() == [False, False, True, False, True]


class Told:
    """In place of reports: what a step would have written."""

    def put(self, entries: list[Entry], confidences: torch.Tensor) -> None:
        assert entries
        self.confidences = confidences.tolist()


def test_a_batch_is_measured_by_it_as_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(8)
    logits, told = torch.randn(4, 5000) * 3, Told()
    wanted = [Arguments(window=2, threshold=0.0, stop_token=9, k=k) for k in (20, 3, 11, 1)]
    entry: Entry = (Report("nowhere"), 0, 0)
    cpu, found = torch.device("cpu"), []
    for measure in (plain_confidences, kernel.fused_confidences):
        monkeypatch.setattr(rows, "row_confidences", measure)
        batch = rows.Rows(Windows(4, cpu, room=2), told, cpu)  # type: ignore[arg-type]
        batch.set([0, 1, 2, 3], [2, 0, 3, 1], wanted)
        batch.step(logits.clone(), [entry])
        found.append(told.confidences)
    assert len(set(found[0])) == 4
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)
