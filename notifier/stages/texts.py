"""What each channel makes of a text: SMS encodings and segments, the plain text of an HTML body, safe header values."""

from __future__ import annotations

import html
import re
import unicodedata

# 3GPP TS 23.038 section 6.2.1: the GSM 7 bit default alphabet, and its extension table (two septets each).
GSM7 = frozenset(
    "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./0123456789:;<=>?¡ABCDEFGHIJKLMNOPQRSTUVWXYZÄÖÑÜ§¿"
    "abcdefghijklmnopqrstuvwxyzäöñüà"
)
GSM7_EXTENSION = frozenset("\f^{}\\[~]|€")
_NOT_GSM7 = re.compile(f"[^{re.escape(''.join(GSM7 | GSM7_EXTENSION))}]")
_EXTENSION = re.compile(f"[{re.escape(''.join(GSM7_EXTENSION))}]")

# Invisible characters that only disguise a text or turn one segment into two. The joiners U+200C and U+200D mean
# something between letters of some scripts and in emoji, so they go only where a neighbour is ASCII or nothing.
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
    "|[\u200c\u200d](?![^\x00-\x7f])|(?<![^\x00-\x7f])[\u200c\u200d]"
)
_LINE_ENDS = re.compile("\r\n?|\u2028|\u2029")

# Characters that some mail software takes for the end of a header line, or that no header may hold.
HEADER_BREAKERS = re.compile("[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029]")

_TAG_NAME = re.compile(r"</?\s*([a-zA-Z][a-zA-Z0-9]*)")
_HREF = re.compile(r"""\shref\s*=\s*(?:"([^"]*)"|'([^']*)')""", re.IGNORECASE)
_HIDDEN = re.compile(r"display\s*:\s*none", re.IGNORECASE)
_BLANKS = re.compile(r"[ \t\r\f\v\xa0]+")
_LINE_EDGES = re.compile(" ?\n ?")
_GAPS = re.compile("\n{3,}")
_SKIPPED = frozenset({"head", "style", "script", "title", "noscript", "template"})
_PARAGRAPHS = frozenset({"p", "table", "ul", "ol", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "blockquote"})
_LINES = frozenset({"br", "div", "tr", "li", "section", "article", "header", "footer", "center"})


def clean_sms(text: str) -> str:
    """The text as it is sent and counted: NFC, line ends as LF, nothing invisible, no space at the ends."""
    if text.isascii() and text.isprintable():
        return text.strip()
    return _INVISIBLE.sub("", unicodedata.normalize("NFC", _LINE_ENDS.sub("\n", text))).strip()


def sms_segments(text: str) -> tuple[str, int]:
    """How the text travels: `("gsm7", 1)` or `("ucs2", 3)`. An empty text is one segment.

    3GPP TS 23.040: 160 septets or 70 UTF-16 units alone; 153 or 67 in each of several, whose header takes six
    octets. An extension character and a surrogate pair are never split over two segments.
    """
    if _NOT_GSM7.search(text) is None:
        wide, single, several = _EXTENSION, 160, 153
        encoding = "gsm7"
    else:
        wide, single, several = re.compile("[\U00010000-\U0010ffff]"), 70, 67
        encoding = "ucs2"
    doubles = {match.start() for match in wide.finditer(text)}
    if len(text) + len(doubles) <= single:
        return encoding, 1
    segments, used = 1, 0
    for index in range(len(text)):
        width = 2 if index in doubles else 1
        if used + width > several:
            segments, used = segments + 1, 0
        used += width
    return encoding, segments


def html_to_text(source: str) -> str:
    """The words of an HTML body, for the text part that its author did not write. Linear in the source's length.

    Links become `label (https://...)`, blocks become lines, rows of a table become lines; what is not displayed
    (head, style, script, `display:none`) is left out. Liquid tags must be hidden from it.
    """
    pieces: list[str] = []
    lowered = source.lower()
    unclosed: set[str] = set()
    href = ""
    position, end = 0, 0
    while (start := source.find("<", position)) >= 0:
        pieces.append(_words(source[position:start]))
        if source.startswith("<!--", start):
            after = source.find("-->", start)
            position = len(source) if after < 0 else after + 3
            continue
        end = end if end > start else source.find(">", start)
        if end < 0:
            position = start
            break
        name = _TAG_NAME.match(source, start, start + 40)
        if source.startswith(("<!", "<?"), start):
            position = end + 1
            continue
        if not name:
            pieces.append("<")
            position = start + 1
            continue
        tag, whole = name[1].lower(), source[start : end + 1]
        position = end + 1
        closes = whole.startswith("</")
        if not closes and (tag in _SKIPPED or _HIDDEN.search(whole)) and not whole.endswith("/>"):
            close = -1 if tag in unclosed else lowered.find(f"</{tag}", position)
            if close < 0:
                unclosed.add(tag)
            position = close if close >= 0 else len(source) if tag in _SKIPPED else position
        elif tag == "a":
            if closes and href:
                pieces.append(f" ({href})")
            link = None if closes else _HREF.search(whole)
            target = html.unescape((link[1] or link[2] or "").strip()) if link else ""
            href = target if not target.startswith(("#", "mailto:", "tel:")) else ""
        elif tag in _PARAGRAPHS:
            pieces.append("\n\n")
        elif tag in _LINES:
            pieces.append("\n- " if tag == "li" and not closes else "" if tag == "li" else "\n")
        elif tag in ("td", "th"):
            pieces.append(" ")
    pieces.append(_words(source[position:]))
    return tidy("".join(pieces))


def tidy(text: str) -> str:
    """The text with single spaces, no space at the ends of lines, and at most one empty line in a row."""
    return _GAPS.sub("\n\n", _LINE_EDGES.sub("\n", _BLANKS.sub(" ", text))).strip()


def _words(text: str) -> str:
    return html.unescape(text).replace("\n", " ") if text else ""
