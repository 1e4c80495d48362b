"""Files: downloads, archives, where a checkpoint is."""
