"""Words and facts of the demo world, as tables."""


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


ONES = _split(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
)
TENS = _split("twenty thirty forty fifty sixty seventy eighty ninety")
DAYS = _split("monday tuesday wednesday thursday friday saturday sunday")
MONTHS = _split(
    "january february march april may june july august september october november december"
)
SEASONS = ("spring", "summer", "autumn", "winter")
COLORS = _split("red green yellow black white brown gray purple")
NAMES = _split("anna peter lucy david emma george sarah martin")
THINGS = _split("car hat shirt house bag door cup box coat bicycle chair table")
COUNTED = _split("dogs cats apples books eggs friends keys pencils")

# From small to big.
ANIMALS = _split(
    "bee spider frog mouse bird duck chicken cat fox dog sheep wolf pig lion tiger cow horse "
    "bear elephant whale"
)
ANIMAL_SOUNDS = {
    "dog": "bark", "cat": "meow", "cow": "moo", "lion": "roar", "duck": "quack", "bee": "buzz",
    "bird": "sing", "wolf": "howl", "snake": "hiss", "mouse": "squeak",
}  # fmt: skip
YOUNG = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "sheep": "lamb", "horse": "foal",
    "chicken": "chick", "bear": "cub", "duck": "duckling",
}  # fmt: skip
LEGS = {
    "bee": "six", "spider": "eight", "frog": "four", "mouse": "four", "bird": "two",
    "duck": "two", "chicken": "two", "cat": "four", "fox": "four", "dog": "four", "sheep": "four",
    "wolf": "four", "pig": "four", "lion": "four", "tiger": "four", "cow": "four", "horse": "four",
    "bear": "four", "elephant": "four",
}  # fmt: skip
HOMES = {
    "cow": "on a farm", "pig": "on a farm", "sheep": "on a farm", "chicken": "on a farm",
    "horse": "on a farm", "fox": "in the forest", "wolf": "in the forest",
    "bear": "in the forest", "whale": "in the ocean", "fish": "in the ocean",
    "duck": "on a lake", "frog": "on a lake", "tiger": "in the jungle", "snake": "in the jungle",
}  # fmt: skip
EATS = {
    "cow": "grass", "horse": "grass", "sheep": "grass", "mouse": "cheese", "cat": "fish",
    "bear": "honey", "bee": "sugar", "lion": "meat", "fox": "eggs", "wolf": "meat",
    "chicken": "rice",
}  # fmt: skip
ABLE = {
    "fly": ("bee", "bird", "duck"),
    "swim": ("whale", "fish", "duck", "frog", "dog"),
    "jump": ("frog", "cat", "horse", "dog"),
}
UNABLE = {
    "fly": ("dog", "cow", "pig", "horse", "elephant", "snake", "whale", "sheep"),
    "swim": ("bee", "chicken", "spider", "sheep"),
    "jump": ("whale", "snake", "elephant", "cow"),
}

THING_COLORS = {
    "grass": "green", "snow": "white", "milk": "white", "salt": "white",
    "wine": "red", "a tomato": "red", "a cherry": "red", "a lemon": "yellow",
    "a banana": "yellow", "the sun": "yellow", "a frog": "green", "chocolate": "brown",
    "an elephant": "gray", "a mouse": "gray",
}  # fmt: skip
OPPOSITES = (
    "hot cold", "big small", "long short", "old young", "fast slow", "happy sad", "up down",
    "open closed", "full empty", "day night", "light dark", "hard soft", "wet dry",
    "strong weak", "clean dirty", "early late", "high low", "good bad",
    "loud quiet", "near far", "first last",
)  # fmt: skip
CAPITALS = {
    "france": "paris", "germany": "berlin", "england": "london", "spain": "madrid",
    "italy": "rome", "russia": "moscow", "japan": "tokyo", "egypt": "cairo", "cuba": "havana",
    "austria": "vienna", "ireland": "dublin", "poland": "warsaw", "portugal": "lisbon",
    "peru": "lima",
}  # fmt: skip
WEATHERS = _split("sunny rainy cloudy windy cold hot stormy")
NEEDS = {
    "rainy": "an umbrella", "cold": "a warm coat", "hot": "a cool drink", "windy": "a jacket",
    "sunny": "a hat", "dark": "a lamp",
}  # fmt: skip
TOOLS = {
    "a pen": "write", "a knife": "cut", "a broom": "sweep", "a brush": "paint",
    "a book": "learn", "a bed": "sleep", "a chair": "sit", "soap": "wash", "a pot": "cook",
    "a bicycle": "ride", "a phone": "call", "a cup": "drink",
}  # fmt: skip
BODY = {
    "see": "eyes", "hear": "ears", "smell": "nose", "walk": "feet", "hold things": "hands",
    "chew": "teeth", "taste": "tongue", "think": "head",
}  # fmt: skip
TASTES = {
    "a lemon": "sour", "sugar": "sweet", "honey": "sweet", "candy": "sweet", "cake": "sweet",
    "vinegar": "sour", "pepper": "spicy", "salt": "salty",
}  # fmt: skip
FOOD_KINDS = {
    "an apple": "a fruit", "a banana": "a fruit", "a cherry": "a fruit", "a lemon": "a fruit",
    "a carrot": "a vegetable", "an onion": "a vegetable", "a potato": "a vegetable",
    "milk": "a drink", "coffee": "a drink", "water": "a drink", "juice": "a drink",
}  # fmt: skip
FOODS = _split("bread soup rice cheese cake honey fish candy")
DRINKS = _split("milk coffee water juice")
FAMILY = {
    "the brother of": {"mother": "uncle", "father": "uncle"},
    "the sister of": {"mother": "aunt", "father": "aunt"},
    "the mother of": {"mother": "grandmother", "father": "grandmother", "cousin": "aunt"},
    "the father of": {"mother": "grandfather", "father": "grandfather", "cousin": "uncle"},
    "the husband of": {"mother": "father", "aunt": "uncle", "grandmother": "grandfather"},
    "the wife of": {"father": "mother", "uncle": "aunt", "grandfather": "grandmother"},
    "the child of": {"uncle": "cousin", "aunt": "cousin"},
}
SIDES = {"triangle": "three", "square": "four", "rectangle": "four", "hexagon": "six"}
SHAPES = {
    "a ball": "round", "a wheel": "round", "a coin": "round", "a box": "square",
    "a window": "square",
}  # fmt: skip
SMALL_TALK = (
    (("hello.", "hello there.", "hello, my friend."), "hello, how are you?"),
    (("good morning.", "good morning, my friend.", "a very good morning."),
     "good morning, did you sleep well?"),
    (("good night.", "good night, my friend.", "good night, sleep well."),
     "good night and sweet dreams."),
    (("how are you?", "how are you today?", "hello, how are you?"), "i am very well, thank you."),
    (("thank you.", "thank you very much.", "thank you, my friend."), "you are very welcome."),
    (("who are you?", "what are you?", "can you say who you are?"),
     "i am a model that can listen and speak."),
    (("can you hear me?", "do you hear me?", "hello, can you hear me?"),
     "yes, i can hear you well."),
    (("can you help me?", "please help me.", "i need some help."), "of course, how can i help?"),
    (("i am sorry.", "i am very sorry.", "i am always sorry, my friend."),
     "that is fine, do not worry."),
    (("goodbye.", "goodbye, my friend.", "i must go, goodbye."), "goodbye, see you tomorrow."),
    (("i am tired.", "i am very tired today.", "i feel very tired."), "then you need some sleep."),
    (("i am hungry.", "i am very hungry today.", "i feel very hungry."), "then eat some bread."),
    (("i am thirsty.", "i am very thirsty today.", "i feel very thirsty."),
     "then drink some water."),
    (("i am sad.", "i am very sad today.", "i feel very sad."), "i am sorry that you feel sad."),
    (("i am happy.", "i am very happy today.", "i feel very happy."),
     "i am glad that you feel happy."),
    (("can you speak?", "do you speak?", "hello, can you speak?"), "yes, i can speak and listen."),
    (("do you sleep?", "do you sleep at night?", "can you sleep?"), "no, i am always awake."),
)  # fmt: skip

# Words that fill the patterns of plain sentences.
FILLERS = {
    "name": NAMES, "day": DAYS, "month": MONTHS, "season": SEASONS, "color": COLORS,
    "thing": THINGS, "counted": COUNTED, "animal": ANIMALS, "food": FOODS, "drink": DRINKS,
    "weather": WEATHERS, "city": tuple(CAPITALS.values()), "country": tuple(CAPITALS),
    "number": ONES[2:] + TENS, "hour": ONES[2:13], "tool": tuple(TOOLS),
    "place": _split("garden kitchen school forest market park"),
    "relative": _split("mother father brother sister uncle aunt cousin grandmother"),
    "feeling": _split("happy sad tired hungry thirsty glad quiet"),
    "side": _split("under behind near on"),
}  # fmt: skip
# (topic, text, names of fillers); some pairs of the first two fillers are held out.
PATTERNS = (
    ("my things", "the {0} {1} is in the {2}.", "color thing place"),
    ("my things", "{0} has {1} {2} in the {3}.", "name number counted place"),
    ("my things", "the {1} is {2} the {0}.", "thing animal side"),
    ("my things", "my {0} has a {1} {2}.", "relative color thing"),
    ("people", "{0} and {1} go home at {2}.", "name name hour"),
    ("people", "{0} is very {1} in the {2}.", "name feeling season"),
    ("family", "my {0} lives in {1} with {2}.", "relative city name"),
    ("family", "the {0} is always {1} on {2}.", "relative feeling day"),
    ("food", "{0} likes {1} and {2}.", "name food drink"),
    ("food", "on {0} we eat {1} with {2}.", "day food food"),
    ("food", "please give {0} some {1} and a {2}.", "name drink thing"),
    ("weather", "it was {0} in {1} last {2}.", "weather city month"),
    ("weather", "in {0} the {1} is often {2}.", "country season weather"),
    ("animals", "the {0} and the {1} sleep in the {2}.", "animal animal place"),
    ("animals", "{0} can see a {1} {2} there.", "name color animal"),
    ("tools", "{0} needs {1} at {2} on {3}.", "name tool hour day"),
    ("time", "on {0} at {1} i call my {2}.", "day hour relative"),
    ("months", "school is closed in {0} and {1}.", "month month"),
    ("days", "{0} comes from {1} on {2}.", "name country day"),
    ("counting", "we count {0} {1} and {2} {3}.", "number counted number counted"),
)
