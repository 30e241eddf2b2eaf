"""CSV files that say which images belong together."""

import unicodedata
from pathlib import Path

import pytest

from utils.data.groups import count_named, groups_of, name_digests, names_digest, read_groups
from utils.runtime.errors import InputError

IMAGES = [Path("data/a/x.jpg"), Path("data/a/y.v2.png"), Path("data/b/x.jpg"), Path("data/b/ü.jpg")]


def written(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "groups.csv"
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    "text",
    [
        "image,group\na/x,1\ny.v2,2\nb/x.jpg,1\nü.jpg,3\n",
        "age,Group , IMAGE\r\n50, 1,a/x.jpg\r\n,2, a/y.v2.png\r\n\r\n60,1,data/b/x\r\n1,3,b/ü\r\n",
        "image;group\na\\x;1\ny.v2.png;2\nb\\x.jpg;1\nü;3",
        'image\tgroup\n"a/x"\t1\na/x\t1\ny.v2\t2\nb/x\t1\nü\t3',
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_groups(tmp_path: Path, text: str, encoding: str):
    groups = read_groups(written(tmp_path, text, encoding), IMAGES)
    assert groups == dict(zip(IMAGES, "1213", strict=True))


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ("a/x,1\ny.v2,1\nb/x,1", "ü.jpg: no group"),
        ("a/x,1\ny.v2,1\nb/x,1\nü,", "line 5: ü: no group"),
        ("a/x,1\ny.v2,1\nb/x,1\nü", "line 5: ü: no group"),
        ("x,1\ny.v2,1\nü,1", "line 2: x: several images have this name"),
        ("a/x,1\ny.v2,1\nb/x,1\nü,1\na/x.jpg,2", "line 6: a/x.jpg: in the groups 1 and 2"),
    ],
)
def test_problems(tmp_path: Path, rows: str, problem: str):
    with pytest.raises(InputError) as error:
        read_groups(written(tmp_path, f"image,group\n{rows}\n"), IMAGES)
    title, *problems = str(error.value).splitlines()
    assert title.endswith("does not have exactly one group for each of the 4 images:")
    assert problems == [f"  {problem}"]


def test_lines_of_other_images(tmp_path: Path):
    """Such as those that are skipped; a name with a mistake is listed beside the image that has no group then."""
    complete = "image,group\nz.jpg,1\na/x,1\ny.v2,1\nb/x,1\n"
    assert [*read_groups(written(tmp_path, complete + "ü,2"), IMAGES).values()] == ["1", "1", "1", "2"]
    title = "each of the 4 images, and 1 of its lines names none of them"
    with pytest.raises(InputError, match=rf"{title}:\n  ü.jpg: no group\n  line 2: z.jpg: no image has this name"):
        read_groups(written(tmp_path, complete), IMAGES)
    others = "".join(f"other{i},1\n" for i in range(20))
    with pytest.raises(InputError, match=r"20 of its lines name none of them:\n  ü.jpg: no group"):
        read_groups(written(tmp_path, "image,group\n" + others + "a/x,1\ny.v2,1\nb/x,1\n"), IMAGES)


def test_image_that_cannot_be_used_needs_no_group(tmp_path: Path):
    """Which is not known before it is decoded."""
    groups = read_groups(written(tmp_path, "image,group\nb/x,2\na/x,1\n"), IMAGES, skip_unusable=True)
    images = [image for image in IMAGES if image.stem == "x"]
    assert list(groups) == images
    assert groups_of(images[::-1], groups) == list(groups.values())[::-1]
    assert groups_of(images, None) is None
    with pytest.raises(InputError, match=r"2 of 4 images have no group:\n"):
        groups_of(IMAGES, groups)
    with pytest.raises(InputError, match=r"each of the 4 images, and 1 of its lines names none"):
        read_groups(written(tmp_path, "image,group\nz,1\n"), IMAGES, skip_unusable=True)


def test_ten_problems_are_listed(tmp_path: Path):
    images = [Path(f"{i:02d}.jpg") for i in range(25)]
    with pytest.raises(InputError) as error:
        read_groups(written(tmp_path, "image,group\n00,1\n"), images)
    lines = str(error.value).splitlines()
    assert (len(lines), lines[1], lines[-1]) == (12, "  01.jpg: no group", "  and 14 more")


def test_files_that_are_not_groups(tmp_path: Path):
    for content, message in (
        (b"", "has the columns of an empty file; expected image and group"),
        (b"lesion_id,image_id\n1,2\n", "has the columns lesion_id, image_id; expected image and group"),
        (b"\xff\xfe\x00image", "not a UTF-8 text"),
    ):
        (tmp_path / "groups.csv").write_bytes(content)
        with pytest.raises(InputError, match=message):
            read_groups(tmp_path / "groups.csv", IMAGES)
    with pytest.raises(InputError, match="No such file"):
        read_groups(tmp_path / "missing.csv", IMAGES)


@pytest.mark.parametrize("rows", ["x,1\n" * 50_000, "x,1\n", ""])
def test_open_quotation_mark(tmp_path: Path, rows: str):
    path = written(tmp_path, f'image,group\na/x,1\n"y.v2,1\n{rows}')
    with pytest.raises(InputError, match=r"groups\.csv, line 3: not a row of a CSV file"):
        read_groups(path, IMAGES)


def test_only_line_ends_end_a_row(tmp_path: Path):
    text = "image,group\na/x,left\vright\ny.v2,2\nb/x,\u2028 3\nü,a\u2029b\n"
    assert [*read_groups(written(tmp_path, text), IMAGES).values()] == ["left\vright", "2", "3", "a\u2029b"]


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC")])
def test_letters_in_either_form_of_unicode(tmp_path: Path, forms: tuple[str, str]):
    """As after copying a folder from macOS."""
    name, row = (unicodedata.normalize(form, "ü") for form in forms)
    images = [Path(f"data/{name}/{name}.jpg"), Path("data/x.jpg")]
    groups = read_groups(written(tmp_path, f"image,group\n{row}/{row}.jpg,1\nx,2\n"), images)
    assert groups == dict(zip(images, "12", strict=True))


def test_names_of_single_images():
    """In another format, or with the other form of a letter, an image is the same, but not in another folder."""
    names = ("a.jpg", "sub/M\u00e4rz.jpg", "b.jpg", "other/a.jpg")
    recorded = set().union(*name_digests([Path("x", name) for name in names[:2]], Path("x")))
    others = ("a.png", f"sub/{unicodedata.normalize('NFD', names[1][4:-4])}.tif", "b.jpg", "other/a.jpg")
    found = [count_named([one], recorded) for one in name_digests([Path("y", name) for name in others], Path("y"))]
    assert found == [1, 1, 0, 0]


def test_digest():
    moved = [Path("elsewhere", *image.parts[1:]) for image in IMAGES]
    assert names_digest(IMAGES, Path("data")) == names_digest(moved, Path("elsewhere"))
    assert names_digest(IMAGES, Path("data")) != names_digest(IMAGES[::-1], Path("data"))
    assert names_digest(IMAGES, Path("data")) != names_digest([Path("data/a/z.jpg"), *IMAGES[1:]], Path("data"))
