"""Replies of a persona: the agent, decoding, the terminal."""
