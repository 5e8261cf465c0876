"What of any rows a run trained on: the same answer for the same rows, however their path is spelled, at every door"
import contextlib, io, itertools, json, re, shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow.compute as pc
import pytest

from maou_nb import OptionError, browse, compare, evaluate, learn_multi_stage, load_net, preflight, show_results
from maou_nb.data import shards as in_shards
from maou_nb.data.files import as_path
from maou_nb.data.old import write_old
from maou_nb.data.packed import HCPE, write_hcpe
from maou_nb.data.records import read_games
from maou_nb.data.shards import content_of, find_shards, first_of_each, read_shard, write_shard
from maou_nb.data.sources import FileSource, StreamingFileSource
from maou_nb.data.splits import held_name, split_sources
from maou_nb.data.trained import games_of, in_words, known_of, overlap, read_trained, side_of, trained_on
from maou_nb.front.options import make_config
from maou_nb.judge.evaluate import rows_to_judge
from maou_nb.judge.inspect import audit
from maou_nb.judge.review import review
from maou_nb.stages.rows import prepare_stage1, prepare_stage3
from maou_nb.stages.stage import STAGES
from maou_nb.train.checkpoints import load_tensors, save_tensors
from maou_nb.train.runner import sources_of
from samples import ONE_FILE, thinned

TINY = dict(stage=3, gpu='cpu', model_size='tiny', resnet_channels=8, resnet_blocks=1, epoch=1, stage3_batch_size=1024)

def quiet(text): pass

@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    "Shards of games 0–29, of games 10–39 (20 of them the same), and of games 30–49, none of which is in the first"
    out, games = tmp_path_factory.mktemp('sets'), ONE_FILE.read_text().split('/\n')
    for name, part in (('first', games[:30]), ('most', games[10:40]), ('others', games[30:])):
        (out/f'{name}.csa').write_text('/\n'.join(part))
        prepare_stage3(out/f'{name}.csa', out/name, rows_per_shard=1_000)
    return out

@pytest.fixture(scope='module')
def run(sets):
    "A run on the first set, a fifth of it held out"
    result = learn_multi_stage(stage3_data_path=sets/'first', run_dir=sets/'run', **TINY)
    return SimpleNamespace(result=result, dir=sets/'run', net=load_net(sets/'run'))

@pytest.fixture(scope='module')
def copies(sets):
    "The first set elsewhere: whole, a link to it, and its files alone under other names"
    shutil.copytree(sets/'first', sets/'copy')
    (sets/'link').symlink_to(sets/'first')
    (sets/'loose').mkdir()
    for i, path in enumerate(sorted((sets/'first').glob('*.feather'))): shutil.copy(path, sets/'loose'/f'{i}.feather')
    (sets/'links').mkdir()
    for path in (sets/'loose').iterdir(): (sets/'links'/path.name).symlink_to(path)

SPELLINGS = {
    'str': lambda p: str(p), 'Path': lambda p: p, 'list': lambda p: [p], 'tuple of str': lambda p: (str(p),),
    'relative': lambda p: p.name, 'relative Path': lambda p: Path(p.name), 'with a dot': lambda p: f'./{p.name}',
    'trailing slash': lambda p: f'{p}/', 'up and down': lambda p: f'{p}/../{p.name}', 'home': lambda p: f'~/{p.name}',
    'glob': lambda p: f'{p}/*.feather', 'glob of folders': lambda p: f'{p.parent}/{p.name[:-1]}[{p.name[-1]}]',
    'files': lambda p: sorted(p.glob('*.feather')), 'files in another order': lambda p: sorted(p.glob('*.feather'))[::-1],
    'a folder and a file of it': lambda p: [p, next(p.glob('*.feather'))], 'twice': lambda p: [p, str(p)],
    'URL': lambda p: f'file://{p}'}
PLACES = ('first', 'copy', 'link', 'loose', 'links')

@pytest.fixture
def spelled(sets, copies, monkeypatch):
    "All ways of naming a set: (in words, path)"
    monkeypatch.chdir(sets)
    monkeypatch.setenv('HOME', str(sets))
    def ways(name):
        places = PLACES if name == 'first' else (name,)
        return [(f'{place}, {how}', f(sets/place)) for place in places for how, f in SPELLINGS.items()]
    return ways

# --- one answer

DOORS = {'rows_to_judge': lambda run, data, **kw: rows_to_judge(run.net, data, **kw)[1],
         'review': lambda run, data, **kw: review(run.dir, data, rows=1, **kw).known,
         'evaluate': lambda run, data, **kw: evaluate(run.dir, data, device='cpu', batch_size=4096, **kw).known}

@pytest.mark.parametrize('name, known', [
    ('first', 'it was trained on most of them'), ('most', '20 of their 30 games'), ('others', 'none of their 20 games was trained on')])
def test_the_answer_depends_on_rows_alone(run, spelled, name, known):
    for how, path in spelled(name):
        said = DOORS['rows_to_judge'](run, path)
        if name == 'most': assert 'of their 30 games' in said and 'were trained on' in said, (how, said)
        else: assert said == known, (how, said)

def test_counts_are_those_of_the_games(sets, run):
    "Games trained on are those of the folds trained on"
    train, valid, _ = split_sources(StreamingFileSource, sets/'first', 3, 0.2)
    theirs = set(games_of(StreamingFileSource(sets/'most', 3)).tolist())
    shared = len(theirs & set(games_of(train).tolist()))
    assert 0 < shared < 20 and f'{shared} of their 30 games' in rows_to_judge(run.net, sets/'most')[1]
    assert len(games_of(train)) + len(games_of(valid)) == 30

@pytest.mark.parametrize('door', DOORS)
def test_every_door_gives_it(run, sets, copies, door):
    for name, folds in itertools.product(('first', 'loose', 'most', 'others'), (None, 'held out', [50])):
        if folds == [50] and name != 'first' or door == 'evaluate' and name in ('loose', 'others'): continue
        data = sets/name
        assert DOORS[door](run, data, folds=folds) == rows_to_judge(run.net, data, folds=folds)[1]
    assert DOORS[door](run, None) == 'held out' == DOORS[door](run, sets/'first', folds='held out')

def test_it_is_shown(run, sets):
    for data, words in ((sets/'first', 'it was trained on most of them'), (None, 'held out')):
        judged, browser = evaluate(run.dir, data, device='cpu'), browse(run.dir, data, rows=2)
        boards = show_results(run.dir, data, n=1, rows=2)
        shown = (repr(judged), judged._repr_html_(), browser._repr_mimebundle_()['text/html'],
                 boards.said, repr(boards))
        assert all(words in text for text in shown)
    assert 'trained' not in browse(sets/'first', stage=3, rows=2)._repr_mimebundle_()['text/html']

def test_folds_are_counted_exactly(run, sets):
    train = split_sources(StreamingFileSource, sets/'first', 3, 0.2)[0]
    for folds in (range(100), range(50), range(19, 60), range(20, 22), range(20)):
        source = StreamingFileSource(sets/'first', 3, folds)
        found = overlap(trained_on(train, None, '').train, side_of(source))
        if source.total_rows: assert found.trained == StreamingFileSource(sets/'first', 3, set(folds) & set(range(20, 100))).total_rows

# --- leaks

def learn(sets, out, **options):
    "What was printed, and the result"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed): result = learn_multi_stage(run_dir=out, **{**TINY, **options})
    return printed.getvalue(), result[3]

@pytest.mark.parametrize('shared', [20, 0])
def test_games_on_both_sides_are_said_at_every_door(sets, tmp_path, shared):
    options = dict(stage3_data_path=sets/'first', stage3_validation_data_path=sets/('most' if shared else 'others'))
    games = 30 if shared else 20
    words = f'20 of its {games} games (66.7%) are trained on' if shared else 'not one of its 20 games is trained on'
    name = 'validation rows, 66.7% of whose games are trained on' if shared else 'held-out games'
    text, stage = learn(sets, tmp_path/'run', **options)
    assert words in text and words in stage.split and stage.judged_on == name and (f'on {name}' in text)
    assert ('held out' in text) == (not shared) and 'held-out rows' not in text
    assert stage.overlap['shared'] == shared and stage.overlap['games'] == games
    assert json.loads((tmp_path/'run'/'result.json').read_text())['stages_completed'][0]['overlap'] == stage.overlap
    assert words in json.loads((tmp_path/'run'/'run.json').read_text())['data']['3']['split']
    found = preflight(**{**TINY, **options, 'run_dir': tmp_path/'none'})
    lines = {what: (said, mark) for _, what, said, mark in found.lines}
    assert words in lines['rows'][0] and lines['rows'][1] == ('look' if shared else 'good') == lines['split'][1]
    assert ('It leaks: 20 of 30 validation games' in lines['split'][0]) == bool(shared)
    assert ('held out' in lines['rows'][0]) == (not shared)
    known = evaluate(tmp_path/'run', device='cpu').known
    assert known == ('20 of their 30 games (66.7%) were trained on' if shared else 'none of their 20 games was trained on')
    assert rows_to_judge(load_net(tmp_path/'run'), options['stage3_validation_data_path'])[1] == known
    assert review(tmp_path/'run', rows=1).known == known

def test_every_spelling_of_validation_rows(sets, spelled):
    for how, path in spelled('most'):
        cfg = make_config(**TINY, stage3_data_path='first', stage3_validation_data_path=path, run_dir='none')
        train, valid, split = sources_of(cfg, STAGES['3'], say=quiet)
        assert held_name(split) == 'validation rows, 66.7% of whose games are trained on', (how, split)
        assert valid.total_rows == StreamingFileSource(sets/'most', 3).total_rows, how

def test_the_same_shards_on_both_sides_are_refused(sets, spelled, tmp_path):
    "By every spelling, all of them or one"
    one = sorted((sets/'loose').glob('*.feather'))[1]
    ways = [w for w in spelled('first') if w[0].startswith('first,') or w[0].endswith((', str', ', glob'))]
    for how, path in [*ways, ('one of them', one), ('one and others', [sets/'others', one])]:
        options = {**TINY, 'stage3_data_path': str(sets/'first'), 'stage3_validation_data_path': path}
        with pytest.raises(OptionError, match='stage3_validation_data_path: .* is trained on as .*first/') as e:
            make_config(**options, run_dir='none')
        assert '\n' not in str(e.value), how
    found = preflight(**options)
    assert not found.ready and 'is trained on as' in repr(found)
    with pytest.raises(OptionError, match='is trained on as'): learn_multi_stage(**options, run_dir=tmp_path/'run')
    assert not (tmp_path/'run').exists()

def test_a_shard_is_read_once(sets, spelled):
    "However often it is named; and what is left out is said"
    rows, n = StreamingFileSource(sets/'first', 3).total_rows, len(find_shards(sets/'first', 3))
    for how, path in spelled('first'):
        heard = []
        for make in (StreamingFileSource, FileSource):
            assert make(path, 3, say=heard.append).total_rows == rows, how
        assert bool(heard) == (how.endswith(('twice', 'of it'))), how
        if heard: assert f'{n if how.endswith("twice") else 1} left out' in heard[0] and 'read once' in heard[0]
    heard = []
    both = StreamingFileSource([sets/'first', sets/'loose', sets/'copy', sets/'link'], 3, say=heard.append)
    assert both.total_rows == rows and len(heard) == 1 and f'{3*n} left out' in heard[0] and 'has the bytes of' in heard[0]
    assert audit(both).repeats == (0, None)

def test_learn_and_preflight_say_so(sets, copies, tmp_path):
    options = dict(stage3_data_path=[sets/'first', sets/'loose'])
    text, stage = learn(sets, tmp_path/'run', **options)
    assert 'has the bytes of' in text and 'its rows are read once' in text and stage.judged_on == 'held-out games'
    assert sum(stage.rows.values()) == StreamingFileSource(sets/'first', 3).total_rows
    found = preflight(**{**TINY, **options, 'run_dir': tmp_path/'none'})
    assert any(what == 'left out' and 'read once' in said for _, what, said, _ in found.lines)

# --- runs side by side

def test_compare_says_what_cannot_be_compared(sets, run, tmp_path):
    learn(sets, tmp_path/'same', stage3_data_path=sets/'copy' if (sets/'copy').exists() else sets/'first')
    assert compare(run.dir, tmp_path/'same').remarks() == []
    learn(sets, tmp_path/'more', stage3_data_path=[sets/'first', sets/'most'], stage3_validation_data_path=sets/'others')
    said = compare(run.dir, tmp_path/'more').remarks()
    assert said[0] == 'stage 3: run, more are judged on different rows'
    assert 'stage 3: more has seen some of the rows that run is judged on: it was trained on them' in said
    both = compare(run.dir, tmp_path/'more')
    text, shown = repr(both), both._repr_html_()
    assert all(s in text and s in shown for s in said)

# --- what is not known

def forgetful(run, out, **about):
    "The run's checkpoint, without what an older version doesn't note"
    path = run.result.checkpoint(3)
    tensors, said = load_tensors(path)
    del said['trained']
    save_tensors(out/'old.safetensors', tensors, {**said, **about})
    return load_net(out/'old.safetensors')

def test_older_checkpoints(sets, run, copies, tmp_path):
    "They are asked about their own shards, as long as these are there; else nothing is claimed"
    net = forgetful(run, tmp_path)
    for data in (None, sets/'first', sets/'loose', sets/'most', sets/'others'):
        assert rows_to_judge(net, data)[1] == rows_to_judge(run.net, data)[1]
    for about in ({'data': '0'*32}, {'config': {**net.about['config'], 'stage3_data_path': str(tmp_path/'gone')}}):
        lost = forgetful(run, tmp_path, **about)
        assert all('not known' in rows_to_judge(lost, sets/name)[1] for name in ('first', 'others'))
    del net.about
    assert rows_to_judge(net, sets/'first')[1] == ''

def test_a_checkpoint_knows_without_its_shards(sets, run, tmp_path):
    "Data that were prepared again, in the same place, are other rows of the same games"
    shutil.copytree(sets/'first', tmp_path/'data')
    learn(sets, tmp_path/'run', stage3_data_path=tmp_path/'data')
    net = load_net(tmp_path/'run')
    shutil.rmtree(tmp_path/'data')
    assert rows_to_judge(net, sets/'first')[1] == 'it was trained on most of them'
    prepare_stage3(sets/'most.csa', tmp_path/'data')
    assert 'of their 30 games' in rows_to_judge(net, tmp_path/'data')[1]

def test_many_games_are_asked_of_the_shards(sets, run, monkeypatch, tmp_path):
    from maou_nb.data import trained
    monkeypatch.setattr(trained, '_KEPT', 5)
    learn(sets, tmp_path/'run', stage3_data_path=sets/'first')
    net = load_net(tmp_path/'run')
    assert net.about['trained']['train']['games'] is None
    assert rows_to_judge(net, sets/'most')[1] == rows_to_judge(run.net, sets/'most')[1]
    net.about['config']['stage3_data_path'] = str(tmp_path/'gone')
    assert rows_to_judge(net, sets/'most')[1].endswith('not known: its own shards are no longer where they were')

@pytest.mark.parametrize('error', thinned([ConnectionError('no route'), PermissionError('Forbidden')], 2))
def test_shards_that_nobody_can_ask_now_are_not_said_to_be_gone(sets, monkeypatch, tmp_path, error):
    "A run with too many games to keep, or of an earlier version, whose bucket does not answer: that is said, at once for all that is asked"
    from maou_nb.data import files, trained
    far = as_path(f'memory://unreachable-{tmp_path.name}')
    for path in (sets/'first').iterdir(): (far/path.name).write_bytes(path.read_bytes())
    monkeypatch.setattr(trained, '_KEPT', 5)
    learn(sets, tmp_path/'run', stage3_data_path=str(far))
    nets = [load_net(tmp_path/'run') for _ in range(2)]
    del nets[1].about['trained']
    asked = []
    def refuse(*args, **more): asked.append(args); raise error
    for name in ('info', 'ls', 'glob', 'find', 'isfile', 'isdir', 'exists', 'open', 'modified', 'ukey'):
        monkeypatch.setattr(type(far.fs), name, refuse)
    monkeypatch.setattr(files, 'TRIES', 1)
    for net in nets:
        asked.clear()
        known = rows_to_judge(net, sets/'most')[1]
        assert 'is not known: ' in known and str(error) in known and str(far) in known and 'no longer' not in known, known
        assert 0 < len(asked) <= 2 and '\n' not in known
    assert str(error) in evaluate(tmp_path/'run', sets/'most', device='cpu').known

def test_rows_that_know_no_games(sets, tmp_path):
    "The old tool's tables: the same file is known, of others it isn't claimed"
    table = read_shard(find_shards(sets/'first', 3)[0])
    for i in range(3): write_old(table.slice(300*i, 300), tmp_path/f'{i}.feather', 3)
    for data in (tmp_path/'0.feather', [tmp_path/'0.feather', tmp_path/'1.feather']):
        text, stage = learn(sets, tmp_path/'run', stage3_data_path=data)
        assert stage.judged_on == 'validation rows, whose games may have been trained on' and 'in no manifest' in text
        net = load_net(tmp_path/'run')
        how, _, doubt = stage.split.partition('; whether its games are trained on is ')
        assert rows_to_judge(net)[1] == f'split {how}; whether it was trained on their games is {doubt}'
        assert rows_to_judge(net, data)[1] in ('it was trained on most of them', 'it was trained on 50.0% of them')
        shutil.rmtree(tmp_path/'run')
    assert rows_to_judge(net, tmp_path/'2.feather')[1].endswith('not known: these rows know no games')
    text, stage = learn(sets, tmp_path/'run', stage3_data_path=tmp_path/'0.feather', stage3_validation_data_path=tmp_path/'1.feather')
    assert stage.judged_on == 'validation rows, whose games may have been trained on'
    assert 'not known: these rows know no games' in stage.split and stage.overlap == {}

@pytest.mark.parametrize('same, kind', thinned([*itertools.product((True, False), ('an old table', 'old tables', 'loose positions'))], 4))
def test_the_same_positions_without_games(sets, tmp_path, kind, same):
    "Rows of other files whose games nobody knows are not held out; their positions are compared"
    table = read_shard(find_shards(sets/'first', 3)[0])
    others = read_shard(find_shards(sets/'others', 3)[0])
    there = table if same else others.filter(pc.greater(others['ply'], 40))
    if kind == 'loose positions':
        write_hcpe(list(read_games(sets/('first.csa' if same else 'others.csa'))), tmp_path/'all')
        np.random.default_rng(0).permutation(np.fromfile(tmp_path/'all', HCPE)).tofile(tmp_path/'loose.hcpe')
        prepare_stage3(tmp_path/'loose.hcpe', tmp_path/'valid')
        train, valid = sets/'first', tmp_path/'valid'
    else:
        write_old(table, tmp_path/'train.feather', 3)
        (tmp_path/'valid').mkdir()
        parts = [there] if kind == 'an old table' else [there.slice(0, 300), there.slice(300)]
        for i, part in enumerate(parts): write_old(part.take(list(range(len(part)))[::-1]), tmp_path/'valid'/f'{i}.feather', 3)
        train, valid = tmp_path/'train.feather', tmp_path/'valid'
    options = dict(stage3_data_path=train, stage3_validation_data_path=valid)
    text, stage = learn(sets, tmp_path/'run', **options)
    if same: assert stage.judged_on == 'validation rows, 100% of whose positions are trained on'
    else: assert re.fullmatch(r'validation rows, (.*% of whose positions are|whose games may have been) trained on', stage.judged_on)
    said = [s.replace('neighbours of a held-out position', '') for s in (text, stage.split)]
    assert not re.search('held.out', ' '.join(said)) and f'on {stage.judged_on}' in text
    assert 'not known' in stage.split and 'not known' in evaluate(tmp_path/'run', device='cpu').known
    lines = {what: (said, mark) for _, what, said, mark in preflight(**{**TINY, **options, 'run_dir': tmp_path/'none'}).lines}
    assert lines['rows'][1] == lines['split'][1] == 'look' and ' to judge on' in said[0]
    assert not re.search('held.out', lines['rows'][0].replace('neighbours of a held-out position', ''))

# name → (how its rows are split, why their games may be on both sides)
GAMELESS = {'one table': ('by row', 'these rows know no games'), 'tables': ('by file', 'these rows know no games'),
            'loose': ('by fold, which are not games', 'all of the positions came from pieces of games'),
            'no manifest': ('by fold, which are not games', 'no manifest tells')}

@pytest.fixture(scope='module')
def gameless(sets):
    "Sets whose rows know no games, one of each kind, made of the same games"
    out, table = sets/'gameless', read_shard(find_shards(sets/'first', 3)[0])
    for name in GAMELESS: (out/name).mkdir(parents=True)
    write_old(table, out/'one table'/'0.feather', 3)
    for i in range(4): write_old(table.slice(200*i, 200), out/'tables'/f'{i}.feather', 3)
    write_hcpe(list(read_games(sets/'first.csa')), out/'all')
    np.random.default_rng(0).permutation(np.fromfile(out/'all', HCPE)).tofile(out/'loose.hcpe')
    prepare_stage3(out/'loose.hcpe', out/'loose')
    for path in find_shards(sets/'first', 3): shutil.copy(path.path, out/'no manifest')
    return out

@pytest.mark.parametrize('kind', thinned(GAMELESS, 2))      # how each is split and doubted, a test below says
def test_one_set_whose_rows_know_no_games_is_doubted_at_every_door(sets, gameless, tmp_path, kind):
    "Rows of one game may be on both sides, however they are split: none is called held out, and all say why"
    how, why = GAMELESS[kind]
    doubt, options = f'not known: {why}', dict(stage3_data_path=gameless/kind)
    text, stage = learn(sets, tmp_path/'run', **options)
    name = 'validation rows, whose games may have been trained on'
    assert stage.judged_on == name == held_name(stage.split) and stage.split.startswith(how) and doubt in stage.split
    assert f'on {name}' in text and f' to judge on, {stage.split}' in text and stage.overlap == {}
    assert json.loads((tmp_path/'run'/'result.json').read_text())['stages_completed'][0]['judged_on'] == name
    assert json.loads((tmp_path/'run'/'run.json').read_text())['data']['3']['split'] == stage.split
    lines = {what: (said, mark) for _, what, said, mark in preflight(**{**TINY, **options, 'run_dir': tmp_path/'none'}).lines}
    assert lines['rows'][1] == lines['split'][1] == 'look' and f' to judge on, {stage.split}' in lines['rows'][0]
    known = rows_to_judge(load_net(tmp_path/'run'))[1]
    assert known.startswith(f'split {how}') and f'whether it was trained on their games is {doubt}' in known
    shutil.copytree(tmp_path/'run', tmp_path/'copy')
    said = [text, stage.split, lines['rows'][0], known, evaluate(tmp_path/'run', device='cpu').known, review(tmp_path/'run', rows=1).known,
            browse(tmp_path/'run', rows=1)._repr_mimebundle_()['text/plain'], repr(show_results(tmp_path/'run', n=1, rows=1)),
            *compare(tmp_path/'run', tmp_path/'copy').remarks()]
    assert all(known in s for s in said[4:8]) and all(doubt in s for s in said)
    assert not re.search('held.out', ' '.join(said).replace('neighbours of a held-out position', ''))

def test_rows_of_no_games_keep_their_words(tmp_path):
    "Single pieces are of no game that could be on both sides"
    prepare_stage1(tmp_path/'all')
    table = read_shard(find_shards(tmp_path/'all', 1)[0])
    for i in range(3): write_shard(tmp_path/f'{i}.feather', table.slice(300*i, 300), 1, 'a test')
    *sides, split = split_sources(StreamingFileSource, sorted(tmp_path.glob('*.feather')), 1, 0.3)
    assert split == 'by file, as they know no games: 1 of 3' and held_name(split) == 'held-out rows'
    assert known_of(trained_on(*sides, split, quiet), side_of(sides[1], quiet)) == f'held out {split}'

def test_words_of_an_earlier_version(sets, gameless):
    "Which said how rows were split, and not that their games are doubted: they are read, and doubted all the same"
    for kind, (how, why) in GAMELESS.items():
        *sides, split = split_sources(StreamingFileSource, gameless/kind, 3, 0.2)
        saved = trained_on(*sides, split, quiet).saved()
        old = {n: v for n, v in saved.items() if n != 'sums'}
        parts = split.replace('whether its games are trained on is not known: ', '').split('; ')
        old['split'] = '; '.join(parts) if kind in ('loose', 'no manifest') else parts[0]
        said = known_of(read_trained({'trained': old}), side_of(sides[1], quiet))
        assert said == known_of(read_trained({'trained': saved}), side_of(sides[1], quiet)) and said.startswith(f'split {how}'), said

# --- without reading more than is needed

def test_files_are_told_apart_without_hashing_them(sets, copies, tmp_path, monkeypatch):
    table = read_shard(find_shards(sets/'first', 3)[0])
    for i in range(8): write_shard(tmp_path/f'{i}.feather', table.slice(100*i, 100), 3, 'a test')
    asked = []
    monkeypatch.setattr(in_shards, 'file_sha256', lambda p: asked.append(p) or in_shards.hashlib.sha256(Path(p).read_bytes()).hexdigest())
    found = find_shards(tmp_path, 3)
    assert len(found) == 8 and not asked
    find_shards(sets/'first', 3); side_of(StreamingFileSource(sets/'first', 3), quiet)
    assert not asked                                 # the manifest has it
    heard = []
    for _ in range(2): side_of(StreamingFileSource(tmp_path, 3), heard.append)
    assert len(asked) == 8 and len(heard) == 1 and '8 shards of' in heard[0]
    (tmp_path/'3.feather').write_bytes((tmp_path/'4.feather').read_bytes())       # other bytes in the same place
    one, other = (find_shards(tmp_path/f'{i}.feather', 3)[0] for i in (3, 4))
    assert len(find_shards(tmp_path, 3)) == 7 and content_of(one) == content_of(other)

def test_copies_are_found_whatever_their_order(sets, copies):
    rng, all_of_them = np.random.default_rng(0), [s for p in ('first', 'loose', 'copy', 'most') for s in find_shards(sets/p, 3)]
    for _ in range(10):
        order = [all_of_them[i] for i in rng.permutation(len(all_of_them))]
        contents = [content_of(s) for s in order]
        assert first_of_each(order) == [contents.index(c) for c in contents]

def test_what_is_kept_is_what_was(sets):
    *sides, how = split_sources(StreamingFileSource, sets/'first', 3, 0.2)
    run = trained_on(*sides, how, quiet)
    again = read_trained({'trained': json.loads(json.dumps(run.saved()))})
    for data in ('first', 'most', 'others'):
        other = side_of(StreamingFileSource(sets/data, 3))
        assert in_words(overlap(again.train, other)) == in_words(overlap(run.train, other))

@pytest.fixture(scope='module')
def early(sets):
    "The games of a set that go so far, and end in a resignation soon after the ply from which they are known again"
    def make(end):
        out, lines = sets/f'early-{end}', (sets/'first.csa').read_text().splitlines(keepends=True)
        if out.exists(): return out
        moves, kept = 0, []
        for line in lines:
            if re.match(r'[+-]\d{4}', line): moves += 1
            if line.startswith('/'): moves = 0
            if moves <= end or line[0] in "%/": kept.append(line)
        (sets/f'early-{end}.csa').write_text(''.join(kept))
        prepare_stage3(sets/f'early-{end}.csa', out)
        return out
    return make

def test_games_that_were_cut_early_are_suspected(sets, early, tmp_path):
    "They have too few late positions to be known again; that those are trained on gives them away"
    train, cut = StreamingFileSource(sets/'first', 3), early(31)
    found = audit(train, StreamingFileSource(cut, 3))
    assert found.suspect and 'No game is on both sides' not in found.verdict
    assert not audit(train, StreamingFileSource(sets/'others', 3)).suspect
    marks = {what: mark for _, what, _, mark in preflight(**{**TINY, 'stage3_data_path': sets/'first', 'run_dir': tmp_path/'none',
                                                            'stage3_validation_data_path': cut}).lines}
    assert marks['split'] == 'look'

@pytest.mark.parametrize('end, on', thinned([*itertools.product((31, 34, 38, 44), ('judged', 'trained'))], 5))
def test_of_games_that_were_cut_early_no_door_makes_a_claim(sets, early, tmp_path, end, on):
    train, cut = (sets/'first', early(end)) if on == 'judged' else (early(end), sets/'first')
    result = learn_multi_stage(**{**TINY, 'stage3_data_path': train, 'stage3_validation_data_path': cut, 'run_dir': tmp_path/'run'})
    doors = [result.stages_completed[-1].judged_on, str(evaluate(result, cut)), str(evaluate(tmp_path/'run', cut)), repr(result)]
    for text in doors: assert re.search('at least [0-9.]+%? of (their|whose)|not known|by their keys', text), text
