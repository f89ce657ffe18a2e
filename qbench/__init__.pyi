# What type checkers see: the names that qbench/__init__.py imports when they are asked for.
from qbench.api import apply as apply
from qbench.api import load_recipe as load_recipe
from qbench.api import measure as measure
from qbench.api import restore as restore
from qbench.engines.loading import load_engine as load_engine
from qbench.errors import InputError as InputError
from qbench.errors import Unsupported as Unsupported
from qbench.recipe.schema import Recipe as Recipe
from qbench.results.frame import load_results as load_results
from qbench.results.record import Record as Record

__version__: str
