"""Languages by code and name, and whether a model covers one."""

from __future__ import annotations

from typing import Literal

from luthier.errors import UsageError, did_you_mean
from luthier.schema.model import ModelCard

NAMES: dict[str, str] = {
    "af": "afrikaans", "am": "amharic", "ar": "arabic", "az": "azerbaijani", "be": "belarusian",
    "bg": "bulgarian", "bn": "bengali", "bs": "bosnian", "ca": "catalan", "cs": "czech", "cy": "welsh",
    "da": "danish", "de": "german", "el": "greek", "en": "english", "es": "spanish", "et": "estonian",
    "eu": "basque", "fa": "persian", "fi": "finnish", "fil": "filipino", "fr": "french", "ga": "irish",
    "gl": "galician", "gu": "gujarati", "ha": "hausa", "he": "hebrew", "hi": "hindi", "hr": "croatian",
    "hu": "hungarian", "hy": "armenian", "id": "indonesian", "ig": "igbo", "is": "icelandic",
    "it": "italian", "ja": "japanese", "ka": "georgian", "kk": "kazakh", "km": "khmer", "kn": "kannada",
    "ko": "korean", "ky": "kyrgyz", "la": "latin", "lo": "lao", "lt": "lithuanian", "lv": "latvian",
    "mk": "macedonian", "ml": "malayalam", "mn": "mongolian", "mr": "marathi", "ms": "malay",
    "mt": "maltese", "my": "burmese", "ne": "nepali", "nl": "dutch", "no": "norwegian", "pa": "punjabi",
    "pl": "polish", "ps": "pashto", "pt": "portuguese", "ro": "romanian", "ru": "russian",
    "si": "sinhala", "sk": "slovak", "sl": "slovenian", "so": "somali", "sq": "albanian",
    "sr": "serbian", "sv": "swedish", "sw": "swahili", "ta": "tamil", "te": "telugu", "th": "thai",
    "tl": "tagalog", "tr": "turkish", "uk": "ukrainian", "ur": "urdu", "uz": "uzbek",
    "vi": "vietnamese", "xh": "xhosa", "yo": "yoruba", "zh": "chinese", "zu": "zulu",
}  # fmt: skip
"""ISO 639-1 code (639-2 for Filipino) -> English name."""

MAJOR = frozenset(
    [
        *("ar", "bn", "cs", "da", "de", "el", "en", "es", "fa", "fi", "fr", "he", "hi", "hu", "id", "it"),
        *("ja", "ko", "nl", "pl", "pt", "ro", "ru", "sv", "th", "tr", "uk", "ur", "vi", "zh"),
    ]
)
"""Languages that a claim of 25 and more is taken to contain."""

Coverage = Literal["named", "claimed", "no", "unknown"]


def language_code(word: str) -> str:
    """ISO code of a language given by code or English name. Errors: UsageError with the nearest name."""
    folded = word.strip().lower()
    if folded in NAMES:
        return folded
    for code, name in NAMES.items():
        if folded == name:
            return code
    raise UsageError(
        f"{word!r} is not a known language",
        hint=did_you_mean(folded, [*NAMES.values(), *NAMES])
        or "write an ISO 639-1 code (de, ja, sw) or the English name",
    )


def covers(card: ModelCard, code: str) -> Coverage:
    """Whether the maker names the language, claims a number that would contain it, or leaves it out."""
    if card.languages and code in card.languages:
        return "named"
    if card.language_claim and not card.language_count:
        return "claimed" if card.language_claim == "multilingual" and code in MAJOR else "no"
    if card.language_count:
        if card.language_count >= 90 or (card.language_count >= 25 and code in MAJOR):
            return "claimed"
        return "unknown"
    return "unknown" if card.languages is None else "no"


def multilingual(languages: tuple[str, ...]) -> bool:
    """Whether anything besides English is asked for."""
    return any(code != "en" for code in languages)
