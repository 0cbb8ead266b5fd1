"""A guess at the language of a text: by script, and for Latin script by its most frequent small words.

Good enough to tell an advisor "mostly German"; no more is claimed. Texts without a clear answer are
named by their script (``latin``).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_SMALL_WORDS = {
    "en": "the of and to in is that it for you with on are this what how was be have from can not i "
    "my do a an at his her their there he she they by as or me man woman",
    "de": "der die das und ist nicht ein eine ich zu mit auf für sich den wie dem auch von werden in "
    "im am an einem einen einer eines zum zur bei aus nach vom über mir mein meine",
    "fr": "le la de les et est une des pour que dans qui pas vous sur je avec ce il du sont à en elle "
    "au un ne",
    "es": "el la de los las una que es por con cuál aquí para en del se como está más su qué un lo y a al mi",
    "it": "il la di che è per non una sono con del della mi gli le si come nel anche più un in a alla "
    "nella mia mio domani oggi questo quando dei",
    "pt": "o os de as um uma que não é para com em do da por se mais como você dos no a",
    "nl": "het een van en dat niet ik op te zijn voor met die aan wat er hoe maar ook naar in mijn mij is om",
    "da": "og det er jeg ikke på til en at med for har som af den vi kan der du hvad i et mig min fra "
    "om skal hvor mine",
    "sv": "och att det är jag inte på en som för med har av till den kan vad om du vi i ett mig min",
    "tr": "bir ve bu için ne mi çok ile var da de olarak daha gibi ben benim mı kadar nasıl en saat "
    "bana bugün yarın",
    "pl": "nie w się jest z że jak co mi od ale czy tak dla przez mam moja proszę gdzie",
    "ro": "și în de la este nu un o să cu pe care mai din ce pentru sunt ca se al",
    "id": "yang dan di untuk dengan saya ini itu tidak ada dari ke pada apa akan bisa dalam adalah berapa",
    "lt": "ir yra kad man ar kaip į iš su tai bus ne mano kas šiandien rytoj ką nuo per o",
    "sr": "je da se na u za sam mi su koji što kako sutra moj moje od do i kakvo hoće li bude",
    "vi": "của là và có không được cho một những trong tôi này với các người để đã gì bạn khi",
}
_LANGUAGES_OF: dict[str, tuple[str, ...]] = {
    word: tuple(language for language, words in _SMALL_WORDS.items() if word in words.split())
    for all_words in _SMALL_WORDS.values()
    for word in all_words.split()
}
_WORD = re.compile(r"[^\W\d_]+")
_SCRIPTS = {
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
    "HANGUL": "ko",
    "CJK": "zh",
    "ARABIC": "arabic",
    "CYRILLIC": "cyrillic",
    "DEVANAGARI": "devanagari",
    "GREEK": "el",
    "HEBREW": "he",
    "THAI": "th",
    "LATIN": "latin",
}
_LETTERS = 600
"""Letters looked at in a text."""


def guess_language(text: str) -> str:
    """A language code, or the name of the script; ``unknown`` where there are no letters."""
    head = text[:_LETTERS]
    if head.isascii():
        script = "latin" if _WORD.search(head) else "unknown"
    else:
        scripts = Counter(_script(letter) for letter in head if letter.isalpha())
        if not scripts:
            return "unknown"
        script = scripts.most_common(1)[0][0]
        if scripts["ja"] and script == "zh":  # Japanese mixes Chinese letters with its own
            return "ja"
    return _by_words(text) if script == "latin" else script


def _script(letter: str) -> str:
    if letter.isascii():
        return "latin"
    name = unicodedata.name(letter, "").split(" ")[0]
    return _SCRIPTS.get(name, name.lower() or "unknown")


def _by_words(text: str) -> str:
    words = _WORD.findall(text[:_LETTERS].lower())
    scores: Counter[str] = Counter()
    for word in words:
        languages = _LANGUAGES_OF.get(word, ())
        for language in languages:  # a word of many languages says little of each
            scores[language] += 60 // len(languages)
    ranked = [*scores.most_common(2), ("latin", 0), ("latin", 0)]
    (best, most), (_, second) = ranked[:2]
    return "latin" if most == second or most < 60 * max(1, 0.06 * len(words)) else best
