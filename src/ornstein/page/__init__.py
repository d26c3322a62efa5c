"""Self-contained HTML pages: pictures, curves and the commands that made them, in one file."""

from .build import Picture, Section, Table, picture, render
from .curves import Curve, chart

__all__ = ["Curve", "Picture", "Section", "Table", "chart", "picture", "render"]
