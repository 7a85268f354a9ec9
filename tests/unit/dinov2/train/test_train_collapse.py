"""Collapse warnings: each symptom is named once an episode, and runs that learn are left in peace."""

import logging
import math

import pytest
from omegaconf import OmegaConf

from dinov2.loss.routing import build_router
from dinov2.train.collapse import CollapseWatch, build_collapse_watch

K = 256
LN_K = math.log(K)

# Measured: (iteration, DINO loss, KoLeo, iBOT, teacher entropy, marginal entropy) of three real runs on 64 striped images, CPU.
LEARNS = [
    *((0, 5.544, 0.065, 0, 3.491, 5.541), (15, 5.541, 0.0287, 0, 3.522, 5.543), (30, 5.448, 0.0246, 0, 3.565, 5.544)),
    *((45, 5.362, 0.0297, 0, 3.953, 5.543), (60, 5.271, 0.022, 0, 4.254, 5.544), (75, 5.233, 0.0176, 0, 4.517, 5.544)),
    *(
        (90, 5.199, 0.0133, 0, 4.642, 5.544),
        (105, 5.202, 0.0147, 0, 4.757, 5.544),
        (120, 5.164, 0.0114, 0, 4.832, 5.544),
    ),
    *(
        (135, 5.164, 0.0093, 0, 4.847, 5.543),
        (150, 5.147, 0.0079, 0, 4.865, 5.543),
        (165, 5.137, 0.0018, 0, 4.881, 5.544),
    ),
    *(
        (180, 5.163, 0.003, 0, 4.897, 5.543),
        (195, 5.14, 0.0016, 0, 4.881, 5.543),
        (210, 5.151, 0.0001, 0, 4.897, 5.543),
    ),
    *(
        (225, 5.149, -0.0004, 0, 4.906, 5.543),
        (240, 5.129, -0.0022, 0, 4.917, 5.544),
        (285, 5.167, -0.0008, 0, 4.942, 5.544),
    ),
]
DRIFTS_TO_UNIFORM = [  # official settings with a batch of 8
    *(
        (0, 5.768, 0.0595, 1.71, 1.732, 2.712),
        (15, 4.949, 0.088, 1.377, 2.597, 3.783),
        (30, 5.465, 0.086, 1.248, 4.457, 4.961),
    ),
    *(
        (45, 5.514, 0.0452, 1.217, 4.998, 5.323),
        (60, 5.486, 0.0244, 1.218, 5.177, 5.428),
        (75, 5.497, 0.01, 1.205, 5.257, 5.461),
    ),
    *(
        (90, 5.524, 0.0031, 1.228, 5.369, 5.508),
        (105, 5.535, 0.0008, 1.253, 5.422, 5.517),
        (120, 5.542, 0.0, 1.22, 5.451, 5.531),
    ),
    *(
        (135, 5.543, -0.003, 1.237, 5.471, 5.534),
        (150, 5.546, -0.004, 1.233, 5.486, 5.539),
        (165, 5.546, -0.006, 1.244, 5.499, 5.541),
    ),
    *(
        (180, 5.547, -0.005, 1.253, 5.502, 5.542),
        (195, 5.546, -0.01, 1.245, 5.502, 5.542),
        (210, 5.547, -0.012, 1.245, 5.502, 5.542),
    ),
]
SAME_FOR_ALL = [  # a learning rate far too high, without KoLeo: far below ln K, and blind to the image
    *((15, 1.319, 0, 0.738, 0.725, 0.874), (30, 3.889, 0, 0.99, 3.881, 3.881), (45, 3.544, 0, 0.857, 3.535, 3.535)),
    *((60, 3.06, 0, 0.825, 3.031, 3.031), (75, 4.001, 0, 1.023, 3.973, 3.973), (90, 3.907, 0, 1.023, 3.864, 3.864)),
    *((105, 4.133, 0, 1.041, 4.088, 4.088), (120, 5.115, 0, 1.109, 5.077, 5.08)),
]  # fmt: skip


def recorded(rows) -> list[tuple[int, dict[str, float]]]:
    names = ("dino_local_crops_loss", "koleo_loss", "ibot_loss", "teacher_entropy", "teacher_marginal_entropy")
    return [(iteration, dict(zip(names, values, strict=True))) for iteration, *values in rows]


def healthy(**overrides: float) -> dict[str, float]:
    values = {"dino_global_crops_loss": 1.0, "dino_local_crops_loss": 3.5, "koleo_loss": 0.02, "ibot_loss": 0.9}
    return values | {"teacher_entropy": 3.0, "teacher_marginal_entropy": 5.2, "rankme": 60.0} | overrides


def watch(**overrides) -> CollapseWatch:
    return CollapseWatch(**{"n_prototypes": K, "patience": 50, "warm_up": 10, "batch_size": 8} | overrides)


def follow(collapse: CollapseWatch, values: dict[str, float], iterations=range(10, 100)) -> list[str]:
    return [warning for iteration in iterations for warning in collapse.update(iteration, values)]


def test_a_recorded_run_that_learns_is_never_warned_of():
    collapse = watch()
    assert [w for iteration, values in recorded(LEARNS) for w in collapse.update(iteration, values)] == []


def test_a_recorded_run_that_drifts_to_uniform_is_warned_of_by_its_loss():
    collapse = watch()
    warnings = [w for iteration, values in recorded(DRIFTS_TO_UNIFORM) for w in collapse.update(iteration, values)]
    assert any("DINO loss is at" in w and "gradient_accumulation_steps" in w for w in warnings)


def test_a_recorded_run_that_answers_every_image_alike_is_warned_of_long_before_ln_k():
    collapse = watch()
    (warning,) = [w for iteration, values in recorded(SAME_FOR_ALL) for w in collapse.update(iteration, values)]
    assert warning.startswith("Iteration 90:")
    assert "every image gets the same target" in warning


@pytest.mark.parametrize(
    ("symptom", "words"),
    [
        ({"dino_global_crops_loss": 0.2 * LN_K, "dino_local_crops_loss": 0.8 * LN_K}, "DINO loss is at 100.0% of ln K"),
        ({"ibot_loss": 0.25 * LN_K}, "iBOT loss is at 100.0% of ln K"),
        ({"teacher_entropy": 0.995 * LN_K, "teacher_marginal_entropy": LN_K}, "targets are uniform"),
        ({"teacher_entropy": 0.0, "teacher_marginal_entropy": 0.01}, "onto one prototype"),
        ({"teacher_entropy": 2.0, "teacher_marginal_entropy": 2.01}, "every image gets the same target"),
        ({"koleo_loss": 0.1 * 16.8}, "on top of each other"),
        ({"koleo_loss": math.inf}, "koleo_in_fp32=true"),
    ],
)
def test_a_symptom_that_lasts_gives_one_warning_that_names_it(symptom, words, caplog):
    with caplog.at_level(logging.WARNING, logger="dinov2"):
        (warning,) = follow(watch(), healthy(**symptom))
    assert words in warning
    assert "dino." in warning or "teacher." in warning or "ibot." in warning, "no key to change"
    assert [record.getMessage() for record in caplog.records] == [warning]


def test_healthy_values_give_no_warning():
    assert follow(watch(rankme_limit=128), healthy()) == []


def test_a_symptom_of_a_few_steps_is_not_yet_collapse():
    collapse = watch()
    assert follow(collapse, healthy(teacher_entropy=LN_K), range(10, 55)) == []
    assert follow(collapse, healthy(), range(55, 200)) == []


def test_warm_up_is_left_in_peace():
    assert follow(watch(warm_up=1000), healthy(dino_local_crops_loss=LN_K, teacher_entropy=LN_K), range(1000)) == []


def test_a_collapse_onto_one_prototype_does_not_wait_for_the_warm_up():
    assert follow(watch(warm_up=1000), healthy(teacher_entropy=0.0, teacher_marginal_entropy=0.0), range(100))


def test_a_second_episode_is_warned_of_again():
    collapse, ill = watch(), healthy(teacher_entropy=LN_K, teacher_marginal_entropy=LN_K)
    assert len(follow(collapse, ill, range(10, 300))) == 1
    assert follow(collapse, healthy(), range(300, 500)) == []
    assert len(follow(collapse, ill, range(500, 800))) == 1


def test_patience_counts_iterations_whether_or_not_every_one_is_logged():
    ill = healthy(teacher_entropy=LN_K, teacher_marginal_entropy=LN_K)
    first = []
    for step in (1, 10):
        collapse = watch(patience=100)
        first.append(next(i for i in range(10, 500, step) if collapse.update(i, ill)))
    assert first == [109, 110]


def test_equal_targets_of_a_tiny_batch_say_nothing():
    assert follow(watch(batch_size=2), healthy(teacher_entropy=0.0, teacher_marginal_entropy=0.0)) == []


def test_rankme_that_falls_below_half_of_its_best_is_warned_of_at_once():
    collapse = watch()
    assert follow(collapse, healthy(rankme=100.0), [10]) == follow(collapse, healthy(rankme=51.0), [20]) == []
    (warning,) = follow(collapse, healthy(rankme=49.0), [30])
    assert "fell to 49.0 from 100.0" in warning
    assert follow(collapse, healthy(rankme=48.0), [40]) == []


def test_rankme_below_a_tenth_of_what_it_can_be_is_warned_of():
    (warning,) = follow(watch(rankme_limit=384), healthy(rankme=30.0), [10])
    assert "30.0 of at most 384" in warning


def test_values_that_are_missing_or_nan_are_not_judged():
    collapse = watch()
    assert follow(collapse, {"total_loss": 1.0}) == []
    assert follow(collapse, dict.fromkeys(healthy() | {"koleo_loss": 0.0}, math.nan) | {"koleo_loss": 0.0}) == []


@pytest.mark.parametrize(("n_local", "pair_weight"), [(4, 1.0), (0, 2 / 3)])
def test_the_watch_of_a_configuration_knows_what_the_routing_makes_of_ln_k(n_local, pair_weight):
    """Without local crops the official global term is 2/3 of the cross-entropy."""
    cfg = OmegaConf.create(
        {
            "dino": {"head_n_prototypes": K, "koleo_loss_weight": 0.1},
            "ibot": {"separate_head": True, "head_n_prototypes": 16, "mask_sample_probability": 0.5},
            "train": {"OFFICIAL_EPOCH_LENGTH": 10, "batch_size_per_gpu": 8},
            "optim": {"warmup_epochs": 1},
        }
    )
    router = build_router({"name": "same_image"}, n_local)
    stuck = {"dino_global_crops_loss": pair_weight * LN_K, "ibot_loss": 0.25 * math.log(16)}
    both = follow(build_collapse_watch(cfg, router), stuck, range(200))
    assert ["DINO" in both[0], "iBOT" in both[1], len(both)] == [True, True, 2]
    learns = {"dino_global_crops_loss": 0.95 * pair_weight * LN_K, "ibot_loss": 0.23 * math.log(16)}
    assert follow(build_collapse_watch(cfg, router), learns, range(200)) == []
