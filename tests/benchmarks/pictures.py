"""How does a growing cost look? An SVG picture that follows the reader's colour scheme and is readable on a phone."""

import math
from collections.abc import Mapping, Sequence
from xml.etree import ElementTree

import pygal
from pygal.style import Style

Curves = Mapping[str, Sequence[tuple[int, float]]]
"""The points of each curve: a number of versions, and the ratio to the cost of the fewest."""

_LENGTHS = {10**3: "1,000", 10**4: "10,000", 10**5: "100,000", 10**6: "1 M", 10**7: "10 M"}
_RATIOS = {1: "1", 10: "10", 100: "100", 1_000: "1,000", 10_000: "10,000"}
"""The labels of the axes, which all pictures share: in each, what is flat looks flat."""
_STYLE = Style(
    background="transparent",
    plot_background="transparent",
    foreground="var(--ink)",
    foreground_strong="var(--ink)",
    foreground_subtle="var(--line)",
    colors=("var(--first)", "var(--second)"),
    font_family="system-ui, sans-serif",
    label_font_size=22,
    major_label_font_size=22,
    legend_font_size=22,
    title_font_size=26,
)
_COLOURS = """inline:
  svg { --ink: #333; --line: #bbb; --first: #3949ab; --second: #c43e00 }
  @media (prefers-color-scheme: dark) { svg { --ink: #ddd; --line: #777; --first: #9fa8da; --second: #ffab91 } }
  .axis .guide.line { stroke: var(--line) }
  .series .line { stroke-width: 5 }
"""


def growth_picture(title: str, unit: str, curves: Curves) -> str:
    """Return the picture of a line of the benchmark, on logarithmic axes."""
    chart = pygal.XY(
        style=_STYLE,
        css=["file://style.css", "file://graph.css", _COLOURS],
        js=(),  # a page that has the picture loads nothing else
        width=600,
        height=450,
        title=title if title.startswith(unit) else f"{title}: {unit}",
        legend_at_bottom=True,
        legend_at_bottom_columns=1,
        legend_box_size=16,
        dots_size=6,
        range=(-0.3, 4),
        xrange=(3, 7.4),
        truncate_label=-1,
        x_title="versions",
        no_prefix=True,
        disable_xml_declaration=True,
    )
    chart.x_labels = [{"value": math.log10(number), "label": label} for number, label in _LENGTHS.items()]
    chart.y_labels = [{"value": math.log10(number), "label": label} for number, label in _RATIOS.items()]
    for name, points in curves.items():
        chart.add(name, [(math.log10(versions), math.log10(ratio)) for versions, ratio in points])
    picture = chart.render_tree()
    for parent in list(picture.iter()):
        for part in [part for part in parent if part.tag in (ElementTree.Comment, "script")]:
            parent.remove(part)  # the date, and pygal's settings for its tooltips
    picture.attrib |= {"id": "growth", "role": "img", "aria-labelledby": "title description"}
    for place, (tag, text) in enumerate({"title": title, "desc": _description(unit, curves)}.items()):
        element = ElementTree.Element(tag, id={"title": "title", "desc": "description"}[tag])
        element.text = text
        picture.insert(place, element)
    return ElementTree.tostring(picture, encoding="unicode")


def _description(unit: str, curves: Curves) -> str:
    told = [
        f"{name}: " + ", ".join(f"{ratio:.2f} for {versions:,} versions" for versions, ratio in points)
        for name, points in curves.items()
    ]
    return f"{unit.capitalize()}, as ratios. " + "; ".join(told) + "."
