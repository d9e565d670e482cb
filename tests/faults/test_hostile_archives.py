"""Hostile, damaged and huge archives: the evaluator's memory is that for a small healthy one, no file is written, and
each ends in a decision with its reason. The same as `make bench`, with the huge ones a twentieth as large."""

from __future__ import annotations

from types import ModuleType

import pytest

from dev import bench

CASES = {case.name: case for case in bench.archives(scale=0.05)}
HEALTHY = next(iter(CASES))


@pytest.fixture(scope="module")
def healthy() -> bench.Result:
    return bench.evaluate(CASES[HEALTHY])


@pytest.mark.parametrize("name", CASES)
def test_an_archive_ends_in_a_decision_with_the_memory_of_a_small_healthy_one(healthy: bench.Result, name: str) -> None:
    assert bench.problems([healthy, bench.evaluate(CASES[name])]) == []


@pytest.mark.parametrize("name", bench.ENVIRONMENT)
def test_the_bench_sets_what_each_handler_reads(handlers: dict[str, ModuleType], name: str) -> None:
    assert handlers[name].Settings.from_env(bench.ENVIRONMENT[name]).bucket == bench.BUCKET
