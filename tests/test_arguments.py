"""The types of flags, which say what was expected, and the help of defaults."""

import argparse

import pytest

from utils.arguments import add_with_default, integer, number


def test_integer():
    parse = integer(1, 10)
    assert (parse("1"), parse("10")) == (1, 10)
    for text in ("0", "11", "-1", "1.5", "nan", "", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected an integer from 1 to 10"):
            parse(text)
    with pytest.raises(argparse.ArgumentTypeError, match="expected an integer of 3 or more"):
        integer(3)("2")


def test_number():
    parse = number(0, 1)
    assert (parse("1"), parse("1e-3")) == (1.0, 0.001)
    for text in ("0", "-1", "1.01", "nan", "inf", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="above 0 and up to 1"):
            parse(text)


def test_number_including_the_lower_bound():
    parse = number(0, 1, include_low=True)
    assert (parse("0"), parse("1")) == (0.0, 1.0)
    for text in ("-0.01", "1.01", "nan", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="from 0 and up to 1"):
            parse(text)


def test_help_ends_with_the_default():
    parser = argparse.ArgumentParser()
    add_with_default(parser, "--epochs", type=integer(1), default=20, help="number of epochs")
    add_with_default(parser, "--bare", default="x")
    assert "number of epochs (default: 20)" in parser.format_help()
    assert "--bare BARE      default: x" in parser.format_help()
    assert parser.parse_args([]).epochs == 20
