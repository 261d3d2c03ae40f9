"""The playground: one page of plain HTML, CSS and ES modules, served from the package.

routes   the page, its files and the demo's examples
static   what the browser gets; `main.js` names its modules in the order of their work
"""

from densepath.api.playground.routes import router

__all__ = ["router"]
