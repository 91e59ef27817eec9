"""An evaluation that is killed and resumed; `benchmarks.eval_kills` does the same thirty times."""

import pytest
from benchmarks.eval_kills import kill_and_resume


@pytest.mark.slow
def test_a_killed_evaluation_resumes_with_the_same_records(tmp_path):
    outcome = kill_and_resume(tmp_path, kills=2, scenes=6, mode="gen", seed=0)
    assert outcome.kills == 2
    assert (outcome.lost, outcome.repeated, outcome.differing) == (0, 0, 0)
