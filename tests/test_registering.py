"""What registering refuses: the next config must not be the first to say it."""
import pytest

from maou_nb import Column, Figure, Part, Stage, register_stage
from maou_nb.data.plugins import PluginError, load_plugins
from maou_nb.model.heads import HEADS, SquareHead, register_head
from maou_nb.stages.stage import STAGES


def stage(part='q', column=('q', 'x', 'squares')):
    return type('Mine', (Stage,), dict(name='mine', columns=(Column(*column),), figures={'accuracy': Figure('a')},
                                       parts=(Part(part, 81, 'reachable', 'squares'),)))


def test_the_librarys_names_stay():
    "Also for another thing of the library"
    before = HEADS['policy']
    with pytest.raises(ValueError, match='comes with the library'): register_head('policy')(SquareHead)
    assert HEADS['policy'] is before


@pytest.mark.parametrize('made', [dict(part='policy'), dict(column=('board', 'x', 'squares')),
                                  dict(column=('q', 'fold', 'squares'))], ids=str)
def test_a_clash_is_refused_at_once(made):
    "And the stage is not added"
    with pytest.raises(ValueError, match='another name would be right'): register_stage('mine')(stage(**made))
    assert 'mine' not in STAGES


def test_a_plugin_that_fails_leaves_nothing(tmp_path):
    "Its own error is said"
    file = tmp_path/'half.py'
    file.write_text("from maou_nb.model.heads import register_head\n@register_head('half')\nclass H: pass\n1/0\n")
    with pytest.raises(PluginError, match='ZeroDivisionError'): load_plugins(str(file))
    assert 'half' not in HEADS


def test_a_name_edited_away_is_gone(tmp_path):
    "When the file is read again"
    file = tmp_path/'edited.py'
    for name in 'old', 'new':
        file.write_text(f"from maou_nb.model.heads import register_head\n@register_head('{name}')\nclass H: pass\n")
        load_plugins(str(file))
    assert 'new' in HEADS and 'old' not in HEADS
