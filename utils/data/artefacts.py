"""What dermoscopy images contain besides skin and lesion: hairs, rulers, ink, stickers, bubbles of immersion fluid.

Everything is drawn at a multiple of the size and made smaller, so that it is anti-aliased at any size. Lengths are
relative to the shorter side of the image, so an artefact looks the same at every size.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

_OVERSAMPLING = 4
_INKS = ((66, 48, 140), (40, 60, 150), (25, 90, 110), (30, 30, 40), (20, 110, 70))


class Layer:
    """An opacity to draw on, at a multiple of an image's size.

    Args:
        image: on which it will be put.
    """

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        self.width, self.height = (_OVERSAMPLING * length for length in image.size)
        self.side = min(self.width, self.height)
        self.opacity = Image.new("L", (self.width, self.height))
        self.draw = ImageDraw.Draw(self.opacity)

    def put(self, colour: tuple[int, int, int], blur: float = 0.0) -> Image.Image:
        """The image with a colour where the layer is opaque.

        Args:
            colour: of what was drawn.
            blur: radius of a Gaussian blur in pixels of the image.
        """
        opacity = self.opacity.resize(self._image.size, Image.Resampling.LANCZOS)
        if blur:
            opacity = opacity.filter(ImageFilter.GaussianBlur(blur))
        return Image.composite(Image.new("RGB", self._image.size, colour), self._image, opacity)


def draw_hairs(
    rng: np.random.Generator,
    image: Image.Image,
    count: int,
    colour: tuple[int, int, int] = (46, 32, 28),
    thickness: float = 1.0,
) -> Image.Image:
    """Curved hairs.

    Args:
        rng: random numbers.
        image: RGB.
        count: number of hairs.
        colour: of all of them.
        thickness: relative to that of the usual hair, 0.3 to 0.6 % of the shorter side.
    """
    if not count:
        return image
    layer = Layer(image)
    for _ in range(count):
        start = rng.uniform(-0.1, 1.1, 2) * (layer.width, layer.height)
        curve = _curve(rng, start, layer.side, (0.4, 1.1), bend=0.12)
        opacity, width = int(rng.integers(120, 230)), layer.side * thickness * rng.integers(4, 10) / 1536
        layer.draw.line(curve, fill=opacity, width=max(1, round(width)))
    return layer.put(colour, blur=0.6 * min(image.size) / 384)


def draw_ruler(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """The ticks of a ruler along a straight line anywhere in the image, every fifth one longer."""
    layer = Layer(image)
    angle = rng.choice([0, np.pi / 2]) + rng.normal(0, 0.15) if rng.random() < 0.7 else rng.uniform(0, np.pi)
    along, across = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    across *= rng.choice([-1, 1])
    middle = rng.uniform(0.05, 0.95, 2) * (layer.width, layer.height)
    spacing, length = layer.side * rng.uniform(0.02, 0.09), layer.side * rng.uniform(0.02, 0.08)
    width, opacity = max(1, round(layer.side * rng.uniform(0.004, 0.014))), int(rng.integers(140, 255))
    n = int(2 * layer.side / spacing)
    for i in range(-n, n + 1):
        foot = middle + i * spacing * along
        tip = foot + across * length * (1.8 if i % 5 == 0 else 1)
        layer.draw.line([tuple(foot), tuple(tip)], fill=opacity, width=width)
    if rng.random() < 0.5:
        ends = [tuple(middle + sign * 2 * layer.side * along) for sign in (-1, 1)]
        layer.draw.line(ends, fill=opacity, width=width)
    grey = int(rng.choice([15, 40, 235]))
    return layer.put((grey, grey, grey))


def draw_ink(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Strokes or a ring of a surgical marker."""
    layer = Layer(image)
    opacity, width = int(rng.integers(90, 235)), max(2, round(layer.side * rng.uniform(0.012, 0.06)))
    if rng.random() < 0.3:
        centre = rng.uniform(0.1, 0.9, 2) * (layer.width, layer.height)
        radius = layer.side * rng.uniform(0.1, 0.6)
        layer.draw.ellipse([*(centre - radius), *(centre + radius)], outline=opacity, width=width)
    else:
        for _ in range(int(rng.integers(1, 5))):
            start = rng.uniform(-0.05, 1.05, 2) * (layer.width, layer.height)
            curve = _curve(rng, start, layer.side, (0.1, 0.7), bend=0.1)
            layer.draw.line(curve, fill=opacity, width=width, joint="curve")
    colour = np.clip(np.array(_INKS[rng.integers(len(_INKS))]) + rng.normal(0, 15, 3), 0, 255)
    return layer.put(tuple(colour.astype(int)), blur=rng.uniform(0, 0.012) * min(image.size))


def draw_sticker(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """A disc or a square of any colour that reaches into a corner, as next to the lesions of children."""
    layer = Layer(image)
    corner = rng.choice([0.0, 1.0], 2) * (layer.width, layer.height)
    x, y = corner + rng.normal(0, 0.08, 2) * layer.side
    radius = layer.side * rng.uniform(0.1, 0.35)
    if rng.random() < 0.6:
        layer.draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=255)
    else:
        layer.draw.regular_polygon((x, y, 1.4 * radius), 4, rotation=rng.uniform(0, 90), fill=255)
    return layer.put(tuple(rng.integers(20, 255, 3).tolist()), blur=rng.uniform(0, 0.8) * min(image.size) / 128)


def draw_bubbles(rng: np.random.Generator, image: Image.Image, count: int) -> Image.Image:
    """Bubbles: a bright ring with a darker interior and a highlight."""
    for _ in range(count):
        layer = Layer(image)
        x, y = rng.uniform(0.03, 0.97, 2) * (layer.width, layer.height)
        r = layer.side * rng.uniform(0.012, 0.04)
        layer.draw.ellipse([x - r, y - r, x + r, y + r], fill=26, outline=95, width=int(0.14 * r) + 3)
        g = 0.18 * r
        layer.draw.ellipse([x - 0.4 * r - g, y - 0.4 * r - g, x - 0.4 * r + g, y - 0.4 * r + g], fill=220)
        image = layer.put((255, 250, 246))
    return image


def vignette(rng: np.random.Generator, size: tuple[int, int], radius: tuple[float, float] = (0.9, 0.98)) -> np.ndarray:
    """(H, W, 1) float factors of the dark corners behind a round lens.

    Args:
        rng: random numbers.
        size: width and height.
        radius: range of the lens's radius, relative to half of the diagonal.
    """
    width, height = size
    y, x = np.mgrid[:height, :width].astype(np.float32)
    distance = np.hypot(x - width / 2, y - height / 2) / (np.hypot(width, height) / 2)
    return (1 - 0.85 / (1 + np.exp(-(distance - rng.uniform(*radius)) / 0.02)))[..., None]


def _curve(
    rng: np.random.Generator, start: np.ndarray, side: int, length: tuple[float, float], bend: float
) -> list[tuple[float, float]]:
    """Points of a quadratic curve in a random direction, with a length from a range, both relative to `side`."""
    direction = rng.uniform(0, 2 * np.pi)
    end = start + side * rng.uniform(*length) * np.array([np.cos(direction), np.sin(direction)])
    control = (start + end) / 2 + rng.normal(0, bend, 2) * side
    t = np.linspace(0, 1, 60)[:, None]
    return [tuple(point) for point in (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end]
