"Rows that a network has seen, in whatever way, are said to be so at every door"
import contextlib, inspect, io, json, random, re, shutil
from types import SimpleNamespace

import numpy as np
import pytest
from rsshogi.core import Board, Move

import maou_nb
from maou_nb import browse, compare, evaluate, learn_multi_stage, load_net, preflight, show_results
from maou_nb.data import trained
from maou_nb.data.positions import positions
from maou_nb.data.records import Filters, read_games
from maou_nb.data.shards import find_shards, read_shard
from maou_nb.data.sources import StreamingFileSource
from maou_nb.data.splits import held_name, share_text
from maou_nb.data.trained import AT_LEAST, CONTAINED, DEEP, MARKS, Marks, copied_games, marks_of, side_of
from maou_nb.judge.evaluate import rows_to_judge
from maou_nb.judge.inspect import audit
from maou_nb.judge.review import review
from maou_nb.stages.rows import prepare_stage3
from maou_nb.train.checkpoints import load_tensors, save_tensors
from samples import ONE_FILE
from writers import Told, csa, kinds

TINY = dict(stage=3, gpu='cpu', model_size='tiny', resnet_channels=4, resnet_blocks=1, epoch=1, stage3_batch_size=1024,
            tensorboard_histogram_frequency=0)
FROM = tuple(f'resume_{part}_from' for part in ('backbone', 'policy_head', 'value_head'))

def warm(path): return dict.fromkeys(FROM, path)

def without_last_moves(text): return re.sub(r'[+-]\d{4}[A-Z]{2}\n(?:T.*\n|\'\*\*.*\n)*(?=%)', '', text)

def in_part(game, first, last):
    "The moves `first` to `last` of a game, as a CSA record of its own"
    board, moves, words = Board(f'{game.start} 1'), [Move(int(m)).to_usi() for m in game.moves], []
    for ply, usi in enumerate(moves[:last]):
        if ply == first: start = ' '.join(board.to_sfen().split()[:3])
        moved = usi[0] if usi[1] == '*' else kinds(board)[usi[:2]].upper()
        words.append((moved, f'+{moved}' if usi.endswith('+') else moved))
        board.apply_usi(usi)
    told = Told(start, moves[first:last], [None]*(last - first), '%TORYO', None, words[first:])
    return '\n'.join(csa(told, random.Random(first)))

def learn(run_dir, data, judged, **options):
    "A run, and what it printed"
    printed, own = io.StringIO(), dict(stage3_data_path=data, stage3_validation_data_path=judged)
    with contextlib.redirect_stdout(printed): result = learn_multi_stage(run_dir=run_dir, **{**TINY, **own, **options})
    return SimpleNamespace(result=result[3], dir=run_dir, text=printed.getvalue())

@pytest.fixture(scope='module')
def sets(tmp_path_factory):
    "Games 0–13: as they are, copied, prepared anew, with games 7–20, less their last moves, and in part; and games 21–28, and 29–36"
    out, games = tmp_path_factory.mktemp('doors'), ONE_FILE.read_text().split('/\n')
    cut = [without_last_moves(g) for g in games]
    for name, part, rows in (('first', games[:14], 500), ('half', games[7:21], 500),
                             ('cut', cut[:14], 500), ('others', games[21:29], 500), ('judged', games[29:37], 500)):
        (out/f'{name}.csa').write_text('/\n'.join(part))
        prepare_stage3(out/f'{name}.csa', out/name, rows_per_shard=rows)
    prepare_stage3(out/'first.csa', out/'anew', filters=Filters(skip_plies=4))
    rng = np.random.default_rng(0)
    parts = {'stopped': lambda n: (0, rng.integers(0.48*n, 0.55*n)), 'late': lambda n: (rng.integers(0.3*n, 0.6*n), n),
             'middle': lambda n: (rng.integers(0.1*n, 0.3*n), rng.integers(0.8*n, 0.9*n))}
    for name, part in parts.items():
        records = [in_part(g, *map(int, part(len(g)))) for g in read_games(out/'first.csa')]
        (out/f'{name}.csa').write_text('\n/\n'.join(records))
        prepare_stage3(out/f'{name}.csa', out/name)
    (out/'copied').mkdir()
    for i, path in enumerate(sorted((out/'first').glob('*.feather'))): shutil.copy(path, out/'copied'/f'{i}.feather')
    shutil.copytree(out/'first', out/'same')
    return out

@pytest.fixture(scope='module')
def made(sets):
    "A run on the first set; one that began from it on other games; a third that began from the second; and of files that tell nothing"
    first = learn(sets/'runs'/'first', sets/'first', sets/'judged', save_split_params=True)
    runs = {'first': first, 'second': learn(sets/'runs'/'second', sets/'others', sets/'judged', **warm(first.dir))}
    runs['third'] = learn(sets/'runs'/'third', sets/'cut', sets/'judged', **warm(runs['second'].dir))
    tensors, about = load_tensors(maou_nb.load_run(first.dir).checkpoint(3))
    save_tensors(sets/'silent.safetensors', tensors, {k: v for k, v in about.items() if k != 'trained'})
    runs['of silent'] = learn(sets/'runs'/'silent', sets/'others', sets/'judged', **warm(sets/'silent.safetensors'))
    parts = first.dir/'checkpoints'/'stage3'/'parts'
    runs['of parts'] = learn(sets/'runs'/'parts', sets/'stopped', sets/'judged')
    runs['of a part'] = learn(sets/'runs'/'part', sets/'others', sets/'judged', resume_backbone_from=parts/'backbone.safetensors')
    return runs

UNDER_ANOTHER = r'1?\d of (its|their) 14 games .* (are|were) trained on, under another key'

# kind of overlap → (the run that is asked, the set it is asked about, what of it is said, and whether learn refuses them both)
KINDS = {
    'the same shards':              ('first', 'same', r'it was trained on them', True),
    'copied shards':                ('first', 'copied', r'it was trained on them', True),
    'prepared anew':                ('first', 'anew', r'14 of (its|their) 14 games \(100%\) (are|were) trained on(?!, under)', False),
    'shared games':                 ('first', 'half', r'7 of (its|their) 14 games \(50\.0%\) (are|were) trained on(?!, under)', False),
    'games less their last move':   ('first', 'cut',
                                     r'13 of (its|their) 14 games \(92.9%\) (are|were) trained on, under another key', False),
    'games that stop early':        ('first', 'stopped', UNDER_ANOTHER, False),
    'games that begin late':        ('first', 'late', UNDER_ANOTHER, False),
    'games without either end':     ('first', 'middle', UNDER_ANOTHER, False),
    'games that go on':             ('of parts', 'first', UNDER_ANOTHER, False),
    'what it began from':           ('second', 'same', r'the net it began from was trained on them', False),
    'games of what it began from':  ('second', 'half', r'7 of their 14 games \(50\.0%\) were trained on by the net it began from', False),
    'copies of its games':          ('second', 'cut', r'13 of their 14 games .* under another key by the net it began from', False),
    'what that began from':         ('third', 'others', r'the net it began from was trained on them', False),
    'of a part':                    ('of a part', 'copied', r'the net it began from was trained on them', False),
    'what it began from is silent': ('of silent', 'half', r'whether the net it began from was trained on them is not known', False)}
TRAINS_ON = {'first': 'first', 'second': 'others', 'third': 'cut', 'of silent': 'others', 'of a part': 'others', 'of parts': 'stopped'}
BEGINS_FROM = {'second': 'first', 'third': 'second', 'of silent': 'silent.safetensors'}

def options_of_run(sets, made, name):
    "What a run of the same kind would be given"
    if name == 'of a part': return dict(resume_backbone_from=made['first'].dir/'checkpoints'/'stage3'/'parts'/'backbone.safetensors')
    if name not in BEGINS_FROM: return {}
    source = BEGINS_FROM[name]
    return warm(sets/source if source.endswith('.safetensors') else made[source].dir)

def learns(sets, made, tmp_path, run, data, refused):
    "What training says whose validation rows these are"
    options = options_of_run(sets, made, run)
    if not refused:
        found = learn(tmp_path/'run', sets/TRAINS_ON[run], sets/data, **options)
        assert f'on {found.result.judged_on}' in found.text and found.result.split in found.text
        assert found.result.judged_on == held_name(found.result.split)
        assert found.result.judged_on.startswith('validation rows'), found.result.judged_on
        return found.result.split
    with pytest.raises(maou_nb.OptionError) as e: learn(tmp_path/'run', sets/TRAINS_ON[run], sets/data, **options)
    return f'it was trained on them: {e.value}'*('is trained on as' in str(e.value))

def preflights(sets, made, tmp_path, run, data, refused):
    "What preflight says of the same"
    options = dict(stage3_data_path=sets/TRAINS_ON[run], stage3_validation_data_path=sets/data)
    found = preflight(**{**TINY, **options, **options_of_run(sets, made, run)}, run_dir=tmp_path/'none')
    if refused: return f'it was trained on them: {found}'*(not found.ready and 'is trained on as' in repr(found))
    said, mark = next((said, mark) for _, what, said, mark in found.lines if what == 'rows')
    assert mark == 'look'
    return said

BESIDE = {}     # set → a run that is judged on it

def compares(sets, made, tmp_path, run, data, refused):
    "What is said of the run beside another that is judged on these rows, which was trained on none of them"
    if (sets, data) not in BESIDE: BESIDE[sets, data] = learn(sets/'runs'/f'beside-{data}', sets/'judged', sets/data).dir
    found, name = compare(made[run].dir, BESIDE[sets, data]), made[run].dir.name
    said = [s for s in found.remarks() if f'{name} has seen' in s and 'that beside' in s]
    assert len(said) == 1 and said[0] in repr(found) and said[0] in found._repr_html_()
    return said[0]

def asked(door):
    return lambda sets, made, tmp_path, run, data, refused: door(made[run].dir, sets/data)

DOORS = {
    'learn_multi_stage': learns, 'preflight': preflights, 'compare': compares,
    'evaluate': asked(lambda of, data: repr(evaluate(of, data, device='cpu', batch_size=4096)).splitlines()[0]),
    'browse': asked(lambda of, data: browse(of, data, rows=1)._repr_mimebundle_()['text/plain']),
    'show_results': asked(lambda of, data: repr(show_results(of, data, n=1, rows=1)))}
NO_FIGURES = {'tensorboard'}       # of rows: it draws what runs wrote

def test_no_door_is_left_out():
    "Whatever is in front that takes rows and a network, or runs side by side"
    front = {n: inspect.signature(f).parameters for n in maou_nb.__all__ if inspect.isfunction(f := getattr(maou_nb, n))}
    asks = {n for n, given in front.items() if {'data', 'runs'} & given.keys()}
    assert asks - NO_FIGURES == DOORS.keys() - {'learn_multi_stage', 'preflight'} and {'learn_multi_stage', 'preflight'} <= front.keys()

# in `make test` each door hears of a third of the kinds, and each kind comes to two doors
PAIRS = [pair if (i + j) % 3 == 0 else pytest.param(*pair, marks=pytest.mark.slow)
         for i, door in enumerate(DOORS) for j, kind in enumerate(KINDS) for pair in [(door, kind)]]

@pytest.mark.parametrize('door, kind', PAIRS)
def test_every_door_says_every_kind(sets, made, tmp_path, door, kind):
    run, data, words, refused = KINDS[kind]
    said = DOORS[door](sets, made, tmp_path, run, data, refused)
    assert re.search(words, said), (door, kind, said)
    claims = re.sub('as for its own run, [^;]*', '', said)
    assert not re.search('held.out|none of', claims), (door, kind, said)

@pytest.mark.parametrize('kind', KINDS)
def test_asked_or_looked_at_it_is_the_same_answer(sets, made, kind):
    run, data, words, _ = KINDS[kind]
    known = rows_to_judge(load_net(made[run].dir), sets/data)[1]
    assert re.search(words, known) and known == review(made[run].dir, sets/data, rows=1).known
    assert evaluate(made[run].dir, sets/data, device='cpu').known == known
    assert known in browse(made[run].dir, sets/data, rows=1)._repr_mimebundle_()['text/plain']

def test_what_nobody_saw_is_held_out(sets, made):
    "The check above is no empty one: the same doors say so of other games"
    for name in ('first', 'second', 'third', 'of a part'):
        assert made[name].result.judged_on == 'held-out games', made[name].result.split
        assert evaluate(made[name].dir, device='cpu').known == 'none of their 8 games was trained on'
    assert compare(made['first'].dir, made['second'].dir).remarks() == []
    lines = preflight(**TINY, stage3_data_path=sets/'first', **warm(made['second'].dir), run_dir='none').lines
    assert 'the net it began from was trained on' in next(said for _, what, said, _ in lines if what == 'rows')

# --- what is carried on

def test_a_run_that_goes_on_keeps_what_it_began_from(sets, made, tmp_path):
    "Its own checkpoint says it, whatever the source has become; other options than the run was begun with do not hide it"
    shutil.copytree(made['first'].dir, tmp_path/'source')
    options = dict(run_dir=tmp_path/'run', data=sets/'others', judged=sets/'judged')
    begun = learn(**options, **warm(tmp_path/'source'))
    assert begun.result.before == json.loads((tmp_path/'run'/'result.json').read_text())['stages_completed'][0]['before']
    assert [set(b['shards']) for b in begun.result.before] == [set(side_of(StreamingFileSource(sets/'first', 3)).shards)]
    for k, changed in enumerate((warm(made['of silent'].dir), {})):
        again = learn(**options, **changed, resume_from='latest', epoch=2 + k)
        assert again.result.before == begun.result.before and again.result.epochs_trained == 2 + k
        assert evaluate(tmp_path/'run', sets/'copied', device='cpu').known == 'the net it began from was trained on them'
    taken_up = learn(tmp_path/'copy', sets/'others', sets/'judged', resume_from=tmp_path/'run', epoch=4)
    assert taken_up.result.before == begun.result.before
    said = preflight(**TINY, stage3_data_path=sets/'others', stage3_validation_data_path=sets/'judged', run_dir=tmp_path/'new',
                     resume_from=tmp_path/'run').lines
    assert 'net it began from' not in next(s for _, what, s, _ in said if what == 'rows')
    said = preflight(**TINY, stage3_data_path=sets/'others', stage3_validation_data_path=sets/'same', run_dir=tmp_path/'new',
                     resume_from=tmp_path/'run').lines
    assert any(s.startswith('stage3_validation_data_path: these are not the rows') for _, what, s, mark in said if mark == 'bad')

def test_other_validation_rows_after_a_resume(sets, tmp_path):
    "What a run trained on before its rows were divided otherwise is not forgotten"
    learn(tmp_path/'run', sets/'first', sets/'judged')
    about = maou_nb.train.checkpoints.load_tensors(maou_nb.load_run(tmp_path/'run').checkpoint(3), whole=False)[1]
    sides = maou_nb.train.runner.sides_going_on(about)
    assert len(sides) == 1 and trained.distinct_sides(sides, side_of(StreamingFileSource(sets/'first', 3))) == []
    part = side_of(StreamingFileSource(sets/'first', 3, range(50)))
    assert trained.distinct_sides(sides, part) == sides

def test_stages_of_a_run_are_carried_on(sets, shards_of_all, tmp_path):
    "A backbone that went through all stages is known to have seen the rows of each"
    short = dict(stage1_threshold=0.1, stage2_threshold=0.0001, stage1_max_epochs=1, stage2_max_epochs=1, stage2_batch_size=512)
    run = learn_multi_stage(run_dir=tmp_path/'all', **{**TINY, 'stage': 'all'}, **shards_of_all, **short)
    assert [[b['kind'] for b in s.before] for s in run.stages()] == [[], ['1'], ['2', '1']]
    assert run[3].judged_on == 'held-out games'                     # other rows have other targets
    again = learn_multi_stage(run_dir=tmp_path/'again', resume_backbone_from=run.run_dir, stage2_test_ratio=0.2, **shards_of_all,
                              **{**TINY, 'stage': 2}, **short)
    assert {b['kind'] for b in again[2].before} == {'1', '2', '3'}
    assert again[2].judged_on == 'validation rows, which the net it began from was trained on'

@pytest.fixture(scope='module')
def shards_of_all(sets):
    from maou_nb.stages.rows import prepare_stage1, prepare_stage2
    prepare_stage1(sets/'stage1')
    prepare_stage2(sets/'first.csa', sets/'stage2')
    return {'stage1_data_path': sets/'stage1', 'stage2_data_path': sets/'stage2', 'stage3_data_path': sets/'first'}

# --- what is not known

def spoiled(made, name, out, spoil):
    "The network of a run from a checkpoint in which something else is said of its rows"
    tensors, about = load_tensors(maou_nb.load_run(made[name].dir).checkpoint(3))
    about = json.loads(json.dumps(about))
    spoil(about)
    save_tensors(out/'spoiled.safetensors', tensors, about)
    return load_net(out/'spoiled.safetensors')

def test_checkpoints_of_an_earlier_version(sets, made, tmp_path):
    "They name no sources, and no marks or fewer: the first is told from their options, the second is asked of their shards"
    def older(about):
        del about['trained']['before']
        for side in ('train', 'valid'): del about['trained'][side]['marks'], about['trained'][side]['kind']
    net = spoiled(made, 'second', tmp_path, older)
    assert 'whether the net it began from was trained on them is not known' in rows_to_judge(net, sets/'same')[1]
    net = spoiled(made, 'first', tmp_path, older)
    for name in ('same', 'half', 'cut', 'others'):
        assert rows_to_judge(net, sets/name)[1] == rows_to_judge(load_net(made['first'].dir), sets/name)[1]
    def fewer(about):
        for side in ('train', 'valid'):
            kept, read = about['trained'][side], trained._read(about['trained'][side]).marks
            kept['marks']['numbers'] = trained._packed(read.numbers[:, :8], '<u4')
            del kept['sums']
    net = spoiled(made, 'first', tmp_path, lambda about: (fewer(about), about['config'].update(stage3_data_path='gone')))
    assert trained.fits_trained(net.about['trained']) and net.about['trained']['train']['marks']
    for name in ('same', 'half', 'cut', 'others'):
        assert rows_to_judge(net, sets/name)[1] == rows_to_judge(load_net(made['first'].dir), sets/name)[1]
    lost = spoiled(made, 'first', tmp_path, lambda about: (older(about), about['config'].update(stage3_data_path='gone')))
    for name in ('cut', 'others'):
        assert 'whether it was trained on copies of their games is not known: its own shards' in rows_to_judge(lost, sets/name)[1]
    assert rows_to_judge(lost, sets/'same')[1] == 'it was trained on them'

@pytest.mark.parametrize('odd', [None, 7, [], {}, {'train': None, 'valid': None, 'split': ''},
                                 {'train': {}, 'valid': {}, 'split': 1, 'before': [3]}])
def test_what_no_run_wrote_is_no_claim(sets, made, tmp_path, odd):
    def spoil(about): about.update(trained=odd, config={**about['config'], 'stage3_data_path': 'gone'})
    assert 'not known' in rows_to_judge(spoiled(made, 'first', tmp_path, spoil), sets/'same')[1]
    source = tmp_path/'spoiled.safetensors'
    assert 'may have been trained on' in learn(tmp_path/'run', sets/'others', sets/'judged', **warm(source)).result.judged_on

ODD = (None, True, 0, 7, -1, 1.5, 10**30, '', 'x', 'abc', '<b>', 'AAAAAAAAAAA=', [], [0], [1], [1, 'x'], [None], [[]],
       {}, {'a': 'x'}, {'a': None}, {'a': 1}, {'f'*64: 1})

def places(value, at=()):
    "Every field of a record, and the first few of many"
    if at: yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for name, v in inner: yield from places(v, (*at, name))

def changed(record, at, value):
    again = json.loads(json.dumps(record))
    owner = again
    for name in at[:-1]: owner = owner[name]
    if value is ...: del owner[at[-1]]
    else: owner[at[-1]] = value
    return again

def without_sums(record):
    "As an earlier version wrote it"
    if isinstance(record, list): return [without_sums(r) for r in record]
    return {n: without_sums(v) for n, v in record.items() if n != 'sums'} if isinstance(record, dict) else record

def said_of(about, others):
    "What the record in `about` says of each of `others`"
    run = trained.read_trained(about)
    trained.sides_of(about)
    if run is not None: trained.said_split(run), trained.shared_figures(run)
    return ['not known' if run is None else trained.known_of(run, o) for o in others]

def claims(text): return 'not known' not in text and bool(re.search('held.out|none of', text))

@pytest.mark.parametrize('name', ['first', 'second', 'of silent', 'by game', 'of pieces'])
def test_a_changed_record_claims_no_more(sets, made, tmp_path, name):
    "Whatever stands in a field of it: no error, nothing raw, and nothing is held out that was not"
    source = sets/'half'
    if name == 'of pieces':
        source = tmp_path/'loose'
        shutil.copytree(sets/'half', source)
        (source/'manifest.json').unlink()
    run = made[name].dir if name in made else learn(tmp_path/'run', source, None).dir
    about = json.loads(json.dumps(load_tensors(maou_nb.load_run(run).checkpoint(3))[1]))
    others = [side_of(StreamingFileSource(sets/n, 3, f), str) for n in ('same', 'half', 'cut', 'others', 'judged')
              for f in (None, range(20))]
    for record in (about['trained'], without_sums(about['trained'])):
        assert trained.fits_trained(record)
        untouched = said_of({**about, 'trained': record}, others)
        assert untouched == said_of(about, others) and not all('not known' in s for s in untouched)
        for at in places(record):
            for odd in (*ODD, ...):
                said = said_of({**about, 'trained': changed(record, at, odd)}, others)
                assert not any('<b>' in s or 'None' in s or 'abc' in s for s in said), (at, odd, said)
                if 'sums' in record:
                    assert all(claims(a) <= claims(b) for a, b in zip(said, untouched)), (at, odd, said, untouched)

SPOILT = [('train', 'shards', []), ('train', 'shards', [1]), ('train', 'shards', 'x'), ('train', 'shards', None),
          ('train', 'shards', {'a': 'x'}), ('train', 'shards', {'a': None}), ('valid', 'shards', []), ('valid', 'shards', 'x'),
          ('train', 'folds', [1, 'x']), ('split', None), ('split', 7), ('split', '<b>'), ('train', 'kind', 7),
          ('train', 'there', 'abc'), ('train', 'there', [])]

def test_a_spoilt_record_at_the_doors(sets, made, tmp_path):
    "As a file on disk, judged and begun from"
    for *at, odd in SPOILT:
        for sums in (True, False):
            def spoil(about):
                about['trained'] = changed(about['trained'] if sums else without_sums(about['trained']), at, odd)
                about['config']['stage3_data_path'] = 'gone'
            net = spoiled(made, 'first', tmp_path, spoil)
            for data in ('same', 'judged'): assert 'whether it was trained on them is not known' in rows_to_judge(net, sets/data)[1]
            source = tmp_path/'spoiled.safetensors'
            assert maou_nb.train.runner.backbone_sides(SimpleNamespace(resume_backbone_from=source)) == [None]
    begun = learn(tmp_path/'run', sets/'others', sets/'judged', resume_backbone_from=source)
    assert begun.result.judged_on == 'validation rows, which the net it began from may have been trained on'

def test_what_is_not_looked_for_is_said(sets, made, tmp_path, monkeypatch):
    "Of very many rows copies are not looked for: then no door says that there are none"
    monkeypatch.setattr(trained, 'LOOKED_AT', 100)
    run = learn(tmp_path/'run', sets/'first', sets/'cut')
    assert run.result.judged_on == 'held-out games, by their keys'
    assert 'is not known: they are not looked for in more than 100 rows' in run.result.split
    for data in (None, sets/'cut', sets/'judged'):
        assert 'copies of their games is not known: they are not looked for' in evaluate(tmp_path/'run', data, device='cpu').known
    assert 'copies' not in run.result.overlap
    assert any('is not known' in s for s in compare(tmp_path/'run', made['first'].dir).remarks())

# --- copies

def test_copies_are_games_with_the_same_positions():
    "Less their first or last position, or both; and never games that share an opening"
    rng = np.random.default_rng(0)
    def side(games): return Marks(np.arange(len(games), dtype=np.uint64), np.array([np.sort(g)[:MARKS] for g in games], np.uint32))
    games = [rng.choice(2**32 - 1, rng.integers(20, 120), replace=False) + 1 for _ in range(300)]
    opening = games[0][:4]
    others = [np.concatenate([opening, rng.choice(2**32 - 1, 60) + 1]) for _ in range(300)]
    for cut in (slice(None), slice(None, -1), slice(1, None), slice(1, -1)):
        assert len(copied_games(side(games), side([g[cut] for g in games]))) > 297
        assert len(copied_games(side([g[cut] for g in games]), side(games))) > 297
    assert len(copied_games(side(games), side(others))) == 0 == len(copied_games(side(others), side(games)))

def positions_of(games):
    "Ids and plies of the positions of each game, each game by itself"
    made = positions(games, legal=False)
    return [(made['id'][made['game'] == g.key], made['ply'][made['game'] == g.key].astype(int)) for g in games]

def marked(games, width=MARKS):
    "`Marks` of games given as (ids, plies), counted one by one, in an order of keys of their own"
    numbers = [np.unique(np.maximum(ids[plies >= DEEP].astype(np.uint32), 1))[:width] for ids, plies in games]
    known = [i for i, n in enumerate(numbers) if len(n) >= AT_LEAST]
    return Marks(np.array(known, np.uint64), np.array([np.pad(numbers[i], (0, width - len(numbers[i]))) for i in known], np.uint32))

def reach_of(numbers): return numbers[-1] if numbers[-1] else 1 << 32

def copies_by_hand(train, other):
    "What `copied_games` finds, pair by pair"
    found = []
    for key, b in zip(other.games.tolist(), other.numbers.tolist()):
        for a in train.numbers.tolist():
            end, shared = min(reach_of(a), reach_of(b)), len({*a} & {*b} - {0})
            least = min(sum(0 < x <= end for x in n) for n in (a, b))
            if shared >= AT_LEAST and shared >= CONTAINED*least:
                found.append(key)
                break
    return found

@pytest.fixture(scope='module')
def played(): return positions_of([g for path in sorted(ONE_FILE.parent.glob('*.csa'))[:4] for g in read_games(path)])

CUTS = {'end': lambda rng, n: (0, rng.integers(0.6*n, n)), 'beginning': lambda rng, n: (rng.integers(1, 0.6*n), n),
        'both': lambda rng, n: (rng.integers(1, 0.3*n), rng.integers(0.75*n, n))}

@pytest.mark.parametrize('cut', CUTS)
@pytest.mark.parametrize('seed', range(3))
def test_a_cut_game_is_found_either_way(played, cut, seed):
    "At random, in a record that counts its plies anew or goes on counting; trained on in part, or asked for in part"
    rng, whole, parts = np.random.default_rng(seed), marked(played), []
    for ids, plies in played:
        first, last = CUTS[cut](rng, len(ids))
        parts.append((ids[first:last], plies[:last - first] if rng.random() < 0.5 else plies[first:last]))
    part = marked(parts)
    for train, other in ((whole, part), (part, whole)):
        found = copied_games(train, other).tolist()
        assert found == copies_by_hand(train, other)
        assert len(found) >= 0.85*len(part.games) and len(part.games) > 0.9*len(played)
    half = len(played)//2
    assert len(copied_games(marked(played[:half]), marked(parts[half:]))) == 0     # other games are not

@pytest.mark.parametrize('width', [8, MARKS])
def test_marks_of_every_width_are_compared(played, width):
    "An earlier version kept 8 numbers; whole copies are found by them, and games less a move, in any pair of widths"
    for cut in (slice(None), slice(None, -1), slice(1, None)):
        other = marked([(ids[cut], plies[cut]) for ids, plies in played], width)
        for w in (8, MARKS):
            train = marked(played, w)
            for a, b in ((train, other), (other, train)):
                found = copied_games(a, b).tolist()
                assert found == copies_by_hand(a, b) and len(found) >= len(other.games) - 1

def test_numbers_in_very_many_games(monkeypatch):
    "Of games that share an opening beyond ply 30 none is a copy, of one game in very many records all are, and blocks change nothing"
    rng = np.random.default_rng(0)
    def side(opening, n): return Marks(np.arange(n, dtype=np.uint64), np.sort(np.concatenate(
        [np.tile(opening, (n, 1)), rng.integers(1, 2**32, (n, MARKS - len(opening)), dtype=np.uint32)], 1), axis=1))
    opening = rng.integers(1, 2**29, 4, dtype=np.uint32)
    a, b = side(opening, 300), side(opening, 300)
    again = Marks(a.games, np.tile(a.numbers[:1], (300, 1)))
    for block in (7, 1 << 13):
        monkeypatch.setattr(trained, '_BLOCK', block)
        assert len(copied_games(a, b)) == 0
        assert len(copied_games(a, a)) == 300 == len(copied_games(again, again)) and copied_games(again, a).tolist() == [0]

def test_marks_are_those_of_the_rows(sets):
    "Counted row by row; in whatever files, and of folds alone"
    for name, folds in (('first', None), ('half', range(30, 80))):
        source, rows = StreamingFileSource(sets/name, 3, folds), {}
        for s in find_shards(sets/name, 3):
            for r in maou_nb.data.shards.read_shard(s).select(['id', 'fold', 'game', 'ply']).to_pylist():
                if r['ply'] < trained.DEEP or folds is not None and r['fold'] not in folds: continue
                rows.setdefault(r['game'], set()).add(max(r['id'] % 2**32, 1))
        counted = {g: sorted(n)[:MARKS] for g, n in rows.items() if len(n) >= AT_LEAST}
        found = marks_of(source)
        assert {int(g): [n for n in numbers.tolist() if n] for g, numbers in zip(found.games, found.numbers)} == counted

def test_the_audit_decides_by_the_same(sets):
    for train, valid in (('first', 'cut'), ('cut', 'first'), ('first', 'others'), ('half', 'cut')):
        a, b = (StreamingFileSource(sets/n, 3) for n in (train, valid))
        assert sorted(audit(a, b).copies['game'].to_list()) == copied_games(marks_of(a), marks_of(b)).tolist()

# --- the same games twice

def in_one_set(path): return {int(g) for s in find_shards(path, 3) for g in read_shard(s)['game'].to_pylist()}

# the sets that are trained on → (games in more than one of them, and whether some of these are so under another key)
TWICE = {('first', 'anew'): (14, False), ('first', 'half'): (7, False), ('first', 'cut'): (13, True), ('first', 'stopped'): (9, True),
         ('first', 'anew', 'half'): (14, False), ('first', 'others'): (0, False), ('judged', 'others'): (0, False)}

@pytest.mark.parametrize('names', TWICE)
def test_games_that_are_trained_on_twice_are_said(sets, tmp_path, names):
    "By a run that begins, and by preflight, which warns and refuses nothing; whole copies and parts, by their rows"
    least, copies = TWICE[names]
    options = dict(stage3_data_path=[sets/n for n in names], stage3_validation_data_path=sets/'judged' if 'judged' not in names else None)
    checked = preflight(**{**TINY, **options}, run_dir=tmp_path/'none')
    said = [s for _, _, s, mark in checked.lines if 'in more than one of' in s and mark == 'look']
    games = set().union(*(in_one_set(sets/n) for n in names))
    assert checked.ready and len(said) == bool(least)
    ran = learn(tmp_path/'run', **dict(data=options['stage3_data_path'], judged=options['stage3_validation_data_path'])).text
    if not least: assert 'in more than one of' not in ran; return
    n = int(re.match(r'stage3_data_path: (\d+) of its', said[0])[1])
    assert said[0] in ran
    assert f'{n} of its {len(games)} games ({share_text(n, len(games))}) are in more than one of its {len(names)} sets' in said[0]
    assert (n >= least if copies else n == least) and ('under another key' in said[0]) == copies

def test_one_set_in_several_places_is_no_set_twice(sets, tmp_path, monkeypatch):
    "Its files have the same games and other rows of them, whether its manifest is there or not"
    rows = StreamingFileSource(sets/'first', 3).total_rows
    for i, path in enumerate(sorted((sets/'first').glob('*.feather'))):
        (tmp_path/str(i)).mkdir()
        shutil.copy(path, tmp_path/str(i)/path.name)
    source = StreamingFileSource(tmp_path, 3, say=str)
    assert len(source.shards) > 1 and source.total_rows == rows and trained.trained_twice(source) == ''
    both = StreamingFileSource([tmp_path, sets/'anew'], 3, say=str)      # files by themselves, and a set with the same games
    assert ' of its 14 games (' in trained.trained_twice(both)
    monkeypatch.setattr(trained, 'LOOKED_AT', 100)
    assert trained.trained_twice(both) == ''
