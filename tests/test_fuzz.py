"""Records that are almost right: each is a game or one sentence, never another exception and never an abort of the process

They are read in a process of their own, because what is feared is that the rules library takes the process down.
"""
import random, subprocess, sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from samples import GAMES

def spoil(game, rng):
    "`game` with a few of its lines lost, repeated, or changed in a letter"
    lines = game.split('\n')
    for _ in range(rng.randint(1, 4)):
        k, how = rng.randrange(len(lines)), rng.random()
        if how < 0.3: del lines[k]
        elif how < 0.6: lines.insert(k, rng.choice(lines))
        elif lines[k]:
            at = rng.randrange(len(lines[k]))
            lines[k] = lines[k][:at] + rng.choice('0123456789+-*PFUKYOU \t%/') + lines[k][at+1:]
    return '\n'.join(lines)

def read_spoiled(n, seed):
    "Read and walk `n` spoiled games; prints how many were games all the same, and how many were refused"
    from maou_nb.data.games import RecordError, parse_csa
    from maou_nb.data.positions import positions
    games, rng, fine, refused = (GAMES/'selfplay-1.csa').read_text().split('/\n'), random.Random(seed), 0, 0
    for _ in range(n):
        try: positions([parse_csa(spoil(rng.choice(games), rng), 'spoiled.csa')]); fine += 1
        except RecordError as e:
            assert '\n' not in str(e) and 'spoiled.csa' in str(e), e
            refused += 1
    print(fine, refused)

@pytest.mark.parametrize('n', [2_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_spoiled_records(n):
    done = subprocess.run([sys.executable, __file__, str(n)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    fine, refused = map(int, done.stdout.split())
    assert fine + refused == n and fine > n/10 and refused > n/10

if __name__ == '__main__': read_spoiled(int(sys.argv[1]), seed=int(sys.argv[1]))
