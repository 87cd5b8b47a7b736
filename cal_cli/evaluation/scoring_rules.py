"""Rules that score one prediction against the right answers, as the benchmark's authors and lmms-eval (0.7.3) do.

Predictions are scored exactly as the model wrote them, outer white space included. Peculiarities of lmms-eval are kept,
because published figures include them; the docstrings name them.
"""

import re
from collections.abc import Sequence

from rapidfuzz.distance import Levenshtein

ARTICLES = ("a", "an", "the")
NUMBER_WORDS = "none one two three four five six seven eight nine ten"
NUMBERS = {word: str(number) for number, word in enumerate(NUMBER_WORDS.split())} | {"zero": "0"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# words whose missing apostrophe the rule restores
APOSTROPHES = """
    'ow's'at 'twas ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
    he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't
    needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've wasn't we'd've we've weren't what'll what're
    what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'd've y'all'll you'd you'd've you'll you're you've
"""
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in APOSTROPHES.split()
    for place, sign in enumerate(word)
    if sign == "'"
} | {"somebody'd": "somebodyd"}


def normalize(answer: str) -> str:
    """Normalise an answer as VQA's evaluation does: lower case, numbers as digits, no articles, no punctuation.

    Source: the VQA evaluation (Antol et al. 2015; visualqa.org/evaluation), in the form of EvalAI's TextVQA challenge:
    commas and question marks are removed first; a sign next to a space is removed, any other becomes a space; of the
    full stops that no digit follows, the first 32 are removed.
    """
    text = answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    plain = text
    for sign in PUNCTUATION:
        beside_space = f"{sign} " in text or f" {sign}" in text
        plain = plain.replace(sign, "" if beside_space else " ")
    plain = re.sub(r"\.(?!\d)", "", plain, count=32)
    words = [NUMBERS.get(word, word) for word in plain.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Return the mean, over the annotators, of min(1, a third of the other annotators who agree with the prediction).

    Source: VQA accuracy (Antol et al. 2015), with normalized answers, as in TextVQA.

    Raises ValueError for fewer than four annotators, with whom no prediction could reach 1.
    """
    if len(answers) < 4:
        raise ValueError(
            f"vqa_accuracy needs the answers of at least 4 annotators, not {len(answers)}: rule=exact_match takes any "
            "number"
        )
    given, said = normalize(prediction), [normalize(answer) for answer in answers]
    agreeing = said.count(given)
    return sum(min(1.0, (agreeing - (answer == given)) / 3) for answer in said) / len(said)


def anls(prediction: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """Return 1 minus the normalised edit distance to the nearest answer, or 0 below the threshold.

    Source: Average Normalised Levenshtein Similarity (Biten et al. 2019), as in DocVQA. Distances are those of lower
    case texts with single spaces, divided by the length of the longer text as written.
    """

    def plain(text: str) -> str:
        return " ".join(text.strip().lower().split())

    distances = []
    for answer in answers:
        length = max(len(answer.upper()), len(prediction.upper()))
        distances.append(Levenshtein.distance(plain(answer), plain(prediction)) / length if length else 0.0)
    similarity = 1 - min(distances)
    return similarity if similarity >= threshold else 0.0


def relaxed_accuracy(prediction: str, answers: Sequence[str], tolerance: float = 0.05) -> float:
    """Return 1 for a number within 5 % of the answer's, or for the same words; else 0.

    Source: ChartQA (Masry et al. 2022, section 5.1). `12%` is 0.12. An answer of 0 must be matched word for word.
    """
    answer = get_only(answers)
    given, right = parse_number(prediction), parse_number(answer)
    if given is not None and right:
        return float(abs(given - right) / abs(right) <= tolerance)
    return float(prediction.lower() == answer.lower())


def parse_number(text: str) -> float | None:
    """Return the number that a text consists of, or None."""
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def contained(prediction: str, answers: Sequence[str], dataset: str = "") -> float:
    """Return 1 if the prediction contains one of the answers; else 0.

    Raises ValueError for a blank answer, which any prediction contains.

    Source: OCRBench (Liu et al. 2023). Letter case, line breaks and full-width forms of ASCII are ignored; for
    handwritten formulas (`dataset` HME100k), spaces and line breaks are.
    """

    def plain(text: str) -> str:
        if dataset == "HME100k":
            return text.strip().replace("\n", " ").replace(" ", "")
        half_width = text.translate({0x3000: " "} | {0xFEE0 + code: code for code in range(0x21, 0x7F)})
        return half_width.lower().strip().replace("\n", " ")

    if not all(map(plain, answers)):
        raise ValueError("an answer is blank, which any prediction contains: leave it out")
    return float(any(plain(answer) in plain(prediction) for answer in answers))


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the prediction equals one of the answers, ignoring letter case and outer white space; else 0."""
    return float(prediction.strip().lower() in [answer.strip().lower() for answer in answers])


def letter_alone(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the prediction is the right letter, or begins with it as a capital and a full stop (`B. a river`).

    Source: ScienceQA's evaluation in LLaVA.
    """
    answer = get_only(answers).strip()
    if len(answer) != 1:
        raise ValueError(f"the answer {answer!r} is not a letter: rule=exact_match compares texts")
    text = prediction.strip()
    letter = text[0] if text[:1].isupper() and text[1:2] == "." else text
    return float(letter.lower() == answer.lower())


def first_character(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the prediction begins with the right letter, in either case; else 0.

    Source: SEED-Bench (Li et al. 2023) as lmms-eval scores generated answers: `Because ...` counts as B.
    """
    answer = get_only(answers).strip()
    if len(answer) != 1:
        raise ValueError(f"the answer {answer!r} is not a single character: rule=exact_match compares texts")
    return float(prediction.strip()[:1].lower() == answer.lower())


def letter_among_options(prediction: str, answers: Sequence[str], choices: str) -> float:
    """Return 1 if `find_last_letter` gives the right one; else 0. Source: MMT-Bench (Ying et al. 2024)."""
    return float(find_last_letter(prediction.strip(), choices) == get_letter(answers, choices))


def find_last_letter(prediction: str, choices: str) -> str:
    """Find the option that an answer names: one in brackets, else one alone, else one before a full stop.

    Of several letters alone the last counts; of several in brackets or before full stops, the first option. Source:
    MMMU's evaluation (Yue et al. 2023), which guesses at random if no option is named; here the result is "".
    """
    text = prediction
    for sign in ",.!?;:'":
        text = text.strip(sign)
    text = f" {text} "
    for form in ("({})", " {} ", "{}."):
        named = [letter for letter in choices if form.format(letter) in text]
        if named:
            return max(named, key=lambda letter: text.rfind(f" {letter} "))
    return ""


# phrases that precede the letter of an option
SUBJECTS = ("answer", "correct answer", "best answer", "correct option", "best option", "choice", "correct choice")
PHRASES = [f"{article}{subject} is" for subject in SUBJECTS for article in ("", "the ")]
PHRASES += ["i choose", "i select", "i pick", "my answer is", "my choice is"]
PHRASES += ["옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"]  # Korean, Chinese, Japanese


def letter_extracted(prediction: str, answers: Sequence[str], choices: str = "ABCD") -> float:
    """Return 1 if `extract_letter` gives the right one. Source: MMStar (Chen et al. 2024), which has options A to D."""
    return float(extract_letter(prediction, choices) == get_letter([answer.upper() for answer in answers], choices))


def extract_letter(prediction: str, choices: str) -> str:
    """Find the option that an answer names, by the most reliable of several patterns; "" if there is none.

    From most to least reliable: the answer begins with the letter alone, ends with it, has it anywhere after a phrase
    like "the answer is", in brackets, before a full stop, a colon, a bracket, a space, and, if none of these matches,
    anywhere. Of several matches of one pattern the last counts. Source: lmms-eval's extraction, with its peculiarity:
    after a phrase any capital counts, those of other words and options included.
    """
    text = prediction.strip()
    for sign in ",.!?;:'\"":
        text = text.strip(sign)
    inner, text = text.strip(), f" {text} "
    matches: list[tuple[int, int, str]] = []  # reliability, place, letter
    for letter in choices:
        if inner.startswith(letter) and not inner[1:2].isalpha():
            matches.append((8, 0, letter))
        if inner.endswith(letter) and not inner[-2:-1].isalpha():
            matches.append((7, 0, letter))
        for phrase in PHRASES:
            place = text.lower().find(phrase)
            after = text.find(letter, place + len(phrase)) if place >= 0 else -1
            if after >= 0:
                matches.append((6, after, letter))
        for reliability, form in ((5, "({})"), (4, "{}."), (3, "{}:"), (2, "{})"), (1, "{} ")):
            if form.format(letter) in text:
                matches.append((reliability, text.rfind(form.format(letter)), letter))
    if not matches:
        matches = [(0, text.rfind(letter), letter) for letter in choices if letter in text]
    return max(matches, key=lambda match: match[:2])[2] if matches else ""


def get_only(answers: Sequence[str]) -> str:
    """Return the single right answer. Raises ValueError if there are more, of which a rule would ignore all but one."""
    if len(answers) != 1:
        raise ValueError(f"the rule takes one right answer, not {len(answers)}: rule=exact_match and anls take several")
    return answers[0]


def get_letter(answers: Sequence[str], choices: str) -> str:
    """Return the letter of the right option. Raises ValueError unless there is one, and it is among the choices."""
    letter = get_only(answers).strip()
    if letter not in list(choices):
        raise ValueError(f"the answer {letter!r} is not among the options {choices}; a tag `choices` has their letters")
    return letter


def get_yes_or_no(answers: Sequence[str]) -> str:
    """Return the right answer, `yes` or `no`. Raises ValueError if it is another."""
    answer = get_only(answers).lower().strip().replace(".", "")
    if answer not in ("yes", "no"):
        raise ValueError(f"the answer {answer!r} is neither yes nor no: rule=exact_match compares texts")
    return answer


def yes_or_no(prediction: str) -> str:
    """Return `yes`, `no` or `other`, from the first four characters. Source: MME (Fu et al. 2023)."""
    text = prediction.lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text, "other")
    for answer in ("yes", "no"):
        if answer in text[:4]:
            return answer
    return "other"


def parse_box(prediction: str) -> list[float]:
    """Return the first four numbers in square brackets, (left, top, right, bottom); zeros if there are none."""
    number = r"\s*(-?\d+(?:\.\d+)?)"
    match = re.search(rf"\[{number},{number},{number},{number}\s*\]", prediction)
    return [float(value) for value in match.groups()] if match else [0.0] * 4


def intersection_over_union(first: Sequence[float], second: Sequence[float]) -> float:
    """Return that of two boxes (left, top, right, bottom) in the same unit; 0 if both are empty."""
    width = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    height = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    union = sum(areas) - width * height
    return width * height / union if union else 0.0
