"""The one exception that is the user's to mend."""


class UserError(Exception):
    """Bad input: the CLI prints this one line, without a traceback, and exits with code 2.

    The message names the file or the key, says what is wrong with it, and how to mend it.
    """
