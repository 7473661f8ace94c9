"""`--notify`: one word at the end, whatever the end is, and never the reason of a failure."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from musubi.cli import notify
from musubi.errors import ConfigError, RunError


@pytest.fixture
def listener():
    said = []

    class Listen(BaseHTTPRequestHandler):
        def do_POST(self):
            said.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Listen)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/x", said
    server.shutdown()
    server.server_close()


def test_the_end_is_told_good_or_bad(listener):
    address, said = listener
    with notify.told(address, "musubi train"):
        pass
    with pytest.raises(RunError), notify.told(address, "musubi train"):
        raise RunError("the disk is full", fix="x")
    assert said[0].startswith("musubi train is done after")
    assert said[1].startswith("musubi train ended after") and "the disk is full" in said[1]


def test_nobody_there_is_no_failure():
    with notify.told("http://127.0.0.1:9/x", "musubi train"):
        pass


def test_the_bell_rings_and_nonsense_is_refused(musubi_main):
    with pytest.raises(ConfigError, match="--notify"):
        notify.check("shout")
    code, _, err = musubi_main("lora", "info", "a", "--notify", "shout")
    assert code == 2 and "neither" in err
    assert musubi_main("lora", "info", "a", "--notify", "bell")[0] == 0
