"""Frames on pipes, forms over HTTP, and the bytes of pictures, without the Controller."""

import http.server
import json
import os
import struct
import threading
from email import message_from_bytes

import numpy as np
import pytest

from envs.thor_mini.__main__ import answer, main
from envs.thor_mini.faults import Faults
from envs.thor_mini.reply import Painter, Reply
from envs.thor_mini.wire import Fifo, WireError, Wsgi, connect
from tests.envs.thor_mini.test_world import do, stand
from tests.thor_parts import make_world

msgpack = pytest.importorskip("msgpack")
PICTURE = memoryview(bytes(range(200)))


@pytest.fixture
def pipes(tmp_path):
    paths = [str(tmp_path / name) for name in ("server.pipe", "client.pipe")]
    for path in paths:
        os.mkfifo(path)
    return paths


def in_background(do_it):
    thread = threading.Thread(target=do_it, daemon=True)
    thread.start()
    return thread


def read_frames(pipe, count):
    frames = []
    while len(frames) < count:
        header = pipe.read(5)
        if len(header) < 5:
            return frames
        kind, length = struct.unpack("!BI", header)
        frames.append((kind, pipe.read(length)))
    return frames


def test_replies_on_a_pipe_are_framed(pipes):
    wire = Fifo(*pipes)

    def send():
        wire.send(Reply({"sequenceId": 0}, [("rgb", PICTURE), ("third_ids", PICTURE)]))
        wire.send(Reply({"agentId": 0}, patch=True))

    thread = in_background(send)
    with open(pipes[0], "rb") as pipe:
        frames = read_frames(pipe, 6)
    thread.join(10)
    assert [kind for kind, _ in frames] == [1, 4, 14, 255, 11, 255]
    assert msgpack.loads(frames[0][1]) == {"sequenceId": 0}
    assert frames[1][1] == frames[2][1] == bytes(PICTURE)
    assert frames[3][1] == b""


def test_a_message_cut_short_has_only_its_beginning(pipes):
    wire = Fifo(*pipes)

    def send():
        wire.send(Reply({"sequenceId": 0}, [("rgb", PICTURE)]), cut=0.5)
        os.close(wire._server)

    in_background(send)
    with open(pipes[0], "rb") as pipe:
        text = pipe.read()
    body = msgpack.packb({"sequenceId": 0})
    assert len(text) == (5 + len(body) + 5 + 200 + 5) // 2
    assert text[:5] == struct.pack("!BI", 1, len(body))


def test_actions_from_a_pipe(pipes):
    wire = Fifo(*pipes)
    body = json.dumps({"action": "Pass", "sequenceId": 4}).encode()

    def send():
        with open(pipes[1], "wb") as pipe:
            pipe.write(struct.pack("!BI", 2, len(body)) + body + struct.pack("!BI", 255, 0))
            pipe.write(struct.pack("!BI", 9, 0))

    in_background(send)
    assert wire.receive() == {"action": "Pass", "sequenceId": 4}
    with pytest.raises(WireError, match="frame of type 9"):
        wire.receive()


def test_a_closed_pipe_is_the_end(pipes):
    wire = Fifo(*pipes)
    in_background(lambda: open(pipes[1], "wb").close())
    assert wire.receive() is None


def test_replies_over_http_are_forms_and_the_answer_is_the_next_action():
    posts = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            posts.append((self.path, self.client_address, self.headers["Content-Type"], body))
            text = json.dumps({"action": "Pass"} if len(posts) == 1 else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        in_background(server.serve_forever)
        wire = Wsgi("127.0.0.1", server.server_port, "secret")
        wire.send(Reply({"sequenceId": 1}, [("rgb", PICTURE), ("third_rgb", PICTURE)]))
        assert wire.receive() == {"action": "Pass"}
        wire.send(Reply({"sequenceId": 2}))
        assert wire.receive() is None  # no action: stop
        server.shutdown()
    (path, address, kind, body), (_, second, _, _) = posts
    assert path == "/train"
    assert address == second  # one connection
    form = message_from_bytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body)
    parts = {p.get_param("name", header="content-disposition"): p for p in form.get_payload()}
    assert list(parts) == ["metadata", "token", "image", "image-thirdParty-camera"]
    assert json.loads(parts["metadata"].get_payload()) == {"sequenceId": 1}
    assert parts["token"].get_payload() == "secret"
    assert parts["image"].get_filename()
    assert body.count(bytes(PICTURE)) == 2
    assert body.count(b"Content-disposition:") == 4  # spelt as the Controller looks for it


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, "expected FIFO or WSGI"),
        ({"AI2THOR_SERVER_TYPE": "FIFO"}, "AI2THOR_FIFO_SERVER_PIPE_PATH is not set"),
        ({"AI2THOR_SERVER_TYPE": "WSGI", "AI2THOR_HOST": "x"}, "AI2THOR_PORT is not set"),
    ],
)
def test_a_program_started_by_hand_says_who_should_start_it(environment, words):
    with pytest.raises(WireError, match=words):
        connect(environment)


def test_unknown_arguments_are_refused(capsys):
    with pytest.raises(SystemExit):
        main(["--crash-att", "3"])
    assert "--crash-att" in capsys.readouterr().err


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_are_sent_bottom_row_first_in_the_formats_of_a_build():
    world = make_world(width=20, height=12)
    do(world, "Initialize", agentMode="stretch", renderDepthImage=True, renderInstanceSegmentation=True,
       renderSemanticSegmentation=True, cameraNearPlane=0.5, cameraFarPlane=20.5)  # fmt: skip
    stand(world, 1.8, 2.6, 180.0)
    sent = Painter().pictures(world)
    kinds = ["rgb", "depth", "ids", "classes"]
    assert [kind for kind, _ in sent] == [*kinds, *(f"third_{k}" for k in kinds)]
    frame, pictures = world.frame(0), dict(sent)
    rgb = np.frombuffer(pictures["rgb"], np.uint8).reshape(12, 20, 3)
    assert (rgb[::-1] == frame.rgb).all()
    depth = np.frombuffer(pictures["depth"], np.float32).reshape(12, 20)
    assert np.allclose(depth[::-1] * 20.0, np.minimum(frame.depth, 20.0), atol=1e-4)
    ids = np.frombuffer(pictures["ids"], np.uint8).reshape(12, 20, 4)[::-1]
    assert (ids[..., 3] == 255).all()
    colours = {row["name"]: row["color"] for row in world.colours}
    for i in np.unique(frame.ids):
        name = world.scene.bodies[i].object_id if i >= 0 else ""
        assert (ids[frame.ids == i][:, :3] == (colours[name] if name else [0, 0, 0])).all()
    classes = np.frombuffer(pictures["classes"], np.uint8).reshape(12, 20, 4)[::-1]
    assert (classes[frame.ids == 0][:, :3] == colours["DiningTable"]).all()
    four = np.frombuffer(dict(Painter(4).pictures(world))["rgb"], np.uint8).reshape(12, 20, 4)
    assert (four[..., :3] == rgb).all()


def test_questions_are_answered_with_patches_only_where_they_are_wanted():
    world, painter = make_world(), Painter()
    ask = {"action": "GetVisibleObjects", "maxDistance": 2.0, "sequenceId": 5}
    assert not answer(world, painter, ask, patches=True).patch
    do(world, "Initialize", agentMode="stretch", fastActionEmit=True)
    patch = answer(world, painter, ask, patches=True)
    assert patch.patch
    assert not patch.pictures
    assert set(patch.metadata) == {
        "agentId", "lastAction", "lastActionSuccess", "errorMessage", "errorCode", "actionReturn",
    }  # fmt: skip
    assert not answer(world, painter, ask, patches=False).patch
    assert not answer(world, painter, {"action": "Pass"}, patches=True).patch
    assert answer(world, painter, {"action": "Pass", "sequenceId": 9}, patches=True).metadata["sequenceId"] == 9
    assert not answer(world, painter, {"action": "Pass", "renderImage": False}, patches=True).pictures


def test_a_fault_strikes_at_its_action_and_once(tmp_path):
    mark = tmp_path / "struck"
    faults = Faults(truncate_at=2, only="MoveAhead", once=str(mark))
    seen = []
    for name in ("MoveAhead", "Pass", "MoveAhead", "Pass", "MoveAhead"):
        action = {"action": name}
        faults.before_answer(action)
        seen.append(faults.truncates(action))
    assert seen == [False, False, True, False, False]
    again = Faults(truncate_at=0, once=str(mark))
    again.before_answer(None)
    assert not again.truncates(None)
    mark.unlink()
    assert again.truncates(None)
