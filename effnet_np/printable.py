"""Text from strangers on its way to a terminal: names of files, labels, tensors."""


def printable(text: object, keep: str = "") -> str:
    r"""`str(text)`, in which characters that have no picture stand as escapes: "\x1b", "\n", "\u202e".

    So it moves no cursor, changes no colour, turns no direction, breaks no line (`keep="\n"` leaves line breaks), and half
    characters (from names of files that are not UTF-8) can be printed.
    """
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in str(text))


def shortened(text: object, most: int = 200) -> str:
    """`printable(text)` of at most `most` characters, the middle left out: for an error, however long a file's names are."""
    whole = printable(text)
    return whole if len(whole) <= most else f"{whole[: most // 2]} ... {whole[5 - most // 2 :]}"
