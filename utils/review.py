"""Make the page on which a person reviews the results of prediction runs: the least certain images first.

`python -m utils.review OUT_DIR --imgs-dir DIR` reads what predict.py, predict_bayesian.py or a predict_prob script has
written last, or several of them side by side; the page opens from the disk in any browser.
"""

import argparse
import logging
from pathlib import Path

from utils import cli, pairing_arguments, value_arguments
from utils.review_page.page import MAX_EMBEDDED, ReviewOptions, write_review

logger = logging.getLogger(__name__)


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m utils.review", description=__doc__)
    parser.add_argument("results", nargs="+", type=Path, metavar="OUT_DIR", help="output folder of a prediction")
    parser.add_argument("--imgs-dir", type=Path, required=True, metavar="DIR", help="the images")
    parser.add_argument("--masks-dir", type=Path, metavar="DIR", help="their ground-truth masks, for the scores")
    pairing_arguments.add_mask_suffix(parser)
    value_arguments.add_ignore_value(parser, recorded="as in the runs, or ")
    value_arguments.add_max_megapixels(parser)
    parser.add_argument(
        "--output",
        "-o",
        type=Path,
        metavar="FILE",
        help="the page; its pictures are written beside it (default: review.html in the first OUT_DIR)",
    )
    parser.add_argument(
        "--single-file",
        action="store_true",
        help=f"embed the pictures in the page, of up to {MAX_EMBEDDED} images, so that it can be sent by mail",
    )
    return parser


def main(args: argparse.Namespace) -> int:
    cli.require_one_process()
    options = ReviewOptions(args.masks_dir, args.mask_suffix, args.ignore_value, args.output, args.single_file)
    page, report = write_review(args.results, args.imgs_dir, options)
    return report.finish(f": open {page} in a browser")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
