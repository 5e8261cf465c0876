"What one does with a trained checkpoint: the net had back, asked, and judged on any rows, against counts that nothing of ours makes"
import json, shutil
from pathlib import Path

import cshogi
import fsspec
import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from maou_nb import learn_multi_stage
from maou_nb.data.old import write_old
from maou_nb.data.positions import read_positions
from maou_nb.data.shards import EVAL_SCALE, ShardError, find_shards, read_shard
from maou_nb.data.sources import StreamingFileSource
from maou_nb.judge.evaluate import evaluate
from maou_nb.judge.ask import load_net, predict
from maou_nb.train.checkpoints import CheckpointError, load_tensors, save_tensors
from samples import GAMES, said

START = 'lnsgkgsnl/1r5b1/ppppppppp/9/9/9/PPPPPPPPP/1B5R1/LNSGKGSNL b - 1'

@pytest.fixture(scope='module')
def run(shards, tmp_path_factory):
    "A short run of all stages"
    return learn_multi_stage(stage='all', model_size='tiny', resnet_channels=16, resnet_blocks=1, gpu='cpu',
                             learning_ratio=0.005, epoch=2, stage1_max_epochs=1, stage2_max_epochs=1,
                             stage1_threshold=0., stage2_threshold=0., stage1_batch_size=64, stage2_batch_size=64,
                             stage3_batch_size=64, stage2_test_ratio=0.2,
                             run_dir=tmp_path_factory.mktemp('judged')/'run', **shards)

@pytest.fixture(scope='module')
def sfens():
    "Positions of sample games, half of them with White to move"
    from maou_nb.data.records import read_games
    from rsshogi.core import Board, Move
    found = []
    for game in list(read_games(GAMES/'selfplay-1.csa'))[:4]:
        board = Board(game.start + ' 1')
        for i, m in enumerate(game.moves.tolist()):
            if i % 9 == 0: found.append(board.to_sfen())
            board.apply_move(Move(m))
    assert {s.split()[1] for s in found} == {'b', 'w'} and len(found) > 30
    return found

def judged(history, stage, epoch):
    "The judged figures of an epoch, without their prefix"
    row = history[epoch - 1]
    prefix = 'valid/' if any(k.startswith('valid/') for k in row) else 'train_eval/'
    return {k.removeprefix(prefix): v for k, v in row.items() if k.startswith(prefix)}

# --- the net

def test_a_folder_means_its_best_checkpoint_of_the_last_stage(run):
    folder, best = Path(run.run_dir), str(run.checkpoint(3))
    assert all(load_net(p).about['path'] == best for p in (best, folder, str(folder), folder/'checkpoints', folder/'checkpoints'/'stage3'))
    assert list(load_net(folder/'checkpoints'/'stage1').heads) == ['reachable']
    assert not load_net(best).training

def test_a_run_whose_checkpoints_lie_elsewhere(run, tmp_path):
    saved = json.loads(Path(run.run_dir, 'result.json').read_text())
    saved['stages_completed'][-1]['checkpoints']['best'] = str(run.checkpoint(3))
    (tmp_path/'result.json').write_text(json.dumps(saved))
    assert load_net(tmp_path).about['path'] == str(run.checkpoint(3))

def test_averaged_weights(run, tmp_path):
    tensors, about = load_tensors(run.checkpoint(3))
    raw = {k.removeprefix('net.'): v for k, v in tensors.items() if k.startswith('net.')}
    save_tensors(tmp_path/'both.safetensors', {**tensors, **{f'ema.{k}': v + 1 for k, v in raw.items()}}, about)
    off = lambda which: {float((v - raw[k]).double().abs().max())
                         for k, v in load_net(tmp_path/'both.safetensors', which).state_dict().items()}
    assert off('raw') == {0.} and off('averaged') == off('auto') and all(0.9 < x < 1.1 for x in off('auto'))
    with pytest.raises(CheckpointError, match='did not average them') as e: load_net(run.checkpoint(3), 'averaged')
    said(e)
    with pytest.raises(CheckpointError, match='one of raw, averaged, auto') as e: load_net(run.checkpoint(3), 'ema')
    said(e)

def broken_files(run, folder):
    "(what, path, words) of everything that is no checkpoint of ours"
    whole, (tensors, about) = run.checkpoint(3).read_bytes(), load_tensors(run.checkpoint(3))
    write = lambda name, data: ((folder/name).write_bytes(data), folder/name)[1]
    save = lambda name, tensors, about: (save_tensors(folder/name, tensors, about), folder/name)[1]
    config = about['config']
    save_file({'a': torch.zeros(1)}, folder/'foreign.safetensors')
    save_file({'a': torch.zeros(1)}, folder/'words.safetensors', {'maou_nb': '{half'})
    (folder/'stage').mkdir(); (folder/'stage'/'checkpoints.json').write_text('{"last": ')
    (folder/'empty').mkdir()
    yield folder/'nowhere', 'does not exist'
    yield None, 'None is no path'
    yield folder/'empty', 'holds no checkpoint'
    yield folder/'stage', 'checkpoints.json is damaged'
    yield write('short.safetensors', whole[:len(whole)//2]), 'is not a safetensors file'
    yield write('noise.safetensors', b'\x80\x04' + bytes(100)), 'is not a safetensors file'
    yield write('none.safetensors', b''), 'is not a safetensors file'
    for suffix in ('.pt', '.pth', '.ckpt'):
        yield (write(f'old{suffix}', b'PK\x03\x04'),
               'hold another network than any here, and nothing in them is unpickled')
    yield folder/'foreign.safetensors', 'does not say what network it holds'
    yield folder/'words.safetensors', 'cannot be read as a checkpoint'
    yield save('newer.safetensors', tensors, {**about, 'config': {**config, 'quantum': 1}}), r'options that are not known here \(quantum\)'
    yield save('own.safetensors', tensors, {**about, 'config': {**config, 'model_architecture': 'mine'}}), 'must be registered before'
    yield save('labels.safetensors', tensors, {**about, 'labels': '2187'}), "numbers its move labels as '2187'"
    yield (save('wide.safetensors', tensors, {**about, 'config': {**config, 'resnet_channels': 32}}),
           'does not hold the network that it describes')
    yield save('bare.safetensors', {'a': torch.zeros(1)}, about), 'has no weights of a network'

def test_what_is_no_checkpoint_is_named_in_a_sentence(run, tmp_path):
    for path, words in broken_files(run, tmp_path):
        with pytest.raises(CheckpointError, match=words) as e: load_net(path)
        assert str(path) in said(e)

def test_a_checkpoint_far_away(run, tmp_path, monkeypatch):
    monkeypatch.setenv('MAOU_NB_CACHE', str(tmp_path/'cache'))
    fsspec.filesystem('memory').put(str(run.checkpoint(3)), '/bucket/best.safetensors')
    net, here = load_net('memory://bucket/best.safetensors'), load_net(run.checkpoint(3)).state_dict()
    assert net.about['path'] == 'memory://bucket/best.safetensors' and all(torch.equal(v, here[k]) for k, v in net.state_dict().items())
    for url, words in (('memory://bucket', 'holds no checkpoint'), ('memory://bucket/none.safetensors', 'does not exist')):
        with pytest.raises(CheckpointError, match=words) as e: load_net(url)
        said(e)

def test_no_pickle_is_opened(run, tmp_path):
    "A pickle that would leave a trace, under every name"
    class Trap:
        def __reduce__(self): return (Path.touch, (tmp_path/'sprung',))
    for name in ('a.pt', 'a.pth', 'a.ckpt', 'a.safetensors'):
        torch.save(Trap(), tmp_path/name)
        with pytest.raises(CheckpointError): load_net(tmp_path/name)
    assert not (tmp_path/'sprung').exists()

def test_a_changed_byte_is_noticed_by_the_manifest(run, tmp_path):
    folder = shutil.copytree(run.checkpoint(3).parent, tmp_path/'stage3')
    path = folder/run.checkpoint(3).name
    data = bytearray(path.read_bytes()); data[-5] ^= 1; path.write_bytes(data)
    for p in (path, folder):
        with pytest.raises(CheckpointError, match='is damaged: its SHA-256') as e: load_net(p)
        said(e)

# --- one position

def test_probabilities_are_over_the_legal_moves(run, sfens):
    for p in predict(load_net(run.run_dir), sfens):
        assert set(p.probabilities) == {cshogi.move_to_usi(m) for m in cshogi.Board(p.sfen).legal_moves}
        assert sum(p.probabilities.values()) == pytest.approx(1, abs=1e-9)
        assert list(p.probabilities.values()) == sorted(p.probabilities.values(), reverse=True)
        assert 0 < p.value < 1 and p.score == pytest.approx(EVAL_SCALE*np.log(p.value/(1 - p.value)), abs=0.1)

def test_a_list_is_what_its_positions_are_alone(run, sfens):
    net = load_net(run.run_dir)
    for sfen, together in zip(sfens[:6], predict(net, sfens[:6])):
        alone = predict(net, sfen)
        assert alone.value == pytest.approx(together.value, abs=1e-5)
        assert alone.probabilities == pytest.approx(together.probabilities, abs=1e-5)
        assert alone.rows() == [(k, alone.written[k], v) for k, v in list(alone.probabilities.items())[:5]]

def test_probabilities_are_the_nets(run):
    "Against logits taken by hand, by the labels that the shards give the moves"
    net, table = load_net(run.run_dir), next(read_positions(GAMES/'selfplay-2.csa', games_at_once=1))
    from maou_nb.data.board import to_sfen
    from maou_nb.data.labels import legal_labels
    from maou_nb.data.shards import fixed_array
    from rsshogi.core import Board
    boards, hands = fixed_array(table['boardIdPositions'], 81)[:20], fixed_array(table['piecesInHand'], 14)[:20]
    with torch.no_grad(): out = net(torch.tensor(boards), torch.tensor(hands))
    for i, p in enumerate(predict(net, [to_sfen(*x) for x in zip(boards, hands)])):
        board = Board(p.sfen)
        odds = np.exp(out['policy'][i].numpy()[legal_labels(board)].astype(float))
        assert p.probabilities == pytest.approx(dict(zip((m.to_usi() for m in board.legal_moves()), odds/odds.sum())), abs=1e-5)

def test_earlier_stages_answer_too(run, sfens):
    stages = Path(run.run_dir)/'checkpoints'
    for p in predict(stages/'stage2', sfens[:8]):
        legal = {cshogi.move_to_usi(m) for m in cshogi.Board(p.sfen).legal_moves}
        assert set(p.probabilities) == legal and not set(p.invented) & legal and all(v > 0.5 for v in p.invented.values())
        assert f'of {len(legal)} legal moves found, {len(p.invented)} invented' in repr(p)
    b, w = predict(stages/'stage1', ['9/9/9/9/4S4/9/9/9/9 b - 1', '9/9/9/9/4s4/9/9/9/9 w - 1'])     # the same to who moves
    turned = {f'{10 - int(k[0])}{"ihgfedcba"["abcdefghi".index(k[1])]}': v for k, v in w.probabilities.items()}
    assert len(b.probabilities) == 81 and b.probabilities == pytest.approx(turned)

def test_predictions_show_themselves(run):
    net = load_net(run.run_dir)
    p = predict(net, START, top=3)
    assert len(p.rows()) == 3 and len(repr(p).splitlines()) == 4 and p.best in repr(p)
    assert '７六歩' in predict(net, START, top=30).drawing() and p.drawing().startswith('<svg')
    assert 'White' in predict(net, START.replace(' b ', ' w ')).drawing()
    assert predict(net, [START]*2).drawing().count('<svg') == 3      # two in one

@pytest.mark.parametrize('sfen, words', [
    ('', 'is not a position'), ('hello', 'is not a position'), (None, 'is not a position'),
    (7, 'is not a position'), ('9/9/9 b - 1', 'is not a position'),
    ('9/9/9/9/9/9/9/9/9 b - 1', 'cannot occur'), ('4k4/9/9/9/9/9/9/9/9 b - 1', 'cannot occur'),
    ('4k4/4R4/9/9/9/9/9/9/4K4 b - 1', 'cannot occur'),
    ('4k4/9/9/9/9/9/9/9/4K4 b 19P 1', 'cannot occur'), ('4k3P/9/9/9/9/9/9/9/4K4 b - 1', 'cannot occur'),
    ('4k4/4k4/9/9/9/9/9/9/4K4 b - 1', 'cannot occur')])
def test_what_is_no_position_is_named(run, sfen, words):
    net = load_net(run.run_dir)
    with pytest.raises(ValueError, match=f'position 1: .*{words}') as e: predict(net, [START, sfen])
    said(e)

@pytest.mark.parametrize('sfen', [None, 7])
def test_what_is_neither_a_position_nor_a_list(run, sfen):
    with pytest.raises(ValueError, match='is not a position: an SFEN') as e: predict(load_net(run.run_dir), sfen)
    said(e)

def test_a_lost_position(run):
    for stage in ('stage2', 'stage3'):
        p = predict(Path(run.run_dir)/'checkpoints'/stage, '4k4/4G4/4G4/9/9/9/9/9/4K4 w - 1')
        assert p.probabilities == {} and p.best is None and 'no legal move, so the side to move has lost' in p.drawing()

# --- many positions

@pytest.mark.parametrize('stage', [1, 2, 3])
def test_figures_are_those_of_the_run(run, stage):
    "On the same rows, in the same batches: whole-number figures to the last digit, losses to the precision of 32 bits"
    net = load_net(run.checkpoint(stage))
    e = evaluate(net, folds='held out' if stage > 1 else None, batch_size=64, device='cpu')
    then = judged(run[stage].history, stage, net.about['epoch'])
    assert set(then) == set(e.metrics) - {'value_error'} and e.rows == run[stage].rows.get('valid', run[stage].rows['train'])
    assert {k: v for k, v in e.metrics.items() if k in then and 'loss' not in k} == {k: v for k, v in then.items() if 'loss' not in k}
    assert e.metrics == pytest.approx({**then, **({'value_error': e.metrics['value_error']} if stage == 3 else {})}, rel=1e-5)

@pytest.fixture(scope='module')
def by_hand(run, shards):
    "Each row's figures, by numpy on dense arrays read from the shards themselves"
    net, rows = load_net(run.run_dir).double(), []
    for shard in find_shards(shards['stage3_data_path'], 3):
        t = read_shard(shard)
        boards, hands = (np.array(t[c].to_pylist(), np.uint8) for c in ('boardIdPositions', 'piecesInHand'))
        with torch.no_grad(): out = {k: v.numpy() for k, v in net(torch.tensor(boards), torch.tensor(hands)).items()}
        legal = np.frombuffer(b''.join(t['legalMoves'].to_pylist()), np.uint8).reshape(len(t), 187)
        legal = np.unpackbits(legal, axis=1, bitorder='little').astype(bool)
        policy = np.zeros(legal.shape)
        for row, (labels, counts) in enumerate(zip(t['moveLabels'].to_pylist(), t['moveCounts'].to_pylist())):
            policy[row, labels] = np.array(counts)/np.sum(counts)
        masked = np.where(legal, out['policy'], -np.inf)
        log_p = masked - np.log(np.exp(masked).sum(1, keepdims=True))
        p, result = 1/(1 + np.exp(-out['value'])), t['wins'].to_numpy()/t['count'].to_numpy()
        at = policy > 0
        loss = np.where(at, policy*(np.log(np.where(at, policy, 1)) - np.where(at, log_p, 0)), 0).sum(1)
        rows.append(pl.DataFrame({'ply': t['ply'].to_numpy(), 'fold': t['fold'].to_numpy(), 'policy_loss': loss,
                                  'top1': (masked.argmax(1) == policy.argmax(1)).astype(float),
                                  'value_error': np.abs(p - result), 'brier': (p - result)**2, 'predicted': p, 'happened': result}))
    return pl.concat(rows)

@pytest.mark.parametrize('folds, batch_size', [(None, 1024), (range(0, 20), 37)])
def test_tables_equal_a_count_by_hand(run, shards, by_hand, folds, batch_size):
    rows = by_hand if folds is None else by_hand.filter(pl.col('fold').is_in(list(folds)))
    e = evaluate(run.run_dir, shards['stage3_data_path'], folds=folds, batch_size=batch_size, device='cpu')
    rows = rows.with_columns(from_ply=(pl.col('ply')//20*20).cast(pl.Int64), bin=(pl.col('predicted')*15).floor().cast(pl.Int64))
    names = ['policy_loss', 'top1', 'value_error', 'brier', 'predicted', 'happened']
    want = rows.group_by('from_ply').agg(pl.len().cast(pl.Int64).alias('rows'), *(pl.col(n).mean() for n in names)).sort('from_ply')
    assert e.by_ply['from_ply'].to_list() == want['from_ply'].to_list()
    assert e.by_ply['rows'].to_list() == want['rows'].to_list() and len(want) > 4
    for n in names: np.testing.assert_allclose(e.by_ply[n], want[n], atol=2e-3 if n == 'top1' else 1e-5, err_msg=n)
    gap = (pl.col('predicted') - pl.col('happened')).sum().abs().alias('gap')
    gaps = rows.group_by('from_ply', 'bin').agg(gap).group_by('from_ply').agg(pl.col('gap').sum()).sort('from_ply')
    np.testing.assert_allclose(e.by_ply['calibration_error'], gaps['gap']/want['rows'], atol=1e-3)
    bins = rows.group_by('bin').agg(pl.len().cast(pl.Int64).alias('rows'), pl.col('predicted').mean(),
                                    pl.col('happened').mean()).sort('bin')
    known = e.calibration.filter(pl.col('rows') > 0)
    assert len(e.calibration) == 15 and e.calibration['rows'].sum() == e.rows == len(rows)
    assert (known['from_p']*15).round().cast(pl.Int64).to_list() == bins['bin'].to_list()
    for n in ('predicted', 'happened'): np.testing.assert_allclose(known[n], bins[n], atol=2e-3)
    for n in ('policy_loss', 'top1', 'value_error', 'brier'):
        assert e.metrics[n] == pytest.approx(rows[n].mean(), abs=1e-3 if n == 'top1' else 1e-5)

def test_rows_without_plies(run, shards, tmp_path):
    "The old tool's tables know no games, no plies and no folds: all else is there"
    first = find_shards(shards['stage3_data_path'], 3)[0]
    write_old(read_shard(first), tmp_path/'old.feather', 3)
    e, new = evaluate(run.run_dir, tmp_path/'old.feather', device='cpu'), evaluate(run.run_dir, first.path.parent, device='cpu')
    assert e.by_ply is None and e.rows == first.rows and 'These rows know no ply' in e._repr_html_() and e._repr_html_().count('<img') == 1
    alone = tmp_path/'alone'; alone.mkdir(); shutil.copy(first.path, alone)
    again = evaluate(run.run_dir, alone, device='cpu')
    assert e.metrics['top1'] == again.metrics['top1']
    assert e.metrics['policy_loss'] == pytest.approx(again.metrics['policy_loss'], abs=2e-3)
    assert again.by_ply is not None
    assert new.rows > again.rows

def test_paths_in_any_form(run, shards):
    folder = shards['stage3_data_path']
    one = evaluate(run.run_dir, folder, device='cpu')
    assert (one.metrics == evaluate(run.run_dir, f'{folder}/*.feather', device='cpu').metrics
            == evaluate(run.run_dir, sorted(Path(folder).glob('*.feather')), device='cpu').metrics)

def test_precisions(run):
    full, half = (evaluate(run.run_dir, folds='held out', device='cpu', precision=p) for p in ('fp32', 'bf16'))
    assert full.metrics != half.metrics and half.metrics['policy_loss'] == pytest.approx(full.metrics['policy_loss'], abs=0.05)

def test_a_net_is_left_as_it_was(run):
    net = load_net(run.run_dir).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    evaluate(net, folds='held out', device='cpu'); predict(net, START)
    assert net.training and all(torch.equal(v, before[k]) for k, v in net.state_dict().items())

def test_an_evaluation_shows_itself(run):
    e = evaluate(run.run_dir, folds='held out', device='cpu')
    assert 'policy and value' in repr(e) and f'{e.metrics["top1"]:.4f}' in repr(e) and f'{e.metrics["top1"]:.4f}' in e._repr_html_()
    assert 'alt="Policy and value figures by ply, and reliability: calibration error' in e._repr_html_()
    assert '<img' not in evaluate(run, stage=2, folds='held out', device='cpu')._repr_html_()

@pytest.mark.parametrize('options, error, words', [
    (dict(stage=9), ValueError, 'stage=9'), (dict(folds='valid'), ValueError, "'held out', or whole numbers"),
    (dict(folds=[200]), ValueError, 'whole numbers from 0 to 99'),
    (dict(folds=[]), ShardError, 'no rows of these folds'), (dict(batch_size=0), ValueError, 'batch_size=0'),
    (dict(device='quantum'), ValueError, "device='quantum' cannot be used here"),
    (dict(device='cuda:99'), ValueError, 'cannot be used here'),
    (dict(precision='fp8'), ValueError, 'one of fp32, bf16, fp16'),
    (dict(data='nowhere'), FileNotFoundError, 'nowhere does not exist')])
def test_wishes_that_cannot_be_met(run, options, error, words):
    with pytest.raises(error, match=words) as e: evaluate(run.run_dir, **options)
    said(e)

def test_another_stage_than_a_network_has(run):
    with pytest.raises(ValueError, match='so stage=3 was expected') as e: evaluate(run.checkpoint(3), stage=2)
    said(e)
    assert list(load_net(run.run_dir, stage=2).heads) == list(load_net(run, stage=2).heads) == ['legal_moves']

def test_rows_when_none_are_named(run, shards, tmp_path):
    "What the run held out, be it folds or shards of their own; and what a figure was reached on is said"
    assert (e := evaluate(run, device='cpu')).known == 'held out' and e.rows == run[3].rows['valid']
    assert e.metrics == evaluate(run, folds='held out', device='cpu').metrics
    assert (e := evaluate(run, stage=1, device='cpu')).known == 'it was trained on them' and e.rows == run[1].rows['train']
    own, first = shards['stage3_data_path'], find_shards(shards['stage3_data_path'], 3)[0]
    assert (e := evaluate(run, own, device='cpu')).known == 'it was trained on most of them'
    assert f'{e.rows:,} rows, it was trained on most of them' in repr(e) and e.known in e._repr_html_()
    other = tmp_path/'other'; other.mkdir(); shutil.copy(first.path, other)
    assert evaluate(run, other, device='cpu').known == 'it was trained on most of them'        # a copy is the same rows
    net = load_net(run.checkpoint(3))
    net.about = {**net.about, 'config': {**net.about['config'], 'stage3_validation_data_path': str(other)}}
    for folds in (None, 'held out'):           # options that say otherwise change nothing
        assert (e := evaluate(net, folds=folds, device='cpu')).known == 'it was trained on most of them' and e.rows == first.rows
    assert evaluate(net, own, device='cpu').known == 'it was trained on most of them'

def test_what_was_not_held_out(run, shards):
    with pytest.raises(ValueError, match='held nothing out of stage 1') as e: evaluate(run, stage=1, folds='held out')
    said(e)
    net = load_net(run.checkpoint(3)); del net.about
    with pytest.raises(ValueError, match='does not know what was held out') as e:
        evaluate(net, shards['stage3_data_path'], folds='held out')
    said(e)
    with pytest.raises(ValueError, match='data: shards of stage 3 were expected') as e: evaluate(net)
    said(e)
    assert evaluate(net, shards['stage3_data_path'], device='cpu').rows == StreamingFileSource(shards['stage3_data_path'], 3).total_rows
