"""Which mask belongs to which image (test_datasets.py: the layouts of public data sets)."""

import logging
import unicodedata
from pathlib import Path, PurePath

import pytest
from PIL import Image

from utils.data.pairing import Pair, PairingOptions, find_masks, match_names, pair_files, without_masks
from utils.runtime.errors import InputError


def save_blank(folder: Path, *names: str) -> Path:
    """Save blank images of 4 x 4 pixels."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(folder / name)
    return folder


def matched(images: str, masks: str, mask_suffix: str | None = None, shared: bool = False) -> dict[str, str]:
    """`match_names` of names that are separated by spaces; in one folder all of them are images at first."""
    both = {PurePath(name): PurePath(name) for name in masks.split()} if shared else None
    matches = match_names(*([PurePath(n) for n in names.split()] for names in (images, masks)), mask_suffix, both)
    return {str(image): " ".join(map(str, found)) for image, found in matches.masks.items()}


def names_of(folder: Path, *names: str) -> dict[PurePath, Path]:
    return {PurePath(name): folder / name for name in names}


def test_pairs_by_stem(tmp_path: Path):
    imgs = save_blank(tmp_path / "i", "a.jpg", "b.png", "c.d.tif", "e_segmentation.jpg", "e.jpg")
    mask_names = ("a.png", "b_Segmentation.png", "c.d_segmentation.png", "e_segmentation.png", "e.bmp")
    masks = save_blank(tmp_path / "m", *mask_names)
    (imgs / "Thumbs.db").touch()
    (masks / ".a.png").touch()
    (imgs / "sub").mkdir()
    names = [(pair.image.name, pair.mask.name) for pair in pair_files(imgs, masks)]
    assert names == [
        ("a.jpg", "a.png"),
        ("b.png", "b_Segmentation.png"),
        ("c.d.tif", "c.d_segmentation.png"),
        ("e.jpg", "e.bmp"),
        ("e_segmentation.jpg", "e_segmentation.png"),
    ]


@pytest.mark.parametrize(
    ("images", "masks", "expected"),
    [
        ("a.jpg", "a_Mask.gif", {"a.jpg": "a_Mask.gif"}),
        ("a.jpg b.jpg", "a_LESION.bmp b_lesion.bmp", {"a.jpg": "a_LESION.bmp", "b.jpg": "b_lesion.bmp"}),
        ("21_training.tif", "21_manual1.gif", {"21_training.tif": "21_manual1.gif"}),
        ("01_test.tif", "01_manual1.gif 01_manual2.gif", {"01_test.tif": "01_manual1.gif"}),
        ("c_001_0000.png", "c_001.png", {"c_001_0000.png": "c_001.png"}),
        ("a.png b.png", "a_seg.png a_gt.png b_gt.png", {"a.png": "a_gt.png", "b.png": "b_gt.png"}),  # most of them
        ("a.png", "a_mask.png a_mask_1.png a_mask_2.png", {"a.png": "a_mask.png a_mask_1.png a_mask_2.png"}),
        ("a.jpg a_mask.jpg", "a.png a_mask.png", {"a.jpg": "a.png", "a_mask.jpg": "a_mask.png"}),
        ("a.jpg", "a_mask.gif a_mask.png", {}),  # not numbered: either may be meant
        ("a.jpg a.png", "a.gif", {}),
        ("a.jpg", "A.png", {}),
    ],
)
def test_names(images: str, masks: str, expected: dict[str, str]):
    assert matched(images, masks) == expected


def test_given_suffix():
    assert matched("a.jpg", "a_mask.png a-roi.png", "-ROI") == {"a.jpg": "a-roi.png"}
    assert matched("a.jpg", "a_mask.png a.png", "") == {"a.jpg": "a.png"}
    assert matched("a.jpg", "a_mask.png", "_seg") == {}


def test_unicode_forms():
    composed, decomposed = (unicodedata.normalize(form, "Läsion_ガ") for form in ("NFC", "NFD"))
    assert composed != decomposed
    assert matched(f"{composed}.jpg", f"{decomposed}_mask.png") == {f"{composed}.jpg": f"{decomposed}_mask.png"}


@pytest.mark.parametrize(
    ("images", "masks", "expected"),
    [
        ("s/a.jpg t/b.jpg", "a.png b.png", {"s/a.jpg": "a.png", "t/b.jpg": "b.png"}),  # one flat folder
        ("s/a.jpg t/a.jpg", "s/a.png t/a.png", {"s/a.jpg": "s/a.png", "t/a.jpg": "t/a.png"}),
        ("a.jpg s/a.jpg", "a.png", {"a.jpg": "a.png"}),  # it is not the mask of both
        ("s/a.jpg t/a.jpg", "a.png", {}),
        ("a.jpg s/a.jpg", "s/a.png s/old/a.png", {"s/a.jpg": "s/a.png"}),  # what is left there is nobody's
        ("a.jpg s/a.jpg", "a_mask.png s/a.png", {"a.jpg": "a_mask.png", "s/a.jpg": "s/a.png"}),
        ("p1/i/a.jpg p2/i/a.jpg", "p1/m/a.png p2/m/a.png", {"p1/i/a.jpg": "p1/m/a.png", "p2/i/a.jpg": "p2/m/a.png"}),
    ],
)
def test_sub_folders(images: str, masks: str, expected: dict[str, str]):
    assert matched(images, masks) == expected


def test_images_and_masks_in_one_folder(tmp_path: Path):
    names = ["b (1).png", "b (1)_mask.png", "b (1)_mask_1.png", "b (10).png", "b (10)_mask.png", "b (1)_R1_Label5.png"]
    folder = save_blank(tmp_path / "d", *names)
    pairs = pair_files(folder, folder)
    assert [(pair.image.name, *(mask.name for mask in pair.masks)) for pair in pairs] == [
        tuple(names[:3]),
        (*names[3:5],),
    ]
    paths = [folder / name for name in names]
    assert without_masks(paths, folder, folder) == [folder / "b (1).png", folder / "b (10).png"]
    assert without_masks(paths, folder, tmp_path / "elsewhere") == paths
    save_blank(folder, "b (2).png")  # without a mask
    with pytest.raises(InputError, match=r"1 of 3 images .* have no mask .*\n  b \(2\)\.png: no mask"):
        pair_files(folder, folder)
    # Of the same stem, told apart by their file extensions
    both = save_blank(tmp_path / "e", "a.jpg", "a.png", "c.jpg", "c.png")
    pairs = pair_files(both, both, PairingOptions(extensions=[".jpg"]))
    assert [(pair.image.name, pair.mask.name) for pair in pairs] == [("a.jpg", "a.png"), ("c.jpg", "c.png")]
    with pytest.raises(InputError, match=r"their file extension alone \(a\.jpg, a\.png, \.\.\.\): choose") as error:
        pair_files(both, both)
    assert error.value.options == ("ext",)


def test_predictions_below_the_masks_are_none(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Such as those of predict_bayesian.py, which have the names of the images; the folder itself was named."""
    folder = save_blank(tmp_path / "d", "s/a.jpg", "s/a_mask.png", "s/uq/a.png", "s/uq/a_prob.png")
    (folder / "s" / "uq" / ".progress-0.jsonl").write_text('{"files": ["a.png", "a_prob.png"]}\n')
    save_blank(folder, "s/uq/review_files/0/00000_0.jpg")  # a picture of a review page
    (folder / "s" / "uq" / "review.html").touch()
    caplog.set_level(logging.INFO)
    image = folder / "s" / "a.jpg"
    images = {PurePath("s/a.jpg"): image}
    assert pair_files(folder, folder, PairingOptions(recursive=True)) == [Pair(image, (folder / "s" / "a_mask.png",))]
    assert "Ignoring results of predictions" in caplog.text
    assert "other mask" not in caplog.text
    save_blank(folder, "s/uq/b.jpg", "b_mask.png")  # an image
    assert len(pair_files(folder, folder, PairingOptions(recursive=True))) == 2
    assert find_masks(images, folder) == {PurePath("s/a.jpg"): (folder / "s" / "a_mask.png",)}
    assert find_masks(images, folder / "s" / "uq") == {PurePath("s/a.jpg"): (folder / "s" / "uq" / "a.png",)}


@pytest.mark.parametrize(
    ("imgs", "masks", "mask"), [("d", "d/masks", "a.png"), ("d/images", "d", "a.png"), ("d", "d", "a_mask.png")]
)
def test_a_folder_within_the_other(tmp_path: Path, imgs: str, masks: str, mask: str):
    save_blank(tmp_path / "d", "images/a.png", f"masks/{mask}")
    (pair,) = pair_files(tmp_path / imgs, tmp_path / masks, PairingOptions(recursive=True))
    assert (pair.image, pair.mask) == (tmp_path / "d/images/a.png", tmp_path / "d/masks" / mask)


def test_images_without_masks(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    imgs = save_blank(tmp_path / "i", "good.jpg", *(f"x{i:02d}.jpg" for i in range(13)))
    masks = save_blank(tmp_path / "m", "good_gt.png", "unknown_gt.png", "other_gt.png")
    with pytest.raises(InputError) as error:
        pair_files(imgs, masks)
    assert str(error.value).startswith("13 of 14 images in ")
    assert [line.strip() for line in str(error.value).splitlines()[1:]] == [
        *(f"x{i:02d}.jpg: no mask" for i in range(10)),
        "and 3 more",
    ]
    assert "1 of 14 images have a mask" in caplog.text
    assert "NAME_gt for NAME (1)" in caplog.text
    assert f"2 other masks in {masks} belong to none of these images" in caplog.text  # no error
    (masks / "other_gt.png").unlink()
    find_masks({Path("good.jpg"): imgs / "good.jpg"}, masks)
    assert f"1 other mask in {masks} belongs to none of these images" in caplog.text
    save_blank(masks, "other_gt.png")
    (pair,) = pair_files(imgs, masks, PairingOptions(skip_unusable=True))
    assert pair.image.name == "good.jpg"
    assert "13 of 14" in caplog.text
    save_blank(masks, "x00_gt.png", "x00_gt.bmp", "x01_gt.png")
    save_blank(imgs, "x01.png")
    with pytest.raises(InputError) as error:
        pair_files(imgs, masks)
    assert "x00.jpg: 2 masks (x00_gt.bmp, x00_gt.png)" in str(error.value)
    assert "x01_gt.png: 2 images (x01.jpg, x01.png)" in str(error.value)


def test_nothing_fits(tmp_path: Path):
    imgs, masks = save_blank(tmp_path / "i", "a.jpg", "b.jpg", "c.jpg"), save_blank(tmp_path / "m", "mask_a.png")
    with pytest.raises(InputError, match=r"the images are a\.jpg, b\.jpg, \.\.\., the masks mask_a\.png, .*NAME_mask"):
        pair_files(imgs, masks)
    with pytest.raises(InputError, match="that suffix"):
        pair_files(imgs, masks, PairingOptions("_x", skip_unusable=True))


def test_sub_folders_only_if_recursive(tmp_path: Path):
    imgs, masks = save_blank(tmp_path / "i", "a.jpg", "s/b.jpg"), save_blank(tmp_path / "m", "a.png", "b.png")
    assert len(pair_files(imgs, masks)) == 1
    assert len(pair_files(imgs, masks, PairingOptions(recursive=True))) == 2


def test_masks_of_given_images(tmp_path: Path):
    save_blank(tmp_path, "a_Segmentation.png", "unused.png", "s/a.png")
    images = names_of(tmp_path / "i", "a.jpg", "s/a.jpg", "nowhere/c.jpg")
    assert find_masks(images, tmp_path) == {
        PurePath("a.jpg"): (tmp_path / "a_Segmentation.png",),
        PurePath("s/a.jpg"): (tmp_path / "s" / "a.png",),
    }
    with pytest.raises(InputError, match="no image has a mask"):
        find_masks(names_of(tmp_path, "b.jpg"), tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        find_masks(images, tmp_path / "nowhere")
    save_blank(tmp_path, "x.png", "x_segmentation.png", "y.png", "y.bmp")
    masks = find_masks(names_of(tmp_path / "i", "x.jpg", "x_segmentation.jpg"), tmp_path)
    assert [path.name for (path,) in masks.values()] == ["x.png", "x_segmentation.png"]
    with pytest.raises(InputError, match="2 masks"):
        find_masks(names_of(tmp_path / "i", "x.jpg", "y.jpg"), tmp_path)
