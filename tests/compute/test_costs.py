"""Passes, trainings and action chunks against the numbers that were published or reconstructed by others."""

import pytest

from wamjax.compute import costs, systems
from wamjax.compute.chips import CHIPS, find_chip
from wamjax.compute.published import post_rows, publication, recipe
from wamjax.errors import UserError

PASSES = {
    "dreamzero-14b: train": 463.07,
    "dreamzero-14b: denoise": 55.5,
    "dreamzero-14b: commit": 53.7,
    "dreamzero-14b: encode 33 frames": 37.736,
    "dreamzero-14b: encode 9 frames": 10.573,
    "dreamzero-14b: prompt": 4.845,
    "dreamzero-5b: train": 10.108,
    "dreamzero-5b: encode 33 frames": 5.958,
    "wan-14b: 720p, 81 frames": 6523,
    "wan-14b: 480p, 81 frames": 1678,
    "wan-14b: DFM's benchmark": 2061,
    "wan-5b: decode": 2011,
    "cosmos-policy: LIBERO": 6.846,
    "cosmos-policy: RoboCasa and ALOHA": 8.534,
    "cosmos-policy: encode 33 frames": 8.375,
    "cosmos-policy: encode 41 frames": 10.385,
    "mimic-video: video": 150.1,
    "mimic-video: video, 21 blocks": 112.6,
    "fast-wam: train RoboTwin": 3.485,
    "fast-wam: first frame": 1.22,
    "fast-wam: encode 9 frames": 4.004,
    "lingbot-va: video, RoboTwin": 7.26,
    "lingbot-va: action, RoboTwin": 2.01,
    "pi0.5: 3 views": 0.661,
    "groot-n1.5: language": 0.337,
    "groot-n1.5: features": 0.114,
}
"""TF of a forward pass, as counted by running published modules, or by formula."""

TIGHT = {"dreamzero-14b: train": 1e-3, "cosmos-policy: LIBERO": 2e-4, "wan-14b: 720p, 81 frames": 2e-4}


@pytest.mark.parametrize("name", PASSES)
def test_forward_passes(name):
    system, _, run = name.partition(": ")
    found = systems.find(system).cost(run).flops.total / 1e12
    assert found == pytest.approx(PASSES[name], rel=TIGHT.get(name, 6e-3))


def test_attention_shares():
    share = {
        name: (lambda f: f.attention / f.total)(systems.find(name).cost(run).flops)
        for name, run in (("wan-14b", "720p, 81 frames"), ("dreamzero-14b", "train"))
    }
    assert share == {"wan-14b": pytest.approx(0.723, abs=5e-4), "dreamzero-14b": pytest.approx(0.157, abs=5e-4)}


def test_the_posts_rows_are_their_formulas():
    for row in post_rows():
        assert row.formula == pytest.approx(row.published, rel=0.0112), row.name


RECIPES = {
    "dreamzero-14b: action tuning": (17.78, 24.74),
    "dreamzero-14b: ablation": (2.22, 3.09),
    "dreamzero-5b: at the 14B's recipe": (0.39, 0.73),
    "pi0-fast: DROID, 100,000 steps": (0.364, 0.485),
    "pi0-fast: DROID, 240,000 steps": (0.87, 1.16),
    "pi0.5: DROID": (0.357, 0.476),
    "wan-14b: 500 B tokens at 192p": (43.3, 57.7),
    "wan-14b: 500 B tokens at 480p": (76.8, 102.4),
    "wan-14b: 500 B tokens at 720p": (129.4, 172.5),
    "lingbot-va: pre-training": (44.5 + 7.7, 44.5 + 7.7),
    "cosmos-policy: LIBERO": (1.58, 2.75),
    "cosmos-policy: RoboCasa": (0.92, 1.60),
    "cosmos-policy: ALOHA": (0.26, 0.45),
    "fast-wam: RoboTwin": (0.321, 0.551),
    "fast-wam: LIBERO": (0.022, 0.038),
    "mimic-video: Bridge, video adapters": (1.35, 1.77),
    "mimic-video: LIBERO, actions": (0.077, None),
    "groot-n1.5: pre-training, head only": (2.25, 4.53),
}
"""1e21 operations, derived and executed, as an earlier reconstruction has them."""


@pytest.mark.parametrize("name", RECIPES)
def test_trainings_are_as_reconstructed(name):
    for found, known in zip(costs.training(*recipe(name)).zetta, RECIPES[name], strict=True):
        assert known is None or found == pytest.approx(known, rel=0.02)


def test_where_the_earlier_reconstruction_was_wrong():
    """It took 21 blocks of mimic-video's network, 35 % of LingBot-VA's pairs, and no gradient through GR00T's LLM."""
    system, one = recipe("mimic-video: Bridge, actions")
    found = costs.training(system, one)
    extra = (system.cost("video, 21 blocks").flops.total - system.cost("video, 20 blocks").flops.total) * found.samples
    assert (found.zetta[1], found.zetta[1] + extra / 1e21) == (
        pytest.approx(0.774, rel=2e-3),
        pytest.approx(0.79, rel=0.01),
    )
    system, one = recipe("lingbot-va: RoboTwin")
    assert costs.training(system, one).zetta[0] == pytest.approx(0.731, rel=2e-3)
    plan, flops = system.runs["train RoboTwin"].work.plan, system.cost("train RoboTwin").flops
    denser = flops.total + 4 * 3072 * 30 * (0.35 * plan.length**2 - plan.pairs())
    assert denser / 1e12 == pytest.approx(80, rel=0.02)
    system, one = recipe("groot-n1.5: pre-training, vision trained")
    through = 2 * system.cost("language").flops.total * 16_384 * 250_000 / 1e21
    assert costs.training(system, one).zetta[0] - through == pytest.approx(4.9, rel=0.02)


def test_utilisation_of_runs_with_known_hours():
    known = {
        "cosmos-policy: LIBERO": (0.144, 0.251),
        "cosmos-policy: RoboCasa": (0.168, 0.293),
        "cosmos-policy: ALOHA": (0.187, 0.326),
        "fast-wam: RoboTwin": (0.188, 0.323),
        "pi0-fast: DROID, 100,000 steps": (0.266, 0.355),
        "pi0.5: DROID": (0.261, 0.348),
    }
    for name, shares in known.items():
        system, one = recipe(name)
        assert costs.utilisation(system, one, find_chip(one.chip)) == pytest.approx(shares, abs=2e-3)


def test_reported_training_speeds_by_one_count():
    known = {
        "NeMo DFM, Megatron": (325.8, 0.329),
        "MaxDiffusion": (135.9, 0.296),
        "tpu-recipes, Wan2.1": (398.1, 0.173),
        "MaxDiffusion PR 470": (246.5, 0.107),
        "MaxDiffusion PR 487": (721.1, 0.313),
    }
    found = {one.name: (one.rate / 1e12, one.mfu) for one in publication().throughputs}
    assert set(found) == set(known)
    for name, (rate, mfu) in known.items():
        assert found[name] == (pytest.approx(rate, rel=1e-3), pytest.approx(mfu, abs=1e-3))


COLUMNS = (
    *("v5e", "v5p", "v6e", "v7", "a100", "h100", "h200"),
    *("b200", "gb200", "l40s", "rtx4090", "rtx5090", "thor"),
)
LEAST = """
dreamzero-14b: guidance in series | 1906 | 9674 4152 2077 826 6108 1926 1926 847 762 5264 11536 9096 7445
dreamzero-14b: guidance on two | 958 | 4864 2087 1044 415 3071 968 968 426 383 2647 5800 4573 3743
dreamzero-14b: 4 steps on two | 292 | 1483 637 319 127 936 295 295 130 117 807 1768 1395 1152
dreamzero-14b: Flash, 1 step on two | 121 | 613 263 132 52 387 122 122 54 48 334 731 577 470
cosmos-policy: LIBERO | 42.6 | 216 93 46 18.5 137 43 43 19 17 118 258 203 166
fast-wam: 10 steps | 2.8 | 40 12 19 4.3 17 9.6 6.8 4.0 4.0 36 33 20 112
fast-wam: 1 step | 1.9 | 17 5.6 7.9 1.9 7.7 4.1 3.1 1.7 1.7 15 15 9.6 46
lingbot-va: RoboTwin | 295 | 2060 740 818 204 1052 459 379 196 188 1558 2045 1414 4899
lingbot-va: LIBERO | 156 | 1133 389 517 116 547 259 205 110 107 980 1073 747 3099
pi0: 2 views | 2.9 | 21 7.9 6.8 2.0 11 4.5 3.9 1.9 1.8 15 22 16 41
pi0: 3 views | 4.2 | 28 11 8.1 2.5 16 5.8 5.2 2.5 2.3 18 30 22 41
pi0.5: 3 slots | 4.8 | 31 12 9.0 2.9 18 6.6 6.0 2.9 2.7 20 34 26 42
groot-n1.5: 1 view | 0.9 | 8.8 3.1 4.2 0.9 4.3 2.0 1.6 0.9 0.9 7.9 8.4 5.7 25
"""
"""TF of a chunk, and its least milliseconds on chips, as an earlier reconstruction has them, rounded."""


def half_a_digit(printed: str) -> float:
    """What rounding may have taken."""
    return 0.5 * 10.0 ** -len(printed.partition(".")[2])


@pytest.mark.parametrize("line", LEAST.strip().splitlines(), ids=lambda line: line.partition(" |")[0])
def test_least_times_of_action_chunks(line):
    name, flops, times = (part.strip() for part in line.split("|"))
    system, _, way = name.partition(": ")
    system = systems.find(system)
    acting = next(one for one in system.acting if one.name == way)
    for chip, printed in zip(COLUMNS, times.split(), strict=True):
        total, seconds = costs.total(costs.chunk(system, acting, find_chip(chip)))
        assert abs(1e3 * seconds - float(printed)) <= 0.03 * float(printed) + half_a_digit(printed), chip
    assert total / 1e12 == pytest.approx(float(flops), rel=0.02, abs=half_a_digit(flops))


def test_least_times_that_the_earlier_reconstruction_had_otherwise():
    """mimic-video: 21 blocks, and a rule for the autoencoder; Franka: an autoencoder of less than its three cameras."""
    h100, mimic, lingbot = find_chip("h100"), systems.find("mimic-video"), systems.find("lingbot-va")
    flops, seconds = costs.total(costs.chunk(mimic, mimic.acting[0], h100))
    block = (mimic.cost("video, 21 blocks").flops.total - mimic.cost("video, 20 blocks").flops.total) / 1e12
    assert flops / 1e12 + block == pytest.approx(126, rel=0.01)
    assert 1e3 * seconds + 1e3 * block * 1e12 / h100.flops == pytest.approx(134, rel=0.02)
    franka = next(one for one in lingbot.acting if one.name == "Franka")
    stages = costs.chunk(lingbot, franka, h100)
    passes = [one for one in stages if one.name != "encode"]
    assert costs.total(stages)[0] / 1e12 == pytest.approx(201, rel=0.005)
    assert costs.total(passes)[0] / 1e12 == pytest.approx(191, rel=0.015)


def test_dreamzeros_law_of_passes():
    law = systems.find("dreamzero-14b").law.through
    assert (law.at(4), law.at(1)) == (pytest.approx(350), pytest.approx(150))
    assert (law.call, law.rest) == (pytest.approx(66.7, abs=0.05), pytest.approx(16.6, abs=0.1))
    system = systems.find("dreamzero-14b")
    rate = system.cost("denoise").flops.total / law.call * 1e3
    assert (rate / 1e12, rate / CHIPS["gb200"].flops) == (pytest.approx(832, rel=0.005), pytest.approx(0.33, abs=0.005))


def test_measured_times_as_shares_of_the_bound():
    known = {
        ("h100", 5700): 0.34,
        ("h100", 594): 0.50,
        ("gb200", 385): 0.30,
        ("gb200", 343): 0.34,
        ("gb200", 150): 0.32,
    }
    known |= {("a100", 624): 0.22, ("a100", 21_000): 0.026, ("rtx5090d-v2", 190): 0.14, ("h100", 12.2): 0.34}
    found = {}
    for name in systems.names():
        system = systems.find(name)
        for acting in system.acting:
            for one in acting.measured:
                least = 1e3 * costs.total(costs.chunk(system, acting, find_chip(one.chip), one.steps))[1]
                found[one.chip, one.ms] = least / one.ms
    assert {key: found[key] for key in known} == {key: pytest.approx(share, abs=0.01) for key, share in known.items()}
    assert all(share < 1 for share in found.values())


def test_the_posts_latencies_beside_their_bounds():
    found = {one.name: (one.printed, *one.least) for one in publication().latencies}
    joint, vla = found["joint prediction"], found["a VLA, Pi-0.5"]
    assert joint[0] / vla[0] == pytest.approx(3.1, abs=0.05)
    assert joint[1] / vla[1] == pytest.approx(7.5, abs=0.1)
    assert joint[2] / vla[2] == pytest.approx(6.6, abs=0.1)
    assert all(least < printed for printed, _, least in found.values())


def test_steps_scale_what_is_denoised_and_parts_share_the_work():
    system = systems.find("dreamzero-14b")
    acting, chip = system.acting[1], find_chip("v5p")
    one, four = (costs.chunk(system, acting, chip, n) for n in (1, 4))
    assert [b.times / a.times for a, b in zip(one, four, strict=True)] == [1, 1, 1, 1, 4]
    shared = costs.chunk(system, acting, chip, 1, parts=8)
    assert shared[-1].bounds["compute"] == one[-1].bounds["compute"] / 8
    assert shared[-1].bounds["ici"] == pytest.approx(2 * 7 / 8 * 2 * 40 * 1785 * 5120 * 3 / chip.links)
    with pytest.raises(UserError, match="links are not known"):
        costs.chunk(system, acting, find_chip("thor"), parts=2)


def test_money_energy_memory_and_a_steps_bounds():
    v5p = find_chip("v5p")
    bill = costs.bill(3600 * 0.5 * v5p.flops * 100, v5p, 0.5, price=4.0, watts=500)
    assert (bill.chip_hours, bill.money, bill.energy) == (pytest.approx(100), pytest.approx(400), pytest.approx(50))
    assert costs.bill(1e21, v5p, 0.4).money is None
    assert {name: costs.fewest_chips(16_484_292_448, find_chip(name)) for name in ("v5p", "v7", "h100")} == {
        "v5p": 4,
        "v7": 2,
        "h100": 5,
    }
    found = costs.training(*recipe("dreamzero-14b: action tuning"))
    bounds = costs.step_bounds(found, 128, v5p, 256)
    assert max(bounds, key=bounds.get) == "compute"
    assert bounds["ici"] == pytest.approx(3 * 2 * 16_484_292_448 * 255 / 256 / v5p.links)


def test_rooflines_leave_out_what_is_not_used():
    thor = find_chip("thor")
    assert costs.bounds(thor, flops=257e12, memory=273e9) == {"compute": 1, "hbm": 1, "ici": 0, "dcn": 0}


def test_all_chips_and_recipes_say_where_they_are_from():
    assert all(chip.source for chip in CHIPS.values())
    for name in systems.names():
        system = systems.find(name)
        assert system.source
        assert all(one.source for one in (*system.recipes, *system.acting))
        assert all(one.source for acting in system.acting for one in acting.measured)
