"""What the flags name, the exit codes, and errors in one line."""

import argparse
import errno
import importlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import lively_network
from tests.test_architecture import COMMANDS
from unet import BayesianUNet
from utils import cli, model_flags
from utils.arguments import compute_parent, model_parent, training_folders_parent, training_parent
from utils.checkpoint import TrainedModel, save_checkpoint
from utils.data.pairing import PairingOptions
from utils.result_arguments import add_result_flags
from utils.runtime.errors import InputError

# -- the model ---------------------------------------------------------------------------------------------------------


def parsed(*arguments: object) -> argparse.Namespace:
    return argparse.ArgumentParser(parents=[model_parent()]).parse_args([*map(str, arguments), "--device", "cpu"])


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        (("--classes", 3), "2"),
        (("--bilinear",), "transposed convolutions"),
        (("--newW", 64), "128"),
        (("--newH", 64), "128"),
    ],
)
def test_contradicting_flag(tmp_path: Path, flags: tuple, value: str):
    path = tmp_path / "m.pth"
    model = TrainedModel(lively_network())
    save_checkpoint(path, model)
    message = rf"m\.pth contradicts {' '.join(map(str, flags))}: the model has {value}\. Omit the flag"
    with pytest.raises(InputError, match=message):
        model_flags.check_model_flags(parsed(*flags), path, model)
    with pytest.raises(InputError, match=message):
        model_flags.model_from_args(parsed("-m", path, *flags))


def test_agreeing_flags(tmp_path: Path):
    path = tmp_path / "m.pth"
    save_checkpoint(path, TrainedModel(lively_network(bilinear=True)))
    flags = ("--classes", 2, "--bilinear", "--newW", 128, "--newH", 128)
    for given in (flags, ()):
        model, dtype = model_flags.model_from_args(parsed("-m", path, *given))
        model_flags.check_model_flags(parsed(*given), path, model)
        assert (model.input_size, model.network.architecture["bilinear"], dtype) == ((128, 128), True, None)
    model_flags.check_model_flags(argparse.Namespace(), path, model)  # of a command without these flags


def test_flags_complete_a_file_without_an_input_size(tmp_path: Path):
    weights = lively_network(dropout_placement="block").state_dict()
    torch.save({**weights, "mask_values": [0, 255]}, tmp_path / "original.pth")
    for flags, size in (((), (128, 128)), (("--newW", 64), (64, 128)), (("--newH", 32), (128, 32))):
        assert model_flags.model_from_args(parsed("-m", tmp_path / "original.pth", *flags))[0].input_size == size


def test_guarantee_is_for_the_white_of_the_calibration(tmp_path: Path):
    save_checkpoint(tmp_path / "m.pth", TrainedModel(lively_network(), white=4095.0))
    parser = argparse.ArgumentParser(parents=[model_parent()])
    add_result_flags(parser)

    def white(*flags: str) -> float | None:
        args = parser.parse_args(["-m", str(tmp_path / "m.pth"), "--device", "cpu", *flags])
        return model_flags.model_from_args(args)[0].white

    assert white("--white", "1023") == 1023
    assert white("--white", "4095", "--guarantee", "0.9") == white("--guarantee", "0.9") == 4095
    with pytest.raises(InputError, match=r"--guarantee holds where white is 4095, .*: omit --white 1023"):
        white("--white", "1023", "--guarantee", "0.9")
    save_checkpoint(tmp_path / "m.pth", TrainedModel(lively_network()))  # calibrated on images of 8 bits
    assert white("--white", "1023", "--guarantee", "0.9") == 1023


def training_flags(*arguments: object) -> argparse.Namespace:
    parents = [training_parent(), training_folders_parent()]
    return argparse.ArgumentParser(parents=parents).parse_args([*map(str, arguments)])


def test_how_images_and_masks_are_found():
    flags = ("--mask-suffix", "_gt", "--recursive", "--ext", "bmp", "--skip-unusable")
    assert cli.pairing_options(training_flags(*flags)) == PairingOptions("_gt", True, ["bmp"], True)
    assert cli.pairing_options(training_flags()) == PairingOptions()


def test_network_to_train(tmp_path: Path):
    new = model_flags.initial_model_from_args(training_flags("--classes", 3, "--bilinear"))
    assert new.network.architecture == BayesianUNet(n_classes=3, bilinear=True).architecture
    assert model_flags.initial_model_from_args(training_flags()).network.architecture == BayesianUNet().architecture
    network = lively_network(n_classes=3, bilinear=True)
    save_checkpoint(tmp_path / "m.pth", TrainedModel(network, mask_values=[0, 1, 2]))
    loaded = model_flags.initial_model_from_args(training_flags("--load", tmp_path / "m.pth"))
    assert loaded.network.architecture == network.architecture
    for name, value in loaded.network.state_dict().items():
        assert torch.equal(value, network.state_dict()[name]), name
    with pytest.raises(InputError, match=r"m\.pth contradicts --classes 2: the model has 3"):
        model_flags.initial_model_from_args(training_flags("--load", tmp_path / "m.pth", "--classes", 2))


def test_input_size_to_train_at(tmp_path: Path):
    assert model_flags.initial_model_from_args(training_flags()).input_size == (128, 128)
    assert model_flags.initial_model_from_args(training_flags("--newW", 256, "--newH", 64)).input_size == (256, 64)
    path = tmp_path / "m.pth"
    save_checkpoint(path, TrainedModel(lively_network(), (96, 64)))
    assert model_flags.initial_model_from_args(training_flags("--load", path)).input_size == (96, 64)
    assert model_flags.initial_model_from_args(training_flags("--load", path, "--newW", 64)).input_size == (
        64,
        64,
    )  # a new run
    assert model_flags.initial_model_from_args(training_flags("--newW", 96), resumed=path).input_size == (96, 64)
    with pytest.raises(InputError, match=r"m\.pth contradicts --newW 64: the model has 96"):
        model_flags.initial_model_from_args(training_flags("--newW", 64), resumed=path)


def test_training_without_dropout_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    for dropout, warned in ((0.2, False), (0.0, True)):
        save_checkpoint(tmp_path / "m.pth", TrainedModel(lively_network(dropout=dropout)))
        model_flags.initial_model_from_args(training_flags("--load", tmp_path / "m.pth"))
        assert ("cannot be used with MC dropout" in caplog.text) == warned


def test_more_epochs_are_a_new_run(tmp_path: Path):
    path = tmp_path / "last.pth"
    save_checkpoint(path, TrainedModel(lively_network(), settings={"epochs": 20}))
    model_flags.initial_model_from_args(training_flags("--epochs", 20), resumed=path)
    model_flags.initial_model_from_args(training_flags("--epochs", 40, "--load", path))
    further = f"to train further, use --load {path} with --epochs N, in place of --resume"
    for epoch, state in ((3, "is one of 20 epochs: complete it with --resume and --epochs 20"), (20, "has finished")):
        save_checkpoint(path, TrainedModel(lively_network(), settings={"epochs": 20}, epoch=epoch))
        with pytest.raises(InputError, match=rf"the run of {path} {state}.*; {further}"):
            model_flags.initial_model_from_args(training_flags("--epochs", 40), resumed=path)


def test_validation_folders():
    both = ("--val-imgs-dir", "i", "--val-masks-dir", "m")
    assert cli.validation_folders(training_flags()) is None
    assert cli.validation_folders(training_flags("--groups", "g.csv")) is None
    assert cli.validation_folders(training_flags(*both)) == (Path("i"), Path("m"))
    for one in (both[:2], both[2:]):
        with pytest.raises(InputError, match="belong together"):
            cli.validation_folders(training_flags(*one))


def test_outputs_are_checked_before_anything_is_computed(tmp_path: Path):
    (tmp_path / "file").touch()
    (tmp_path / "o").mkdir()
    file, lock = tmp_path / "file", tmp_path / "o" / ".lock"
    for flags in ({"output_dir": file}, {"checkpoint_dir": file / "x"}, {"data_dir": file}, {"figure": file / "x.png"}):
        with pytest.raises(InputError) as error, cli.outputs_from_args(argparse.Namespace(**flags)):
            pass
        assert error.value.options == tuple(flags)
    with cli.outputs_from_args(argparse.Namespace(output=[tmp_path / "o" / "x.png"])):
        assert not lock.exists()  # other runs may write beside it
    with cli.outputs_from_args(argparse.Namespace(output_dir=tmp_path / "o")):
        assert lock.exists()
    with cli.outputs_from_args(argparse.Namespace(output_dir=file, no_save=True)):
        pass


@pytest.mark.parametrize("flag", ["output_dir", "checkpoint_dir"])
def test_a_table_that_another_program_has_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str):
    """On Windows nothing can be renamed to it; it is known before anything is computed."""
    (tmp_path / "metrics.csv").touch()
    given = argparse.Namespace(**{flag: tmp_path})
    with cli.outputs_from_args(given):
        pass
    replace = os.replace

    def refuse(path: Path, target: Path) -> None:
        if target.exists():
            raise PermissionError(errno.EACCES, "it is open")
        replace(path, target)

    monkeypatch.setattr("os.replace", refuse)
    with (
        pytest.raises(InputError, match=r"metrics\.csv cannot be replaced \(it is open\): close it") as error,
        cli.outputs_from_args(given),
    ):
        pass
    assert error.value.options == (flag,)


# -- running -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def exit_code_of(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """The exit code of a script whose `main` returns or raises a given outcome."""

    def exit_code(outcome: object, parser: argparse.ArgumentParser | None = None) -> int:
        def main(args: argparse.Namespace) -> int | None:
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr("sys.argv", ["script"])
        monkeypatch.setattr(logging.getLogger(), "handlers", [])
        monkeypatch.setattr("signal.signal", lambda *_: None)
        with pytest.raises(SystemExit) as error:
            cli.run(main, parser or argparse.ArgumentParser())
        return error.value.code

    return exit_code


@pytest.mark.parametrize(
    ("outcome", "code", "message"),
    [
        (None, 0, ""),
        (1, 1, ""),
        (InputError("what was wrong"), 2, "Error: what was wrong\n"),
        (OSError(13, "Permission denied", "x.png"), 2, "Error: x.png: Permission denied\n"),
        (OSError(28, "No space left on device", "x.png"), 2, "Error: x.png: No space left on device; free some space"),
        (
            RuntimeError("CUDA error: launch failure\nmore"),
            2,
            "Error: The GPU failed (CUDA error: launch failure)",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"), 2, "use --device cpu"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), 2, "Error: Out of memory: "),
        (SystemExit(138), 138, ""),
        (KeyboardInterrupt(), 130, "Ctrl-C"),
    ],
)
def test_exit_codes(outcome: object, code: int, message: str, exit_code_of: Callable, capsys: pytest.CaptureFixture):
    assert exit_code_of(outcome) == code
    assert message in capsys.readouterr().err


GPU_IS_FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")
HOST_IS_FULL = RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory")


@pytest.mark.parametrize(
    ("error", "parents", "advice"),
    [
        (GPU_IS_FULL, [training_parent], "reduce --batch-size, or use --device cpu"),
        (GPU_IS_FULL, [model_parent], "reduce --batch-size, or use --device cpu"),
        (GPU_IS_FULL, [compute_parent], "use --device cpu"),
        (RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)"), [compute_parent], "use --device cpu"),
        (HOST_IS_FULL, [training_parent], "reduce --batch-size, or --newW and --newH"),
        (HOST_IS_FULL, [model_parent], "end other programs, or use a machine with more memory"),
        (MemoryError(), [], "end other programs, or use a machine with more memory"),
    ],
)
def test_out_of_memory_is_one_line(
    error: Exception, parents: list, advice: str, exit_code_of: Callable, capsys: pytest.CaptureFixture
):
    assert exit_code_of(error, argparse.ArgumentParser(parents=[parent() for parent in parents])) == 2
    assert capsys.readouterr().err == f"Error: Out of memory: {advice}\n"


def test_full_disk_names_the_flag_to_continue_with(
    tmp_path: Path, exit_code_of: Callable, capsys: pytest.CaptureFixture
):
    def message(flag: str, default: object, output_dir: Path | None = None) -> str:
        parser = argparse.ArgumentParser()
        parser.add_argument(flag, default=default)
        parser.set_defaults(output_dir=output_dir)
        assert exit_code_of(OSError(28, "No space left on device", "x.png"), parser) == 2
        return capsys.readouterr().err

    expected = "Error: x.png: No space left on device; free some space and run it again"
    assert message("--skip-existing", False) == f"{expected}\n"
    assert message("--skip-existing", False, tmp_path) == f"{expected} with --skip-existing\n"
    assert message("--checkpoint-dir", tmp_path) == f"{expected}\n"
    (tmp_path / "last.pth").touch()
    assert message("--checkpoint-dir", tmp_path) == f"{expected} with --resume\n"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_commands_of_one_process_refuse_several(command: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("utils.runtime.distributed.world_size", lambda: 2)
    with pytest.raises(InputError, match="start it without torchrun"):
        importlib.import_module(f"utils.{command}").main(argparse.Namespace())


def test_internal_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["script"])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with pytest.raises(ZeroDivisionError):
        cli.run(lambda args: 1 // 0, argparse.ArgumentParser())
