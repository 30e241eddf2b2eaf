"""Write the probability map of each image of a folder: the mean over 16 views, test-time augmentation."""

import argparse

from utils import arguments, cli, model_flags
from utils.inference.samplers import TestTimeAugmentation
from utils.pipeline.probability_maps import predict_probabilities


def get_args_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        parents=[arguments.folder_parent(), arguments.probability_parent(), arguments.model_parent()],
    )
    arguments.add_with_default(
        parser,
        "--shrink",
        type=arguments.number(0.05, 1),
        default=0.8,
        metavar="S",
        help="scale of the downscaled and zero-padded views",
    )
    return parser


def main(args: argparse.Namespace) -> int:
    cli.check_review_flags(args)
    items = cli.items_from_args(args)
    model, dtype = model_flags.model_from_args(args, [item.path for item in items])
    sampler = TestTimeAugmentation(args.batch_size, dtype, shrink=args.shrink)
    report = predict_probabilities(model, sampler, items, args.output_dir, cli.probability_options(args))
    return cli.finish_prediction(args, report, args.input_dir, f": {args.output_dir}")


if __name__ == "__main__":
    cli.run(main, get_args_parser())
