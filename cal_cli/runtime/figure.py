"""A figure of matplotlib as the contents of a file."""

from io import BytesIO

import matplotlib
from matplotlib.figure import Figure

FORMATS = ("pdf", "png", "svg")


def encode_figure(figure: Figure, file_format: str = "png", dpi: int = 150) -> bytes:
    """Encode a figure as PDF, PNG or SVG: the same bytes from the same figure, without the date."""
    buffer = BytesIO()
    metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(file_format)
    with matplotlib.rc_context({"svg.hashsalt": "cal_cli"}):
        figure.savefig(buffer, format=file_format, dpi=dpi, metadata=metadata)
    return buffer.getvalue()
