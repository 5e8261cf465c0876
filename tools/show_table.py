"""How the docs show a function

Its signature, what it does, and a table of its parameters with shapes and units. settings.ini names it as `renderer`.
"""
import importlib, inspect

from fastcore.docments import DocmentTbl
from nbdev.config import get_config
from nbdev.showdoc import BasicMarkdownRenderer

def exported(thing):
    "The package's twin of a class that a notebook made, since Python finds no source for the latter, and so no comments"
    if not inspect.isclass(thing): return thing
    try: inspect.getsource(thing); return thing
    except (OSError, TypeError): pass
    index = importlib.import_module(f'{get_config().lib_path.name}._modidx').d['syms']
    found = next((m for m, names in index.items() if f'{m}.{thing.__qualname__}' in names), None)
    return getattr(importlib.import_module(found), thing.__qualname__, thing) if found else thing

class TableRenderer(BasicMarkdownRenderer):
    "`show_doc` with a table of parameters"
    def __init__(self, sym, **kwargs):
        super().__init__(exported(sym), **kwargs)
        self.fn = self.nm                  # the full name leads to "#LNone" in the link to the source

    def _repr_markdown_(self):
        text = super()._repr_markdown_()
        if self.sig is None or not (self.sig.parameters or self.sig.return_annotation is not self.sig.empty): return text
        return f'{text}\n\n{DocmentTbl(self.sym)._repr_markdown_()}'
