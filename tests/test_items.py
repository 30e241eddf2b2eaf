"""The images of an input folder, and where their results go."""

import errno
from pathlib import Path

import pytest

from utils.data.images import IMAGE_EXTENSIONS
from utils.pipeline import items
from utils.pipeline.items import check_output_folders, check_replaced, find_images, find_items, sibling
from utils.pipeline.single_images import find_single_images
from utils.pipeline.summary import SUMMARY_COLUMNS
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


def test_single_images_of_a_folder_require_an_output_folder(tmp_path: Path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(InputError, match="requires an output folder"):
        find_single_images([tmp_path])


def test_no_image_outside_the_output_folder(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_OUT.png").touch()
    with pytest.raises(InputError, match="only results of predictions"):
        find_items(tmp_path, tmp_path / "out", IMAGE_EXTENSIONS, recursive=True)


def touch(folder: Path, *names: str) -> list[Path]:
    paths = [folder / name for name in names]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return paths


def test_results_of_earlier_runs_are_no_images(tmp_path: Path):
    """Neither those beside their images, nor those in the output folder of another run within the input folder."""
    touch(tmp_path, "a.jpg", "a_OUT.png", "a_OUT_prob_c1.png", "a_OUT_OUT.png", "b_OUT.png", "a_OUTER.png")
    touch(tmp_path, "s/a.png", "s/all.png", "s/t/a.jpg", "s/t/c_OUT.png", "s/t/c_OUT_figure.png")
    touch(tmp_path, "s/review.html", "s/review_files/0/a.jpg", "u_files/a.jpg")
    (tmp_path / "s" / ".progress-0.jsonl").write_text('{}\n{"files": ["a.png"]}\n{"files": ["all.png"]}\n')
    items = find_items(tmp_path, tmp_path / "tta", IMAGE_EXTENSIONS, recursive=True)
    assert {item.key for item in items} == {"a.jpg", "b_OUT.png", "a_OUTER.png", "s/t/a.jpg", "u_files/a.jpg"}
    images = find_single_images([tmp_path], output_dir=tmp_path / "uq")
    assert {item.key for item, _ in images} == {"a.jpg", "b_OUT.png", "a_OUTER.png"}
    assert find_single_images([tmp_path / "a_OUT.png"], output_dir=tmp_path / "uq")  # as it was asked for
    with pytest.raises(InputError, match="s contains only results of predictions, such as"):
        find_images(tmp_path / "s")


def test_images_in_an_output_folder(tmp_path: Path):
    """They were there before the run, or were added."""
    touch(tmp_path, "a.jpg", "s/b.jpg", "s/c.png", "s/x.png", "s/a_OUT.png", "s/a_OUT_entropy.PNG")
    (tmp_path / "s" / ".progress-0.jsonl").write_text('{"files": ["x.png"]}\n{"files": ["a_OUT.p')
    expected = ["a.jpg", "s/b.jpg", "s/c.png"]
    assert [item.key for item in find_items(tmp_path, tmp_path / "out", IMAGE_EXTENSIONS, True)] == expected
    assert {path.name for path in find_images(tmp_path / "s")} >= {"b.jpg", "c.png"}
    touch(tmp_path, "t/deep/d.jpg")
    for folder, name in (("s", r"s/(b\.jpg|c\.png)"), ("t", r"t/deep/d\.jpg")):  # they would be left out without a word
        with pytest.raises(InputError, match=f"the output folder .*{folder} contains .*{name}, which is no result"):
            find_items(tmp_path, tmp_path / folder, IMAGE_EXTENSIONS, True)


def test_figures_in_an_output_folder_are_no_images(tmp_path: Path):
    touch(tmp_path, "a.jpg", "shift.png", "out/passes.png", "out/s/UQ_compare.png", "other/shift.png")
    items = find_items(tmp_path, tmp_path / "out", IMAGE_EXTENSIONS, recursive=True)
    assert [item.key for item in items] == ["a.jpg", "other/shift.png", "shift.png"]


def test_results_are_not_written_among_images_or_masks(tmp_path: Path):
    imgs, masks = tmp_path / "imgs", tmp_path / "masks"
    image, mask, *_ = touch(tmp_path, "imgs/a.jpg", "masks/a.png", "out/imgs/b.jpg", "out/imgs/imgs/a.jpg")
    with pytest.raises(InputError, match="is the mask folder"):
        find_items(imgs, masks, IMAGE_EXTENSIONS, mask_dir=masks)
    for folder in ("masks", "masks/s"):  # the image and its mask are in sub-folders
        touch(tmp_path, "deep/s/a.jpg", "deep_masks/s/a.png")
        with pytest.raises(InputError, match="is the mask folder"):
            find_items(tmp_path / "deep", tmp_path / f"deep_{folder}", IMAGE_EXTENSIONS, True, tmp_path / "deep_masks")
    with pytest.raises(InputError, match=r"is the input folder, .*imgs: "):
        find_items(tmp_path / "out" / "imgs", tmp_path / "out", IMAGE_EXTENSIONS, recursive=True)
    for inputs in ([image], [imgs]):
        with pytest.raises(InputError, match="is the input folder"):
            find_single_images(inputs, output_dir=imgs)
        with pytest.raises(InputError, match="is the mask folder"):
            find_single_images(inputs, output_dir=masks, masks=(masks, None))
    for other in (mask, masks / "a_outer.png"):
        with pytest.raises(InputError, match=f"would overwrite {other}"):
            check_replaced([masks / "a.png"], [other])
    check_replaced([masks / "a.png"], [masks / "a_mask.png", imgs / "a.png"])
    touch(imgs, "a_OUT.png", "a_OUT_prob.png")  # by default, results are beside an image, and replaced
    assert find_single_images([image], masks=(imgs, None))


def test_names_of_one_file_where_case_makes_no_difference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    imgs = tmp_path / "imgs"
    photo, *_ = touch(tmp_path, "imgs/a.png", "imgs/A.jpg")
    monkeypatch.setattr(items, "_IGNORES_CASE", False)
    others = {"output_dir": tmp_path / "IMGS"}, {"outputs": [imgs / "A.png"]}, {"outputs": [imgs / "A.PNG"]}
    for other in others:
        assert find_single_images([photo], **other)
    assert len(find_items(imgs, tmp_path / "out", ("png", "jpg"))) == 2
    monkeypatch.setattr(items, "_IGNORES_CASE", True)
    for other in others:
        with pytest.raises(InputError, match=r"is the input folder|would overwrite"):
            find_single_images([photo], **other)
    with pytest.raises(InputError, match="is the mask folder"):
        check_output_folders([tmp_path / "MASKS"], [photo], tmp_path / "masks")
    with pytest.raises(InputError, match=r"A\.jpg and a\.png would both be written to"):
        find_items(imgs, tmp_path / "out", ("png", "jpg"))
    with pytest.raises(InputError, match="two images would have the same mask file"):
        find_single_images([imgs], output_dir=tmp_path / "out")


def test_a_summary_beside_the_images_that_another_program_has_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (photo,) = touch(tmp_path, "a.png")
    (tmp_path / "summary.csv").write_text(",".join(SUMMARY_COLUMNS) + "\n")

    def refuse(path: Path, target: Path) -> None:
        raise PermissionError(errno.EACCES, "it is open")

    assert find_single_images([photo])
    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(InputError, match=r"summary\.csv cannot be replaced \(it is open\)"):
        find_single_images([photo])


def test_siblings_keep_other_dots():
    assert sibling(Path("s/b.c.png"), "_std.npy") == Path("s/b.c_std.npy")
