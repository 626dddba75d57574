"""The exception that is the user's to fix, and its kind that another try may."""

LONGEST = 2000  # characters


class UserError(Exception):
    """Bad input: the CLI prints this one line, without a traceback, and exits with code 2.

    The message names the file or the key, says what is wrong with it, and how to fix it. What it
    quotes of a file may be anything, so it is cut to a length and to characters that a terminal
    shows as such.
    """

    exit_code = 2

    def __init__(self, message: str) -> None:
        if len(message) > LONGEST:
            message = f"{message[: LONGEST // 2]} ... {message[-LONGEST // 2 :]}"
        shown = message if message.isprintable() else "".join(map(_shown, message))
        super().__init__(shown)


class TryAgain(UserError):
    """What happened to a run rather than what was asked of it, such as a lost process: the same
    command goes on. Exit code 75, EX_TEMPFAIL of sysexits.h."""

    exit_code = 75


def first_line(error: BaseException) -> str:
    """Of what an error says; its type where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    return " " if character.isspace() else ascii(character)[1:-1]
