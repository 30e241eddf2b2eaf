"""Write the probability map of each image of a folder: the mean over 16 views, test-time augmentation."""

import argparse

from utils import batch, cli
from utils.probability import TestTimeAugmentation


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, parents=[cli.folder_parent(), cli.probability_parent(), cli.model_parent()]
    )
    cli.add_defaulted(
        parser, "--shrink", type=cli.number(0.05, 1), default=0.8, metavar="S", help="size of the views on black"
    )
    return parser


def main(args: argparse.Namespace) -> int:
    items = batch.find_items(args.input_dir, args.output_dir, args.ext, args.recursive)
    model, dtype = cli.load_model(args)
    sampler = TestTimeAugmentation(args.batch_size, dtype, shrink=args.shrink)
    return batch.predict_probabilities(model, sampler, items, args.output_dir, **cli.probability_options(args))


if __name__ == "__main__":
    cli.run(main, get_args_parser())
