"""Fonts for texts in any script: those installed, and what none of them can write."""

USUAL = "DejaVu Sans"
"""Comes with matplotlib."""
OTHERS = (
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Noto Sans JP"),
    *("Source Han Sans", "WenQuanYi Zen Hei", "Droid Sans Fallback", "IPAGothic", "NanumGothic"),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Nirmala UI", "Leelawadee UI"),
    *("Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Bengali"),
    *("Noto Sans Tamil", "Noto Sans Telugu", "Noto Sans Thai", "Noto Sans Khmer", "Noto Sans Lao"),
    *("Noto Sans Myanmar", "Noto Sans Ethiopic", "Noto Sans Georgian", "Noto Sans Armenian"),
)
"""What has letters that the usual font lacks, on Linux, macOS and Windows."""


def families() -> list[str]:
    """Name the fonts to write with, each for what those before it lack; all are installed."""
    from matplotlib.font_manager import fontManager

    installed = {font.name for font in fontManager.ttflist}
    return [USUAL, *(name for name in OTHERS if name in installed)]


def missing(text: str) -> str:
    """Find what no font can write: each letter once, in order; blanks are left out."""
    from matplotlib.font_manager import findfont, get_font

    known = set().union(*(get_font(findfont(name)).get_charmap() for name in families()))
    return "".join(
        one for one in dict.fromkeys(text) if not one.isspace() and ord(one) not in known
    )
