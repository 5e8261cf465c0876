"""What is no position is told so in our own sentence, at every door that takes positions, whatever odd text is given"""
import contextlib

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st
from rsshogi.core import PositionState

from maou_nb import OptionError, film_strip, predict, show_position
from maou_nb.front import cli
from maou_nb.front.options import make_config
from maou_nb.model.backbones import make_backbone
from maou_nb.model.heads import Net
from maou_nb.show.boards import Position, read_position
from maou_nb.stages.stage import STAGES
from maou_nb.train.options import config_class

EXPECTED = 'is not a position: an SFEN, startpos, or either with moves … was expected'
STAGE = STAGES['1']
NET = Net(make_backbone('resnet', 'tiny', channels=4, blocks=1), STAGE.heads(config_class()(), 4))

def watched(text): return make_config(stage=1, stage1_data_path='.', watched_positions=[text])

DOORS = {'show_position': show_position, 'predict': lambda text: predict(NET, text), 'predict several': lambda text: predict(NET, [text]),
         'watched_positions': watched, 'read_position': read_position, 'Position': Position.from_sfen,
         'film_strip': lambda text: film_strip('.', text), 'show': lambda text: cli.show('.', text)}
BEFORE = {'show', 'film_strip'}       # these may have something else to say first, of the run

def known_text(text):
    "What the library below says of a text, if anything"
    try: PositionState.from_sfen(text)
    except ValueError as e: return str(e)
    return ''

def told(door, text):
    "What a door says of a text; '' if it took it"
    try: DOORS[door](text)
    except (ValueError, OptionError) as e: return str(e)
    return ''

@pytest.mark.parametrize('door', DOORS)
@pytest.mark.parametrize('text', ['hello', '1', 'lnsgkgsnl', '9/9/9 b - 1', 'position sfen x', '歩'*9, 'x'*3000, 'a\nb\nc',
                                  '\ud800', 'b - 1'])
def test_not_a_position(door, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = told(door, text)
    assert said and max(map(len, said.splitlines())) < 400
    if door in BEFORE or door == 'watched_positions' and text == '\ud800': return      # which no option may be
    found = [line for line in said.splitlines() if EXPECTED in line]
    assert len(found) == 1 and repr(text)[1:8] in said, said
    assert not (own := known_text(text)) or own not in said, said

odd = st.text(max_size=60) | st.text('lnsgkprb+123456789/ LNSGKPRBbw-', max_size=60)
odd |= st.from_regex(r'(startpos|sfen .{0,20}) ?(moves .{0,12})?')

@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(odd)
@example('startposx')
def test_odd_texts(text):
    "A position, or one line that says what is wrong, in no other words than ours"
    for door in ('read_position', 'Position', 'predict'):
        said = told(door, text)
        if not said: continue
        assert '\n' not in said and len(said) < 700
        assert EXPECTED in said or 'cannot occur' in said or 'is not legal in' in said, said
        plain = known_text(text)
        assert not plain or plain not in said

def test_what_is_no_text():
    for given_ in (None, 7, b'x', 3.5, object()):
        for door in ('show_position', 'predict several', 'read_position', 'Position'):
            with contextlib.suppress(TypeError): assert EXPECTED in told(door, given_), (door, given_)
