"""The recipe of the embedded model: one training engine, one file a network, evaluation, packaging, the model card."""
