"""What the values of a set of masks mean."""

import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFilter

from tests.conftest import make_image
from utils import IGNORED_CLASS
from utils.data.class_rule import decide_classes
from utils.data.mask_classes import MaskClasses, MaskOptions
from utils.data.mask_values import PALETTE_OFFSET, ValueCounts, colour_values, distances, format_mask_value
from utils.data.masks import read_mask
from utils.runtime.errors import InputError

RED, GREEN = int(colour_values([255, 0, 0])), int(colour_values([0, 255, 0]))


def counted(areas: dict[int, int], thin: dict[int, int] | None = None) -> ValueCounts:
    """A mask with areas of some values, and thin lines of others, by their number of pixels."""
    pixels = dict(sorted((areas | (thin or {})).items()))
    solid = [n if value in areas else 0 for value, n in pixels.items()]
    return ValueCounts(np.array([*pixels]), np.array([*pixels.values()]), np.array(solid))


def decide(masks: list[ValueCounts], n_classes: int = 2, expected=(), recorded=None, **options) -> MaskClasses:
    names = {f"{i}.png": mask for i, mask in enumerate(masks)}
    learnt = MaskClasses(tuple(expected), recorded) if expected else None
    return decide_classes(names, n_classes, MaskOptions(**options), learnt)


def written(tmp_path, images: list[Image.Image], name: str = "png", **options) -> list[ValueCounts]:
    """The values of these masks as files."""
    paths = [tmp_path / f"{i}.{name}" for i in range(len(images))]
    for image, path in zip(images, paths, strict=True):
        image.save(path, **options)
    return [read_mask(path).count() for path in paths]


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


# -- the classes -------------------------------------------------------------------------------------------------------


def test_sorted_values_become_classes():
    assert decide([counted({255: 3, 0: 5})]).values == (0, 255)
    assert decide([counted({1: 5}), counted({7: 3})], 1).values == (1, 7)
    assert decide([counted({0: 9, 4: 1}), counted({2: 1})], 3).values == (0, 2, 4)
    assert decide([counted({0: 9, 65535: 4})]).values == (0, 65535)


def test_the_line_says_each_share(log):
    decide([counted({0: 810, 255: 178}, {100: 7, 200: 5})])
    assert log.messages == ["masks: 0 background 81 %, 255 lesion 18 %; the rest, 1.2 %, to the nearer of the two"]
    log.clear()
    decide([counted({0: 60, 1: 20, 2: 10, 255: 10})], 3)
    assert log.messages == ["masks: 0 background 67 %, 1 class 1 22 %, 2 class 2 11 %; 255 ignored, 10 % of all"]


def test_thin_values_belong_to_the_nearer_class():
    classes = decide([counted({0: 700, 255: 200}, {100: 40, 200: 50, 3: 10})])
    assert classes.of(np.array([0, 3, 100, 127, 128, 200, 255])).tolist() == [0, 0, 0, 0, 1, 1, 1]
    assert MaskClasses((0, 4)).of(np.array([2])).tolist() == [1]  # half way


def test_value_with_an_area_of_its_own_is_named_with_a_file():
    with pytest.raises(InputError, match=r"128 \(30 %\); 1\.png, for example, contains the value 128") as error:
        decide([counted({0: 200, 255: 300}), counted({0: 200, 128: 300})])
    assert error.value.options == ("classes", "ignore_value", "mask_values")
    with pytest.raises(InputError, match=r"2 \(5\.0 %\)"):  # beside labels also a thin one
        decide([counted({0: 90, 1: 5}, {2: 5})])


def test_noise_is_not_advised_as_classes(tmp_path):
    labels = np.arange(24 * 24, dtype=np.uint8).reshape(24, 24).repeat(6, axis=0).repeat(6, axis=1)
    with pytest.raises(InputError) as error:
        decide(written(tmp_path, [Image.fromarray(labels)]))
    assert "256" not in str(error.value)
    assert "96" not in str(error.value)
    with pytest.raises(InputError, match="are these masks"):
        decide([counted({0: 200, 255: 200}, dict.fromkeys(range(20, 220), 10))])


def test_too_few_values():
    with pytest.raises(InputError, match="too few values for 3 classes"):
        decide([counted({0: 5, 1: 5})], 3)
    with pytest.raises(InputError, match="too few"):
        decide([counted({0: 5})])


@pytest.mark.parametrize("quality", [30, 70, 95])
def test_jpeg(tmp_path, quality: int):
    masks = [make_image(seed)[1] for seed in range(4)] + [Image.new("L", (160, 120))]
    classes = decide(written(tmp_path, masks, "jpg", quality=quality))
    assert classes.values == (0, 255)  # though flat black is 1 at quality 70
    codes, values = read_mask(tmp_path / "0.jpg")
    assert (classes.of(values)[codes] != np.asarray(masks[0]) // 255).mean() < 0.002
    with pytest.raises(InputError, match="too few values for 3 classes"):  # noise is no class
        decide(written(tmp_path, masks, "jpg", quality=quality), 3)
    codes, values = read_mask(tmp_path / "4.jpg")
    assert not classes.of(values)[codes].any()


def two_colours(smooth: bool) -> Image.Image:
    scale = 4 if smooth else 1
    image = Image.new("RGB", (160 * scale, 120 * scale))
    draw = ImageDraw.Draw(image)
    draw.ellipse([x * scale for x in (10, 20, 70, 100)], (255, 0, 0))
    draw.ellipse([x * scale for x in (90, 20, 150, 100)], (0, 255, 0))
    return image.resize((160, 120), Image.Resampling.BOX)


def test_colours_with_smooth_edges_and_as_jpeg(tmp_path):
    assert decide(written(tmp_path, [two_colours(smooth=True)]), 3).values == (0, GREEN, RED)
    masks = written(tmp_path, [two_colours(smooth=False)], "jpg", quality=80, subsampling=0)
    assert decide(masks, 3).values == (0, GREEN, RED)
    assert distances([RED], [0]).item() == pytest.approx(255 / 3**0.5)


def test_smooth_single_class(tmp_path):
    masks = [make_image(seed)[1].filter(ImageFilter.GaussianBlur(2)) for seed in range(3)]
    assert decide(written(tmp_path, masks)).values == (0, 255)


def smooth(seed: int, value: int = 255) -> Image.Image:
    """A mask with smooth edges, drawn in a value."""
    return make_image(seed)[1].point([value * (grey > 127) for grey in range(256)]).filter(ImageFilter.GaussianBlur(2))


def labelled(seed: int, value: int) -> Image.Image:
    return make_image(seed)[1].point([value * (grey > 127) for grey in range(256)])


@pytest.mark.parametrize(("n_classes", "values"), [(2, [255]), (3, [255, 128])])
def test_labels_among_compressed_masks_are_no_noise(tmp_path, n_classes: int, values: list[int]):
    drawn = [smooth(seed, values[seed % len(values)]) for seed in range(12)]
    for name, options in (("png", {}), ("jpg", {"quality": 80})):
        assert decide(written(tmp_path, drawn, name, **options), n_classes).values == (0, *sorted(values))
        labels = written(tmp_path, [labelled(seed, 1 + seed % (n_classes - 1)) for seed in range(3)])
        with pytest.raises(InputError, match=r"areas of their own: 1 .*, for example, contains the value 1\."):
            decide(written(tmp_path, drawn, name, **options) + labels, n_classes)


def test_compressed_masks_of_a_single_class(tmp_path):
    """In WebP a corner of a constant mask has another value."""
    masks = [smooth(0), *(Image.new("L", (160, 120), value) for value in (0, 255))]
    for quality in (60, 75):
        written_masks = written(tmp_path, masks, "webp", quality=quality)
        assert any(len(mask.values) > 1 for mask in written_masks[1:])
        assert decide(written_masks).values == (0, 255)


def test_one_mask_of_many_in_another_value(tmp_path):
    masks = written(tmp_path, [*(smooth(seed) for seed in range(40)), smooth(0, 100)])
    with pytest.raises(InputError, match=r"100 \(.*; 40\.png, for example, contains the value 100"):
        decide(masks)
    thin = [counted({0: 800, 255: 150}, {128: 60}) for _ in range(40)]  # few values, and thin ones of all the others
    with pytest.raises(InputError, match=r"100 \(.*; 40\.png, for example"):
        decide([*thin, counted({0: 900, 100: 100})])


@pytest.mark.parametrize("factor", [4, 8])
def test_smooth_edges_that_were_enlarged_to_small_areas(tmp_path, factor: int):
    small = [smooth(seed).resize((160 // factor, 120 // factor), Image.Resampling.BOX) for seed in range(12)]
    masks = [mask.resize((160, 120), Image.Resampling.NEAREST) for mask in small]
    assert decide(written(tmp_path, masks)).values == (0, 255)


# -- ignored pixels ----------------------------------------------------------------------------------------------------


def test_void_beside_labels_is_ignored():
    classes = decide([counted({0: 90, 1: 6, 255: 4})])
    assert (classes.values, classes.ignored) == ((0, 1), 255)
    assert classes.of(np.array([0, 1, 255])).tolist() == [0, 1, IGNORED_CLASS]
    classes = decide([counted({0: 90, 1: 6, 40: 4})], ignored=40)
    assert classes.of(np.array([0, 1, 40])).tolist() == [0, 1, IGNORED_CLASS]


def test_negative_values_are_ignored_at_most():
    masks = [counted({-1: 10, 0: 80, 1: 10})]
    assert decide(masks, ignored=-1).of(np.array([-1, 0, 1])).tolist() == [IGNORED_CLASS, 0, 1]
    assert decide(masks, expected=[0, 1], recorded=-1).of(np.array([-1, 0, 1])).tolist() == [IGNORED_CLASS, 0, 1]
    for options in ({}, {"values": [-1, 1]}, {"background": -1}):
        with pytest.raises(InputError, match="the mask value -1 is negative") as error:
            decide([counted({-1: 80, 1: 20})], **options)
        assert error.value.options == ("ignore_value",)


def test_values_that_no_file_can_hold():
    assert decide([counted({0: 80, 65535: 20})]).values == (0, 65535)
    assert decide([counted({0: 60, 255: 20, RED: 20})], 3).values == (0, 255, RED)
    with pytest.raises(InputError, match="the mask value 100000 is above 65535"):
        decide([counted({0: 80, 100_000: 20})])
    with pytest.raises(InputError, match="the mask value 65536 is above 65535"):
        decide([counted({0: 70, 7: 20, 65536: 10})], 3)
    with pytest.raises(InputError, match="the mask value 300 is above 255, which a grey value beside colours"):
        decide([counted({0: 60, 300: 20, RED: 20})], 3)


def test_255_is_an_object_unless_labels_lie_beside_it():
    with pytest.raises(InputError, match="area"):  # a set of two kinds of masks
        decide([counted({0: 90, 255: 10}), counted({0: 90, 255: 10}), counted({0: 90, 1: 10})])
    assert decide([counted({0: 700, 255: 290}, {1: 1})]).values == (0, 255)  # specks
    assert decide([counted({0: 90, 100: 6, 255: 4})], 3).values == (0, 100, 255)
    specks = decide([counted({0: 9900, 255: 9}, {1: 3})])  # of compression, beside a small lesion
    assert (specks.values, specks.ignored) == ((0, 255), None)
    vessels = decide([counted({0: 9000, 255: 900}, {1: 60})])
    assert (vessels.values, vessels.ignored) == ((0, 1), 255)


@pytest.mark.parametrize(("n_classes", "values"), [(3, [0, 1, 255]), (4, [0, 1, 3, 255]), (5, [0, 2, 255])])
def test_255_beside_some_of_the_labels_is_for_the_user_to_explain(n_classes: int, values: list[int]):
    masks = [counted({value: 100 - i for i, value in enumerate(values)})]
    with pytest.raises(InputError, match=r"of which 255 may be a class or mark pixels that do not count") as error:
        decide(masks, n_classes)
    assert error.value.options == ("mask_values", "ignore_value")
    labels = [*range(n_classes)]
    assert decide(masks, n_classes, values=labels, ignored=255).ignored == 255
    if len(values) == n_classes:
        assert decide(masks, n_classes, values=values).values == tuple(values)
        assert decide(masks, n_classes, loaded=MaskClasses(values)).values == tuple(values)


# -- palettes ----------------------------------------------------------------------------------------------------------


def palette_mask(colours: list[int], pixels: list[int]) -> ValueCounts:
    values = [PALETTE_OFFSET * (i + 1) + colour for i, colour in enumerate(colours)]
    return counted(dict(zip(values, pixels, strict=True)))


def test_equal_palettes_count_by_index():
    classes = decide([palette_mask([0, RED, GREEN], [60, 30, 10])] * 2, 3)
    assert (classes.values, classes.by_index) == ((0, 1, 2), True)


def test_colours_that_the_user_names_are_those_of_palettes():
    masks = [palette_mask([0, RED, GREEN], [60, 30, 10])] * 2
    assert decide(masks, 3, values=[GREEN, 0, RED]).values == (GREEN, 0, RED)
    assert decide(masks, 3, background=RED).values == (RED, 0, GREEN)
    classes = decide(masks, ignored=GREEN)
    assert (classes.values, classes.ignored) == ((0, RED), GREEN)
    assert decide(masks, 3, values=[0, 2, 1]).values == (0, 2, 1)  # their indices
    assert decide(masks, 3, loaded=MaskClasses((0, GREEN, RED))).values == (0, GREEN, RED)  # as for the loaded model
    classes = decide(masks, loaded=MaskClasses((0, RED), GREEN))
    assert (classes.values, classes.ignored) == ((0, RED), GREEN)


def test_void_of_a_palette_may_have_the_colour_of_the_background(log):
    void = PALETTE_OFFSET * 256  # black
    mask = counted({PALETTE_OFFSET: 60, 2 * PALETTE_OFFSET + RED: 20, 3 * PALETTE_OFFSET + GREEN: 10, void: 10})
    for ignored in (None, 255):
        classes = decide([mask] * 2, 3, ignored=ignored)
        assert (classes.values, classes.ignored, classes.by_index) == ((0, 1, 2), 255, True)
    assert "No mask" not in log.text
    decide([counted({0: 60, 255: 40})], ignored=7)
    assert "No mask has the value 7" in log.text


def test_colours_count_where_palettes_differ():
    masks = [palette_mask([0, RED], [70, 30]), palette_mask([RED, 0], [30, 70])]
    classes = decide(masks)
    assert classes.values == (0, RED)
    assert [classes.of(mask.values).tolist() for mask in masks] == [[0, 1], [1, 0]]
    assert decide([palette_mask([0, RED], [7, 3])], expected=[0, RED]).values == (0, RED)  # as the model has learnt


def test_colours_count_in_drawings():
    assert decide([palette_mask([GREEN, RED], [90, 10])] * 2).values == (GREEN, RED)
    assert decide([palette_mask([0, RED], [90, 10])] * 2).values == (0, 1)  # a label map: index 0 is black


def test_second_set_with_a_part_of_the_palette():
    """Its masks may show black and grey entries alone, which by themselves would be read as grey values."""
    first = decide([palette_mask([0, 128, RED], [60, 30, 10])], 3)
    assert (first.values, first.by_index) == ((0, 1, 2), True)
    part = palette_mask([0, 128], [70, 30])
    for expected in (first, MaskClasses(first.values)):  # in a training; of a model's file
        classes = decide_classes({"v.png": part}, 3, expected=expected)
        assert (classes.values, classes.of(part.values).tolist()) == ((0, 1, 2), [0, 1])
    assert decide([palette_mask([0, 128], [70, 30])], 3, expected=[0, 128, 255]).by_index is False
    assert decide([palette_mask([0, 255], [7, 3])], 3, expected=[0, 1, 2], recorded=255).values == (0, 1, 2)
    void = counted({PALETTE_OFFSET: 60, 2 * PALETTE_OFFSET + 128: 20, PALETTE_OFFSET * 256 + 192: 10})
    assert decide([void], 3, expected=[0, 1, 2], ignored=255).of(void.values).tolist() == [0, 1, IGNORED_CLASS]


def test_second_set_with_another_palette():
    """White at index 0, as in a drawing: of two classes the darker one is the background whatever the index."""
    drawn = palette_mask([255, 0], [3, 7])
    learnt = MaskClasses((0, 1), by_index=True)
    assert decide_classes({"v.png": drawn}, 2, expected=learnt).of(drawn.values).tolist() == [1, 0]
    masks = {"a.png": palette_mask([0, RED], [7, 3]), "b.png": palette_mask([RED, 0], [3, 7])}
    classes = decide_classes(masks, 2, expected=learnt)
    assert [classes.of(mask.values).tolist() for mask in masks.values()] == [[0, 1], [1, 0]]


def test_grey_palettes_are_grey_unless_labels_lie_beside_them():
    assert decide([palette_mask([0, 128, 255], [6, 3, 1])], 3).values == (0, 128, 255)
    assert decide([palette_mask([0, 255], [6, 3]), counted({0: 7, 1: 2})]).values == (0, 1)
    assert decide([palette_mask([0, 255], [6, 3]), counted({0: 7, 255: 2})]).values == (0, 255)


# -- what the user says, and what a model has learnt -------------------------------------------------------------------


def test_background(log):
    assert decide([counted({0: 3, 255: 7})]).values == (0, 255)
    assert log.messages[-1].startswith("Class 0, mask value 0, covers less than half of the pixels, 30 %")
    log.clear()
    assert decide([counted({0: 3, 255: 7})], background=255).values == (255, 0)
    assert len(log.messages) == 1
    with pytest.raises(InputError, match="none of the mask values 0, 255"):
        decide([counted({0: 3, 255: 7})], background=9)


def test_given_values():
    assert decide([counted({0: 9, 1: 1, 2: 1})], 3, values=[2, 0, 1]).values == (2, 0, 1)
    with pytest.raises(InputError, match="2 mask values were given for 3 classes"):
        decide([counted({0: 9, 1: 1, 2: 1})], 3, values=[0, 1])


def test_contradictory_options():
    masks = [counted({0: 9, 255: 1})]
    with pytest.raises(InputError, match="the mask value 0 was given for two classes"):
        decide(masks, values=[0, 0])
    for options in ({"values": [0, 255]}, {"background": 255}):
        with pytest.raises(InputError, match="the mask value 255 was given for a class and for pixels to ignore"):
            decide(masks, ignored=255, **options)


def test_255_that_the_user_says_is_a_class():
    """Beside labels it would be ignored, so that a class would never occur."""
    masks = [counted({0: 90, 1: 6, 255: 4})]
    assert decide(masks, values=[0, 1]).ignored == 255
    assert decide(masks, values=[0, 255], ignored=1).of(np.array([0, 1, 255])).tolist() == [0, IGNORED_CLASS, 1]
    with pytest.raises(InputError, match="contains the value 1"):
        decide(masks, values=[0, 255])


@pytest.mark.parametrize("expected", [[0, 255], [0, 1], [3, 200]])
def test_two_classes_are_two_classes(expected: list[int]):
    assert decide([counted({0: 9, 1: 1})], expected=expected).values == (0, 1)
    assert decide([counted({0: 9, 255: 1})], expected=expected).values == (0, 255)
    assert decide([counted({0: 9})], expected=expected).of(np.array([0])).tolist() == [0]  # no lesion anywhere
    assert decide([counted({1: 9})], expected=[0, 255]).of(np.array([1])).tolist() == [0]  # nor in a JPEG
    assert decide([counted({0: 9, 255: 1})], expected=[255, 0]).values == (255, 0)  # a white background


@pytest.mark.parametrize("background", [0, 1])
def test_object_of_255_that_a_model_ignores_is_reported(background: int, log):
    """Two values are background and lesion, whichever they are."""
    assert decide([counted({background: 9, 255: 1})], expected=[0, 1], recorded=255).values == (background, 255)
    (text,) = [record.getMessage() for record in log.records if record.levelno == logging.WARNING]
    assert text.startswith("The value 255, which the model ignores beside labels, is taken for lesion")
    log.clear()
    for areas, options in (({0: 9, 255: 1}, {"ignored": 255}), ({0: 9, 1: 1, 255: 1}, {}), ({0: 9}, {})):
        assert decide([counted(areas)], expected=[0, 1], recorded=255, **options).values == (0, 1)
    for expected in ([], [0, 1], [0, 255]):  # no value is known to be ignored
        assert decide([counted({background: 9, 255: 1})], expected=expected).values == (background, 255)
    assert not [record for record in log.records if record.levelno >= logging.WARNING]


def test_object_of_255_is_not_what_a_model_ignores():
    assert decide([counted({0: 9, 255: 1})], expected=[0, 1], recorded=255).ignored is None
    assert decide([counted({0: 9, 255: 1})], expected=[0, 1], recorded=255, ignored=255).ignored == 255  # a flag
    assert decide([counted({0: 9, 255: 1})], expected=[0, 1], ignored=255).of(np.array([0, 255])).tolist() == [0, 255]
    assert decide([counted({0: 9, 1: 1, 255: 1})], expected=[0, 1], recorded=255).ignored == 255
    assert decide([counted({0: 9, 1: 1, 255: 1})], expected=[0, 255]).ignored == 255  # though the model knows of none
    assert decide([counted({0: 9, 128: 1})], expected=[0, 255], recorded=128).ignored == 128  # no usual object
    assert decide([counted({128: 9})], expected=[0, 255], recorded=128).of(np.array([128])).tolist() == [255]


def test_masks_with_the_values_of_the_loaded_model_keep_its_classes():
    masks, loaded = [counted({0: 80, 1: 10, 2: 20})], MaskClasses([0, 2, 1])
    assert decide(masks, 3).values == (0, 1, 2)
    assert decide(masks, 3, loaded=loaded).values == (0, 2, 1)
    assert decide(masks, 3, loaded=loaded, values=[0, 1, 2]).values == (0, 1, 2)
    assert decide(masks, 3, loaded=loaded, background=2).values == (2, 0, 1)
    assert decide(masks, 3, loaded=MaskClasses([0, 5, 1])).values == (0, 1, 2)
    classes = decide([counted({0: 80, 255: 20})], loaded=MaskClasses([0, 1]))
    assert (classes.values, classes.ignored) == ((0, 255), None)


def test_masks_with_the_values_of_the_loaded_model_ignore_what_it_ignores():
    """The pixels of a thin border would otherwise be lesion or background, an area an error."""
    border = counted({0: 800, 255: 200}, thin={128: 14})
    loaded = MaskClasses([0, 255], ignored=128)
    for masks in ([border], [counted({0: 800, 255: 200, 128: 99})]):
        classes = decide(masks, loaded=loaded)
        assert (classes.values, classes.ignored) == ((0, 255), 128)
    assert decide([border]).ignored is None
    assert decide([border], loaded=loaded, ignored=7).ignored == 7  # a flag
    assert decide([counted({0: 80, 128: 20})], loaded=loaded).values == (0, 128)  # another object
    assert decide([counted({0: 80, 128: 20, 255: 9})], 3, loaded=loaded, values=[0, 128, 255]).ignored is None


def test_masks_without_some_of_the_classes_of_a_model():
    classes = decide([counted({0: 9, 2: 1})], 3, expected=[0, 1, 2])
    assert classes.of(np.array([0, 2])).tolist() == [0, 2]
    with pytest.raises(InputError, match=r"contains the value 9.*The 3 classes have the values 0, 1, 2"):
        decide([counted({0: 9, 9: 1})], 3, expected=[0, 1, 2])


def test_colours_in_messages():
    assert [format_mask_value(value) for value in (0, 255, 65535, RED)] == ["0", "255", "65535", "(255, 0, 0)"]
    with pytest.raises(InputError, match=r"\(255, 0, 0\)"):
        decide([counted({0: 5, 1: 5, RED: 1})])


@given(st.lists(st.integers(0, 65535), min_size=2, max_size=9, unique=True), st.integers(0, 99))
def test_classes_round_trip(values: list[int], seed: int):
    classes = np.random.default_rng(seed).permutation(len(values))
    assert MaskClasses(tuple(values)).of(np.array(values)[classes]).tolist() == classes.tolist()
