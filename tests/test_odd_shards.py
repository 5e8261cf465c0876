"Shards that no manifest vouches for, and that Arrow finds whole: what is in them is looked at, and what cannot be is named"
import contextlib, json, random, sys, time
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc as ipc
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from mutators import run_apart, spoil, spoil_bytes, spoil_tree
from samples import ONE_FILE

LONG = pytest.mark.slow

def make_shards(folder):
    "The rows of a stage 3 shard of three games, and the folder of its set"
    from maou_nb.stages.rows import prepare_stage3
    (folder/'games.csa').write_text('/\n'.join(ONE_FILE.read_text().split('/\n')[:3]))
    prepare_stage3(folder/'games.csa', folder/'set')
    with ipc.open_file(next((folder/'set').glob('*.feather'))) as f: return f.read_all().combine_chunks(), folder/'set'

@pytest.fixture(scope='module')
def table(tmp_path_factory): return make_shards(tmp_path_factory.mktemp('odd'))[0]

def write(path, table, schema=None):
    with ipc.new_file(str(path), schema or table.schema) as w: w.write_table(table)

def read(path):
    "Find and read a shard, and decode a batch of it"
    from maou_nb.data.batches import BatchStream
    from maou_nb.data.sources import StreamingFileSource
    source = StreamingFileSource(path, 3)
    batch = next(iter(BatchStream(source, source.plan(64)))).decode()
    shares = batch.policy.sum(1)
    assert ((batch.value >= 0) & (batch.value <= 1.001)).all() and ((shares - 1).abs() < 1e-3).all()
    return source.total_rows

def cell(row, value):
    "Put `value` into a row of a column; into its first part, if it is one of lists"
    def change(values):
        values = list(values)
        values[row] = [value, *values[row][1:]] if isinstance(values[row], list) else value
        return values
    return change

ODD = {'wins beyond count': ('wins', cell(0, 9.)), 'wins below 0': ('wins', cell(5, -0.5)), 'wins nan': ('wins', cell(0, float('nan'))),
       'wins inf': ('wins', cell(1, float('inf'))), 'no wins': ('wins', cell(0, None)), 'count 0': ('count', cell(3, 0)),
       'no count': ('count', cell(0, None)),
       'move wins': ('moveWins', cell(0, 9.)), 'move wins nan': ('moveWins', cell(0, float('nan'))),
       'move counts': ('moveCounts', cell(0, 9.)), 'negative': ('moveCounts', cell(2, -1.)),
       'label': ('moveLabels', cell(0, 1496)),
       'eval inf': ('evalMean', cell(0, float('inf'))), 'piece 29': ('boardIdPositions', cell(0, 29)),
       'hand': ('piecesInHand', cell(0, 19)),
       'fold': ('fold', cell(0, 100))}

@pytest.mark.parametrize('what', ODD)
def test_a_value_that_cannot_be_is_damage(table, tmp_path, what):
    from maou_nb.data.shards import ShardError
    name, change = ODD[what]
    i = table.column_names.index(name)
    column = pa.array(change(table[name].to_pylist()), table.schema.field(name).type)
    path = tmp_path/'odd.feather'
    write(path, table.set_column(i, table.schema.field(name), column))
    with pytest.raises(ShardError) as e: read(path)
    column = 'folds beyond' if name == 'fold' else f'its column {name} has values that cannot be'
    assert f'{path} is damaged: ' in str(e.value) and column in str(e.value)

def test_what_was_prepared_passes(table, tmp_path):
    write(tmp_path/'fine.feather', table)
    assert read(tmp_path/'fine.feather') == len(table)

@pytest.mark.parametrize('name', ['wins', 'fold', 'id', 'moveLabels', 'legalMoves', 'ply'])
def test_columns_twice_lost_or_of_another_type_and_no_rows(table, tmp_path, name):
    from maou_nb.data.shards import ShardError
    path, i, meta = tmp_path/'odd.feather', table.column_names.index(name), table.schema.metadata
    def refused(odd, contains):
        write(path, odd.replace_schema_metadata(meta))
        with pytest.raises(ShardError, match=contains) as e: read(path)
        assert str(path) in str(e.value) and '\n' not in str(e.value)
    refused(table.append_column(name, table[name]), f'has the column {name} more than once')
    refused(table.set_column(i, name, pa.array(['x']*len(table))), f'has the column {name} as string: ')
    if name not in ('fold', 'ply'): refused(table.drop_columns(name), f'lacks the columns {name}')
    refused(table.slice(0, 0), 'holds no rows')

# --- fuzz

NUMBERS = (None, 0, 1, -1, 2, 28, 29, 99, 100, 1495, 1496, 65535, 1e-30, 0.5, 3.7, 1e30, -1e30, float('nan'), float('inf'))
TYPES = (pa.int8(), pa.int64(), pa.uint32(), pa.float32(), pa.float64(), pa.string(), pa.binary(), pa.bool_(), pa.null(),
         pa.list_(pa.uint16()))

def spoil_table(table, rng):
    "A table with one to three things changed: values, types, columns, rows, or what it says of itself"
    for _ in range(rng.choice([1, 1, 2, 3])):
        how, i = rng.randrange(8), rng.randrange(table.num_columns)
        name, field = table.column_names[i], table.schema.field(i)
        with contextlib.suppress(pa.ArrowException, OverflowError, TypeError, ValueError):
            if how < 3 and len(table):
                column = pa.array(cell(rng.randrange(len(table)), rng.choice(NUMBERS))(table.column(i).to_pylist()), field.type)
                table = table.set_column(i, field, column)
            elif how == 3:
                kind = rng.choice(TYPES)
                table = table.set_column(i, name, pa.nulls(len(table), kind) if rng.random() < 0.3 else table.column(i).cast(kind))
            elif how == 4: table = table.remove_column(i)
            elif how == 5: table = table.append_column(rng.choice([name, 'more']), table.column(i))
            elif how == 6: table = table.slice(rng.randrange(len(table) + 1), rng.choice([0, 1, 5, 99]))
            else:
                about = spoil_tree(json.loads(table.schema.metadata[b'maou_nb']), rng)
                table = table.replace_schema_metadata({'maou_nb': json.dumps(about)})
    return table

def spoiled_shards(n, seed, folder):
    from maou_nb.data.files import FileError
    table, whole = make_shards(folder)
    table, rng, fine, refused = table.slice(0, 60).combine_chunks(), random.Random(seed), 0, 0
    path, manifest = folder/'alone.feather', whole/'manifest.json'
    write(path, table)
    raw, listed = path.read_bytes(), manifest.read_bytes()
    for i in range(n):
        at = whole if i % 4 == 0 else path
        if at is whole: manifest.write_bytes(spoil('manifest.json', listed, [raw], rng))
        elif i % 4 == 1: path.write_bytes(spoil_bytes(raw, rng))
        else: write(path, spoil_table(table, rng))
        began = time.monotonic()
        try: read(at); fine += 1
        except (FileError, FileNotFoundError) as e:
            assert '\n' not in str(e) and at.name in str(e), repr(e)
            refused += 1
        assert time.monotonic() - began < 10
    return fine, refused

@pytest.mark.parametrize('n', [200, pytest.param(10_000, marks=LONG)])
def test_spoiled_shards(n):
    fine, refused = run_apart(__file__, 'shards', n)
    assert fine + refused == n and refused > n/2 and fine > n/20

if __name__ == '__main__':
    from mutators import fuzz_here
    fuzz_here({'shards': spoiled_shards})
