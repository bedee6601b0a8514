"""Pictures of maps and of rankings, as PNG, PDF or SVG files whose bytes depend on the content alone."""

from lapbench.report.figures.maps import TRUE, MapColumn, draw_maps
from lapbench.report.figures.ranking import draw_ranking

__all__ = ["TRUE", "MapColumn", "draw_maps", "draw_ranking"]
