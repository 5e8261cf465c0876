"""Text from outside is text on every page: whatever shows itself is fed a hostile name

A class or a maker of HTML that is not built here fails the first test, so that each new one is held to this.
"""
import ast, inspect, json, re, tempfile
from base64 import b64decode
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import polars as pl
import pytest
from IPython.utils.capture import capture_output

import maou_nb
from maou_nb.data import html
from maou_nb.data.html import Html
from maou_nb.data.prepare import Prepared
from maou_nb.data.records import FilterCounts, count_table
from maou_nb.data.shards import Shard
from maou_nb.data.columns import columns_of
from maou_nb.front import learn, panel, runs, search
from maou_nb.front.learn import LearnResult
from maou_nb.front.board import PlayBoard, Sitting
from maou_nb.front.kept import kept_html
from maou_nb.front.match import Rung, Standings
from maou_nb.front.preflight import Preflight
from maou_nb.front.words import Words
from maou_nb.judge import exam
from maou_nb.judge.ask import Predictions
from maou_nb.judge.evaluate import Evaluation
from maou_nb.judge.inspect import ShardInfo, ShuffleMeter, SplitAudit
from maou_nb.judge.review import Browser, Review
from maou_nb.judge.watch import FilmStrip
from maou_nb.play.elo import rank
from maou_nb.play.evaluator import Anything
from maou_nb.play.games import Game, GameBrowser, MatchResult, elo_bar
from maou_nb.play.search import NetPlayer, Thinking
from maou_nb.show import boards, pictures, plots
from maou_nb.show.boards import START, Arrow, Gallery, Position, board_svg, show_position
from maou_nb.show.pictures import Picture, alternative
from maou_nb.show.tables import Table
from maou_nb.stages import legal_moves, policy_value
from maou_nb.stages.stage import Prediction
from maou_nb.train.options import OptionTable
from maou_nb.train.runner import StageResult
from maou_nb.train.trials import RateTrial
from public import modules

HOSTILE = '<img src=x onerror=alert(1)>"\'&'

SHOWS = re.compile(r'_repr_(html|markdown|svg|latex|javascript|mimebundle)_|_ipython_display_')

def makes_html(name, f):
    return name.endswith(('_svg', '_html')) or 'Html' in str(inspect.signature(f).return_annotation)

def found():
    "Names of the package's classes that show themselves, and of its functions that make HTML"
    for m in modules():
        for name, v in vars(m).items():
            if getattr(v, '__module__', '') != m.__name__: continue
            if inspect.isfunction(v) and makes_html(name, v): yield name
            if not inspect.isclass(v): continue
            if any(SHOWS.fullmatch(a) for c in v.__mro__ if c.__module__.startswith('maou_nb') for a in vars(c)): yield name
            own = [a for a, f in vars(v).items() if inspect.isfunction(f) and makes_html(a, f) and not SHOWS.fullmatch(a)]
            yield from (f'{name}.{a}' for a in own if a != 'drawing')        # which is what a picture shows

def test_what_shows_itself_says_what_it_is_where_nothing_is_shown():
    nameless = [f'{m.__name__}.{v.__name__}' for m in modules() for v in vars(m).values()
                if inspect.isclass(v) and v.__module__ == m.__name__ and any(SHOWS.fullmatch(a) for a in dir(v))
                and v is not Picture and v.__repr__ is object.__repr__]
    assert not nameless, nameless

class Page(HTMLParser):
    "What a browser would make of a page: its elements, and its text"
    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.text = [], ''
        self.feed(text)
        self.close()

    def handle_starttag(self, name, attributes): self.elements.append((name, dict(attributes)))
    handle_startendtag = handle_starttag
    def handle_data(self, data): self.text += data

def check(text, says=True):
    "Nothing of `HOSTILE` became an element or an attribute; it can be read"
    page = Page(str(text))
    for name, attributes in page.elements:
        assert name != 'script' and not any(k.startswith('on') and v != panel._COPY for k, v in attributes.items()), (name, attributes)
        assert name != 'img' or re.match(r'data:image/(png|svg\+xml);base64,', attributes.get('src', '')), attributes
        if 'svg' in attributes.get('src', '')[:20]: check(b64decode(attributes['src'].partition(',')[2]).decode(), False)
    assert '<img src=x' not in str(text)
    everything = page.text + ''.join(str(v) for _, a in page.elements for v in a.values())
    assert not says or 'onerror=alert(1)' in everything

def stage_result(**more):
    epoch = {'stage': 3, 'epoch': 1, 'step': 1, 'train/loss': 1., 'valid/loss': 1., 'lr': 0.1, 'grad_norm': 1.,
             'positions_per_second': 1., 'loader_wait': 0.1, 'seconds': 1.,
             f'valid/{HOSTILE}': 0.5, 'valid/baseline_x': 0.1, 'valid/x': 0.2, 'valid/top1': 0.3}
    return StageResult(**{**dict(stage=3, stage_name=HOSTILE, achieved_accuracy=.5, final_loss=1., epochs_trained=1, threshold_met=False,
                                 threshold=.9, metric='x', judged_on=HOSTILE, metrics={'x': .5, HOSTILE: .5}, baselines={'x': .1},
                                 split=HOSTILE, checkpoints={'best': HOSTILE}, history=[epoch]), **more})

def learned(): return LearnResult(stage=HOSTILE, stages_completed=[stage_result()], run_dir=HOSTILE, stopped=HOSTILE)

def prediction(): return Prediction(HOSTILE, HOSTILE, {HOSTILE: .5}, written={HOSTILE: HOSTILE}, invented={HOSTILE: .1}, picture=HOSTILE,
                                    says=HOSTILE, heads=(HOSTILE, HOSTILE))

def shard_info():
    shards = [Shard(Path(f'{HOSTILE}{i}.feather'), columns_of(3), 5, foreign=HOSTILE, sha256=HOSTILE) for i in range(2)]
    about = dict(version=HOSTILE, labels=HOSTILE, prepared_from=HOSTILE, policy=HOSTILE)
    return ShardInfo(f'a/{HOSTILE}', 3, shards, 100, {HOSTILE: HOSTILE}, about, counts(), Gallery(HOSTILE))

def counts(): return FilterCounts(2, 20, [(HOSTILE, 1, 10)], [HOSTILE])

def prepared(): return Prepared(3, Path(HOSTILE), 1, 10, 10, 1, 0., counts(), [HOSTILE], passed_over={f'.{HOSTILE}': 1})

def evaluation():
    by_ply = pl.DataFrame({'from_ply': [0, 10], 'to_ply': [9, 19], 'rows': [1, 1], 'policy_loss': [1., 1.], HOSTILE: [0.5, 0.5]})
    return Evaluation(HOSTILE, 3, 2, {HOSTILE: 1.}, by_ply, None, HOSTILE, HOSTILE)

def audit():
    return SplitAudit((5, 5), (1, 1), (0, 0), 0, 0, pl.DataFrame({'ply': [1], 'rows': [5], 'shared': [0]}), pl.DataFrame(), HOSTILE)

def strip():
    row = dict(sfen=START, epoch=HOSTILE, moves={'7g7f': .5}, value=.5, says=HOSTILE, stage=HOSTILE, heat=None)
    return FilmStrip({(HOSTILE, HOSTILE): [row, row]})

def comparison():
    cfg = lambda **o: learn.LearnConfig(stage=3, **o)
    epochs = {3: stage_result().history}
    return runs.Comparison({HOSTILE: (cfg(run_name=HOSTILE, stage3_data_path=HOSTILE), epochs), 'b': (cfg(), epochs)})

class Named(OptionTable):
    def rows(self): return [(HOSTILE, HOSTILE, HOSTILE, HOSTILE)]

def reviewed():
    taught = SimpleNamespace(mistakes=lambda *row: (HOSTILE, HOSTILE))
    return dict(taught=taught, on=HOSTILE, row=lambda i: (None, None), _line=lambda i: HOSTILE, stage=HOSTILE,
                order=lambda *by: [0], orders=lambda: [], drawn=lambda i, letters: Review.drawn(found_rows, i, letters),
                show=lambda i, letters: Review.show(found_rows, i, letters))

class Rows(SimpleNamespace):
    def __len__(self): return 1

found_rows = Rows(**reviewed())

def browser():
    made = Browser(found_rows)
    return texts_of(made._repr_mimebundle_())

def monitor():
    made = runs.Monitor(f'runs/{HOSTILE}')
    made.tell()
    return made.status.value

def form():
    made = panel.LearnPanel(stage3_data_path=HOSTILE, run_name=HOSTILE)
    made.check()
    values = [made.said.value, made.text.value, *(f.note.value for f in made.fields.values())]
    return ''.join(values)

def hostile_game(): return Game(HOSTILE, f'{HOSTILE}2', ('7g7f', '3c3d'), 0, 'resignation', evals=(.5, .6), said=HOSTILE)
def titled(fig, title):
    "What `fig` shows, with a title"
    fig.subplots().set_title(title)
    return fig._repr_html_()

def hostile_match(): return MatchResult(HOSTILE, f'{HOSTILE}2', [hostile_game()])

def hostile_sitting():
    made = Sitting(NetPlayer(HOSTILE, Anything(), Thinking(nodes=4)))
    made.move('7g7f')
    return made

def hostile_standings():
    found = rank({(HOSTILE, f'{HOSTILE}2'): [0, 0, 1, 0, 3]})
    return Standings(found, [Rung(HOSTILE, None, HOSTILE, 5, 0.3), Rung(f'{HOSTILE}2', None)])

def shown(made):
    "Each way in which `made` shows itself: what is text of it"
    ways = [a for a in dir(made) if SHOWS.fullmatch(a) and a != '_ipython_display_']
    assert ways or hasattr(made, '_ipython_display_'), made
    bundles = [getattr(made, a)() for a in ways]
    if hasattr(made, '_ipython_display_'):
        with capture_output() as captured: made._ipython_display_()
        bundles += [o.data for o in captured.outputs]
    return [text for b in bundles for text in texts_of(b)]

def texts_of(bundle):
    "The HTML and SVG that a notebook is given; in what Plotly draws all text is plain"
    if isinstance(bundle, str): return [bundle]
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    drawn = data.get('application/vnd.plotly.v1+json')
    if drawn: assert '<img src=x' not in json.dumps(drawn, ensure_ascii=False)
    return [data[k] for k in ('text/html', 'image/svg+xml') if k in data]

POSITION = Position.from_sfen(START)
NO_HANDS = np.zeros(14, np.uint8)
svg = lambda **how: board_svg(POSITION.board, **how)

# name → what is to be checked; those in QUIET say nothing of what they were given
def arms_compared():
    "A verdict on arms and figures of hostile names"
    from maou_nb.judge.verdict import verdict
    return verdict({(arm, seed): {'figures': {HOSTILE: seed + 0.1*len(arm) + 0.01*seed*len(arm)}, 'rows': None}
                    for arm in ('plain', HOSTILE) for seed in range(3)})

def run_table():
    "A table of runs of which all is hostile"
    import polars as pl
    from maou_nb.front.run_table import Runs
    columns = 'run', 'state', 'stages', 'note', 'tags', 'begun', 'options'
    return Runs(pl.DataFrame([dict.fromkeys(columns, HOSTILE) | {'seconds': 1.}]), {HOSTILE: Path('.')})

def arms_waiting():
    "A study whose arms have hostile names, one of which failed in hostile words"
    from maou_nb.front.study import Study
    made = Study('nowhere', {'stage': '3', 'arms': {HOSTILE: {}}, 'seeds': [0], 'max_steps': {}})
    made.failed[HOSTILE, 0] = HOSTILE
    made.look()
    return made

def examined():
    "An exam whose every word is hostile"
    part = exam.ExamPart(HOSTILE, [{HOSTILE: HOSTILE}], {HOSTILE: .5}, {HOSTILE: (.4, .6)}, [HOSTILE], [(svg(sfen=HOSTILE), HOSTILE)])
    return exam.Exam(HOSTILE, 1, 'a'*64, HOSTILE, {HOSTILE: part}, {'policy': HOSTILE, HOSTILE: 'b'}, {HOSTILE: HOSTILE}, HOSTILE)

def kept_exam_html():
    "What a run says of an exam that somebody else has written into its folder, which has a hostile name too"
    with tempfile.TemporaryDirectory() as at:
        folder = Path(at)/HOSTILE.replace('/', '')
        folder.mkdir()
        examined().keep(folder)
        return html.join_html(learn._exam_html(learn.LearnResult(stage='3', stages_completed=[], run_dir=str(folder))))

def searched():
    "A search with a hostile name, options, state and reason"
    trial = search.Trial(0, {HOSTILE: HOSTILE}, .5, 3, 1., HOSTILE, HOSTILE)
    return search.SearchResult(HOSTILE, HOSTILE, False, {}, [trial], {HOSTILE: .5})

MADE = {
    'Verdict': lambda: shown(arms_compared()), 'Runs': lambda: shown(run_table()), 'Study': lambda: shown(arms_waiting()),
    'Study.cells_html': lambda: arms_waiting().cells_html(),
    'Exam': lambda: shown(examined()), 'Exam.page': lambda: examined().page(), '_exam_html': kept_exam_html,
    'ExamPart._part_html': lambda: examined().parts[HOSTILE]._part_html(), '_rows_html': lambda: exam._rows_html([{HOSTILE: HOSTILE}]),
    'RateTrial': lambda: shown(RateTrial([.1]*9, [1.]*9, [2.]*9)), 'SearchResult': lambda: shown(searched()),
    'document': lambda: html.document(HOSTILE, '', HOSTILE),
    'Browser': browser, 'Monitor': monitor, 'LearnPanel': form,
    'Comparison': lambda: shown(comparison()), 'Evaluation': lambda: shown(evaluation()),
    'FilmStrip': lambda: shown(strip()), 'FilterCounts': lambda: shown(counts()), 'Gallery': lambda: shown(Gallery(HOSTILE)),
    'LearnResult': lambda: shown(learned()), 'OptionTable': lambda: shown(Named()), 'Position': lambda: shown(POSITION),
    'Prediction': lambda: shown(prediction()), 'Predictions': lambda: shown(Predictions([prediction()])),
    'Preflight': lambda: shown(Preflight([(HOSTILE, HOSTILE, HOSTILE, 'bad')])), 'Prepared': lambda: shown(prepared()),
    'ShardInfo': lambda: shown(shard_info()), 'SplitAudit': lambda: shown(audit()),
    'ShuffleMeter': lambda: shown(ShuffleMeter(10, 5, 2, np.array([2, 2]), 3, 2., 4.)),
    'Table': lambda: shown(Table([{HOSTILE: HOSTILE, 'n': 1}])),
    'Evaluation._tables_html': lambda: evaluation()._tables_html(), 'ShardInfo._files_html': lambda: shard_info()._files_html(),
    'ShardInfo._filters_html': lambda: shard_info()._filters_html(), 'Review.show': lambda: shown(found_rows.show(0, 'western')),
    '_arrow_svg': lambda: boards._arrow_svg(Arrow(1, 2, .5, HOSTILE, HOSTILE)),
    '_grid_svg': boards._grid_svg, '_hands_svg': lambda: boards._hands_svg(NO_HANDS + 2, [HOSTILE]*14),
    '_label_svg': lambda: boards._label_svg(HOSTILE, 1, 2, HOSTILE), '_note_html': lambda: panel._note_html(HOSTILE, HOSTILE),
    '_numbers_svg': lambda: boards._numbers_svg('western'), '_piece_svg': lambda: boards._piece_svg(9, 3, [HOSTILE]*14),
    '_said_html': lambda: panel._said_html([HOSTILE], [HOSTILE]), '_sign_svg': lambda: boards._sign_svg(HOSTILE, (1, 2), True),
    '_state_html': lambda: runs._state_html('failed', HOSTILE, HOSTILE), '_value_svg': lambda: boards._value_svg(.5, 3),
    'as_html': lambda: html.as_html(HOSTILE), 'count_table': lambda: count_table((HOSTILE,)*3, [(HOSTILE,)*3]),
    'board_svg': lambda: [svg(sfen=HOSTILE), svg(caption=HOSTILE),
                          svg(arrows=[Arrow(1, 2, .5, HOSTILE, HOSTILE)]), svg(frames={HOSTILE: [3]})],
    'html_table': lambda: html.html_table([[HOSTILE]], [HOSTILE], class_=HOSTILE),
    'join_html': lambda: html.join_html([HOSTILE, 1], HOSTILE), 'tag': lambda: html.tag('p', HOSTILE, title=HOSTILE),
    'picture': lambda: plots.picture(matplotlib.figure.Figure(figsize=(1, 1)), HOSTILE),
    'Drawing': lambda: titled(plots.Drawing(figsize=(1, 1)), HOSTILE),
    'Comparison._tables_html': lambda: comparison()._tables_html(), 'LearnResult._table_html': lambda: learned()._table_html(),
    'Chart': lambda: shown(learn.curves_of(stage_result())), 'Picture': lambda: shown(Gallery(HOSTILE, said=HOSTILE)),
    'Review.drawn': lambda: found_rows.drawn(0, 'western')[1], '_line_svg': lambda: pictures._line_svg(html.words_of(HOSTILE), 1),
    'defined': lambda: pictures.defined(HOSTILE + 'href="#letter-41"'),
    'outlined': lambda: pictures.outlined(HOSTILE, 1, 1, 9, fill=HOSTILE),
    'image_tag': lambda: pictures.image_tag(svg(sfen=HOSTILE)), 'png_tag': lambda: plots.png_tag(b' '*24, HOSTILE),
    'picture_of': lambda: pictures.picture_of(pictures.text_block(HOSTILE, 500), HOSTILE),
    'without_defs': lambda: html.without_defs(svg(sfen=HOSTILE)),
    '_copy_html': lambda: panel._copy_html(Words('ja')), '_text_html': lambda: panel._text_html(HOSTILE, HOSTILE, Words()),
    'kept_html': lambda: kept_html(HOSTILE),
    'Preflight.in_html': lambda: Preflight([(HOSTILE, HOSTILE, HOSTILE, 'bad')]).in_html(Words('ja')),
    'Game': lambda: shown(hostile_game()),
    'Game.at': lambda: hostile_game().at(2), 'GameBrowser': lambda: shown(GameBrowser([hostile_game()])),
    'MatchResult': lambda: shown(hostile_match()), 'elo_bar': lambda: elo_bar(hostile_match().elo),
    'Sitting': lambda: shown(hostile_sitting()), 'PlayBoard': lambda: shown(PlayBoard(hostile_sitting())),
    'Standings': lambda: shown(hostile_standings()),
    'Ladder': lambda: shown(rank({(HOSTILE, f'{HOSTILE}2'): [0, 0, 0, 0, 3]})),
    'style_sheet': None,                                                       # by `test_a_style_sheet_is_ours`
    'Stage.mistakes': None, 'Stage.numbers': None, 'moves_board': None, 'policy_board': None}   # by `test_boards_of_mistakes`
QUIET = {'elo_bar', 'RateTrial', 'Chart', 'Position', 'Sitting',
         '_copy_html', 'ShuffleMeter', '_grid_svg', '_hands_svg', '_sign_svg', 'defined', '_numbers_svg', '_value_svg'}

def test_everything_that_shows_itself_is_tried(): assert {*found()} | {'Review.show'} == MADE.keys() | {'Monitor', 'LearnPanel'}

@pytest.mark.parametrize('name', [n for n, make in MADE.items() if make])
def test_a_hostile_name_stays_text(name):
    made = MADE[name]()
    for text in made if isinstance(made, list) else [made]: check(text, name not in QUIET)

def test_a_style_sheet_is_ours():
    with pytest.raises(ValueError, match='without <'): html.style_sheet(HOSTILE)

@pytest.mark.parametrize('make', [legal_moves.moves_board, policy_value.policy_board])
def test_boards_of_mistakes(make, shards):
    "What stages draw is HTML; what they say beneath it is escaped unless it is"
    from maou_nb.judge.review import review
    stage = 2 if make is legal_moves.moves_board else 3
    rows = review(shards[f'stage{stage}_data_path'], rows=1)
    row, _ = rows.row(0)
    drawn, beneath = make(row, None, 'western')
    assert type(drawn) is Html
    assert type(beneath) is Html or '<' not in beneath
    check(drawn, False)

def test_markdown_keeps_its_cells():
    lines = Table([{'a|b': '[x](javascript:alert(1)) `c` | d\ne', 'n': 1}])._repr_markdown_().splitlines()
    assert len(lines) == 3 and all(line.count('|') == 3 for line in lines)
    assert '](' not in lines[2] and '`' not in lines[2]

TAGS = ('html|body|p|b|i|br|hr|a|div|span|small|pre|code|table|thead|tbody|tr|td|th|details|summary|ul|li|'
        'svg|g|text|tspan|title|rect|path|circle|polygon|use|defs|img|script|style')
ELEMENT = re.compile(rf'</?(?:{TAGS})(?:[\s/>]|$)')

def docstrings(tree):
    kinds = ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef
    nodes = [n.body[0].value for n in ast.walk(tree) if isinstance(n, kinds) and n.body and isinstance(n.body[0], ast.Expr)]
    return {id(n) for n in nodes}

def test_html_is_written_in_one_place():
    "No other text of the code begins an element: what escapes by itself is never gone round"
    root, wrong = Path(maou_nb.__path__[0]), []
    for path in sorted(root.rglob('*.py')):
        if path == root/'data'/'html.py' or path.name == '_modidx.py': continue
        tree = ast.parse(path.read_text())
        said = docstrings(tree)
        wrong += [f'{path.name}:{n.lineno}: {n.value}' for n in ast.walk(tree) if isinstance(n, ast.Constant)
                  and isinstance(n.value, str) and id(n) not in said and ELEMENT.search(n.value)]
    assert not wrong, wrong

def test_what_is_taken_for_html_is_made_here():
    "`Html(…)` outside its room takes only what a data frame makes of itself"
    root = Path(maou_nb.__path__[0])
    elsewhere = [p for p in root.rglob('*.py') if p != root/'data'/'html.py']
    calls = [(p.name, ast.unparse(n)) for p in elsewhere for n in ast.walk(ast.parse(p.read_text()))
             if isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == 'Html']
    assert all('_repr_html_()' in text for name, text in calls), calls

def test_a_picture_says_its_sfen_as_it_was():
    assert alternative(show_position(START, caption=HOSTILE).svgs[0]) == START
    assert alternative(svg(sfen=HOSTILE)) == HOSTILE

def test_what_is_drawn_shows_itself():
    "A plain `Figure` is seen only where pyplot was imported in the notebook, so none leaves the library"
    own = {'plots.py', 'charts.py'}       # of pictures within HTML, and of the class that shows itself
    rooms = [p for p in (Path(maou_nb.__file__).parent).rglob('*.py') if p.name not in own]
    assert rooms and not [p.name for p in rooms if 'matplotlib.figure' in p.read_text()]
