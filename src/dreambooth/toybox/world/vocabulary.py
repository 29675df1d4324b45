"""Every word of the world as data: what a scene can hold and how a person would say it. The first wording is canonical.

The wordings of the paper's prompts are those of `dataset/prompts_and_classes.txt` of google/dreambooth.
"""

from __future__ import annotations

LIVE = ("dog", "cat", "duck", "bear", "rabbit", "elephant", "pig", "frog")
OBJECTS = (
    "robot",
    "car",
    "teapot",
    "cup",
    "vase",
    "clock",
    "candle",
    "backpack",
    "boot",
    "lamp",
    "boat",
    "airplane",
)
CLASSES = LIVE + OBJECTS
SYNONYMS = {
    "dog": "puppy",
    "cat": "kitten",
    "bear": "teddy bear",
    "rabbit": "bunny",
    "cup": "mug",
    "boat": "ship",
    "airplane": "plane",
    "clock": "alarm clock",
}

# Reflectances in linear RGB, 0..1.
COLOURS = {
    "red": (0.75, 0.03, 0.03),
    "blue": (0.05, 0.13, 0.70),
    "green": (0.06, 0.45, 0.08),
    "yellow": (0.90, 0.68, 0.03),
    "purple": (0.33, 0.05, 0.52),
    "orange": (0.92, 0.30, 0.02),
    "pink": (0.93, 0.33, 0.52),
    "white": (0.86, 0.86, 0.86),
    "black": (0.025, 0.025, 0.028),
    "brown": (0.26, 0.11, 0.04),
    "gray": (0.30, 0.30, 0.31),
}

PAPER_COMMON_CONTEXTS = (
    "in the jungle",
    "in the snow",
    "on the beach",
    "on a cobblestone street",
    "on top of pink fabric",
    "on top of a wooden floor",
    "with a city in the background",
    "with a mountain in the background",
    "with a blue house in the background",
    "on top of a purple rug in a forest",
)
PAPER_OBJECT_CONTEXTS = (
    "with a wheat field in the background",
    "with a tree and autumn leaves in the background",
    "with the Eiffel Tower in the background",
    "floating on top of water",
    "floating in an ocean of milk",
    "on top of green grass with sunflowers around it",
    "on top of a mirror",
    "on top of the sidewalk in a crowded street",
    "on top of a dirt road",
    "on top of a white rug",
)
CONTEXTS = (
    PAPER_COMMON_CONTEXTS
    + PAPER_OBJECT_CONTEXTS
    + (
        "in the forest",
        "in the desert",
        "at night",
        "on a white background",
        "on the moon",
        "in the sky",
    )
)
CONTEXT_PARAPHRASES = {
    "in the jungle": ("in a rainforest", "surrounded by jungle plants"),
    "in the snow": ("on the snow", "in a snowy landscape"),
    "on the beach": ("at the beach", "on the sand by the sea"),
    "on a cobblestone street": ("on the cobblestones",),
    "on top of pink fabric": ("on pink fabric", "on a pink cloth"),
    "on top of a wooden floor": ("on a wooden floor", "on the wooden floor"),
    "with a city in the background": ("in the city", "in front of a city"),
    "with a mountain in the background": ("in the mountains", "in front of a mountain"),
    "with a blue house in the background": ("in front of a blue house",),
    "on top of a purple rug in a forest": ("on a purple rug in the forest",),
    "with a wheat field in the background": ("in front of a wheat field",),
    "with a tree and autumn leaves in the background": ("under an autumn tree", "in autumn"),
    "with the Eiffel Tower in the background": ("in Paris", "in front of the Eiffel Tower"),
    "floating on top of water": ("on top of water", "on the water"),
    "floating in an ocean of milk": ("in an ocean of milk", "swimming in milk"),
    "on top of green grass with sunflowers around it": ("on green grass with sunflowers", "among sunflowers"),
    "on top of a mirror": ("on a mirror",),
    "on top of the sidewalk in a crowded street": ("on a crowded street", "on the sidewalk"),
    "on top of a dirt road": ("on a dirt road",),
    "on top of a white rug": ("on a white rug",),
    "in the forest": ("in a forest", "among the trees"),
    "in the desert": ("in a desert",),
    "at night": ("in the dark", "under the moon"),
    "on a white background": ("against a white background",),
    "on the moon": ("on the surface of the moon",),
    "in the sky": ("in the clouds", "flying in the sky"),
}
# What can still be told from above, and from below (where there is no ground).
TOP_CONTEXTS = (
    "in the snow",
    "on a cobblestone street",
    "on top of pink fabric",
    "on top of a wooden floor",
    "on top of a purple rug in a forest",
    "with a tree and autumn leaves in the background",
    "floating on top of water",
    "floating in an ocean of milk",
    "on top of green grass with sunflowers around it",
    "on top of a mirror",
    "on top of a dirt road",
    "on top of a white rug",
    "on a white background",
    "on the moon",
)
BOTTOM_CONTEXTS = ("at night", "on a white background", "in the sky")

PAPER_OUTFITS = (
    "wearing a red hat",
    "wearing a santa hat",
    "wearing a rainbow scarf",
    "wearing a black top hat and a monocle",
    "in a chef outfit",
    "in a firefighter outfit",
    "in a police outfit",
    "wearing pink glasses",
    "wearing a yellow shirt",
    "in a purple wizard outfit",
)
OUTFITS = (*PAPER_OUTFITS, "wearing a crown", "wearing a party hat", "wearing a blue scarf")
# Not seen from behind.
FACE_OUTFITS = ("wearing pink glasses", "wearing a black top hat and a monocle")

PAPER_PROPERTIES = ("red", "purple", "shiny", "wet", "cube shaped")
PROPERTIES = ("shiny", "wet", "cube shaped", "tall", "flat")
SHAPES = ("cube shaped", "tall", "flat")

MATERIALS = {
    "metal": ("metal {}", "{} made of metal", "{} made out of metal"),
    "glass": ("transparent {}", "glass {}", "{} made out of glass"),
    "stone": ("stone {}", "{} made of stone", "{} made out of stone"),
}

VIEWS = {
    "top": ("{} seen from the top", "{} seen from above", "a top view of {}"),
    "bottom": ("{} seen from the bottom", "{} seen from below", "a bottom view of {}"),
    "side": ("{} seen from the side", "a side view of {}", "{} in profile"),
    "back": ("{} seen from the back", "{} seen from behind", "a back view of {}"),
    "front": ("{} seen from the front", "a front view of {}", "{} facing the camera"),
}

STYLES = {
    "pencil sketch": ("a pencil sketch of {}", "a drawing of {}", "a pencil drawing of {}"),
    "pixel art": ("pixel art of {}", "a pixel art picture of {}", "pixel art, {}"),
    "cartoon": ("a cartoon of {}", "{} as a cartoon", "a comic drawing of {}"),
    "blueprint": ("a blueprint of {}", "a technical drawing of {}"),
    "watercolor": ("a watercolor painting of {}", "a watercolor of {}"),
    "Van Gogh": ("a painting of {} in the style of Van Gogh", "a Van Gogh painting of {}"),
    "Andy Warhol": ("a painting of {} in the style of Andy Warhol", "pop art of {} by Andy Warhol"),
    "Mondrian": ("a painting of {} in the style of Mondrian", "a Mondrian painting of {}"),
}
# Styles that do not keep the colours of what they show.
RECOLOURING_STYLES = ("pencil sketch", "blueprint", "Andy Warhol", "Mondrian")
PAINTERS = ("Van Gogh", "Andy Warhol", "Mondrian")

SCULPTORS = {
    "Michelangelo": ("a statue of {} in the style of Michelangelo", "a marble statue of {}", "a statue of {}"),
    "Rodin": ("a statue of {} in the style of Rodin", "a bronze statue of {}", "a sculpture of {} by Rodin"),
}

EXPRESSIONS = {
    "sad": ("with a sad expression", "looking sad"),
    "angry": ("with an angry expression", "looking angry"),
    "joyous": ("with a joyous expression", "smiling"),
    "sleeping": ("with a sleeping expression", "sleeping"),
    "screaming": ("with a screaming expression", "screaming"),
}
