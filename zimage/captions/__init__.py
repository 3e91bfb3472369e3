"""Captions that say what must stay free and leave the identity to the trigger."""
