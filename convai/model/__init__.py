"""Text to tokens, tokens to scores: vocabularies, the double-heads models, their weights."""
