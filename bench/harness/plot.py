"""A result as a picture: for each figure the contenders side by side, every turn a dot.

matplotlib is in the extra `bench`, because nothing but this needs it.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Final

from bench.harness.result import Result
from bench.harness.scenario import LoadError

FORMATS: Final = (".svg", ".png")
PANEL: Final = (4.0, 0.55)  # inches: width for each figure, height for each contender
OURS: Final = "#1b6ca8"
THEIRS: Final = "#b0b7bf"


def check_plots() -> None:
    """Find out whether plots can be drawn here, before an hour is spent. Raises LoadError."""
    if find_spec("matplotlib") is None:
        raise LoadError(
            "plots need matplotlib: install the extra bench (pip install 'postrio[bench]')"
        )


def draw(result: Result, path: Path) -> None:
    """Write the plot of a result that has turns. `path`: ends as one of FORMATS. LoadError."""
    check_plots()
    # Not pyplot: it would look for a display and keep every figure alive.
    from matplotlib.figure import Figure as Canvas

    names = list(result.turns)
    width, height = PANEL
    canvas = Canvas(
        figsize=(1.5 + width * len(result.figures), 1.4 + height * len(names)),
        layout="constrained",
    )
    axes = canvas.subplots(1, len(result.figures), sharey=True, squeeze=False)[0]
    for axis, figure in zip(axes, result.figures, strict=True):
        for position, name in enumerate(names):
            values = [turn[figure.name] for turn in result.turns[name] if figure.name in turn]
            spread = result.spread(name, figure.name)
            if spread is None:
                continue
            color = OURS if name.startswith("postrio") else THEIRS
            axis.barh(position, spread.median, color=color, height=0.6)
            axis.plot(values, [position] * len(values), ".", color="black", markersize=4)
        axis.set_yticks(range(len(names)), names)
        axis.set_xlim(left=0)
        axis.locator_params(axis="x", nbins=5)
        axis.set_xlabel(f"{figure.unit} ({'more' if figure.more_is_better else 'less'} is better)")
        axis.set_title(figure.name)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].invert_yaxis()  # the first contender on top
    canvas.suptitle(f"{result.scenario}, {result.date[:10]}: medians, and each turn", fontsize=10)
    try:
        canvas.savefig(path)
    except OSError as exc:
        raise LoadError(f"{path}: cannot be written: {exc.strerror}") from exc
