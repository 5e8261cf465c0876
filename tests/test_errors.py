"Bad input gets one sentence that names the file, line or option, and what would be right"
import json, os

import pyarrow.ipc as ipc
import pytest, torch

from maou_nb import OptionError, learn_multi_stage, prepare_stage1, prepare_stage2, prepare_stage3
from maou_nb.data.games import RecordError
from maou_nb.data.records import read_games
from maou_nb.data.shards import ShardError, find_shards, read_shard
from maou_nb.model.backbones import BACKBONES, SIZES, Backbone, SquareEmbedding, register_backbone
from samples import ONE_FILE, said

@pytest.fixture
def game(): return ONE_FILE.read_text().split('/\n')[0]

def refused(f, kind=Exception):
    "The one sentence that `f` complains with"
    with pytest.raises(kind) as e: f()
    return said(e)

def seen_in(folder):
    "What is to be seen in `folder`; the beginnings of a set that was not finished are hidden"
    return [p.name for p in folder.iterdir() if not p.name.startswith('.')]

@pytest.mark.parametrize('prepare', [prepare_stage2, prepare_stage3])
def test_wrong_path_of_records(prepare, tmp_path):
    text = refused(lambda: prepare(tmp_path/'no-such', tmp_path/'out'), FileNotFoundError)
    assert 'no-such does not exist' in text and 'game records' in text and not (tmp_path/'out').exists()

def test_empty_folder_of_records(tmp_path):
    text = refused(lambda: prepare_stage2(tmp_path, tmp_path/'out'), FileNotFoundError)
    assert str(tmp_path) in text and '.csa' in text

def test_illegal_move_names_file_and_line(tmp_path, game):
    lines = game.split('\n')
    at = [i for i, l in enumerate(lines) if l[:1] in '+-' and len(l) == 7][20]
    lines[at] = lines[at][0] + '5556FU'
    (tmp_path/'good.csa').write_text(game)
    (tmp_path/'late.csa').write_text(game + '/\n' + '\n'.join(lines))
    text = refused(lambda: prepare_stage3(tmp_path, tmp_path/'out'), RecordError)
    assert f'late.csa, line {len(game.splitlines()) + 1 + at + 1}: move 21' in text and lines[at] in text
    assert not seen_in(tmp_path/'out')

@pytest.mark.parametrize('content, says',
                         [(b'', 'is empty'), (b'hello', 'is no line of CSA'), (b'PI\n+\n', 'no CSA game starts here'),
                          (b'\x81\x00\x81\x00', 'neither UTF-8 nor Shift_JIS')])
def test_files_that_are_no_records(tmp_path, content, says):
    (tmp_path/'x.csa').write_bytes(content)
    text = refused(lambda: list(read_games(tmp_path)), RecordError)
    assert 'x.csa' in text and says in text

@pytest.mark.parametrize('rows',
                         ['P1 *  *  *  * -OU *  *  *  * \nP2 *  *  *  * +KI *  *  *  * \nP9 *  *  *  * +OU *  *  '
                          '*  * \n+\n+5251KI\n', 'P1 *  *  *  * -OU *  *  *  * \n+\n+0055FU\n'])
def test_start_position_that_cannot_be(tmp_path, rows):
    "Such moves abort the rules library's process; here they are a sentence"
    (tmp_path/'odd.csa').write_text("V2.2\n" + rows + '%TORYO\n')
    text = refused(lambda: list(read_games(tmp_path)), RecordError)
    assert 'odd.csa, game starting on line 1' in text and 'king' in text

def test_games_without_a_result(tmp_path, game):
    "Stage 3 leaves them out and counts them; if there are no others it says so"
    unfinished = '\n'.join(l for l in game.split('\n') if not l.startswith(('%', "'summary")))
    (tmp_path/'a.csa').write_text(unfinished)
    assert '1 game left out: no result' in refused(lambda: prepare_stage3(tmp_path, tmp_path/'out'), ValueError)
    (tmp_path/'b.csa').write_text(game)
    made = prepare_stage3(tmp_path, tmp_path/'out')
    assert ('no result', 1, made.filters.removed[0][2]) in made.filters.removed and '1 game left out: no result' in repr(made)

def test_a_failure_loses_nothing_written_before(tmp_path, game):
    (tmp_path/'a.csa').write_text(game)
    made = prepare_stage2(tmp_path/'a.csa', tmp_path/'out')
    (tmp_path/'b.csa').write_text(game.replace('+2726FU', '+2725FU'))
    refused(lambda: prepare_stage2(tmp_path/'b.csa', tmp_path/'out'), RecordError)
    assert [len(read_shard(s)) for s in find_shards(tmp_path/'out', 2)] == [made.rows] and len(seen_in(tmp_path/'out')) == 3

# --- bad records of every format: refused with a sentence, or left out, listed, and the rest kept

def hcpe_of(text):
    "The game as HCPE records"
    import tempfile
    from pathlib import Path
    from maou_nb.data.games import parse_csa
    from maou_nb.data.packed import write_hcpe
    with tempfile.TemporaryDirectory() as d:
        write_hcpe([parse_csa(text)], Path(d)/'x'); return (Path(d)/'x').read_bytes()

def changed(data, at, value): return data[:at] + bytes([value]) + data[at + 1:]

BAD = {'illegal.csa': (lambda g: g.replace('+2726FU', '+2725FU').encode(), 'line'),
       'noise.csa': (lambda g: bytes(range(256)), 'Shift_JIS'), 'noise.kif': (lambda g: b'\xff\xfe' * 50, 'noise.kif'),
       'noise.hcpe': (lambda g: bytes(range(256))*3, 'record'),
       'noise.psv': (lambda g: bytes(range(256))*3, 'record'), 'noise.bin': (lambda g: bytes(range(256))*3, 'record'),
       'noise.feather': (lambda g: b'ARROW1\0\0' + bytes(range(256)), 'Arrow'),
       'empty.csa': (lambda g: b'', 'is empty'), 'empty.hcpe': (lambda g: b'', 'is empty'),
       'cut.hcpe': (lambda g: hcpe_of(g)[:-5], 'record'),
       'move.hcpe': (lambda g: changed(hcpe_of(g), 38*3 + 34, 1), 'record 4'),
       'cut.csa.gz': (lambda g: __import__('gzip').compress(g.encode())[:-20], 'cut.csa.gz'),
       'usi.usi': (lambda g: b'startpos moves 7g7f 7g7f', 'line 1'),
       'start.usi': (lambda g: b'4k4/4G4/9/9/9/9/9/9/4K4 b - 1 moves 5b5a', 'leaves one to be taken')}

@pytest.mark.parametrize('name', BAD)
def test_bad_records(tmp_path, game, name):
    make, says = BAD[name]
    (tmp_path/'in').mkdir()
    (tmp_path/'in'/'good.csa').write_text(game)
    (tmp_path/'in'/name).write_bytes(make(game))
    text = refused(lambda: prepare_stage3(tmp_path/'in', tmp_path/'out'), ValueError)
    assert name in text and says in text
    made = prepare_stage3(tmp_path/'in', tmp_path/'out', on_bad='skip')
    assert len(made.skipped) >= 1 and all(name in s for s in made.skipped) and any(says in s for s in made.skipped)
    assert made.games >= 1 and f'{len(made.skipped)} record' in repr(made)

@pytest.mark.parametrize('options, says',
                         [(dict(on_bad='ignore'), "on_bad='ignore'"),
                          (dict(filters={'min_plies': 3}), 'a Filters(…) was expected'),
                          (dict(executor=4), 'such as ProcessPoolExecutor(4)'),
                          (dict(policy='shares'), "policy='shares'"), (dict(rows_per_shard=0), 'rows_per_shard=0')])
def test_bad_options_of_preparation(tmp_path, options, says):
    assert says in refused(lambda: prepare_stage3(ONE_FILE, tmp_path/'out', **options), ValueError) and not (tmp_path/'out').exists()

@pytest.mark.parametrize('wrong',
                         [dict(ends='TORYO'), dict(duplicates='no'), dict(eval_range=500),
                          dict(eval_range=(10, -10)), dict(min_plies='30'), dict(skip_plies=-1),
                          dict(min_rating='high'), dict(min_plies=50, max_plies=40)])
def test_bad_filters(wrong):
    from maou_nb.data.records import Filters
    text = refused(lambda: Filters(**wrong), ValueError)
    assert list(wrong)[-1] + '=' in text and 'expected' in text

def test_paths_that_are_none(tmp_path):
    assert 'None is no path' in refused(lambda: prepare_stage3(None, tmp_path/'out'), FileNotFoundError)

def test_a_table_of_something_else(tmp_path):
    import pyarrow as pa
    table = pa.table({'a': [1, 2]})
    with ipc.new_file(str(tmp_path/'x.feather'), table.schema) as w: w.write_table(table)
    assert 'x.feather' in refused(lambda: list(read_games(tmp_path)), ValueError)
    assert 'without the mark' in refused(lambda: find_shards(tmp_path, 3), ShardError)

def test_shards_are_no_records(tmp_path):
    prepare_stage2(ONE_FILE, tmp_path)
    assert 'holds prepared shards' in refused(lambda: list(read_games(tmp_path)), FileNotFoundError)

def test_a_stray_shard_beside_a_manifest(tmp_path):
    prepare_stage2(ONE_FILE, tmp_path)
    path = find_shards(tmp_path, 2)[0].path
    path.with_name('stray.feather').write_bytes(path.read_bytes())
    assert 'stray.feather lies beside a manifest that does not list it' in refused(lambda: find_shards(tmp_path, 2), ShardError)

@pytest.fixture
def one(tmp_path, shards):
    "A run of stage 1 that only lacks its data"
    return lambda path: learn_multi_stage(stage=1, stage1_data_path=path, run_dir=tmp_path/'run')

def test_wrong_path_of_shards(tmp_path, one):
    text = refused(lambda: one(tmp_path/'nowhere'), OptionError)
    assert text.startswith('stage1_data_path: ') and 'nowhere does not exist' in text and not (tmp_path/'run').exists()

def test_empty_folder_of_shards(tmp_path, one):
    (tmp_path/'empty').mkdir()
    assert 'holds no shards' in refused(lambda: one(tmp_path/'empty'), OptionError)

def test_glob_that_matches_nothing(tmp_path, one):
    assert 'matches nothing' in refused(lambda: one(tmp_path/'*.feather'), OptionError)

def test_shard_of_another_stage(shards, one):
    assert 'holds rows of stage 2' in refused(lambda: one(shards['stage2_data_path']), OptionError)

def test_shard_of_another_label_numbering(tmp_path, shards):
    table = read_shard(find_shards(shards['stage2_data_path'], 2)[0])
    about = {**json.loads(table.schema.metadata[b'maou_nb']), 'labels': '1496-BRG'}
    other = table.replace_schema_metadata({'maou_nb': json.dumps(about)})
    with ipc.new_file(str(tmp_path/'other.feather'), other.schema) as w: w.write_table(other)
    text = refused(lambda: learn_multi_stage(stage=2, stage2_data_path=tmp_path, run_dir=tmp_path/'run'), OptionError)
    assert 'other.feather' in text and "'1496-BRG'" in text and "'1496-GBR'" in text

def test_arrow_file_of_somebody_else(tmp_path, shards):
    table = read_shard(find_shards(shards['stage2_data_path'], 2)[0]).replace_schema_metadata(None)
    with ipc.new_file(str(tmp_path/'other.feather'), table.schema) as w: w.write_table(table)
    assert 'without the mark of maou_nb' in refused(lambda: find_shards(tmp_path, 2), ShardError)

@pytest.mark.parametrize('harm', ['cut', 'flip', 'lost'])
def test_damaged_shard(tmp_path, harm):
    prepare_stage1(tmp_path)
    prepare_stage2(ONE_FILE, tmp_path/'two', rows_per_shard=2_000)
    path = sorted((tmp_path/'two').glob('*.feather'))[1]
    raw = bytearray(path.read_bytes())
    if harm == 'lost': os.remove(path)
    else:
        if harm == 'flip': raw[len(raw)//2] ^= 255
        path.write_bytes(raw[:-1000] if harm == 'cut' else raw)
    text = refused(lambda: [read_shard(s) for s in find_shards(tmp_path/'two', 2)], ShardError)
    assert path.name in text and {'cut': 'damaged', 'flip': 'damaged', 'lost': 'not there'}[harm] in text

@pytest.mark.parametrize('option, value, says', [
    ('epoch', 0, 'greater than or equal to 1'), ('test_ratio', 1., 'less than 1'),
    ('learning_ratio', -1, 'greater than 0'), ('learning_ratio', float('nan'), 'finite'),
    ('optimizer', 'adam', "'adamw', 'sgd' or 'muon'"), ('stage', 4, "one of 1, 2, 3, all"),
    ('model_architecture', 'cnn', 'resnet, mlp-mixer, vit'),
    ('seed', 1 << 32, 'less than'), ('gpu', 'gpu0', 'cuda:0, cpu or mps'),
    ('vit_num_heads', 3, "model_architecture='vit'"), ('lerning_ratio', 1, 'did you mean learning_ratio?')])
def test_option_out_of_range(shards, tmp_path, option, value, says):
    text = refused(lambda: learn_multi_stage(**{'stage': 1, 'run_dir': tmp_path/'run', **shards, option: value}), OptionError)
    assert option in text and says in text and not (tmp_path/'run').exists()

def test_all_problems_at_once(shards, tmp_path):
    with pytest.raises(OptionError) as e:
        learn_multi_stage(stage='all', epoch=0, seed='x', stage1_data_path='nowhere', vit_dropout=0.1,
                          policy_loss_ratio=0, value_loss_ratio=0)
    text = str(e.value)
    for part in ('epoch', 'seed', 'stage1_data_path', 'stage2_data_path', 'stage3_data_path', 'vit_dropout',
                 'policy_loss_ratio'):
        assert part in text
    assert len(text.splitlines()) == 8

def test_split_that_leaves_a_side_empty(tmp_path, game):
    "Found before anything is trained, with shares that would do"
    (tmp_path/'one.csa').write_text(game)
    prepare_stage3(tmp_path/'one.csa', tmp_path/'three')
    text = refused(lambda: learn_multi_stage(stage=3, stage3_data_path=tmp_path/'three', run_dir=tmp_path/'run'), OptionError)
    assert 'test_ratio=0.2' in text and 'more games' in text and not (tmp_path/'run').exists()

@pytest.mark.parametrize('make, says', [
    (lambda: torch.nn.Conv2d(1, 1, 1), 'is no Backbone'),
    (lambda: Backbone(8, SquareEmbedding(4), [torch.nn.Identity()]), 'channels=8'),
    (lambda: Backbone(8, SquareEmbedding(8), [torch.nn.Linear(5, 8)]), 'trial batch')])
def test_own_backbone_that_does_not_fit(shards, tmp_path, make, says, monkeypatch):
    monkeypatch.setitem(BACKBONES, 'mine', make)
    monkeypatch.setitem(SIZES, 'mine', {})
    text = refused(lambda: learn_multi_stage(stage=1, model_architecture='Mine', run_dir=tmp_path/'run', **shards), OptionError)
    assert says in text and 'forward_features' in text and not (tmp_path/'run').exists()

def test_bare_decorator():
    assert 'wants a name' in refused(lambda: register_backbone(torch.nn.Identity), TypeError)

@pytest.mark.parametrize('prepare', [prepare_stage2, prepare_stage3])
def test_folder_that_cannot_be_written(tmp_path, prepare):
    (tmp_path/'file').write_text('')
    assert 'cannot be written to' in refused(lambda: prepare(ONE_FILE, tmp_path/'file'/'out'), OSError)

def test_nothing_is_moved_but_the_earlier_run(tmp_path, one, shards):
    "A run folder with other things in it keeps them where they are"
    (tmp_path/'run').mkdir()
    (tmp_path/'run'/'notes.txt').write_text('mine')
    quick = dict(stage=1, stage1_threshold=0., model_size='tiny', run_dir=tmp_path/'run', **shards)
    first, second = learn_multi_stage(**quick), learn_multi_stage(**quick)
    assert (tmp_path/'run'/'notes.txt').read_text() == 'mine'
    assert (tmp_path/'run'/'earlier-1'/first[1].checkpoints['best']).exists() and second.checkpoint(1).exists()
