"""The words by which English captions are shortened: a small lexicon of our own, made by reading real ones.

Captions of video generators repeat themselves. A few hundred words cover what they decorate with, how they speak of the
camera, and where a phrase may end. A word that is missing here is kept, never broken.
"""

from __future__ import annotations


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _phrases(text: str) -> frozenset[str]:
    return frozenset(" ".join(phrase.split()) for phrase in text.split(","))


DETERMINERS = _words("a an the this that these those its his her their my your our each every some any")
NEGATIONS = _words("no not never without nor")
COPULAS = _words(
    """
    is are was were be been being am seem seems look looks appear appears become becomes feel feels remain
    remains stay stays turn turns get gets grow grows very so too more most quite rather
    """
)
"""Words after which an adjective says something of its own, and so may not go."""
PREPOSITIONS = _words(
    """
    in on at by under over above below beneath beside behind near through across along around against among amid
    amidst between inside outside into onto from toward towards during for atop within throughout past down up
    """
)
CONJUNCTIONS = _words("and or but as if than then while when where which who whose whom because until with")
PRONOUNS = _words("it he she they them him we you i there")
FUNCTION_WORDS = (
    DETERMINERS
    | NEGATIONS
    | COPULAS
    | PREPOSITIONS
    | CONJUNCTIONS
    | PRONOUNS
    | _words("of to such like has have had can could will would may just also only both")
)

DECORATION = _words(
    """
    adorable airy ambient artful atmospheric authentic awe-inspiring beautiful bold breathtaking brilliant
    bustling calm calming captivating charming cheerful classic clear comforting contemplative contented cozy
    cosy crisp cute dazzling delicate delightful detailed determined distant dramatic dreamlike dreamy dynamic
    eerie elaborate elegant enchanting energetic enigmatic entire ethereal evocative exciting expansive
    expressive fantastical festive fine friendly gentle glistening gleaming glorious gorgeous graceful
    grand gritty harmonious haunting iconic idyllic immersive impressive incredible inquisitive intense
    intricate inviting joyful joyous lively lone lovely lush luxurious magical magnificent majestic massive
    meandering melancholic meticulous mesmerising mesmerizing mysterious mystical nostalgic opulent ornate
    otherworldly peaceful perfect picturesque playful poised powerful precise pristine quaint quiet radiant
    refined relaxed rhythmic rich romantic rugged rustic scenic seamless serene shimmering single sleek smooth
    soft solitary soothing sophisticated sparkling spectacular spirited splendid striking stunning stylish
    subtle surreal sweeping timeless towering tranquil twinkling unique untouched vast verdant vibrant vivid
    warm weathered whimsical wonderful
    """
)
"""Adjectives that captions are padded with and users rarely type."""
LOOKS = _words(
    """
    ancient antique bare big black blonde blooming blue blurred bright brown checkered clean coloured colorful
    colourful cool curly dark deep dense dim dusty elderly empty faded faint flickering floral flowing fluffy
    fresh futuristic glossy glowing gray green grey heavy huge large leafy little long metallic minimalist misty
    modern moody narrow new old orange pale pastel patterned pink polished plush potted purple rapid red
    reflective ripe robust rocky round sandy scattered shiny short silky simple sloping slow slender small snowy
    spacious steaming steep striped sturdy sunlit tall textured thick thin tiny traditional turquoise warm-toned
    wet white wide wild winding wooden worn yellow young
    """
)
"""Adjectives that say what something looks like; users type some of them."""
ADJECTIVES = DECORATION | LOOKS
NAMES_OF_THINGS = _phrases(
    """
    black hole, black bear, blue whale, brown bear, grand piano, green screen, grey wolf, old town, orange
    juice, orange tree, pink panther, red carpet, red light, red panda, red wine, wild boar, short film, white
    house, white noise, young adult, fine art, classic car, soft serve, dark side, red cross, new york, new
    year, new zealand, great white
    """
)
"""An adjective and a noun that only together say what is meant."""
NOT_ADVERBS = _words(
    """
    apply assembly barely belly bubbly bully butterfly chilly cuddly curly daily deadly doily dolly dragonfly
    early elderly emily family fly friendly ghostly grizzly hardly homely hourly italy jelly july lily lively
    lonely lovely mainly melancholy monthly nearly nightly only orderly otherworldly painterly partially partly
    rally rarely reply scarcely scholarly seemingly silly smelly sparkly supply ugly unlikely unruly weekly
    wobbly woolly yearly
    """
)
"""Words in -ly that are no adverbs, or without which a sentence says something else."""
LIT = _words("lit coloured colored painted dressed shaped sized lined")
"""Participles that an adverb may not leave alone: a dimly lit room is no lit room."""

CUTS = _words(
    """
    with while as where which who whose that because before after until featuring showing creating casting
    revealing reflecting surrounded adorned filled covered decorated bathed illuminated capturing showcasing
    highlighting emphasizing symbolizing evoking suggesting hinting allowing adding giving making leaving
    causing framed nestled contrasting amid amidst against accompanied complemented enhancing ensuring
    indicating conveying embodying set followed dressed wearing captured silhouetted including
    """
)
"""Words in front of which a clause may end: what they bring in is detail."""
BOUND = _words(
    """
    looks gazes stares leans comes goes gets turns lies sits stands rests looking gazing staring leaning coming
    going turning lying sitting standing resting steps gives takes holds holding puts putting focuses focusing
    points pointing hangs hanging fades changes transitions transitioning transforms transforming leads leading
    belongs consists follows following captures begins starts seen shown side
    """
)
"""Words that say too little without what follows them."""

OPENINGS = _words("as while when with after once before finally suddenly nearby meanwhile initially")
"""Words that begin what comes before the thing itself; prepositions do so too."""
FRAMES = _words(
    """
    video clip footage scene image picture photo photograph shot shots view views close-up close-ups closeup
    portrait time-lapse timelapse animation tableau depiction rendering render sequence silhouette
    """
)
"""Nouns for the picture itself: "a wide shot of", "the video shows"."""
SHOWS = _words(
    """
    of shows showing depicts depicting features featuring captures capturing showcases showcasing presents
    presenting displays displaying follows
    """
).union(f"{verb} {word}" for verb in ("opens", "begins", "starts", "unfolds") for word in ("with", "on", "to", "in"))
ANGLES = _words(
    """
    close-up closeup extreme wide medium low high angle low-angle high-angle wide-angle eye-level aerial drone
    top-down overhead macro tracking static handheld hand-held first-person pov panoramic slow motion
    slow-motion time-lapse timelapse animated animation cinematic photorealistic realistic hyperrealistic
    black-and-white monochrome vintage cartoon 3d 2d anime stop-motion underwater half-body full-body side
    portrait papercraft silhouette
    """
)
"""What a picture may be, besides decorated."""
ABOUT_THE_PICTURE = _words(
    """
    camera camera's scene scene's video shot shots view background backdrop foreground lighting atmosphere mood
    style image animation footage visual visuals overall frame composition close-up close-ups angle cg palette
    soundtrack sounds sound ambience focus render color colors ambiance aesthetic air sense
    """
)
"""A sentence with one of these among its first words is about how things are shown, heard or felt."""
STYLE_PHRASES = _phrases(
    """
    cinematic, 4k, 8k, uhd, hd, photorealistic, photo-realistic, hyperrealistic, hyper-realistic, realistic,
    high quality, high-quality, highly detailed, high resolution, high definition, quality, masterpiece, bokeh,
    depth of field, film grain, 35mm, 70mm, vivid colors, vivid colours, style, lighting, color grading, sharp
    focus, unreal engine, octane, award-winning, trending, ultra, low-angle, low angle, wide shot, medium shot,
    close-up, closeup, macro shot, aerial view, shot, rendered, render, texture, textures, tones, atmosphere,
    ambiance, mood, view, perspective, digital art, concept, animation, still frame, anime, papercraft, cgi, cg,
    artwork
    """
)

SYNONYMS: dict[str, tuple[str, ...]] = {
    # the camera
    "close-up": ("closeup",),
    "close-up shot": ("closeup", "close up"),
    "aerial view": ("drone shot", "bird's-eye view"),
    "drone shot": ("aerial shot", "drone view"),
    "time-lapse": ("timelapse",),
    "slow motion": ("slow-mo", "slowmo"),
    "black-and-white": ("b&w", "monochrome"),
    "hand-held": ("handheld", "shaky"),
    "zooms in": ("gets closer", "pushes in"),
    "moves in on": ("zooms in on", "pushes in on"),
    "seen from above": ("from above", "top view"),
    # motion
    "strolls": ("walks",),
    "strolling": ("walking",),
    "walks": ("strolls", "goes"),
    "gallops": ("runs",),
    "galloping": ("running",),
    "dashes": ("runs",),
    "darting": ("running",),
    "glides": ("moves", "slides"),
    "gliding": ("moving", "sliding"),
    "drifts": ("floats",),
    "drifting": ("floating",),
    "soars": ("flies",),
    "soaring": ("flying",),
    "leaps": ("jumps",),
    "leaping": ("jumping",),
    "gazes": ("looks",),
    "gazing": ("looking",),
    "stares": ("looks",),
    "rotates": ("spins", "turns"),
    "rotating": ("spinning", "turning"),
    "swirling": ("spinning",),
    "slowly": ("gently", "calmly"),
    "quickly": ("fast", "rapidly"),
    "swiftly": ("fast", "quickly"),
    "perched": ("sitting",),
    "grazing": ("eating",),
    # common words
    "woman": ("lady",),
    "man": ("guy",),
    "child": ("kid",),
    "children": ("kids",),
    "a person": ("someone",),
    "couple": ("pair",),
    "individual": ("person",),
    "automobile": ("car",),
    "bicycle": ("bike",),
    "motorcycle": ("motorbike",),
    "canine": ("dog",),
    "feline": ("cat",),
    "kitten": ("cat", "kitty"),
    "vessel": ("boat", "ship"),
    "ocean": ("sea",),
    "forest": ("woods",),
    "street": ("road",),
    "film": ("movie",),
    "large": ("big", "huge"),
    "massive": ("huge", "giant"),
    "small": ("little", "tiny"),
    "tiny": ("small", "little"),
    "grey": ("gray",),
    "crimson": ("red",),
    "azure": ("blue",),
    "beautiful": ("pretty",),
    "joyful": ("happy",),
    "cheerful": ("happy",),
    "adorable": ("cute",),
    "snowy": ("snow-covered",),
    "a group of": ("several", "some"),
    "a pair of": ("two",),
    "in front of": ("before",),
    "in the middle of": ("in", "inside"),
    "towards": ("toward",),
    "before a": ("against a",),
    "sneakers": ("shoes",),
    "automobiles": ("cars",),
    "dwelling": ("house",),
}
"""Words of captions, lower case -> what users say for them. None is longer than what it stands for."""
