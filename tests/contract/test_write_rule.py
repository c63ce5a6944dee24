"""The write rule says the same in NumPy, in torch, and of one Python number."""

from __future__ import annotations

import numpy as np
import torch

from stategate.contract.write_rule import opens, opens_number
from stategate.models import step


def test_the_twins_agree_around_the_threshold_where_float64_would_decide_otherwise() -> None:
    threshold = 0.1  # between two numbers of float32
    nearest = np.float32(threshold)
    values = np.array([np.nextafter(nearest, np.float32(-1)), nearest, 1.0], np.float32)
    assert (values[1] > threshold).item() or float(nearest) > threshold  # as float64, open
    expected = [False, False, True]
    assert opens(values, threshold).tolist() == expected
    assert step.opens(torch.from_numpy(values), threshold).tolist() == expected
    assert [opens_number(v, float(nearest)) for v in values.tolist()] == expected


def test_a_gate_of_several_sessions_takes_a_threshold_for_each_and_an_array_to_answer_in() -> None:
    gate = np.array([[0.0, 2.0], [0.0, 2.0]], np.float32)
    answer = np.zeros((2, 2), bool)
    assert opens(gate, [[1.0], [3.0]], out=answer) is answer
    assert answer.tolist() == [[False, True], [False, False]]
