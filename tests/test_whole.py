"Rows are called held-out games where whole games are known, and nothing of that kind elsewhere; what a format knows of the ply is carried"
import contextlib, gzip, io, json, random, re, shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.ipc as ipc
import pytest

from maou_nb import evaluate, learn_multi_stage, load_run, preflight
from maou_nb.data.columns import NO_PLY
from maou_nb.data.games import usi_of
from maou_nb.data.packed import HCPE, PSV, write_hcpe, write_hcpe3, write_psv
from maou_nb.data.records import Filters, read_games
from maou_nb.data.shards import doubt_of_games, find_shards, read_manifest, read_shard
from maou_nb.data.sources import StreamingFileSource
from maou_nb.data.splits import split_sources
from maou_nb.judge.ask import load_net
from maou_nb.judge.evaluate import rows_to_judge
from maou_nb.judge.inspect import audit, shard_info
from maou_nb.judge.review import review
from maou_nb.judge.watch import LivePlot
from maou_nb.front.runs import Monitor
from maou_nb.stages.rows import prepare_stage2, prepare_stage3
from samples import GAMES, ONE_FILE

CLAIMS = re.compile(r"held-out games|by game|no game is on both|of whole games|each of whole", re.I)
DOUBTED = 'validation rows, whose games may have been trained on'
DOUBT = 'neighbours of a held-out position may lie on both sides'

@pytest.fixture(scope='module')
def games(): return list(read_games(ONE_FILE))

@pytest.fixture(scope='module')
def loose(games, tmp_path_factory):
    "Shuffled HCPE, PSV and a shuffled HCPE table of fifty games, and shards of the HCPE"
    out, dice = tmp_path_factory.mktemp('loose'), np.random.default_rng(0)
    (out/'records').mkdir()
    for write, dtype, name in ((write_hcpe, HCPE, 'a.hcpe'), (write_psv, PSV, 'a.psv')):
        write(games, out/'in_order')
        dice.permutation(np.fromfile(out/'in_order', dtype)).tofile(out/'records'/name)
    return SimpleNamespace(path=out, hcpe=out/'records'/'a.hcpe', psv=out/'records'/'a.psv',
                           stage2=prepare_stage2(out/'records'/'a.hcpe', out/'stage2'),
                           stage3=prepare_stage3(out/'records'/'a.hcpe', out/'stage3'))

def rows(folder, stage=3): return pl.concat([pl.from_arrow(read_shard(s)) for s in find_shards(folder, stage)])

# --- every door

TINY = dict(gpu='cpu', model_size='tiny', resnet_channels=8, resnet_blocks=1, epoch=1, batch_size=512)

@pytest.fixture(scope='module', params=['whole', 'loose'])
def run(request, shards, loose, tmp_path_factory):
    "A run of stages 2 and 3 on whole games or on loose positions: what was said, its result, its shards"
    out = tmp_path_factory.mktemp('run')
    paths = shards if request.param == 'whole' else {f'stage{n}_data_path': str(loose.path/f'stage{n}') for n in (2, 3)}
    options = dict(stage='2,3', stage2_data_path=paths['stage2_data_path'], stage3_data_path=paths['stage3_data_path'],
                   stage2_test_ratio=0.2, stage2_threshold=0, run_dir=out/'run', **TINY)
    printed = io.StringIO()
    checked = preflight(**{**options, 'run_dir': out/'none'})
    with contextlib.redirect_stdout(printed): result = learn_multi_stage(**options)
    return SimpleNamespace(whole=request.param == 'whole', options=options, result=result, printed=printed.getvalue(),
                           checked=checked, dir=out/'run', data=paths['stage3_data_path'])

def speaks(run, text):
    "Whether `text` claims games of whole ones, and doubts those of loose positions"
    assert bool(CLAIMS.search(text)) == run.whole, text
    assert (DOUBT in text) != run.whole, text

def test_result_and_remarks(run):
    for n in (2, 3):
        speaks(run, run.result[n].split)
        assert run.result[n].judged_on == ('held-out games' if run.whole else DOUBTED)
        assert bool(CLAIMS.search(run.result[n].sentence())) == run.whole
    speaks(run, run.printed)
    assert run.printed.count(DOUBT) == (0 if run.whole else 2)
    said = json.loads((run.dir/'run.json').read_text())['data']
    for n in '23': speaks(run, said[n]['split'])

def test_the_table_of_a_result(run):
    text = run.result._repr_html_()
    assert ('held-out games' in text) == run.whole and (DOUBTED in text) != run.whole and 'held-out rows' not in text
    assert bool(CLAIMS.search(repr(load_run(run.dir)) + load_run(run.dir)._repr_html_())) == run.whole

def test_curves(run, monkeypatch):
    "Of a result, while a run trains, and of a run that is watched"
    import maou_nb.front.learn as learn
    drawn, chart = [], learn.stage_chart
    monkeypatch.setattr(learn, 'stage_chart', lambda *a, **kw: drawn.append(chart(*a, **kw)) or drawn[-1])
    run.result._repr_html_()
    name = 'held-out games' if run.whole else DOUBTED
    assert len(drawn) == 2 and all(c.panels[0][1].title == name for c in drawn)
    assert all(name in c.panels[0][0].title for c in drawn)
    asked = []
    screen = SimpleNamespace(draw=lambda *a, held='held-out rows', **kw: asked.append(held))
    LivePlot(screen).draw(SimpleNamespace(stage=SimpleNamespace(id=3), history=[], steps=[], split=run.result[3].split,
                                          settings=SimpleNamespace(threshold=None, epochs=1)))
    monitor = Monitor(run.dir); monitor.screen = screen
    monitor._chart(3, [], [], True)
    assert asked == [name]*2

def test_preflight(run):
    lines = {(n, what): (found, mark) for n, what, found, mark in run.checked.lines}
    for n in (2, 3):
        speaks(run, lines[n, 'rows'][0]); speaks(run, lines[n, 'split'][0])
        assert lines[n, 'split'][1] == ('good' if run.whole else 'look')
        assert ((n, 'games') in lines) == run.whole and ((n, 'games, or pieces of them') in lines) != run.whole

def test_audit_and_shard_info(run):
    train, valid, how = split_sources(StreamingFileSource, run.data, 3, 0.2)
    found = audit(train, valid)
    speaks(run, how); speaks(run, found.verdict); speaks(run, repr(found))
    assert found.leaks is (False if run.whole else None) and found.shared > 0
    speaks(run, shard_info(run.data).facts()['folds'])
    assert bool(CLAIMS.search(audit(train).verdict)) is False and (DOUBT in audit(train).verdict) != run.whole

def test_evaluate_and_review(run, shards, loose):
    said = evaluate(run.dir, device='cpu')
    assert said.rows == run.result[3].rows['valid'] and (DOUBT in repr(said)) != run.whole
    assert said.known == 'held out' if run.whole else said.known.startswith('split by fold, which are not games')
    if not run.whole: assert 'whether it was trained on their games is not known: all of the positions' in said.known
    assert said.metrics['policy_loss'] == pytest.approx(run.result[3].metrics['policy_loss'], abs=1e-4)
    assert not CLAIMS.search(repr(review(run.dir)))
    # what it was trained on decides as well as what it is judged on
    net = load_net(run.dir)
    for path in (shards['stage3_data_path'], loose.path/'stage3'):
        both = run.whole and path == shards['stage3_data_path']
        assert (DOUBT in rows_to_judge(net, path, folds='held out')[1]) != both

def test_what_prepare_says(shards, loose, tmp_path):
    for made in (loose.stage2, loose.stage3):
        for text in (repr(made), made._repr_html_()): assert DOUBT in text and not CLAIMS.search(text)
        assert made.pieces == made.games == made.found.pieces and 'pieces of games' in repr(made)
        manifest = read_manifest(made.folder)
        assert manifest['games'] == {'whole': 0, 'pieces': made.games} and manifest['pieces'] == 1.
    made = prepare_stage3([ONE_FILE, loose.hcpe], tmp_path/'both')
    whole, pieces = read_manifest(tmp_path/'both')['games'].values()
    assert (whole, pieces) == (50, made.pieces) and made.found.pieces == pieces and DOUBT in repr(made)
    games = pl.read_parquet(tmp_path/'both'/'games.parquet').group_by('whole').agg(pl.col('plies').sum())
    plies = dict(games.iter_rows())
    share = plies[False]/sum(plies.values())
    assert read_manifest(tmp_path/'both')['pieces'] == pytest.approx(share) and 0.4 < share < 0.6
    assert '50.0% of the positions came from pieces' in doubt_of_games(find_shards(tmp_path/'both', 3))
    known = prepare_stage3(ONE_FILE, tmp_path/'whole')
    assert known.pieces == 0 and DOUBT not in repr(known) and read_manifest(tmp_path/'whole')['pieces'] == 0

@pytest.mark.parametrize('kind', ['hcpe', 'psv', 'hcpe3', 'csa'])
def test_only_formats_that_keep_games_know_them(games, tmp_path, kind):
    "HCPE and PSV in order are pieces put together, and nobody knows whether they are whole"
    if kind == 'csa': shutil.copy(ONE_FILE, tmp_path/'a.csa')
    else: {'hcpe': write_hcpe, 'psv': write_psv, 'hcpe3': write_hcpe3}[kind](games, tmp_path/f'a.{kind}')
    made = prepare_stage3(tmp_path/f'a.{kind}', tmp_path/'out')
    *_, how = split_sources(StreamingFileSource, tmp_path/'out', 3, .2)
    assert made.games == 50 and bool(CLAIMS.search(how)) == (kind in ('csa', 'hcpe3'))

# --- older sets

def without(folder, *names):
    "Take entries out of a manifest, as older ones lack them"
    manifest = json.loads((folder/'manifest.json').read_text())
    (folder/'manifest.json').write_text(json.dumps({k: v for k, v in manifest.items() if k not in names}))

@pytest.mark.parametrize('kind', ['whole', 'loose'])
def test_older_sets(kind, shards, loose, tmp_path):
    "The games table beside them tells; without it nothing is claimed and nothing is made up"
    old = tmp_path/'old'
    shutil.copytree(shards['stage3_data_path'] if kind == 'whole' else loose.path/'stage3', old)
    without(old, 'pieces', 'games')
    how = lambda: split_sources(StreamingFileSource, old, 3, 0.2)[2]
    assert how().startswith('by game') == (kind == 'whole') and (DOUBT in how()) == (kind == 'loose')
    table = pl.read_parquet(old/'games.parquet')
    for spoil in (lambda: table.drop('whole').write_parquet(old/'games.parquet'), lambda: (old/'games.parquet').write_bytes(b'PAR1 no'),
                  lambda: (old/'games.parquet').unlink()):
        spoil()
        assert not CLAIMS.search(how().replace('no manifest tells whether they came from whole games', '')) and DOUBT not in how()
        assert 'no manifest tells' in how()
    (old/'manifest.json').unlink()
    assert 'no manifest tells' in how()

def test_sets_together(shards, loose):
    "One loose set is enough to take the claim from a choice of folds"
    *_, how = split_sources(StreamingFileSource, [shards['stage3_data_path'], loose.path/'stage3'], 3, .2)
    assert not CLAIMS.search(how) and DOUBT in how and '% of the positions' in how

# --- plies

def of_positions(games): return Counter((ply, usi_of(m)) for g in games for ply, m in enumerate(g.moves.tolist()))

def test_shuffled_psv_knows_its_plies(games, loose, tmp_path):
    found = list(read_games(loose.psv))
    assert Counter((g.ply + i, usi_of(m)) for g in found for i, m in enumerate(g.moves.tolist())) == of_positions(games)
    prepare_stage3(loose.psv, tmp_path/'3')
    theirs, ours = rows(tmp_path/'3'), Counter(ply for ply, _ in of_positions(games).elements())
    assert theirs['ply'].n_unique() > 100 and Counter(theirs.filter(pl.col('count') == 1)['ply'].to_list()) <= ours
    table = pl.read_parquet(tmp_path/'3'/'games.parquet')
    joined = theirs.filter(pl.col('count') == 1).join(table.filter(pl.col('plies') == 1).unique('game', keep='none'), on='game')
    assert len(joined) > 1000 and (joined['ply'] == joined['ply_right']).all()

def test_tables_by_ply(run, games, loose, tmp_path):
    "PSV has a row a range of plies, as whole games have; HCPE knows none, and says so"
    prepare_stage3(loose.psv, tmp_path/'psv')
    by = evaluate(run.dir, tmp_path/'psv', device='cpu').by_ply
    assert by.height > 4 and by['rows'].sum() == sum(s.rows for s in find_shards(tmp_path/'psv', 3))
    plain = evaluate(run.dir, loose.path/'stage3', device='cpu')
    assert plain.by_ply is None or plain.by_ply['rows'].sum() < 60          # the usual start alone knows its ply
    assert plain.calibration['rows'].sum() == plain.rows

def test_filters_do_not_judge_pieces_by_their_length(games, loose, tmp_path):
    total = sum(map(len, games))
    for n, (path, known) in enumerate(((loose.psv, True), (loose.hcpe, False))):
        made = prepare_stage3(path, tmp_path/f'min{n}', filters=Filters(min_plies=30))
        assert made.positions == total and made.filters.removed[0][:2] == ('fewer than 30 plies', 0)
        assert 'not judged by min_plies: how long the game was is not known' in repr(made)
        long = prepare_stage3(path, tmp_path/f'max{n}', filters=Filters(max_plies=60))
        beyond = sum(max(0, len(g) - 60) for g in games)
        # a position at ply 61 is of a game that is too long; before, nobody knows
        assert long.positions == (total - beyond if known else total) and 'not judged by max_plies' in repr(long)
        late = prepare_stage3(path, tmp_path/f'skip{n}', filters=Filters(skip_plies=20))
        if known: assert late.positions == sum(max(0, len(g) - 20) for g in games)
        assert late.positions == sum(g.ply is None or g.ply + i >= 20 for g in read_games(path) for i in range(len(g))) > total//2
        assert ('not judged by skip_plies' in repr(late)) == (not known)
    whole = prepare_stage3(ONE_FILE, tmp_path/'whole', filters=Filters(min_plies=100, max_plies=120))
    assert whole.games == sum(100 <= len(g) <= 120 for g in games) and 'not judged' not in repr(whole)

def test_psv_ends_and_jumps(games, tmp_path):
    "Ply 0 is none; a file cut into stretches knows where each begins"
    write_psv(games[:1], tmp_path/'a.psv')
    records = np.fromfile(tmp_path/'a.psv', PSV)
    records[[*range(40, 60), *range(10, 20), *range(70, 75)]].tofile(tmp_path/'cut.psv')
    assert [(g.ply, len(g)) for g in read_games(tmp_path/'cut.psv')] == [(40, 20), (10, 10), (70, 5)]
    records['gamePly'] = 0
    records[50:55].tofile(tmp_path/'none.psv')
    assert {g.ply for g in read_games(tmp_path/'none.psv')} == {None}
    made = prepare_stage3(tmp_path/'none.psv', tmp_path/'out')
    assert rows(tmp_path/'out')['ply'].to_list() == [NO_PLY]*made.rows

@pytest.mark.parametrize('moves', [True, False])
def test_hcpe_tables_know_plies_by_their_ids(games, tmp_path, moves):
    write_hcpe(games[:5], tmp_path/'a.hcpe')
    records = np.fromfile(tmp_path/'a.hcpe', HCPE)
    at = [(i, ply, len(g)) for i, g in enumerate(games[:5]) for ply in range(len(g))]
    made = [{'hcp': r['hcp'].tobytes(), 'eval': int(r['eval']), 'bestMove16': int(r['bestMove16'].astype(np.int16)),
             'gameResult': int(r['gameResult']), 'id': f'x.hcpe_g{i}_{ply}', **({'moves': n} if moves else {})}
            for r, (i, ply, n) in zip(records, at)]
    random.Random(0).shuffle(made)
    table = pa.Table.from_pylist(made)
    with ipc.new_file(str(tmp_path/'a.feather'), table.schema) as w: w.write_table(table, max_chunksize=100)
    found = list(read_games(tmp_path/'a.feather'))
    assert Counter(g.ply + i for g in found for i in range(len(g))) == Counter(ply for _, ply, _ in at)

def test_sfens_carry_their_ply(tmp_path):
    board = 'lnsgk1snl/1r4gb1/p1pppp1pp/1p4p2/9/2P4P1/PP1PPPP1P/1B4GR1/LNSGK1SNL b - 9'
    (tmp_path/'a.sfen').write_text(f'{board}\nsfen {board} moves 7f7e 8d8e\n{board[:-2]} moves 7f7e\nstartpos moves 7g7f\n')
    assert [g.ply for g in read_games(tmp_path/'a.sfen')] == [8, 8, 0, 0]
    prepare_stage2(tmp_path, tmp_path/'2')
    # a copy of the second game, the lone position within it; one that begins at ply 8 is a piece of a game
    folds = {(g.key, g.ply) for g in read_games(tmp_path)}
    assert max(rows(tmp_path/'2', 2)['ply']) == 9 and len(folds) == 4

# --- what prepare found

def check(made):
    "Everything that is counted adds up"
    read, remaining = made.filters.games, made.filters.left[0]
    assert sum(made.found.ends.values()) == sum(made.found.results.values()) == read
    assert sum(g for _, g, _ in made.filters.removed) == read - remaining == read - made.games
    assert made.found.pieces <= read and made.pieces <= made.games
    lines = made.lines()
    of = lambda what: [l for l in lines if l[0] == what]
    assert sum(l[2] for l in of('ended by')) == sum(l[2] for l in of('result')) == read
    assert sum(l[2] for l in of('left out')) == read - remaining
    assert sum(l[3] for l in of('left out')) == made.filters.positions - made.filters.left[1]
    assert sum(l[2] for l in of('files')) == sum(made.found.files.values())
    assert ('records', 'that could not be read', len(made.skipped), None) in lines
    for what, kind, n, p in lines:
        for text in (repr(made), made._repr_html_()): assert f'{n:,}' in text
    assert len(lines) < 50 and repr(made).count('\n') == len(lines) + 1

@pytest.mark.parametrize('seed', range(4))
def test_counts_add_up(seed, games, tmp_path):
    "In folders of everything: copies in other formats, files that are damaged, in archives, of other endings"
    rng, files = random.Random(seed), sorted(GAMES.glob('*.csa'))
    folder = tmp_path/'in'; folder.mkdir()
    text = rng.choice(files).read_text()
    expected = Counter()
    def put(name, data, format): (folder/name).write_bytes(data); expected[format] += 1
    put('a.csa', text.encode(), 'csa')
    if rng.random() < .7: put('a.csa.gz', gzip.compress('/\n'.join(text.split('/\n')[:9]).encode()), 'csa')
    if rng.random() < .7: put('lone.kif', text.split('/\n')[0].encode(), 'csa')
    if rng.random() < .7: put('bad.csa', text.replace('+', '*', 40).encode(), 'csa')
    if rng.random() < .7: put('noise.csa', bytes(range(256)), 'csa')        # by its name, and damaged
    if rng.random() < .7: put('empty.csa', b'', 'none known')
    put('usi.usi', b'startpos moves 7g7f\nstartpos moves 7g7f 3c3d\nstartpos moves 7g7g\n', 'usi')
    for write, name in ((write_hcpe, 'hcpe'), (write_psv, 'psv'), (write_hcpe3, 'hcpe3')):
        if rng.random() < .6: write(rng.sample(games, 10), folder/f'x.{name}'); expected[name] += 1
    (folder/'notes.md').write_text('x')
    filters = rng.choice((Filters(), Filters(min_plies=90), Filters(min_rating=1800), Filters(skip_plies=9, eval_range=(-500, 500)),
                          Filters(ends='%TORYO', duplicates=True)))
    for prepare, n in ((prepare_stage2, 2), (prepare_stage3, 3)):
        made = prepare(folder, tmp_path/f'{n}', filters=filters, on_bad='skip')
        check(made)
        told = [g for g in read_games(folder, 'skip', [])]
        assert made.filters.games == len(told) and made.found.ends == Counter(g.end for g in told)
        names = {1.: 'Black won', .5: 'draw', 0.: 'White won', None: 'not known'}
        assert made.found.results == Counter(names[g.result] for g in told)
        assert made.found.pieces == sum(not g.whole for g in told) and made.found.files == expected
        assert made.passed_over == {'.md': 1}

def test_many_kinds_are_cut_and_escaped(tmp_path):
    "Words of files are no HTML, and a hundred of them are no table of a hundred lines"
    game = "V2.2\nPI\n+\n+7776FU\n-3334FU\n'summary:{}:a win:b lose\n"      # a server's own words
    (tmp_path/'a.csa').write_text('/\n'.join(game.format(f'word_{i}') for i in range(40)))
    made = prepare_stage2(tmp_path/'a.csa', tmp_path/'2')
    assert len(made.found.ends) == 40 and ('ended by', f'and {len(made.found.ends) - 7} more') in [l[:2] for l in made.lines()]
    check(made)
    made.found.ends = {'<script>alert(1)</script>': 40}; made.passed_over = {'.<b>': 1}
    assert '<script>' not in made._repr_html_() and '<b>' not in made._repr_html_()
    made.filters.removed.append(('<i>', 0, 1))
    assert '<i>' not in made._repr_html_() and '<i>' not in made.filters._repr_html_()

# --- lone positions

@pytest.mark.parametrize('kind', ['sfen', 'jsonl', 'csv'])
def test_lone_positions_are_of_unknown_games(games, tmp_path, kind):
    "A list of SFENs, or a table of them, with or without moves: stage 2 takes them all, and claims nothing"
    from rsshogi.core import Board, Move
    sfens, moves = [], []
    for g in games[:20]:
        board = Board(g.start + ' 1')
        for m in g.moves.tolist(): sfens.append(board.to_sfen()); moves.append(usi_of(m)); board.apply_move(Move(m))
    order = np.random.default_rng(0).permutation(len(sfens))
    for with_moves in (False, True)[:1 if kind == 'sfen' else 2]:
        lines = [(sfens[i], moves[i]*with_moves) for i in order]
        if kind == 'sfen': text = '\n'.join(s for s, _ in lines)
        elif kind == 'csv': text = '\n'.join(['sfen,move', *(f'{s},{m}' for s, m in lines)])
        else: text = '\n'.join(json.dumps({'sfen': s} | ({'move': m} if m else {})) for s, m in lines)
        path, out = tmp_path/f'{with_moves}.{kind}', tmp_path/f'out{with_moves}'
        path.write_text(text + '\n')
        found = list(read_games(path))
        assert sorted(g.ply for g in found) == sorted(int(s.split()[3]) - 1 for s in sfens)
        assert all(not g.whole or g.start == games[0].start for g in found)
        made = prepare_stage2(path, out)
        *_, how = split_sources(StreamingFileSource, out, 2, .2)
        assert not CLAIMS.search(how) and DOUBT in how and DOUBT in repr(made)
        starts = kind == 'sfen' and sum(s == sfens[0] for s in sfens) - 1         # the usual start alone is a whole game, and a copy
        assert made.positions == len(sfens) - starts and set(rows(out, 2)['ply'].to_list()) == {int(s.split()[3]) - 1 for s in sfens}

def test_tables_without_plies(tmp_path):
    sfen = 'lnsgk1snl/1r4gb1/p1pppp1pp/1p4p2/9/2P4P1/PP1PPPP1P/1B4GR1/LNSGK1SNL b -'
    (tmp_path/'a.jsonl').write_text(json.dumps({'sfen': sfen, 'move': '7f7e', 'result': 1}) + '\n')
    assert [g.ply for g in read_games(tmp_path/'a.jsonl')] == [None]
    prepare_stage3(tmp_path/'a.jsonl', tmp_path/'3')
    assert rows(tmp_path/'3')['ply'].to_list() == [NO_PLY]
