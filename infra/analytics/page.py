"""The report as files: a page with its charts inside, and the learning curve as a picture."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from infra.analytics.charts import as_svg, latency, learning_curve, write_png
from infra.analytics.report import Report

TEMPLATE = "report.html.jinja"


def as_page(report: Report, note: str = "") -> str:
    """Return the report as one HTML page with its charts inside.

    Args:
        note: said at the top of the page, such as that models were simulated.
    """
    # Escaped: reasons and names in it come from models and from users.
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    return environment.get_template(TEMPLATE).render(
        report=report,
        curve=as_svg(learning_curve, report),
        latency=as_svg(latency, report),
        note=note,
    )


def write_report(report: Report, folder: Path, note: str = "") -> tuple[Path, Path]:
    """Write `report.html` and `learning-curve.png` into a folder and return their paths; `note` as
    in `as_page`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    html, png = folder / "report.html", folder / "learning-curve.png"
    html.write_text(as_page(report, note), encoding="utf-8")
    write_png(report, png)
    return html, png
