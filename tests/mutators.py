"Ways to spoil a file: its bytes, its JSON, its lines; and a process of its own for a fuzz, whose memory is measured"
import contextlib, copy, io, json, math, re, resource, subprocess, sys, tempfile, warnings
from pathlib import Path

ODD = (None, True, -1, 0, 3, 10**30, -1e308, math.nan, math.inf, '', 'x', '../../x', '<b>', 'é'*50, [], {}, [[1]], {'a': {}}, '1', 1e-9)
WHOLE = (b'', b'\n', b'{', b'[]', b'null', b'7', b'"text"', b'{}', b'\xff\xfe\x00', b'[' * 50_000, b'{"a":' * 50_000, b'\0' * 4096,
         b'1' * 6000, b'PK\x03\x04', '{"stage": "四"}'.encode(), b'{"stage": 1}\n' * 3, b'NaN')

def spoil_bytes(data, rng):
    "Bytes changed, lost, added, repeated or zeroed"
    data, how = bytearray(data), rng.randrange(6)
    at = rng.randrange(len(data) + 1)
    if how == 0: return bytes(data[:at])
    if how == 1: return bytes(data[:at] + rng.randbytes(rng.randint(1, 30)) + data[at:])
    if how == 2: return bytes(data[:at] + data[at + rng.randint(1, 200):])
    if how == 3: return bytes(data + data[at:])
    if how == 4: return bytes(data[:at] + bytes(rng.randint(1, 300)) + data[at + rng.randint(1, 300):])
    for _ in range(rng.choice([1, 1, 2, 8])):
        if data: data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)

def places(tree):
    "(holder, key) of everything in a tree of JSON"
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for k, v in list(pairs):
        yield tree, k
        yield from places(v)

def spoil_tree(tree, rng):
    "A tree of JSON with one to three of its parts replaced, lost, renamed, wrapped, doubled or swapped"
    tree = {'root': copy.deepcopy(tree)}
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        found = list(places(tree))
        holder, key = rng.choice(found)
        how = rng.randrange(7)
        if how < 3: holder[key] = copy.deepcopy(rng.choice(ODD))
        elif how == 3 and holder is not tree: del holder[key]
        elif how == 4: holder[key] = [holder[key]]*rng.randint(1, 2)
        elif how == 5 and isinstance(holder, dict) and holder is not tree: holder[f'{key}?'] = holder.pop(key)
        else:
            other, k = rng.choice(found)
            holder[key] = copy.deepcopy(other[k])
    return tree['root']

def spoil_json(data, rng): return json.dumps(spoil_tree(json.loads(data), rng), indent=rng.choice([None, 1])).encode()

def spoil_lines(data, rng):
    "Lines of JSON, some of them lost, repeated, joined, mixed or changed inside"
    lines = data.splitlines()
    for _ in range(rng.randint(1, 3)):
        if not lines: break
        k, how = rng.randrange(len(lines)), rng.randrange(6)
        if how == 0: del lines[k]
        elif how == 1: lines.insert(rng.randrange(len(lines)), lines[k])
        elif how == 2: rng.shuffle(lines)
        elif how == 3: lines[k] = lines[k] + lines[k]
        elif how == 4: lines[k] = spoil_bytes(lines[k], rng)
        else:
            try: lines[k] = spoil_json(lines[k], rng)
            except ValueError: pass
    return b'\n'.join(lines) + b'\n'*rng.randint(0, 1)

def spoil(name, data, others, rng):
    "What `data` of a small file called `name` may have become"
    how = rng.random()
    if how < 0.1: return rng.choice(WHOLE)
    if how < 0.2: return rng.choice(others)
    if how < 0.45: return spoil_bytes(data, rng)
    return spoil_lines(data, rng) if name.endswith('.jsonl') else spoil_json(data, rng)

def run_apart(file, what, n, seed=1):
    "How many results and how many sentences the fuzz `what` of a test file had, in a process that needed less than 1 GB"
    done = subprocess.run([sys.executable, file, what, str(n), str(seed)], capture_output=True, text=True)
    assert done.returncode == 0, (done.returncode, done.stderr[-4000:])
    fine, refused, peak = json.loads(done.stdout.splitlines()[-1])
    assert peak < 1e9
    return fine, refused

def peak():
    "The most bytes that this process held; Linux counts those of its parent at the start in `ru_maxrss`"
    try: return int(re.search(r'VmHWM:\s*(\d+) kB', Path('/proc/self/status').read_text())[1])*1024
    except OSError: return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss*1024

def fuzz_here(kinds):
    "What `run_apart` asks this process for"
    what, n, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    warnings.simplefilter('ignore')
    with tempfile.TemporaryDirectory() as tmp, contextlib.redirect_stdout(io.StringIO()):
        fine, refused = kinds[what](n, seed, Path(tmp))
    print(json.dumps([fine, refused, peak()]))
