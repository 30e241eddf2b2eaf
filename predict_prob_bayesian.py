"""Write the probability map of each image of a folder: the mean of Monte Carlo dropout passes."""

import argparse

from utils import batch, cli
from utils.probability import MCDropout


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, parents=[cli.folder_parent(), cli.probability_parent(), cli.model_parent()]
    )
    cli.add_defaulted(parser, "--mc", type=cli.whole_number(1), default=50, metavar="T", help="number of passes")
    return parser


def main(args: argparse.Namespace) -> int:
    items = batch.find_items(args.input_dir, args.output_dir, args.ext, args.recursive)
    model, dtype = cli.load_model(args)
    sampler = MCDropout(args.batch_size, dtype, num_samples=args.mc, seed=args.seed)
    return batch.predict_probabilities(model, sampler, items, args.output_dir, **cli.probability_options(args))


if __name__ == "__main__":
    cli.run(main, get_args_parser())
