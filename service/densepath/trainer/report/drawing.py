"""Figures as PNG, and as inline SVG in the reader's light or dark colours, without pyplot or a display."""

from __future__ import annotations

import io
import re
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from densepath.files import whole_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: The colours of figures: name → colour on a light background (PNG and page), colour on a dark page. Readers
#: with colour blindness can tell the series apart.
COLOURS = {
    "ink": ("#1f2328", "#e6edf3"),
    "quiet": ("#59636e", "#9aa4af"),
    "grid": ("#dde1e6", "#343b43"),
    "blue": ("#2166ac", "#6cb0e0"),
    "orange": ("#c2640a", "#f0a04b"),
    "green": ("#0b8a62", "#3fc49a"),
    "pink": ("#c2709f", "#dc9cc2"),
    "grey": ("#8c959f", "#767f89"),
}
MARKED_UP_TO = 60  # points; with more, a faint line and its running mean
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "font.size": 9.5,
    "text.color": COLOURS["ink"][0],
    "text.parse_math": False,
    "axes.edgecolor": COLOURS["grid"][0],
    "axes.labelcolor": COLOURS["quiet"][0],
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": COLOURS["grid"][0],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["grid"][0],
    "ytick.color": COLOURS["grid"][0],
    "xtick.labelcolor": COLOURS["quiet"][0],
    "ytick.labelcolor": COLOURS["quiet"][0],
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "densepath",  # the same run gives the same page
}
_NAMES_BY_HEX = {light: name for name, (light, _) in COLOURS.items()}


def colour(name: str) -> str:
    """The colour on a light background. The page's SVG replaces it by a variable."""
    return COLOURS[name][0]


@dataclass(frozen=True, eq=False)
class Chart:
    """A figure. If it is None, `caption` says why there is none."""

    name: str
    title: str
    caption: str
    alt: str = ""
    figure: Figure | None = None


def style() -> AbstractContextManager[None]:
    """The style of the charts, as a context in which they must be built and written."""
    import matplotlib as mpl

    return mpl.rc_context(_STYLE)


def plot(
    ax: Axes, x: NDArray[np.int64], y: NDArray[np.float64], hue: str, *, marker: str = "o", label: str = ""
) -> None:
    """Draw a line with its points. If there are many, draw it faintly, with its running mean."""
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    label = label or "_nolegend_"
    if len(x) <= MARKED_UP_TO:
        ax.plot(x, y, color=colour(hue), linewidth=1.4, marker=marker, markersize=2.8, label=label)
        return
    place = np.arange(len(y))
    half = np.minimum(np.minimum(place, place[::-1]), window(len(y)) // 2)  # narrower at both ends
    total = np.append(0.0, np.cumsum(y))
    mean = (total[place + half + 1] - total[place - half]) / (2 * half + 1)
    ax.plot(x, y, color=colour(hue), linewidth=0.6, alpha=0.35)
    ax.plot(x, mean, color=colour(hue), linewidth=1.6, label=label)


def window(count: int) -> int:
    """The number of points in a running mean: odd, and about a thirtieth of all points."""
    return count // 60 * 2 + 1


def axes(title: str, ylabel: str, *, xlabel: str = "step", height: float = 2.6) -> tuple[Figure, Axes]:
    """An empty figure of 4.4 inches by `height`, and its axes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(4.4, height), layout="constrained")
    ax = figure.add_subplot()
    ax.set_title(title)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
    return figure, ax


def lower_axes(figure: Figure, upper: Axes, ylabel: str) -> Axes:
    """A second, lower panel that shares the x axis of `upper`."""
    grid = figure.add_gridspec(2, 1, height_ratios=(2.2, 1))
    upper.set_subplotspec(grid[0])
    lower = figure.add_subplot(grid[1], sharex=upper)
    lower.set(xlabel=upper.get_xlabel(), ylabel=ylabel)
    upper.set_xlabel("")
    upper.tick_params(labelbottom=False)
    return lower


def write_png(figure: Figure, path: Path) -> None:
    """Write the figure on a white background, with 200 dots per inch."""
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=200, metadata={"Software": "densepath"})


def to_svg(figure: Figure, name: str, alt: str) -> str:
    """The figure as an `<svg>` element: its colours are the page's variables, its ids begin with `name`."""
    from markupsafe import escape

    written = io.StringIO()
    nothing: dict[str, Any] = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    svg = written.getvalue()
    svg = svg[svg.index("<svg") :]
    size = re.search(r'viewBox="[^"]*"', svg)
    head = f'<svg {size[0] if size else ""} role="img" aria-label="{escape(alt)}">'
    svg = head + svg[svg.index(">") + 1 :]
    svg = re.sub(r' id="', f' id="{name}-', svg)
    svg = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = svg.replace("xlink:href", "href")
    return re.sub(
        r"#[0-9a-f]{6}\b",
        lambda match: f"var(--{_NAMES_BY_HEX[match[0]]})" if match[0] in _NAMES_BY_HEX else match[0],
        svg,
    ).strip()
