"""What the faithfulness check knows of words: scripts, numbers, negations, stop words, spellings and opposites."""

from __future__ import annotations

import re
import unicodedata


def _list(text: str) -> list[str]:
    return text.split()


MARKS = "".join(character for character in map(chr, range(0x300, 0x1F000)) if unicodedata.category(character)[0] == "M")
HAN = "\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
LETTERED = (
    "\u3041-\u309f",  # hiragana
    "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff",  # katakana
    "\u0e01-\u0e3a\u0e40-\u0e4e",  # Thai
    "\u0e81-\u0ece",  # Lao
    "\u1000-\u103f\u1050-\u109f",  # Burmese
    "\u1780-\u17d3",  # Khmer
)
SPACELESS = HAN + "".join(LETTERED)
"""The characters, as ranges of a regular expression, of scripts that put no spaces between words."""
LETTER = rf"[^\W\d_{SPACELESS}]"
TOKEN = re.compile(
    rf"(?P<number>(?:(?<!\w)[-−])?\d+(?:,\d{{3}}(?!\d))*(?:[.:/⁄x×]\d+)*"
    rf"(?:\ (?:mm|cm|km|kg|fps|mph|hz|am|pm|k)\b|['’]?{LETTER}+)?)"
    rf"|(?P<word>no[ -]one\b|{LETTER}(?:[^\W_{SPACELESS}]+|[{MARKS}]|['’](?={LETTER}))*)"
    rf"|(?P<han>[{HAN}])"
    rf"|(?P<run>{'|'.join(f'[{letters}]+' for letters in LETTERED)})"
    "|(?P<emoji>[\u2300-\u23ff\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001f3fa\U0001f400-\U0001faff])"
    r"|(?P<break>[.,;:!?…。、()\[\]{}|/\\—–]|(?<= )-(?= ))",
    re.IGNORECASE,
)
UNSAID = str.maketrans({",": "", "'": "", " ": "", "×": "x", "−": "-"})
"""What may differ between two ways to write a number."""
QUOTATION = re.compile(
    '(?<![A-Za-z0-9])"[^"]+"|[“„][^“”]+[”“]|«[^«»]+»|「[^「」]+」|『[^『』]+』'
    rf"|(?<![\w{MARKS}])‘(?=\S).+?(?<=\S)’(?!\w)|(?<![\w{MARKS}'])'(?=[^\s'])(?!\d\ds\b).+?(?<=[^\s'])'(?!\w)"
)
"""Text in quotation marks; a single straight one is an apostrophe wherever it may be one."""
FRAME = re.compile(
    r"(?P<request>(?:please )?(?:(?:create|generate|make|render|produce|show|give) (?:me )?)?)(?:(?:an?|the) )?"
    r"(?:(?!(?:an?|the|his|her|its|my|your|our|their)\b)[\w-]+ ){0,4}?"
    r"(?P<picture>(?:video|clip|footage|photo|photograph|picture|image|shot|scene|view)s?"
    r" (?:of|shows|showing|depicts|depicting|featuring|that shows))\b",
    re.IGNORECASE,
)
"""How a prompt begins that speaks of the picture before it says what is in it."""
NAMELESS = frozenset(_list("and face for heavy black white of sign symbol with regional indicator letter"))
"""Words of the names of emoji that do not say what is to be seen."""
STOP = frozenset(
    _list("""
    a an the this that these those its his her their my your our it he she they them him we you i me us who whom whose
    which what there here is are was were be been being am has have had having do does did can could will would may
    might shall should and or but as if than then while when where because so such also just very some any each every
    of to with at by for from in on into onto it's he's she's there's please doing done wearing wears style
    featuring depicting showing showcasing
    """)
) | frozenset("的了着地得是在有和与也都就这那一个个只很")
"""Words without which a prompt asks for the same. Places and directions are not among them."""
NEGATORS = frozenset(
    _list("no not without never neither nor cannot dont doesnt isnt arent cant wont devoid lack lacks lacking")
) | frozenset("不没沒无無非未别別勿")
DENIALS = {
    "nobody": "person",
    "no one": "person",
    "no-one": "person",
    "nothing": "thing",
    "none": "none",
    "nowhere": "place",
}
"""Words that negate and name what they negate."""
SMALL = _list(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
TENS = _list("twenty thirty forty fifty sixty seventy eighty ninety")
BELOW_HUNDRED = {word: value for value, word in enumerate(SMALL)} | {word: 10 * at for at, word in enumerate(TENS, 2)}
SCALES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 1_000_000, "billion": 1_000_000_000}
NUMBERS = BELOW_HUNDRED | SCALES
AMOUNTS = {
    "single": "1",
    "lone": "1",
    "sole": "1",
    "solitary": "1",
    "pair": "2",
    "couple": "2",
    "duo": "2",
    "trio": "3",
}
"""Words of a rewrite that keep a number."""
SPELLINGS = dict(
    pair.split(":")
    for pair in _list(
        """
        colour:color grey:gray centre:center theatre:theater harbour:harbor armour:armor neighbour:neighbor vapour:vapor
        flavour:flavor favour:favor humour:humor behaviour:behavior fibre:fiber metre:meter litre:liter sombre:somber
        lustre:luster spectre:specter cosy:cozy tyre:tire mould:mold smoulder:smolder plough:plow aeroplane:airplane
        aluminium:aluminum jewellery:jewelry moustache:mustache pyjama:pajama doughnut:donut dialogue:dialog
        catalogue:catalog defence:defense drier:dryer
        """
    )
)
"""How British words begin, and their American forms."""
BASES = {
    form: entry.split(":")[0]
    for entry in _list(
        """
        person:people,persons,anyone,anybody,someone,somebody thing:things,anything,something man:men woman:women
        child:children foot:feet tooth:teeth goose:geese mouse:mice ox:oxen leaf:leaves wolf:wolves knife:knives
        wife:wives loaf:loaves shelf:shelves half:halves thief:thieves calf:calves hoof:hooves scarf:scarves elf:elves
        dwarf:dwarves cactus:cacti animal:animals customer:customers elevator:elevators photo:photograph,photographs
        tv:television,televisions phone:telephone fridge:refrigerator slow:slowly,slo motion:mo top:atop
        up:upward,upwards down:downward,downwards back:backward,backwards
        become:became begin:began,begun bend:bent bite:bitten blow:blew,blown break:broke,broken bring:brought
        build:built burn:burnt buy:bought catch:caught choose:chose,chosen cling:clung come:came creep:crept dig:dug
        draw:drew,drawn drink:drank,drunk drive:drove,driven eat:ate,eaten fall:fell,fallen feed:fed fight:fought
        find:found fly:flew,flown freeze:froze,frozen get:got,gotten give:gave,given go:went,gone grow:grew,grown
        hang:hung hide:hid,hidden hold:held keep:kept kneel:knelt leap:leapt light:lit lose:lost make:made meet:met
        pay:paid ride:rode,ridden rise:risen run:ran say:said see:seen send:sent shake:shook,shaken shine:shone
        shrink:shrank,shrunk sing:sang,sung sink:sank,sunk,sunken sit:sat sleep:slept slide:slid speak:spoken spin:spun
        stand:stood steal:stole,stolen stick:stuck strike:struck sweep:swept swim:swam,swum swing:swung take:took,taken
        tear:tore,torn tell:told think:thought throw:threw,thrown wake:woke,woken wear:wore,worn weave:wove,woven
        weep:wept write:wrote,written
        """
    )
    for form in entry.split(":")[1].split(",")
}
"""Forms that no rule of stemming finds, but for those that are words of their own ("rose", "saw", "left")."""
WHOLE = frozenset({"animal", "customer", "elevator", "personal"})
"""Words that stemming would take for others ("animated", "custom", "elevated", "person")."""
NARROWER = {
    "person": "man woman boy girl child kid lady gentleman guy teenager adult individual human friend",
    "dog": "puppy",
    "cat": "kitten",
}
"""What is always also this."""
OPPOSITES = (
    "red|orange|yellow|green|blue|purple violet|pink|brown|black|white|gray silver",
    "left|right",
    "up upward|down downward",
    "above over|below under beneath underneath",
    "front|back behind rear",
    "inside|outside",
    "indoor|outdoor",
    "top|bottom",
    "big large huge giant|small little tiny",
    "slow|fast quick rapid",
    "man|woman|boy|girl",
    "old elderly|young",
    "hot warm|cold cool",
    "open|close shut",
    "day|night",
    "sunrise dawn|sunset dusk",
    "morning|noon|evening",
    "spring|summer|autumn fall|winter",
    "clockwise|counterclockwise anticlockwise",
    "horizontal|vertical",
    "north|east|south|west",
    "first|second|third|fourth|fifth|last",
    "male|female",
)
"""Words that are near to each other for a language model and never mean the same."""
