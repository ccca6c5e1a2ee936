"""The training loop and what surrounds it: `avssl.training.run` has the verbs."""
