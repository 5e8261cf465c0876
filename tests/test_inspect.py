"Looking at data: the audit against plain counting, planted leaks, the shuffle meter against dice, what is read and what is not"
import random, re
from collections import Counter
from math import comb

import numpy as np
import pyarrow as pa
import pytest
from rsshogi.core import Board

from maou_nb.data.batches import Batch, BatchStream
from maou_nb.data.board import to_sfen
from maou_nb.data.columns import columns_of
from maou_nb.data.labels import LABEL_MIRROR, legal_labels
from maou_nb.data.old import write_old
from maou_nb.data.records import Filters
from maou_nb.stages.rows import prepare_stage2, prepare_stage3
from maou_nb.data.columns import columns_of
from maou_nb.data.shards import ShardError, find_shards, read_shard, shard_bytes, write_manifest, write_shard
from maou_nb.data.sources import FileSource, StreamingFileSource
from maou_nb.data.trained import read_columns
from maou_nb.data.trained import AT_LEAST, DEEP
from maou_nb.judge.inspect import audit, expected_games, shard_info, show_batch, shuffle_meter
from maou_nb.show.boards import move_text
from maou_nb.show.pictures import image_tag
from samples import ONE_FILE, said

HELD_OUT, REST = range(25), range(25, 100)

@pytest.fixture(scope='module')
def copies(tmp_path_factory):
    "The same games in other records, each without its last move: stage 2 and 3"
    out = tmp_path_factory.mktemp('copies')
    cut = re.sub(r'[+-]\d{4}[A-Z]{2}\n(?:T.*\n|\'\*\*.*\n)*(?=%)', '', ONE_FILE.read_text())
    (out/'games.csa').write_text(cut)
    for n, prepare in ((2, prepare_stage2), (3, prepare_stage3)): prepare(out/'games.csa', out/f'stage{n}', rows_per_shard=1_500)
    return out

def rows_of(paths, stage, folds):
    "The rows of some folds as dictionaries"
    rows = [r for s in find_shards(paths, stage) for r in read_shard(s).select(['id', 'fold', 'game', 'ply']).to_pylist()]
    return [r for r in rows if folds is None or r['fold'] in folds]

# ---- the audit

def count(train, valid):
    "What an audit says, counted row by row"
    seen, seen_games = {r['id'] for r in train}, {r['game'] for r in train}
    shared = [r for r in valid if r['id'] in seen]
    late, late_shared = (Counter(r['game'] for r in rows if r['ply'] >= DEEP) for rows in (valid, shared))
    again = lambda rows: sum(n - 1 for n in Counter((r['id'], r['fold']) for r in rows).values())
    by_ply, shared_by_ply = (Counter(r['ply'] for r in rows) for rows in (valid, shared))
    return {'rows': (len(train), len(valid)), 'games': (len(seen_games), len({r['game'] for r in valid})),
            'repeats': (again(train), again(valid)),
            'games_shared': len(seen_games & {r['game'] for r in valid}), 'shared': len(shared),
            'by_ply': [(p, n, shared_by_ply[p]) for p, n in sorted(by_ply.items())],
            'copies': {g: (late[g], n) for g, n in late_shared.items() if n >= AT_LEAST and n >= late[g]/2}}

def check(found, counted):
    "Whether audit and count say the same"
    for what in ('rows', 'games', 'repeats', 'games_shared', 'shared'): assert getattr(found, what) == counted[what], what
    assert list(found.by_ply.select('ply', 'rows', 'shared').iter_rows()) == counted['by_ply']
    assert {g: (n, s) for g, n, s in found.copies.iter_rows()} == counted['copies']

@pytest.mark.parametrize('stage', [2, 3])
@pytest.mark.parametrize('leak', ['none', 'copies', 'same folds', 'both ways'])
def test_audit_counts_right(shards, copies, stage, leak):
    mine, theirs = shards[f'stage{stage}_data_path'], str(copies/f'stage{stage}')
    train, valid = {'none': ((mine, REST), (mine, HELD_OUT)), 'copies': (([mine, theirs], REST), (mine, HELD_OUT)),
                    'same folds': ((mine, None), (mine, HELD_OUT)), 'both ways': (([mine, theirs], REST), ([theirs, mine], HELD_OUT))}[leak]
    found = audit(StreamingFileSource(train[0], stage, train[1]), FileSource(valid[0], stage, valid[1]))
    check(found, count(rows_of(train[0], stage, train[1]), rows_of(valid[0], stage, valid[1])))
    assert found.leaks == (leak != 'none')
    assert ('It leaks' if leak != 'none' else 'No game is on both sides') in found.verdict
    if leak == 'copies': assert found.games_shared == 0 and len(found.copies) > 0.5*found.games[1]

def test_a_split_by_rows_is_found(shards, tmp_path):
    table = pa.concat_tables(read_shard(s) for s in find_shards(shards['stage3_data_path'], 3))
    order = np.random.default_rng(0).permutation(len(table))
    for name, part in (('train', order[1_000:]), ('valid', order[:1_000])):
        write_shard(tmp_path/f'{name}.feather', table.take(part), 3, 'a split by rows')
    train, valid = (tmp_path/f'{name}.feather' for name in ('train', 'valid'))
    found = audit(StreamingFileSource(train, 3), StreamingFileSource(valid, 3))
    check(found, count(rows_of(train, 3, None), rows_of(valid, 3, None)))
    assert found.leaks and found.games_shared > 45 and 'Split by folds' in found.verdict

def test_one_copied_game_among_many_is_named(shards, copies, tmp_path):
    valid = rows_of(shards['stage3_data_path'], 3, HELD_OUT)
    game = Counter(r['game'] for r in valid if r['ply'] >= DEEP).most_common(1)[0][0]
    table = pa.concat_tables(read_shard(s) for s in find_shards(shards['stage3_data_path'], 3))
    copied = table.filter(table['game'].to_numpy() == np.uint64(game))
    moved = copied.set_column(copied.column_names.index('fold'), 'fold', pa.array([99]*len(copied), pa.uint8()))
    moved = moved.set_column(moved.column_names.index('game'), 'game', pa.array([7]*len(copied), pa.uint64()))
    write_shard(tmp_path/'copy.feather', moved, 3, 'a copy')
    found = audit(StreamingFileSource([shards['stage3_data_path'], tmp_path], 3, REST),
                  StreamingFileSource(shards['stage3_data_path'], 3, HELD_OUT))
    assert found.leaks and found.games_shared == 0 and found.copies['game'].to_list() == [game]

def test_audit_says_what_cannot_be_known(shards, tmp_path):
    first = find_shards(shards['stage3_data_path'], 3)[0]
    write_old(read_shard(first).slice(0, 300), tmp_path/'old.feather', 3)
    old, ours = StreamingFileSource(tmp_path, 3), StreamingFileSource(shards['stage3_data_path'], 3, HELD_OUT)
    found = audit(old, ours)
    ids = {r['id'] for r in rows_of(shards['stage3_data_path'], 3, None)[:300]}
    assert (found.leaks, found.games_shared, found.games[0]) == (None, None, None) and 'rows of training know no games' in found.verdict
    assert found.shared == sum(r['id'] in ids for r in rows_of(shards['stage3_data_path'], 3, HELD_OUT))
    assert found.by_ply['shared'].sum() == found.shared
    for a in (found, audit(ours, old), audit(old)): assert a.verdict in a._repr_html_() and 'unknown' in repr(a)
    nothing = audit(ours, StreamingFileSource(shards['stage3_data_path'], 3, []))
    assert 'no row in validation' in nothing.verdict and nothing._repr_html_()

# ---- the shuffle meter

@pytest.mark.parametrize('drawn', [64, 1_000, 3_000])
def test_a_perfect_shuffle_is_what_dice_give(shards, drawn):
    games = np.array([r['game'] for r in rows_of(shards['stage3_data_path'], 3, None)])
    sizes, dice = np.unique(games, return_counts=True)[1], np.random.default_rng(0)
    thrown = np.mean([len(np.unique(dice.permutation(games)[:drawn])) for _ in range(400)])
    assert abs(expected_games(sizes, drawn)/thrown - 1) < 0.01

def test_a_perfect_shuffle_is_the_formula():
    dice = random.Random(0)
    for _ in range(50):
        sizes = [dice.randint(1, 30) for _ in range(dice.randint(1, 20))]
        total, drawn = sum(sizes), dice.randint(0, sum(sizes) + 3)
        exact = sum(1 - comb(total - n, drawn)/comb(total, drawn) for n in sizes) if drawn <= total else len(sizes)
        assert expected_games(np.array(sizes), drawn) == pytest.approx(exact, rel=1e-10, abs=1e-12)

@pytest.mark.parametrize('options', [dict(), dict(window=2, window_rows=0), dict(window=1, window_rows=0, folds=REST)])
@pytest.mark.parametrize('shuffle', [True, False])
def test_the_meter_counts_the_plan(shards, options, shuffle):
    source = StreamingFileSource(shards['stage3_data_path'], 3, **options)
    games = np.array([r['game'] for r in rows_of(shards['stage3_data_path'], 3, options.get('folds'))])
    meter, plan = shuffle_meter(source, 128, seed=3, epoch=2, batches=12, shuffle=shuffle), source.plan(128, 3, 2, shuffle=shuffle)
    batches = [games[plan.numbers(k)] for k in range(12)]
    assert meter.per_batch.tolist() == [len(set(b)) for b in batches] and meter.together == len(set(np.concatenate(batches)))
    sizes = np.unique(games, return_counts=True)[1]
    assert (meter.rows, meter.games) == (len(games), len(sizes))
    assert (meter.perfect, meter.perfect_together) == pytest.approx(
        (expected_games(sizes, 128), expected_games(sizes, 12*128)))

def test_shuffled_only_inside_a_window_is_seen(shards, tmp_path):
    table = pa.concat_tables(read_shard(s) for s in find_shards(shards['stage2_data_path'], 2))
    table = table.sort_by([('game', 'ascending'), ('ply', 'ascending')])
    write_manifest(tmp_path, [write_shard(tmp_path/f'{i:02}.feather', table.slice(i, 400), 2, 'by game')
                              for i in range(0, len(table), 400)], stage=2)
    assert shuffle_meter(StreamingFileSource(tmp_path, 2, window=1, window_rows=0), 128).ratio < 0.3
    assert shuffle_meter(StreamingFileSource(tmp_path, 2, window=1, window_rows=0), 128, shuffle=False).per_batch.mean() < 4
    assert shuffle_meter(FileSource(tmp_path, 2), 128).ratio > 0.97
    few = shuffle_meter(FileSource(tmp_path, 2), 10**6)      # fewer rows than a batch has
    assert (few.batches, few.per_batch[0], few.ratio) == (1, few.games, 1)

# ---- what is read

def test_no_other_column_is_read(shards, tmp_path):
    "A byte is spoilt here and there: only in the columns that are read it makes a difference, so no others are read"
    shard = find_shards(shards['stage3_data_path'], 3)[0]
    names, data, table, dice = ('id', 'fold', 'game', 'ply'), bytearray(shard.path.read_bytes()), read_shard(shard), random.Random(0)
    right, body = read_columns(shard, names), len(data) - int.from_bytes(data[-10:-6], 'little') - 10   # the footer is last
    needed = len(shard_bytes(table.select(names), 3, '')) / len(data)
    path, felt, tries = tmp_path/shard.path.name, 0, 400
    for _ in range(tries):
        at = dice.randrange(2_000, body)
        data[at] ^= 0x55
        path.write_bytes(data)
        data[at] ^= 0x55
        try: felt += any((c != right[n]).any() for n, c in read_columns(type(shard)(path, shard.columns, shard.rows), names).items())
        except ShardError: felt += 1
    assert needed < 0.35 and abs(felt/tries - needed) < 0.08, (felt/tries, needed)

def test_boards_need_one_record_batch(shards, tmp_path):
    table = pa.concat_tables(read_shard(s) for s in find_shards(shards['stage2_data_path'], 2))
    many = pa.concat_tables([table]*30)      # two record batches
    write_manifest(tmp_path, [write_shard(tmp_path/'a.feather', many, 2, 'many')], stage=2)
    data = bytearray((tmp_path/'a.feather').read_bytes())
    at = len(data)*15//16
    data[at:at + 10_000] = bytes(10_000)     # in the second
    info = shard_info(tmp_path)
    (tmp_path/'a.feather').write_bytes(data)
    with pytest.raises(ShardError): read_shard(find_shards(tmp_path, 2)[0])
    assert shard_info(tmp_path/'a.feather', n=5).boards.svgs[:3] == info.boards.svgs

# ---- shards

def test_every_kind_of_shard_is_told(shards, tmp_path):
    tables = {n: read_shard(find_shards(shards[f'stage{n}_data_path'], n)[0]).slice(0, 50) for n in (1, 2, 3)}
    for n, kind in ((1, 'feather'), (2, 'feather'), (3, 'feather'), (3, 'npy-plain'), (3, 'npy-newer'), (3, 'npy-packed')):
        path = tmp_path/f'{n}-{kind}.{"npy" if "npy" in kind else "feather"}'
        write_old(tables[n], path, n, kind)
        info = shard_info(path)
        assert (info.stage, info.rows, info.bytes, len(info.boards.svgs)) == (n, 50, path.stat().st_size, 3)
        assert info.shards[0].foreign in repr(info) and image_tag(info.boards.drawing()) in info._repr_html_()
        assert 'id uint64' in info.facts()['columns']
        alone = write_shard(tmp_path/'alone.feather', tables[n], n, '<b>me</b>')
        ours = shard_info(tmp_path/'alone.feather')
        assert ours.boards.svgs == info.boards.svgs or kind == 'npy-newer'      # it has no legal moves
        assert ours.bytes == alone['bytes'] and '&lt;b&gt;me' in ours._repr_html_() and ours.facts()['SHA-256'] == 'in no manifest'
        (tmp_path/'alone.feather').unlink()

def test_a_set_in_a_bucket(tmp_path, monkeypatch):
    monkeypatch.setenv('MAOU_NB_CACHE', str(tmp_path/'cache'))
    made = prepare_stage3(ONE_FILE, 'memory://inspect/stage3', rows_per_shard=1_500, filters=Filters(skip_plies=10))
    info = shard_info('memory://inspect/stage3')
    assert (info.rows, len(info.shards), info.folds.sum()) == (made.rows, made.shards, made.rows)
    assert info.filters.left == (made.games, made.positions)
    assert len(list((tmp_path/'cache').glob('*.feather'))) == 1                         # one was fetched, for its boards
    one = shard_info(str(info.shards[1].path))
    assert one.facts()['SHA-256'] == info.shards[1].sha256 and one.bytes < info.bytes and one.boards.svgs != info.boards.svgs

def test_an_empty_shard(tmp_path):
    write_manifest(tmp_path, [write_shard(tmp_path/'a.feather', columns_of(3).schema.empty_table(), 3, 'nothing')], stage=3)
    info = shard_info(tmp_path)
    assert info.rows == 0 and len(info.boards.svgs) == 0 and info._repr_html_()
    with pytest.raises(ValueError, match='has no row'): shuffle_meter(StreamingFileSource(tmp_path, 3), 8)
    assert 'no row in training' in audit(StreamingFileSource(tmp_path, 3), StreamingFileSource(tmp_path, 3)).verdict
    assert show_batch(StreamingFileSource(tmp_path, 3)).svgs == ()

# ---- boards

def test_a_batch_shows_its_answers(shards):
    source = StreamingFileSource(shards['stage2_data_path'], 2)
    dense = next(iter(BatchStream(source, source.plan(20)))).decode()
    for svg, board, hands in zip(show_batch(source, n=20).svgs, dense.board.numpy(), dense.hands.numpy()):
        moves = Board(to_sfen(board, hands)).legal_moves()
        assert f'>{len(moves)} legal moves<' in svg and svg.count('fill-opacity="0.75"') == len({m.to_usi()[2:4] for m in moves})

def test_mirrored_rows_are_shown_mirrored(shards):
    rows = FileSource(shards['stage3_data_path'], 3)[:40]
    plain, turned = (show_batch(Batch.from_rows(rows, 3, mirror), n=40).svgs for mirror in (None, np.ones(40, bool)))
    dense = Batch.from_rows(rows, 3).decode()
    for a, b, board, policy in zip(plain, turned, dense.board.numpy(), dense.policy.numpy()):
        best = policy == policy.max()        # where several are best, one of them is named
        other = board.reshape(9, 9)[:, ::-1].reshape(81)
        assert any(f'>{move_text(l, board)} {policy.max():.0%}, ' in a for l in np.flatnonzero(best))
        assert any(f'>{move_text(LABEL_MIRROR[l], other)} {policy.max():.0%}, ' in b for l in np.flatnonzero(best)) and ', mirrored<' in b

def test_moves_are_named_as_the_rules_name_them(shards):
    for r in FileSource(shards['stage2_data_path'], 2)[:].fixed[::10]:
        board = Board(to_sfen(r['board'], r['hands']))
        assert [move_text(int(l), r['board']) for l in legal_labels(board)] == [m.to_usi() for m in board.legal_moves()]

# ---- what is wrong

def test_what_is_wrong_is_a_sentence(shards, tmp_path):
    shard = find_shards(shards['stage3_data_path'], 3)[0]
    table, data = read_shard(shard), shard.path.read_bytes()
    def fails(name, f, what):
        with pytest.raises((ShardError, FileNotFoundError, ValueError)) as e: f(tmp_path/name)
        assert what in said(e) and (name in said(e) or not name), said(e)
    (tmp_path/'empty.feather').touch(); fails('empty.feather', shard_info, 'is empty')
    (tmp_path/'half.feather').write_bytes(data[:-50]); fails('half.feather', shard_info, 'not a whole Arrow IPC file')
    (tmp_path/'text.npy').write_text('no array'); fails('text.npy', shard_info, 'not a whole Arrow IPC file')
    fails('nowhere', shard_info, 'does not exist')
    for name, about in (('other.feather', {}), ('list.feather', {'maou_nb': '[]'}), ('strange.feather', {'maou_nb': '{"stage": []}'})):
        with pa.ipc.new_file(str(tmp_path/name), table.schema.with_metadata(about)) as w: w.write_table(table)
        fails(name, shard_info, 'without the mark of maou_nb')
    as_text = table.set_column(table.column_names.index('game'), 'game', table['game'].cast(pa.string()))
    with pa.ipc.new_file(str(tmp_path/'text.feather'), as_text.schema) as w: w.write_table(as_text)
    fails('text.feather', lambda p: audit(StreamingFileSource(p, 3)), 'has the column game as string: uint64 was expected')
    fails('text.feather', lambda p: shuffle_meter(StreamingFileSource(p, 3), 8), 'has the column game as string')
    (tmp_path/'old').mkdir(); write_old(table.slice(0, 20), tmp_path/'old'/'x.feather', 3)
    fails('x.feather', lambda p: shuffle_meter(StreamingFileSource(tmp_path/'old', 3), 8), 'knows no games')

def test_a_manifest_of_another_file(shards, tmp_path):
    tables = [read_shard(s) for s in find_shards(shards['stage3_data_path'], 3)[:2]]
    entries = [write_shard(tmp_path/f'{i}.feather', t, 3, 'an example') for i, t in enumerate(tables)]
    entries[0] |= {'folds': entries[1]['folds'], 'rows': entries[1]['rows']}
    write_manifest(tmp_path, entries, stage=3)
    for f in (lambda folds: audit(StreamingFileSource(tmp_path, 3, folds)),
              lambda folds: shuffle_meter(StreamingFileSource(tmp_path, 3, folds), 8)):
        for folds in (None, HELD_OUT):
            with pytest.raises(ShardError) as e: f(folds)
            assert '0.feather has' in said(e)

@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")
def test_spoilt_bytes_give_sentences(shards, tmp_path):
    "Mutated files: what is shown, or one of our errors; nothing else"
    dice, whole, told = random.Random(0), [], 0
    for n in (1, 2, 3):
        table = read_shard(find_shards(shards[f'stage{n}_data_path'], n)[0]).slice(0, 40)
        write_shard(tmp_path/'x.feather', table, n, 'x'); whole.append((n, 'x.feather', (tmp_path/'x.feather').read_bytes()))
        write_old(table, tmp_path/'x.feather', n); whole.append((n, 'x.feather', (tmp_path/'x.feather').read_bytes()))
    write_old(table, tmp_path/'x.npy', 3, 'npy-packed'); whole.append((3, 'x.npy', (tmp_path/'x.npy').read_bytes()))
    for _ in range(200):
        stage, name, data = dice.choice(whole)
        data = bytearray(data)
        for _ in range(dice.choice((1, 1, 5))):
            at = dice.choice((dice.randrange(len(data)), max(len(data) - 1 - dice.randrange(3_000), 0)))
            data[at] = dice.randrange(256)
        (tmp_path/name).write_bytes(data[:dice.randrange(len(data))] if dice.random() < 0.1 else data)
        for f in (shard_info, lambda p: audit(StreamingFileSource(p, stage)), lambda p: shuffle_meter(StreamingFileSource(p, stage), 8)):
            try: repr(f(tmp_path/name))
            except ShardError as e: told += name in str(e) and '\n' not in str(e)
            except ValueError as e: told += 'has no row' in str(e)
            else: told += 1
    assert told == 3*200
