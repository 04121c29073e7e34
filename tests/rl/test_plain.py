"""Starting Ray where it is slow to start; everything else about the plain driver is in test_engines."""

from typing import Any

import pytest

from tests.toy_parts import SUCCESS, toy

ray = pytest.importorskip("ray")

from rl.plain import start_ray  # noqa: E402
from rl.run import FinetuneRun  # noqa: E402

SLOW = "The current node timed out during startup. This could happen because the GCS is overloaded"


@pytest.mark.parametrize(("failures", "message"), [(2, ""), (3, SLOW), (1, "no such option")])
def test_ray_that_is_slow_to_start_is_tried_again(monkeypatch: Any, failures: int, message: str) -> None:
    calls: list[int] = []

    def init(**kwargs: Any) -> None:
        assert kwargs["address"] == "local"  # whatever else runs here, and whatever RAY_ADDRESS says
        calls.append(kwargs["num_cpus"])
        if len(calls) <= failures:
            raise Exception(message or SLOW)

    monkeypatch.setattr("rl.plain.ray.is_initialized", lambda: False)
    monkeypatch.setattr("rl.plain.ray.shutdown", lambda: None)
    monkeypatch.setattr("rl.plain.ray.init", init)
    run = FinetuneRun(checkpoint="", env=toy(), out="", algo={}, rewards=SUCCESS, iterations=1)
    if not message:
        start_ray(run)
    else:
        with pytest.raises(Exception, match=message):
            start_ray(run)
    assert len(calls) == (1 if message == "no such option" else 3)
