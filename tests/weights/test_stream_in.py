import threading
import time
from typing import Any, cast

import pytest
import torch

from musubi.errors import CheckpointError
from musubi.weights import stream_in as room
from musubi.weights.files import open_weights
from musubi.weights.finite import finite_bytes
from musubi.weights.stream_in import Order, TensorStream
from musubi.weights.write import save

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(room, "CHUNK", 256)
    monkeypatch.setattr(room, "_PIECE", 64)
    monkeypatch.setattr(room, "_DISK", 0)


@pytest.fixture
def values():
    torch.manual_seed(0)
    shapes = [(), (0,), (1,), (7, 9), (300,), (64,), (2, 3, 5), (1000,), (1,), (31,)]
    found = {f"t{i}": torch.randn(shape) for i, shape in enumerate(shapes)}
    found["half"] = torch.randn(333).half()
    found["byte"] = torch.arange(200, dtype=torch.uint8)
    found["truth"] = torch.tensor(True)
    return found


def _orders(values, host, checked=False):
    return [
        Order(
            name,
            lambda t=tensor: torch.empty(t.shape, dtype=t.dtype),
            host,
            checked and tensor.is_floating_point(),
        )
        for name, tensor in values.items()
    ]


@pytest.mark.parametrize("kind", ["safetensors", "pt"])
@pytest.mark.parametrize("host", [True, False])
@pytest.mark.parametrize("readers", [1, 6])
def test_tensors_arrive_in_order_and_whole(tmp_path, values, kind, host, readers):
    path = tmp_path / f"x.{kind}"
    values["askew"] = torch.randn(20, 30).T
    if kind == "pt":
        torch.save(values, path)
    else:
        save(path, values)
    with (
        open_weights(path) as weights,
        TensorStream(weights, _orders(values, host), CPU, readers=readers) as reading,
    ):
        for tensor in values.values():
            arrived = reading.take(1)[0]
            assert torch.equal(arrived.tensor, tensor)
            assert arrived.finite is None
    assert not _left()


def test_only_so_much_is_read_ahead(tmp_path):
    values = {f"t{i}": torch.full((64,), float(i)) for i in range(100)}
    save(tmp_path / "x.safetensors", values)
    begun = []
    with open_weights(tmp_path / "x.safetensors") as weights:
        inner = weights.readinto
        weights.readinto = lambda name, *rest: (begun.append(name), inner(name, *rest))
        with TensorStream(weights, _orders(values, False), CPU, readers=3) as reading:
            for more, done in ((0, 0), (1, 1), (40, 41)):
                reading.take(more)
                most = done + 2 * 3 + 2
                _wait_until(lambda most=most: len(begun) >= most)
                time.sleep(0.02)
                assert len(begun) == most
    assert len(begun) < 100
    assert not _left()


def test_buffers_are_used_again(tmp_path, monkeypatch):
    values = {f"t{i}": torch.full((64,), float(i)) for i in range(100)}
    save(tmp_path / "x.safetensors", values)
    made = []
    new = room._new_buffer
    monkeypatch.setattr(room, "_new_buffer", lambda *a: made.append(a) or new(*a))
    with (
        open_weights(tmp_path / "x.safetensors") as weights,
        TensorStream(weights, _orders(values, False), CPU, readers=2) as reading,
    ):
        arrived = reading.take(100)
    assert [float(a.tensor[5]) for a in arrived] == list(range(100))
    assert {size for size, _ in made} == {256}
    assert len(made) <= 6


def test_a_buffer_is_filled_again_only_when_what_it_held_was_sent(tmp_path, monkeypatch):
    """The protocol of pinned buffers, with a device that copies late."""
    values = {f"t{i}": torch.full((64,), float(i)) for i in range(60)}
    save(tmp_path / "x.safetensors", values)
    events = []

    class Event:
        def __init__(self) -> None:
            self.memory = torch.zeros(256, dtype=torch.uint8)
            self.held = None
            events.append(self)

        def record(self, stream):
            assert stream == "stream"
            assert self.held is None
            self.held = self.memory.clone()

        def synchronize(self):
            assert torch.equal(self.memory, self.held)
            self.held = None

    def new(size, device):
        event = Event()
        return room._Buffer(event.memory, cast(Any, event))

    monkeypatch.setattr(room, "_new_buffer", new)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "stream")
    with (
        open_weights(tmp_path / "x.safetensors") as weights,
        TensorStream(weights, _orders(values, False), CPU, readers=2) as reading,
    ):
        arrived = reading.take(60)
    assert [float(a.tensor[5]) for a in arrived] == list(range(60))
    assert 1 <= len(events) <= 6


def test_a_slow_file_is_read_from_one_place_at_a_time(tmp_path, monkeypatch):
    values = {f"t{i}": torch.zeros(64) for i in range(30)}
    save(tmp_path / "x.safetensors", values)
    active, most = [0], {}

    def run(speed):
        monkeypatch.setattr(room, "_DISK", speed)
        most[speed] = 0
        with open_weights(tmp_path / "x.safetensors") as weights:
            inner = weights.readinto

            def readinto(name, part, at):
                active[0] += 1
                most[speed] = max(most[speed], active[0])
                time.sleep(0.002)
                inner(name, part, at)
                active[0] -= 1

            weights.readinto = readinto
            with TensorStream(weights, _orders(values, False), CPU, readers=4) as reading:
                reading.take(30)

    run(float("inf"))
    run(0)
    assert most[float("inf")] == 1
    assert most[0] > 1


@pytest.mark.parametrize("host", [True, False])
def test_what_a_reader_cannot_read_is_said_to_who_takes(tmp_path, values, host):
    path = tmp_path / "x.safetensors"
    save(path, values)
    with open_weights(path) as weights:
        with path.open("rb+") as file:
            file.truncate(path.stat().st_size - 300)
        with (
            TensorStream(weights, _orders(values, host), CPU, readers=3) as reading,
            pytest.raises(
                CheckpointError, match=r"of .*x\.safetensors cannot be read: the file ends"
            ),
        ):
            reading.take(len(values))
    assert not _left()


def test_no_thread_is_left_when_its_taker_gives_up(tmp_path, values):
    save(tmp_path / "x.safetensors", values)
    with open_weights(tmp_path / "x.safetensors") as weights:
        with (
            pytest.raises(KeyboardInterrupt),
            TensorStream(weights, _orders(values, True), CPU, readers=3) as reading,
        ):
            reading.take(2)
            raise KeyboardInterrupt
        assert not _left()
        with TensorStream(weights, [], CPU):
            pass
    assert not _left()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_numbers_are_looked_at_while_they_are_read(tmp_path, values, bad):
    values["t7"][999] = bad
    save(tmp_path / "x.safetensors", values)
    with (
        open_weights(tmp_path / "x.safetensors") as weights,
        TensorStream(weights, _orders(values, True, True), CPU, readers=3) as reading,
    ):
        for name, tensor in values.items():
            finite = reading.take(1)[0].finite
            assert finite is (None if not tensor.is_floating_point() else name != "t7")


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float64,
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.float8_e4m3fn,
        torch.float8_e5m2,
        torch.float8_e4m3fnuz,
        torch.float8_e5m2fnuz,
    ],
)
def test_bytes_say_whether_a_number_is_finite(dtype):
    size = dtype.itemsize
    patterns = range(256) if size == 1 else [p for p in range(65536) if p % 64 in (0, 1, 63)]
    # Of wider numbers the upper two bytes, above zeros and above ones.
    for rest in (b"\0", b"\1"):
        raw = bytearray().join(
            rest * max(size - 2, 0) + p.to_bytes(min(size, 2), "little") for p in patterns
        )
        numbers = torch.frombuffer(raw, dtype=dtype)
        expected = torch.isfinite(numbers.double()).tolist()
        whole = memoryview(raw)
        found = [
            finite_bytes(whole[i * size : (i + 1) * size], dtype) for i in range(len(patterns))
        ]
        assert found == expected
    assert finite_bytes(memoryview(b""), dtype)


def _left():
    return [thread for thread in threading.enumerate() if thread.name.startswith("weights-")]


def _wait_until(true):
    end = time.monotonic() + 30
    while not true() and time.monotonic() < end:
        time.sleep(0.005)
