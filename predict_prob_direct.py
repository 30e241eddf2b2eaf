"""Write the probability map of each image of a folder: plain softmax, uncalibrated."""

import argparse

from utils import batch, cli
from utils.probability import Softmax


def get_args_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description=__doc__, parents=[cli.folder_parent(), cli.probability_parent(), cli.model_parent()]
    )


def main(args: argparse.Namespace) -> int:
    items = batch.find_items(args.input_dir, args.output_dir, args.ext, args.recursive)
    model, dtype = cli.load_model(args)
    sampler = Softmax(args.batch_size, dtype)
    return batch.predict_probabilities(model, sampler, items, args.output_dir, **cli.probability_options(args))


if __name__ == "__main__":
    cli.run(main, get_args_parser())
