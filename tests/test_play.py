"A game on the board in JupyterLab: pieces light up, promotion is asked, drops, take back, sides, files; a match table and a ladder, seen"
from cshogi import CSA
import nbformat
import pytest

from lab import browser, command, lab, open_notebook, restart_kernel, run_cell, shot, theme

CELLS = ["""import numpy as np
from maou_nb.play.search import NetPlayer, Thinking
from maou_nb.front.board import PlayBoard, Sitting, play_against
class Even:
    def __call__(self, boards, hands, labels, temperature=1.):
        return [np.linspace(2, 1, len(l), dtype=np.float32)/np.linspace(2, 1, len(l)).sum() for l in labels], np.full(len(boards), 0.5)
player = NetPlayer('even', Even(), Thinking(nodes=60))""",
         "board = play_against(player)\nboard",
         "near = play_against(player, position='4k4/9/9/4P4/9/9/9/9/4K4 b GP 1')\nnear",
         """from maou_nb.front.match import ladder, match
other = NetPlayer('other', Even(), Thinking(nodes=4))
result = match(player, other, games=6)
result""",
         "ladder([player, other, NetPlayer('third', Even(), Thinking(nodes=20))], games=4, show=False)",
         "result.games[0]"]

def square(cell, name):
    "Click a square"
    cell.locator(f'.squares button[aria-label^="{name}"]').click()

def settled(page, cell, word):
    "Wait until the line above the board says `word`"
    cell.locator('.says').filter(has_text=word).wait_for(timeout=20_000)

@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    at = tmp_path_factory.mktemp('play')
    kernel = dict(name='python3', display_name='python3', language='python')
    cells = [nbformat.v4.new_code_cell(c) for c in CELLS]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=kernel)), at/'play.ipynb')
    return at

@pytest.mark.slow
def test_a_game_is_played_on_the_board(folder):
    with lab(folder) as url, browser(height=1700) as page:
        open_notebook(page, url, 'play.ipynb')
        run_cell(page, 'class Even')
        cell = run_cell(page, 'board = play_against')
        settled(page, cell, 'your move, as Black')
        square(cell, '7g')
        assert cell.locator('.squares button.to').count() == 1 and cell.locator('.squares button.from').count() == 1
        middle = lambda of: (lambda b: (b['x'] + b['width']/2, b['y'] + b['height']/2))(cell.locator(of).first.bounding_box())
        at, board = middle('.squares button[aria-label^="5e"]'), middle('.board svg rect[fill="#f8e9c6"]')
        assert abs(at[0] - board[0]) < 1 and abs(at[1] - board[1]) < 1      # buttons lie on their squares
        shot(page, 'play-lit', cell.locator('.maou-play'))
        square(cell, '7f')
        settled(page, cell, 'even played')
        assert cell.locator('.arrow').count() > 0
        shot(page, 'play-light', cell.locator('.maou-play'))
        square(cell, '5i'); square(cell, '5e')        # no move: nothing is played, nothing is lit
        assert cell.locator('.squares button.to').count() == 0
        cell.get_by_role('button', name='Take back').click()
        settled(page, cell, 'your move, as Black')
        cell.locator('.says').filter(has_not_text='even played').wait_for()
        cell.get_by_role('button', name='Play White').click()
        settled(page, cell, 'your move, as White')
        assert cell.locator('svg').first.text_content().count('☖') >= 0
        with page.expect_download() as got: cell.get_by_role('button', name='KIF').click()
        assert '先手：even' in got.value.path().read_text() and got.value.suggested_filename == 'game-1.kif'
        with page.expect_download() as got: cell.get_by_role('button', name='CSA').click()
        (folder/'one.csa').write_text(got.value.path().read_text())
        assert len(CSA.Parser.parse_file(str(folder/'one.csa'))[0].moves) == 1
        cell.get_by_role('button', name='Thoughts').click()
        page.wait_for_timeout(500)
        assert cell.locator('.arrow').count() == 0
        cell.get_by_role('button', name='Resign').click()
        settled(page, cell, 'you lost: resignation')
        theme(page, 'dark')
        near = run_cell(page, 'near = play_against')
        settled(page, near, 'your move')
        square(near, '5d'); square(near, '5c')         # may promote
        near.get_by_role('button', name='Promote').wait_for()
        shot(page, 'play-promote', near.locator('.maou-play'))
        near.get_by_role('button', name='Do not').click()
        settled(page, near, 'even played')
        near.get_by_role('button', name='歩').click()
        lit = near.locator('.squares button.to').count()
        assert 40 < lit < 81                           # no second pawn on the file, none on the last rank
        square(near, '9e')
        settled(page, near, 'even played')
        for k, text in enumerate(('result = match', 'ladder([', 'result.games[0]')):
            seen = run_cell(page, text)
            page.wait_for_timeout(700)
            shot(page, f'play-{k}-dark', seen)
        theme(page, 'light')
        shot(page, 'play-all-light')
        command(page, 'docmanager:save')
        page.wait_for_timeout(1500)
        restart_kernel(page)
        page.reload()
        page.wait_for_selector('.maou-play-kept')
        assert 'Loading widget' not in page.locator('.jp-Notebook').inner_text()
        shot(page, 'play-kept')
        assert page.locator('.maou-play-kept img').first.evaluate('e => e.naturalWidth') > 100
