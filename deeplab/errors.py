"""What all foreseen errors have in common."""


class UserError(Exception):
    """Trouble that a person can act on: the message alone says what was wrong, where, and what is accepted."""


class ImageError(ValueError):
    """The bytes are not an image that is accepted here; the message is one line with the reason."""
