"""The layouts of public data sets: the table of data/README.md, on small imitations of what is unpacked."""

import re
import shlex
from pathlib import Path

import pytest
from PIL import Image

import predict
import train_bayesian
from tests.conftest import ROOT
from utils import cli
from utils.data.pairing import find_masks, pair_files

README = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
TABLE = dict(re.findall(r"^\| (.*?) \| `(--imgs-dir .*)` \|$", README, flags=re.MULTILINE))


def numbered(image: str, mask: str, *numbers: object) -> dict[str, list[str]]:
    """Images and the mask of each, of these numbers in place of `{}`."""
    return {image.format(*[number] * 3): [mask.format(*[number] * 3)] for number in numbers}


BUSI, PH2 = "Dataset_BUSI_with_GT", "PH2 Dataset images"
ISIC = ("0000000", "0000001", "0012345")
HAM10000_MASK = "HAM10000/HAM10000_segmentations_lesion_tschandl/ISIC_{}_segmentation.png"

# The images of each data set with their masks.
LAYOUTS = {
    "ISIC 2016": numbered(
        "ISBI2016_ISIC_Part1_Training_Data/ISIC_{}.jpg",
        "ISBI2016_ISIC_Part1_Training_GroundTruth/ISIC_{}_Segmentation.png",
        *ISIC,
    ),
    "ISIC 2016, part 3B": numbered(
        "ISBI2016_ISIC_Part3B_Training_Data/ISIC_{}.jpg",
        "ISBI2016_ISIC_Part3B_Training_Data/ISIC_{}_Segmentation.png",
        *ISIC,
    ),
    "ISIC 2017": numbered(
        "ISIC-2017_Training_Data/ISIC_{}.jpg",
        "ISIC-2017_Training_Part1_GroundTruth/ISIC_{}_segmentation.png",
        *ISIC,
    ),
    "ISIC 2018": numbered(
        "ISIC2018_Task1-2_Training_Input/ISIC_{}.jpg",
        "ISIC2018_Task1_Training_GroundTruth/ISIC_{}_segmentation.png",
        *ISIC,
    ),
    "HAM10000": {
        **numbered("HAM10000/HAM10000_images_part_1/ISIC_{}.jpg", HAM10000_MASK, "0024306", "0024307"),
        **numbered("HAM10000/HAM10000_images_part_2/ISIC_{}.jpg", HAM10000_MASK, "0029306"),
    },
    "PH2": numbered(
        PH2 + "/IMD{}/IMD{}_Dermoscopic_Image/IMD{}.bmp", PH2 + "/IMD{}/IMD{}_lesion/IMD{}_lesion.bmp", "002", "003"
    ),
    "Kvasir-SEG": numbered("Kvasir-SEG/images/cju{}.jpg", "Kvasir-SEG/masks/cju{}.jpg", "0qk", "0qo", "1b0"),
    "DRIVE": numbered("DRIVE/training/images/{}_training.tif", "DRIVE/training/1st_manual/{}_manual1.gif", 21, 22, 23),
    "BUSI": {
        **numbered(BUSI + "/benign/benign ({}).png", BUSI + "/benign/benign ({})_mask.png", 1),
        f"{BUSI}/benign/benign (10).png": [f"{BUSI}/benign/benign (10)_mask{end}.png" for end in ("", "_1")],
        **numbered(BUSI + "/normal/normal ({}).png", BUSI + "/normal/normal ({})_mask.png", 1, 10),
    },
    "Carvana": numbered("train/0cdf5b5d0ce1_{}.jpg", "train_masks/0cdf5b5d0ce1_{}_mask.gif", "01", "02", "16"),
    "nnU-Net (PNG or TIFF)": numbered(
        "Dataset001_NAME/imagesTr/case_{}_0000.png", "Dataset001_NAME/labelsTr/case_{}.png", "000", "001", "010"
    ),
}

# The other files: superpixels, masks of other images, what else is annotated, what is outside of the lens.
OTHERS = {
    "ISIC 2017": [f"ISIC-2017_Training_Data/ISIC_{number}_superpixels.png" for number in ISIC],
    "HAM10000": [HAM10000_MASK.format("0034320")],
    "PH2": [f"{PH2}/IMD003/IMD003_roi/IMD003_R{i}_Label{i}.bmp" for i in (1, 3)],
    "DRIVE": [f"DRIVE/training/mask/{i}_training_mask.gif" for i in (21, 22, 23)],
}


def test_every_row_has_a_layout():
    assert TABLE.keys() == LAYOUTS.keys()


@pytest.mark.parametrize("name", TABLE)
def test_rows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pairs = LAYOUTS[name]
    monkeypatch.chdir(tmp_path)
    for path in map(Path, [*pairs, *OTHERS.get(name, []), *(mask for masks in pairs.values() for mask in masks)]):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(path)
    flags = shlex.split(TABLE[name])

    # Training
    args = train_bayesian.get_args_parser().parse_args(flags)
    found = pair_files(args.imgs_dir, args.masks_dir, cli.pairing_options(args))
    expected = {Path(image): [Path(mask) for mask in masks] for image, masks in pairs.items()}
    assert {pair.image: list(pair.masks) for pair in found} == expected

    # Prediction
    names = {"--imgs-dir": "--input-dir", "--masks-dir": "--mask-dir"}
    flags = [names.get(flag, flag) for flag in flags] + ["--output-dir", "out"]
    args = predict.get_args_parser().parse_args(flags)
    images = {item.name: item.path for item in cli.items_from_args(args)}
    assert sorted(images.values()) == sorted(expected)
    masks = find_masks(images, args.mask_dir, args.mask_suffix)
    assert {images[image]: list(paths) for image, paths in masks.items()} == expected
