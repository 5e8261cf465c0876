"""Pick the sample games: `python tools/pick_samples.py FOLDER [OUT]`

Takes 300 of the CSA files under FOLDER, spread evenly by name, 50 to a file.
"""
import sys
from pathlib import Path

def pick(folder, out, games=300, per_file=50):
    "Write `games` files of `folder`, evenly spaced in order of name, to `out` as CSA files of `per_file` games each"
    found = sorted(folder.rglob('*.csa'), key=lambda p: p.name)
    chosen = [found[i * len(found) // games] for i in range(games)]
    out.mkdir(parents=True, exist_ok=True)
    for i in range(0, games, per_file):
        texts = [p.read_text(encoding='utf-8').rstrip() + '\n' for p in chosen[i:i+per_file]]
        (out/f'selfplay-{i // per_file}.csa').write_text('/\n'.join(texts), encoding='utf-8')

if __name__ == '__main__': pick(Path(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else 'samples/games'))
