"The sample games, and shards made of them once a test run"
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
GAMES = ROOT/'samples'/'games'
ONE_FILE = GAMES/'selfplay-0.csa'   # 50 games

def said(error):
    "The message of `error`, checked to be one sentence on one line"
    text = str(error.value)
    assert '\n' not in text and 'Traceback' not in text, text
    return text
