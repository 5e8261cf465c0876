"Everything public in the library, for tests that are of all of it"
import importlib, pkgutil

import maou_nb

def modules():
    "All of its modules, imported"
    names = [m.name for m in pkgutil.walk_packages(maou_nb.__path__, 'maou_nb.')]
    return [importlib.import_module(n) for n in names if not n.endswith('__main__')]

def public():
    "(name, function or class) of everything public, each where it is defined"
    for room in modules():
        for name in getattr(room, '__all__', ()):
            found = getattr(room, name)
            if callable(found) and getattr(found, '__module__', None) == room.__name__:
                yield f'{room.__name__.removeprefix("maou_nb.")}.{name}', found
