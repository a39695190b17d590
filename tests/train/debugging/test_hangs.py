"""Who waits for whom."""

import threading
from typing import Any

from controlllm.train.observe.debugging.watchdog import Report, collective_of, verdict


def report(rank: int, count: int, phase: str = "forward", collective: str | None = None) -> Report:
    return Report(rank, 5, phase, count, 12.3, collective)


def test_the_one_that_is_behind_hangs() -> None:
    reports = {
        0: report(0, 9, "communication", "all_reduce"),
        1: report(1, 8, "data"),
        2: report(2, 9, "communication", "all_reduce"),
    }
    said = verdict(reports, 3)
    assert said == "rank 1 hangs in step 5, data; ranks 0, 2 wait for it in all_reduce."


def test_of_equally_far_ones_those_that_wait_wait_for_the_other() -> None:
    reports = {0: report(0, 8), 1: report(1, 8, collective="all_gather_into_tensor")}
    said = verdict(reports, 2)
    assert said.startswith("rank 0 hangs in step 5, forward; rank 1 waits for it in all_gather")


def test_one_without_a_report_is_named() -> None:
    assert verdict({0: report(0, 8)}, 2).startswith("rank 1 gave no report")


def test_where_all_are_alike_none_is_accused() -> None:
    reports = {rank: report(rank, 8, collective="all_reduce") for rank in range(2)}
    assert verdict(reports, 2).startswith("All ranks are in the same place")


def test_a_single_process_is_described() -> None:
    said = verdict({0: report(0, 8, "data")}, 1)
    assert said == "rank 0 has not gone on for 12 s: step 5, data."


def test_a_thread_in_no_collective_waits_in_none() -> None:
    done, threads = threading.Event(), []
    thread = threading.Thread(target=done.wait, args=(30,))
    thread.start()
    threads.append(thread)
    found: Any = collective_of(thread.ident or 0)
    done.set()
    thread.join()
    assert found is None
