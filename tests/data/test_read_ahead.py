import threading
import time

import pytest

from musubi.data.read_ahead import read_ahead


def test_everything_arrives_and_an_error_ends_one_task():
    def work(task):
        for i in range(task):
            if i == 3:
                raise ValueError(f"task {task}")
            yield task * 10 + i

    found = list(read_ahead([1, 2, 3, 4, 5], work, workers=3, ahead=2))
    good = sorted(r for _, r in found if isinstance(r, int))
    bad = sorted(str(r) for _, r in found if isinstance(r, ValueError))
    assert good == [10, 20, 21, 30, 31, 32, 40, 41, 42, 50, 51, 52]
    assert bad == ["task 4", "task 5"]


def test_closing_early_stops_the_threads():
    before = threading.active_count()
    ahead = read_ahead(range(1000), lambda i: [i, i], workers=4, ahead=1)
    next(ahead)
    assert threading.active_count() > before
    ahead.close()
    assert threading.active_count() == before


def test_only_so_many_results_wait():
    begun = []

    def work(i):
        begun.append(i)
        yield i

    ahead = read_ahead(range(100), work, workers=1, ahead=2)
    next(ahead)
    assert len(begun) < 10
    ahead.close()


def test_in_order_each_task_has_its_results_and_its_error_in_its_place():
    def work(task):
        time.sleep(0.01 * (task % 3 == 0))
        yield from (task * 10 + i for i in range(task % 3))
        if task % 5 == 4:
            raise ValueError(f"task {task}")

    found = read_ahead(iter(range(40)), work, workers=4, ahead=2, in_order=True)
    said = [(t, str(r) if isinstance(r, ValueError) else r) for t, r in found]
    wanted = []
    for task in range(40):
        wanted += [(task, task * 10 + i) for i in range(task % 3)]
        wanted += [(task, f"task {task}")] if task % 5 == 4 else []
    assert said == wanted


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_in_order_only_so_many_results_wait(workers):
    begun = []

    def work(i):
        begun.append(i)
        yield -i

    found = read_ahead(range(50), work, workers=workers, ahead=workers, in_order=True)
    for number, (task, result) in enumerate(found):
        assert (task, result) == (number, -number)
        assert len(begun) <= number + 2 * workers + 1


def test_one_slow_task_does_not_let_others_run_on_for_ever():
    go = threading.Event()
    begun = []

    def work(i):
        begun.append(i)
        if i == 0:
            go.wait(10)
        yield i

    found = read_ahead(range(1000), work, workers=3, ahead=4, in_order=True)
    threading.Timer(0.3, go.set).start()
    assert next(found) == (0, 0)
    assert len(begun) <= 9
    found.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_the_tasks_themselves_is_raised_after_what_came_before(workers):
    def tasks():
        yield 1
        raise OSError("gone")

    found = read_ahead(tasks(), lambda i: [i], workers=workers, ahead=2, in_order=True)
    assert next(found) == (1, 1)
    with pytest.raises(OSError, match="gone"):
        next(found)
