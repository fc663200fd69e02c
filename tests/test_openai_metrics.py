"""What servers tell of themselves in their metrics."""

import pytest

from conviction.engines.openai.probe_streams import Load, read_load


@pytest.mark.parametrize(
    ("page", "load"),
    [
        ("vllm:num_requests_running 2\nvllm:generation_tokens_total 7", Load(2, 7)),
        ('vllm:num_requests_running{a="b c",d="}"} 2.0', Load(2, None)),
        ('sglang:num_running_reqs{a="1"} 1\nsglang:num_running_reqs{a="2"} 2.0', Load(3, None)),
        ("llamacpp:requests_processing 1 1712345678901", Load(1, None)),
        ("llamacpp:tokens_predicted_total 1.5e+06\nllamacpp:requests_processing 0", Load(0, 1.5e6)),
        ("# vllm:num_requests_running 2", None),
        ("vllm:num_requests_running NaN", None),
        ("vllm:num_requests_running E", None),
        ("vllm:num_requests_running 1e999", None),
        ("vllm:num_requests_running -1", None),
        ("vllm:num_requests_running_more 2", None),
        ("<html>", None),
        ("", None),
    ],
)
def test_the_load_is_read_from_the_metrics_of_known_servers(page: str, load: Load | None) -> None:
    assert read_load(page) == load
