"""Why something failed, in a few words: libraries write pages."""


def reason(error: object, text: str | None = None) -> str:
  """The first line that says something, cut to 200 characters; the error's type where none does.

  Args:
    error: what was raised.
    text: what it says, where that is not `str(error)`.
  """
  line = next((line.strip() for line in (text or str(error)).splitlines() if line.strip()), '')
  return (line or type(error).__name__)[:200].rstrip(' .;:')
