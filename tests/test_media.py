from __future__ import annotations

from qbench import media


def test_a_caption_has_a_font_with_all_its_characters_or_none() -> None:
    plain = media.font_for("a red star", 13)
    assert plain is not None
    assert media.font_for("", 13) is not None
    greek = media.font_for("Ένας σκύλος", 13)
    assert greek is not None  # DejaVu Sans comes with matplotlib
    assert not media._has_all(plain, "一只熊猫")
    chinese = media.font_for("一只熊猫", 13)
    assert chinese is None or media._has_all(chinese, "一只熊猫")
    assert media.font_for("\U0010fffd", 13) is None  # a character that nobody has
