"""The images of an input folder, and where their results go."""

import json
from pathlib import Path

import pytest

from utils.data.images import IMAGE_EXTENSIONS
from utils.pipeline.items import find_items, sibling
from utils.pipeline.single_images import find_single_images
from utils.runtime.errors import InputError


def test_sub_folders(tmp_path: Path):
    for name in ("a.jpg", "s/a.jpg", "s/t/b.c.png", "out/old_OUT.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    out = tmp_path / "out"
    items = find_items(tmp_path, out, IMAGE_EXTENSIONS, recursive=True)
    outputs = [item.output(out).relative_to(out).as_posix() for item in items]
    assert outputs == ["a_OUT.png", "s/a_OUT.png", "s/t/b.c_OUT.png"]
    assert [item.key for item in items] == ["a.jpg", "s/a.jpg", "s/t/b.c.png"]
    assert [item.name.as_posix() for item in find_items(tmp_path, out, IMAGE_EXTENSIONS)] == ["a.jpg"]
    assert len(find_items(tmp_path / "s", tmp_path, IMAGE_EXTENSIONS, recursive=True)) == 2  # results above the images


def test_unusable_folders(tmp_path: Path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(InputError, match="is the input folder"):
        find_items(tmp_path, tmp_path / "." / "x" / "..", IMAGE_EXTENSIONS)
    with pytest.raises(InputError, match="is a file"):
        find_items(tmp_path, tmp_path / "a.jpg", IMAGE_EXTENSIONS)
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match=r"a\.jpg and a\.png would both"):
        find_items(tmp_path, tmp_path / "out", IMAGE_EXTENSIONS)
    assert len(find_items(tmp_path, tmp_path / "out", [".png"])) == 1


def test_no_image_outside_the_output_folder(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_OUT.png").touch()
    with pytest.raises(InputError, match="no image but results"):
        find_items(tmp_path, tmp_path / "out", IMAGE_EXTENSIONS, recursive=True)


def test_results_of_earlier_runs_are_no_images(tmp_path: Path):
    """Neither those beside their images, nor those in the output folder of another run within the input folder."""
    for name in (
        *("a.jpg", "a_OUT.png", "a_OUT_prob_c1.png", "a_OUT_OUT.png", "b_OUT.png", "a_OUTER.png"),
        *(
            "s/a_OUT.png",
            "s/a_OUT_entropy.png",
            "s/t/a.jpg",
            "s/review.html",
            "s/review_files/0/a.jpg",
            "u_files/a.jpg",
        ),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    finished = json.dumps({"row": {"image": "a.jpg"}, "files": ["a_OUT.png", "a_OUT_entropy.png"]})
    (tmp_path / "s" / ".progress-0.jsonl").write_text(f"{{}}\n{finished}\n{finished[:9]}")
    items = find_items(tmp_path, tmp_path / "tta", IMAGE_EXTENSIONS, recursive=True)
    assert {item.key for item in items} == {"a.jpg", "b_OUT.png", "a_OUTER.png", "s/t/a.jpg", "u_files/a.jpg"}
    images = find_single_images([tmp_path], output_dir=tmp_path / "uq")
    assert {item.key for item, _ in images} == {"a.jpg", "b_OUT.png", "a_OUTER.png"}
    assert find_single_images([tmp_path / "a_OUT.png"], output_dir=tmp_path / "uq")  # as it was asked for


def test_siblings_keep_other_dots():
    assert sibling(Path("s/b.c.png"), "_std.npy") == Path("s/b.c_std.npy")
