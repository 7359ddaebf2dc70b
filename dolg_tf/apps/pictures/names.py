"""Names of photos, landmarks and runs as pictures can show them: names are data."""

import functools

_MISSING = "\N{WHITE SQUARE}"
# In every text of a name: `$` begins no formula.
PLAIN = {"parse_math": False}


def shown(name: str, letters: int = 60) -> str:
    """Returns a name in one line of at most so many letters, in letters that the font has."""
    text = "".join(letter if letter.isprintable() else " " for letter in name)
    if len(text) > letters:
        text = f"{text[: letters - 1]}\N{HORIZONTAL ELLIPSIS}"
    text = "".join(letter if _has_glyph(letter) else _MISSING for letter in text)
    # A legend leaves out what begins with an underscore, or is empty.
    return f"\N{HAIR SPACE}{text}" if text[:1] in ("_", "") else text


def legend(owner, **options) -> None:
    """Draws the legend of axes or of a figure.

    Args:
      owner: the axes or the figure.
      **options: of its method `legend`.
    """
    for text in owner.legend(frameon=False, **options).get_texts():
        text.set(**PLAIN)


@functools.lru_cache(4096)
def _has_glyph(letter: str) -> bool:
    return any(font.get_char_index(ord(letter)) for font in _fonts())


@functools.cache
def _fonts() -> list:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    families = FontProperties().get_family()
    return [get_font(findfont(FontProperties(family=[family]))) for family in families]
