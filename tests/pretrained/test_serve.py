"""The policy server: it decides as the policy does, and nothing that a client sends stops it."""

import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch

pytest.importorskip("websockets")

from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import launch
from pretrained import checkpoint
from pretrained.serve import Client, PolicyServer, ServeRun, make_server
from pretrained.types import ObsBatch
from pretrained.wire import pack, unpack
from tests import toy_parts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_parts.checkpoint(tmp_path_factory.mktemp("serve") / "flow", "flow", history=2)


@pytest.fixture
def server(folder: Path) -> Iterator[PolicyServer]:
    made = make_server(ServeRun(checkpoint=str(folder), port=0, device="cpu", max_megabytes=0.05))
    thread = threading.Thread(target=made.forever, daemon=True)
    thread.start()
    yield made
    made.close()
    thread.join(10)
    assert not thread.is_alive()


def url(server: PolicyServer) -> str:
    return f"ws://127.0.0.1:{server.port}"


def picture(client: Client, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {c: rng.integers(0, 256, (*size, 3), dtype=np.uint8) for c, size in client.policy["cameras"].items()}


def body(client: Client) -> np.ndarray:
    return np.linspace(-0.5, 0.5, len(client.policy["proprio"])).astype(np.float32)


def test_answers_are_the_decisions_of_the_policy(server: PolicyServer, folder: Path) -> None:
    client, policy = Client(url(server)), checkpoint.load_policy(folder)
    assert client.policy == policy.spec.to_json() | {"cameras": {c: list(s) for c, s in policy.spec.cameras.items()},
        **{k: list(getattr(policy.spec, k)) for k in ("proprio", "actions", "low", "high")}}  # fmt: skip
    rng, first, second = torch.Generator().manual_seed(0), picture(client), picture(client, 1)
    for sent, seen in ((first, [first, first]), (second, [first, second])):  # the first one fills the history
        answer = client.act(sent, body(client), "reach")
        obs = ObsBatch(
            {c: np.stack([s[c] for s in seen])[None] for c in sent}, np.stack([body(client)] * 2)[None], ["reach"]
        )
        expected = policy.act(policy.encode(obs), {}, rng, True)[0]
        assert np.allclose(answer["chunk"], expected.chunk[0].numpy(), atol=1e-6)
        assert answer["actions"].shape == (policy.spec.execute, policy.spec.action_dim)
        assert answer["value"] == pytest.approx(float(expected.value[0]), abs=1e-5)
        assert answer["seconds"] > 0
    client.close()


def test_reset_forgets_and_robots_do_not_share(server: PolicyServer) -> None:
    one, two = Client(url(server)), Client(url(server))
    a = one.act(picture(one), body(one), "reach")
    later = one.act(picture(one, 1), body(one), "reach")
    alone = two.act(picture(two, 1), body(two), "reach")
    assert not np.allclose(later["chunk"], alone["chunk"])  # other history
    again = two.act(picture(two, 1), body(two), "reach", reset=True)
    assert not np.allclose(alone["chunk"], again["chunk"])  # another episode draws other noise
    assert np.allclose(a["value"], Client(url(server)).act(picture(one), body(one), "reach")["value"])


BAD: list[tuple[Any, str]] = [
    (b"\xc1\x00nonsense", "is no msgpack"),
    (b"", "is no msgpack"),
    (b"\x91" * 2000, "is no msgpack"),
    ("text", "expected a binary message of msgpack, got text"),
    (msgpack.packb([1, 2]), "expected a map with"),
    (msgpack.packb({"image": 1}), r"unknown entries ['image']"),
    (msgpack.packb({"images": 3}), "expected the cameras"),
    (msgpack.packb({"images": {"other": 1}}), "got ['other']"),
    (msgpack.packb({"a": {"__ndarray__": True, "dtype": "|O", "shape": [1], "data": b"x"}}), "expected booleans or"),
    (msgpack.packb({"a": {"__ndarray__": True, "dtype": "what", "shape": [1], "data": b"x"}}), "has dtype 'what'"),
    (msgpack.packb({"a": {"__ndarray__": True, "dtype": "|u1", "shape": [-1], "data": b"x"}}), "a list of sizes"),
    (msgpack.packb({"a": {"__ndarray__": True, "dtype": "<f4", "shape": [10**9], "data": b"x"}}), "its data has 1"),
]


@pytest.mark.parametrize(("data", "words"), BAD, ids=[words for _, words in BAD])
def test_malformed_messages_are_answered_and_survived(server: PolicyServer, data: Any, words: str) -> None:
    client = Client(url(server))
    client.connection.send(data)
    answer = unpack(client.connection.recv(20))
    assert list(answer) == ["error"]
    assert words in answer["error"]
    assert client.act(picture(client), body(client), "reach")["chunk"].ndim == 2


def test_observations_that_do_not_fit_are_answered_and_forgotten(server: PolicyServer) -> None:
    client, other = Client(url(server)), Client(url(server))
    image = picture(client)
    name = next(iter(image))
    for change, words in (
        ({"images": {name: image[name][:4]}}, f"camera '{name}': expected an array uint8"),
        ({"images": {name: image[name].astype(np.float32)}}, "got float32"),
        ({"proprio": [0.0]}, "finite numbers"),
        ({"proprio": np.full(len(body(client)), np.nan, np.float32)}, "finite numbers"),
        ({"proprio": "many"}, "proprio: expected"),
        ({"instruction": 5}, "'instruction' to be a string"),
        ({"reset": 1}, "'reset' true or false"),
    ):
        client.connection.send(pack({"images": image, "proprio": body(client), "instruction": "reach", **change}))
        assert words in unpack(client.connection.recv(20))["error"]
    a = client.act(image, body(client), "reach")
    assert np.allclose(a["chunk"], other.act(image, body(other), "reach")["chunk"])  # as if nothing had been sent
    with pytest.raises(ValueError, match="expected the cameras"):
        client.act({}, body(client), "reach")


def test_oversized_message_closes_its_connection_alone(server: PolicyServer) -> None:
    client, other = Client(url(server)), Client(url(server))
    client.connection.send(b"x" * 200_000)
    with pytest.raises(ConnectionClosed):
        client.connection.recv(20)
    assert other.act(picture(other), body(other), "reach")["chunk"].ndim == 2
    assert Client(url(server)).policy["horizon"] >= 1


def test_a_robot_that_vanishes_is_survived(server: PolicyServer) -> None:
    client = Client(url(server))
    client.connection.socket.close()
    assert Client(url(server)).policy["horizon"] >= 1
    with connect(url(server)) as plain:
        plain.recv(20)
    assert urllib.request.urlopen(f"http://127.0.0.1:{server.port}/healthz", timeout=10).read() == b"ok\n"


def test_a_failure_of_the_policy_is_told_and_survived(server: PolicyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    client, act = Client(url(server)), server.policy.act

    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(server.policy, "act", broken)
    with pytest.raises(ValueError, match="the policy failed \\(RuntimeError: out of memory\\)"):
        client.act(picture(client), body(client), "reach")
    monkeypatch.setattr(server.policy, "act", act)
    assert client.act(picture(client), body(client), "reach")["chunk"].ndim == 2


def test_arrays_survive_the_wire() -> None:
    sent = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "b": [np.int64(3), True, None],
        "c": np.zeros((0, 2), np.uint8),
    }
    got = unpack(pack(sent))
    assert np.array_equal(got["a"], sent["a"])
    assert (got["b"], got["c"].shape) == ([3, True, None], (0, 2))
    theirs = {b"__ndarray__": True, b"data": b"\x01\x02", b"dtype": "|u1", b"shape": (2,)}  # keys as bytes
    assert unpack(msgpack.packb({"x": theirs}))["x"].tolist() == [1, 2]
    with pytest.raises(TypeError, match="cannot send a"):
        pack({"x": np.array([object()])})


def test_other_machines_need_the_token(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TEMPER_SERVE_TOKEN", raising=False)
    for host in ("0.0.0.0", "::", "robot-lab"):
        assert launch.main(["serve", f"policy={folder}", f"host={host}", "port=0"]) == 2
        assert "there is no token to know them by; set TEMPER_SERVE_TOKEN" in capsys.readouterr().err
    monkeypatch.setenv("TEMPER_SERVE_TOKEN", "canary-5f2a")
    open_to_all = make_server(ServeRun(checkpoint=str(folder), host="0.0.0.0", port=0, device="cpu"))
    thread = threading.Thread(target=open_to_all.forever, daemon=True)
    thread.start()
    try:
        assert Client(url(open_to_all)).policy["horizon"] >= 1
        for shown in ({}, {"Authorization": "Bearer canary-5f2"}, {"Authorization": "canary-5f2a"}):
            with pytest.raises(InvalidStatus, match="401"):
                connect(url(open_to_all), additional_headers=shown)
        assert urllib.request.urlopen(f"http://127.0.0.1:{open_to_all.port}/healthz", timeout=10).read() == b"ok\n"
        for token, have in (("", "none"), ("canary-other", "another one")):
            monkeypatch.setenv("TEMPER_SERVE_TOKEN", token)
            with pytest.raises(ValueError, match=f"TEMPER_SERVE_TOKEN holds {have}") as refused:
                Client(url(open_to_all))
            assert "canary" not in str(refused.value)
    finally:
        open_to_all.close()
        thread.join(10)


def test_mistakes_at_the_start(
    server: PolicyServer, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch.main(["serve", f"policy={tmp_path / 'none'}"]) == 2
    assert "no checkpoint at" in capsys.readouterr().err
    assert launch.main(["serve", f"policy={folder}", f"port={server.port}"]) == 2
    assert f"cannot listen on 127.0.0.1:{server.port}" in capsys.readouterr().err
    with pytest.raises(ValueError, match="max_megabytes = 0"):
        make_server(ServeRun(checkpoint=str(folder), max_megabytes=0.0))
    assert launch.main(["serve", f"policy={folder}", "--dry"]) == 0
    assert f"checkpoint: {folder}" in capsys.readouterr().out
