"""Elo, its interval, the sequential test and the ladder, against computations of other kinds: closed formulas as Fishtest has them
(server/fishtest/stats: `get_elo` of stat_util.py, `LLR_logistic` of LLRcalc.py), a posterior on a grid, the bootstrap, and simulation"""
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.optimize import brentq, minimize
from scipy.stats import norm

from maou_nb.play.elo import Sprt, chance, elo_at, elo_of, pair_counts, pair_odds, rank, score_interval, score_of, spread_of

FISHTEST = [10789, 19328, 33806, 19402, 10543]      # of a long test of theirs
COUNTS = st.lists(st.integers(0, 60), min_size=5, max_size=5)

def fishtest_elo(counts):
    "(Elo, half of its interval, likelihood of superiority) with the plain normal interval of pairs"
    n, points = sum(counts), [0, .5, 1, 1.5, 2]
    games = 2*n
    mu = sum(c*p for c, p in zip(counts, points))/games
    dev = math.sqrt(sum(c*(p - 2*mu)**2 for c, p in zip(counts, points))/games)/math.sqrt(games)
    elo = lambda x: -400*math.log10(1/x - 1)
    return elo(mu), (elo(mu + 1.959964*dev) - elo(mu - 1.959964*dev))/2, norm.cdf((mu - .5)/dev)

def fishtest_llr(elo0, elo1, counts):
    "Generalised log likelihood ratio by the secular equation"
    counts = [c or 1e-3 for c in counts]
    n, a = sum(counts), [i/4 for i in range(5)]
    def best(s):
        x = brentq(lambda x: sum(c/n*(v - s)/(1 + x*(v - s)) for c, v in zip(counts, a)), -1/(1 - s) + 1e-9, 1/s - 1e-9)
        return [c/n/(1 + x*(v - s)) for c, v in zip(counts, a)]
    p0, p1 = (best(1/(1 + 10**(-e/400))) for e in (elo0, elo1))
    return sum(c*math.log(q1/q0) for c, q0, q1 in zip(counts, p0, p1))

@pytest.mark.parametrize('counts', [FISHTEST, [39, 2226, 31451, 2412, 40], [40, 170, 400, 270, 120], [60, 240, 380, 240, 80]])
def test_of_long_matches_fishtests_formulas_say_the_same(counts):
    elo, half, los = fishtest_elo(counts)
    mine = elo_of(counts)
    assert mine.elo == pytest.approx(elo, abs=1e-9) and (mine.high - mine.low)/2 == pytest.approx(half, rel=.01)
    assert mine.chance == pytest.approx(los, abs=2e-3)
    for elo0, elo1 in ((-3, 1), (0, 5), (0, 30)):
        assert Sprt(elo0, elo1).llr(counts) == pytest.approx(fishtest_llr(elo0, elo1, counts), rel=1e-6, abs=1e-6)

@settings(max_examples=60, deadline=None)
@given(COUNTS.filter(any), st.floats(-200, 200), st.floats(1, 200))
def test_the_ratio_of_any_match_is_that_of_the_formula(counts, elo0, by):
    assert Sprt(elo0, elo0 + by).llr(counts) == pytest.approx(fishtest_llr(elo0, elo0 + by, counts), rel=1e-4, abs=1e-4)

@pytest.mark.parametrize('wins, losses', [(10, 10), (14, 6), (60, 40), (70, 30), (18, 2)])
def test_games_without_draws_have_the_interval_of_a_posterior_on_a_grid(wins, losses):
    "With the uniform prior; ends within a tenth of the width of 100 games, a fifth of fewer"
    s = np.linspace(0, 1, 200_001)[1:-1]
    log = wins*np.log(s) + losses*np.log(1 - s)
    weight = np.exp(log - log.max())
    below = np.cumsum(weight)/weight.sum()
    low, high = (float(elo_at(s[np.searchsorted(below, q)])) for q in (.025, .975))
    mine = elo_of(singles=[losses, 0, wins])
    assert abs(mine.low - low) + abs(mine.high - high) < (.2 if wins + losses >= 100 else .4)*(high - low)
    assert mine.chance == pytest.approx(1 - below[np.searchsorted(s, .5)], abs=.02)

def test_pairs_have_the_interval_of_the_bootstrap():
    rng = np.random.default_rng(3)
    for odds in (pair_odds(40), pair_odds(0, draws=4), pair_odds(100, draws=.5, luck=300), np.array([.4, .05, .1, .05, .4])):
        counts = np.rint(200*odds).astype(int)
        again = rng.multinomial(counts.sum(), counts/counts.sum(), 20_000) @ (np.arange(5)/4)/counts.sum()
        low, high = elo_at(np.quantile(again, [.025, .975]))
        mine = elo_of(counts)
        assert mine.high - mine.low == pytest.approx(high - low, rel=.06) and mine.low == pytest.approx(low, abs=.06*(high - low))

def covered(odds, pairs, matches=4000, seed=0):
    "Share of simulated matches whose interval holds the truth; its standard error is 0.34 %"
    low, high = score_interval(np.random.default_rng(seed).multinomial(pairs, odds, matches))
    truth = odds @ np.arange(5)/4
    return np.mean((low <= truth) & (truth <= high))

KINDS = {f'{elo} Elo, draws {draws}, {opening}': (elo, draws, *opening)
         for elo in (0, 50, 150, 400) for draws in (0, .5, 2, 8) for opening in ((0, 0), (100, 0), (0, 300))}

def test_intervals_keep_their_word():
    "48 kinds of matches: in 200 games each within 93.5…96.5 %, with fewer on average; what few games do is stated, and not below 90 %"
    got = {n: np.array([covered(pair_odds(*kind), n, seed=i) for i, kind in enumerate(KINDS.values())]) for n in (5, 25, 100)}
    assert (abs(got[100] - .95) < .015).all() and abs(got[100].mean() - .95) < .003
    assert (abs(got[25] - .95) < .025).all() and abs(got[25].mean() - .95) < .005
    assert got[5].min() > .9 and .95 < got[5].mean() < .98

@pytest.mark.parametrize('draws', [.3, 1, 3])
@pytest.mark.parametrize('luck', [0, 200])
def test_equals_are_called_equals(draws, luck):
    "A against A: in 94…96 % of 4,000 matches of 200 games the interval holds 0"
    assert .94 <= covered(pair_odds(0, draws, luck=luck), 100, seed=5) <= .96
    odds = pair_odds(0, draws, luck=luck)
    sure = chance(np.random.default_rng(1).multinomial(100, odds, 4000))
    assert abs(np.mean(sure > .975) - .025) < .01 and abs(np.mean(sure < .5) - .5) < .03

def test_pairs_that_are_alike_count_once():
    "Engines that play the same game again, from either side: half as many results as games"
    alike = np.array([.5, 0, 0, 0, .5])
    assert spread_of(1000*alike) == pytest.approx(2, abs=.01) and abs(covered(alike, 100) - .95) < .015
    wide, narrow = elo_of([50, 0, 0, 0, 50]), elo_of([0, 0, 100, 0, 0])
    assert wide.high - wide.low > 7*(narrow.high - narrow.low)

def test_all_won_has_no_upper_end():
    for n in (1, 5, 50):
        mine = elo_of([0, 0, 0, 0, n])
        assert math.isinf(mine.high) and math.isfinite(mine.low) and 'all games were won' in repr(mine)
        least = elo_at(.025**(1/(2*n)))         # the exact one, of independent games without draws
        assert abs(score_of(mine.low) - score_of(least)) < (.2 if n == 1 else .1) and mine.chance > .9
    assert elo_of([5, 0, 0, 0, 0]).low == -math.inf and 'all games were lost' in repr(elo_of(singles=[4, 0, 0]))
    assert repr(elo_of()) == 'no game yet' and elo_of().chance == .5

@settings(max_examples=80, deadline=None)
@given(COUNTS, st.lists(st.integers(0, 60), min_size=3, max_size=3))
def test_the_other_side_sees_the_mirror_image(pairs, singles):
    one, other = elo_of(pairs, singles), elo_of(pairs[::-1], singles[::-1])
    for a, b in ((one.elo, -other.elo), (one.low, -other.high), (one.high, -other.low), (one.chance, 1 - other.chance)):
        assert a == pytest.approx(b, abs=1e-6)
    assert one.low <= one.elo <= one.high and (one.low > 1e-9) == (one.chance > norm.cdf(norm.ppf(.975)) + 1e-9)

def test_points_of_pairs_are_counted():
    rng = np.random.default_rng(0)
    points = rng.choice([0, .5, 1], (500, 2))
    assert pair_counts(points).tolist() == [sum(p.sum() == k/2 for p in points) for k in range(5)]

def ended(test, odds, tests, seed=0):
    "(share that says elo1, pairs on average) of simulated tests, step by step"
    rng, (low, high) = np.random.default_rng(seed), test.bounds
    counts, said, pairs, on = np.zeros((tests, 5)), np.zeros(tests, bool), np.zeros(tests), np.arange(tests)
    while len(on):
        counts[on, rng.choice(5, len(on), p=odds)] += 1
        llr, pairs[on] = test.llr(counts[on]), pairs[on] + 1
        said[on] = llr >= high
        on = on[(llr > low) & (llr < high)]
    return said.mean(), pairs.mean()

def at(elo, **kind):
    "Odds of a pair with the score of `elo`"
    return pair_odds(brentq(lambda e: pair_odds(e, **kind) @ np.arange(5)/4 - score_of(elo), -3000, 3000), **kind)

@pytest.mark.parametrize('kind', [dict(draws=.5), dict(draws=6), dict(draws=1, luck=300)], ids=str)
def test_the_sequential_test_errs_as_seldom_as_it_says(kind):
    test = Sprt(0, 80)
    for elo, wrong in ((0, lambda up: up), (80, lambda up: 1 - up)):
        odds = at(elo, **kind)
        up, pairs = ended(test, odds, 1500)
        assert wrong(up) <= .05 + .012, (elo, up)                  # two standard errors
        games = test.expected(elo, float(spread_of(1e5*odds)))['games']
        assert abs(2*pairs - games) < .3*games + 16, (2*pairs, games)       # the walk has no steps: the last one is not in it

@pytest.mark.slow
def test_the_sequential_test_at_small_differences():
    test = Sprt(0, 30)
    for draws in (.5, 6):
        odds = [at(e, draws=draws) for e in (0, 30)]
        assert ended(test, odds[0], 4000)[0] <= .057 and ended(test, odds[1], 4000)[0] >= .943
        assert abs(test.expected(15)['elo1'] - ended(test, at(15, draws=draws), 2000)[0]) < .04

def test_a_ladder_is_the_likeliest_one():
    "By an optimiser that knows only the formula"
    rng, names, true = np.random.default_rng(1), 'abcdef', np.array([-150, -80, 0, 40, 120, 300])
    met = {(names[i], names[j]): (rng.multinomial(8, pair_odds(true[i] - true[j])), rng.multinomial(3, [.3, .3, .4]))
           for i in range(6) for j in range(i) if (i + j) % 3}
    def cost(elo):
        return -sum((p @ np.arange(5)/2 + s @ [0, .5, 1])*np.log(e := score_of(elo[names.index(a)] - elo[names.index(b)]))
                    + (2*p.sum() + s.sum() - p @ np.arange(5)/2 - s @ [0, .5, 1])*np.log(1 - e) for (a, b), (p, s) in met.items())
    found = minimize(cost, np.zeros(6), method='BFGS', options={'gtol': 1e-7}).x
    for fixed, zero in ((None, found.mean()), ('c', found[2])):
        mine = {r['player']: r['elo'] for r in rank(met, fixed=fixed).rows}
        assert [mine[n] for n in names] == pytest.approx(found - zero, abs=.6)

def test_intervals_of_a_ladder_are_those_of_the_bootstrap():
    rng, names, true = np.random.default_rng(2), 'abcd', np.array([-120, 0, 60, 200])
    met = {(names[i], names[j]): rng.multinomial(60, pair_odds(true[i] - true[j], draws=0)) for i in range(4) for j in range(i)}
    mine = {r['player']: r for r in rank(met, fixed='b').rows}
    again = [{r['player']: r['elo'] for r in rank({k: rng.multinomial(60, c/60) for k, c in met.items()}, fixed='b').rows}
             for _ in range(300)]
    for name in 'acd':
        low, high = np.quantile([a[name] for a in again], [.025, .975])
        assert mine[name]['high'] - mine[name]['low'] == pytest.approx(high - low, rel=.25)
        assert mine[name]['low'] == pytest.approx(low, abs=.2*(high - low))

def test_who_cannot_be_placed_is_said_so():
    even, won = [1, 1, 2, 1, 1], [0, 0, 0, 0, 4]
    ladder = rank({('a', 'b'): even, ('top', 'a'): won, ('b', 'last'): won, ('x', 'y'): even, ('new', 'a'): [0]*5})
    rows = {r['player']: r for r in ladder.rows}
    assert rows['top']['elo'] == math.inf and math.isfinite(rows['top']['low']) and rows['top']['low'] > 0
    assert rows['last']['elo'] == -math.inf and math.isfinite(rows['last']['high'])
    for name in ('x', 'y', 'new'): assert math.isnan(rows[name]['elo']) and rows[name]['low'] == -math.inf
    said = repr(ladder)
    for words in ('top stands above the others', 'last stands below', 'x is not linked', 'new is not linked'): assert words in said
    assert rows['a']['elo'] + rows['b']['elo'] == pytest.approx(0, abs=.1)

def test_games_never_make_certain():
    "However many were won, the probability is not said to be 1 or 0"
    for pairs in ([0, 0, 0, 0, 10**n] for n in range(6)):
        for counts in (pairs, pairs[::-1]):
            said = elo_of(counts).sentence()
            assert '100%' not in said and '100.0%' not in said and ' 0.0%' not in said and ' 0%' not in said, said

def test_names_on_a_ladder_stay_text():
    html = rank({('<b>a</b>', 'b|c'): [0, 0, 0, 0, 2]})._repr_markdown_()
    assert '<b>' not in html and html.count('\n| ') == 1 + 1 or 'b&#124;c' in html

def test_thirty_players_are_ranked_in_seconds():
    import time
    rng = np.random.default_rng(0)
    met = {(str(i), str(j)): rng.multinomial(4, pair_odds(20*(i - j))) for i in range(30) for j in range(i)}
    begun = time.process_time()
    rows = rank(met).rows
    assert time.process_time() - begun < 10 and len(rows) == 30 and all(r['low'] < r['elo'] < r['high'] for r in rows)
