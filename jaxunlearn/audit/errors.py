"""The one error type of the audits: there is too little to measure with.

Every other bad input (wrong shape, labels out of range, overlapping groups) is a plain
`ValueError` or `TypeError`. `TooFew` is a `ValueError` as well, so that a caller who does not care
about the difference need not know it, and one who does can show "undefined" instead of failing.
"""


class TooFew(ValueError):
    """Fewer models, examples, classes or folds than the quantity needs to be defined.

    Example:
        >>> from jaxunlearn.audit import TooFew
        >>> issubclass(TooFew, ValueError)
        True
    """
