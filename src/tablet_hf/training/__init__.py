"""Pre-training, fine-tuning and prediction with the `Trainer` of transformers, and whole experiments."""
