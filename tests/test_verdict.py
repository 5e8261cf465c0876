"""The verdict against known answers: statsmodels and SciPy, analysis of variance, and simulated studies whose truth is known"""
import json
import pickle
import time

import numpy as np
import polars as pl
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.weightstats import ttost_paired

from maou_nb.judge.verdict import Verdict, bands, better_of, detectable, estimate, game_covariance, holm, verdict

# --- Against other libraries

def test_holm_is_that_of_statsmodels():
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 5, 12):                 # few: statsmodels collects garbage each time
        p = rng.random(n)**rng.integers(1, 6)
        p[rng.random(n) < .2] = p[0]
        assert holm(p) == pytest.approx(multipletests(p, method='holm')[1])

def test_holm_leaves_out_what_is_not_known():
    assert holm([.01, np.nan, .04]) == pytest.approx([.02, np.nan, .04], nan_ok=True)
    assert holm([[.03, .01], [.2, .9]]) == pytest.approx(np.array([[.03, .02], [.4, .9]]))

def of_values(**arms):
    "Results without rows; an arm's name → its figure on each seed"
    return {(a, s): dict(figures={'x': v}, rows=None) for a, values in arms.items() for s, v in enumerate(values)}

@pytest.mark.parametrize('case', range(40))
def test_without_rows_it_is_the_paired_t_test_and_the_tost_of_statsmodels(case):
    rng = np.random.default_rng(case)
    a, b = rng.normal(0, 1, (2, rng.integers(2, 11))) + [[0], [rng.normal()]]
    margin = rng.uniform(.05, 4)
    row = verdict(of_values(a=a, b=b), margin={'x': margin}).differences.to_dicts()[0]
    assert row['difference'] == pytest.approx((b - a).mean()) and row['by'] == 'seeds'
    t, (low, high) = stats.ttest_rel(b, a), stats.ttest_rel(b, a).confidence_interval(.95)
    assert row['p'] == pytest.approx(t.pvalue) == row['p_holm']
    assert (row['low'], row['high']) == pytest.approx((low, high))
    assert row['equivalent_p'] == pytest.approx(ttost_paired(b, a, -margin, margin)[0], abs=1e-12)
    at_edge = ttost_paired(b, a, -row['smallest_margin'], row['smallest_margin'])[0]
    assert at_edge == pytest.approx(.05)

@pytest.mark.parametrize('n', [2, 3, 5, 10, 30])
@pytest.mark.parametrize('tests', [1, 4])
def test_what_can_be_seen_is_what_statsmodels_says(n, tests):
    mine = detectable(1/np.sqrt(n), n - 1, tests=tests)       # of differences with deviation 1
    assert TTestPower().power(mine, n, .05/tests) == pytest.approx(.8, abs=2e-3)
    if n < 5: return                                          # their search finds no root for 3
    assert mine == pytest.approx(TTestPower().solve_power(nobs=n, alpha=.05/tests, power=.8), rel=2e-3)

def test_of_balanced_games_the_error_is_that_of_an_analysis_of_variance():
    "(MS seeds + MS games − MS of both)/(seeds·games), as of two crossed random effects"
    rng = np.random.default_rng(0)
    n, m = 4, 30
    x = rng.normal(0, .2, (n, 1)) + rng.normal(0, .6, m) + rng.normal(0, 1, (n, m))
    seeds, games = x.mean(1), x.mean(0)
    both = x - seeds[:, None] - games + x.mean()
    ms_s, ms_g = m*seeds.var(ddof=1), n*games.var(ddof=1)
    ms_b = (both**2).sum()/((n - 1)*(m - 1))
    assert ms_g > ms_b
    made = estimate(seeds, *game_covariance(x, np.ones((1, m))))
    assert made.se**2 == pytest.approx((ms_s + ms_g - ms_b)/(n*m))
    part = ms_s/(ms_s + ms_g - ms_b)
    assert made.df == pytest.approx(1/(part/(n - 1) + (1 - part)/(m - 1)))

def test_games_of_unlike_length_are_a_ratio():
    "Against its textbook variance, and against games drawn by hand"
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 40, 80).astype(float)
    sums = counts*rng.normal(0, 1, 80) + rng.normal(0, 1, 80)*np.sqrt(counts)
    cov, worth = game_covariance(sums[None], counts[None])
    assert worth == pytest.approx(counts.sum()**2/(counts**2).sum())
    ratio = sums.sum()/counts.sum()
    textbook = ((sums - ratio*counts)**2).sum()/counts.sum()**2
    assert cov[0, 0] == pytest.approx(textbook*worth/(worth - 1))
    drawn = [sums[i].sum()/counts[i].sum() for i in rng.integers(80, size=(4000, 80))]
    assert np.var(drawn) == pytest.approx(textbook, rel=.1)
    again, _ = game_covariance(sums[None], counts[None], 4000, rng)
    assert again[0, 0] == pytest.approx(cov[0, 0], rel=.1)

# --- Simulated studies

SETTINGS = {        # deviations of seeds, of games, and of both together, for one game
    'seeds': (1, .5, 1), 'games': (.02, 2, .5), 'games alone': (0, 2, 0), 'alike': (.14, 1.5, 1),
    'both together': (.05, .5, 2), 'small games': (.3, .5, .2)}

def sizes(rng, k, games, unlike):
    "(k, games): each game's share of the rows"
    rows = rng.geometric(1/12, (k, games)) + 5. if unlike else np.ones((k, games))
    return rows/rows.sum(1, keepdims=True)

def studies(rng, k, seeds, games, parts, unlike=True):
    "(k,) estimates of a true difference of 0, and how many games they are worth on average"
    s, g, b = parts
    share = sizes(rng, k, games, unlike)[:, None]
    x = rng.normal(0, s, (k, seeds, 1)) + rng.normal(0, g, (k, 1, games)) + rng.normal(0, b, (k, seeds, games))
    cov, worth = game_covariance(share*x, share)
    return estimate((share*x).sum(2), cov, worth), worth.mean()

def truth(seeds, games, parts):
    "(standard error, degrees) of a design whose parts are known"
    s, g, b = np.square(parts)
    a, shared = (s + b/games)/seeds, g/games
    part = a/(a + shared)
    return np.sqrt(a + shared), 1/(part/(seeds - 1) + (1 - part)/(games - 1))

def measured(k, seeds, games, parts, seed=0):
    "Shares of `k` studies: false alarms, intervals that hold the truth, differences seen, equal at the margin"
    made, worth = studies(np.random.default_rng(seed), k, seeds, games, parts)
    low, high = made.interval()
    se, df = truth(seeds, worth, parts)
    by = detectable(se, df)
    moved = type(made)(made.mean + by, made.se, made.df)
    said = dict(alarms=(made.p() < .05).mean(), covered=((low <= 0) & (0 <= high)).mean(),
                seen=((moved.p() < .05) & (moved.mean > 0)).mean(), equal=(moved.p_within(by) < .05).mean())
    return {n: round(100*float(v), 2) for n, v in said.items()}, float(np.mean(made.se**2)/se**2)

@pytest.mark.parametrize('parts', SETTINGS)
@pytest.mark.parametrize('seeds', [3, 5, 10])
def test_4000_studies_of_known_truth(seeds, parts):
    "No difference: few false alarms, intervals hold it. The difference it can see: seen in 80 of 100"
    said, ratio = measured(8000 if seeds == 3 else 4000, seeds, 100, SETTINGS[parts], seed=seeds)
    assert said['alarms'] <= 6 and 93 <= said['covered'] <= 97, said
    assert 77 <= said['seen'] <= 83, said
    assert said['equal'] <= 6, said
    assert ratio == pytest.approx(1, abs=.12)

@pytest.mark.slow
@pytest.mark.parametrize('games', [40, 300])
@pytest.mark.parametrize('parts', SETTINGS)
@pytest.mark.parametrize('seeds', [3, 5, 10])
def test_20000_studies_of_known_truth(seeds, parts, games):
    said = [measured(4000, seeds, games, SETTINGS[parts], seed=i)[0] for i in range(5)]
    said = {n: np.mean([s[n] for s in said]) for n in said[0]}
    assert said['alarms'] <= 6 and 93 <= said['covered'] <= 97, said
    assert 76.5 <= said['seen'] <= 83 and said['equal'] <= 6, said

def of_arms(rng, k, arms, seeds, games, parts):
    "(k, arms - 1): p of each arm against the first, whose runs are shared by all; none differs"
    s, g, b = np.array(parts)/np.sqrt(2)
    x = (rng.normal(0, 1, (k, 1, seeds, 1)) + rng.normal(0, 1, (k, 1, 1, games)) + rng.normal(0, s, (k, arms, seeds, 1))
         + rng.normal(0, g, (k, arms, 1, games)) + rng.normal(0, b, (k, arms, seeds, games)))
    share = sizes(rng, k, games, True)[:, None, None]
    off = (x[:, 1:] - x[:, :1])*share
    cov, worth = game_covariance(off, np.broadcast_to(share, (k, arms - 1, 1, games)))
    return estimate(off.sum(3), cov, worth).p()

@pytest.mark.parametrize('parts', ['seeds', 'alike', 'games'])
@pytest.mark.parametrize('arms', [3, 6])
def test_among_several_arms_holm_keeps_false_alarms_few(arms, parts):
    p = of_arms(np.random.default_rng(arms), 4000, arms, 5, 60, SETTINGS[parts])
    assert (p < .05).mean() <= .06
    assert (p < .05).any(1).mean() > (holm(p) < .05).any(1).mean()
    assert (holm(p) < .05).any(1).mean() <= .06

def study(rng, seeds=4, games=60, by=0., seed_noise=.03, arms=('old', 'new'), pairs=True):
    "Results with rows: hits of positions in games of unlike length, some easy for all and some for one arm"
    rows = rng.geometric(1/10, games) + 2
    game = np.repeat(np.arange(games), rows)
    easy = rng.normal(-.8, 1, games)[game] + rng.normal(0, 1, len(game))
    suits = {a: rng.normal(0, .3, games)[game] for a in arms}
    made = {}
    for s in range(seeds):
        for i, a in enumerate(arms):
            odds = easy + suits[a] + (by if i else 0) + rng.normal(0, seed_noise)
            hit = (rng.random(len(game)) < 1/(1 + np.exp(-odds))).astype(np.float32)
            table = pl.DataFrame({'id': np.arange(len(game)), 'game': game, '3/top1': hit})
            made[a, s] = dict(figures={'3/top1': float(hit.mean())}, rows=table)
    return made

@pytest.mark.parametrize('k', [400, pytest.param(4000, marks=pytest.mark.slow)])
def test_of_hits_and_misses_too_there_are_few_false_alarms(k):
    "Whole studies with rows, through the front door"
    rng = np.random.default_rng(3)
    rows = [verdict(study(rng), draws=0).differences.row(0, named=True) for _ in range(k)]
    held = np.mean([r['low'] <= 0 <= r['high'] for r in rows])
    assert abs(held - .95) < .02 + 2*np.sqrt(.05*.95/k)
    assert np.mean([r['p'] < .05 for r in rows]) <= .06 + 2*np.sqrt(.05*.95/k)*(k < 4000)

# --- The whole of it

def by_hand(results, figure, arm, base):
    "(difference, standard error) of a study, by loops and games drawn one by one"
    seeds = sorted(s for a, s in results if a == arm and (base, s) in results)
    tables = [(results[arm, s]['rows'], results[base, s]['rows']) for s in seeds]
    game = tables[0][0]['game'].to_numpy()
    each = np.array([(a[figure] - b[figure]).to_numpy() for a, b in tables])
    where = [np.flatnonzero(game == g) for g in np.unique(game)]
    rng, drawn = np.random.default_rng(5), []
    for _ in range(1500):
        at = np.concatenate([where[i] for i in rng.integers(len(where), size=len(where))])
        drawn.append(each[:, at].mean(1))
    cov, n = np.cov(drawn, rowvar=False), len(seeds)
    shared = (cov.sum() - np.trace(cov))/(n*(n - 1))
    return each.mean(), np.sqrt(each.mean(1).var(ddof=1)/n + max(shared, 0))

def test_the_error_is_that_of_games_drawn_by_hand():
    results = study(np.random.default_rng(7), by=.2)
    for draws in (0, 2000):
        row = verdict(results, draws=draws).differences.row(0, named=True)
        d, se = by_hand(results, '3/top1', 'new', 'old')
        assert row['difference'] == pytest.approx(d, abs=1e-6)
        assert row['se'] == pytest.approx(se, rel=.06) and row['by'] == 'seeds and games'

def test_the_same_draws_give_the_same_verdict_and_their_limit_is_written_out():
    results = study(np.random.default_rng(8))
    one, again, other, limit = (verdict(results, draws=d, seed=s) for d, s in ((500, 0), (500, 0), (500, 1), (0, 0)))
    assert one.differences.equals(again.differences) and not one.differences.equals(other.differences)
    assert one.differences['se'][0] == pytest.approx(limit.differences['se'][0], rel=.12)

def test_rows_of_no_game_are_paired_whatever_their_order():
    "Each by its id, else an order would hide what the pairs show"
    rng, n = np.random.default_rng(1), 400
    shared, found = rng.normal(0, 1, n), {}
    for arm, off in (('a', 0.), ('b', .03)):
        for seed in range(3):
            rows = pl.DataFrame({'id': np.arange(n, dtype=np.uint64), 'x': shared + off + rng.normal(0, .05, n)})
            found[arm, seed] = {'figures': {'x': rows['x'].mean()}, 'rows': rows}
    mixed = {k: r | {'rows': r['rows'].sample(fraction=1., shuffle=True, seed=i)} for i, (k, r) in enumerate(found.items())}
    one, other = (verdict(r, better={'x': 'higher'}).differences for r in (found, mixed))
    assert one['p'].item() < 0.05 and other['p'].item() == pytest.approx(one['p'].item())

def test_rows_may_come_in_another_order_and_games_may_be_names():
    results = study(np.random.default_rng(9))
    named = {}
    for k, r in results.items():
        rows = r['rows'].with_columns(pl.format('game {}', 'game').alias('game'))
        named[k] = r | dict(rows=rows.sample(fraction=1., shuffle=True, seed=k[1]))
    a, b = verdict(results, draws=0).differences, verdict(named, draws=0).differences
    assert a['se'][0] == pytest.approx(b['se'][0]) and a['verdict'][0] == b['verdict'][0]

def test_alike_positions_of_a_game_make_the_interval_wider():
    results = study(np.random.default_rng(10), seeds=5)
    alone = {k: r | dict(rows=r['rows'].drop('game')) for k, r in results.items()}
    wide, narrow = verdict(results, draws=0), verdict(alone, draws=0)
    assert wide.differences['se'][0] > narrow.differences['se'][0]
    assert 'each taken for a game of its own' in narrow.words()
    unknown = {k: r | dict(rows=r['rows'].with_columns(game=pl.lit(None, pl.Int64))) for k, r in results.items()}
    assert verdict(unknown, draws=0).differences['se'][0] == pytest.approx(narrow.differences['se'][0])

def test_rows_that_know_no_figure_are_left_out_of_its_mean():
    results = study(np.random.default_rng(11))
    gone = np.random.default_rng(0).random(len(results['old', 0]['rows'])) < .3
    for r in results.values():
        r['rows'] = r['rows'].with_columns(pl.when(pl.lit(pl.Series(gone))).then(None).otherwise(pl.col('3/top1')).alias('3/top1'))
        r['figures'] = {'3/top1': r['rows']['3/top1'].mean()}
    kept = {k: r | dict(rows=r['rows'].filter(~gone)) for k, r in results.items()}
    a, b = verdict(results, draws=0).differences, verdict(kept, draws=0).differences
    assert a['se'][0] == pytest.approx(b['se'][0]) and a['by'][0] == 'seeds and games'

def test_seeds_that_one_arm_lacks():
    results = study(np.random.default_rng(12), seeds=5)
    del results['new', 1], results['old', 4]
    v = verdict(results)
    assert v.differences['seeds'][0] == 3 and v.arms['seeds'].to_list() == [4, 4]
    assert 'new and old are compared on the seeds that both have.' in v.words()
    d = np.mean([results['new', s]['figures']['3/top1'] - results['old', s]['figures']['3/top1'] for s in (0, 2, 3)])
    assert v.differences['difference'][0] == pytest.approx(d)

def test_one_seed_and_none():
    results = study(np.random.default_rng(13), seeds=1)
    v = verdict(results)
    row = v.differences.row(0, named=True)
    assert row['by'] == 'games' and row['low'] < row['difference'] < row['high']
    assert row['p'] is None and row['verdict'] == 'one seed' and 'tells nothing of other seeds' in v.words()
    bare = verdict(of_values(a=[1.], b=[2.]))
    assert bare.differences.row(0, named=True)['low'] is None and 'tells nothing of other seeds' in bare.words()
    apart = verdict({('a', 0): dict(figures={'x': 1}), ('b', 1): dict(figures={'x': 2})})
    assert apart.differences['verdict'][0] == 'no seed' and 'no seed in common' in apart.words()
    for made in (v, bare, apart): assert made.forest() and made._repr_html_() and repr(made)
    alone = verdict(of_values(a=[1., 2.]))
    assert 'nothing is compared' in alone.words() and len(alone.differences) == 0 and alone._repr_html_()

def test_runs_that_score_the_same():
    results = study(np.random.default_rng(14))
    for s in range(4): results['new', s] = results['old', s]
    v = verdict(results, margin={'3/top1': .01})
    row = v.differences.row(0, named=True)
    assert row['p'] == 1 and row['verdict'] == 'equal' and row['difference'] == 0
    assert 'score the same on every seed' in verdict(results).words()
    shifted = verdict(of_values(a=[.1, .2, .4], b=[.2, .3, .5]))
    assert shifted.differences['p'][0] is None and 'which no test can judge' in shifted.words()

def test_figures_that_are_no_number_and_rows_that_are_not_theirs():
    results = study(np.random.default_rng(15))
    results['new', 2]['figures'] = {'3/top1': float('nan')}
    v = verdict(results)
    assert v.differences['seeds'][0] == 3 and '3/top1 is not known, or no finite number, of new, seed 2: left out.' in v.words()
    results = study(np.random.default_rng(16))
    results['old', 1]['figures'] = {'3/top1': .99}
    v = verdict(results)
    assert v.differences['by'][0] == 'seeds' and 'is not the mean of its rows in old, seed 1' in v.words()
    results = study(np.random.default_rng(17))
    results['old', 1]['rows'] = None
    v = verdict(results)
    assert v.differences['by'][0] == 'seeds' and 'old, seed 1, kept no results of rows' in v.words()

ODD = {
    'no dict': (lambda r: ([],), 'a dict of (arm, seed)'),
    'an odd key': (lambda r: ({'new': r['new', 0]},), 'keys (arm, seed)'),
    'a seed that is a yes': (lambda r: ({('new', True): r['new', 0]},), 'keys (arm, seed)'),
    'no figures': (lambda r: ({('new', 0): {'rows': None}},), "a dict with 'figures'"),
    'empty figures': (lambda r: ({('new', 0): {'figures': {}}},), 'at least one figure'),
    'a word': (lambda r: ({('new', 0): {'figures': {'x': 'good'}}},), 'a number was expected'),
    'rows of another kind': (lambda r: ({('new', 0): {'figures': {'x': 1}, 'rows': [1]}},), 'a table of polars'),
    'no rows': (lambda r: ({k: x | {'rows': x['rows'][:0]} for k, x in r.items()},), 'at least one row'),
    'fewer rows': (lambda r: (r | {('new', 2): r['new', 2] | {'rows': r['new', 2]['rows'][:-1]}},), 'new, seed 2, was judged on other'),
    'other games': (lambda r: (r | {('new', 1): r['new', 1] | {'rows': r['new', 1]['rows'].with_columns(game=pl.col('game') + 1)}},),
                    'new, seed 1, was judged on other'),
    'other ids': (lambda r: (r | {('new', 1): r['new', 1] | {'rows': r['new', 1]['rows'].with_columns(id=pl.col('id') + 1)}},),
                  'new, seed 1, was judged on other'),
    'games of one': (lambda r: (r | {('new', 1): r['new', 1] | {'rows': r['new', 1]['rows'].drop('game')}},), 'new, seed 1, was judged'),
    'words in a column': (lambda r: ({k: x | {'rows': x['rows'].with_columns(pl.lit('x').alias('3/top1'))} for k, x in r.items()},),
                          'a column of numbers'),
    'an unknown arm': (lambda r: (r, 'older'), 'one of old, new was expected'),
    'an unknown margin': (lambda r: (r, None, {'f1': 1}), 'one of 3/top1 was expected'),
    'a margin of 0': (lambda r: (r, None, {'3/top1': 0}), 'a finite number above 0'),
    'a level of 95': (lambda r: (r, None, None, 95), 'below 1'),
    'draws below 0': (lambda r: (r, None, None, .95, -1), 'a whole number'),
    'an odd seed': (lambda r: (r, None, None, .95, 10, 'x'), 'a whole number'),
    'an odd way': (lambda r: (r, None, None, .95, 10, 0, {'3/top1': 'up'}), 'one of higher, lower'),
}

@pytest.mark.parametrize('what', ODD)
def test_odd_arguments_are_a_sentence(what):
    args, sentence = ODD[what]
    with pytest.raises(ValueError) as e: verdict(*args(study(np.random.default_rng(0))))
    assert sentence in str(e.value) and '\n' not in str(e.value)

def test_which_way_is_better():
    assert [better_of(n) for n in ('3/policy_loss', '3/brier', '3/value_error', '3/top1', '1/accuracy', '3/own', 'own')] == \
        ['lower', 'lower', 'lower', 'higher', 'higher', None, None]
    results = of_values(a=[1, 1.1, .9, 1.05], b=[2, 2.1, 1.95, 2])
    said = [verdict(results, better=b).differences['verdict'][0] for b in (None, {'x': 'higher'}, {'x': 'lower'})]
    assert said == ['higher', 'better', 'worse']
    assert 'b is better than a by 1.000' in verdict(results, better={'x': 'higher'}).words()
    assert verdict(results, 'b', better={'x': 'higher'}).differences['verdict'][0] == 'worse'

def test_a_small_sure_difference_is_also_within_the_margin():
    v = verdict(of_values(a=[1, 1.1, .9, 1.05], b=[1.011, 1.11, .911, 1.06]), margin={'x': .1})
    assert v.differences['verdict'][0] == 'higher' and 'surely less than the margin of 0.1' in v.words()

def test_a_verdict_is_kept_and_read_again():
    v = verdict(study(np.random.default_rng(18), arms=('old', 'new', '<b>$x$'), by=.4), margin={'3/top1': .02})
    for other in (Verdict.from_json(v.to_json()), pickle.loads(pickle.dumps(v))):
        assert other.arms.equals(v.arms) and other.differences.equals(v.differences) and other.words() == v.words()
    assert json.loads(v.to_json())['baseline'] == 'old'
    assert '<b>$x$' not in v._repr_html_() and '&lt;b&gt;$x$' in v._repr_html_()
    assert len(v.forest().axes) == 1

def test_100_000_rows_of_25_runs_take_seconds():
    rng, game = np.random.default_rng(0), np.repeat(np.arange(1000), 100)
    table = lambda: pl.DataFrame({'game': game} | {c: rng.random(len(game)) for c in 'abcd'})
    results = {(f'arm {a}', s): dict(rows=(t := table()), figures={c: t[c].mean() for c in 'abcd'}) for a in range(5) for s in range(5)}
    began = time.perf_counter()
    assert len(verdict(results).differences) == 16
    assert time.perf_counter() - began < 8

def test_bands_go_as_far_as_all_seeds():
    long, short = ([{'step': s, 'x': s*k} for s in range(0, n, 10)] for k, n in ((1., 101), (3., 61)))
    fig = bands({('a', 0): long, ('a', 1): pl.DataFrame(short), ('b', 0): long}, 'x')
    line = fig.axes[0].lines[0]
    assert line.get_xdata()[-1] == 60 and line.get_ydata() == pytest.approx(2*line.get_xdata())
    assert fig.axes[0].lines[1].get_xdata()[-1] == 100 and len(fig.axes[0].collections) == 1
    with pytest.raises(ValueError, match='that all know steps'): bands({('a', 0): long, ('b', 0): [{'epoch': 1, 'x': 2.}]}, 'x')
    with pytest.raises(ValueError, match="a, seed 0, has no 'y'"): bands({('a', 0): long}, 'y')

def test_a_shift_that_never_varies_proves_no_equality():
    v = verdict(of_values(a=[.3, .5], b=[.4, .6]), margin={'x': .2})
    row = v.differences.row(0, named=True)
    assert row['verdict'] == 'not shown' and row['equivalent_p'] is None
    assert 'which no test can judge' in v.words() and 'equals' not in v.words()
    same = verdict(of_values(a=[.3, .5], b=[.3, .5]), margin={'x': .2}).words()
    assert 'score the same on every seed' in same and 'p <' not in same

def test_of_one_game_nothing_is_said_of_others():
    results = study(np.random.default_rng(19), games=1)
    assert 'Of one game nobody knows what another would say' in verdict(results).words()
    assert verdict(results).differences['by'][0] == 'seeds'
    assert 'Of one game' not in verdict(study(np.random.default_rng(19), games=2)).words()

def test_games_that_are_no_number_are_games_of_their_own():
    results = study(np.random.default_rng(20), games=5)
    for r in results.values(): r['rows'] = r['rows'].with_columns(game=pl.lit(float('nan')))
    assert verdict(results, draws=0).games == len(results['old', 0]['rows'])

def test_levels_are_written_as_they_are():
    words = verdict(of_values(a=[1, 2, 3], b=[2, 1, 3.5]), level=.995)
    assert 'each with 99.5%' in words.words() and '99.5% interval' in repr(words)

@pytest.mark.parametrize('call, sentence', [
    (lambda: verdict({('a\n', 0): {'figures': {'x': 1}}}), 'keys (arm, seed)'),
    (lambda: verdict({('a', 0): {'figures': {1: 2}}}), 'a name such as 3/top1'),
    (lambda: verdict(of_values(a=[10**400], b=[1])), 'a number was expected'),
    (lambda: verdict(of_values(a=[1e308], b=[1])), 'a number below 1e100'),
    (lambda: verdict(of_values(a=[1, 2], b=[2, 3]), level=.99999999), 'a share from 0.5'),
    (lambda: bands({'a': [{'step': 1, 'x': 1}]}, 'x'), 'keys (arm, seed)'),
    (lambda: bands({('a', 0): [{'step': 1, 'x': 'y'}]}, 'x'), 'a number was expected'),
    (lambda: bands({('a', 0): [3]}, 'x'), 'a list of dicts'), (lambda: bands({('a', 0): None}, 'x'), 'a list of dicts'),
    (lambda: bands({('a', s): [{'step': s + n, 'x': 1} for n in (0, .5)] for s in (0, 1)}, 'x'), 'no stretch of steps in common'),
    *((lambda text=text: Verdict.from_json(text), 'is no verdict') for text in ('{}', '[1', 5))])
def test_more_odd_arguments_are_a_sentence(call, sentence):
    with pytest.raises(ValueError) as e: call()
    assert sentence in str(e.value) and '\n' not in str(e.value)
