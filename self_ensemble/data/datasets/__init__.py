"""A module a dataset, each registered under its name; a file that is put here is found.

Importing this package registers them all. Their modules import nothing heavy: --help lists them.
"""

from importlib import import_module
from pkgutil import iter_modules

# In the order in which --help and errors list them; others follow by name.
BUNDLED = ("demo", "webqa", "myriadlama", "pararel")

for _name in (*BUNDLED, *sorted({module.name for module in iter_modules(__path__)} - {*BUNDLED})):
    import_module(f"{__name__}.{_name}")
