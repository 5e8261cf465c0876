"The page of promises names tests that exist"
import json, re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent/'nbs'/'guides'/'86_promises.ipynb'

def test_every_test_that_the_page_names_exists():
    text = ''.join(''.join(c['source']) for c in json.loads(PAGE.read_text(encoding='utf-8'))['cells'])
    named = re.findall(r'`(test_\w+\.py)(?:::(test_\w+))?`', text)
    assert len(named) > 50
    missing = [f'{file}::{name}' for file, name in named
               if not (HERE/file).exists() or name and f'def {name}(' not in (HERE/file).read_text(encoding='utf-8')]
    assert not missing, missing
