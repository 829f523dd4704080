"""How every page is rendered: one template environment, no external resources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qunlearn.errors import MissingDependencyError


def environment() -> Any:
    """A strict, escaping jinja2 environment over the package's templates; MissingDependencyError without jinja2."""
    try:
        import jinja2
    except ImportError as err:
        raise MissingDependencyError(
            "reports need jinja2.", remedy='Install it: pip install "qunlearn[workstation]".'
        ) from err
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=jinja2.select_autoescape(default=True, disabled_extensions=("css",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
