"""One image's path: decode, preprocess, infer, label."""
