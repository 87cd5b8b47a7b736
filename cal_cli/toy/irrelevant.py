"""Language that does not depend on the picture and that nothing predicts: moods, opinions, stories, speculation."""

import random
import re

LISTS = {
    "mood": "calm dreamy cheerful gloomy tender restless solemn playful weary hopeful bitter serene wistful jolly "
    "lonely proud gentle fierce dull bright",
    "kin": "sailor baker painter teacher poet farmer singer doctor soldier dancer tailor hunter queen monk pilot miner "
    "clown judge nurse thief",
    "did": "carried dropped found sold painted hid borrowed mended forgot praised traded washed wrapped stole admired "
    "buried",
    "where": "village harbour forest market palace valley garden island desert chapel meadow tavern castle bakery "
    "library stable",
    "time": "winter spring autumn summer january march april june july october december",
    "how": "truly maybe softly quickly oddly sadly gladly slowly rarely nearly clearly kindly boldly sweetly barely "
    "surely",
    "feel": "enjoy dislike remember admire doubt fear trust miss prefer ignore cherish envy",
}
WORDS = {name: words.split() for name, words in LISTS.items()}
FORMS = [
    "{how}",
    "{how} {mood}",
    "it feels {mood}",
    "i {how} {feel} it",
    "a {mood} {kin} {how} {did} it",
    "perhaps a {kin} {did} it last {time}",
    "once a {mood} {kin} came to the {where}",
    "{how} {mood}, like a {kin} in {time}",
    "dear {kin}, please {feel} the {mood} {where}",
    "some {feel} it, others {feel} the {where}",
]
LENGTHS = {form: len(form.split()) for form in FORMS}


def write_irrelevant(words: int, random_state: random.Random) -> list[str]:
    """Write phrases with a number of words in all."""
    phrases = []
    while words > 0:
        form = random_state.choice([form for form, length in LENGTHS.items() if length <= words])
        phrases.append(re.sub(r"\{(\w+)\}", lambda found: random_state.choice(WORDS[found[1]]), form))
        words -= LENGTHS[form]
    return phrases
