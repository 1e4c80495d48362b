"""Dialogs of any form to batches of model input."""
