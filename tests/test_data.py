"Prepared rows and splits: no game on both sides, the same everywhere, nothing lost; the order whatever the workers"
import numpy as np
import polars as pl
import pytest

from maou_nb.data.batches import BatchStream, batch_loader
from maou_nb.data.positions import positions
from maou_nb.stages.rows import prepare_stage1, prepare_stage2, prepare_stage3
from maou_nb.data.records import read_games
from maou_nb.data.shards import find_shards, read_shard
from maou_nb.data.sources import FileSource, StreamingFileSource
from maou_nb.data.splits import held_folds
from maou_nb.train.options import LearnConfig
from maou_nb.train.runner import sources_of
from maou_nb.stages.stage import STAGES
from rsshogi.core import Board
from maou_nb.show.boards import Position
from maou_nb.data.board import position_ids
from samples import GAMES, ONE_FILE

def table(path, stage): return pl.concat([pl.from_arrow(read_shard(s)) for s in find_shards(path, stage)])

@pytest.mark.parametrize('stage', [2, 3])
def test_every_position_of_a_game_is_on_the_games_side(shards, stage):
    "From the records themselves: each position of each game is found among the rows of the game's fold"
    rows = table(shards[f'stage{stage}_data_path'], stage)
    there = set(rows.select('id', 'fold').iter_rows())

    games = list(read_games(ONE_FILE))
    cols = positions(games)
    keep = np.ones(len(cols['id']), bool) if stage == 2 else cols['label'] >= 0
    wanted = set(zip(cols['id'][keep].tolist(), cols['fold'][keep].tolist()))
    assert there == wanted
    assert set(rows.select('game', 'fold').iter_rows()) <= {(g.key, g.fold) for g in games}

@pytest.mark.parametrize('ratio', [0.05, 0.2, 0.5, 0.9])
@pytest.mark.parametrize('no_streaming', [False, True])
def test_no_game_on_both_sides(shards, ratio, no_streaming):
    "What the sources deliver, compared row by row with what the shards say of games"
    cfg = LearnConfig(test_ratio=ratio, no_streaming=no_streaming, input_cache_mode='memory' if no_streaming else 'file', **shards)
    games = {}
    for side, source, folds in zip('tv', sources_of(cfg, STAGES['3'])[:2], reversed(held_folds(ratio))):
        rows = table(shards['stage3_data_path'], 3).filter(pl.col('fold').is_in(list(folds)))
        assert source.total_rows == len(rows) == sum(len(r) for r in source.iter_files_columnar())
        boards = sorted(r.tobytes() for part in source.iter_files_columnar()
                        for r in np.concatenate([part.fixed['board'], part.fixed['hands']], axis=1))
        said = sorted(bytes(b) + bytes(h) for b, h in rows.select('boardIdPositions', 'piecesInHand').iter_rows())
        assert boards == said
        games[side] = set(rows['game'].to_list())
    assert games['t'] and games['v'] and not games['t'] & games['v']

def test_a_second_copy_of_a_game_goes_to_the_same_fold(tmp_path):
    text = ONE_FILE.read_text().split('/\n')[0]
    (tmp_path/'a.csa').write_text(text)
    (tmp_path/'b.csa').write_text(text.replace('SuishoPetite', 'another name'))
    a, b = read_games(tmp_path)
    assert (a.key, a.fold) == (b.key, b.fold)

def test_counts_of_a_repeated_position_add_up(shards):
    "Over its folds, the start position was played by as many games as began with it"
    start = Position.from_sfen(Board().to_sfen())

    rows = table(shards['stage3_data_path'], 3).filter(pl.col('id') == int(position_ids(start.board[None], start.hands[None])[0]))
    games = [g for g in read_games(ONE_FILE) if Position.from_sfen(g.start + ' 1') == start]
    assert rows['count'].sum() == len(games) and rows['moveCounts'].list.sum().to_list() == rows['count'].to_list()
    assert abs(rows['wins'].sum() - sum(g.result for g in games)) < 1e-6

def test_the_split_does_not_hang_on_the_order_of_files(tmp_path):
    files = sorted(GAMES.glob('*.csa'))[:2]
    prepare_stage3(files, tmp_path/'a'); prepare_stage3(files[::-1], tmp_path/'b')
    assert [s.sha256 for s in find_shards(tmp_path/'a', 3)] == [s.sha256 for s in find_shards(tmp_path/'b', 3)]

def test_preparing_again_replaces_the_set(tmp_path):
    prepare_stage2(ONE_FILE, tmp_path, rows_per_shard=1_000)
    many = len(find_shards(tmp_path, 2))
    made = prepare_stage2(ONE_FILE, tmp_path)
    assert many > 1 and [s.rows for s in find_shards(tmp_path, 2)] == [made.rows] and len(list(tmp_path.glob('*.feather'))) == 1

@pytest.mark.parametrize('make', [
    pytest.param(lambda p: StreamingFileSource(p, 3, window=2), marks=pytest.mark.slow, id='streaming'),     # see test_sources.py
    pytest.param(lambda p: FileSource(p, 3), id='map-style')])
def test_order_is_the_same_with_any_number_of_workers(shards, make):
    source = make(shards['stage3_data_path'])
    plan = source.plan(batch_size=400, seed=5, epoch=2)
    alone = [b.record for b in batch_loader(BatchStream(source, plan))]
    two = [b.record for b in batch_loader(BatchStream(make(shards['stage3_data_path']), plan), workers=2)]
    assert len(alone) == len(plan) == len(two) and all((a == b).all() for a, b in zip(alone, two))

def test_stage1_takes_less_than_a_second(tmp_path):
    assert prepare_stage1(tmp_path).seconds < 1
