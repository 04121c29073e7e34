"""The serving benchmark asks a real server in both formats. The figures themselves are not tested."""

import pytest
import torch

from benchmarks import serve

pytest.importorskip("websockets")


def test_a_served_policy_is_timed_in_every_format() -> None:
    case = {**serve.SMALL, "frames": 2, "size": [16, 16]}
    found = serve.measure(case, ["float32", "bfloat16"], 2, "cpu", say=lambda line: None)
    assert set(found) == {"float32", "bfloat16"}
    assert all(0 < t["median"] <= t["p95"] and t["processor"] > 0 for t in found.values())
    policies = {way: serve.make_policy(case, serve.WAYS[way], "cpu") for way in found}
    assert {way: p.encoder.video.net.dtype for way, p in policies.items()} == {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
    }
