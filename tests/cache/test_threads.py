import threading

import pytest

from musubi.cache.threads import WriteBehind, read_ahead


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


def test_jobs_are_done_in_order_before_leaving():
    done = []
    with WriteBehind(2) as writer:
        for i in range(20):
            writer.put(lambda i=i: done.append(i))
    assert done == list(range(20))


def test_a_failing_job_is_raised_and_later_ones_are_not_begun():
    done = []

    def fail():
        raise OSError("full")

    with pytest.raises(OSError, match="full"), WriteBehind() as writer:
        writer.put(fail)
        for i in range(100):
            writer.put(lambda i=i: done.append(i))
    assert not done
