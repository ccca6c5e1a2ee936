"""Published checkpoints of data2vec, in and out."""
