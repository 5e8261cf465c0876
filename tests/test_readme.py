"The README: its cells run as they stand, its lines fit, and the Japanese one beside it is in step"
import json, re, shutil

import pytest

from maou_nb.front.cli import flags
from samples import ONE_FILE, ROOT

ENGLISH, JAPANESE = ((ROOT/name).read_text(encoding='utf-8') for name in ('README.md', 'README.ja.md'))

def blocks(text, language='python'):
    "The code fences of a text in `language`"
    return re.findall(rf'^```{language}\n(.*?)^```$', text, re.M | re.S)

def bare(code):
    "Lines of code without their comments"
    return [re.sub(r'\s+# .*$', '', line) for line in code.splitlines()]

def levels(text):
    "The level of each heading of a text, in order"
    return [len(marks) for marks in re.findall(r'^(#+) ', re.sub(r'^```.*?^```$', '', text, flags=re.M | re.S), re.M)]

def test_the_japanese_readme_is_in_step():
    assert levels(ENGLISH) == levels(JAPANESE) and len(levels(ENGLISH)) >= 5
    assert [*map(bare, blocks(ENGLISH, r'\w*'))] == [*map(bare, blocks(JAPANESE, r'\w*'))]
    targets = lambda text: [t for t in re.findall(r'\]\((\S+?)\)', text) if not t.startswith('README')]
    assert targets(ENGLISH) == targets(JAPANESE)
    assert '](README.ja.md)' in ENGLISH and '](README.md)' in JAPANESE
    figures = lambda text: sorted(re.findall(r'\d[\d,.]*\d', re.sub(r'\]\(\S+?\)|^```.*?^```$', '', text, flags=re.M | re.S)))
    assert figures(ENGLISH) == figures(JAPANESE)

def test_another_heading_or_code_is_noticed():
    assert levels('# a\n## b\n```\n# c\n```\n') == [1, 2]
    assert bare('f(1)   # one\n') == bare('f(1) # 一つ\n') != bare('f(2) # one\n')

def test_what_it_links_to_is_there():
    for text in (ENGLISH, JAPANESE):
        missing = [t for t in re.findall(r'\]\((\S+?)\)', text) if '://' not in t and not (ROOT/t).exists()]
        assert not missing

def code_of(path):
    "The code of a notebook that readers see"
    for cell in json.loads(path.read_text(encoding='utf-8'))['cells']:
        source = ''.join(cell['source'])
        if cell['cell_type'] == 'markdown': yield from re.findall(r'^```.*?\n(.*?)^```$', source, re.M | re.S)
        elif not re.search(r'^#\| *(hide|echo: false)', source, re.M): yield source

EXAMPLES = [ROOT/'index.ipynb', *sorted(ROOT.glob('nbs/tutorials/*.ipynb')), *sorted(ROOT.glob('nbs/guides/*.ipynb'))]

@pytest.mark.parametrize('path', EXAMPLES, ids=lambda p: p.stem)
def test_code_of_examples_fits_on_a_page(path):
    long = [line for code in code_of(path) for line in code.splitlines() if len(line) > 88]
    assert not long

def commands(path):
    "The command lines of `maou-nb learn-model` that a notebook shows"
    for code in code_of(path):
        for line in code.replace('\\\n', ' ').splitlines():
            if found := re.search(r'learn-model (?!\s*#)(.*)', line): yield found[1]

def test_commands_that_are_shown_have_flags_that_there_are():
    "Stages of one's own bring flags of their own"
    shown = [(path.stem, flag) for path in EXAMPLES for line in commands(path) for flag in re.findall(r'(?<=\s)--[a-z][\w-]*', f' {line}')]
    assert len(shown) > 20
    assert not [(page, flag) for page, flag in shown if flag not in {*flags()} and 'attacked' not in flag]

def run_cells(folder, monkeypatch, demo, *changes):
    "Run the README's cells in `folder`, beside a run that `make demo` left, with so many `changes` of text; the names they leave"
    shutil.copytree(demo, folder/'runs'/'quickstart')
    monkeypatch.chdir(folder)
    code = '\n'.join(blocks(ENGLISH))
    for old, new in changes:
        assert code.count(old) == 1, old
        code = code.replace(old, new)
    names = {}
    exec(compile(code, 'README.md', 'exec'), names)
    return names

def test_its_cells_run(tmp_path, monkeypatch, small_run):
    "On fifty of the sample games, and as long as a test may take"
    shutil.copytree(ROOT/'samples', tmp_path/'samples')
    for p in (tmp_path/'samples'/'games').iterdir():
        if p.name != ONE_FILE.name: p.unlink()
    result = run_cells(tmp_path, monkeypatch, small_run, ('stage2_threshold=0.9', 'stage2_threshold=0.1'),
                       ('epoch=3', 'epoch=1'), ('games=20', 'games=2'),
                       ("model_size='tiny'", "model_size='tiny', resnet_channels=24, resnet_blocks=2, stage1_threshold=0.9"))['result']
    assert all(result[n].history for n in (1, 2, 3)) and (tmp_path/'runs'/'first'/'result.json').exists()

@pytest.mark.slow
def test_its_cells_run_as_they_stand(tmp_path, monkeypatch, small_run):
    shutil.copytree(ROOT/'samples', tmp_path/'samples')
    result = run_cells(tmp_path, monkeypatch, small_run)['result']
    assert result[2].threshold_met and result[3].metrics['top1'] > 3*result[3].baselines['top1']
