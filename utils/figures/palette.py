"""The colours of all figures: those of Okabe and Ito (2008), which colour-blind readers can tell apart."""

from utils.data.masks import label_colour

BLUE, GREEN, ORANGE = (0, 114, 178), (0, 158, 115), (230, 159, 0)
VERMILION, PURPLE, SKY_BLUE, YELLOW = (213, 94, 0), (204, 121, 167), (86, 180, 233), (240, 228, 66)

GROUND_TRUTH, PREDICTION = YELLOW, GREEN
FALSE_NEGATIVE, FALSE_POSITIVE = ORANGE, BLUE  # one light, one dark, so that they differ in greyscale, too
OUTER_CONTOUR, INNER_CONTOUR = SKY_BLUE, VERMILION
IGNORED = (128, 128, 128)
_CLASSES = (GREEN, PURPLE, YELLOW, VERMILION, SKY_BLUE, ORANGE, BLUE)  # those of contours and errors come last

# Of the curves of several methods, in greyscale told apart by the markers and the dashes.
CURVE_STYLES = tuple(
    {"color": tuple(c / 255 for c in colour), "marker": marker, "linestyle": dashes}
    for colour, marker, dashes in (
        (BLUE, "o", "-"),
        (VERMILION, "s", "--"),
        (GREEN, "^", "-."),
        (ORANGE, "D", ":"),
        (PURPLE, "v", (0, (5, 1, 1, 1, 1, 1))),
        (SKY_BLUE, "P", (0, (8, 2))),
    )
)


def class_colour(k: int) -> tuple[int, ...]:
    """The colour of class k >= 1 of several classes; after the first seven, those of label maps."""
    return _CLASSES[k - 1] if k <= len(_CLASSES) else label_colour(k - len(_CLASSES))
