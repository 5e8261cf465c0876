"""How the docs show a function

Its signature, what it does, and a table of its parameters with shapes and units.
"""
import inspect, re

from fastcore.docments import DocmentTbl
from nbdev.showdoc import BasicMarkdownRenderer

def code(value):
    "`value` of a signature as code in a cell of a table, nothing where there is none"
    if value is inspect.Parameter.empty or value == '': return ''
    text = getattr(value, '__name__', None) or str(value)
    return f"`{text}`".replace('|', r'\|')

def short(anno):
    "The type `anno` without the modules that its names come from"
    return anno if anno is inspect.Parameter.empty else re.sub(r'\b(?:[a-z_]\w*\.)+(?=\w)', '', code(anno).strip('`')).join('``')

class Table(DocmentTbl):
    "Parameters, a line each; a type such as `str|Path` stays in its column"
    def __init__(self, obj, said=()):
        super().__init__(obj)
        for name, words in dict(said).items(): self.dm[name]['docment'] = words

    def _line(self, name, of):
        empty = inspect.Parameter.empty
        cell = dict(docment=lambda v: '' if v in (None, empty) else str(v).replace('|', r'\|'),
                    default=lambda v: code(repr(v) if isinstance(v, str) else v),
                    anno=lambda v: '' if v is empty else short(v))
        return f"| {' | '.join([name, *(cell[k](of.get(k, empty)) for k in self._columns)])} |"

    def _repr_markdown_(self):
        if not self.has_docment: return ''
        head = ['name', *self._columns.values()]
        rows = [self._line(f'`{n}`', self.dm[n]) for n in self.params if n != 'self' and n in self.dm]
        if self.has_return: rows.append(self._line('returns', self.dm['return']))
        return '\n'.join([f"| {' | '.join(head)} |", '|---'*len(head) + '|', *rows])

class TableRenderer(BasicMarkdownRenderer):
    "`show_doc` with a table of parameters"
    def __init__(self, sym, **kwargs):
        super().__init__(sym, **kwargs)
        self.fn = self.nm                  # the full name leads to "#LNone" in the link to the source
        self.said = self.take_said()

    def take_said(self):
        "What the docstring says of each parameter, a line each, is taken out of it"
        if self.sig is None or not self.docs: return {}
        line = re.compile(r'^(\w+)(?: = .*?)?: (.+)\n?', re.M)
        said = {n: words for n, words in line.findall(self.docs) if n in self.sig.parameters}
        if said: self.docs = line.sub(lambda m: '' if m[1] in said else m[0], self.docs).strip()
        return said

    def _repr_markdown_(self):
        text = super()._repr_markdown_()
        if self.sig is None or not (self.sig.parameters or self.sig.return_annotation is not self.sig.empty): return text
        table = Table(self.sym, self.said)._repr_markdown_()
        bare = lambda m: re.sub(r'^ +# .*\n| # .*$', '', m[0], flags=re.M)       # the table says it
        if table: text = re.sub(r'^```python$.*?^```$', bare, text, flags=re.M | re.S)
        return f'{text}\n\n{table}'
