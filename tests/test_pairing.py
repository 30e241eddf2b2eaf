"""Which mask belongs to which image."""

from pathlib import Path, PurePath

import pytest
from PIL import Image

from utils.data.pairing import find_masks, pair_files
from utils.runtime.errors import InputError


def save_blank(folder: Path, *names: str) -> Path:
    """Save blank images of 4 x 4 pixels."""
    folder.mkdir(exist_ok=True)
    for name in names:
        Image.new("L", (4, 4)).save(folder / name)
    return folder


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


def test_one_error_lists_all_problems(tmp_path: Path):
    imgs = save_blank(tmp_path / "i", "alone.jpg", "twice.jpg", "twice.png", "two_masks.jpg", "good.jpg", "small.jpg")
    mask_names = ("unknown.png", "twice.png", "two_masks.png", "two_masks_Segmentation.png", "good.png")
    masks = save_blank(tmp_path / "m", *mask_names)
    Image.new("L", (5, 5)).save(masks / "small.gif")
    with pytest.raises(InputError) as error:
        pair_files(imgs, masks)
    message = str(error.value)
    for problem in ("alone.jpg: no mask", "twice: 2 images", "two_masks: 2 masks", "unknown.png: no image"):
        assert problem in message
    assert "good" not in message
    assert "small.jpg has 4x4 pixels, its mask small.gif has 5x5" in message


def test_masks_in_sub_folders(tmp_path: Path):
    save_blank(tmp_path, "a_Segmentation.png", "unused.png")
    save_blank(tmp_path / "s", "a.png")
    names = [PurePath("a.jpg"), PurePath("s/a.jpg")]
    assert find_masks(names, tmp_path) == {
        names[0]: tmp_path / "a_Segmentation.png",
        names[1]: tmp_path / "s" / "a.png",
    }
    with pytest.raises(InputError, match=r"b\.jpg: no mask\n  nowhere/c\.jpg: no mask"):
        find_masks([PurePath("b.jpg"), PurePath("nowhere/c.jpg")], tmp_path)
    with pytest.raises(InputError, match="no such folder of masks"):
        find_masks(names, tmp_path / "nowhere")
    save_blank(tmp_path, "x.png", "x_segmentation.png")
    masks = find_masks([PurePath("x.jpg"), PurePath("x_segmentation.jpg")], tmp_path)
    assert [path.name for path in masks.values()] == ["x.png", "x_segmentation.png"]
