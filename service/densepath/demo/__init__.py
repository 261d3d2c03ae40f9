"""A small real pair that needs no download. `build` makes it once, and `Demo` has its paths and measurements.

Importing this loads neither torch nor transformers. `build` loads them if there is something to build.
"""

from densepath.demo.recipe import Mixture, ProgressFn, Recipe
from densepath.demo.store import Demo, build, default_directory
from densepath.demo.task import Example

__all__ = ["Demo", "Example", "Mixture", "ProgressFn", "Recipe", "build", "default_directory"]
