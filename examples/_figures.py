"""The figures of the lessons: drawn where matplotlib is installed, left out where it is not."""


def draw(plot, path, size=(7, 4)):
    """Call ``plot(figure)`` with an empty figure, and save what it drew."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("\n(no figure: matplotlib is not installed)")
        return
    figure = Figure(figsize=size, layout="constrained")
    plot(figure)
    figure.savefig(path)
    print(f"\nfigure: {path}")


def draw_lines(lines, path, **settings):
    """Draw lines, {label: (x, y)}, on one pair of axes; `settings` are those of ``axes.set``."""

    def plot(figure):
        axes = figure.subplots()
        for label, (x, y) in lines.items():
            axes.plot(x, y, "o-", label=label)
        axes.set(**settings)
        if len(lines) > 1:
            axes.legend()

    draw(plot, path)
