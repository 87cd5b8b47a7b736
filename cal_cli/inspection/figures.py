"""Figure 5 of the paper as a figure for print: where words look, a row for each checkpoint."""

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from cal_cli.inspection.pages import AttentionSample
from cal_cli.inspection.tokens import EDGES
from cal_cli.runtime.files import encode_figure

CELL = 1.15  # inches
WORDS = 6  # of a sample, if none are chosen
# red that is opaque where a word looks most, and transparent where it does not look
HEAT = ListedColormap([(0.84, 0.1, 0.11, 0.7 * level / 255) for level in range(256)])


def draw_attention(samples: Sequence[AttentionSample], kind: int, file_format: str, words: Sequence[str]) -> bytes:
    """Draw, for each sample and checkpoint, the image and where some words look in it.

    A word has the mean of the maps of its tokens. Its maps are drawn relative to the largest of their cells with any
    checkpoint, so that checkpoints can be compared. Above each map is the sum of its cells.

    Args:
        samples: of which the first image is drawn.
        kind: the number of a kind of map in `list_kinds`.
        file_format: `pdf`, `png` or `svg`.
        words: those to draw, in lower case; empty means the `WORDS` words of each sample with the largest sums.

    Raises ValueError if a sample has none of the words.
    """
    chosen = [choose_words(sample, kind, words) for sample in samples]
    rows, columns = sum(len(sample.checkpoints) for sample in samples), 1 + max(map(len, chosen))
    figure = Figure(figsize=(CELL * columns, 1.25 * CELL * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    lines = iter(grid)
    for sample, places in zip(samples, chosen, strict=True):
        shown = {name: images[0] for name, images in sample.checkpoints}
        maps = {
            name: [seen.maps[tokens, kind].mean(axis=0) for tokens in places.values()] for name, seen in shown.items()
        }
        largest = [max(float(seen.max()) for seen in same) for same in zip(*maps.values(), strict=True)]
        for name, seen in shown.items():
            line = next(lines)
            image = np.asarray(seen.image.convert("RGB"))
            for axes in line[: 1 + len(places)]:
                axes.imshow(image, extent=(0, 1, 1, 0))
            lines_of_name = [part for words in name.split("__") for part in textwrap.wrap(words, 24)]
            line[0].set_title("\n".join(lines_of_name), fontsize=6, parse_math=False)
            for axes, word, heat, top in zip(line[1:], places, maps[name], largest, strict=False):
                axes.imshow(heat, cmap=HEAT, vmin=0, vmax=max(top, 1e-12), extent=(0, 1, 1, 0))
                axes.set_title(f"{word}\n{heat.sum():.2f}", fontsize=7, parse_math=False)
    return encode_figure(figure, file_format, 200)


def choose_words(sample: AttentionSample, kind: int, words: Sequence[str]) -> dict[str, list[int]]:
    """Choose words of a sample, in the order of its text: the numbers of their tokens' maps, by the word.

    Of a word that occurs several times the first is chosen. Raises ValueError if the sample has none of `words`.
    """
    spelled: dict[int, str] = {}
    tokens: dict[int, list[int]] = {}
    for word, (text, number) in zip(sample.words, sample.pieces, strict=True):
        if word >= 0 and number is not None:
            spelled[word] = spelled.get(word, "") + text
            tokens.setdefault(word, []).append(number)
    by_word: dict[str, list[int]] = {}
    for word, spelling in spelled.items():
        text = spelling.strip().strip(EDGES).lower()
        if any(character.isalnum() for character in text):
            by_word.setdefault(text, tokens[word])
    if words:
        chosen = [word for word in by_word if word in words]
        if not chosen:
            raise ValueError(
                f"sample {sample.id} has none of the words {', '.join(words)}; it has {', '.join(by_word)}"
            )
    else:
        maps = [images[0].maps[:, kind] for _, images in sample.checkpoints]
        sums = {word: sum(float(heat[by_word[word]].sum()) / len(by_word[word]) for heat in maps) for word in by_word}
        chosen = sorted(sums, key=lambda word: -sums[word])[:WORDS]
    return {word: by_word[word] for word in by_word if word in chosen}
