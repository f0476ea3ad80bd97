"""What the texts of options say."""


def names(text: str | None) -> list[str] | None:
    """The parts between commas; None where the option was not given."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]
