"""Write the probability map of each image of a folder: the mean of Monte Carlo dropout passes."""

import argparse

from utils import arguments, cli, model_flags
from utils.inference.samplers import MCDropout
from utils.pipeline.probability_maps import predict_probabilities
from utils.result_arguments import add_passes


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        parents=[arguments.folder_parent(), arguments.probability_parent(), arguments.model_parent()],
    )
    add_passes(parser, 50, arguments.integer(1), "number of passes")
    return parser


def main(args: argparse.Namespace) -> int:
    cli.check_review_flags(args)
    items = cli.items_from_args(args)
    model, dtype = model_flags.model_from_args(args, [item.path for item in items])
    passes = model_flags.passes_from_args(args, model)
    sampler = MCDropout(args.batch_size, dtype, num_samples=passes, seed=args.seed)
    report = predict_probabilities(model, sampler, items, args.output_dir, cli.probability_options(args))
    return cli.finish_prediction(args, report, args.input_dir, f": {args.output_dir}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
