"""Measure how the notebooks read: `python tools/style.py [--check] [NB ...]`

A table with a row a notebook, then the totals beside their limits. With names only those notebooks
are measured, and every fault in them is listed. `--check` lists faults and exits 1 where a limit is
broken. Only the standard library is needed.

What counts: lines without blank ones and without `#|` directives. An exported cell that only
imports is no cell to show. An example is any cell that is shown and runs something; of hidden cells
only tests count, and `show_doc` and imports are passed over.
"""
import argparse, ast, json, re, sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
LIB, NBS, STAGES = 'maou_nb', 'nbs', 'stages'
SCRIPTS = 'tests', 'tools', 'benchmarks'
USUAL, HARD = 100, 140       # characters: most lines of exported code; any line
LIMITS = {                   # name: (whether more is better, limit, how it is written)
    f'lines of exported code up to {USUAL}': (True, 90, '{:.1f} %'),
    f'lines over {HARD}': (False, 0, '{:.0f}'),
    'exported cells with an example after them': (True, 60, '{:.1f} %'),
    'median lines of an exported cell': (False, 8, '{:g}'),
    'exported cells of one definition or none': (True, 90, '{:.1f} %'),
    'notebooks with an empty first code cell': (False, 0, '{:.0f}'),
    'public names without an example': (False, 0, '{:.0f}'),
    'stages told apart by their number': (False, 0, '{:.0f}'),
}
AT_ONCE = 15                 # faults of a kind that are listed where no notebook was named

# --- Cells

EXPORTS = 'export', 'exporti', 'exports'
DIRECTIVE = re.compile(r'\s*#\s*\|\s*(\S+)\s*(.*)')
TESTS = re.compile(r'test_|raises$|expect_|ExceptionExpected$')
DEFS = ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef
IMPORTS = ast.Import, ast.ImportFrom

def parse(text):
    "The statements of `text`, with its magics left out; None where it is no Python"
    plain = re.sub(r'^(\s*)[%!?].*|^(\s*).*\?$', r'\1\2pass', text, flags=re.M)
    for t in (text, plain):
        try: return ast.parse(t).body
        except SyntaxError: pass

@dataclass
class Cell:
    "A code cell: its place among all cells, counted from 1, and its text"
    at: int
    text: str

    def __post_init__(self):
        found = [DIRECTIVE.match(o) for o in self.text.splitlines()]
        self.directives = {m[1].rstrip(':'): m[2].strip() for m in found if m}
        self.lines = [o for o in self.text.splitlines() if o.strip() and not DIRECTIVE.match(o)]
        self.body = parse(self.text)

    @property
    def exported(self):
        "Does it go into a module?"
        return any(o in self.directives for o in EXPORTS)

    @property
    def target(self):
        "The module that its directive names, '' for the notebook's own"
        return next((self.directives[o] for o in EXPORTS if o in self.directives), '')

    @property
    def hidden(self): return 'hide' in self.directives

    @property
    def imports_only(self):
        "Does it nothing but import?"
        return self.body is not None and all(map(is_import, self.body))

    @property
    def only_shows_doc(self):
        "Does it nothing but print documentation?"
        is_doc = lambda o: isinstance(o, ast.Expr) and called(o.value) == 'show_doc'
        return bool(self.body) and all(map(is_doc, self.body))

    @property
    def tests(self):
        "Does it assert something?"
        if self.body is None: return 'assert' in self.text
        nodes = [n for o in self.body for n in ast.walk(o)]
        return any(isinstance(n, ast.Assert) or TESTS.match(called(n)) for n in nodes)

    @property
    def definitions(self):
        "How many functions and classes are defined at its top"
        is_def = lambda o: isinstance(o, DEFS) or isinstance(getattr(o, 'value', None), ast.Lambda)
        return sum(map(is_def, self.body or ()))

    @property
    def first(self):
        "Its first line that is no comment or decorator"
        plain = [o.strip() for o in self.lines if not o.lstrip().startswith(('#', '@'))]
        return (plain or self.lines or [''])[0][:70]

    def names(self):
        "Names that it uses"
        words = lambda lines: set(re.findall(r'[^\W\d]\w*', '\n'.join(lines)))
        if self.body is None: return words(self.lines)
        nodes = [n for o in self.body for n in ast.walk(o)]
        magics = [o for o in self.lines if re.match(r'\s*[%!?]|.*\?$', o)]
        return {getattr(n, 'id', None) or getattr(n, 'attr', '') for n in nodes} | words(magics)

    def defines(self):
        "Public names that it makes at its top"
        made = set()
        for o in self.body or ():
            if isinstance(o, DEFS): made.add(o.name)
            if isinstance(o, (ast.Assign, ast.AnnAssign)):
                targets = getattr(o, 'targets', None) or [o.target]
                nodes = [n for t in targets for n in ast.walk(t)]
                stored = [n for n in nodes if isinstance(getattr(n, 'ctx', 0), ast.Store)]
                made |= {n.id for n in stored if isinstance(n, ast.Name)}
        return {o for o in made if not o.startswith('_')}

def is_import(node):
    "Is statement `node` an import, a docstring, or a try or an if around imports?"
    if isinstance(node, ast.Expr): return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Try):
        otherwise = [o for h in node.handlers for o in h.body]   # `X = None` where it isn't there
        return all(map(is_import, node.body)) and all(
            is_import(o) or isinstance(o, (ast.Pass, ast.Assign)) for o in otherwise)
    if isinstance(node, ast.If): return all(map(is_import, node.body + node.orelse))
    return isinstance(node, IMPORTS)

def called(node):
    "Name of what the call `node` calls, '' if it is none"
    func = getattr(node, 'func', None) if isinstance(node, ast.Call) else None
    return getattr(func, 'attr', None) or getattr(func, 'id', '')

# --- Notebooks

@dataclass
class Fault:
    "A fault of kind `kind`, a key of `LIMITS`"
    kind: str
    where: str
    what: str

@dataclass
class Measures:
    "What was counted in one notebook, or in all"
    widths: list = field(default_factory=list)     # of lines of exported code
    wide: int = 0                                  # lines over HARD, in any code cell
    widest: int = 0
    sizes: list = field(default_factory=list)      # lines of each exported cell, import cells apart
    followed: int = 0
    single: int = 0
    empty: int = 0
    unshown: int = 0
    stages: int = 0

    def __iadd__(self, o):
        for k in ('widths', 'sizes', 'wide', 'followed', 'single', 'empty', 'unshown', 'stages'):
            setattr(self, k, getattr(self, k) + getattr(o, k))
        self.widest = max(self.widest, o.widest)
        return self

    def figures(self):
        "Figures in the order of `LIMITS`, None where there is nothing to measure"
        share = lambda n, of: 100*n/len(of) if of else None
        usual, sizes = sum(w <= USUAL for w in self.widths), self.sizes
        return [share(usual, self.widths), self.wide, share(self.followed, sizes),
                median(sizes) if sizes else None, share(self.single, sizes),
                self.empty, self.unshown, self.stages]

def read(path):
    "The code cells of the notebook at `path`"
    cells = enumerate(json.loads(path.read_text(encoding='utf-8'))['cells'], 1)
    return [Cell(i, ''.join(c['source'])) for i, c in cells if c['cell_type'] == 'code']

def has_example(after):
    "Is there an example or a test in the code cells `after` an exported one, before the next?"
    for cell in after:
        if cell.exported:
            if not cell.imports_only: return False
        elif cell.hidden:
            if cell.tests: return True
        elif cell.lines and not cell.imports_only and not cell.only_shows_doc: return True
    return False

def public(root, module, cells):
    """Names in `__all__` of `module` that `cells`, one notebook's, make

    All public names that `cells` make where the module isn't written yet.
    """
    made = set().union(*(c.defines() for c in cells)) if cells else set()
    path = root/LIB/Path(*module.split('.')).with_suffix('.py')
    if not path.exists(): return made
    found = [o.value for o in ast.parse(path.read_text(encoding='utf-8')).body
             if isinstance(o, ast.Assign) and getattr(o.targets[0], 'id', '') == '__all__']
    listed = set(ast.literal_eval(found[0])) if found else set()
    # a name in `_all_` stands in the notebook as text
    texts = ' '.join(c.text for c in cells if '_all_' in c.text)
    return {o for o in listed if o in made or re.search(rf'''['"]{o}['"]''', texts)}

def measure(root, path):
    "Measures of the notebook at `path`, its faults, and the modules that it makes"
    name, m, faults = path.relative_to(root).as_posix(), Measures(), []
    def blame(kind, cell, what):
        faults.append(Fault(list(LIMITS)[kind], f'{name}, cell {cell.at}', what))
    code = read(path)
    own = next((c.directives['default_exp'] for c in code if 'default_exp' in c.directives), None)
    exported = [c for c in code if own and c.exported]
    if code and not code[0].text.strip():
        m.empty = 1
        blame(5, code[0], 'the first code cell is empty')
    for cell in code:
        m.widest = max(m.widest, *map(len, cell.lines), 0)
        for line in cell.lines:
            if len(line) > HARD:
                m.wide += 1
                blame(1, cell, f'{len(line)} characters: {line.strip()[:60]}…')
    for i, cell in enumerate(code):
        if cell not in exported: continue
        m.widths += map(len, cell.lines)
        if cell.imports_only: continue
        m.sizes.append(len(cell.lines))
        m.single += cell.definitions <= 1
        if cell.definitions > 1: blame(4, cell, f'{cell.definitions} definitions: {cell.first}')
        shown = has_example(code[i + 1:])
        m.followed += shown
        if not shown: blame(2, cell, f'no example or test follows: {cell.first}')
    modules = {c.target or own for c in exported} | ({own} if own else set())
    used = set().union(*(c.names() for c in code if not c.exported))
    for module in sorted(modules):
        there = [c for c in exported if (c.target or own) == module]
        for o in sorted(public(root, module, there) - used):
            m.unshown += 1
            home = next((c for c in exported if o in c.defines()), exported[0])
            blame(6, home, f'no cell shows {o}')
    return m, faults, modules

# --- Stages told apart by their number

NUMBERS = re.compile(r'[123]{1,3}|stage[ _-]?[123]')
STAGE = re.compile(r'(?:^|_)(?:stages?|number)$|(?:^|_)stages?_of$', re.I)
# methods of arrays to which (1, 2, 3) are axes
AXES = set('all any sum mean amax amin max min std var prod flip permute transpose squeeze'.split())
FUNCS = ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda

def inside(node):
    "All nodes under `node`, without those of functions in it"
    for o in ast.iter_child_nodes(node):
        yield o
        if not isinstance(o, FUNCS): yield from inside(o)

def is_number(node):
    "Is it a stage's number written down, or some of them?"
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)): return any(map(is_number, node.elts))
    if not isinstance(node, ast.Constant) or isinstance(node.value, bool): return False
    return isinstance(node.value, int) or bool(NUMBERS.fullmatch(str(node.value)))

def is_named(node):
    "Is it a text such as 'stage3'?"
    text = str(getattr(node, 'value', '')) if isinstance(node, ast.Constant) else ''
    return bool(re.fullmatch(r'stage[ _-]?[123]', text))

def is_list(node):
    "Are these the numbers of all stages, or a dict by them?"
    if isinstance(node, ast.Dict): node, most = ast.Tuple(node.keys), 2
    elif called(node) == 'range': return [getattr(a, 'value', None) for a in node.args] == [1, 4]
    else: most = 3
    if not isinstance(node, (ast.Tuple, ast.List, ast.Set)): return False
    values = [getattr(o, 'value', None) for o in node.elts if isinstance(o, ast.Constant)]
    if {'1', '2', '3'} <= {o for o in values if isinstance(o, str)}: return True
    plain = len(values) == len(node.elts) >= most and all(type(o) is int for o in values)
    return plain and len(set(values)) == len(values) and set(values) <= {1, 2, 3}

def is_stage(node, names):
    "Does `node` hold a stage's number? `names` are the short names that do here"
    if isinstance(node, ast.Name): return node.id in names or bool(STAGE.search(node.id))
    if isinstance(node, ast.Attribute): return bool(STAGE.search(node.attr))
    if isinstance(node, ast.Constant): return node.value in ('stage', 'number')
    if isinstance(node, ast.Subscript):
        return is_stage(node.slice, ()) or is_stage(node.value, names)
    if isinstance(node, ast.NamedExpr): return is_stage(node.value, names)
    if isinstance(node, ast.Call):
        if called(node) in ('int', 'str', 'get', 'getattr'):
            return any(is_stage(a, names) for a in node.args)
        return is_stage(node.func, ())
    return False

def spelled(node, ending=r'(?:^|[^A-Za-z])stage$'):
    "What follows 'stage' in an f-string or a sum of texts: `stage{n}`; None if it is no such text"
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [node.left, node.right]
    else: parts = node.values if isinstance(node, ast.JoinedStr) else []
    for a, b in zip(parts, parts[1:]):
        text = str(a.value) if isinstance(a, ast.Constant) else ''
        if re.search(ending, text): return getattr(b, 'value', b)

def short_names(scope):
    """Names such as `n` that hold a stage's number in `scope`

    They loop over stages, are taken from one, or are written as `stage{n}` or `stage {n}`.
    """
    found = set()
    for o in inside(scope):
        pairs = []
        if isinstance(o, (ast.For, ast.comprehension)): pairs = [(o.target, o.iter)]
        elif isinstance(o, ast.Assign): pairs = [(t, o.value) for t in o.targets]
        elif isinstance(o, ast.NamedExpr): pairs = [(o.target, o.value)]
        for t, v in pairs:
            both = [getattr(x, 'elts', ()) for x in (t, v)]
            many = isinstance(t, ast.Tuple) and len(both[0]) == len(both[1])
            for a, b in zip(*both) if many else [(t, v)]:
                if isinstance(a, ast.Name) and (is_stage(b, found) or is_list(b)): found.add(a.id)
        said = spelled(o, r'(?:^|[^A-Za-z])stage ?$')
        if isinstance(said, ast.Name): found.add(said.id)
    return found

def numbered(tree):
    "Nodes of the module `tree` that tell stages apart by their number"
    def look(node, names):
        if isinstance(node, FUNCS):
            args = {a.arg for a in ast.walk(node.args) if isinstance(a, ast.arg)}
            names = (names - args) | short_names(node)
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            hit = lambda a, b: is_stage(a, names) and is_number(b) or is_named(b)
            if any(hit(a, b) or hit(b, a) for a, b in zip(sides, sides[1:])):
                yield node
                return
        if isinstance(node, ast.Match) and is_stage(node.subject, names):
            parts = [p for c in node.cases for p in ast.walk(c.pattern)]
            if any(is_number(p.value) for p in parts if isinstance(p, ast.MatchValue)):
                yield node.subject
        if is_list(node) or spelled(node) is not None: yield node
        for o in ast.iter_child_nodes(node):
            keyword = isinstance(o, ast.keyword)
            axes = o.arg in ('axis', 'dim', 'dims') if keyword else called(node) in AXES
            if not (axes and is_list(o.value if keyword else o)): yield from look(o, names)
    yield from look(tree, short_names(tree))

def may_number(root, path):
    "May the module at `path` know stages by their number?"
    return path.relative_to(root/LIB).parts[0] == STAGES

def stage_faults(root, path):
    "Faults of the module at `path`: where it tells stages apart by their number"
    text = path.read_text(encoding='utf-8')
    lines, name = text.splitlines(), path.relative_to(root).as_posix()
    def said(o):
        if (what := spelled(o)) is not None: return 'stage{' + ast.unparse(what) + '}'
        return ' '.join((ast.get_source_segment(text, o) or lines[o.lineno - 1]).split())[:90]
    found = numbered(ast.parse(text))
    return [Fault(list(LIMITS)[7], f'{name}:{o.lineno}', said(o)) for o in found]

# --- All of it

def notebooks(root):
    "All notebooks under `root`, the index once"
    found = [o for o in (root/NBS).rglob('*.ipynb')
             if not o.is_symlink() and '.ipynb_checkpoints' not in o.parts]
    return [*(o for o in [root/'index.ipynb'] if o.exists()), *sorted(found)]

def scripts(root):
    "Files of Python that no notebook makes"
    found = [*root.glob('*.py'), *(o for d in (*SCRIPTS, LIB) for o in (root/d).rglob('*.py'))]
    def made(o):
        return o.name == '_modidx.py' or 'AUTOGENERATED' in o.read_text(encoding='utf-8')[:500]
    given = root/'tests'/'records'         # made elsewhere, kept as it is
    found = [o for o in sorted(found) if not o.is_relative_to(given)]
    return [o for o in found if LIB != o.relative_to(root).parts[0] or not made(o)]

def script_faults(root, path):
    "Faults of the file at `path`: its lines that are too wide"
    lines = enumerate(path.read_text(encoding='utf-8').splitlines(), 1)
    name = path.relative_to(root).as_posix()
    return [Fault(list(LIMITS)[1], f'{name}:{i}', f'{len(o)} characters: {o.strip()[:60]}…')
            for i, o in lines if len(o) > HARD]

COLUMNS = ['cells', f'≤{USUAL} %', 'widest', f'>{HARD}', 'shown %', 'median', '1 def %',
           'unshown', 'stages']

def row(m):
    "A row of the table"
    wide, over, shown, mid, single, _, unshown, stages = m.figures()
    text = lambda o: '' if o is None else f'{o:.0f}' if float(o).is_integer() else f'{o:.1f}'
    cells = len(m.sizes) or None
    return [*map(text, (cells, wide, m.widest, over, shown, mid, single, unshown, stages))]

def show(rows):
    "Print `rows` of a name and texts, with the columns under each other"
    rows = [('', COLUMNS), *rows]
    left = max(len(name) for name, _ in rows)
    for name, texts in rows:
        print(name.ljust(left), *(o.rjust(len(c) + 1) for o, c in zip(texts, COLUMNS)))

def survey(root, names=()):
    "Measures by name, all of them added up, and the faults: of the files `names`, or of all"
    given = [Path(o).resolve() for o in names]
    nbs = [o for o in given if o.suffix == '.ipynb'] if given else notebooks(root)
    each, faults, total, seen = {}, [], Measures(), set()
    for path in nbs:
        m, found, modules = measure(root, path)
        files = {root/LIB/Path(*o.split('.')).with_suffix('.py') for o in modules} - seen
        for file in sorted(files):
            seen.add(file)
            if file.exists() and not may_number(root, file):
                found += (said := stage_faults(root, file))
                m.stages += len(said)
        each[path.relative_to(root).as_posix()] = m
        faults += found
        total += m
    for path in [o for o in given if o.suffix == '.py'] if given else scripts(root):
        found = script_faults(root, path)
        total.wide += len(found)
        if path.is_relative_to(root/LIB) and not may_number(root, path):
            found += (said := stage_faults(root, path))
            total.stages += len(said)
        faults += found
    return each, total, faults

def broken(total):
    "Names of the limits that `total` breaks"
    return [k for (k, (more, limit, _)), v in zip(LIMITS.items(), total.figures())
            if v is not None and (v < limit if more else v > limit)]

def main(argv=None):
    "What the command line asks for; 1 if `--check` was given and a limit is broken"
    args = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    args.add_argument('names', nargs='*', metavar='NB', help='measure these only')
    args.add_argument('--check', action='store_true', help='exit 1 where a limit is broken')
    args.add_argument('--root', type=Path, default=ROOT, help="the project's folder")
    args = args.parse_args(argv)
    each, total, faults = survey(args.root.resolve(), args.names)
    bad = broken(total)
    rows = {k: m for k, m in each.items() if m.sizes or m.wide or m.empty}
    show([(k, row(m)) for k, m in {**rows, 'all': total}.items()])
    print()
    for (k, (more, limit, form)), v in zip(LIMITS.items(), total.figures()):
        said, most = 'none' if v is None else form.format(v), 'at least' if more else 'at most'
        print(f"{'BROKEN' if k in bad else 'ok':7}{k:45}{said:>8}   {most} {form.format(limit)}")
    if not (args.check or args.names): return 0
    for k in LIMITS:
        of = [f for f in faults if f.kind == k]
        if not of or k not in bad and not args.names: continue
        most = len(of) if args.names else AT_ONCE
        print(f'\n{k}: {len(of)} to mend')
        for f in of[:most]: print(f'  {f.where}: {f.what}')
        if len(of) > most: print(f'  and {len(of) - most} more; name a notebook to see all its own')
    return int(args.check and bool(bad))

if __name__ == '__main__': sys.exit(main())
