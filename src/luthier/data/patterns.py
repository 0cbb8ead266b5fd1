"""What should not stand in a training text: secrets, personal data, template markers, broken letters.

Found by pattern, so reported and never removed: a pattern is a suspicion, not a proof.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_SECRETS = re.compile(
    r"(?P<aws>\bAKIA[0-9A-Z]{16}\b)"
    r"|(?P<github>\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_[A-Za-z0-9_]{40,})"
    r"|(?P<huggingface>\bhf_[A-Za-z0-9]{30,}\b)"
    r"|(?P<google>\bAIza[0-9A-Za-z_-]{35}\b)"
    r"|(?P<slack>\bxox[abprs]-[0-9A-Za-z-]{10,})"
    r"|(?P<stripe>\b[sr]k_live_[0-9A-Za-z]{16,})"
    r"|(?P<openai>\bsk-(?:proj-|ant-)?[A-Za-z0-9_-]{32,})"
    r"|(?P<jwt>\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,})"
    r"|(?P<key>-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----)"
)
_SECRET_SIGNS = (
    "AKIA",
    "ghp_",
    "gho_",
    "ghu_",
    "ghs_",
    "ghr_",
    "github_pat_",
    "hf_",
    "AIza",
    "xox",
    "k_live_",
    "sk-",
    "eyJ",
    "PRIVATE KEY",
)
_EMAIL = re.compile(r"\b[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}\b")
_NOBODY = re.compile(r"@(?:[\w.-]*\.)?(?:example|test|invalid|localhost|email)\b", re.IGNORECASE)
_PHONE = re.compile(r"(?<![\w+])\+\d{1,3}[ .-]?(?:\(?\d{1,4}\)?[ .-]?){2,5}\d{2,4}(?!\w)")
_SOCIAL = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
_CARD = re.compile(r"(?<![\w.])(?:\d[ -]?){12,18}\d(?![\w.])")
_NUMBER = re.compile(r"\d[\d -]{8,}\d")
_BANK = re.compile(r"\b[A-Z]{2}\d{2} ?[A-Z0-9]{4}")
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_MARKERS = re.compile(
    r"<\|[A-Za-z_ ]{2,40}\|>|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>"
    r"|<｜[^｜\n]{2,40}｜>|(?:^|\n)</?s>|</s>"
    r"|(?:^|\n)### (?:Instruction|Response|Input|Human|Assistant):"
)
_MARKER_SIGNS = (
    "<|",
    "INST]",
    "SYS>>",
    "_of_turn>",
    "<｜",
    "<s>",
    "</s>",
    "### ",
    "###I",
    "###R",
    "###H",
    "###A",
)
# Letters that the first byte of a UTF-8 sequence becomes in Windows-1252, then those of the others.
_MOJIBAKE = re.compile(
    "[\u00c2-\u00f4]"
    "[\u0080-\u00bf\u0152\u0153\u0160\u0161\u0178\u017d\u017e\u0192\u02c6\u02dc\u2013-\u203a\u20ac\u2122]{1,3}"
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def secrets(text: str) -> Iterator[tuple[str, str]]:
    """Kind and text, shortened, of what looks like a key or token."""
    if any(sign in text for sign in _SECRET_SIGNS):
        for match in _SECRETS.finditer(text):
            found = match[0]
            yield match.lastgroup or "secret", found[:6] + "..." if len(found) > 12 else found


def personal_data(text: str) -> Iterator[tuple[str, str]]:
    """Kind and text of e-mail addresses, telephone, bank, card and social security numbers."""
    if "@" in text:
        for match in _EMAIL.finditer(text):
            if not _NOBODY.search(match[0]):
                yield "e-mail address", match[0]
    if "+" in text:
        for match in _PHONE.finditer(text):
            if 8 <= sum(letter.isdigit() for letter in match[0]) <= 15:
                yield "telephone number", match[0]
    if _NUMBER.search(text):
        for match in _SOCIAL.finditer(text):
            yield "social security number", match[0]
        for match in _CARD.finditer(text):
            if _luhn(re.sub(r"\D", "", match[0])):
                yield "card number", match[0]
    if _BANK.search(text):
        for match in _IBAN.finditer(text):
            if _iban(match[0].replace(" ", "")):
                yield "bank account", match[0]


def _luhn(digits: str) -> bool:
    """Check digit of payment cards (ISO/IEC 7812)."""
    if not 13 <= len(digits) <= 19 or len(set(digits)) < 2 or digits[0] not in "3456":
        return False
    total = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if place % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def _iban(text: str) -> bool:
    """Check digits of bank accounts (ISO 13616: remainder 1 modulo 97)."""
    if not 15 <= len(text) <= 34:
        return False
    moved = text[4:] + text[:4]
    return int("".join(str(int(letter, 36)) for letter in moved)) % 97 == 1


def markers(text: str) -> Iterator[str]:
    """Pieces of chat templates that stand inside a text."""
    if any(sign in text for sign in _MARKER_SIGNS):
        for match in _MARKERS.finditer(text):
            yield match[0].strip()


def mojibake(text: str) -> str | None:
    """The first place where UTF-8 was read as Windows-1252 (``Ã©`` for ``é``), or a lost letter."""
    if text.isascii():
        return None
    lost = text.find("\ufffd")
    if lost >= 0:
        return text[max(0, lost - 15) : lost + 15]
    for match in _MOJIBAKE.finditer(text):
        try:
            mended = match[0].encode("cp1252").decode("utf-8")
        except (UnicodeEncodeError, UnicodeDecodeError):
            continue
        if len(mended) < len(match[0]):
            return text[max(0, match.start() - 15) : match.end() + 15]
    return None


def control_characters(text: str) -> str | None:
    """The first control character other than tab and line ends, with its surroundings."""
    match = _CONTROL.search(text)
    return text[max(0, match.start() - 15) : match.end() + 15] if match else None
