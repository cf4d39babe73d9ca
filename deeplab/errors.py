"""What all foreseen errors have in common."""


class UserError(Exception):
    """Trouble that a person can act on: the message alone says what was wrong, where, and what is accepted.

    `passing`: whether the same may go well a little later, as it was the system's trouble and not the input's.
    """

    passing = False


class ImageError(ValueError):
    """The bytes are not an image that is accepted here; the message is one line with the reason."""
