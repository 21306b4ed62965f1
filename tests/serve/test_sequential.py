"""A sequential test keeps its word however often it is looked at, and finds what there is to find."""

import math
from xml.etree import ElementTree

import numpy as np
import pytest

from mlops_nb.core.errors import UsageError
from mlops_nb.serve.sequential import (
    PLANNED,
    START,
    Tally,
    compare_arms,
    half_width,
    log_evidence,
    noise,
    outcomes_needed,
    tightest,
)

TESTS, EVERY, LOOKS = 2_000, 50, 400  # 20,000 outcomes in each test


def drawn(draw, chances, share=0.5, seed=0):
    """Base and arm in many tests, a column for each look; `draw` gives sum and sum of squares of some outcomes."""
    random, arms = np.random.default_rng(seed), []
    for chance, each in zip(chances, (EVERY - round(EVERY * share), round(EVERY * share)), strict=True):
        total, squares = draw(random, chance, each)
        arms.append(Tally(each * np.arange(1, LOOKS + 1), total.cumsum(axis=1), squares.cumsum(axis=1)))
    return arms


def zero_or_one(random, chance, each):
    total = random.binomial(each, chance, (TESTS, LOOKS)).astype(float)
    return total, total


def normal(random, mean, each):
    total = random.normal(mean * each, math.sqrt(each), (TESTS, LOOKS))
    spread = random.chisquare(each - 1, (TESTS, LOOKS))
    return total, spread + total**2 / each


def skewed(random, mean, each):
    outcomes = random.lognormal(mean, 1.0, (TESTS // 4, LOOKS, each))
    return outcomes.sum(axis=2), (outcomes**2).sum(axis=2)


def ever(base, arm, truth=0.0, alpha=0.05):
    """Share of the tests in which some interval misses the truth, and in which some is beyond zero."""
    with np.errstate(all="ignore"):
        difference, (variance, pair) = arm.mean - base.mean, noise(arm, base)
        half = half_width(variance, tightest(alpha) * pair / PLANNED, alpha)
    looked = (np.minimum(arm.n, base.n) >= START) & (variance > 0)
    missed = (np.abs(difference - truth) > half) & looked
    return missed.any(axis=1).mean(), ((np.abs(difference) > half) & looked).any(axis=1).mean()


@pytest.mark.parametrize("share", [0.5, 0.1, 0.02])
@pytest.mark.parametrize("chance", [0.5, 0.05, 0.01, 0.002])
def test_alike_arms_are_rarely_told_apart_at_any_of_400_looks(chance, share):
    base, arm = drawn(zero_or_one, (chance, chance), share)
    assert ever(base, arm)[0] <= 0.05


@pytest.mark.parametrize("draw", [normal, skewed])
def test_outcomes_may_be_any_numbers(draw):
    base, arm = drawn(draw, (1.0, 1.0), share=0.1 if draw is skewed else 0.5)
    assert ever(base, arm)[0] <= 0.05


def test_a_test_with_a_fixed_end_does_not_bear_looking_at():
    base, arm = drawn(zero_or_one, (0.1, 0.1))
    variance, _ = noise(arm, base)
    looked = np.minimum(arm.n, base.n) >= START
    rejected = (np.abs(arm.mean - base.mean) > 1.96 * np.sqrt(variance)) & looked
    assert rejected[:, -1].mean() < 0.07  # right at its end
    assert rejected.any(axis=1).mean() > 0.3


@pytest.mark.parametrize(("base", "arm", "share"), [(0.1, 0.12, 0.5), (0.5, 0.55, 0.1), (0.05, 0.01, 0.1)])
def test_a_real_difference_is_found_and_lies_in_every_interval(base, arm, share):
    missed, found = ever(*drawn(zero_or_one, (base, arm), share), truth=arm - base)
    assert missed <= 0.05
    assert found > 0.9


def test_the_formula_is_the_published_one():
    """Asymptotic confidence sequence of one mean, theorem 2.2 of Waudby-Smith et al.; p by numerical integration."""
    t, sigma, rho, alpha = 700, 1.7, 0.09, 0.05
    x = t * rho**2
    published = sigma * math.sqrt(2 * (x + 1) / (t**2 * rho**2) * math.log(math.sqrt(x + 1) / alpha))
    assert half_width(sigma**2 / t, (rho * sigma) ** 2, alpha) == pytest.approx(published)
    effects = np.linspace(-3, 3, 200_001)
    difference, variance, mixing = 0.13, 0.004, 0.02
    ratio = np.exp((difference * effects - effects**2 / 2) / variance)
    density = np.exp(-(effects**2) / (2 * mixing)) / math.sqrt(2 * math.pi * mixing)
    integral = float((ratio * density).sum() * (effects[1] - effects[0]))
    assert log_evidence(difference, variance, mixing) == pytest.approx(math.log(integral), rel=1e-6)


def test_several_arms_share_the_chance_of_error():
    random, wrong = np.random.default_rng(1), 0
    for _ in range(150):
        totals = random.binomial(100, 0.2, (4, 40)).cumsum(axis=1)
        looks = ({name: Tally(100 * (k + 1), int(totals[a, k])) for a, name in enumerate("abcd")} for k in range(40))
        wrong += any(compare_arms(look).winner for look in looks)
    assert wrong / 150 <= 0.05


def test_p_and_interval_agree():
    random = np.random.default_rng(2)
    for _ in range(200):
        n = random.integers(100, 5_000, 3)
        tallies = {name: Tally(int(k), int(random.binomial(k, 0.3))) for name, k in zip("abc", n, strict=True)}
        found = compare_arms(tallies)
        for test in found.arms:
            assert (test.p <= 0.05) == (found.decision(test.arm) != "undecided")


def test_what_is_missing_is_foreseen():
    found = compare_arms({"a": Tally(2_000, 200), "b": Tally(2_000, 235)})
    more = found.arms[0].more
    assert found.decision("b") == "undecided"
    factor = (4_000 + more) / 4_000
    later = compare_arms({"a": Tally(2_000 * factor, 200 * factor), "b": Tally(2_000 * factor, 235 * factor)})
    assert later.decision("b") == "better"
    assert "more outcomes would decide" in found.words[0]
    assert compare_arms({"a": Tally(2_000, 200), "b": Tally(2_000, 200)}).arms[0].more is None


def test_a_larger_effect_needs_fewer_outcomes():
    needed = [outcomes_needed(effect, 0.3) for effect in (0.01, 0.02, 0.04, -0.04)]
    assert needed[0] > needed[1] > needed[2] == needed[3]
    assert outcomes_needed(0.02, 0.3, power=0.95) > needed[1]


def test_a_decision_stays_and_a_change_is_told():
    early = compare_arms({"a": Tally(1_000, 100), "b": Tally(1_000, 180)})
    assert early.winner == "b"
    late = {"a": Tally(3_000, 300), "b": Tally(3_000, 345)}
    assert compare_arms(late).winner is None
    assert compare_arms(late, before=early).winner == "b"
    turned = compare_arms({"a": Tally(20_000, 2_000), "b": Tally(20_000, 1_500)}, before=early)
    assert turned.decision("b") == "worse"
    assert "changed since an earlier look" in turned.words[-1]


def test_too_few_or_constant_outcomes_decide_nothing():
    for arm in (Tally(99, 99), Tally(0), Tally(5_000, 0)):
        found = compare_arms({"a": Tally(5_000, 0), "b": arm})
        assert found.decision("b") == "undecided"
        assert found.words[0].startswith("Too early")
        assert "undecided" in repr(found)
        assert "<table" in found._repr_html_()


def test_a_summary_can_be_shown():
    found = compare_arms({"<base>": Tally(8_000, 810), "bold": Tally(8_000, 1_000), "brave": Tally(8_000, 1_010)})
    assert found.winner == "brave"
    assert "Which of the better arms is best is not tested" in found.words[-1]
    page = found._repr_html_()
    picture = ElementTree.fromstring(page[page.index("<svg") :])
    assert [text.text for text in picture.iter("text")] == ["bold", "brave"]
    assert "<base>" not in page


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tallies": {"a": Tally(1, 1)}}, "nothing to compare"),
        ({"alpha": 1.5}, "no small chance"),
        ({"goal": "mor"}, "Did you mean 'more'"),
        ({"planned": 3}, "too few to plan"),
        ({"tallies": {"a": Tally(5, 1), "b": Tally(5, 9)}}, "tally of 'b' cannot be"),
        ({"tallies": {"a": Tally(5, 1), "b": Tally(5, math.nan, 3)}}, "tally of 'b' cannot be"),
    ],
)
def test_mistakes_are_named(arguments, words):
    with pytest.raises(UsageError, match=words):
        compare_arms(**{"tallies": {"a": Tally(500, 50), "b": Tally(500, 60)}, **arguments})
