"""The results of the GPU benchmark as Markdown: a table of what was aimed at, and all the rest below it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.measuring import WrongResult

BEGIN, END = "<!-- gpu.py -->", "<!-- /gpu.py -->"
Results = Mapping[str, Any]


def heading(results: Results) -> str:
    """What was measured on, in one line."""
    machine = results["machine"]
    text = f"{machine['name']}, {machine['cores']} cores, torch {machine['torch']}, {machine['date']}"
    return text + ", `--quick`" * machine["quick"]


def table(results: Results) -> str:
    """What was measured, beside what was aimed at."""
    lines = ["| what | measured | aim |", "|---|---|---|"]
    lines += [f"| {what} | {measured} | {aim} |" for what, measured, aim in rows(results["parts"])]
    return "\n".join(lines)


def rows(parts: Results) -> list[tuple[str, str, str]]:
    """The rows of the table, of the parts that have been measured."""
    return [
        *training_rows(parts.get("training", {})),
        *profile_rows(parts.get("profile", {})),
        *throughput_rows(parts.get("throughput", {})),
        *check_rows(parts),
    ]


def training_rows(training: Results) -> list[tuple[str, str, str]]:
    """Time and scores of the default training."""
    found = []
    if "temperatures and end, seconds" in training:
        what = f"{training['epochs']} epochs on {training['images']} images, with decoding and temperatures"
        found.append((what, f"{training['seconds']:.1f} s", "at most 45 s"))
        found.append(("its median epoch", f"{training['median epoch, seconds']:.2f} s", ""))
    for name in ("best validation Dice", "test Dice, mean", "test Jaccard, mean"):
        if name in training:
            found.append((f"its {name}", f"{training[name]:.4f}", ""))
    return found


def profile_rows(profile: Results) -> list[tuple[str, str, str]]:
    """Where the time of the GPU goes."""
    found = []
    for what, aim in (("training", "at least 55 %"), ("prediction", "")):
        for name in ("fraction of GPU time in convolutions", "fraction of CPU time in convolutions"):
            if (value := profile.get(f"{what}: {name}")) is not None:
                found.append((f"{what}, {name}", f"{100 * value:.0f} %", aim))
        if (value := profile.get(f"{what}: fraction of time in which the GPU is busy")) is not None:
            found.append((f"{what}, fraction of time in which the GPU is busy", f"{100 * value:.0f} %", ""))
    return found


def throughput_rows(throughput: Results) -> list[tuple[str, str, str]]:
    """Images per second of whole folders."""
    found = []
    for name in ("MC 50", "TTA", "direct"):
        for how, aim in (("whole process", "at least 20 per second"), ("steady", "at least 40 per second")):
            value = throughput.get(name, {}).get(f"images per second, {how}")
            if value is not None:
                what = f"{name}, {throughput[name]['images']} images of {throughput['megapixels']:g} megapixels, {how}"
                found.append((what, f"{value:.1f} per second", aim if name != "direct" else ""))
    if "MC 50 with --mask-dir" in throughput:
        slower = throughput["MC 50 with --mask-dir"]["seconds"] / throughput["MC 50"]["seconds"] - 1
        found.append(("MC 50 with `--mask-dir`, additional time", f"{100 * slower:.0f} %", "at most 33 %"))
    return found


def check_rows(parts: Results) -> list[tuple[str, str, str]]:
    """Whether the results are right."""
    found = []
    for method, compared in parts.get("maps", {}).items():
        if method == "mask":
            value, aim = f"{100 * compared['fraction of differing pixels']:.4f} % of the pixels", "at most 0.01 %"
            found.append(("masks that differ between CPU and GPU", value, aim))
        else:
            value = str(compared["largest difference"])
            found.append((f"{method}, maps of CPU and GPU, largest difference in grey levels", value, "at most 1"))
    name = "largest relative difference of a loss"
    for precision, losses in parts.get("steps", {}).items():
        title = f"training steps as a CUDA graph and without one, {name}, {precision}"
        found.append((title, f"{100 * losses[name]:.2g} %", f"at most {100 * losses['limit']:.2g} %"))
    if {"SIGINT", "SIGTERM"} <= parts.get("resume", {}).keys():
        found.append(("trainings stopped by Ctrl-C and by a termination, and resumed", "as expected", "as expected"))
    if "outcome" in parts.get("tests", {}):
        outcome = parts["tests"]["outcome"]
        value = f"{outcome.get('passed', 0)} passed, {outcome.get('failed', 0) + outcome.get('error', 0)} failed"
        found.append(("tests of whole scripts on the GPU", value, "0 failed"))
    return found


def details(results: Results) -> str:
    """Everything that was measured, part by part."""
    blocks = []
    for part, values in results["parts"].items():
        blocks.append(f"## {part}: {results['seconds'].get(part, '...')} s")
        plain = {name: value for name, value in values.items() if not isinstance(value, list | dict)}
        grouped = [{"": name, **value} for name, value in values.items() if isinstance(value, dict)]
        if short := [f"- {name}: {value}" for name, value in plain.items() if "\n" not in str(value)]:
            blocks.append("\n".join(short))
        if grouped:
            blocks.append(grid(grouped))
        for name, value in values.items():
            if isinstance(value, list) and value:
                entries = value if isinstance(value[0], dict) else [{name: entry} for entry in value]
                blocks.append(f"{name}:\n\n{grid(entries)}")
        blocks += [f"{name}:\n\n```\n{value}\n```" for name, value in plain.items() if "\n" in str(value)]
    return "\n\n".join(blocks)


def grid(entries: Sequence[Mapping[str, Any]]) -> str:
    """A Markdown table with a row per entry and a column per name."""
    columns = list(dict.fromkeys(name for entry in entries for name in entry))
    lines = [columns, ["---"] * len(columns), *([entry.get(name, "") for name in columns] for entry in entries)]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', ' ') for cell in line)} |" for line in lines)


def document(results: Results) -> str:
    """The whole Markdown document."""
    wrong = "".join(f"\nWrong:\n\n```\n{message}\n```\n" for message in results["wrong"])
    return f"# {heading(results)}\n{wrong}\n{table(results)}\n\n{details(results)}\n"


def fill(path: Path, results: Results) -> None:
    """Replace what stands between the two marker lines of a document with the table.

    Raises:
        WrongResult: the document has no such lines.
    """
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(f"{BEGIN}\n")
    _, end, after = rest.partition(f"{END}\n")
    if not begin or not end:
        raise WrongResult(f"{path} has no lines {BEGIN} and {END}")
    path.write_text(
        f"{before}{begin}Measured on one {heading(results)}:\n\n{table(results)}\n\n{end}{after}", encoding="utf-8"
    )
