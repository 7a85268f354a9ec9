"""A training killed with SIGKILL at random moments ends as if nothing had happened. The full length: benchmarks/kills.py."""

import pytest
import torch
from killing import TINY, Run, kill_again_and_again
from study_factory import make_intake

from dinov2.train.train import run

pytestmark = pytest.mark.slow

N_KILLS = 4


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Run, Run]:
    """The same training of 60 steps: never stopped, and killed again and again."""
    folder = tmp_path_factory.mktemp("kills")
    config = folder / "tiny.yaml"
    config.write_text(TINY)
    data = make_intake(folder / "studies")
    undisturbed, killed = Run(config, data, folder / "undisturbed"), Run(config, data, folder / "killed")
    assert run(undisturbed.arguments()) == 0
    return undisturbed, killed


def test_killed_at_random_moments_a_run_ends_bit_equal_to_one_left_alone(runs):
    undisturbed, killed = runs
    kills = kill_again_and_again(killed, n_kills=N_KILLS, seed=3)
    assert sum(kill.hit for kill in kills) == N_KILLS
    assert any(kill.cut_a_checkpoint for kill in kills)
    assert run(killed.arguments()) == 0
    resumed = killed.resumed_after()
    assert resumed
    assert resumed == sorted(resumed)
    assert sorted(killed.losses()) == list(range(60))
    assert killed.losses() == undisturbed.losses()
    a, b = killed.tensors(), undisturbed.tensors()
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
