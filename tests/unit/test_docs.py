"""The generated parts of the documentation are what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts import docs

_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


@pytest.mark.parametrize("page", docs.pages(), ids=lambda page: str(page.relative_to(docs.ROOT)))
class TestPage:
    def test_generated_parts_are_what_the_code_says(self, page: Path) -> None:
        text = page.read_text()
        assert docs.render(text) == text, "run `python -m scripts.docs`"

    def test_links_within_the_checkout_lead_somewhere(self, page: Path) -> None:
        wanted = [link for link in _LINK.findall(page.read_text()) if not (page.parent / link).exists()]
        assert not wanted


def test_every_block_is_on_some_page() -> None:
    texts = [page.read_text() for page in docs.pages()]
    missing = [name for name in docs.BLOCKS if not any(f"<!-- generated: {name} -->" in text for text in texts)]
    assert not missing


def test_a_stale_page_is_noticed() -> None:
    stale = "<!-- generated: marks -->\nsomething else\n<!-- end -->\n"
    assert docs.render(stale) != stale
    assert docs.render(docs.render(stale)) == docs.render(stale)


def test_a_block_that_nobody_makes_is_an_error() -> None:
    with pytest.raises(docs.Undescribed, match="nobody makes"):
        docs.render("<!-- generated: nonsense -->\n<!-- end -->\n")


def test_what_has_no_sentence_is_an_error() -> None:
    with pytest.raises(docs.Undescribed, match=r"no sentence .* colour"):
        docs.described({"state": "where it is"}, ["state", "colour"], what="setting")


def test_a_sentence_about_nothing_is_an_error() -> None:
    with pytest.raises(docs.Undescribed, match="describes what is no setting: colour"):
        docs.described({"state": "where it is", "colour": "which"}, ["state"], what="setting")
