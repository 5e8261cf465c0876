"""Draw the picture of the README, nbs/images/stages.png, from a run: `python tools/readme_strip.py [RUN]`

Without a name from runs/quickstart, which `make demo` makes. A column for each stage: what it reached beside what guessing
scores, its loss, and the watched position as the network saw it before and after.
"""
import io, shutil, sys
from base64 import b64encode
from pathlib import Path

from matplotlib.figure import Figure
from playwright.sync_api import sync_playwright

from maou_nb import film_strip, load_run
from maou_nb.show.pictures import image_tag
from maou_nb.train.folder import RunFolder

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT/'nbs'/'images'/'stages.png'
SAID = {1: ('Where can a piece go?', 'accuracy', 'of squares right'), 2: ('Which moves are legal?', 'f1', 'F1 over moves'),
        3: ('What is played?', 'top1', 'of moves predicted')}
STYLE = '''body { margin: 0; width: 1180px; font: 16px/1.35 "DejaVu Sans", sans-serif; background: #fff; color: #1a1a1a }
main { display: grid; grid-template-columns: repeat(3, 1fr); gap: 30px; padding: 18px 22px 8px }
h2 { margin: 0; font-size: 19px } p { margin: 3px 0 6px; color: #333 } img { width: 100%; height: auto }'''

def curve(steps):
    "The loss of a stage from batch to batch, as a data URL"
    fig = Figure(figsize=(3.6, 1.35), dpi=200, layout='constrained')
    ax = fig.subplots()
    ax.plot([s['step'] for s in steps], [s['train/loss'] for s in steps], color='#2a7ab0', linewidth=2.2)
    ax.set(ylim=(0, None), xlim=(0, None), xlabel='step', ylabel='loss')
    ax.spines[['top', 'right']].set_visible(False)
    fig.savefig(made := io.BytesIO(), format='png')
    return 'data:image/png;base64,' + b64encode(made.getvalue()).decode()

def column(path, stage):
    "The HTML of a stage: what it asks, how its loss fell, and what the net said of one position before and after"
    asks, name, unit = SAID[stage.stage]
    steps = RunFolder(path).steps()[stage.stage]
    reached = f'<b>{stage.metrics[name]:.2f}</b> {unit}, by guessing {stage.baselines[name]:.2f}'
    film = image_tag(film_strip(path, stage=stage.stage, frames=2).drawing())
    return f'<section><h2>{stage.stage} · {asks}</h2><p>{reached}</p><img src="{curve(steps)}">{film}</section>'

def strip(path):
    "The picture of the run in `path`, as PNG"
    result = load_run(path)
    html = ''.join(column(path, result[n]) for n in SAID)
    chromium = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
    with sync_playwright() as pw:
        browser = pw.chromium.launch(executable_path=chromium, args=['--no-sandbox', '--disable-gpu'])
        page = browser.new_page(viewport=dict(width=1180, height=300), device_scale_factor=1.5)
        page.set_content(f'<meta charset="utf-8"><style>{STYLE}</style><main>{html}</main>')
        picture = page.locator('main').screenshot()
        browser.close()
    return picture

if __name__ == '__main__': PICTURE.write_bytes(strip(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT/'runs'/'quickstart')))
