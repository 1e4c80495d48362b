"""What a run consists of: updates, validations, checkpoints, going on with it."""
