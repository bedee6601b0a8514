"""A benchmark's report as one HTML file that needs nothing else: no network, no other file, no server."""

from lapbench.report.page.content import Gallery, Panel, Picture, pack, shrink
from lapbench.report.page.document import render_page
from lapbench.report.page.levels import threshold_grid, to_levels
from lapbench.report.page.server import serve

__all__ = [
    "Gallery", "Panel", "Picture", "pack", "render_page", "serve", "shrink", "threshold_grid",
    "to_levels",
]  # fmt: skip
