"How Sphinx makes the site; tools/docs_build.py writes the pages that it reads"
import json, re
from configparser import ConfigParser
from pathlib import Path

from docutils import nodes
from maou_nb.train.options import LearnConfig

HERE = Path(__file__).parent
ini = ConfigParser(delimiters=['='], interpolation=None)
ini.read(HERE.parent/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

project, version, author = cfg['title'], cfg['version'], cfg['author']
copyright = cfg['copyright']
extensions = ['myst_nb', 'sphinx_copybutton']

# --- Notebooks: shown as they were kept, and nothing is fetched from elsewhere
nb_execution_mode = 'off'
nb_merge_streams = True
nb_ipywidgets_js = {}
myst_enable_extensions = ['attrs_block']
myst_all_links_external = True                 # links stay as written: docs_build.py checks them
suppress_warnings = ['myst.header']            # a name may stand below a title with no section between

def anchor(text):
    "The anchor of a heading, as links of nbdev have it: `learn_multi_stage`, `learnpanel.start`"
    return re.sub(r'\s+', '-', re.sub(r'[^\w\s.-]', '', text.lower())).strip('-')

nodes.make_id = anchor                         # docutils would make `learn-multi-stage` of it

# --- Theme
html_theme = 'pydata_sphinx_theme'
html_title = f'{project} {version}'
html_static_path = ['static']
html_css_files = ['style.css']
html_search_scorer = str(HERE.parent/'build'/'scorer.js')
names = json.dumps([*LearnConfig.model_fields])
Path(html_search_scorer).write_text(f"const OPTIONS = {names}\n{(HERE/'scorer.js').read_text()}")
html_copy_source = html_show_sourcelink = html_use_index = False
html_theme_options = dict(
    logo={'text': html_title}, github_url=cfg['git_url'], navigation_with_keys=False,
    show_prev_next=True, secondary_sidebar_items=['page-toc'], show_toc_level=2, back_to_top_button=False,
    pygments_light_style='a11y-high-contrast-light', pygments_dark_style='a11y-high-contrast-dark',
    footer_start=['copyright'], footer_end=[])
