import pytest

from musubi.cache.write_behind import WriteBehind


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
