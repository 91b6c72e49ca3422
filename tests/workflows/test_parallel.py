# SPDX-License-Identifier: Apache-2.0
import operator
import os
import signal
from functools import partial

import pytest

from ucadi.errors import UcadiError
from ucadi.workflows.parallel import run_parallel, usual_jobs

twice = partial(operator.mul, 2)  # a process can import it; this file it cannot


def test_one_job_works_in_this_process_and_item_by_item():
    taken = []

    def items():
        for number in range(3):
            taken.append(number)
            yield number

    results = run_parallel(lambda number: (number, os.getpid()), items(), 1)
    assert next(results) == (0, (0, os.getpid()))
    assert taken == [0]
    assert [place for place, _ in results] == [1, 2]


def test_no_more_jobs_are_usual_than_there_are_cores():
    assert 1 <= usual_jobs() <= len(os.sched_getaffinity(0))


@pytest.mark.slow
def test_several_jobs_give_every_result_with_its_place():
    assert sorted(run_parallel(twice, range(20), 2)) == [(number, 2 * number) for number in range(20)]


@pytest.mark.slow
def test_items_are_taken_up_only_as_there_is_room():
    taken = []

    def items():
        for number in range(30):
            taken.append(number)
            yield number

    results = run_parallel(twice, items(), 2)
    next(results)
    assert len(taken) <= 5
    assert len(list(results)) == 29


@pytest.mark.slow
def test_a_worker_that_is_killed_is_an_error_with_a_cure():
    with pytest.raises(UcadiError) as caught:
        list(run_parallel(signal.raise_signal, [signal.SIGKILL], 2))
    assert caught.value.code == "worker-lost"
    assert "--jobs" in caught.value.cure
