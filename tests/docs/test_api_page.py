"""docs/api.md is what the docstrings say."""

from __future__ import annotations

from scripts import api_reference


def test_the_api_page_is_up_to_date() -> None:
    assert api_reference.PAGE.read_text(encoding="utf-8") == api_reference.page()
