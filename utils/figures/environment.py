"""What the environment must not decide: the backend of figures that are written to files, and how text is drawn.

Scripts are started from notebooks and over ssh, with file names of any language. A figure needs neither a backend nor
LaTeX, and a name is drawn as it is, in the fonts of the system that have its characters.
"""

import logging
import os
import sys
from functools import cache, lru_cache

_DEFAULT_FAMILY = "DejaVu Sans"  # comes with matplotlib
_PLACEHOLDERS = ("Last Resort", "LastResort", ".")  # begin the names of fonts whose characters may be boxes
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"  # of a character that no font has, and of bytes that are no text


def load_matplotlib() -> None:
    """Import matplotlib as it is delivered: without MPLBACKEND, whose value may be unknown to it, and matplotlibrc.

    To be called before anything else of matplotlib is imported. A process that has imported it keeps its settings.
    """
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns of what it can do without
        import matplotlib

        matplotlib.rcdefaults()
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend


def drawable(text: str) -> str:
    """A text, such as a file name with bytes of another encoding, with a replacement for what no font has."""
    known = frozenset().union(*map(_characters_of, font_families(text)))
    return "".join(character if character in known else _REPLACEMENT for character in text)


def font_families(text: str) -> list[str]:
    """The font families that have the characters of a text, the default one first."""
    return [_DEFAULT_FAMILY, *_fonts_with(frozenset(text) - _characters_of(_DEFAULT_FAMILY))]


def without_formulas(text: str) -> str:
    """A text in which matplotlib finds no formula, where it cannot be told not to look for one."""
    return text.replace("$", r"\$")


@lru_cache(maxsize=256)
def _fonts_with(characters: frozenset[str]) -> list[str]:
    """Font families of the system that have as many of these characters as possible, each at least one of its own."""
    from matplotlib.font_manager import fontManager

    families, missing = [], {character for character in characters if character.isprintable()}
    upright = {font.name: font.fname for font in fontManager.ttflist if font.style == "normal" and font.weight == 400}
    for family in sorted(upright) if missing else ():
        if missing & _characters_of(family) and not family.startswith(_PLACEHOLDERS):
            families.append(family)
            missing -= _characters_of(family)
    return families


@cache
def _characters_of(family: str) -> frozenset[str]:
    """The printable characters of a font that can be drawn in any size; none of one that cannot be read."""
    from matplotlib.font_manager import findfont, get_font

    try:
        font = get_font(findfont(family, fallback_to_default=False))
        return frozenset(filter(str.isprintable, map(chr, font.get_charmap()))) if font.scalable else frozenset()
    except (OSError, RuntimeError, ValueError):
        return frozenset()
