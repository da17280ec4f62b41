from __future__ import annotations

import numpy as np
import pytest

from benchmarks.balance import as_they_come, dealt, draw, idle, over_nodes, snake


@pytest.mark.parametrize("way", [as_they_come, dealt, over_nodes, snake])
def test_every_rank_gets_its_number_of_documents(way):
    cost = np.random.default_rng(0).lognormal(0, 1, 48)
    assert np.bincount(way(cost, 6)).tolist() == [8] * 6


def test_idle_is_what_the_average_rank_waits():
    work = np.array([1.0, 3.0, 2.0, 2.0])
    assert idle(work, np.array([0, 0, 1, 1]), 2) == 0
    assert idle(work, np.array([0, 1, 0, 1]), 2) == pytest.approx(1 - 4 / 5)


def test_dealing_by_cost_balances():
    cost = draw(8 * 16, np.random.default_rng(0)).operations()
    waits = [idle(cost, way(cost, 8), 8) for way in (as_they_come, dealt, over_nodes, snake)]
    assert waits[0] > 0.1
    assert max(waits[1:]) < 0.05
