"The same games in every format, written by other programs where there are some: each row of a prepared set equals what CSA gave"
import gzip, io, zipfile

import cshogi
import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from cshogi import CSA
from rsshogi.record import Record

from maou_nb.data.columns import NO_PLY
from maou_nb.data.positions import read_positions
from maou_nb.stages.rows import prepare_stage2, prepare_stage3
from maou_nb.data.records import Filters, read_games
from maou_nb.data.shards import find_shards, read_shard
from samples import ONE_FILE

def rows(path, stage): return pl.concat([pl.from_arrow(read_shard(s)) for s in find_shards(path, stage)])

@pytest.fixture(scope='module')
def ours(tmp_path_factory):
    "Rows of both stages from the CSA file"
    out = tmp_path_factory.mktemp('csa')
    prepare_stage2(ONE_FILE, out/'2'); prepare_stage3(ONE_FILE, out/'3')
    return {2: rows(out/'2', 2), 3: rows(out/'3', 3)}

def parsed(): return CSA.Parser.parse_file(str(ONE_FILE))

def by_cshogi(dtype, fill):
    "The plies of all games in a record type of cshogi's, `fill(record, board, move, eval, winner)` writing each"
    out = []
    for g in parsed():
        board, records = cshogi.Board(g.sfen), np.zeros(len(g.moves), dtype)
        for i, (move, score) in enumerate(zip(g.moves, g.scores)):
            fill(records[i], board, move, int(np.clip((score or 0)*(-1 if board.turn else 1), -32767, 32767)), g.win)
            board.push(move)
        out.append(records)
    return np.concatenate(out).tobytes()

def hcpe(r, board, move, eval, win):
    board.to_hcp(r['hcp']); r['eval'], r['bestMove16'], r['gameResult'] = eval, cshogi.move16(move), win

def psv(r, board, move, eval, win):
    board.to_psfen(r['sfen']); r['score'], r['move'], r['gamePly'] = eval, cshogi.move16_to_psv(cshogi.move16(move)), board.move_number
    r['game_result'] = 0 if not win else 1 if (win == 1) == (board.turn == 0) else -1

def csa_text(): return ONE_FILE.read_text()
def kif_games(): return [Record.from_csa_str(g).to_kif() for g in csa_text().split('/\n')]

def zipped(name, data):
    out = io.BytesIO()
    with zipfile.ZipFile(out, 'w', zipfile.ZIP_DEFLATED) as z: z.writestr(name, data)
    return out.getvalue()

WRITERS = {'shift_jis.csa': lambda: ("'自己対局\n" + csa_text()).encode('cp932'),
           'bom.csa': lambda: b'\xef\xbb\xbf' + csa_text().encode(),
           'windows.csa': lambda: csa_text().replace('\n', '\r\n').encode(),
           'v3.csa': lambda: csa_text().replace('V2.2', "'CSA encoding=UTF-8\nV3.0").encode(),
           'games.csa.gz': lambda: gzip.compress(csa_text().encode()),
           'games.zst': lambda: bytes(pa.compress(csa_text().encode(), 'zstd', asbytes=True)),
           'games.zip': lambda: zipped('in/g.csa', csa_text()), 'named.kif': lambda: csa_text().encode(),
           'utf8.kifu': lambda: '\n'.join(kif_games()).encode(), 'sjis.kif': lambda: '\n'.join(kif_games()).encode('cp932'),
           'games.hcpe': lambda: by_cshogi(cshogi.HuffmanCodedPosAndEval, hcpe),
           'games.psv': lambda: by_cshogi(cshogi.PackedSfenValue, psv)}

@pytest.mark.parametrize('name', WRITERS)
def test_each_row_equals_what_csa_gave(tmp_path, ours, name):
    path = tmp_path/name
    path.write_bytes(WRITERS[name]())
    made = prepare_stage3(path, tmp_path/'3')
    theirs = rows(tmp_path/'3', 3)
    assert theirs.drop('evalMean').equals(ours[3].drop('evalMean')) and made.games == 50
    eval_of = dict(zip(ours[3].select('id', 'fold').rows(), ours[3]['evalMean']))
    if 'kif' not in name or name == 'named.kif':       # KIF has no evals; packed records have 0 where CSA has none
        zero = 0. if name.endswith(('hcpe', 'psv')) else None
        single = theirs.filter(pl.col('count') == 1)
        wanted = [zero if eval_of[i] is None else eval_of[i] for i in single.select('id', 'fold').rows()]
        assert single['evalMean'].to_list() == wanted

def test_usi_has_the_positions_but_no_results(tmp_path, ours):
    (tmp_path/'a.usi').write_text('\n'.join(Record.from_csa_str(g).to_usi_position() for g in csa_text().split('/\n')))
    prepare_stage2(tmp_path/'a.usi', tmp_path/'2')
    assert rows(tmp_path/'2', 2).equals(ours[2])
    made = prepare_stage3(tmp_path, tmp_path/'3') if any(g.result is not None for g in read_games(tmp_path)) else None
    if made: assert made.games < 50                       # those that ended in mate
    else:
        with pytest.raises(ValueError, match='50 games left out: no result'): prepare_stage3(tmp_path/'a.usi', tmp_path/'3')

def test_shuffled_hcpe_has_the_same_positions(tmp_path, ours):
    "Records that know no order are positions still; only the games they came from are lost"
    records = np.frombuffer(by_cshogi(cshogi.HuffmanCodedPosAndEval, hcpe), cshogi.HuffmanCodedPosAndEval)
    (tmp_path/'a.hcpe').write_bytes(records[np.random.default_rng(0).permutation(len(records))].tobytes())
    made = prepare_stage3(tmp_path/'a.hcpe', tmp_path/'3')
    theirs = rows(tmp_path/'3', 3)
    total = lambda t: t.group_by('id').agg(pl.col('count').sum(), pl.col('wins').sum()).sort('id')
    assert total(theirs).equals(total(ours[3])) and made.positions == len(records)
    known = theirs.filter(pl.col('ply') < NO_PLY)                      # the format has no plies: only the usual start knows its own
    assert 0 < known.height < 60 and known['ply'].max() <= 2

def test_a_folder_of_everything(tmp_path):
    "One game in many formats is one game; with duplicates kept it counts as often as it is there"
    games = {n: WRITERS[n]() for n in ('bom.csa', 'games.csa.gz', 'games.zip', 'utf8.kifu', 'games.hcpe', 'games.psv')}
    for name, data in games.items(): (tmp_path/name).write_bytes(data)
    found = list(read_games(tmp_path))
    assert len(found) == 300 and len({g.key for g in found}) == 50
    # pieces that are all of a game that is there whole are copies of it, too
    made = prepare_stage3(tmp_path, tmp_path/'3')
    assert (made.games, made.pieces) == (50, 0)
    assert prepare_stage3(tmp_path, tmp_path/'all', filters=Filters(duplicates=True)).games == 300

def test_read_positions_of_any_file(tmp_path, ours):
    (tmp_path/'a.psv').write_bytes(WRITERS['games.psv']())
    found = pl.concat([pl.from_arrow(t) for t in read_positions(tmp_path/'a.psv')])
    assert len(found) == sum(map(len, read_games(ONE_FILE))) and set(found['id']) == set(ours[3]['id'])
    assert found['moveLabel'].null_count() == 0 and set(found['result'].unique()) == {0., 1.}

def test_old_tables_are_trained_on_as_they_are(tmp_path, ours):
    "A dense table of the old tool is found, counted and read as a shard: the same targets"
    from maou_nb.data.old import write_old
    from maou_nb.data.sources import StreamingFileSource
    prepare_stage3(ONE_FILE, tmp_path/'3')
    for kind, suffix, close in (('feather', 'feather', 1e-6), ('npy-newer', 'npy', 1e-3), ('npy-packed', 'npy', 1e-3)):
        write_old((read_shard(s) for s in find_shards(tmp_path/'3', 3)), tmp_path/kind/f'a.{suffix}', 3, kind)
        new, old = (next(StreamingFileSource(p, 3).iter_files_columnar()) for p in (tmp_path/'3', tmp_path/kind))
        for name in ('board', 'hands', 'legal'): assert np.array_equal(new.fixed[name], old.fixed[name])
        assert np.allclose(new.fixed['value'], old.fixed['value'], atol=close)
        share = lambda r: r.fixed['counts'] / np.maximum(r.fixed['counts'].sum(1, keepdims=True), 1e-9)
        alone = new.fixed['n'] <= 4
        assert np.allclose(np.sort(share(new)[alone]), np.sort(share(old)[alone]), atol=close)

def test_no_pattern_needs_a_later_python():
    "Python 3.11 before 3.11.5 matches possessive repeats and atomic groups wrongly"
    import importlib, pkgutil, re
    import maou_nb.data as data
    rooms = [importlib.import_module(f'maou_nb.data.{m.name}') for m in pkgutil.iter_modules(data.__path__)]
    patterns = [v for room in rooms for v in vars(room).values() if isinstance(v, re.Pattern)]
    assert len(patterns) > 30
    for p in patterns:
        parsed = str(re._parser.parse(p.pattern, p.flags))
        assert 'POSSESSIVE' not in parsed and 'ATOMIC' not in parsed, p.pattern
