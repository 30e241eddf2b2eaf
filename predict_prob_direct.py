"""Write the probability map of each image of a folder: the softmax of a single pass."""

import argparse

from utils import arguments, cli, model_flags
from utils.inference.samplers import Softmax
from utils.pipeline.probability_maps import predict_probabilities


def get_args_parser() -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        description=__doc__,
        parents=[arguments.folder_parent(), arguments.probability_parent(), arguments.model_parent()],
    )


def main(args: argparse.Namespace) -> int:
    cli.check_review_flags(args)
    items = cli.items_from_args(args)
    model, dtype = model_flags.model_from_args(args, [item.path for item in items])
    sampler = Softmax(args.batch_size, dtype)
    report = predict_probabilities(model, sampler, items, args.output_dir, cli.probability_options(args))
    return cli.finish_prediction(args, report, args.input_dir, f": {args.output_dir}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
