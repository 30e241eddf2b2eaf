"""The journal of finished images: what a resumed run skips, and what it does again."""

import logging
import os
from pathlib import Path, PurePath
from types import SimpleNamespace

import pytest

from utils.pipeline.items import Item
from utils.pipeline.journal import Entry, Journal, SharedJournal, read_entries
from utils.pipeline.summary import read_summary
from utils.runtime.errors import InputError
from utils.runtime.output_folder import recorded_results

SETTINGS = {"passes": 3, "threshold": 0.5}
SCORES = {"area": 5, "soft_dice_confidence": 0.9}


@pytest.fixture
def items(tmp_path: Path) -> list[Item]:
    """Three images."""
    found = []
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_text(name)
        found.append(Item(tmp_path / name, PurePath(name)))
    return found


@pytest.fixture
def out(tmp_path: Path, items: list[Item]) -> Path:
    """The output folder of a run that has finished the first two images."""
    folder = tmp_path / "out"
    folder.mkdir()
    journal = Journal(folder, SETTINGS, items, resume=False)
    for item, packed in ((items[0], b"\0counts"), (items[1], None)):
        item.output(folder).touch()
        journal.add({"image": item.key, **SCORES}, [item.output(folder)], packed)
    return folder


def finished(out: Path, items: list[Item], settings: dict = SETTINGS) -> list[str]:
    return sorted(Journal(out, settings, items, resume=True).rows)


def test_resume(out: Path, items: list[Item]):
    journal = Journal(out, SETTINGS, items, resume=True)
    assert journal.rows == {name: {"image": name, **SCORES} for name in ("a.jpg", "b.jpg")}
    assert journal.packed == {"a.jpg": b"\0counts"}
    items[2].output(out).touch()
    journal.add({"image": "c.jpg", **SCORES}, [items[2].output(out)], None)
    assert finished(out, items) == ["a.jpg", "b.jpg", "c.jpg"]


def test_without_resume_it_starts_anew(out: Path, items: list[Item]):
    assert not Journal(out, SETTINGS, items, resume=False).rows
    assert finished(out, items) == []


def test_metrics_of_an_earlier_run_end_when_one_of_its_results_is_replaced(out: Path, items: list[Item]):
    """Not before, and those of others stay, such as of a training."""
    training = "epoch,train_loss\n1,0.5\n"
    for name, content in (("metrics.json", '{"run": {}}'), ("metrics.csv", training)):
        (out / name).write_text(content)
    journal = Journal(out, {"passes": 1}, items, resume=False)
    assert (out / "metrics.json").exists()
    journal.add({"image": "c.jpg", **SCORES}, [items[2].output(out)], None)
    assert (out / "metrics.json").exists()
    journal.add({"image": "a.jpg", **SCORES}, [items[0].output(out)], None)
    assert not (out / "metrics.json").exists()
    assert (out / "metrics.csv").read_text() == training


def test_changed_image_and_missing_result(out: Path, items: list[Item]):
    os.utime(items[0].path, (1, 1))
    assert finished(out, items) == ["b.jpg"]
    items[1].output(out).unlink()
    assert finished(out, items) == []


def test_changed_mask(out: Path, items: list[Item]):
    masks = [item.path.with_suffix(".png") for item in items]
    for path in masks:
        path.touch()
    ground_truth = SimpleNamespace(paths={item.name: [path] for item, path in zip(items, masks, strict=True)})

    def done() -> list[str]:
        return sorted(Journal(out, SETTINGS, items, True, ground_truth).rows)

    assert done() == []  # the masks are new
    journal = Journal(out, SETTINGS, items, False, ground_truth)
    for item in items[:2]:
        journal.add({"image": item.key, **SCORES}, [item.output(out)], None)
    assert done() == ["a.jpg", "b.jpg"]
    os.utime(masks[1], (1, 1))
    assert done() == ["a.jpg"]


def test_line_that_was_cut_off(out: Path, items: list[Item]):
    (path,) = out.glob(".progress-*")
    path.write_bytes(path.read_bytes()[:-20])
    journal = Journal(out, SETTINGS, items, resume=True)
    assert sorted(journal.rows) == ["a.jpg"]
    journal.add({"image": "b.jpg", **SCORES}, [items[1].output(out)], None)
    assert finished(out, items) == ["a.jpg", "b.jpg"]


def test_lines_of_another_program(out: Path, items: list[Item]):
    (path,) = out.glob(".progress-*")
    path.write_bytes(path.read_bytes() + b'\n5\n[]\n{"files": []}\n{"files": ["x.png"], "more": 1}\n')
    assert finished(out, items) == ["a.jpg", "b.jpg"]
    path.write_bytes(path.read_bytes() + b"\n5\n")
    assert recorded_results([out]) == {items[0].output(out), items[1].output(out)}


def test_other_settings(out: Path, items: list[Item]):
    with pytest.raises(InputError, match="results with passes = 3, but this run has 9"):
        Journal(out, SETTINGS | {"passes": 9}, items, resume=True)


def test_setting_that_an_earlier_version_did_not_record(out: Path, items: list[Item]):
    assert sorted(Journal(out, SETTINGS | {"white": None}, items, resume=True).rows) == ["a.jpg", "b.jpg"]
    with pytest.raises(InputError, match="results with white = None, but this run has 4095"):
        Journal(out, SETTINGS | {"white": 4095}, items, resume=True)


def test_a_run_is_resumed_with_other_file_extensions(out: Path, items: list[Item]):
    """Those that an earlier version did not record, or further ones; what other processes had finished is kept."""
    (path,) = out.glob(".progress-*")
    path.rename(out / ".progress-1.jsonl")
    for extensions in ([".jpg"], [".jpg", ".png"]):
        settings = SETTINGS | {"ext": extensions}
        journal = Journal(out, settings, items, resume=True)
        journal.add({"image": "c.jpg", **SCORES}, [items[2].output(out)], None)
        entries = [*read_entries(out).values()]
        assert sorted(entry.row["image"] for entry in entries if entry.of_run(settings)) == ["a.jpg", "b.jpg", "c.jpg"]
        assert entries[-1].settings["ext"] == extensions


def test_files_of_an_earlier_run_are_removed_with_its_result(
    out: Path, items: list[Item], caplog: pytest.LogCaptureFixture
):
    """Those that are not rewritten, also if the run was interrupted; those of other images, and all else, are kept."""
    caplog.set_level(logging.INFO)

    def write(journal: Journal, item: Item, *suffixes: str) -> None:
        files = [item.output(out, f"_OUT{suffix}") for suffix in (".png", *suffixes)]
        for path in files:
            path.touch()
        journal.add({"image": item.key, **SCORES}, files, None)

    def names() -> set[str]:
        return {path.name for path in out.iterdir()} - {".progress-0.jsonl"}

    mine = out.parent / "mine.png"
    for path in (mine, out / "a_OUT_mine.png"):
        path.touch()
    journal = Journal(out, SETTINGS, items, resume=False)
    for item in items[:2]:
        write(journal, item, "_outer.png", "_probs.npy")
    (path,) = out.glob(".progress-*")
    path.write_text(path.read_text().replace('"a_OUT_outer.png"', '"a_OUT_outer.png", "../mine.png"'))
    write(Journal(out, SETTINGS, items, resume=False), items[2], "_entropy.png")
    both = {"b_OUT.png", "b_OUT_outer.png", "b_OUT_probs.npy", "c_OUT.png", "c_OUT_entropy.png", "a_OUT_mine.png"}
    assert names() == both | {"a_OUT.png", "a_OUT_outer.png", "a_OUT_probs.npy"}

    other = {"passes": 9}
    write(Journal(out, other, items, resume=False), items[0], "_probs.npy")
    assert names() == both | {"a_OUT.png", "a_OUT_probs.npy"}
    assert finished(out, items, other) == ["a.jpg"]
    assert f"Removing files of an earlier run that this one does not write, such as {out / 'a_OUT_'}" in caplog.text
    caplog.clear()
    resumed = Journal(out, other, items, resume=True)
    write(resumed, items[1])
    write(resumed, items[2])
    assert caplog.text.count("Removing files") == 1
    assert names() == {"a_OUT.png", "a_OUT_probs.npy", "b_OUT.png", "c_OUT.png", "a_OUT_mine.png"}
    assert mine.exists()


def test_run_that_has_finished_nothing_can_be_resumed_otherwise(out: Path, items: list[Item]):
    Journal(out, SETTINGS, items, resume=False)
    assert {entry.row for entry in read_entries(out).values()} == {None}
    assert not Journal(out, {"passes": 9}, items, resume=True).rows


def test_results_of_other_images_are_kept(out: Path, items: list[Item]):
    """With their settings, by runs that add to a folder; a run that starts over ends them, and lists their files."""

    def images(settings: dict) -> list[str]:
        return [entry.row["image"] for entry in read_entries(out).values() if entry.of_run(settings)]

    other, outputs = {"passes": 9}, [item.output(out) for item in items[1:]]
    with pytest.raises(InputError, match="results with passes = 3, but this run has 9"):
        Journal(out, other, items[1:], resume=True, outputs=outputs)
    journal = Journal(out, other, items[1:], resume=False, outputs=outputs)
    assert (images(SETTINGS), images(other), journal.rows) == (["a.jpg"], [], {})
    for item in items[1:]:
        item.output(out).touch()
        journal.add({"image": item.key, **SCORES}, [item.output(out)])
    assert (images(SETTINGS), images(other)) == (["a.jpg"], ["b.jpg", "c.jpg"])
    SharedJournal(SETTINGS, []).add({"image": "b.jpg", **SCORES}, [items[1].output(out)])
    assert [row["mask"] for row in read_summary(out / "summary.csv")] == ["a_OUT.png", "b_OUT.png", "c_OUT.png"]
    assert (images(SETTINGS), images(other)) == (["a.jpg", "b.jpg"], ["c.jpg"])
    assert [*read_entries(out)] == ["a_OUT.png", "c_OUT.png", "b_OUT.png"]
    journal = Journal(out, other, items, resume=False)
    assert (images(SETTINGS), images(other)) == ([], [])
    assert [*read_entries(out)] == ["a_OUT.png", "c_OUT.png", "b_OUT.png"]


def test_a_resumed_run_is_the_latest(out: Path, items: list[Item]):
    """Beside a result of one of its images that has another first file, and other settings."""
    (out / "x.png").touch()
    SharedJournal({"passes": 9}, []).add({"image": "a.jpg", **SCORES}, [out / "x.png"])
    outputs = [item.output(out) for item in items]
    assert sorted(Journal(out, SETTINGS, items, resume=True, outputs=outputs).rows) == ["a.jpg", "b.jpg"]
    assert [*read_entries(out)] == ["x.png", "a_OUT.png", "b_OUT.png"]
    assert read_entries(out)["x.png"].of_run({"passes": 9})
    Journal(out, SETTINGS, items, resume=False, outputs=outputs)
    assert [name for name, entry in read_entries(out).items() if entry.row is not None] == ["x.png"]


def test_a_single_result_that_is_being_replaced_has_no_scores(out: Path, items: list[Item]):
    """If its run is killed on the way, the files of two runs are not taken for those of one."""
    first, second = read_entries(out).values()
    SharedJournal({"passes": 9}, [items[0].output(out), out.parent / "new" / "x.png"])
    assert read_entries(out) == {first.files[0]: Entry(first.files), second.files[0]: second}
    assert not (out.parent / "new").exists()


def test_a_file_that_has_become_a_result_of_its_own_is_kept(out: Path):
    """As after -o a.png and -o a_prob.png, once a.png is written without maps."""
    first, second = out / "a.png", out / "a_prob.png"
    first.touch()
    second.touch()
    journal = SharedJournal(SETTINGS, [])
    journal.add({"image": "a.jpg", **SCORES}, [first, second])
    journal.add({"image": "b.jpg", **SCORES}, [second])
    journal.add({"image": "a.jpg", **SCORES}, [first])
    assert second.exists()


def test_summary_lists_masks_that_exist(out: Path):
    (out / "b_OUT.png").unlink()
    (out / "z.png").touch()
    SharedJournal(SETTINGS, []).add({"image": "z.jpg", **SCORES}, [out / "z.png"])
    rows = {row["mask"]: row["image"] for row in read_summary(out / "summary.csv")}
    assert rows == {"a_OUT.png": "a.jpg", "z.png": "z.jpg"}


def test_settings_after_a_line_that_was_cut_off(out: Path, items: list[Item]):
    other = {"passes": 9}
    journal = Journal(out, other, items, resume=False)
    with open(out / ".progress-0.jsonl", "ab") as file:
        file.write(b'{"pas')
    journal.add({"image": "c.jpg", **SCORES}, [items[2].output(out)])
    assert read_entries(out)["c_OUT.png"].of_run(other)


def test_journals_of_several_processes_become_one(out: Path, items: list[Item]):
    (path,) = out.glob(".progress-*")
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-2]))
    (out / ".progress-1.jsonl").write_bytes(b"".join([lines[1], *lines[-2:]]))
    before = read_entries(out)
    assert len(before) == 2
    Journal(out, SETTINGS, items, resume=True)
    assert [path.name for path in out.glob(".progress-*")] == [".progress-0.jsonl"]
    assert read_entries(out) == before
